"""Speaker identification: which of the speakers heard in training speaks."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from s3prl_distiller.data.utterance import Utterance

from .core.classification import MANIFESTS, Classification, ClassificationConfig
from .core.task import Splits
from .corpora.manifest import manifest_folder, read_manifests
from .corpora.voxceleb1 import read_voxceleb1

log = logging.getLogger(__name__)


@dataclass
class SpeakerConfig(ClassificationConfig):
    split_file: str | None = None
    """VoxCeleb1's iden_split.txt, where it is not in the folder of the corpus"""


class Task(Classification):
    """VoxCeleb1, or manifests with ``speaker``; where no line has that key, with ``label``."""

    name = "sid"
    config_class = SpeakerConfig
    published: ClassVar[dict[str, int]] = {"train": 138_361, "dev": 6_904, "test": 8_251}
    noun = "speaker"

    def read(self, root: Path) -> Splits:
        own = {split: f"sid_{name}" for split, name in MANIFESTS.items()}
        for files in (own, MANIFESTS):
            place = manifest_folder(root, "librispeech_mini" if files is own else ".", list(files.values()))
            if place is not None:
                return _by_speaker(read_manifests(place, files, []), place)
        split_file = None if self.config.split_file is None else Path(self.config.split_file).expanduser()
        return read_voxceleb1(root, split_file)

    def prepare(self, splits: Splits, downsample_rate: int) -> None:
        super().prepare(splits, downsample_rate)
        counts = Counter(self.labels(utterance)["label"] for utterance in self.splits["train"])
        single = sorted(speaker for speaker, count in counts.items() if count == 1)
        if single:
            log.warning(
                "%d of %d speakers have one utterance in train, such as %s", len(single), len(counts), single[0]
            )


def _by_speaker(splits: Splits, folder: Path) -> Splits:
    """With the speaker as the label: manifests for other tasks have both, and their label is something else."""
    everything = [utterance for utterances in splits.values() for utterance in utterances]
    key = "speaker" if any("speaker" in (utterance.custom or {}) for utterance in everything) else "label"
    for utterance in everything:
        if (utterance.custom or {}).get(key) is None:
            raise ValueError(
                f"{folder}: {utterance.id} has no {key!r}, which speaker identification needs of every line"
            )
    return {split: [_labelled(utterance, key) for utterance in utterances] for split, utterances in splits.items()}


def _labelled(utterance: Utterance, key: str) -> Utterance:
    custom = utterance.custom or {}
    return replace(utterance, custom=custom | {"label": custom[key]})
