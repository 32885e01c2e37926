"""Automatic speaker verification as in SUPERB: do two utterances come from one speaker?

An x-vector network learns to tell the speakers of VoxCeleb1's development part apart (AM-softmax); a trial's score is
the cosine of two embeddings, without score normalisation. The speakers of the test are others.

Two things differ from s3prl, both on purpose: some training speakers are held out to pick the checkpoint, which s3prl
picks on the test trials (``task.dev_speakers=0`` trains on all), and silence is not cut out of the audio, which s3prl
does with SoX's effect ``silence 1 0.1 0.1% -1 0.1 0.1%`` (stretches below -60 dB of full scale for more than 0.1 s;
VoxCeleb1 has little of that). ``task.min_seconds`` is therefore compared with whole utterances.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from s3prl_distiller.audio import SAMPLE_RATE
from s3prl_distiller.data.utterance import Utterance

from .core import task as base
from .core.task import Row, Splits
from .corpora import voxceleb1_trials as corpus
from .corpora.absent import absent
from .corpora.manifest import manifest_folder, read_manifest
from .heads.amsoftmax import AMSoftmax
from .heads.xvector import MIN_FRAMES, XVector
from .metrics import verification

log = logging.getLogger(__name__)

_MANIFESTS = "train.jsonl with the key 'speaker', asv_trials.txt and, if there is one, dev.jsonl"


@dataclass
class AsvConfig(base.TaskConfig):
    """Section ``task`` of speaker verification."""

    trials: str | None = None
    """list of test trials, "1 enrol test" a line, paths as in the corpus; null: the one in the corpus's folder"""
    dev_speakers: int = 40
    """training speakers held out to pick the checkpoint, where the corpus has no dev; 0: none, as SUPERB trains"""
    dev_trials: int = 4000
    """trials made of them, at most; half of one speaker"""
    min_seconds: float = 2.0
    """training utterances must be longer"""
    scale: float = 30.0
    """of the cosines in AM-softmax"""
    margin: float = 0.4
    """of AM-softmax"""


class _Head(nn.Module):
    def __init__(self, width: int, speakers: int, scale: float, margin: float):
        super().__init__()
        self.xvector = XVector(width)
        self.classes = AMSoftmax(512, speakers, scale, margin)


class Task(base.Task):
    """Speaker verification.

    Trials share speakers, so that drawing them one by one would make a confidence interval too narrow: the bootstrap
    draws enrolment speakers, with all trials of each. A trial whose speaker is not known is drawn by itself.

    Attributes:
        trials: by split, in the order of the list.
    """

    name = "asv"
    config_class = AsvConfig
    metric = "eer"
    higher_is_better = False
    units = {"eer": "%"}
    files_needed = 2
    resample_by = "speaker"
    shortest_frames = MIN_FRAMES
    judged = ("dev", "test")  # training utterances make no trials
    published = {"test": 4715}

    def __init__(self, config: AsvConfig):
        super().__init__(config)
        if config.dev_speakers < 0 or config.dev_trials < 2:
            raise ValueError("task.dev_speakers must be 0 or more, and task.dev_trials 2 or more")
        self.speakers: list[str] = []
        self.trials: dict[str, list[corpus.Trial]] = {}
        self.notes.append("silence is not trimmed (s3prl trims it with SoX)")
        self.threshold: float | None = None
        self.dev_eer: float | None = None
        self._classes: dict[str, int] = {}

    # Data

    def read(self, root: Path) -> Splits:
        folder = manifest_folder(root, "librispeech_mini", ["asv_trials.txt", "train.jsonl"])
        if folder:
            return self._read_manifests(folder)
        folders = corpus.find_voxceleb1(root)
        if not folders:
            raise absent(root, "VoxCeleb1", corpus.SOURCE, corpus.TREE, _MANIFESTS)
        path = self._list(root, corpus.LISTS)
        trials = corpus.read_trials(path)
        files = corpus.trial_files(trials, folders, path)
        test = [
            Utterance(name, name, str(file), custom={"speaker": name.split("/")[0]}) for name, file in files.items()
        ]
        tested = frozenset(corpus.speaker_of(utterance) for utterance in test)
        train = corpus.read_speakers(folders, tested)
        self.trials["test"] = trials
        return self._split(train, None, test, folders[0])

    def _read_manifests(self, folder: Path) -> Splits:
        path = self._list(folder, ("asv_trials.txt",))
        trials = corpus.read_trials(path)
        files = corpus.trial_files(trials, [folder], path)
        if not (folder / "train.jsonl").is_file():
            raise ValueError(f"{folder} has no train.jsonl: speaker verification needs {_MANIFESTS}")
        train = read_manifest(folder / "train.jsonl", ["speaker"])
        dev = read_manifest(folder / "dev.jsonl", ["speaker"]) if (folder / "dev.jsonl").is_file() else None
        known = read_manifest(folder / "test.jsonl") if (folder / "test.jsonl").is_file() else []
        custom = {Path(utterance.place): utterance.custom for utterance in known}
        test = [Utterance(name, name, str(file), custom=custom.get(file)) for name, file in files.items()]
        self.trials["test"] = trials
        return self._split(train, dev, test, folder)

    def _split(self, train: list[Utterance], dev: list[Utterance] | None, test: list[Utterance], where: Path) -> Splits:
        if dev is None and self.config.dev_speakers:
            count = len({corpus.speaker_of(utterance) for utterance in train})
            if count < self.config.dev_speakers + 2:
                raise ValueError(
                    f"{where} has {count} training speakers, too few to hold out task.dev_speakers = "
                    f"{self.config.dev_speakers} and train on two or more"
                )
            train, dev = corpus.hold_out(train, self.config.dev_speakers)
            self.notes.append(f"dev: {self.config.dev_speakers} training speakers, held out")
        if dev is None:
            self.notes.append("no dev (task.dev_speakers=0): the last checkpoint is the one that counts")
        return {"train": train, **({"dev": dev} if dev is not None else {}), "test": test}

    def _list(self, folder: Path, names: Sequence[str]) -> Path:
        if self.config.trials:
            given = Path(self.config.trials).expanduser()
            return given if given.is_file() else folder / given
        found = next((folder / name for name in names if (folder / name).is_file()), None)
        if found is None:
            raise ValueError(
                f"{folder} has no list of trials ({' or '.join(names)}): put it there, or name it by task.trials"
            )
        return found

    def prepare(self, splits: Splits, downsample_rate: int) -> None:
        shortest = (MIN_FRAMES + 1) * downsample_rate / SAMPLE_RATE  # an upstream may give a frame less
        for split, utterances in splits.items():
            self.splits[split] = []
            for utterance in utterances:
                seconds = utterance.duration or 0.0
                if split == "train" and not seconds > self.config.min_seconds:
                    reason = f"not longer than task.min_seconds = {self.config.min_seconds}"
                elif seconds < shortest:
                    reason = f"shorter than the {shortest:.2f} s that an x-vector needs of this upstream"
                else:
                    self.splits[split].append(utterance)
                    continue
                self.leave_out(split, utterance, reason, f"({seconds:.2f} s)")
        self.speakers = sorted({corpus.speaker_of(utterance) for utterance in self.splits["train"]})
        if len(self.speakers) < 2:
            raise ValueError(f"training needs two speakers or more, and there are {len(self.speakers)}")
        self._classes = {name: index for index, name in enumerate(self.speakers)}
        if "dev" in self.splits:
            self._make_dev(shortest)
        for split in ("dev", "test"):
            self._keep_whole_trials(split)

    def _make_dev(self, shortest: float) -> None:
        utterances = self.splits["dev"]
        if max(Counter(map(corpus.speaker_of, utterances)).values(), default=0) < 2:
            utterances = [half for utterance in utterances for half in _halves(utterance, shortest)]
            self.notes.append("dev has one utterance a speaker: its trials are made of the halves of each utterance")
        speakers = {utterance.id: corpus.speaker_of(utterance) for utterance in utterances}
        self.trials["dev"] = corpus.make_trials(speakers, self.config.dev_trials)
        used = {name for trial in self.trials["dev"] for name in (trial.enrol, trial.test)}
        self.splits["dev"] = [utterance for utterance in utterances if utterance.id in used]

    def _keep_whole_trials(self, split: str) -> None:
        """Leave out the trials of utterances that were left out, counted."""
        if split not in self.splits:
            return
        names = {utterance.id for utterance in self.splits[split]}
        whole = [trial for trial in self.trials[split] if trial.enrol in names and trial.test in names]
        if lost := len(self.trials[split]) - len(whole):
            self.left_out.setdefault(split, Counter())["trials of utterances left out"] += lost
        if {trial.label for trial in whole} != {0, 1}:
            raise ValueError(
                f"{split} has no trials of both kinds (one speaker, two speakers): {len(whole)} trials of "
                f"{len(names)} utterances are left"
            )
        self.trials[split] = whole

    def target(self, utterance: Utterance) -> int:
        return self._classes[corpus.speaker_of(utterance)]

    def balance_by(self, utterance: Utterance) -> str:
        return corpus.speaker_of(utterance)

    # Learning

    def build_head(self, width: int, downsample_rate: int) -> nn.Module:
        return _Head(width, len(self.speakers), self.config.scale, self.config.margin)

    def loss(
        self, head: nn.Module, features: Tensor, lengths: Tensor, targets: Sequence[Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert isinstance(head, _Head)
        labels = torch.tensor(list(targets), device=features.device)
        vectors = head.xvector(features, lengths)
        with torch.autocast(features.device.type, enabled=False):  # cosines times 30 ask for more than bfloat16
            loss, cosines = head.classes(vectors.float(), labels)
        return loss, {"acc": 100 * (cosines.argmax(1) == labels).float().mean()}

    # Judging

    def predict(
        self, head: nn.Module, features: Tensor, lengths: Tensor, utterances: Sequence[Utterance]
    ) -> list[dict[str, Any]]:
        for utterance, count in zip(utterances, lengths.tolist(), strict=True):
            if count < MIN_FRAMES:
                raise ValueError(
                    f"{utterance.id} ({utterance.place}) is too short: an x-vector needs {MIN_FRAMES} frames of "
                    f"features, and it gives {count}"
                )
        return self.interpret(self.answer(head, features, lengths), utterances)

    def answer(self, head: nn.Module, features: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """ "embedding" (B, 512): the cosine of two tells whether one speaker speaks."""
        assert isinstance(head, _Head)
        with torch.autocast(features.device.type, enabled=False):
            return {"embedding": head.xvector.embed(features.float(), lengths)}

    def interpret(self, answer: Mapping[str, Tensor], utterances: Sequence[Utterance]) -> list[dict[str, Any]]:
        vectors = answer["embedding"].cpu().numpy()
        return [
            {"id": utterance.id, "embedding": vector, "speaker": (utterance.custom or {}).get("speaker")}
            for utterance, vector in zip(utterances, vectors, strict=True)
        ]

    def evaluate(self, split: str, predict: base.Predict) -> list[Row]:
        if split == "dev" and "dev" not in self.splits:
            return []  # task.dev_speakers=0
        return super().evaluate(split, predict)

    def tune(self, outputs: Sequence[dict[str, Any]]) -> None:
        """Keep the threshold of the equal error rate on dev: what inference decides by."""
        rate, self.threshold = verification.equal_error(_errors(self.rows(outputs, "dev")))
        self.dev_eer = 100 * rate

    def rows(self, outputs: Sequence[dict[str, Any]], split: str | None) -> list[Row]:
        """A row for each trial of the split; of a user's own files, one for each pair, or for the only one."""
        places = {output["id"]: place for place, output in enumerate(outputs)}
        if split is not None:
            trials: list[tuple[int | None, str, str]] = [(t.label, t.enrol, t.test) for t in self.trials[split]]
        else:
            trials = [(None, *pair) for pair in combinations(places, 2)]
        heard = [trial for trial in trials if trial[1] in places and trial[2] in places]
        if len(heard) < len(trials):
            log.warning("%d of %d trials of %s cannot be heard", len(trials) - len(heard), len(trials), split)
        if not outputs:
            return []
        vectors = np.stack([output["embedding"] for output in outputs]).astype(np.float64)
        norms = np.linalg.norm(vectors, axis=1)
        if not trials:
            return [{"id": outputs[0]["id"], "dimensions": vectors.shape[1], "norm": round(float(norms[0]), 6)}]
        vectors /= np.maximum(norms, 1e-12)[:, None]
        enrol, test = ([places[trial[side]] for trial in heard] for side in (1, 2))
        scores = np.einsum("nd,nd->n", vectors[enrol], vectors[test])
        return [
            {
                "id": f"{name} {other}",
                "enrol": name,
                "test": other,
                "label": label,
                "score": round(float(score), 9),  # the cosines of a head that has learnt little differ late
                "speaker": outputs[places[name]]["speaker"] or f"{name} {other}",
            }
            for (label, name, other), score in zip(heard, scores, strict=True)
        ]

    def score(self, rows: Sequence[Row]) -> dict[str, float]:
        """``eer`` in per cent; ``min_dcf`` at a target prior of 0.01 and ``min_dcf_p05`` at 0.05, costs 1 and 1."""
        if not rows:
            return dict.fromkeys(("eer", "min_dcf", "min_dcf_p05"), float("nan"))
        curve = _errors(rows)
        return {
            "eer": 100 * verification.equal_error(curve)[0],
            "min_dcf": verification.min_dcf(curve, 0.01),
            "min_dcf_p05": verification.min_dcf(curve, 0.05),
        }

    def figures(self, rows: Sequence[Row], folder: Path) -> Iterable[Path]:
        from .pictures.detection import draw_det, draw_scores

        curve = _errors(rows)
        kinds = {"one speaker": 1, "two speakers": 0}
        scores = {name: [row["score"] for row in rows if row["label"] == label] for name, label in kinds.items()}
        lines = {"threshold of dev": self.threshold} if self.threshold is not None else {}
        return [
            draw_det(curve, folder / "det.png"),
            draw_scores(scores, lines, "cosine of the two embeddings", "trials", folder / "scores.png"),
        ]

    def say(self, row: Row) -> str:
        if "score" not in row:
            return (
                f"{row['id']}: an embedding of {row['dimensions']} dimensions and norm {row['norm']:.2f}; name two "
                "files or more to compare them"
            )
        said = f"{row['enrol']} and {row['test']}: cosine {row['score']:.4f}"
        if self.threshold is None or self.dev_eer is None:
            return f"{said} (no decision: this run has no dev to choose a threshold on)"
        verdict = "one speaker" if self.decision(row) else "two speakers"
        return f"{said}: {verdict} (threshold {self.threshold:.4f}, where {self.dev_eer:.1f} % of dev is wrong)"

    def decision(self, row: Row) -> bool | None:
        return None if "score" not in row or self.threshold is None else row["score"] >= self.threshold

    def legend(self) -> dict[str, str]:
        """``threshold``: two embeddings with a cosine of so much or more are of one speaker; absent without a dev."""
        return {} if self.threshold is None else {"threshold": str(self.threshold)}

    # Keeping

    def state(self) -> dict[str, Any]:
        return {"speakers": self.speakers, "threshold": self.threshold, "dev_eer": self.dev_eer}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.speakers = list(state["speakers"])
        self._classes = {name: index for index, name in enumerate(self.speakers)}
        self.threshold, self.dev_eer = state["threshold"], state["dev_eer"]


def _errors(rows: Sequence[Row]) -> verification.Errors:
    return verification.errors([row["label"] for row in rows], [row["score"] for row in rows])


def _halves(utterance: Utterance, shortest: float) -> list[Utterance]:
    """Both halves of an utterance; none of one that is too short for two."""
    half = (utterance.duration or 0.0) / 2
    if half < shortest:
        return []
    return [
        Utterance(
            f"{utterance.id}#{number}",
            utterance.group,
            utterance.audio,
            utterance.start + place * half,
            half,
            custom=utterance.custom,
        )
        for place, number in enumerate((1, 2))
    ]
