"""Batches of labelled speech: waveforms, or what an upstream is known to make of them, and what a task says of each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, BinaryIO, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from s3prl_distiller import audio
from s3prl_distiller.audio import SAMPLE_RATE
from s3prl_distiller.data.config import cores, worker_count
from s3prl_distiller.data.loader import Batch, start_worker
from s3prl_distiller.data.utterance import TarMember, Utterance, open_audio

from .config import DataConfig
from .draws import Draw
from .task import Task


@dataclass(frozen=True, eq=False)
class LabelledBatch(Batch):
    """Waveforms of some utterances and what the task says of each.

    Attributes:
        utterances: those that could be decoded, in the order of ``ids``.
        targets: of each of them; empty where none was asked for.
        states: their hidden states (L, B, T, D), zeros after each one's frames, where these are known; ``wave`` is
            empty then, and ``lengths`` still the samples of each.
        frames: (B,) frames of each, on the CPU, where states are known.
    """

    utterances: Sequence[Utterance] = ()
    targets: Sequence[Any] = ()
    states: Tensor | None = None
    frames: Tensor | None = None

    def pin_memory(self) -> LabelledBatch:
        return replace(self, wave=self.wave.pin_memory())

    def to(self, device: torch.device | str) -> LabelledBatch:
        states = None if self.states is None else self.states.to(device, non_blocking=True)
        return replace(self, wave=self.wave.to(device, non_blocking=True), states=states)


_AHEAD = 2  # batches whose states are read before they are asked for


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


class States(Protocol):
    """Hidden states that are known, and a way to compute others."""

    @property
    def resident(self) -> bool: ...  # known ones are on the device
    def __contains__(self, draw: Draw) -> bool: ...
    def __bool__(self) -> bool: ...
    def load(self, draws: Sequence[Draw]) -> tuple[Tensor, Tensor]: ...  # of known draws; may wait for files
    def compute(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]: ...  # on the device


def make_loader(
    order: Any, task: Task | None, waves: Waves, config: DataConfig, kept: States | None = None
) -> Iterable[LabelledBatch]:
    """Prepare the batches of ``order``, in that order.

    Args:
        task: whose targets go with the utterances; None: no targets.
        waves: where waveforms come from; those in memory need no processes.
        kept: hidden states; a batch of which some are known gets them, and those of its other utterances.
    """
    if kept:
        return _Served(order, task, waves, config, kept)
    return _decoding(order, task, waves, config)


def _decoding(order: Any, task: Task | None, waves: Waves, config: DataConfig) -> DataLoader[LabelledBatch]:
    return DataLoader(
        _Batcher(task, waves),
        batch_size=None,
        sampler=order,
        num_workers=0 if waves.kept else worker_count(config.num_workers),
        worker_init_fn=start_worker,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # an own one, so that drawing from the global one is not disturbed
    )


class _Batcher(Dataset[LabelledBatch]):
    def __init__(self, task: Task | None, waves: Waves):
        self._task, self._waves = task, waves

    def __getitem__(self, draws: list[Draw]) -> LabelledBatch:
        waves, dropped = _decode(enumerate(draws), self._waves)
        wave, lengths = _padded(waves.values())
        return _labelled([draws[row].utterance for row in waves], dropped, self._task, wave, lengths)


def _decode(draws: Iterable[tuple[int, Draw]], waves: Waves) -> tuple[dict[int, Tensor], list[str]]:
    """Waveforms of numbered draws, and why others have none."""
    decoded: dict[int, Tensor] = {}
    dropped: list[str] = []
    for row, draw in draws:
        try:
            decoded[row] = waves.get(draw)
        except (audio.AudioError, OSError) as error:
            dropped.append(f"{draw.utterance.id}: {error}")
    return decoded, dropped


def _padded(waves: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    waves = list(waves)
    lengths = torch.tensor([len(wave) for wave in waves], dtype=torch.int64)
    return pad_sequence(waves, batch_first=True) if waves else torch.zeros(0, 0), lengths


def _labelled(
    utterances: list[Utterance], dropped: list[str], task: Task | None, wave: Tensor, lengths: Tensor
) -> LabelledBatch:
    return LabelledBatch(
        wave=wave,
        lengths=lengths,
        ids=[utterance.id for utterance in utterances],
        dropped=dropped,
        utterances=utterances,
        targets=[task.target(utterance) for utterance in utterances] if task else [],
    )


class _Prepared(NamedTuple):
    """A batch before the upstream has heard what is not known of it; by row, waveforms and what is known."""

    batch: LabelledBatch
    waves: dict[int, Tensor]
    known: dict[int, Draw]
    states: tuple[Tensor, Tensor] | None


class _Served:
    """Batches with hidden states. Files are read ahead in threads; the upstream hears the rest when its turn comes."""

    def __init__(self, order: Any, task: Task | None, waves: Waves, config: DataConfig, kept: States):
        self._order, self._task, self._waves, self._kept = order, task, waves, kept
        # Batches of which nothing is known are those of a run that keeps nothing, worker processes included.
        self._plain = _decoding(_Filtered(order, lambda draws: not self._serves(draws)), task, waves, config)

    def __iter__(self) -> Iterator[LabelledBatch]:
        plain: Iterator[LabelledBatch] | None = None
        ahead: deque[Future[_Prepared] | None] = deque()
        items = iter(self._order)
        with ThreadPoolExecutor(_AHEAD) as pool:
            while True:
                for draws in islice(items, _AHEAD + 1 - len(ahead)):
                    ahead.append(pool.submit(self._prepare, draws) if self._serves(draws) else None)
                if not ahead:
                    return
                future = ahead.popleft()
                if future is not None:
                    yield self._finish(future.result())
                else:
                    plain = iter(self._plain) if plain is None else plain
                    yield next(plain)

    def _serves(self, draws: list[Draw]) -> bool:
        return not draws or any(draw in self._kept for draw in draws)

    def _prepare(self, draws: list[Draw]) -> _Prepared:
        unknown = ((row, draw) for row, draw in enumerate(draws) if draw not in self._kept)
        waves, dropped = _decode(unknown, self._waves)
        heard = [row for row, draw in enumerate(draws) if draw in self._kept or row in waves]
        lengths = torch.tensor([len(waves[row]) if row in waves else draws[row].samples for row in heard]).long()
        utterances = [draws[row].utterance for row in heard]
        batch = _labelled(utterances, dropped, self._task, torch.zeros(0, 0), lengths)
        new = {number: waves[row] for number, row in enumerate(heard) if row in waves}
        known = {number: draws[row] for number, row in enumerate(heard) if row not in waves}
        # What is on the device already is left to the thread that computes there.
        read = known and not self._kept.resident
        return _Prepared(batch, new, known, self._kept.load([*known.values()]) if read else None)

    def _finish(self, prepared: _Prepared) -> LabelledBatch:
        batch, waves, known, states = prepared
        parts: list[tuple[list[int], Tensor, Tensor]] = []
        if known:
            parts.append(([*known], *(states or self._kept.load([*known.values()]))))
        if waves:
            parts.append(([*waves], *self._kept.compute(*_padded(waves.values()))))
        if not parts:
            return batch
        joined, frames = _joined(parts)
        return replace(batch, states=joined, frames=frames)


def _joined(parts: Sequence[tuple[list[int], Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """States (L, B, T, D) and frames (B,) of all rows from those of some each, on the device of the last."""
    _, last, frames = parts[-1]
    if len(parts) == 1:
        return last, frames
    count = sum(len(rows) for rows, _, _ in parts)
    most = max(states.shape[2] for _, states, _ in parts)
    dtype = torch.promote_types(parts[0][1].dtype, last.dtype)
    joined = torch.zeros(len(last), count, most, last.shape[-1], dtype=dtype, device=last.device)
    lengths = torch.zeros(count, dtype=torch.int64)
    for rows, states, frames in parts:
        joined[:, rows, : states.shape[2]] = states.to(last.device, dtype, non_blocking=True)
        lengths[rows] = frames
    return joined, lengths


class _Filtered:
    """The items of an order whose draws fulfil a condition."""

    def __init__(self, order: Any, condition: Callable[[list[Draw]], bool]):
        self._order, self._condition = order, condition

    def __iter__(self) -> Iterator[list[Draw]]:
        return (draws for draws in self._order if self._condition(draws))
