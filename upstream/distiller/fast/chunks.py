"""Recordings of any length, a chunk at a time, in memory that does not grow with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..model import DistillerOutput
from .blocks import BlockFrontEnd, Moments
from .inference import Inference

Stream = Callable[[], Iterator[Tensor]]
"""Gives a recording from its start, in pieces (samples,) at 16 kHz; it is called twice."""


def in_chunks(
    inference: Inference, stream: Stream, chunk: int, context: int, predict: bool
) -> Iterator[tuple[int, DistillerOutput]]:
    """First frame and output of each chunk.

    The first of two passes gathers the statistics that the first layer's normalisation takes over the whole recording,
    so that the front end's frames are those of the whole recording. The layers hear ``context`` frames on either side.

    Args:
        chunk: frames.
        context: frames.

    Raises:
        ValueError: the recording is shorter than one frame.
    """
    device = next(inference.source.parameters()).device
    moments = Moments(inference.source.config, device)
    for piece in stream():
        moments.add(piece.to(device))
    inference.source.check_lengths(torch.tensor([moments.samples]))
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        front_end = inference.front_end(moments)
    total = front_end.frames_of(moments.samples)
    features = _features(front_end, stream, device)
    kept, first = next(features), 0  # frames from ``first`` on
    for start in range(0, total, chunk):
        low, end = max(0, start - context), min(start + chunk, total)
        high = min(end + context, total)
        while first + len(kept) < high:
            kept = torch.cat([kept, next(features)])
        kept, first = kept[low - first :], low
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            out = inference.encode(kept[None, : high - low], predict)
        yield start, _between(out, start - low, end - low)


def _features(front_end: BlockFrontEnd, stream: Stream, device: torch.device) -> Iterator[Tensor]:
    """Frames (T, C), piece by piece."""
    wave = torch.zeros(0, device=device)
    for piece in stream():
        wave = torch.cat([wave, piece.to(device)])
        if frames := front_end.frames_of(len(wave)):
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                yield front_end(wave)
            wave = wave[frames * front_end.hop :]


def _between(out: DistillerOutput, start: int, end: int) -> DistillerOutput:
    def cut(x: Tensor) -> Tensor:
        return x[..., start:end, :].clone()

    return DistillerOutput(
        cut(out.features),
        cut(out.projected),
        [cut(state) for state in out.hidden_states],
        cut(out.output),
        None if out.predictions is None else cut(out.predictions),
        torch.full_like(out.frames, end - start),
    )
