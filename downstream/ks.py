"""Keyword spotting: which of ten words an utterance is, another word, or silence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from s3prl_distiller.data.utterance import Utterance

from .core.classification import Classification, ClassificationConfig, labelled, pairs, read_labelled
from .core.task import Predict, Row, Splits
from .corpora.speech_commands import SILENCE, UNKNOWN, read_speech_commands
from .metrics.classification import accuracy


@dataclass
class KeywordConfig(ClassificationConfig):
    test_root: str | None = None
    """folder of the test archive of Speech Commands, where it is not beside that of the training archive"""
    silence_seconds: float = 1.0
    """how much of a recording of background noise is one example of silence"""
    balanced_dev: bool = True
    """on dev, each class counts the same in all figures: s3prl draws classes equally often there, too"""
    fillers: list[str] = field(default_factory=lambda: [UNKNOWN, SILENCE, "unknown", "silence"])
    """classes that are no keywords, which ``acc_words`` leaves out"""


class Task(Classification):
    """Speech Commands v0.01 or v0.02, or manifests with ``label``.

    Training hears a random second of a noise recording each time; an evaluation hears all of its seconds, so that
    figures are the same each time.
    """

    name = "ks"
    config_class = KeywordConfig
    units: ClassVar[dict[str, str]] = {"acc": "%", "acc_words": "%"}
    published: ClassVar[dict[str, int]] = {"train": 51_094, "dev": 6_804, "test": 3_081}
    """Of v0.01, the six recordings of noise in train and in dev counted as six utterances."""
    noun = "keyword"

    def read(self, root: Path) -> Splits:
        manifests = read_labelled(root, "keywords_mini", self.key)
        if manifests is not None:
            return manifests
        if not self.config.silence_seconds > 0:
            raise ValueError(f"task.silence_seconds is {self.config.silence_seconds}: it must be above 0")
        test_root = None if self.config.test_root is None else Path(self.config.test_root).expanduser()
        return read_speech_commands(root, test_root, self.config.silence_seconds)

    def evaluate(self, split: str, predict: Predict) -> list[Row]:
        heard = [window for utterance in self.splits[split] for window in windows(utterance)]
        return self.rows(list(predict(heard)), split)

    def rows(self, outputs: Sequence[dict[str, Any]], split: str | None) -> list[Row]:
        if split != "dev" or not self.config.balanced_dev:
            return list(outputs)
        counts = Counter(output["reference"] for output in outputs)
        return [output | {"weight": len(outputs) / len(counts) / counts[output["reference"]]} for output in outputs]

    def score(self, rows: Sequence[Row]) -> dict[str, float]:
        """``acc``, and ``acc_words``: over the utterances that are keywords."""
        words = [row for row in labelled(rows) if row["reference"] not in self.config.fillers]
        weights = (row.get("weight", 1.0) for row in words)
        return super().score(rows) | {"acc_words": accuracy(pairs(words), weights)}


def windows(utterance: Utterance) -> Iterator[Utterance]:
    """An utterance that training crops by its own ``crop_seconds``, as the consecutive windows of that length; others
    as they are."""
    seconds = (utterance.custom or {}).get("crop_seconds")
    assert utterance.duration is not None
    if seconds is None or utterance.duration < seconds:
        yield utterance
        return
    for number in range(int(utterance.duration / seconds)):
        start = number * seconds
        yield replace(utterance, id=f"{utterance.id}@{start:g}", start=utterance.start + start, duration=seconds)
