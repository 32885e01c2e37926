"""What a downstream task is: its data, targets, head, loss, predictions and figures; never the loop or the upstream."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from s3prl_distiller.data.utterance import Utterance

from ..corpora.manifest import near_miss

log = logging.getLogger(__name__)

Row = dict[str, Any]
"""One prediction, of JSON's types: what a line of ``predictions-SPLIT.jsonl`` holds."""

Scorer = Callable[[NDArray[np.int64]], dict[str, float]]
"""Figures of a draw from certain predictions, given by their places, (N,)."""

Splits = dict[str, list[Utterance]]
"""Utterances by split. The other keys of a manifest's line are in ``Utterance.custom``."""


@dataclass
class TaskConfig:
    """Section ``task``; each task adds keys of its own."""

    unseen_labels: str = "error"
    """a label in dev or test that train does not have: "error" or "skip" (left out, and counted)"""


class Predict(Protocol):
    """Runs upstream and head over utterances, without gradient; what cannot be decoded is left out and counted."""

    def __call__(self, utterances: Sequence[Utterance]) -> Iterator[dict[str, Any]]: ...


class Task(ABC):
    """One task.

    A run calls ``read``, ``prepare``, ``build_head``, then ``target`` and ``loss`` for training batches and
    ``evaluate`` (``predict``, ``rows``) and ``score`` for each evaluation. A trained run that is loaded again calls
    ``load_state`` in place of ``prepare``.

    Attributes:
        config: the section ``task`` of the run's config, an instance of ``config_class``.
        splits: the utterances in use, filled by ``prepare``.
        left_out: by split, how many utterances were left out, by reason.
        notes: what whoever reads the figures must know, such as where pronunciations came from.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[TaskConfig]] = TaskConfig
    metric: ClassVar[str]
    """The figure of ``score`` that picks the best checkpoint on the split ``dev``."""
    higher_is_better: ClassVar[bool]
    units: ClassVar[dict[str, str]] = {}
    """Unit of each figure of ``score``, such as "%"."""
    trained: ClassVar[bool] = True
    """Whether there is anything to train; query by example has nothing."""
    all_layers: ClassVar[bool] = False
    """Whether ``predict`` is given every hidden state, (B, L, T, D), instead of one feature, (B, T, D)."""
    crops: ClassVar[bool] = True
    """Whether a part of an utterance has the utterance's target (data.crop_seconds)."""
    judged: ClassVar[tuple[str, ...]] = ("train", "dev", "test")
    """Splits that can be judged; any other that ``splits`` has can, too."""
    published: ClassVar[dict[str, int]] = {}
    """Utterances of each split of the official corpus as SUPERB has them; what ``--dry-run`` compares with."""
    pooled: ClassVar[bool] = False
    """Whether all that the head hears of an utterance is the mean of its features over time."""
    shortest_frames: ClassVar[int] = 1
    """What an utterance needs for an answer."""
    files_needed: ClassVar[int] = 1
    """Files of a user that an answer is about; two where one is compared with another."""
    resample_by: ClassVar[str | None] = None
    """Key of a row by which the bootstrap draws rows together; None: each row by itself."""

    def __init__(self, config: Any):
        self.config: Any = config
        self.splits: Splits = {}
        self.left_out: dict[str, Counter[str]] = {}
        self.notes: list[str] = []

    # Data

    def folds(self, root: Path) -> list[int]:
        """Folds of the corpus at ``root``, where a task is trained and judged on each in turn (``task.fold``)."""
        return []

    @abstractmethod
    def read(self, root: Path) -> Splits:
        """Utterances by split of the corpus at ``root``: its official layout, or manifests.

        Raises:
            ValueError: it is not there or not whole; the message says what to get, from where, and the expected tree.
        """

    @abstractmethod
    def prepare(self, splits: Splits, downsample_rate: int) -> None:
        """Take the utterances whose audio can be read; learn labels from train; check the labels of all.

        Args:
            splits: what ``read`` gave, bad audio left out and durations filled in.
            downsample_rate: samples at 16 kHz for each frame of the features.

        Raises:
            ValueError: labels are missing or do not fit together; utterance and file are named.
        """

    def recordings(self, split: str) -> list[Utterance]:
        """The utterances of a split as the corpus has them: rows are of the same data where these are equal."""
        return self.splits[split]

    def leave_out(self, split: str, utterance: Utterance, reason: str, detail: str = "") -> None:
        """Count an utterance that cannot be used; the first of each reason is logged. The caller drops it."""
        counts = self.left_out.setdefault(split, Counter())
        counts[reason] += 1
        if counts[reason] == 1:
            log.warning(
                "Left out of %s: %s: %s %s (more of these are counted only)", split, utterance.id, reason, detail
            )

    @abstractmethod
    def target(self, utterance: Utterance) -> Any:
        """What the loss needs of a training utterance. Called in decoding processes, for each time it is drawn."""

    def balance_by(self, utterance: Utterance) -> str:
        """The class that balanced sampling draws equally often."""
        return str((utterance.custom or {})["label"])

    # Learning

    @abstractmethod
    def build_head(self, width: int, downsample_rate: int) -> nn.Module:
        """The model on top of features of that width. ``prepare`` or ``load_state`` has been called."""

    def augment(self, features: Tensor, lengths: Tensor) -> Tensor:
        """What is done to features in training only, before ``loss``; of the same shape.

        Args:
            features: (..., B, T, D) with zeros after each utterance's end; whatever is drawn is the same for all
                leading dimensions.
            lengths: (B,) frames of each, on the CPU.
        """
        return features

    @abstractmethod
    def loss(
        self, head: nn.Module, features: Tensor, lengths: Tensor, targets: Sequence[Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss over the utterances of a batch, and figures to log (scalars on the same device).

        Args:
            features: (B, T, D) with zeros after each utterance's end.
            lengths: (B,) frames of each, on the CPU.
            targets: of each utterance, from ``target``.
        """

    # Judging

    @abstractmethod
    def predict(
        self, head: nn.Module, features: Tensor, lengths: Tensor, utterances: Sequence[Utterance]
    ) -> list[dict[str, Any]]:
        """What the head says of each utterance; may hold arrays. The reference, where the utterance has one, too.

        Args:
            features: as in ``loss``; with ``all_layers`` (B, L, T, D).
            lengths: (B,) frames of each, on the CPU.
        """

    def evaluate(self, split: str, predict: Predict) -> list[Row]:
        """Predictions on a split. On ``dev`` whatever is chosen there is chosen first (see ``tune``)."""
        outputs = list(predict(self.splits[split]))
        if split == "dev":
            self.tune(outputs)
        return self.rows(outputs, split)

    def tune(self, outputs: Sequence[dict[str, Any]]) -> None:
        """Choose on dev's outputs what is chosen there (a threshold, a layer), and keep it for ``state``."""
        return None

    def rows(self, outputs: Sequence[dict[str, Any]], split: str | None) -> list[Row]:
        """Outputs of ``predict`` as predictions; ``split`` is None for a user's own files."""
        return list(outputs)

    @abstractmethod
    def score(self, rows: Sequence[Row]) -> dict[str, float]:
        """Figures over predictions, in the units of SUPERB's table (per cent; MTWV times 100). Only ``rows`` is used,
        so that they can be drawn again for a confidence interval."""

    def scorer(self, rows: Sequence[Row]) -> Scorer:
        """``score`` of draws from ``rows``, each given as places in them. A confidence interval takes a thousand: tasks
        whose rows are many read them into arrays here, once."""
        return lambda drawn: self.score([rows[place] for place in drawn])

    def figures(self, rows: Sequence[Row], folder: Path) -> Iterable[Path]:
        """Draw what people look at; the paths of the pictures."""
        return []

    def say(self, row: Row) -> str:
        """One prediction in words, for ``-m inference``."""
        return str(row.get("prediction", row))

    # Handing on as one model of upstream and head

    def answer(self, head: nn.Module, features: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """What an exported model gives, by name; ``torch.export`` traces it. What has a dimension for frames comes with
        "frames", (B,), how many of them each utterance has.

        Args:
            features: (B, T, D); what stands after an utterance's end has no influence on what it is given.
            lengths: (B,) frames of each.

        Raises:
            ValueError: a model of this task cannot be exported.
        """
        raise ValueError(f"a head of {self.name} cannot be exported: it has no answer of its own for each utterance")

    def interpret(self, answer: Mapping[str, Tensor], utterances: Sequence[Utterance]) -> list[dict[str, Any]]:
        """What ``predict`` makes of an answer."""
        raise NotImplementedError

    def legend(self) -> dict[str, str]:
        """How to read an answer, as text by key; lists as JSON."""
        return {}

    def decision(self, row: Row) -> Any:
        """What a row says, without how sure it is; None: nothing that could be right or wrong."""
        return row.get("prediction")

    # Keeping

    def state(self) -> dict[str, Any]:
        """What was learnt from the data beside the weights (labels, thresholds), of JSON's types."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state`` gave."""
        return None


def custom(utterance: Utterance, key: str) -> Any:
    """A key of the manifest's line of an utterance.

    Raises:
        ValueError: it is missing; near misses are named.
    """
    values = utterance.custom or {}
    if key in values:
        return values[key]
    raise ValueError(f"{utterance.id} ({utterance.place}) has no key {key!r} in its manifest{near_miss(key, values)}")
