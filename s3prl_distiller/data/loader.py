"""Batches of waveforms: which utterances go together, which part of each, and their decoding in worker processes."""

from __future__ import annotations

import os
import random
import signal
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from s3prl_distiller import audio
from s3prl_distiller.audio import SAMPLE_RATE

from .scan import load_cut
from .utterance import TarMember, Utterance, open_audio, place_of, stable_hash

if TYPE_CHECKING:
    from lhotse.cut import Cut

_POOL = 5_000  # utterances that a batch's members are drawn from


@dataclass(frozen=True, eq=False)
class Batch:
    """Waveforms of some utterances.

    Attributes:
        wave: float32 of shape (utterances, samples) at 16 kHz, zeros after each utterance's end; (0, 0) when empty.
        lengths: int64 of shape (utterances,), samples of each; always on the CPU, where asking them costs no waiting.
        ids: their ids.
        dropped: why, one line for each utterance of this batch that could not be decoded.
    """

    wave: torch.Tensor
    lengths: torch.Tensor
    ids: list[str]
    dropped: list[str]

    def pin_memory(self) -> Batch:
        """The same in page-locked memory, from where copies to a GPU overlap with work."""
        return Batch(self.wave.pin_memory(), self.lengths, self.ids, self.dropped)

    def to(self, device: torch.device | str) -> Batch:
        """The same with the waveforms on another device, without waiting for the copy."""
        return Batch(self.wave.to(device, non_blocking=True), self.lengths, self.ids, self.dropped)

    @property
    def seconds(self) -> float:
        """Seconds of audio, padding left out."""
        return int(self.lengths.sum()) / SAMPLE_RATE


class Limits(NamedTuple):
    """``crop`` in samples; a batch holds at most ``batch_size`` utterances and ``batch_seconds`` with padding."""

    crop: int
    batch_size: int
    batch_seconds: float
    num_buckets: int

    def most(self, longest: float) -> int:
        """How many utterances of at most ``longest`` samples a batch may hold."""
        return max(1, min(self.batch_size, int(self.batch_seconds * SAMPLE_RATE // longest)))


class Request(NamedTuple):
    """``samples`` at 16 kHz of one utterance, from ``start`` seconds into its audio."""

    id: str
    audio: str | TarMember | Cut
    start: float
    samples: int


class _Item:
    """What lhotse's sampler is shown of an utterance. Its ``duration`` is in samples, so that sums are exact."""

    __slots__ = ("index", "duration", "dataloading_info")

    def __init__(self, index: int, duration: int):
        self.index, self.duration = index, duration


class Part(NamedTuple):
    """Which part of everything is for a process: that of number ``rank`` of ``world``."""

    rank: int
    world: int


ALL = Part(0, 1)


class TrainOrder:
    """The batches of one epoch: utterances of similar length together, everything shuffled, nothing left over.

    However many processes there are, the batches are the same; each process has its part of every one of them, which
    may be empty.

    Args:
        shards: stretches of ``utterances`` that stay in order, as far as batches of similar length let them: these are
            shuffled as wholes. None: every utterance by itself.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        limits: Limits,
        seed: int,
        epoch: int,
        skip: int = 0,
        part: Part = ALL,
        shards: Sequence[range] | None = None,
    ):
        self._utterances, self._limits, self._part, self._shards = utterances, limits, part, shards
        self._seed, self._epoch, self._skip = seed, epoch, skip

    def __iter__(self) -> Iterator[list[Request]]:
        from lhotse.dataset.sampling import DynamicBucketingSampler
        from lhotse.dataset.sampling.dynamic_bucketing import FixedBucketBatchSizeConstraint

        # Numbers in arrays, and items one at a time: there may be millions.
        lengths = array("q", (_length(utterance, self._limits.crop) for utterance in self._utterances))
        edges = bucket_edges(lengths, self._limits)
        seed = stable_hash(f"{self._seed}:{self._epoch}") % 2**32
        # A limit in seconds alone would let the last utterance of a batch, longer than the others, pad it beyond the
        # limit; sizes fixed by each bucket's upper edge cannot. Buckets stay "synced" even in one process: without it
        # lhotse 1.33 stops an epoch at the first empty bucket and loses the rest.
        sampler = DynamicBucketingSampler(
            (_Item(index, lengths[index]) for index in self._shuffled(random.Random(seed))),
            constraint=FixedBucketBatchSizeConstraint(edges, [self._limits.most(edge) for edge in edges]),
            duration_bins=edges[:-1],
            buffer_size=_POOL,
            shuffle=True,
            drop_last=False,
            sync_buckets=True,
            seed=seed,
            rank=0,
            world_size=1,
        )
        for batch in islice(sampler, self._skip, None):
            # By length, so that all processes have about as much to do.
            dealt = sorted(batch, key=lambda item: -item.duration)[self._part.rank :: self._part.world]
            yield [self._request(item.index) for item in dealt]

    def _shuffled(self, rng: random.Random) -> Iterable[int]:
        if self._shards is None:
            order = array("q", range(len(self._utterances)))
            rng.shuffle(order)
            return order
        return chain.from_iterable(rng.sample(self._shards, len(self._shards)))

    def _request(self, index: int) -> Request:
        utterance = self._utterances[index]
        samples = _length(utterance, self._limits.crop)
        spare = _length(utterance) - samples
        offset = stable_hash(f"{self._seed}:{self._epoch}:{utterance.id}") % (spare + 1)
        return Request(utterance.id, utterance.audio, utterance.start + offset / SAMPLE_RATE, samples)


class ValidOrder:
    """The batches of a validation: shortest first, every utterance from its beginning. A process has some of them."""

    def __init__(self, utterances: list[Utterance], limits: Limits, part: Part = ALL):
        self._utterances = sorted(utterances, key=lambda u: (_length(u, limits.crop), u.id))
        self._limits, self._part = limits, part

    def __iter__(self) -> Iterator[list[Request]]:
        return islice(self._batches(), self._part.rank, None, self._part.world)

    def _batches(self) -> Iterator[list[Request]]:
        batch: list[Request] = []
        for utterance in self._utterances:
            samples = _length(utterance, self._limits.crop)
            if batch and len(batch) + 1 > self._limits.most(samples):
                yield batch
                batch = []
            batch.append(Request(utterance.id, utterance.audio, utterance.start, samples))
        if batch:
            yield batch


def tar_shards(utterances: Sequence[Utterance]) -> list[range]:
    """Stretches of utterances that lie in one tar.

    Raises:
        ValueError: some lie in no tar.
    """
    shards, low = [], 0
    for path, members in groupby(u.audio.path if isinstance(u.audio, TarMember) else None for u in utterances):
        if path is None:
            raise ValueError(
                f"data.shuffle is 'shards', but {utterances[low].place} lies in no tar of a Shar folder: use 'all'"
            )
        high = low + sum(1 for _ in members)
        shards.append(range(low, high))
        low = high
    return shards


def bucket_edges(lengths: Sequence[int], limits: Limits) -> list[float]:
    """Upper edges of buckets that give about as many batches each, the last being the longest length.

    lhotse picks buckets evenly, so buckets of equal audio would leave an epoch's end to the short utterances, of which
    a batch takes less audio. Equal edges are kept: lhotse goes from an empty bucket to the nearest, so a length that
    fills several buckets is drawn as often as its share asks.
    """
    ordered, counts = np.unique(lengths, return_counts=True)
    ends = np.cumsum([count / limits.most(length) for length, count in zip(ordered, counts, strict=True)])
    marks = ends[-1] * np.arange(1, limits.num_buckets + 1) / limits.num_buckets
    places = np.minimum(np.searchsorted(ends, marks), len(ordered) - 1)
    return [float(edge) for edge in ordered[places]]


def make_loader(order: Iterable[list[Request]], num_workers: int) -> DataLoader[Batch]:
    """Decode the batches of ``order``, in that order, in ``num_workers`` processes (0: this one)."""
    return DataLoader(
        _Decoder(),
        batch_size=None,
        sampler=order,
        num_workers=num_workers,
        worker_init_fn=start_worker,
        pin_memory=torch.cuda.is_available(),
        # An own generator: without it the loader draws from torch's global one, and what the student draws would
        # depend on how often a loader was made.
        generator=torch.Generator(),
    )


class _Decoder(Dataset[Batch]):
    def __getitem__(self, requests: list[Request]) -> Batch:
        wave = _zeros(len(requests), max((request.samples for request in requests), default=0))
        lengths: list[int] = []
        ids: list[str] = []
        dropped: list[str] = []
        for request in requests:
            try:
                decoded = decode(request)
            except (audio.AudioError, OSError) as error:
                dropped.append(f"{request.id}: {error}")
                continue
            wave[len(ids), : len(decoded)] = decoded
            lengths.append(len(decoded))
            ids.append(request.id)
        wave = wave[: len(ids), : max(lengths, default=0)].contiguous()
        return Batch(wave, torch.tensor(lengths, dtype=torch.int64), ids, dropped)


def _zeros(rows: int, samples: int) -> torch.Tensor:
    """float32 zeros of shape (rows, samples): in a worker, in memory that the training process sees without a copy."""
    if torch.utils.data.get_worker_info() is None or not rows * samples:
        return torch.zeros(rows, samples)
    storage = torch.UntypedStorage._new_shared(4 * rows * samples)  # a new file's bytes are zero
    return torch.empty(0).set_(storage, 0, (rows, samples), (samples, 1))  # pyright: ignore[reportCallIssue, reportArgumentType]


def decode(request: Request) -> torch.Tensor:
    """The samples asked for, or at most two fewer."""
    source, seconds = request.audio, request.samples / SAMPLE_RATE
    if isinstance(source, (str, TarMember)):
        wave = audio.load(open_audio(source), start=request.start, duration=seconds)
    else:
        wave = load_cut(source.truncate(offset=request.start, duration=seconds))
    if len(wave) < request.samples - 2:  # the rounding of two rates
        raise audio.AudioError(f"{place_of(source)}: shorter than when it was checked", "truncated")
    return wave[: request.samples]


def start_worker(_: int) -> None:
    """Prepare a decoding process."""
    # Ctrl-C and a scheduler's SIGTERM reach the whole process group, but are for the training process: it saves, which
    # a dying worker would interrupt, and then ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
    if hasattr(os, "nice"):
        os.nice(5)  # where cores are scarce, the process that feeds the GPU comes first


def _length(utterance: Utterance, limit: int | None = None) -> int:
    assert utterance.duration is not None
    samples = round(utterance.duration * SAMPLE_RATE)
    return samples if limit is None else min(samples, limit)
