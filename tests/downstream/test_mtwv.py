"""The maximum term-weighted value, against its definition tried at every threshold."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from s3prl_distiller.downstream.metrics.mtwv import beta, mtwv


def by_definition(scores: np.ndarray, labels: np.ndarray, weight: float) -> float:
    """Of (queries, documents), by NIST's formula at every threshold there is."""
    best = -math.inf
    for threshold in [*np.unique(scores), math.inf]:
        values = []
        for line, truth in zip(scores, labels, strict=True):
            if not truth.any():
                continue
            misses = np.mean(line[truth] < threshold)
            alarms = np.mean(line[~truth] >= threshold) if (~truth).any() else 0.0
            values.append(1 - misses - weight * alarms)
        best = max(best, float(np.mean(values)))
    return best


def flat(scores: np.ndarray, labels: np.ndarray) -> tuple:
    queries = np.repeat(np.arange(len(scores)), scores.shape[1])
    return queries, scores.shape[1], labels.ravel(), scores.ravel()


@st.composite
def tables(draw):
    queries, documents = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    labels = rng.random((queries, documents)) < draw(st.sampled_from([0.1, 0.5, 0.9]))
    labels[0, 0] = True
    scores = rng.normal(labels, draw(st.sampled_from([0.1, 1.0])))
    return (scores.round() if draw(st.booleans()) else scores), labels


@settings(max_examples=300, deadline=None)
@given(tables(), st.sampled_from([0.0, 0.3, 1.0, 12.4875]))
def test_equals_its_definition(table, weight):
    found = mtwv(*flat(*table), weight)
    assert found.value == pytest.approx(by_definition(*table, weight), abs=1e-9)
    # The threshold is where it is reached.
    scores, labels = table
    if math.isfinite(found.threshold):
        accepted = np.where(scores >= found.threshold, 1.0, 0.0)
        assert by_definition(accepted, labels, weight) == pytest.approx(found.value, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(tables(), st.integers(0, 1000))
def test_a_query_drawn_twice_counts_twice(table, seed):
    scores, labels = table
    drawn = np.random.default_rng(seed).integers(len(scores), size=len(scores))
    if not labels[drawn].any():
        return
    # As a bootstrap hands them over: the same query's trials several times, under its own name.
    queries = np.repeat(drawn, scores.shape[1])
    found = mtwv(queries, scores.shape[1], labels[drawn].ravel(), scores[drawn].ravel(), 1.3)
    assert found.value == pytest.approx(by_definition(scores[drawn], labels[drawn], 1.3), abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(tables(), st.integers(0, 5), st.integers(0, 20))
def test_what_was_not_searched(table, more_queries, more_documents):
    """As the scorer does it: a default score, below all others, for each trial that was not reported."""
    scores, labels = table
    whole = np.full((len(scores) + more_queries, scores.shape[1] + more_documents), -1e9)
    truth = np.zeros(whole.shape, dtype=bool)
    whole[: len(scores), : scores.shape[1]], truth[: len(scores), : scores.shape[1]] = scores, labels
    if whole.shape[1] > 1:
        truth[len(scores) :, -1] = True
    count = int(truth.any(axis=1).sum())
    found = mtwv(*flat(scores, labels), 2.0, count, whole.shape[1])
    # Accepting everything, default scores too, is the one threshold that the two do not share.
    assert found.value == pytest.approx(max(0.0, by_definition(whole, truth, 2.0)), abs=1e-9)


def test_perfect_and_hopeless():
    labels = np.array([[True, False], [False, True]])
    assert mtwv(*flat(np.where(labels, 1.0, 0.0), labels), 12.5).value == 1
    hopeless = mtwv(*flat(np.where(labels, 0.0, 1.0), labels), 12.5)
    assert hopeless.value == 0 and hopeless.threshold == math.inf


def test_queries_that_no_document_holds_do_not_count():
    scores, labels = np.array([[0.9, 0.1], [0.99, 0.98]]), np.array([[True, False], [False, False]])
    assert mtwv(*flat(scores, labels), 1.0).value == 1
    assert math.isnan(mtwv(*flat(scores, np.zeros((2, 2), dtype=bool)), 1.0).value)


def test_beta_of_the_scorer():
    """score-TWV-Cnxe.sh turns its costs into an effective prior, 0.0741289 in its README: the same thing."""
    assert beta() == pytest.approx(12.49, abs=1e-9)
    prior = 0.0741289
    assert beta() == pytest.approx((1 - prior) / prior, rel=1e-4)


def test_trials_that_are_not_complete():
    with pytest.raises(ValueError, match="every query scored against the same 3 documents"):
        mtwv([0, 0, 0, 1], 3, [1, 0, 0, 1], [0.1, 0.2, 0.3, 0.4], 1.0)
    with pytest.raises(ValueError, match="finite score"):
        mtwv([0, 0], 2, [1, 0], [0.1, float("nan")], 1.0)
