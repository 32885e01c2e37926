"""Hidden states computed once: which utterances of a run are always heard alike, and what of them is kept."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s3prl_distiller.data.config import DataConfig as CacheConfig
from s3prl_distiller.data.config import cache_folder
from s3prl_distiller.data.corpus import samples_of
from s3prl_distiller.engine import distributed

from ..core.batches import Waves
from ..core.config import DownstreamConfig
from ..core.draws import Draw, Stretch, eval_draw, train_samples
from ..core.task import Task
from ..core.upstream import Upstream
from .filling import Ear, fill, peak
from .store import FeatureStore, Names, gigabytes

log = logging.getLogger(__name__)

_FORMAT = 1  # of the key and of what lies under it
_DEVICE_SHARE = 0.4  # of the free memory of a GPU


class Kept:
    """Hidden states of a run by what is drawn; the others are computed by :meth:`compute`.

    Args:
        note: what is kept, in a sentence for people; where nothing is, why.
        ear: computes states.
        states: of each draw, in the files.
        resident: hold what was used on the device.
    """

    def __init__(self, note: str, ear: Ear, states: dict[Stretch, Tensor], resident: bool):
        self.note = note
        self.resident = resident
        self._ear, self._states = ear, states

    def __bool__(self) -> bool:
        return bool(self._states)

    def __contains__(self, draw: Draw) -> bool:
        return draw.stretch in self._states

    def load(self, draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
        """States of draws that are kept; all of them.

        Returns:
            (L, B, T, D) with zeros after each utterance's frames, in the type of the files (float32 where one of them
            is), and (B,) frames on the CPU. It lies on the device where states are ``resident``, else in memory from
            which copies to a GPU overlap with work.
        """
        states = [self._one(draw.stretch) for draw in draws]
        frames = torch.tensor([state.shape[1] for state in states])
        dtype = torch.float32 if any(state.dtype == torch.float32 for state in states) else states[0].dtype
        layers, _, width = states[0].shape
        device = states[0].device
        pinned = device.type == "cpu" and self._ear.device.type == "cuda"
        shape = (layers, len(states), int(frames.max()), width)
        batch = torch.empty(shape, dtype=dtype, device=device, pin_memory=pinned)
        for row, state in zip(batch.unbind(1), states, strict=True):
            row[:, : state.shape[1]] = state
            row[:, state.shape[1] :] = 0
        return batch, frames

    def batch(self, draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
        """The same, on the device."""
        states, frames = self.load(draws)
        return states.to(self._ear.device, non_blocking=True), frames

    def compute(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """States of waveforms (B, samples), in the same form and precision: whoever trains cannot tell them apart."""
        states, frames = self._ear(wave, lengths)
        fits = all(one <= torch.finfo(self._ear.dtype).max for one in peak(states))
        return (states.to(self._ear.dtype) if fits else states), frames

    def _one(self, stretch: Stretch) -> Tensor:
        state = self._states[stretch]
        if self.resident and state.device != self._ear.device:
            state = self._states[stretch] = state.to(self._ear.device)
        return state


def keep_features(
    upstream: Upstream,
    task: Task,
    config: DownstreamConfig,
    waves: Waves,
    autocast: Any,
    device: torch.device,
    judged: Sequence[str] | None = None,
) -> Kept | None:
    """Compute what is not there yet of the hidden states that a run asks for again and again.

    These are of utterances that are heard the same each time: evaluations, and training on whole utterances. States of
    a random crop are not part of the states of the whole, so those are computed each time.

    Args:
        waves: where waveforms come from.
        autocast: makes the contexts that the run computes in.
        judged: only the evaluations of these splits; None: training, and evaluations of all splits but train.

    Returns:
        None where the run does not ask for it (``features.keep``).
    """
    if not config.features.keep:
        return None
    # A mean over time commutes with a weighted sum over layers, but not with what normalises each frame before it.
    pooled = task.pooled and not config.upstream.normalize and not task.all_layers
    dtype = torch.float32 if pooled else getattr(torch, config.features.dtype)
    ear = Ear(upstream, autocast, device, pooled, dtype)
    if not task.trained:
        return Kept(f"Nothing is kept: {task.name} trains nothing, and hears each utterance once.", ear, {}, False)
    draws, cropped = _steady(task, config, judged)
    store = FeatureStore(_root(config), _key(ear, config), config.features.disk_gb * 1e9)
    names = Names()
    wanted = {draw.stretch: names.of(draw.utterance, draw.stretch.first, draw.samples) for draw in draws}
    # One process fills, the others wait for what it has to say.
    why_not = distributed.gather([fill(store, ear, draws, wanted, waves) if distributed.is_main() else ""])[0]
    states: dict[Stretch, Tensor] = {}
    if not why_not:
        store.read()
        states = {stretch: store[name] for stretch, name in wanted.items() if name is not None and name in store}
    size = sum(state.nbytes for state in states.values())
    note = (
        f"Hidden states are not kept but computed anew for each batch: {why_not}."
        if why_not
        else f"The {'means over time of hidden states' if pooled else 'hidden states'} of {len(states)} of "
        f"{len(draws)} utterances are kept ({gigabytes(size)}, {str(dtype).removeprefix('torch.')})"
        f"{cropped}."
    )
    log.info("%s In %s", note, store.folder)
    return Kept(note, ear, states, _fits(size, config.features.memory_gb, device))


def _steady(task: Task, config: DownstreamConfig, judged: Sequence[str] | None) -> tuple[list[Draw], str]:
    """What is drawn the same each time, and a clause on training utterances that are not."""
    splits = [split for split in task.splits if split != "train"] if judged is None else judged
    draws = [eval_draw(utterance, config.data) for split in splits for utterance in task.splits.get(split, [])]
    clause = ""
    if judged is None:
        train = task.splits.get("train", [])
        whole = [u for u in train if train_samples(u, config.data) == samples_of(u)]
        cropped = len(train) - len(whole)
        clause = f"; training hears random parts of {cropped} others" if cropped else ""
        if len(whole) >= cropped:
            draws += [Draw(utterance, utterance.start, samples_of(utterance)) for utterance in whole]
        else:  # most of each batch is computed anyway
            clause = f"; nothing of train is, where {cropped} of {len(train)} are heard in random parts"
    return list({draw.stretch: draw for draw in draws}.values()), clause


def _root(config: DownstreamConfig) -> Path:
    if config.features.folder is not None:
        return Path(config.features.folder).expanduser()
    return cache_folder(CacheConfig(cache_dir=config.data.cache_dir)) / "features"


def _key(ear: Ear, config: DownstreamConfig) -> dict[str, Any]:
    precision = torch.float32
    with ear.autocast():
        # An architecture that is not ours is never run in half precision.
        if ear.upstream.twin is not None and torch.is_autocast_enabled(ear.device.type):
            precision = torch.get_autocast_dtype(ear.device.type)
    return {
        "format": _FORMAT,
        "upstream": ear.upstream.identity(),
        "precision": str(precision).removeprefix("torch."),
        "gain_db": config.data.gain_db,
        "dtype": str(ear.dtype).removeprefix("torch."),
        "pooled": ear.pooled,
    }


def _fits(size: int, memory_gb: float, device: torch.device) -> bool:
    """Whether so many bytes may be held on the device. On a CPU the files' own pages are all that it takes."""
    if device.type != "cuda":
        return False
    limit = _DEVICE_SHARE * torch.cuda.mem_get_info(device)[0] if memory_gb < 0 else memory_gb * 1e9
    return size <= limit
