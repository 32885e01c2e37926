"""Equal error rate and detection cost, against scikit-learn and scipy, s3prl, and every threshold tried in turn."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from s3prl_distiller.downstream.metrics.verification import det_points, equal_error, errors, min_dcf
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from scipy.stats import norm
from sklearn.metrics import roc_curve

from s3prl_distiller.hub import load_hub


@st.composite
def trials(draw):
    """Both kinds, with ties as often as not."""
    count = draw(st.integers(2, 60))
    labels = [0, 1, *draw(st.lists(st.integers(0, 1), min_size=count, max_size=count))]
    values = st.integers(-4, 4).map(float) if draw(st.booleans()) else st.floats(-1, 1, width=32)
    scores = draw(st.lists(values, min_size=count + 2, max_size=count + 2))
    return labels, scores


@settings(max_examples=200, deadline=None)
@given(trials())
def test_equal_error_as_usually_computed(case):
    labels, scores = case
    false_alarms, hits, _ = roc_curve(labels, scores, drop_intermediate=False)
    expected = brentq(lambda x: 1.0 - x - interp1d(false_alarms, hits)(x), 0.0, 1.0)
    rate, threshold = equal_error(errors(labels, scores))
    assert rate == pytest.approx(expected, abs=1e-9)
    assert min(scores) <= threshold <= max(scores)


def test_equal_error_equals_s3prl():
    load_hub()
    from s3prl.downstream.sv_voxceleb1.utils import EER

    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 1800)
    scores = rng.normal(labels * 1.5, 1)
    rate, threshold = equal_error(errors(labels, scores))
    expected, where = EER(labels, scores)
    assert rate == pytest.approx(expected, abs=1e-9) and threshold == pytest.approx(float(where), abs=0.05)
    accepted = scores >= threshold
    assert abs((accepted & (labels == 0)).sum() / (labels == 0).sum() - rate) < 2e-3
    assert abs((~accepted & (labels == 1)).sum() / (labels == 1).sum() - rate) < 2e-3


@settings(max_examples=100, deadline=None)
@given(trials(), st.sampled_from([0.01, 0.05, 0.5, 0.9]), st.sampled_from([(1, 1), (10, 1), (1, 5)]))
def test_detection_cost_by_brute_force(case, p_target, prices):
    labels, scores = map(np.array, case)
    miss, false_alarm = prices
    costs = []
    for threshold in [-math.inf, *scores, math.inf]:
        misses = np.mean(scores[labels == 1] < threshold)
        alarms = np.mean(scores[labels == 0] >= threshold)
        costs.append(miss * p_target * misses + false_alarm * (1 - p_target) * alarms)
    expected = min(costs) / min(miss * p_target, false_alarm * (1 - p_target))
    assert min_dcf(errors(labels, scores), p_target, miss, false_alarm) == pytest.approx(expected, abs=1e-9)


def test_perfect_worst_and_blind():
    curve = errors([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9])
    assert equal_error(curve)[0] == 0 and min_dcf(curve) == 0
    assert equal_error(errors([0, 0, 1, 1], [0.8, 0.9, 0.1, 0.2]))[0] == 1
    blind = errors([0, 1, 0, 1], [0.5, 0.5, 0.5, 0.5])
    assert equal_error(blind)[0] == 0.5 and min_dcf(blind) == 1


@settings(max_examples=50, deadline=None)
@given(trials())
def test_only_the_order_of_scores_counts(case):
    labels, scores = case
    one, other = errors(labels, scores), errors(labels, 3 * np.argsort(np.argsort(np.unique(scores)))[_rank(scores)])
    assert equal_error(one)[0] == pytest.approx(equal_error(other)[0], abs=1e-12)
    assert min_dcf(one) == pytest.approx(min_dcf(other), abs=1e-12)


def _rank(scores):
    return np.unique(scores, return_inverse=True)[1]


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1]])
def test_one_kind_of_trials_has_no_figure(labels):
    curve = errors(labels, [0.1, 0.2, 0.3])
    assert math.isnan(equal_error(curve)[0]) and math.isnan(min_dcf(curve))


@pytest.mark.parametrize("scores", [[], [0.1, float("nan")]])
def test_no_scores(scores):
    with pytest.raises(ValueError, match="need one trial at least, and a finite score"):
        errors([0, 1][: len(scores)], scores)


def test_curve_of_normal_scores_is_a_straight_line():
    """Which is what the axes of a DET curve are for: its slope is the ratio of the deviations."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 200_000)
    scores = np.concatenate([rng.normal(0, 1, 200_000), rng.normal(2, 0.5, 200_000)])
    across, up = det_points(errors(labels, scores))
    inner = np.abs(across) < 2
    slope, offset = np.polyfit(across[inner], up[inner], 1)
    assert slope == pytest.approx(-2, abs=0.05) and offset == pytest.approx(-4, abs=0.05)
    assert np.isfinite(across).all() and norm.cdf(up).max() < 1
