"""Where somebody speaks in a recording, by loudness: for recordings whose long silences would be distilled as well."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from torch import Tensor

from s3prl_distiller.audio import SAMPLE_RATE

_HOP = SAMPLE_RATE // 100
_LOUD = 95  # per cent of the frames are quieter than what counts as the recording's loudness


class Stretch(NamedTuple):
    """From ``start`` to ``end``, in seconds."""

    start: float
    end: float


def loud_stretches(
    pieces: Iterable[Tensor], below_db: float, silence: float, margin: float
) -> tuple[list[Stretch], float]:
    """Stretches of a recording without its long silences.

    A frame of 10 ms is silent where its level is more than ``below_db`` under that of the recording's loud frames (the
    95th percentile, so that a click does not count). This tells speech from silence and not from other sounds.

    Args:
        pieces: of the recording, (samples,) float32 at 16 kHz each.
        below_db: decibels.
        silence: seconds; shorter ones are kept.
        margin: seconds of silence that are kept on each side of a stretch.

    Returns:
        The stretches in order, and the recording's length in seconds. None for a recording without any sound.
    """
    levels, samples = _levels(pieces)
    end = samples / SAMPLE_RATE
    if not len(levels) or levels.max() <= 0:
        return [], end
    loud = levels > np.percentile(levels, _LOUD) * 10 ** (-below_db / 10)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], loud, [False]]).astype(np.int8))).reshape(-1, 2)
    runs = [[int(first), int(last)] for first, last in edges]
    joined = runs[:1]
    for (_, before), (first, last) in pairwise(runs):
        if (first - before) * _HOP / SAMPLE_RATE <= max(silence, 2 * margin):
            joined[-1][1] = last
        else:
            joined.append([first, last])
    seconds = _HOP / SAMPLE_RATE
    return [Stretch(max(0.0, a * seconds - margin), min(end, b * seconds + margin)) for a, b in joined], end


def _levels(pieces: Iterable[Tensor]) -> tuple[np.ndarray, int]:
    """Mean square of each 10 ms, and how many samples there are."""
    levels: list[np.ndarray] = []
    left, samples = np.zeros(0, np.float32), 0
    for piece in pieces:
        wave = np.concatenate([left, piece.numpy()])
        samples += len(piece)
        whole = len(wave) // _HOP * _HOP
        levels.append(np.square(wave[:whole].astype(np.float64)).reshape(-1, _HOP).mean(1))
        left = wave[whole:]
    if len(left):
        levels.append(np.square(left.astype(np.float64)).mean(keepdims=True))
    return (np.concatenate(levels) if levels else np.zeros(0)), samples
