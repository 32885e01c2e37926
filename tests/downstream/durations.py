"""What the corpus check does between a task's ``read`` and its ``prepare``."""

from s3prl_distiller.downstream.core.task import Splits

from s3prl_distiller import audio


def with_durations(splits: Splits) -> Splits:
    """The splits with every duration filled in from the file's header."""
    for utterances in splits.values():
        for utterance in utterances:
            utterance.duration = audio.probe(utterance.audio).duration
    return splits
