"""superb_s and retention against figures worked out by hand, published ones, and what must hold of any figures."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from s3prl_distiller.downstream.benchmark import published, scores, tiers
from s3prl_distiller.downstream.benchmark.collect import Value
from s3prl_distiller.downstream.benchmark.figures import TASKS
from s3prl_distiller.downstream.benchmark.scores import Triple

SYSTEMS = {system.name: system for system in published.systems()}
COLUMNS = [figure.published for task in TASKS.values() for figure in task.figures]


def value(centre: float, half: float = 0.5) -> Value:
    return Value(centre, centre - half, centre + half)


def triple(student: float, baseline: float, teacher: float, half: float = 0.5) -> Triple:
    return Triple(value(student, half), value(baseline, half), value(teacher, half), teacher > baseline)


# superb_s


def test_published_rows_have_sources_and_all_figures():
    assert len(SYSTEMS) == 15
    assert all(system.source and sorted(system.values) == sorted(COLUMNS) for system in SYSTEMS.values())
    assert SYSTEMS["HuBERT base"].parameters == 94.7e6
    assert SYSTEMS["HuBERT base"].values["asr_wer"] == 6.42
    assert SYSTEMS["FitHuBERT"].macs is None


def test_superb_s_is_the_boards():
    """The board itself says 941 and 717."""
    assert round(scores.superb_s(SYSTEMS["HuBERT base"].values)) == 941
    assert round(scores.superb_s(SYSTEMS["DistilHuBERT"].values)) == 717


def test_superb_s_of_published_rows_by_hand():
    """With the FBANK row of the paper: each task's score, worked out apart; slot filling's is a mean of two."""
    paper = SYSTEMS["FBANK (2021 paper)"]
    hubert = (976.05 + 856.85 + 995.91 + 1000 + 901.36 + 1000 + 941.31 + 995.32 + 913.08 + 916.23) / 10
    assert scores.superb_s(SYSTEMS["HuBERT base"].values, paper) == pytest.approx(hubert, abs=0.05)
    distil = (837.67 + 501.53 + 992.28 + 668.14 + 814.13 + 226.97 + 871.33 + 957.95 + 598.76 + 857.28) / 10
    assert scores.superb_s(SYSTEMS["DistilHuBERT"].values, paper) == pytest.approx(distil, abs=0.05)


def test_tasks_are_in_the_order_of_the_plan():
    assert tuple(TASKS) == tiers.TASKS


def test_superb_s_has_its_references_at_0_and_1000():
    assert scores.superb_s(SYSTEMS[published.FBANK].values) == pytest.approx(0, abs=1e-9)
    assert scores.superb_s(SYSTEMS[published.SOTA].values) == pytest.approx(1000)


def test_slot_filling_counts_as_one_task():
    zero = dict(SYSTEMS[published.FBANK].values)
    best = SYSTEMS[published.SOTA].values
    assert scores.superb_s(zero | {"sf_f1": best["sf_f1"]}) == pytest.approx(50)
    assert scores.superb_s(zero | {"sf_cer": best["sf_cer"]}) == pytest.approx(50)
    assert scores.superb_s(zero | {"asv_eer": best["asv_eer"]}) == pytest.approx(100)


def test_superb_s_needs_all_tasks():
    values = dict(SYSTEMS["HuBERT base"].values)
    del values["sd_der"]
    with pytest.raises(ValueError, match="all ten tasks: sd_der missing"):
        scores.superb_s(values)


@given(st.floats(0, 1), st.sampled_from(list(SYSTEMS)), st.sampled_from(list(SYSTEMS)))
def test_superb_s_of_a_mixture_is_the_mixture_of_scores(share: float, one: str, other: str):
    a, b = SYSTEMS[one].values, SYSTEMS[other].values
    mixed = scores.superb_s({key: share * a[key] + (1 - share) * b[key] for key in COLUMNS})
    assert mixed == pytest.approx(share * scores.superb_s(a) + (1 - share) * scores.superb_s(b), abs=1e-6)


def test_interval_of_superb_s_where_one_figure_alone_is_uncertain():
    values = {key: Value(v, v, v) for key, v in SYSTEMS["HuBERT base"].values.items()}
    exact = scores.measured_superb_s(values)
    assert (
        exact.value is not None and exact.low == pytest.approx(exact.value) and exact.high == pytest.approx(exact.low)
    )
    zero, best = SYSTEMS[published.FBANK].values["er_acc"], SYSTEMS[published.SOTA].values["er_acc"]
    found = scores.measured_superb_s(values | {"er_acc": Value(64.92, 62.92, 66.92)})
    assert found.low is not None and found.high is not None
    assert found.high - found.low == pytest.approx(4 * 100 / (best - zero))
    assert scores.measured_superb_s(values | {"er_acc": Value(64.92)}).low is None


# Retention


def test_retention_by_hand():
    """From 20 % to 80 %, the student at 65 %: three quarters of the way. Error rates run the other way."""
    each, mean = scores.retention({"ks": [triple(65, 20, 80)], "asr": [triple(20, 50, 10)]})
    assert each["ks"].value == pytest.approx(75)
    assert each["asr"].value == pytest.approx(75)
    assert mean.value == pytest.approx(75) and mean.tasks == 2


def test_interval_of_retention_where_only_the_student_is_uncertain():
    sure = Value(20.0, 20.0, 20.0), Value(80.0, 80.0, 80.0)
    each, mean = scores.retention({"ks": [Triple(value(65, 6), *sure, True)]})
    score = each["ks"]
    assert score.low is not None and score.high is not None
    # The half-width is 10 % of 60, so 10 points; draws leave 3 % of it.
    assert score.low == pytest.approx(65, abs=0.4) and score.high == pytest.approx(85, abs=0.4)
    assert (mean.low, mean.high) == (score.low, score.high)


def test_interval_of_retention_is_that_of_a_ratio():
    """Against the delta method, which is good where the teacher is many standard deviations from the baseline."""
    score = scores.retention({"ks": [triple(65, 20, 80, 2.0)]})[0]["ks"]
    assert score.low is not None and score.high is not None
    sd, rate = 2 / 1.96, 0.75
    expected = 100 * sd / 60 * math.sqrt(1 + (1 - rate) ** 2 + rate**2)
    assert (score.high - score.low) / 3.92 == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (triple(50, 20, 20.5), "overlap"),
        (Triple(value(50), value(30), value(20), True), "worse than the baseline"),
        (Triple(value(50), value(20), value(30), False), "worse than the baseline"),
        (Triple(value(50), Value(20), value(80), True), "no intervals"),
    ],
)
def test_what_says_nothing_is_undecided_and_not_in_the_mean(one: Triple, reason: str):
    each, mean = scores.retention({"ks": [triple(65, 20, 80)], "ic": [one], "sd": "no figure of student"})
    assert each["ic"].value is None and reason in each["ic"].reason
    assert each["sd"].reason == "no figure of student"
    assert mean.value == pytest.approx(75) and mean.tasks == 1


def test_task_of_two_figures_is_undecided_where_one_is():
    each, mean = scores.retention({"sf": [triple(65, 20, 80), triple(50, 20, 20.5)]})
    assert each["sf"].value is None and mean.value is None and mean.reason == "no task is decided"
    each, _ = scores.retention({"sf": [triple(65, 20, 80), triple(80, 20, 80)]})
    assert each["sf"].value == pytest.approx(87.5)


def test_intervals_are_the_same_each_time_and_depend_on_no_other_task():
    alone = scores.retention({"pr": "not run yet", "ks": [triple(65, 20, 80)]})[0]["ks"]
    beside = scores.retention({"pr": [triple(5, 80, 4)], "ks": [triple(65, 20, 80)]})[0]["ks"]
    assert alone == beside


number = st.floats(-100, 100)


@settings(max_examples=60, deadline=None)
@given(number, number, st.floats(5, 100), st.floats(0.1, 1), st.floats(0.01, 100), number)
def test_retention_is_the_same_in_any_unit(
    student: float, baseline: float, gap: float, half: float, scale: float, shift: float
):
    def moved(one: Value) -> Value:
        assert one.low is not None and one.high is not None
        return Value(scale * one.value + shift, scale * one.low + shift, scale * one.high + shift)

    first = triple(student, baseline, baseline + gap, half)
    second = Triple(moved(first.student), moved(first.baseline), moved(first.teacher), True)
    one, other = (scores.retention({"ks": [three]})[0]["ks"] for three in (first, second))
    for a, b in ((one.value, other.value), (one.low, other.low), (one.high, other.high)):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-3)


@settings(max_examples=60, deadline=None)
@given(number, st.floats(5, 100), st.booleans())
def test_teacher_keeps_all_and_baseline_nothing(baseline: float, gap: float, higher: bool):
    teacher = baseline + (gap if higher else -gap)
    for student, kept in ((teacher, 100), (baseline, 0)):
        score = scores.retention({"ks": [triple(student, baseline, teacher)]})[0]["ks"]
        assert score.value == pytest.approx(kept, abs=1e-6)
        assert score.low is not None and score.high is not None and score.low <= kept <= score.high
