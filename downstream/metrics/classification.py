"""Accuracy, and what is taken for what."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


def accuracy(pairs: Iterable[tuple[Any, Any]], weights: Iterable[float] | None = None) -> float:
    """Share in per cent of the pairs (reference, prediction) that are equal; nan where there is none.

    Args:
        weights: of each pair; all count the same where there are none.
    """
    right = np.array([reference == prediction for reference, prediction in pairs], dtype=float)
    share = np.ones_like(right) if weights is None else np.array(list(weights), dtype=float)
    return float(100 * (right @ share) / share.sum()) if len(right) else float("nan")


def confusion(pairs: Iterable[tuple[str, str]], labels: Sequence[str]) -> np.ndarray:
    """How often each reference (first axis) was taken for each prediction (second axis), both in the order of
    ``labels``: integers of shape (labels, labels)."""
    place = {label: index for index, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)), dtype=np.int64)
    for reference, prediction in pairs:
        counts[place[reference], place[prediction]] += 1
    return counts


def most_confused(counts: np.ndarray, most: int) -> list[int]:
    """Indices, ascending, of at most that many classes: those of the pairs that are most often taken for each other."""
    errors = np.triu(counts + counts.T, 1)
    chosen: set[int] = set()
    for pair in np.argsort(-errors, axis=None, kind="stable"):
        first, second = divmod(int(pair), len(counts))
        if not errors[first, second] or len(chosen | {first, second}) > most:
            break
        chosen |= {first, second}
    return sorted(chosen) or list(range(min(most, len(counts))))
