"""The report's fine print: learning rates that were tried, and the protocol of each task."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections import Counter
from dataclasses import dataclass, field

from .collect import Benchmark, Cell, Grid, Member
from .figures import TASKS
from .protocol import differences, group
from .tables import Line, Shown, rate


@dataclass
class Search:
    """The learning rates of one task.

    Attributes:
        metric: on dev, with its direction.
        rates: all that were tried, of any upstream.
        lines: one for each upstream (and fold), a cell for each rate.
        chosen: by upstream, as text.
        edges: by upstream, a warning where the choice is at the edge of its grid.
    """

    task: str
    metric: str = ""
    rates: list[str] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    chosen: dict[str, str] = field(default_factory=dict)
    edges: dict[str, str] = field(default_factory=dict)


def searches(benchmark: Benchmark) -> list[Search]:
    """One for each task that is in the benchmark, in SUPERB's order."""
    found = []
    for task in benchmark.tasks:
        cells = {upstream.label: upstream.cells[task] for upstream in benchmark.upstreams}
        grids = [grid for cell in cells.values() for grid in cell.grids]
        tried = sorted({one for grid in grids for one in grid.rates})
        search = Search(task, rates=[rate(one) for one in tried])
        if grids:
            search.metric = f"{grids[0].metric} on dev, {'higher' if grids[0].higher else 'lower'} is better"
        for label, cell in cells.items():
            search.chosen[label] = _chosen(task, cell)
            warnings = dict.fromkeys(filter(None, map(_edge, cell.grids)))
            if warnings:
                search.edges[label] = "; ".join(warnings)
            for grid in cell.grids:
                line = Line(f"{label}, {grid.fold}" if grid.fold else label)
                line.cells = [_tried([m for m in grid.members if m.rate == one], one == grid.chosen) for one in tried]
                search.lines.append(line)
        found.append(search)
    return found


def _chosen(task: str, cell: Cell) -> str:
    if cell.hole is not None:
        return cell.short
    if task == "qbe":
        return "nothing is trained"
    if cell.grids:
        counts = Counter(grid.chosen for grid in cell.grids)
        return ", ".join(rate(one) for one, _ in counts.most_common())
    single = cell.setting("optimizer.lr")
    return f"{rate(single)} (not searched)" if isinstance(single, int | float) and single > 0 else "not stated"


def _tried(members: list[Member], chosen: bool) -> Shown:
    if not members:
        return Shown("–", hole=True)
    values = [member.best for member in members if member.best is not None]
    lost = sum(member.diverged for member in members)
    if not values:
        return Shown("diverged" if lost else "none", best=chosen, hole=True)
    tag = f"{len(members)} seeds" if len(members) > 1 else ""
    if lost:
        # Its best figure is from before.
        tag = "diverged" if len(members) == 1 else f"{lost} of {len(members)} diverged"
    spread = f"{min(values):.2f} to {max(values):.2f}" if len(values) > 1 else ""
    return Shown(f"{sum(values) / len(values):.2f}", spread, tag, best=chosen)


def _edge(grid: Grid) -> str:
    rates = grid.rates
    if len(rates) < 2 or grid.chosen not in (rates[0], rates[-1]):
        return ""
    lowest = grid.chosen == rates[0]
    inner = rates[1] if lowest else rates[-2]
    where = f"the {'lowest' if lowest else 'highest'} rate tried"
    if _mean(grid, inner) == _mean(grid, grid.chosen):
        return f"{where}, though {rate(inner)} does as well on dev"
    return f"{where}: a {'lower' if lowest else 'higher'} one might do better"


def _mean(grid: Grid, one: float) -> float | None:
    values = [member.best for member in grid.members if member.rate == one and member.best is not None]
    return sum(values) / len(values) if values else None


PROTOCOL = ("Steps", "Batch", "Head and loss", "Optimiser", "Crops", "Features", "Precision", "Test items", "Data")


@dataclass
class TaskProtocol:
    """The protocol of one task: cells of :data:`PROTOCOL`, what differs between rows, and what to know."""

    task: str
    title: str
    cells: list[str]
    differences: list[str]
    notes: list[str]
    settings: str


def protocols(benchmark: Benchmark) -> list[TaskProtocol]:
    """Of each task; the settings are those of most rows."""
    found = []
    for task in benchmark.tasks:
        cells = {upstream.label: upstream.cells[task] for upstream in benchmark.upstreams}
        grouping = group(benchmark, task)
        done = [cell for cell in cells.values() if cell.hole is None]
        first = cells[grouping.groups[0][0]] if grouping.groups else (done or [Cell()])[0]
        notes: dict[str, list[str]] = {}
        for label, cell in cells.items():
            for note in [*cell.notes, *([cell.features] if cell.features else [])]:
                notes.setdefault(note, []).append(label)
        told = [note if len(who) == len(done) else f"{', '.join(who)}: {note}" for note, who in notes.items()]
        settings = json.dumps(first.protocol, indent=1, ensure_ascii=False, sort_keys=True) if first.protocol else ""
        columns = _columns(task, first, done)
        found.append(TaskProtocol(task, TASKS[task].title, columns, differences(benchmark, task), told, settings))
    return found


def head(task: str, cell: Cell) -> str:
    """What is trained, with the sizes that the run states, SUPERB's own where it states none."""
    text = TASKS[task].head
    for key, usual in re.findall(r"\{(\w+)=(\d+)\}", text):
        size = cell.setting(f"task.{key}")
        text = text.replace(f"{{{key}={usual}}}", usual if size is None else str(size))
    return text


def _columns(task: str, cell: Cell, done: list[Cell]) -> list[str]:
    trained = task != "qbe"
    say = cell.setting

    def stated(key: str) -> str:
        value = say(key)
        return "not stated" if value is None else f"{value:,}" if isinstance(value, int) else str(value)

    batch = stated("data.batch_size")
    accumulated = say("runner.gradient_accumulate_steps") or 1
    if accumulated != 1:
        batch += f" x {accumulated}"
    crops = say("data.crop_seconds")
    feature = stated("upstream.feature")
    if say("upstream.layer") is not None:
        feature += f", layer {say('upstream.layer')}"
    if say("upstream.normalize"):
        feature += ", normalised"
    precisions = {str(one.setting("runner.precision")) for one in done if one.setting("runner.precision")}
    hashes = (cell.protocol or {}).get("data")
    items = {f"{one.utterances:,}" for one in done if one.utterances is not None}
    return [
        stated("runner.total_steps") if trained else "none",
        batch if trained else "–",
        head(task, cell),
        stated("optimizer.name") if trained else "–",
        ("none" if crops is None else f"{crops} s in training") if cell.settings else "not stated",
        feature,
        ", ".join(sorted(precisions)) or "not stated",
        ", ".join(sorted(items)) or "–",
        _hashes(hashes),
    ]


def _hashes(found: object) -> str:
    if not isinstance(found, dict):
        return "not stated"
    if len(found) > 4:
        whole = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
        return f"{len(found)} splits, together {whole[:8]}"
    return " · ".join(f"{split} {str(one)[:8]}" for split, one in found.items())


def commands(benchmark: Benchmark) -> list[str]:
    """What to type to go on with this benchmark, or to repeat it."""
    given = benchmark.about.get("command")
    if isinstance(given, str):
        return [given]
    base = ["python", "run_downstream.py", "-d", "superb", "-n", benchmark.folder.resolve().name]
    base += ["--tier", benchmark.tier, "--data", *benchmark.data.split()]
    if len(benchmark.tasks) < len(TASKS):
        base += ["--tasks", ",".join(benchmark.tasks)]
    plain = [one for one in benchmark.upstreams if not one.ckpt]
    lines = [[word for one in plain for word in ("-u", f"{one.label}={one.name}")]] if plain else []
    # -k goes with one upstream.
    lines += [["-u", f"{one.label}={one.name}", "-k", one.ckpt] for one in benchmark.upstreams if one.ckpt]
    teacher = benchmark.of_role("teacher")
    if lines and teacher is not None:
        lines[-1] += ["--teacher", teacher.label]
    return [shlex.join(base + line) for line in lines]
