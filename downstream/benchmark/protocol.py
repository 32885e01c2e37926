"""Which cells of a task may be compared: those whose data and settings are the same, number precision aside."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .collect import Benchmark, Cell, flat

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
UNSTATED = "?"


@dataclass(frozen=True)
class Grouping:
    """The upstreams of a task by protocol.

    Attributes:
        groups: labels of each protocol, the most frequent first.
        unstated: labels whose run does not state its protocol; they are compared with nothing.
    """

    groups: tuple[tuple[str, ...], ...]
    unstated: tuple[str, ...]

    def mark(self, label: str) -> str:
        """A letter where there are several protocols, "?" where it is not stated, else nothing."""
        if label in self.unstated:
            return UNSTATED
        if len(self.groups) < 2:
            return ""
        return next((_LETTERS[i % 26] for i, group in enumerate(self.groups) if label in group), "")

    def alike(self, *labels: str) -> bool:
        """Whether figures of these may be compared."""
        return any(set(labels) <= set(group) for group in self.groups)


def group(benchmark: Benchmark, task: str) -> Grouping:
    """Upstreams that have figures of a task, by protocol."""
    found: dict[str, list[str]] = {}
    unstated = []
    for upstream in benchmark.upstreams:
        cell = upstream.cells[task]
        if cell.hole is None:
            if cell.protocol is None:
                unstated.append(upstream.label)
            else:
                found.setdefault(_key(cell), []).append(upstream.label)
    ordered = sorted(found.values(), key=len, reverse=True)
    return Grouping(tuple(tuple(labels) for labels in ordered), tuple(unstated))


def differences(benchmark: Benchmark, task: str) -> list[str]:
    """A line for each key in which the protocols of a task differ, and for what is not stated or merely noted."""
    grouping = group(benchmark, task)
    cells = {upstream.label: upstream.cells[task] for upstream in benchmark.upstreams}
    lines = []
    if len(grouping.groups) > 1:
        firsts = [flat(_compared(cells[labels[0]])) for labels in grouping.groups]
        lines.append("; ".join(f"{grouping.mark(labels[0])}: {', '.join(labels)}" for labels in grouping.groups))
        for key in sorted(set().union(*firsts)):
            values = [leaves.get(key, "absent") for leaves in firsts]
            if len(set(values)) > 1:
                told = ", ".join(f"{_LETTERS[i % 26]} {_short(value)}" for i, value in enumerate(values))
                lines.append(f"{key}: {told}")
    if grouping.unstated:
        lines.append(f"{UNSTATED}: not stated by the run of {', '.join(grouping.unstated)}, so compared with nothing")
    stated = {label: cells[label].setting("runner.precision") for labels in grouping.groups for label in labels}
    if len({json.dumps(value) for value in stated.values()}) > 1:
        told = ", ".join(f"{label} {value}" for label, value in stated.items())
        lines.append(f"runner.precision (noted; rows are compared all the same): {told}")
    return lines


def _compared(cell: Cell) -> dict[str, Any]:
    protocol = cell.protocol or {}
    settings = dict(protocol.get("settings") or {})
    runner = settings.get("runner")
    if isinstance(runner, Mapping):
        settings["runner"] = {key: value for key, value in runner.items() if key != "precision"}
    return {"hash of the data": protocol.get("data"), **settings}


def _key(cell: Cell) -> str:
    return json.dumps(flat(_compared(cell)), sort_keys=True)


def _short(value: str) -> str:
    return value if len(value) <= 40 else value[:39] + "…"
