"""Emotion recognition: one of four emotions, in five folds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from .core.classification import MANIFESTS, Classification, ClassificationConfig
from .core.task import Splits
from .corpora.iemocap import SESSIONS, iemocap_folder, leave_one_out, read_iemocap
from .corpora.manifest import manifest_folder, read_manifests

FOLDER = "emotions_mini"
COUNTS = {1: 1_085, 2: 1_023, 3: 1_151, 4: 1_031, 5: 1_241}
"""Utterances of the four emotions in each session of IEMOCAP."""


@dataclass
class EmotionConfig(ClassificationConfig):
    fold: int = 0
    """which fold is the test set (s3prl's test_fold); 0: each in turn"""
    valid_ratio: float = 0.2
    """share of IEMOCAP's training sessions that is dev"""


class Task(Classification):
    """IEMOCAP, leaving out one session a fold; or manifests with ``label``, in folds or not."""

    name = "er"
    config_class = EmotionConfig
    noun = "emotion"

    @property
    def published(self) -> dict[str, int]:  # pyright: ignore[reportIncompatibleVariableOverride]  it depends on the fold
        """Of the fold."""
        if self.config.fold not in COUNTS:
            return {}
        others = sum(COUNTS.values()) - COUNTS[self.config.fold]
        train = int(0.8 * others)
        return {"train": train, "dev": others - train, "test": COUNTS[self.config.fold]}

    def folds(self, root: Path) -> list[int]:
        """The folds of the corpus at ``root``; none where it is not in folds."""
        place = _fold_folder(root)
        if place is not None:
            found = (re.fullmatch(r"fold(\d+)_train\.jsonl", path.name) for path in place.iterdir())
            return sorted(int(match[1]) for match in found if match)
        if _plain_folder(root) is not None:
            return []
        return list(SESSIONS) if iemocap_folder(root) else []

    def read(self, root: Path) -> Splits:
        fold, folds, plain = self.config.fold, self.folds(root), _plain_folder(root)
        if folds and fold not in folds:
            raise ValueError(f"task.fold is {fold}, but {root} has the folds {', '.join(map(str, folds))}: name one")
        if not folds and plain and fold:
            raise ValueError(f"task.fold is {fold}, but the manifests in {plain} are not in folds: leave it at 0")
        place = _fold_folder(root)
        if place is not None:
            return read_manifests(place, {split: f"fold{fold}_{name}" for split, name in MANIFESTS.items()}, [self.key])
        if plain is not None:
            return read_manifests(plain, MANIFESTS, [self.key])
        if not 0 < self.config.valid_ratio < 1:
            raise ValueError(f"task.valid_ratio is {self.config.valid_ratio}: it must be between 0 and 1")
        return leave_one_out(read_iemocap(root), fold, self.config.valid_ratio)


def _plain_folder(root: Path) -> Path | None:
    return manifest_folder(root, FOLDER, list(MANIFESTS.values()))


def _fold_folder(root: Path) -> Path | None:
    for place in (root, root / FOLDER):
        if place.is_dir() and any(place.glob("fold[0-9]*_train.jsonl")):
            return place
    return None
