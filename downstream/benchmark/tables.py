"""The report's tables of figures: main, further, published, cost, superb_s, retention, as text ready to be shown."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from . import published, scores
from .collect import Benchmark, Cost, Upstream, Value
from .figures import TASKS, Figure
from .official import deviation
from .protocol import UNSTATED, Grouping, group

MINUS = "−"


@dataclass
class Shown:
    """A cell of a table.

    Attributes:
        text: a figure, or in two or three words why there is none.
        detail: its interval.
        tag: what a reader must know of the interval, such as "3 seeds".
        mark: letter of its protocol.
        best: best among the rows of its protocol.
        hole: there is no figure.
        anchor: where a hole is explained.
    """

    text: str
    detail: str = ""
    tag: str = ""
    mark: str = ""
    best: bool = False
    hole: bool = False
    anchor: str = ""


@dataclass
class Line:
    """A row of a table: what is measured, and its cells."""

    label: str
    role: str = ""
    cells: list[Shown] = field(default_factory=list)


@dataclass(frozen=True)
class Column:
    """A column of the main table."""

    task: str
    title: str
    figure: Figure


def columns(benchmark: Benchmark) -> list[Column]:
    return [Column(task, TASKS[task].title, figure) for task in benchmark.tasks for figure in TASKS[task].figures]


def main(benchmark: Benchmark) -> list[Line]:
    """A row for each upstream, a cell for each column."""
    lines = [Line(one.label, one.role) for one in benchmark.upstreams]
    for column in columns(benchmark):
        grouping = group(benchmark, column.task)
        best = _best(benchmark, column, grouping)
        for line, upstream in zip(lines, benchmark.upstreams, strict=True):
            line.cells.append(_main_cell(upstream, column, grouping, best))
    return lines


def _main_cell(upstream: Upstream, column: Column, grouping: Grouping, best: set[str]) -> Shown:
    cell = upstream.cells[column.task]
    if cell.hole is not None:
        return Shown(cell.short, hole=True, anchor=anchor(upstream.label, column.task))
    value = cell.values.get(column.figure.name)
    if value is None:
        return Shown("undefined", hole=True)
    tags = [f"{value.seeds} seeds"] if value.seeds > 1 else []
    tags += [f"{value.folds} folds"] if value.folds else []
    detail, mark = interval(value.low, value.high), grouping.mark(upstream.label)
    return Shown(f"{value.value:.2f}", detail, ", ".join(tags), mark, best=upstream.label in best)


def _best(benchmark: Benchmark, column: Column, grouping: Grouping) -> set[str]:
    """Labels with the best figure of their protocol, where it has at least two rows to choose from."""
    best: set[str] = set()
    cells = {upstream.label: upstream.cells[column.task] for upstream in benchmark.upstreams}
    for labels in grouping.groups:
        found = {label: cells[label].values.get(column.figure.name) for label in labels}
        values = {label: value.value for label, value in found.items() if value is not None}
        if len(values) > 1:
            top = (max if column.figure.higher else min)(values.values())
            best |= {label for label, value in values.items() if value == top}
    return best


def further(benchmark: Benchmark) -> list[Line]:
    """What else the runs were judged by: a row for each figure, a cell for each upstream."""
    lines = []
    for task in benchmark.tasks:
        cells = [upstream.cells[task] for upstream in benchmark.upstreams]
        for name, unit in {name: value.unit for cell in cells for name, value in cell.further.items()}.items():
            values = [cell.further.get(name) for cell in cells]
            label = f"{task} {name.replace('_', ' ')}{f', {unit}' if unit else ''}"
            lines.append(Line(label, cells=[_further_cell(value) for value in values]))
    return lines


def _further_cell(value: Value | None) -> Shown:
    if value is None:
        return Shown("–", hole=True)
    digits = 2 if value.unit else 3
    return Shown(number(value.value, digits), interval(value.low, value.high, None if value.unit else digits))


def anchor(label: str, task: str) -> str:
    """An id that a page can have, whatever the label."""
    return f"hole-{task}-{label.encode().hex()}"


@dataclass(frozen=True)
class Hole:
    """Why a cell is empty, in full."""

    anchor: str
    label: str
    task: str
    reason: str
    command: str | None


def holes(benchmark: Benchmark) -> list[Hole]:
    return [
        Hole(anchor(upstream.label, task), upstream.label, task, cell.hole, cell.command)
        for upstream in benchmark.upstreams
        for task, cell in upstream.cells.items()
        if cell.hole is not None
    ]


def footnotes(benchmark: Benchmark) -> list[str]:
    """What the intervals and marks of the main table are."""
    values = [value for one in benchmark.upstreams for cell in one.cells.values() for value in cell.values.values()]
    lines = []
    if any(value.seeds == 1 for value in values):
        also = " where nothing else is said" if any(value.seeds > 1 for value in values) else ""
        lines.append(
            f"Intervals{also}: bootstrap over the test items (1,000 draws, one seed of training). They say how far a "
            "figure depends on which utterances are in the test set, not on the seed."
        )
    if any(value.seeds > 1 for value in values):
        lines.append(
            "“N seeds”: mean over N trainings of the head, and Student's t-interval of that mean; of few seeds it "
            "is wide and may pass 0 or 100 %."
        )
    if any(value.folds for value in values):
        lines.append("“N folds”: mean over the folds, each trained and judged in turn.")
    lines.append(
        "Bold: the best of a column, among rows of the same protocol only. Intervals may overlap all the same."
    )
    marks = {line.mark for row in main(benchmark) for line in row.cells}
    if marks & set("ABCDEFGHIJKLMNOPQRSTUVWXYZ"):
        lines.append(
            "Letters: the rows of that column were not run alike. Only those with the same letter may be compared; "
            "what differs is under “Protocol”."
        )
    if UNSTATED in marks:
        lines.append("“?”: the run does not state its protocol, so it is compared with nothing.")
    return lines


def others() -> list[Line]:
    """Published systems; the last two cells are parameters and the source."""
    lines = []
    for system in published.systems():
        cells = [Shown(f"{system.values[figure.published]:.2f}") for task in TASKS.values() for figure in task.figures]
        cells += [Shown(millions(system.parameters)), Shown(system.source)]
        lines.append(Line(system.name, "published", cells=cells))
    return lines


COST = ("Parameters", "GMAC per second of audio", "Real-time factor", "Peak memory")


def cost(benchmark: Benchmark) -> list[Line]:
    """Four cells a row, each with what it is against the teacher; one cell with a reason where nothing is measured."""
    teacher = benchmark.of_role("teacher")
    whole = teacher.cost if teacher is not None else None
    lines = []
    for one in benchmark.upstreams:
        line = Line(one.label, one.role)
        if one.cost is None:
            line.cells = [Shown(one.no_cost, hole=True)]
        else:
            line.cells = _cost(one.cost, whole if one.role == "student" else None)
        lines.append(line)
    return lines


def _cost(one: Cost, teacher: Cost | None) -> list[Shown]:
    alike = teacher is not None and teacher.conditions == one.conditions
    bare = f"{millions(one.bare)} without heads" if one.bare is not None and one.bare != one.parameters else ""
    faster = f"{1 / one.real_time_factor:,.0f} × real time" if one.real_time_factor > 0 else ""
    cells = [
        Shown(millions(one.parameters), _change(one.parameters, teacher and teacher.parameters), bare),
        Shown(f"{one.macs / 1e9:.2f}", _change(one.macs, teacher and teacher.macs)),
        Shown(significant(one.real_time_factor), faster),
        Shown("not measured" if one.memory is None else f"{one.memory / 2**20:,.0f} MiB"),
    ]
    if teacher is not None:
        if alike:
            cells[2].detail = _change(one.real_time_factor, teacher.real_time_factor)
            cells[2].tag = faster
            cells[3].detail = _change(one.memory, teacher.memory)
        else:
            cells[2].detail = cells[3].detail = "measured unlike the teacher"
    return cells


def conditions(benchmark: Benchmark) -> list[str]:
    """How each cost was measured; one line where all were alike."""
    told: dict[str, list[str]] = {}
    for one in benchmark.upstreams:
        if one.cost is not None:
            seconds, batch, device, threads, precision = one.cost.conditions
            text = f"batch {batch}, {seconds:g} s of audio, {device}, {threads} threads, {precision}"
            told.setdefault(text.replace(" 1 threads", " 1 thread"), []).append(one.label)
    return [text if len(told) == 1 else f"{', '.join(labels)}: {text}" for text, labels in told.items()]


def superb_s(benchmark: Benchmark) -> list[tuple[str, str, scores.Score]]:
    """(name, "published" or "measured", score), the best first; measured rows without a score last."""
    rows = [(s.name, "published", scores.Score(scores.superb_s(s.values))) for s in published.systems()]
    rows += [(one.label, "measured", measured_score(benchmark, one)) for one in benchmark.upstreams]
    return sorted(rows, key=lambda row: -math.inf if row[2].value is None else row[2].value, reverse=True)


def measured_score(benchmark: Benchmark, upstream: Upstream) -> scores.Score:
    """superb_s, for the official protocol and all ten tasks only."""
    if benchmark.tier != "superb":
        return scores.Score(None, reason="not comparable: other data")
    values: dict[str, Value] = {}
    for name, task in TASKS.items():
        cell = upstream.cells.get(name)
        if cell is None or cell.hole is not None or len(cell.values) < len(task.figures):
            return scores.Score(None, reason=f"not computed: no figure of {name}")
        if differs := deviation(name, cell):
            return scores.Score(None, reason=f"not comparable: not SUPERB's protocol in {name} ({differs})")
        values |= {figure.published: cell.values[figure.name] for figure in task.figures}
    return scores.measured_superb_s(values)


def deviations(benchmark: Benchmark) -> list[str]:
    """What of the runs of the official tier is not SUPERB's: a sentence for each task, nothing for other tiers."""
    if benchmark.tier != "superb":
        return []
    found: dict[str, str] = {}
    for upstream in benchmark.upstreams:
        for task, cell in upstream.cells.items():
            if cell.hole is None and (differs := deviation(task, cell)):
                found.setdefault(task, f"{task}: {differs}")
    return list(found.values())


def retention(benchmark: Benchmark) -> dict[str, tuple[dict[str, scores.Score], scores.Score]]:
    """By student: the score of each task, and their mean. Empty without teacher and baseline."""
    teacher, baseline = benchmark.of_role("teacher"), benchmark.of_role("baseline")
    if teacher is None or baseline is None:
        return {}
    return {
        student.label: scores.retention(
            {task: _triples(benchmark, task, student, baseline, teacher) for task in benchmark.tasks}
        )
        for student in benchmark.students
    }


def _triples(
    benchmark: Benchmark, task: str, student: Upstream, baseline: Upstream, teacher: Upstream
) -> list[scores.Triple] | str:
    three = (student, baseline, teacher)
    for upstream in three:
        if upstream.cells[task].hole is not None:
            return f"no figure of {upstream.label}"
    if not group(benchmark, task).alike(*(upstream.label for upstream in three)):
        return "other protocol"
    triples = []
    for figure in TASKS[task].figures:
        for upstream in three:
            if figure.name not in upstream.cells[task].values:
                return f"no {figure.label} of {upstream.label}"
        triples.append(
            scores.Triple(*(upstream.cells[task].values[figure.name] for upstream in three), higher=figure.higher)
        )
    return triples


def interval(low: float | None, high: float | None, digits: int | None = None) -> str:
    """``[93.8, 97.1]``: one decimal where the interval is wide, two where it is narrow."""
    if low is None or high is None:
        return ""
    digits = (1 if high - low >= 2 else 2) if digits is None else digits
    return f"[{number(low, digits)}, {number(high, digits)}]"


def number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".replace("-", MINUS)


def millions(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value / 1e6:.2f} M" if value else "0"


def significant(value: float) -> str:
    """Three significant digits, without an exponent down to 0.0001."""
    return f"{value:.3g}"


def rate(value: float) -> str:
    """A learning rate: ``1e-3``, ``3e-4``."""
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _change(value: float | None, whole: float | None) -> str:
    if value is None or not whole:
        return ""
    change = 100 * (value / whole - 1)
    return f"{MINUS if change < 0 else '+'}{abs(change):.0f} %"
