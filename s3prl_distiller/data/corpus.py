"""Prepare data for training: list, check, cut into windows, hold out, and hand out batches by epoch."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from s3prl_distiller.audio import SAMPLE_RATE
from s3prl_distiller.engine import distributed

from .check import Finding, counts, judge, write_report
from .config import DataConfig, cache_folder, validate, worker_count
from .loader import ALL, Batch, Limits, Part, TrainOrder, ValidOrder, make_loader, tar_shards
from .scan import cache_file, scan
from .sources import read_utterances
from .utterance import Utterance, as_bytes

_LATE = 120  # seconds; reaching further into a file that cannot be sought in costs more than decoding a whole crop


def prepare(config: DataConfig, *, crop_samples: int, seed: int, report_dir: Path, progress: bool = True) -> Corpus:
    """List, check and split the data that ``config.path`` names.

    Args:
        crop_samples: most samples (16 kHz) of an utterance that a batch holds.
        seed: orders the batches and places the crops.
        report_dir: folder for ``data_report.jsonl`` and ``data_report.md``.
        progress: show a bar on stderr while files are checked.

    Of several processes the main one goes first and writes the report; the others find its results in the cache.

    Raises:
        ValueError: the data is not there, is not understood, is bad beyond ``config.max_bad_share`` or cannot be split.
    """
    validate(config)
    if crop_samples < 1:
        raise ValueError(f"the crop is {crop_samples} samples: it must be at least 1")
    languages: Counter[str] = Counter()
    listed, remarks = read_utterances(config.path, list(config.sets), labels=False, languages=languages)
    cache = cache_file(cache_folder(config), str(config.path))
    with distributed.main_first():
        facts = scan((u.audio for u in listed), full=config.check == "full", cache=cache, progress=progress)
    good, findings = judge(listed, facts, config.min_seconds)
    report = write_report(Path(report_dir), str(config.path), len(listed), findings, remarks)
    _refuse_bad(listed, findings, config.max_bad_share, report)
    pieces = [piece for utterance in good for piece in windows(utterance, config.split_seconds)]
    train, valid = hold_out(pieces, config.valid_share, config.valid_seconds)
    longest = min(crop_samples, max(map(samples_of, pieces)))
    if longest > config.batch_seconds * SAMPLE_RATE:
        raise ValueError(
            f"data.batch_seconds is {config.batch_seconds}, less than one utterance of {longest / SAMPLE_RATE:.3f} s: "
            "raise it, or shorten the crop"
        )
    remarks += _slow_to_reach(pieces)
    unused = sum(map(samples_of, pieces)) - sum(map(samples_of, train + valid))
    if unused:
        remarks.append(f"{unused / SAMPLE_RATE:.1f} s of a held-out recording beyond data.valid_seconds are not used")
    codes = [code for code, _ in languages.most_common()]
    return Corpus(config, train, valid, crop_samples, seed, findings, remarks, report, codes)


class Corpus:
    """Checked utterances, split into training and validation.

    Attributes:
        train_seconds, valid_seconds: length of the audio on each side.
        train_utterances, valid_utterances: how many, windows of long recordings counted one by one.
        languages: that the manifest names, the most frequent first.
        fingerprint: changes when the utterances, their lengths or the split change.
    """

    def __init__(
        self,
        config: DataConfig,
        train: list[Utterance],
        valid: list[Utterance],
        crop_samples: int,
        seed: int,
        findings: list[Finding],
        remarks: list[str],
        report: Path,
        languages: Sequence[str] = (),
    ):
        self._config, self._train, self._valid, self._seed = config, train, valid, seed
        self._findings, self._remarks, self._report = findings, remarks, report
        self._limits = Limits(crop_samples, config.batch_size, config.batch_seconds, config.num_buckets)
        self.languages = list(languages)
        self.train_utterances, self.valid_utterances = len(train), len(valid)
        self.train_seconds = sum(map(samples_of, train)) / SAMPLE_RATE
        self.valid_seconds = sum(map(samples_of, valid)) / SAMPLE_RATE
        self._shards = tar_shards(train) if config.shuffle == "shards" else None
        lines = (f"{u.id}\t{samples_of(u)}\t{side}\n" for side, us in (("train", train), ("valid", valid)) for u in us)
        digest = hashlib.sha256()
        for line in sorted(lines):
            digest.update(as_bytes(line))
        self.fingerprint = digest.hexdigest()[:16]

    def train_loader(self, epoch: int, *, skip: int = 0, dealt: bool = True) -> Iterable[Batch]:
        """Batches of one epoch in an order that only the corpus, the config, the seed and the epoch decide.

        Utterances longer than the crop are cut at a place that differs from epoch to epoch.

        Args:
            skip: so many batches are passed over without being decoded.
            dealt: of several processes, give this one its part of every batch; else all of it.
        """
        return make_loader(self.train_order(epoch, skip, dealt), worker_count(self._config.num_workers))

    def train_order(self, epoch: int, skip: int = 0, dealt: bool = True) -> TrainOrder:
        """What the batches of :meth:`train_loader` are made of, without decoding."""
        part = _own_part() if dealt else ALL
        return TrainOrder(self._train, self._limits, self._seed, epoch, skip, part, self._shards)

    def valid_loader(self) -> Iterable[Batch]:
        """Batches of the held-out utterances, shortest first, each utterance's beginning up to the crop.

        Of several processes, each has some of the batches.
        """
        return make_loader(ValidOrder(self._valid, self._limits, _own_part()), worker_count(self._config.num_workers))

    def describe(self) -> str:
        """A few lines for people: how much there is, what was left out and where the report is."""
        lines = [
            f"training: {_many(self.train_utterances)}, {_hours(self.train_seconds)}",
            f"validation: {_many(self.valid_utterances)}, {_hours(self.valid_seconds)}",
            f"left out: {counts(self._findings) or 'nothing'}",
            *self._remarks,
            f"report: {self._report}",
        ]
        return "\n".join(lines)


def _own_part() -> Part:
    return Part(distributed.rank(), distributed.world())


def samples_of(utterance: Utterance) -> int:
    """Length in samples at 16 kHz."""
    assert utterance.duration is not None
    return round(utterance.duration * SAMPLE_RATE)


def windows(utterance: Utterance, split_seconds: float) -> list[Utterance]:
    """Cut an utterance longer than ``split_seconds`` into equal consecutive windows that share its group."""
    total = samples_of(utterance)
    count = math.ceil(total / (split_seconds * SAMPLE_RATE))
    if count <= 1:
        return [utterance]
    edges = [round(k * total / count) / SAMPLE_RATE for k in range(count + 1)]
    return [
        replace(utterance, id=f"{utterance.id}@{low:.2f}", start=utterance.start + low, duration=high - low)
        for low, high in zip(edges, edges[1:], strict=False)
    ]


def hold_out(utterances: list[Utterance], share: float, seconds: float) -> tuple[list[Utterance], list[Utterance]]:
    """Part training from validation by a hash of each recording's name.

    Adding files therefore never moves a recording from training to validation. Both sides get at least one recording;
    validation stays within ``seconds`` unless its first utterance alone is longer.
    """
    lengths: dict[str, float] = {}
    for utterance in utterances:
        lengths[utterance.group] = lengths.get(utterance.group, 0.0) + samples_of(utterance) / SAMPLE_RATE
    if len(lengths) < 2:
        raise ValueError(
            f"there is one usable recording only ({next(iter(lengths), 'none')}): training needs at least two, "
            "one of them held out for validation"
        )
    ranks = {group: _unit_hash(group) for group in lengths}
    groups = sorted(lengths, key=ranks.__getitem__)
    held: set[str] = set()
    total = 0.0
    for group in groups:
        if ranks[group] < share and total + lengths[group] <= seconds and len(held) < len(groups) - 1:
            held.add(group)
            total += lengths[group]
    if not held:
        fitting = [group for group in groups if lengths[group] <= seconds]
        held = {fitting[0] if fitting else min(groups, key=lengths.__getitem__)}
    valid: list[Utterance] = []
    total = 0.0
    for utterance in (u for u in utterances if u.group in held):
        total += samples_of(utterance) / SAMPLE_RATE
        if total <= seconds or not valid:
            valid.append(utterance)
    return [u for u in utterances if u.group not in held], valid


def _refuse_bad(listed: list[Utterance], findings: list[Finding], max_share: float, report: Path) -> None:
    bad = [finding for finding in findings if finding.bad]
    if len(bad) <= max_share * len(listed) and len(bad) < len(listed):
        return
    examples = "; ".join(f"{f.id} ({f.detail})" for f in bad[:3])
    raise ValueError(
        f"{len(bad)} of {len(listed)} utterances cannot be used ({counts(findings)}), data.max_bad_share allows "
        f"{max_share:.1%}: mend or remove them, or raise it. For example {examples}. All are listed in "
        f"{report.with_suffix('.jsonl')}"
    )


def _slow_to_reach(pieces: list[Utterance]) -> list[str]:
    slow = (".mp3", ".ogg", ".oga", ".opus")
    late = [p for p in pieces if p.start > _LATE and isinstance(p.audio, str) and p.audio.lower().endswith(slow)]
    if not late:
        return []
    return [
        f"{len(late)} utterances lie more than {_LATE} s into files of a kind that is decoded from its beginning each "
        f"time ({', '.join(slow)}): convert these to .flac or .wav to train faster"
    ]


def _unit_hash(text: str) -> float:
    """A number in [0, 1) that only ``text`` decides."""
    return int.from_bytes(hashlib.sha256(as_bytes(text)).digest()[:6], "big") / 2**48


def _many(count: int) -> str:
    return f"{count} utterance{'' if count == 1 else 's'}"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.2f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"
