"""Which utterances go together in each batch, and which part of each is heard."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from s3prl_distiller.audio import SAMPLE_RATE
from s3prl_distiller.data.corpus import samples_of
from s3prl_distiller.data.utterance import Utterance, stable_hash
from s3prl_distiller.engine import distributed

from .config import DataConfig


class Stretch(NamedTuple):
    """Some samples at 16 kHz of the audio at a place."""

    place: str
    first: int
    samples: int


class Draw(NamedTuple):
    """One utterance as a batch hears it: ``samples`` at 16 kHz from ``start`` seconds into its audio."""

    utterance: Utterance
    start: float
    samples: int

    @property
    def stretch(self) -> Stretch:
        """What is heard, whoever it is said to be."""
        return Stretch(self.utterance.place, round(self.start * SAMPLE_RATE), self.samples)


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

    def __iter__(self) -> Iterator[list[Draw]]:
        rank, world = distributed.rank(), distributed.world()
        for batch in islice(self._batches(), self._skip, None):
            yield [self._draw(place, index) for place, index in batch[rank::world]]

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
        total, samples = samples_of(utterance), train_samples(utterance, self._config)
        offset = stable_hash(f"{self._seed}:{self._epoch}:{place}:{utterance.id}") % (total - samples + 1)
        return Draw(utterance, utterance.start + offset / SAMPLE_RATE, samples)


class EvalOrder:
    """The batches of an evaluation, by length; each process has its part of the utterances, whole."""

    def __init__(self, utterances: Sequence[Utterance], config: DataConfig):
        self._utterances, self._config = utterances, config

    def __iter__(self) -> Iterator[list[Draw]]:
        size = self._config.eval_batch_size or self._config.batch_size
        ordered = sorted(self._utterances, key=lambda u: (samples_of(u), u.id))[
            distributed.rank() :: distributed.world()
        ]
        for low in range(0, len(ordered), size):
            yield [eval_draw(utterance, self._config) for utterance in ordered[low : low + size]]


def train_samples(utterance: Utterance, config: DataConfig) -> int:
    """How much of an utterance training hears at a time: all of it, or a random part."""
    crop = (utterance.custom or {}).get("crop_seconds", config.crop_seconds)
    total = samples_of(utterance)
    return total if crop is None else min(total, round(crop * SAMPLE_RATE))


def eval_draw(utterance: Utterance, config: DataConfig) -> Draw:
    """What an evaluation hears of an utterance: all of it, or its middle."""
    total, crop = samples_of(utterance), config.eval_crop_seconds
    samples = total if crop is None else min(total, round(crop * SAMPLE_RATE))
    return Draw(utterance, utterance.start + (total - samples) // 2 / SAMPLE_RATE, samples)


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
