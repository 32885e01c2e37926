"""Dynamic time warping of whole utterances, for many pairs at once.

A path goes from both first frames to both last ones and moves on by a frame of one, of the other, or of both, which
counts twice; its cost is divided by the frames of both together (Sakoe and Chiba 1978, IEEE TASSP 26, their symmetric
form without slope constraint), so that long and short words compare.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

_CELLS = 1 << 24
"""Distances held at a time."""


def alignment_costs(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """The cost of aligning each of some utterances with each of others, by the cosine distance of frames.

    Args:
        left: (T, D) each, on one device.
        right: (S, D) each, on that device too.

    Returns:
        (len(left), len(right)) float32 on the CPU: 0 for the same frames, 2 for opposite ones.
    """
    columns = F.normalize(pad_sequence([one.float() for one in right], batch_first=True), dim=-1)
    widths = np.array([len(one) for one in right])
    result = torch.empty(len(left), len(right))
    order = sorted(range(len(left)), key=lambda index: len(left[index]))
    at_once = max(1, _CELLS // (len(right) * columns.shape[1] * max(map(len, left))))
    for start in range(0, len(order), at_once):
        some = order[start : start + at_once]
        rows = F.normalize(pad_sequence([left[index].float() for index in some], batch_first=True), dim=-1)
        distances = 1 - torch.einsum("atd,bsd->abts", rows, columns)
        heights = np.array([len(left[index]) for index in some])
        result[some] = torch.from_numpy(_lowest(distances.cpu().numpy(), heights, widths))
    return result


@numba.njit(parallel=True, cache=True)
def _lowest(distances: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Cost of the best path of each pair (A, B), from distances (A, B, T, S) of which heights by widths count."""
    count, others = distances.shape[:2]
    result = np.empty((count, others), np.float32)
    for pair in numba.prange(count * others):
        a, b = pair // others, pair % others
        rows, columns = heights[a], widths[b]
        best = np.full(columns, np.inf, np.float32)  # of paths that end in this row
        for row in range(rows):
            slanting, left = np.inf, np.inf  # above and to the left, to the left
            for column in range(columns):
                distance, above = distances[a, b, row, column], best[column]
                lowest = min(above + distance, left + distance, slanting + 2 * distance)
                if row == 0 and column == 0:
                    lowest = 2 * distance
                slanting, left, best[column] = above, lowest, lowest
        result[a, b] = best[columns - 1] / (rows + columns)
    return result
