"""Hidden states computed and put into a store, for every utterance that a run hears alike each time."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from s3prl_distiller.audio import SAMPLE_RATE, AudioError
from s3prl_distiller.data.config import cores

from ..core.batches import Waves
from ..core.draws import Draw, Stretch
from ..core.upstream import Upstream
from .store import FeatureStore, NotKept

log = logging.getLogger(__name__)

_WRITE_SECONDS = 60.0  # after which what there is is written
_FILL_SECONDS = 120.0  # of audio, padding counted, that go through the upstream together


class Ear(NamedTuple):
    """An upstream as a run hears through it."""

    upstream: Upstream
    autocast: Any
    device: torch.device
    pooled: bool
    """give the mean over an utterance's frames as its only one"""
    dtype: torch.dtype
    """of what is kept"""

    @torch.no_grad()
    def __call__(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms (B, samples) to float32 (L, B, T, D), zeros after each utterance's end, and (B,) frames."""
        with self.autocast():
            hidden_states, frames = self.upstream(wave.to(self.device, non_blocking=True), lengths)
        states = torch.stack(list(hidden_states))[:, :, : int(frames.max())]
        padding = torch.arange(states.shape[2])[None] >= frames[:, None]
        states.masked_fill_(padding.to(states.device)[..., None], 0.0)
        if self.pooled:
            states = states.sum(2, keepdim=True) / frames.to(states.device)[:, None, None]
            frames = torch.ones_like(frames)
        return states, frames


def fill(store: FeatureStore, ear: Ear, draws: Sequence[Draw], names: dict[Stretch, str | None], waves: Waves) -> str:
    """Compute what the store lacks. An interrupt leaves whole shards.

    Returns:
        Why the store is of no use for this run; empty where it is.
    """
    try:
        store.read()
        if all(name in store for name in names.values() if name is not None):
            return ""
        with store.filling():
            missing = {stretch: name for stretch, name in names.items() if name is not None and name not in store}
            store.check_room(sum(_estimate(ear, stretch.samples) for stretch in missing))
            _compute(store, ear, draws, missing, waves)
    except (NotKept, OSError) as error:
        return str(error)
    return ""


def _estimate(ear: Ear, samples: int) -> int:
    """Bytes of a file, rounded up."""
    frames = 1 if ear.pooled else samples // ear.upstream.downsample_rate + 1
    return ear.upstream.n_layers * ear.upstream.width * frames * ear.dtype.itemsize + 256  # of a shard's header


def _compute(store: FeatureStore, ear: Ear, draws: Sequence[Draw], missing: dict[Stretch, str], waves: Waves) -> None:
    # Batches are made of all draws, so that a run that was interrupted goes on with the same ones.
    batches = [[draw for draw in batch if draw.stretch in missing] for batch in _by_length(draws)]
    seconds = sum(stretch.samples for stretch in missing) / SAMPLE_RATE
    log.info("Computing hidden states of %d utterances (%.2f h)", len(missing), seconds / 3600)
    started = written = time.monotonic()
    left_out = 0
    with tqdm(total=len(missing), desc="computing features", unit="utterance") as bar:
        try:
            for heard, wave in _decoded([batch for batch in batches if batch], waves):
                for draw, state in zip(heard, _states(ear, wave), strict=True):
                    if state is None:
                        left_out += 1
                    else:
                        store.add(missing[draw.stretch], state)
                # On a slow machine a full shard is long in coming, and a run may be killed before.
                late = time.monotonic() > written + _WRITE_SECONDS
                if store.flush(0) if late else store.flush():
                    written = time.monotonic()
                bar.update(len(heard))
        except KeyboardInterrupt:
            store.finish()
            raise
    store.finish()
    took = time.monotonic() - started
    log.info("Computed and kept in %.1f s: %.0f s of audio per second", took, seconds / took)
    if left_out:
        log.warning("%d utterances have hidden states that are not finite: they are computed each time", left_out)


def _by_length(draws: Sequence[Draw]) -> Iterator[list[Draw]]:
    """Longest first: what does not fit into memory shows at once."""
    batch: list[Draw] = []
    for draw in sorted(draws, key=lambda draw: (-draw.samples, draw.stretch)):
        if batch and (len(batch) + 1) * batch[0].samples > _FILL_SECONDS * SAMPLE_RATE:
            yield batch
            batch = []
        batch.append(draw)
    if batch:
        yield batch


def _decoded(batches: Sequence[list[Draw]], waves: Waves) -> Iterator[tuple[list[Draw], list[Tensor]]]:
    """Waveforms of each batch, two batches ahead; what cannot be decoded is left to the run, which says so."""
    ahead: deque[tuple[list[Draw], list[Future[Tensor]]]] = deque()
    pool = ThreadPoolExecutor(cores())  # decoding releases the interpreter's lock
    try:
        for batch in [*batches, None, None]:
            ahead.append(([], []) if batch is None else (batch, [pool.submit(waves.get, draw) for draw in batch]))
            if len(ahead) > 2:
                draws, futures = ahead.popleft()
                fine = [not isinstance(future.exception(), (AudioError, OSError)) for future in futures]
                heard = [draw for draw, ok in zip(draws, fine, strict=True) if ok]
                if heard:
                    yield heard, [future.result() for future, ok in zip(futures, fine, strict=True) if ok]
    finally:
        pool.shutdown(cancel_futures=True)


def _states(ear: Ear, waves: Sequence[Tensor]) -> Iterator[Tensor | None]:
    """(L, T, D) of each waveform, on the CPU; None where a value is not finite."""
    lengths = torch.tensor([len(wave) for wave in waves])
    states, frames = ear(pad_sequence(list(waves), batch_first=True), lengths)
    peaks = peak(states)
    fits = [one <= torch.finfo(ear.dtype).max for one in peaks]
    on_cpu = states.to(ear.dtype).cpu()
    for row, count in enumerate(frames.tolist()):
        if not math.isfinite(peaks[row]):
            yield None
        else:
            yield on_cpu[:, row, :count] if fits[row] else states[:, row, :count].cpu()


def peak(states: Tensor) -> list[float]:
    """The largest absolute value of each of B in (L, B, T, D); NaN where there is one."""
    # Several times as fast on a CPU as asking every value whether it is finite.
    return torch.maximum(states.amax((0, 2, 3)), -states.amin((0, 2, 3))).tolist()
