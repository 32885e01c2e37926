"""Batches of labelled speech: which utterances go together in each epoch, which part of each is heard, and how loud."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, BinaryIO, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from s3prl_distiller import audio
from s3prl_distiller.audio import SAMPLE_RATE
from s3prl_distiller.data.config import cores, worker_count
from s3prl_distiller.data.corpus import samples_of
from s3prl_distiller.data.loader import Batch, start_worker
from s3prl_distiller.data.utterance import TarMember, Utterance, open_audio, stable_hash
from s3prl_distiller.engine import distributed

from .config import DataConfig
from .task import Task


@dataclass(frozen=True, eq=False)
class LabelledBatch(Batch):
    """Waveforms of some utterances and what the task says of each.

    Attributes:
        utterances: those that could be decoded, in the order of ``ids``.
        targets: of each of them; empty where none was asked for.
        share: weight of this batch's mean loss, where several processes have a part of one batch each.
    """

    utterances: Sequence[Utterance] = ()
    targets: Sequence[Any] = ()
    share: float = 1.0

    def pin_memory(self) -> LabelledBatch:
        return replace(self, wave=self.wave.pin_memory())

    def to(self, device: torch.device | str) -> LabelledBatch:
        return replace(self, wave=self.wave.to(device, non_blocking=True))


class Draw(NamedTuple):
    """One utterance as a batch hears it: ``samples`` at 16 kHz from ``start`` seconds into its audio."""

    utterance: Utterance
    start: float
    samples: int


class TrainOrder:
    """The batches of an epoch, decided by seed and epoch alone; each process sees its part of every batch.

    Args:
        utterances: of the split.
        config: batch size, crop, and how batches are drawn.
        classes: of each utterance, where sampling is balanced.
        skip: batches to leave out at the beginning.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        config: DataConfig,
        classes: Sequence[str] | None,
        seed: int,
        epoch: int,
        skip: int = 0,
    ):
        self._utterances, self._config, self._classes = utterances, config, classes
        self._seed, self._epoch, self._skip = seed, epoch, skip

    def __iter__(self) -> Iterator[tuple[list[Draw], int]]:
        """Draws of this process, and how many the whole batch has."""
        rank, world = distributed.rank(), distributed.world()
        for batch in islice(self._batches(), self._skip, None):
            yield [self._draw(place, index) for place, index in batch[rank::world]], len(batch)

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        """Batches of (place in the epoch, index of the utterance)."""
        rng = random.Random(stable_hash(f"{self._seed}:{self._epoch}"))
        if self._config.bucketed:
            batches = _bucketed([samples_of(u) for u in self._utterances], self._config)
            rng.shuffle(batches)
        else:
            order = self._order(rng)
            size = self._config.batch_size
            batches = [order[low : low + size] for low in range(0, len(order), size)]
        place = 0
        for batch in batches:
            yield [(place + offset, index) for offset, index in enumerate(batch)]
            place += len(batch)

    def _order(self, rng: random.Random) -> list[int]:
        count = len(self._utterances)
        if self._classes is None:
            return rng.sample(range(count), count)
        # With replacement, each class as likely as the others.
        members: dict[str, list[int]] = {}
        for index, name in enumerate(self._classes):
            members.setdefault(name, []).append(index)
        names = sorted(members)
        return [rng.choice(members[rng.choice(names)]) for _ in range(count)]

    def _draw(self, place: int, index: int) -> Draw:
        utterance = self._utterances[index]
        total = samples_of(utterance)
        crop = (utterance.custom or {}).get("crop_seconds", self._config.crop_seconds)
        samples = total if crop is None else min(total, round(crop * SAMPLE_RATE))
        offset = stable_hash(f"{self._seed}:{self._epoch}:{place}:{utterance.id}") % (total - samples + 1)
        return Draw(utterance, utterance.start + offset / SAMPLE_RATE, samples)


class EvalOrder:
    """The batches of an evaluation, by length; each process has its part of the utterances, whole."""

    def __init__(self, utterances: Sequence[Utterance], config: DataConfig):
        self._utterances, self._config = utterances, config

    def __iter__(self) -> Iterator[tuple[list[Draw], int]]:
        size = self._config.eval_batch_size or self._config.batch_size
        ordered = sorted(self._utterances, key=lambda u: (samples_of(u), u.id))[
            distributed.rank() :: distributed.world()
        ]
        for low in range(0, len(ordered), size):
            batch = [self._draw(utterance) for utterance in ordered[low : low + size]]
            yield batch, len(batch)

    def _draw(self, utterance: Utterance) -> Draw:
        total = samples_of(utterance)
        crop = self._config.eval_crop_seconds
        samples = total if crop is None else min(total, round(crop * SAMPLE_RATE))
        return Draw(utterance, utterance.start + (total - samples) // 2 / SAMPLE_RATE, samples)


class Waves:
    """Waveforms of utterances, decoded when they are asked for, or once and then kept.

    Args:
        kept: those that are known already, by the place of their file.
        gain: factor on all samples.
    """

    def __init__(self, kept: dict[str, torch.Tensor] | None = None, gain: float = 1.0):
        self.kept, self.gain = kept or {}, gain

    def get(self, draw: Draw) -> torch.Tensor:
        """float32 (samples,) at 16 kHz.

        Raises:
            AudioError: it cannot be decoded, or is shorter than when it was checked.
        """
        known = self.kept.get(draw.utterance.place)
        if known is None:
            wave = audio.load(_source(draw.utterance), start=draw.start, duration=draw.samples / SAMPLE_RATE)
        else:
            first = round(draw.start * SAMPLE_RATE)
            wave = known[first : first + draw.samples]
        if len(wave) < draw.samples - 2:  # the rounding of two rates
            raise audio.AudioError(f"{draw.utterance.place}: shorter than when it was checked", "truncated")
        return wave * self.gain if self.gain != 1 else wave


def load_waves(utterances: Iterable[Utterance], config: DataConfig) -> Waves:
    """The waveforms of a corpus: in memory where all of it is at most ``config.memory_hours`` long."""
    waves = Waves(gain=10 ** (config.gain_db / 20))
    utterances = list(utterances)
    if sum(utterance.duration or 0.0 for utterance in utterances) > 3600 * config.memory_hours:
        return waves
    # Decoding releases the interpreter's lock. A file that fails now fails, and is counted, when it is drawn.
    with ThreadPoolExecutor(cores()) as pool:
        places = {utterance.place: utterance for utterance in utterances}
        for place, wave in zip(places, pool.map(_decoded, places.values()), strict=True):
            if wave is not None:
                waves.kept[place] = wave
    return waves


def _decoded(utterance: Utterance) -> torch.Tensor | None:
    try:
        return audio.load(_source(utterance))
    except (audio.AudioError, OSError):
        return None


def _source(utterance: Utterance) -> str | BinaryIO:
    assert isinstance(utterance.audio, (str, TarMember)), "labelled data is files, or members of a tar"
    return open_audio(utterance.audio)


def make_loader(order: Any, task: Task | None, waves: Waves, config: DataConfig) -> DataLoader[LabelledBatch]:
    """Decode the batches of ``order``, in that order.

    Args:
        task: whose targets go with the utterances; None: no targets.
        waves: where waveforms come from; those in memory need no processes.
    """
    if waves.kept:
        workers = 0
    else:
        workers = worker_count(config.num_workers)
    return DataLoader(
        _Batcher(task, waves),
        batch_size=None,
        sampler=order,
        num_workers=workers,
        worker_init_fn=start_worker,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # an own one, so that drawing from the global one is not disturbed
    )


class _Batcher(Dataset[LabelledBatch]):
    def __init__(self, task: Task | None, waves: Waves):
        self._task, self._waves = task, waves

    def __getitem__(self, item: tuple[list[Draw], int]) -> LabelledBatch:
        draws, whole = item
        waves: list[torch.Tensor] = []
        kept: list[Utterance] = []
        dropped: list[str] = []
        for draw in draws:
            try:
                waves.append(self._waves.get(draw))
                kept.append(draw.utterance)
            except (audio.AudioError, OSError) as error:
                dropped.append(f"{draw.utterance.id}: {error}")
        return LabelledBatch(
            wave=pad_sequence(waves, batch_first=True) if waves else torch.zeros(0, 0),
            lengths=torch.tensor([len(wave) for wave in waves], dtype=torch.int64),
            ids=[utterance.id for utterance in kept],
            dropped=dropped,
            utterances=kept,
            targets=[self._task.target(utterance) for utterance in kept] if self._task else [],
            share=len(kept) * distributed.world() / max(whole - len(dropped), 1),
        )


def _bucketed(lengths: list[int], config: DataConfig) -> list[list[int]]:
    """Batches of similar length, longest first; half as many utterances where the longest is long, as in s3prl."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches = []
    while order:
        long = lengths[order[0]] > config.long_seconds * SAMPLE_RATE
        size = max(1, config.batch_size // 2) if long else config.batch_size
        batches.append(order[:size])
        order = order[size:]
    return batches
