"""Same or different: do two clips say the same word? Nothing is trained; for any language, from a manifest with labels.

Every two clips of a split are compared: the cost of aligning their frames by dynamic time warping with the cosine
distance (``heads/alignment.py``), or with ``task.compare=mean`` the cosine distance of their frames' means. Pairs are
ordered by it; the figure is the average precision of those with the same label (Carlin et al. 2011, Interspeech, "Rapid
evaluation of speech representations for spoken term discovery"). Chance is the share of such pairs, a figure as well.
The layer is the one with the highest average precision on dev.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from s3prl_distiller.audio import SAMPLE_RATE
from s3prl_distiller.data.utterance import Utterance
from s3prl_distiller.engine import distributed

from .core import task as base
from .core.task import Predict, Row, Splits
from .core.untrained import UntrainedTask
from .corpora.manifest import manifest_folder, read_manifest
from .metrics.ranking import precision_of_order

_SPLITS = ("train", "dev", "test")


@dataclass
class SameDifferentConfig(base.TaskConfig):
    """Section ``task`` of same or different."""

    label: str = "label"
    """key of a manifest's line that says which word it is; clips without it are left out"""
    compare: str = "frames"
    """"frames": the cost of aligning them; "mean": the distance of their means over time"""
    against: str = "split"
    """what the clips of a split are paired with: "split", its own; "all", those of all splits, where it is small"""
    layer: int | None = None
    """use this hidden state (-1: the last) and choose none on dev"""


class Task(UntrainedTask):
    """Same or different."""

    name = "same_different"
    config_class = SameDifferentConfig
    metric = "ap"
    higher_is_better = True
    metric_in_words = "average precision"
    resample_by = "clip"
    units = {"ap": "%", "chance": "%"}

    def __init__(self, config: SameDifferentConfig):
        super().__init__(config)
        for key, known in (("compare", ("frames", "mean")), ("against", ("split", "all"))):
            if getattr(config, key) not in known:
                raise ValueError(f"task.{key} is {getattr(config, key)!r}: use one of {', '.join(known)}")

    # Data

    def read(self, root: Path) -> Splits:
        names = [f"{split}.jsonl" for split in _SPLITS]
        folder = manifest_folder(root, "portuguese_mini", names)
        if folder is None or not (folder / "test.jsonl").is_file():
            raise ValueError(
                f"{root} has no test.jsonl: same or different needs a manifest of it with the key "
                f"{self.config.label!r}, and dev.jsonl to choose a layer on (or task.layer)"
            )
        found = {split: folder / f"{split}.jsonl" for split in _SPLITS if (folder / f"{split}.jsonl").is_file()}
        return {split: read_manifest(path) for split, path in found.items()}

    def prepare(self, splits: Splits, downsample_rate: int) -> None:
        for split, utterances in splits.items():
            kept = []
            for utterance in utterances:
                if self._word(utterance) is None:
                    self.leave_out(split, utterance, f"no {self.config.label}")
                elif round((utterance.duration or 0.0) * SAMPLE_RATE) < downsample_rate:
                    self.leave_out(split, utterance, "shorter than one frame of the features")
                else:
                    kept.append(utterance)
            self.splits[split] = kept
        for split in self.splits:
            words = Counter(self._word(utterance) for utterance in self._others(split))
            repeated = [utterance for utterance in self.splits[split] if words[self._word(utterance)] > 1]
            if split == "test" and not repeated:
                raise ValueError(
                    f"no two clips of test have the same {self.config.label!r}"
                    + ("" if self.config.against == "all" else ": task.against=all pairs them with other splits too")
                )
            self.notes.append(
                f"{split}: {len(self.splits[split])} clips, {len(repeated)} of them of a word that is there again"
            )

    def _word(self, utterance: Utterance) -> str | None:
        value = (utterance.custom or {}).get(self.config.label)
        return None if value is None else str(value)

    def _others(self, split: str) -> list[Utterance]:
        """What the clips of a split are paired with."""
        if self.config.against == "split":
            return self.splits[split]
        return list({utterance.id: utterance for some in self.splits.values() for utterance in some}.values())

    # Judging

    def predict(
        self, head: nn.Module, features: Tensor, lengths: Tensor, utterances: Sequence[Utterance]
    ) -> list[dict[str, Any]]:
        """Features of each utterance, (L, frames, D), of every layer or the one that was given."""
        if self.config.layer is not None:
            features = self.select_layer(features, self.config.layer)
        return [
            {"id": utterance.id, "word": self._word(utterance), "features": states[:, :count].float()}
            for utterance, states, count in zip(utterances, features, lengths.tolist(), strict=True)
        ]

    def evaluate(self, split: str, predict: Predict) -> list[Row]:
        """As the base; on dev every layer is tried and one chosen."""
        if not self.splits.get(split):
            return self.rows(list(predict(self.splits[split])), None)
        if split != "dev" and self.layer is None and self.splits.get("dev"):
            self.evaluate("dev", predict)
        others = {output["id"]: output for output in distributed.gather(list(predict(self._others(split))))}
        clips = [others[utterance.id] for utterance in self.splits[split] if utterance.id in others]
        found = list(others.values())
        every = len(clips[0]["features"])
        choosing = split == "dev" and self.config.layer is None
        layers = range(every) if choosing else [self._in_use(every)]
        rows = {layer: self._rows(clips, found, layer) for layer in layers}
        if choosing:
            self.layers = [round(self.score(rows[layer])["ap"], 4) for layer in layers]
            known = [-1.0 if math.isnan(figure) else figure for figure in self.layers]
            self.layer = int(np.argmax(known)) if max(known) >= 0 else every - 1
        return rows[self.layer if choosing and self.layer is not None else layers[0]]

    def _in_use(self, count: int) -> int:
        if count == 1:
            return 0  # the one that was given is alone
        return count - 1 if self.layer is None else self.layer

    def _rows(self, clips: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]], layer: int) -> list[Row]:
        distances = self.distances(
            [one["features"][layer] for one in clips], [one["features"][layer] for one in others]
        )
        return [
            {
                "id": f"{clip['id']} {other['id']}",
                "clip": clip["id"],
                "other": other["id"],
                "distance": round(float(distance), 6),
                "label": int(clip["word"] == other["word"]),
            }
            for clip, line in zip(clips, distances, strict=True)
            for other, distance in zip(others, line, strict=True)
            if clip["id"] != other["id"]
        ]

    def distances(self, clips: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
        """Of clips (T, D) to others (S, D), as (clips, others) on the CPU."""
        if self.config.compare == "mean":
            left, right = (F.normalize(torch.stack([one.mean(0) for one in some]), dim=-1) for some in (clips, others))
            return (1 - left @ right.T).cpu()
        from .heads.alignment import alignment_costs

        return alignment_costs(clips, others)

    def rows(self, outputs: Sequence[dict[str, Any]], split: str | None) -> list[Row]:
        """Of a user's own files: the first is compared with each of the others."""
        if len(outputs) < 2:
            raise ValueError("same or different needs two files or more: the first is compared with each of the others")
        layer = self._in_use(len(outputs[0]["features"]))
        return [{**row, "label": None} for row in self._rows(outputs[:1], outputs[1:], layer)]

    def score(self, rows: Sequence[Row]) -> dict[str, float]:
        """``ap``, and ``chance``: the share of pairs of the same word, which is what any order gives on average."""
        return self.scorer(rows)(np.arange(len(rows)))

    def scorer(self, rows: Sequence[Row]) -> base.Scorer:
        """As the base; the pairs, of which there may be hundreds of thousands, are put in order once."""
        labels = np.array([bool(row["label"]) for row in rows])
        order = np.argsort([row["distance"] for row in rows], kind="stable")
        place = np.argsort(order)

        def score(drawn: NDArray[np.int64]) -> dict[str, float]:
            found = np.repeat(labels[order], np.bincount(place[drawn], minlength=len(order)))
            if not found.any():
                return {"ap": math.nan, "chance": math.nan}
            return {"ap": 100 * precision_of_order(found), "chance": 100 * float(found.mean())}

        return score

    def figures(self, rows: Sequence[Row], folder: Path) -> Iterable[Path]:
        from .pictures.detection import draw_scores

        kinds = {"same word": 1, "different words": 0}
        scores = {name: [-row["distance"] for row in rows if row["label"] == label] for name, label in kinds.items()}
        pictures = [draw_scores(scores, {}, "likeness: distance with its sign changed", "pairs", folder / "scores.png")]
        return [*pictures, *self.layers_picture(folder)]

    def say(self, row: Row) -> str:
        return f"{row['clip']} and {row['other']}: {row['distance']:.3f} (0: the same frames)"
