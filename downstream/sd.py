"""SD, speaker diarization: who speaks when, on Libri2Mix.

Differences from s3prl, each of them kinder to the truth: a speaker who speaks through a whole chunk is labelled so; a
test recording longer than a chunk is heard as a whole (s3prl's speakers change places between its chunks); threshold
and median filter are chosen on dev. The error with what is best on test, which s3prl reports, is reported beside it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from s3prl_distiller.audio import SAMPLE_RATE
from s3prl_distiller.data.utterance import Utterance

from .core import task as base
from .core.task import Row, Splits
from .corpora import librimix, manifest
from .corpora.rttm import turns_of, write_rttm
from .heads.diarization import MOST_SPEAKERS, DiarizationHead, fit_frames, permutation_invariant_loss
from .metrics.der import DiarizationError, diarization_error
from .metrics.turns import Turn, from_frames, smooth, speakers, to_frames, within

log = logging.getLogger(__name__)

_FILES = {split: f"{split}.jsonl" for split in librimix.SPLITS}
_TOLERANCE = 5  # frames by which an upstream may miss its own rate, as in s3prl


@dataclass
class DiarizationConfig(base.TaskConfig):
    num_speakers: int = 0
    """outputs of the head; 0: as many as speak in the train recording with the most (Libri2Mix: 2)"""
    chunk_frames: int = 2000
    """longer recordings are cut to this many frames in training"""
    hidden_size: int = 512
    rnn_layers: int = 1
    thresholds: list[float] = field(default_factory=lambda: [0.3, 0.4, 0.5, 0.6, 0.7])
    """of a speaker's probability; the best on dev is used, with the best of ``medians``"""
    medians: list[int] = field(default_factory=lambda: [1, 11])
    """frames of the median filter over what is above the threshold, odd; 1: no filter"""

    def validate(self) -> None:
        """Raises ValueError, naming the key, for a value that cannot work."""
        if not 0 <= self.num_speakers <= MOST_SPEAKERS:
            raise ValueError(f"task.num_speakers is {self.num_speakers}: it must be 0 (as in train) to {MOST_SPEAKERS}")
        if self.chunk_frames < 1 or self.hidden_size < 1 or self.rnn_layers < 0:
            raise ValueError("task.chunk_frames and task.hidden_size must be at least 1, and task.rnn_layers 0")
        if not self.thresholds or not all(0 < threshold < 1 for threshold in self.thresholds):
            raise ValueError(f"task.thresholds is {self.thresholds}: give at least one between 0 and 1")
        if not self.medians or not all(median > 0 and median % 2 for median in self.medians):
            raise ValueError(f"task.medians is {self.medians}: give at least one odd number of frames")


class Setting(NamedTuple):
    """How probabilities become turns."""

    threshold: float
    median: int


class Task(base.Task):
    name = "sd"
    config_class = DiarizationConfig
    metric = "der"
    higher_is_better = False
    units = {"der": "%", "missed": "%", "false_alarm": "%", "confusion": "%", "der_test_chosen": "%"}
    published = {"train": 13_900, "dev": 3_000, "test": 3_000}

    def __init__(self, config: DiarizationConfig):
        super().__init__(config)
        config.validate()
        self.num_speakers = config.num_speakers
        self.downsample_rate = 0
        self._whole: list[Utterance] = []
        self.grid = [Setting(threshold, median) for median in config.medians for threshold in config.thresholds]
        # Until dev has been heard: the middle, filtered.
        self.setting = min(self.grid, key=lambda setting: (abs(setting.threshold - 0.5), -setting.median))

    # Data

    def read(self, root: Path) -> Splits:
        folder = manifest.manifest_folder(root, "diarization_mini", list(_FILES.values()))
        if folder is not None:
            splits = manifest.read_manifests(folder, _FILES, ["rttm"])
            for utterance in (utterance for utterances in splits.values() for utterance in utterances):
                path = base.custom(utterance, "rttm")
                if not isinstance(path, str):
                    raise ValueError(
                        f"{utterance.id} in {folder}: 'rttm' is {path!r}, where the path of a file is expected"
                    )
                utterance.custom = {**(utterance.custom or {}), "rttm": str(folder / path)}
        elif librimix.is_kaldi(root):
            splits = librimix.read_kaldi(root)
        else:
            raise ValueError(
                f"{root} has no manifests ({', '.join(_FILES.values())}, each line with an 'rttm') and no Kaldi data "
                f"folders. {librimix.HOW}"
            )
        for utterances in splits.values():
            turns_of(utterances, [])  # errors show before the audio is checked, which takes longer
        return splits

    def prepare(self, splits: Splits, downsample_rate: int) -> None:
        self.downsample_rate = downsample_rate
        remarks: list[str] = []
        self.splits = {
            split: self._with_turns(split, splits[split], turns_of(splits[split], remarks)) for split in splits
        }
        if remarks:
            self._note(remarks[0] + (f" (and {len(remarks) - 1} files more)" if len(remarks) > 1 else ""))
        if "train" in self.splits:
            if not self.num_speakers:
                self.num_speakers = self._most_speakers(self.splits["train"])
            self._whole = self.splits["train"]
            self.splits["train"] = [window for u in self._whole for window in self._windows(u)]
        for split in sorted(self.splits.keys() - {"train"}):
            many = [u for u in self.splits[split] if len(speakers(_turns(u))) > self.num_speakers]
            if many:
                self._note(
                    f"{len(many)} of the {len(self.splits[split])} recordings of {split}, {many[0].id} first, have "
                    f"more speakers than the {self.num_speakers} that the head can tell apart: the others are missed"
                )

    def recordings(self, split: str) -> list[Utterance]:
        return self._whole if split == "train" else super().recordings(split)

    def _note(self, text: str) -> None:
        log.warning("%s", text)
        self.notes.append(text)

    def _with_turns(self, split: str, utterances: list[Utterance], turns: dict[str, list[Turn]]) -> list[Utterance]:
        kept = []
        for utterance in utterances:
            if self._frames(utterance) < 1:
                self.leave_out(split, utterance, "shorter than one frame", f"{utterance.duration} s")
                continue
            kept.append(replace(utterance, custom={**(utterance.custom or {}), "turns": turns[utterance.id]}))
        if kept and not any(map(_turns, kept)):
            raise ValueError(f"no one speaks in any recording of {split}, says {base.custom(kept[0], 'rttm')} at least")
        return kept

    def _most_speakers(self, utterances: list[Utterance]) -> int:
        most = max(utterances, key=lambda u: len(speakers(_turns(u))), default=None)
        count = len(speakers(_turns(most))) if most else 0
        if most and count > MOST_SPEAKERS:
            raise ValueError(
                f"{most.id} in {base.custom(most, 'rttm')} has {count} speakers, more than the {MOST_SPEAKERS} that "
                "can be told apart: set task.num_speakers, and what has more in train is left out"
            )
        return count

    def _windows(self, utterance: Utterance) -> list[Utterance]:
        """What of a recording is heard at a time in training."""
        frames, step = self._frames(utterance), self.config.chunk_frames
        windows = []
        for index, low in enumerate(range(0, frames, step)):
            window = replace(
                utterance,
                id=utterance.id if frames <= step else f"{utterance.id}#{index + 1}",
                start=utterance.start + low / self._rate,
                duration=min(step, frames - low) / self._rate,
            )
            if len(speakers(_turns(window))) > self.num_speakers:
                self.leave_out("train", window, "more speakers than the head", f"task.num_speakers={self.num_speakers}")
            else:
                windows.append(window)
        return windows

    def target(self, utterance: Utterance) -> Tensor:
        """(frames, speakers) of 0 and 1."""
        turns = base.custom(utterance, "turns")
        first, frames = round(utterance.start * self._rate), self._frames(utterance)
        return torch.from_numpy(to_frames(turns, first, frames, self.num_speakers, self.downsample_rate))

    def balance_by(self, utterance: Utterance) -> str:
        return str(len(speakers(_turns(utterance))))

    @property
    def _rate(self) -> float:
        """Frames a second."""
        return SAMPLE_RATE / self.downsample_rate

    def _frames(self, utterance: Utterance) -> int:
        """Whole frames of an utterance."""
        return round((utterance.duration or 0.0) * SAMPLE_RATE) // self.downsample_rate

    # Learning

    def build_head(self, width: int, downsample_rate: int) -> nn.Module:
        self.downsample_rate = downsample_rate
        return DiarizationHead(width, self.num_speakers, self.config.hidden_size, self.config.rnn_layers)

    def loss(
        self, head: nn.Module, features: Tensor, lengths: Tensor, targets: Sequence[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over the frames of the batch, as in s3prl."""
        frames = torch.tensor([len(target) for target in targets])
        logits = head(self._fit(features, lengths, frames))
        labels = pad_sequence(list(targets), batch_first=True).to(logits.device)
        loss, ordered = permutation_invariant_loss(logits, labels, frames)
        frames = frames.to(logits.device)
        mask = torch.arange(labels.shape[1], device=logits.device) < frames[:, None]
        right = ((logits > 0) == (ordered > 0.5)).float().mean(2) * mask
        return loss, {"frame_accuracy": right.sum().detach() / frames.sum()}

    def _fit(self, features: Tensor, lengths: Tensor, frames: Tensor) -> Tensor:
        off = int((lengths - frames).abs().argmax())
        if abs(int(lengths[off] - frames[off])) > _TOLERANCE:
            raise ValueError(
                f"the upstream gives {lengths[off]} frames of a recording of {frames[off]} frames of "
                f"{self.downsample_rate} samples: diarization hears recordings whole, so data.crop_seconds and "
                "data.eval_crop_seconds must be null, and the upstream's downsample rate must be right"
            )
        return fit_frames(features, lengths, frames)

    # Judging

    def predict(
        self, head: nn.Module, features: Tensor, lengths: Tensor, utterances: Sequence[Utterance]
    ) -> list[dict[str, Any]]:
        """``probabilities`` (frames, speakers) of each utterance, and the turns of its ``reference``."""
        frames = torch.tensor([self._frames(utterance) for utterance in utterances])
        probabilities = head(self._fit(features, lengths, frames)).sigmoid().float().cpu().numpy()
        return [
            {
                "id": utterance.id,
                "reference": _turns(utterance) if "turns" in (utterance.custom or {}) else None,
                "probabilities": own[:count],
            }
            for utterance, own, count in zip(utterances, probabilities, frames.tolist(), strict=True)
        ]

    def tune(self, outputs: Sequence[dict[str, Any]]) -> None:
        """Take the threshold and median filter with the lowest DER."""
        if outputs:
            totals = np.sum([[error.total for error in self._errors(output)] for output in outputs], axis=0)
            best = min(range(len(self.grid)), key=lambda index: (totals[index], abs(self.grid[index].threshold - 0.5)))
            self.setting = self.grid[best]

    def rows(self, outputs: Sequence[dict[str, Any]], split: str | None) -> list[Row]:
        """A row for each recording: turns as [start, end, speaker], and where there is a reference the seconds of each
        part of the error; ``grid`` is the whole error with each threshold and median filter that was tried."""
        rows = []
        for output in outputs:
            prediction = self._decode(output["probabilities"], self.setting)
            row: Row = {"id": output["id"], "reference": None, "prediction": _plain(prediction)}
            if output["reference"] is not None:
                error = diarization_error(output["reference"], prediction)
                row["reference"] = _plain(output["reference"])
                parts = ("missed", "false_alarm", "confusion", "speech")
                row |= {part: round(getattr(error, part), 6) for part in parts}
                row["grid"] = [round(other.total, 6) for other in self._errors(output)]
            rows.append(row)
        return rows

    def _errors(self, output: dict[str, Any]) -> list[DiarizationError]:
        """With each setting of the grid, kept for who asks again."""
        if "errors" not in output:
            turns = [self._decode(output["probabilities"], setting) for setting in self.grid]
            output["errors"] = [diarization_error(output["reference"], hypothesis) for hypothesis in turns]
        return output["errors"]

    def _decode(self, probabilities: np.ndarray, setting: Setting) -> list[Turn]:
        return from_frames(smooth(probabilities > setting.threshold, setting.median), self.downsample_rate)

    def score(self, rows: Sequence[Row]) -> dict[str, float]:
        """Per cent of the time that the reference's speakers speak in all recordings together; not a number where
        they do not speak at all. ``der_test_chosen`` is with what is best on these very rows."""
        speech = sum(row["speech"] for row in rows)
        if not speech:
            return dict.fromkeys(self.units, float("nan"))
        parts = {part: 100 * sum(row[part] for row in rows) / speech for part in ("missed", "false_alarm", "confusion")}
        chosen = min(map(sum, zip(*(row["grid"] for row in rows), strict=True)))
        return {"der": sum(parts.values()), **parts, "der_test_chosen": 100 * chosen / speech}

    def figures(self, rows: Sequence[Row], folder: Path) -> Iterable[Path]:
        """``timeline.png`` of the recording whose DER is the middle one, and ``rttm/ID.rttm`` of each recording."""
        from .pictures.timeline import draw

        (folder / "rttm").mkdir(parents=True, exist_ok=True)
        for row in rows:
            write_rttm(
                folder / "rttm" / f"{quote(row['id'], safe=' ')}.rttm", {row["id"]: _read_plain(row["prediction"])}
            )
        judged = sorted((row for row in rows if row.get("speech")), key=lambda row: (_der(row), row["id"]))
        if not judged:
            return []
        row = judged[len(judged) // 2]
        path = folder / "timeline.png"
        draw(path, row["id"], _read_plain(row["reference"]), _read_plain(row["prediction"]))
        return [path]

    def say(self, row: Row) -> str:
        turns = [
            f"{turn.start:6.2f} - {turn.end:6.2f} s  speaker {turn.speaker}" for turn in _read_plain(row["prediction"])
        ]
        return "\n".join(turns) or "no one speaks"

    # Keeping

    def state(self) -> dict[str, Any]:
        return {"num_speakers": self.num_speakers, **self.setting._asdict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.num_speakers = int(state["num_speakers"])
        self.setting = Setting(float(state["threshold"]), int(state["median"]))


def _turns(utterance: Utterance) -> list[Turn]:
    """Of the utterance, in seconds from its beginning; in ``custom`` they are those of the whole recording."""
    return within(base.custom(utterance, "turns"), utterance.start, utterance.duration or 0.0)


def _plain(turns: Iterable[Turn]) -> list[list[Any]]:
    return [[round(turn.start, 6), round(turn.end, 6), turn.speaker] for turn in turns]


def _read_plain(turns: Iterable[Sequence[Any]]) -> list[Turn]:
    return [Turn(*turn) for turn in turns]


def _der(row: Row) -> float:
    return (row["missed"] + row["false_alarm"] + row["confusion"]) / row["speech"]
