"""How well scores tell target trials from others: equal error rate, detection cost, and the curve they lie on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class Errors(NamedTuple):
    """Error rates (0 to 1) at every threshold that makes a difference, from the strictest to the most lenient.

    A trial is accepted where its score is at or above the threshold; the first one, infinity, accepts none.
    """

    thresholds: Array
    misses: Array
    false_alarms: Array


def errors(labels: ArrayLike, scores: ArrayLike) -> Errors:
    """Errors of a set of trials.

    Args:
        labels: of each trial, 1 for a target and 0 for another.
        scores: of each trial, higher for targets.

    Where one of the two kinds is missing its rate is NaN, and so is every figure made of it.

    Raises:
        ValueError: there are no trials, or a score is no number.
    """
    targets = np.asarray(labels, dtype=bool)
    values = np.asarray(scores, dtype=np.float64)
    if not len(values) or not np.isfinite(values).all():
        raise ValueError("error rates need one trial at least, and a finite score for each")
    order = np.argsort(-values)
    values, targets = values[order], targets[order]
    last = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)  # of each group of equal scores
    accepted = np.cumsum(targets)[last]
    with np.errstate(invalid="ignore"):
        misses = 1 - np.append(0, accepted) / np.float64(targets.sum())
        false_alarms = np.append(0, last + 1 - accepted) / np.float64(len(targets) - targets.sum())
    return Errors(np.append(np.inf, values[last]), misses, false_alarms)


def equal_error(curve: Errors) -> tuple[float, float]:
    """The equal error rate (0 to 1) and its threshold, straight lines drawn between the points of the curve."""
    gap = curve.misses - curve.false_alarms  # falls from 1 to -1
    if np.isnan(gap).any():
        return float("nan"), float("nan")
    right = int(np.argmax(gap <= 0))
    left = right - 1
    part = gap[left] / (gap[left] - gap[right])
    rate = curve.false_alarms[left] + part * (curve.false_alarms[right] - curve.false_alarms[left])
    if not np.isfinite(curve.thresholds[left]):
        return float(rate), float(curve.thresholds[right])
    return float(rate), float(curve.thresholds[left] + part * (curve.thresholds[right] - curve.thresholds[left]))


def min_dcf(curve: Errors, p_target: float = 0.01, c_miss: float = 1.0, c_false_alarm: float = 1.0) -> float:
    """The lowest detection cost over all thresholds, in units of the better of accepting all and rejecting all.

    As in NIST's speaker recognition evaluation plan of 2016, section 3.
    """
    costs = c_miss * p_target * curve.misses + c_false_alarm * (1 - p_target) * curve.false_alarms
    return float(np.min(costs) / min(c_miss * p_target, c_false_alarm * (1 - p_target)))


def det_points(curve: Errors) -> tuple[Array, Array]:
    """False alarms and misses as normal deviates, for the axes of a DET curve (Martin et al. 1997).

    Points at a rate of 0 or 1, which lie infinitely far out, are left out.
    """
    from scipy.special import ndtri

    inside = (curve.misses > 0) & (curve.misses < 1) & (curve.false_alarms > 0) & (curve.false_alarms < 1)
    return ndtri(curve.false_alarms[inside]), ndtri(curve.misses[inside])
