"""Figures made of figures: SUPERB's score of a system, and what a student keeps of its teacher.

Intervals are by drawing: each figure is taken as normally distributed around its value, with the standard deviation
whose 95 % interval is as wide as the figure's own, and independent of all others. Figures of two upstreams on the same
test items in truth rise and fall together, so that intervals of a ratio come out too wide rather than too narrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .collect import Value
from .figures import TASKS
from .published import FBANK, SOTA, System, reference

DRAWS = 10_000
_SEED = 0


@dataclass(frozen=True)
class Score:
    """A figure with its 95 % interval where it has one; ``reason`` says why there is no value."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str = ""
    tasks: int = 0
    """of how many tasks it is the mean"""


@dataclass(frozen=True)
class Triple:
    """One figure of a student, of the baseline and of the teacher."""

    student: Value
    baseline: Value
    teacher: Value
    higher: bool


def superb_s(values: Mapping[str, float], baseline: System | None = None, best: System | None = None) -> float:
    """Mean over the ten tasks of 1000 (s - s_FBANK) / (s_SOTA - s_FBANK); slot filling first averages its two figures.

    Args:
        values: by column of ``published.csv``, all eleven.
        baseline: scores 0; by default the board's FBANK row.
        best: scores 1000; the SOTA row of 2021 by default.

    Raises:
        ValueError: a figure is missing.
    """
    columns = _columns()
    missing = [column for column in columns if column not in values]
    if missing:
        raise ValueError(f"superb_s needs all ten tasks: {', '.join(missing)} missing")
    zero, one = (baseline or reference(FBANK)).values, (best or reference(SOTA)).values
    return sum(
        weight * 1000 * (values[column] - zero[column]) / (one[column] - zero[column])
        for column, weight in columns.items()
    )


def measured_superb_s(values: Mapping[str, Value]) -> Score:
    """:func:`superb_s` of measured figures, with an interval where each of them has one."""
    centre = superb_s({column: value.value for column, value in values.items()})
    if not all(value.known for value in values.values()):
        return Score(centre, reason="a figure has no interval", tasks=len(TASKS))
    zero, one = reference(FBANK).values, reference(SOTA).values
    # A weighted sum of normal figures: its standard deviation needs no draws.
    slopes = {column: weight * 1000 / (one[column] - zero[column]) for column, weight in _columns().items()}
    spread = 1.96 * float(np.sqrt(sum((slope * values[column].sd) ** 2 for column, slope in slopes.items())))
    return Score(centre, centre - spread, centre + spread, tasks=len(TASKS))


def _columns() -> dict[str, float]:
    """What each column counts for; the sum is 1."""
    return {figure.published: 1 / len(task.figures) / len(TASKS) for task in TASKS.values() for figure in task.figures}


def undecided(triple: Triple) -> str:
    """Why a figure cannot say what a student keeps of its teacher; empty where it can.

    It can where the teacher is better than the baseline, and the two 95 % intervals are apart.
    """
    baseline, teacher = triple.baseline, triple.teacher
    if baseline.low is None or baseline.high is None or teacher.low is None or teacher.high is None:
        return "undecided: no intervals"
    if baseline.low <= teacher.high and teacher.low <= baseline.high:
        return "undecided: the intervals of teacher and baseline overlap"
    if (teacher.value > baseline.value) != triple.higher:
        return "undecided: the teacher is worse than the baseline"
    return ""


def retention(tasks: Mapping[str, Sequence[Triple] | str]) -> tuple[dict[str, Score], Score]:
    """What a student keeps of its teacher: (student - baseline) / (teacher - baseline), in percent.

    Args:
        tasks: by task the triples of its figures (their retentions are averaged), or why there are none.

    Returns:
        The score of each task, and of the mean over tasks that are decided.
    """
    scores: dict[str, Score] = {}
    kept: list[tuple[float, np.ndarray | None]] = []
    for index, (task, triples) in enumerate(tasks.items()):
        rng = np.random.default_rng((_SEED, index))  # no task's interval depends on what came of another
        reason = triples if isinstance(triples, str) else next(filter(None, map(undecided, triples)), "")
        if isinstance(triples, str) or reason:
            scores[task] = Score(None, reason=reason)
            continue
        value = float(np.mean([_ratio(t.student.value, t.baseline.value, t.teacher.value) for t in triples]))
        drawn = None
        if all(triple.student.known for triple in triples):
            drawn = np.mean([_ratio(*(_draw(v, rng) for v in (t.student, t.baseline, t.teacher))) for t in triples], 0)
        scores[task] = _score(value, drawn, 1)
        kept.append((value, drawn))
    if not kept:
        return scores, Score(None, reason="no task is decided")
    draws = [drawn for _, drawn in kept if drawn is not None]
    together = np.mean(draws, 0) if len(draws) == len(kept) else None
    return scores, _score(float(np.mean([value for value, _ in kept])), together, len(kept))


def _ratio(student, baseline, teacher):
    return 100 * (student - baseline) / (teacher - baseline)


def _draw(value: Value, rng: np.random.Generator) -> np.ndarray:
    return rng.normal(value.value, value.sd, DRAWS)


def _score(value: float, draws: np.ndarray | None, tasks: int) -> Score:
    if draws is None:
        return Score(value, reason="a figure of the student has no interval", tasks=tasks)
    low, high = np.percentile(draws, [2.5, 97.5])
    return Score(value, float(low), float(high), tasks=tasks)
