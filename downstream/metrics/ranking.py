"""Ranked pairs: average precision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def average_precision(distances: Any, labels: Any) -> float:
    """The mean, over pairs of label 1, of the share of such pairs among all that are as near or nearer.

    Args:
        distances: (N,) of pairs.
        labels: (N,) 1 for those that are to be found, else 0.

    Returns:
        0 to 1; NaN where none is to be found.
    """
    return precision_of_order(np.asarray(labels)[np.argsort(distances, kind="stable")])


def precision_of_order(labels: Any) -> float:
    """:func:`average_precision` of pairs whose labels, (N,), are in the order of their distances."""
    found = np.flatnonzero(labels)
    return float((np.arange(1, len(found) + 1) / (found + 1)).mean()) if len(found) else math.nan
