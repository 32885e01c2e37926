"""What keyword spotting, intents, speakers and emotions share: an utterance has one label, or one for each slot."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s3prl_distiller.audio import SAMPLE_RATE
from s3prl_distiller.data.utterance import Utterance

from ..corpora.manifest import manifest_folder, read_manifests
from ..heads.pooled import PooledClassifier
from ..metrics.classification import accuracy
from ..pictures.confusion import draw_confusion
from .task import Row, Splits, Task, TaskConfig, custom

log = logging.getLogger(__name__)

MANIFESTS = {split: f"{split}.jsonl" for split in ("train", "dev", "test")}
UNSEEN = "label unseen in train"
TOO_SHORT = "shorter than one frame"


@dataclass
class ClassificationConfig(TaskConfig):
    projector_dim: int = 256
    """width of the head between its two layers"""


class Classification(Task):
    """A task whose answer is one of the labels that train has. Where there are several slots, each has its own
    labels, and an utterance is right where all of them are.

    Attributes:
        classes: labels by slot, in the order of the head's scores. Where there is one label, its slot is "label".
    """

    config_class = ClassificationConfig
    metric = "acc"
    higher_is_better = True
    units: ClassVar[dict[str, str]] = {"acc": "%"}
    pooled = True
    key: ClassVar[str] = "label"
    """Key of a manifest's line that holds the label."""
    noun: ClassVar[str] = "class"
    """What a label is, for pictures."""

    def __init__(self, config: Any):
        super().__init__(config)
        self.classes: dict[str, list[str]] = {}
        self._index: dict[str, dict[str, int]] = {}

    # Data

    def labels(self, utterance: Utterance) -> dict[str, str]:
        """The label of each slot.

        Raises:
            ValueError: there is none, or it is empty; the utterance and its file are named.
        """
        return {"label": as_label(custom(utterance, self.key), self.key, utterance)}

    def prepare(self, splits: Splits, downsample_rate: int) -> None:
        if self.config.unseen_labels not in ("error", "skip"):
            raise ValueError(f"task.unseen_labels is {self.config.unseen_labels!r}: it is 'error' or 'skip'")
        heard = {split: self._long_enough(split, splits[split], downsample_rate) for split in splits}
        knower = "the trained head"
        if not self.classes:  # of a trained run, load_state was called before
            knower = "train"
            self._learn(self._classes_of(heard["train"]))
        self.splits = {split: [u for u in heard[split] if self._known(split, u, knower)] for split in heard}

    def _classes_of(self, train: Sequence[Utterance]) -> dict[str, list[str]]:
        if not train:
            raise ValueError("no utterance of train can be used, so that there are no labels to learn")
        each = [self.labels(utterance) for utterance in train]
        for utterance, labels in zip(train, each, strict=True):
            if labels.keys() != each[0].keys():
                raise ValueError(
                    f"{utterance.id} ({utterance.place}) has slots {', '.join(labels)}, where the first utterance of "
                    f"train has {', '.join(each[0])}"
                )
        classes = {slot: sorted({labels[slot] for labels in each}) for slot in each[0]}
        if all(len(labels) == 1 for labels in classes.values()):
            only = ", ".join(repr(labels[0]) for labels in classes.values())
            raise ValueError(
                f"all utterances of train have the same {self.key} ({only}): there is nothing to tell apart"
            )
        return classes

    def _long_enough(self, split: str, utterances: Sequence[Utterance], downsample_rate: int) -> list[Utterance]:
        kept = []
        for utterance in utterances:
            if utterance.duration is not None and utterance.duration * SAMPLE_RATE < downsample_rate:
                self.leave_out(split, utterance, TOO_SHORT, f"({utterance.duration:.4f} s)")
            else:
                kept.append(utterance)
        return kept

    def _known(self, split: str, utterance: Utterance, knower: str) -> bool:
        for slot, label in self.labels(utterance).items():
            if label in self._index[slot]:
                continue
            if self.config.unseen_labels == "skip":
                self.leave_out(split, utterance, UNSEEN, f"({slot} {label!r})")
                return False
            raise ValueError(
                f"{split}: {utterance.id} ({utterance.place}) has the {slot} {label!r}, which {knower} does not "
                "have: correct it, or leave out and count such utterances with task.unseen_labels=skip"
            )
        return True

    def _learn(self, classes: dict[str, list[str]]) -> None:
        self.classes = classes
        self._index = {slot: {label: i for i, label in enumerate(labels)} for slot, labels in classes.items()}

    def target(self, utterance: Utterance) -> list[int]:
        """The index of the label of each slot."""
        return [self._index[slot][label] for slot, label in self.labels(utterance).items()]

    def balance_by(self, utterance: Utterance) -> str:
        return "\t".join(self.labels(utterance).values())

    # Learning

    def build_head(self, width: int, downsample_rate: int) -> nn.Module:
        return PooledClassifier(width, sum(map(len, self.classes.values())), self.config.projector_dim)

    def loss(
        self, head: nn.Module, features: Tensor, lengths: Tensor, targets: Sequence[Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy, summed over slots."""
        parts = self._by_slot(head(features, lengths))
        wanted = torch.tensor(targets).to(features.device).T
        losses = [F.cross_entropy(part, label) for part, label in zip(parts, wanted, strict=True)]
        right = torch.stack([part.argmax(-1) == label for part, label in zip(parts, wanted, strict=True)]).all(0)
        return torch.stack(losses).sum(), {"acc": 100 * right.float().mean()}

    def _by_slot(self, scores: Tensor) -> tuple[Tensor, ...]:
        return scores.split([len(labels) for labels in self.classes.values()], dim=-1)

    # Judging

    def predict(
        self, head: nn.Module, features: Tensor, lengths: Tensor, utterances: Sequence[Utterance]
    ) -> list[dict[str, Any]]:
        """The likeliest label with its probability, and the one after it; by slot where there are several."""
        return self.interpret(self.answer(head, features, lengths), utterances)

    def answer(self, head: nn.Module, features: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """ "logits" of all classes, slot after slot (B, C), and "probabilities" (B, C); where there are several slots,
        "probabilities_SLOT" of each."""
        logits = head(features, lengths)
        names = map(self._probabilities, self.classes)
        return {"logits": logits} | {
            name: scores.softmax(-1) for name, scores in zip(names, self._by_slot(logits), strict=True)
        }

    @staticmethod
    def _probabilities(slot: str) -> str:
        return "probabilities" if slot == "label" else f"probabilities_{slot}"

    def interpret(self, answer: Mapping[str, Tensor], utterances: Sequence[Utterance]) -> list[dict[str, Any]]:
        best = {}
        for slot, labels in self.classes.items():
            probabilities, order = answer[self._probabilities(slot)].topk(min(2, len(labels)))
            best[slot] = [
                [(labels[i], round(p, 6)) for i, p in zip(indices, values, strict=True)]
                for indices, values in zip(order.tolist(), probabilities.tolist(), strict=True)
            ]
        return [
            self._row(utterance, {slot: top[index] for slot, top in best.items()})
            for index, utterance in enumerate(utterances)
        ]

    def _row(self, utterance: Utterance, best: dict[str, list[tuple[str, float]]]) -> Row:
        labelled = (utterance.custom or {}).get(self.key) is not None
        second = {slot: top[1] if len(top) > 1 else (None, 0.0) for slot, top in best.items()}
        return {
            "id": utterance.id,
            "reference": _shown(self.labels(utterance)) if labelled else None,
            "prediction": _shown({slot: top[0][0] for slot, top in best.items()}),
            "score": _shown({slot: top[0][1] for slot, top in best.items()}),
            "runner_up": _shown({slot: label for slot, (label, _) in second.items()}),
            "runner_up_score": _shown({slot: score for slot, (_, score) in second.items()}),
        }

    def score(self, rows: Sequence[Row]) -> dict[str, float]:
        rows = labelled(rows)
        return {"acc": accuracy(pairs(rows), (row.get("weight", 1.0) for row in rows))}

    def figures(self, rows: Sequence[Row], folder: Path) -> Iterable[Path]:
        """A confusion matrix for each slot."""
        rows = labelled(rows)
        if not rows:
            return []
        if not isinstance(rows[0]["reference"], dict):
            known = self.classes.get("label", [])
            title = f"{self.name.upper()}: {len(rows)} utterances, {accuracy(pairs(rows)):.1f} % right"
            return [draw_confusion(pairs(rows), known, folder / "confusion.png", title, self.noun)]
        paths = []
        for slot in rows[0]["reference"]:
            of_slot = pairs(rows, slot)
            title = f"{self.name.upper()}, {slot}: {len(rows)} utterances, {accuracy(of_slot):.1f} % right"
            path = folder / f"confusion_{re.sub(r'[^A-Za-z0-9-]+', '_', slot)}.png"
            paths.append(draw_confusion(of_slot, self.classes.get(slot, []), path, title, slot))
        return paths

    def say(self, row: Row) -> str:
        if not isinstance(row["prediction"], dict):
            return _in_words(row["prediction"], row["score"], row["runner_up"], row["runner_up_score"])
        return ", ".join(
            f"{slot}: {_in_words(*(row[key][slot] for key in ('prediction', 'score', 'runner_up', 'runner_up_score')))}"
            for slot in row["prediction"]
        )

    def legend(self) -> dict[str, str]:
        """``labels``: those of each slot, in the order of their probabilities."""
        return {"labels": json.dumps(self.classes, ensure_ascii=False)}

    # Keeping

    def state(self) -> dict[str, Any]:
        # Pairs, for the order of slots is that of the head's scores.
        return {"classes": [[slot, labels] for slot, labels in self.classes.items()]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._learn({slot: list(labels) for slot, labels in state["classes"]})


def as_label(value: Any, key: str, utterance: Utterance) -> str:
    """A label as text, without spaces around it.

    Raises:
        ValueError: it is empty, or neither text nor an integer; utterance, file and key are named.
    """
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    where = f"{utterance.id} ({utterance.place})"
    if isinstance(value, str):
        raise ValueError(f"{where} has an empty {key!r}: give it a label, or remove its line")
    raise ValueError(f"{where} has the {key!r} {value!r}, where a text is expected")


def read_labelled(root: Path, folder: str, key: str) -> Splits | None:
    """Manifests train, dev and test of ``root`` or its ``folder``, each line with that key; None: there are none."""
    place = manifest_folder(root, folder, list(MANIFESTS.values()))
    return read_manifests(place, MANIFESTS, [key]) if place else None


def labelled(rows: Sequence[Row]) -> list[Row]:
    """Those of which the right answer is known."""
    return [row for row in rows if row["reference"] is not None]


def pairs(rows: Iterable[Row], slot: str | None = None) -> list[tuple[Any, Any]]:
    """Reference and prediction of each row; of one slot where it is named."""
    if slot is None:
        return [(row["reference"], row["prediction"]) for row in rows]
    return [(row["reference"][slot], row["prediction"][slot]) for row in rows]


def _shown(values: dict[str, Any]) -> Any:
    return values["label"] if list(values) == ["label"] else values


def _in_words(label: str, score: float, second: str | None, second_score: float) -> str:
    words = f"{label} ({100 * score:.1f} %"
    return f"{words}; next {second}, {100 * second_score:.1f} %)" if second is not None else f"{words})"
