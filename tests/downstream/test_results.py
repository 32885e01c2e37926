"""Figures and their intervals against scipy's bootstrap, and what is written of them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from s3prl_distiller.downstream.core import results
from scipy import stats

Row = dict[str, Any]


def mean(rows: Sequence[Row]) -> dict[str, float]:
    return {"mean": float(np.mean([row["value"] for row in rows]))}


def rows_of(values: Sequence[float], **more: Sequence[Any]) -> list[Row]:
    return [
        {"id": str(i), "value": float(value), **{key: some[i] for key, some in more.items()}}
        for i, value in enumerate(values)
    ]


def measured(score: Callable[[Sequence[Row]], dict[str, float]], *more: Any) -> results.Figures:
    """``results.measure`` with what a task's ``scorer`` is unless the task has its own."""
    return results.measure(lambda rows: lambda drawn: score([rows[place] for place in drawn]), *more)


@pytest.mark.parametrize("draw", ["normal", "exponential", "coin"])
def test_interval_is_scipys_percentile_interval(draw: str) -> None:
    rng = np.random.default_rng(1)
    values = {
        "normal": rng.normal(5, 2, 150),
        "exponential": rng.exponential(3, 80),
        "coin": 100.0 * (rng.random(200) < 0.8),
    }[draw]
    figure = measured(mean, [rows_of(values)], None, {"mean": "%"})["mean"]
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", random_state=np.random.default_rng(2)
    )
    assert figure["value"] == pytest.approx(values.mean(), abs=1e-4) and figure["unit"] == "%"
    # 1,000 draws place the ends of the interval to about an eighth of a standard error.
    noise = 0.35 * float(theirs.standard_error)
    assert figure["low"] == pytest.approx(float(theirs.confidence_interval.low), abs=noise)
    assert figure["high"] == pytest.approx(float(theirs.confidence_interval.high), abs=noise)


def test_a_ratio_is_drawn_with_its_denominator() -> None:
    """An error rate is the sum of errors over the sum of words, not the mean of rates."""
    rng = np.random.default_rng(3)
    words = rng.integers(1, 40, 120)
    errors = rng.binomial(words, 0.2)

    def rate(rows: Sequence[Row]) -> dict[str, float]:
        return {"wer": 100 * sum(row["value"] for row in rows) / sum(row["words"] for row in rows)}

    figure = measured(rate, [rows_of(errors, words=words.tolist())], None, {})["wer"]
    theirs = stats.bootstrap(
        (errors, words),
        lambda e, w, axis=-1: 100 * e.sum(axis) / w.sum(axis),
        paired=True,
        n_resamples=20_000,
        method="percentile",
        random_state=np.random.default_rng(4),
    )
    noise = 0.35 * float(theirs.standard_error)
    assert figure["value"] == pytest.approx(100 * errors.sum() / words.sum(), abs=1e-4)
    assert figure["low"] == pytest.approx(float(theirs.confidence_interval.low), abs=noise)
    assert figure["high"] == pytest.approx(float(theirs.confidence_interval.high), abs=noise)


def test_rows_of_a_group_are_drawn_together() -> None:
    """Groups are drawn as often as there are groups, each with all of its rows."""
    names = ["a"] * 5 + ["b"] * 2 + ["c"] * 1 + ["d"] * 7
    sizes = Counter(names)
    seen: list[Counter[str]] = []

    def score(rows: Sequence[Row]) -> dict[str, float]:
        ids = Counter(row["id"] for row in rows)
        for row in rows:
            assert ids[row["id"]] == ids[next(r["id"] for r in rows if r["speaker"] == row["speaker"])]
        seen.append(Counter(row["speaker"] for row in rows))
        return mean(rows)

    measured(score, [rows_of(range(15), speaker=names)], "speaker", {})
    assert len(seen) == 1001 and seen[0] == sizes
    drawn = [{name: count // sizes[name] for name, count in one.items()} for one in seen[1:]]
    assert all(count % sizes[name] == 0 for one in seen for name, count in one.items())
    assert all(sum(one.values()) == 4 for one in drawn)
    # Each group as likely as the others, whatever its size: 1,000 on average, 27 the standard deviation.
    totals = Counter[str]()
    for one in drawn:
        totals.update(one)
    assert all(abs(total - 1000) < 140 for total in totals.values()) and len(totals) == 4


def test_groups_of_like_rows_widen_the_interval() -> None:
    """Ten utterances of a speaker who is always right or always wrong say no more than one."""
    rng = np.random.default_rng(5)
    speakers = 100.0 * (rng.random(40) < 0.5)
    rows = rows_of(np.repeat(speakers, 10), speaker=np.repeat(np.arange(40), 10).tolist())
    alone, together = (measured(mean, [rows], by, {})["mean"] for by in (None, "speaker"))
    theirs = stats.bootstrap((speakers,), np.mean, n_resamples=20_000, method="percentile", random_state=6)
    noise = 0.35 * float(theirs.standard_error)
    assert together["low"] == pytest.approx(float(theirs.confidence_interval.low), abs=noise)
    assert together["high"] == pytest.approx(float(theirs.confidence_interval.high), abs=noise)
    ratio = (together["high"] - together["low"]) / (alone["high"] - alone["low"])
    assert ratio == pytest.approx(math.sqrt(10), rel=0.25)


def test_the_same_figures_each_time() -> None:
    rows = rows_of(np.random.default_rng(7).normal(size=30))
    assert measured(mean, [rows], None, {}) == measured(mean, [rows], None, {})


def test_folds() -> None:
    """The mean of the folds' figures, their standard deviation, and each; drawn within each fold."""
    rng = np.random.default_rng(8)
    folds = [rng.normal(centre, 1, 50) for centre in (60, 70, 65, 90)]
    figure = measured(mean, [rows_of(fold) for fold in folds], None, {"mean": "%"})["mean"]
    means = [fold.mean() for fold in folds]
    assert figure["value"] == pytest.approx(np.mean(means), abs=1e-4)
    assert figure["spread"] == pytest.approx(stats.tstd(means), abs=1e-4)
    assert figure["each"] == pytest.approx(means, abs=1e-4)
    # Not the differences between folds: the interval is that of a mean of 200 values of deviation 1.
    assert figure["high"] - figure["low"] == pytest.approx(2 * 1.96 / math.sqrt(200), rel=0.2)
    assert "spread over 4 folds" in results.in_words("mean", figure)
    assert "spread" not in measured(mean, [rows_of(folds[0])], None, {})["mean"]


def test_what_is_no_number_is_null(tmp_path: Any) -> None:
    def never(rows: Sequence[Row]) -> dict[str, float]:
        return {"never": math.nan, **mean(rows)}

    figures = measured(never, [rows_of([1, 2, 3])], None, {})
    assert figures["never"] == {"value": None, "low": None, "high": None, "unit": "", "interval": "bootstrap"}
    assert figures["mean"]["value"] == 2 and json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert results.in_words("never", figures["never"]) == "never is undefined here"

    # A draw without any row that counts is left out of the interval, which is that of the others.
    def sometimes(rows: Sequence[Row]) -> dict[str, float]:
        counted = [row["value"] for row in rows if row["value"] > 0]
        return {"sometimes": float(np.mean(counted)) if counted else math.nan}

    figure = measured(sometimes, [rows_of([0, 0, 4])], None, {})["sometimes"]
    assert (figure["value"], figure["low"], figure["high"]) == (4, 4, 4)


def test_one_row_has_an_interval_of_no_width() -> None:
    figure = measured(mean, [rows_of([7])], None, {})["mean"]
    assert (figure["value"], figure["low"], figure["high"]) == (7, 7, 7)


def test_rows_come_back_as_they_were(tmp_path: Any) -> None:
    rows = [
        {"id": "a\u2028b", "prediction": "ação\u0085 日本\n語", "score": 0.1, "turns": [[0.5, 1.0, "é"]], "none": None},
        {"id": "c", "reference": {"action": "on"}, "label": 1},
    ]
    results.write_rows(rows, tmp_path / "rows.jsonl")
    assert results.read_rows(tmp_path / "rows.jsonl") == rows
    results.write_rows([], tmp_path / "none.jsonl")
    assert results.read_rows(tmp_path / "none.jsonl") == []
