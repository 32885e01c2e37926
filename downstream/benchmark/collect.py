"""Read a benchmark folder, finished or not: what each run left, and why it left nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s3prl_distiller import checkpoint

from .figures import TASKS

FORMAT = "s3prl_distiller.superb"
_BAD = (KeyError, TypeError, ValueError, AttributeError, OSError)


@dataclass(frozen=True)
class Value:
    """A figure with its 95 % interval; ``seeds`` is 1 where the interval is a bootstrap over test items."""

    value: float
    low: float | None = None
    high: float | None = None
    seeds: int = 1
    folds: int = 0
    unit: str = ""

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return self.low is not None and self.high is not None

    @property
    def sd(self) -> float:
        """Of the normal distribution whose 95 % interval is as wide."""
        assert self.low is not None and self.high is not None, "no interval"
        return (self.high - self.low) / 3.92


@dataclass(frozen=True)
class Member:
    """A head of a search: its rate, its best figure on dev (None: it has none), whether it diverged."""

    rate: float
    seed: int
    best: float | None
    diverged: bool


@dataclass(frozen=True)
class Grid:
    """A search of the learning rate."""

    chosen: float
    metric: str
    higher: bool
    members: tuple[Member, ...]
    fold: str = ""

    @property
    def rates(self) -> list[float]:
        return sorted({member.rate for member in self.members})


@dataclass
class Cell:
    """One upstream on one task.

    Attributes:
        values: by figure; a figure that is undefined on this test set is not among them.
        further: by name, what else the run was judged by.
        hole: why there are no values; None where there are.
        short: the same in two or three words.
        protocol: what makes two cells comparable; None where the run does not state it.
        layers: shares of the layers in the weighted sum (mean over folds); empty where there are none.
        layer: the one layer that the task chose, where it chooses one.
    """

    values: dict[str, Value] = field(default_factory=dict)
    further: dict[str, Value] = field(default_factory=dict)
    hole: str | None = None
    short: str = ""
    command: str | None = None
    protocol: dict[str, Any] | None = None
    layers: list[float] = field(default_factory=list)
    layer: int | None = None
    grids: list[Grid] = field(default_factory=list)
    utterances: int | None = None
    left_out: int = 0
    notes: list[str] = field(default_factory=list)
    features: str | None = None
    seconds: float | None = None
    device: str | None = None
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        return (self.protocol or {}).get("settings") or {}

    def setting(self, key: str) -> Any:
        """A value of the settings by its dotted key; None where it is not stated."""
        value: Any = self.settings
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value


@dataclass(frozen=True)
class Cost:
    """Size and speed of an upstream, measured (``cost.json``, which see :class:`.cost.Cost` for)."""

    parameters: float
    macs: float
    real_time_factor: float
    memory: float | None
    bare: float | None
    """parameters without a student's prediction heads"""
    seconds: float
    batch: int
    device: str
    threads: int
    precision: str
    versions: dict[str, str]

    @property
    def conditions(self) -> tuple[Any, ...]:
        """Speed and memory may be compared where these are equal."""
        return self.seconds, self.batch, self.device, self.threads, self.precision


@dataclass
class Upstream:
    """A row: one upstream, what its runs left, and what it costs."""

    label: str
    name: str
    ckpt: str | None
    role: str
    cells: dict[str, Cell]
    cost: Cost | None
    no_cost: str = ""


@dataclass
class Benchmark:
    """A benchmark folder."""

    folder: Path
    tier: str
    data: str
    tasks: list[str]
    upstreams: list[Upstream]
    about: dict[str, Any]

    def of_role(self, role: str) -> Upstream | None:
        return next((upstream for upstream in self.upstreams if upstream.role == role), None)

    @property
    def students(self) -> list[Upstream]:
        return [upstream for upstream in self.upstreams if upstream.role == "student"]


def read(folder: Path) -> Benchmark:
    """Read everything that is there.

    A run that failed, has not been run or left a file that cannot be read is a cell with a reason in place of values.

    Raises:
        ValueError: there is no ``benchmark.json``, or it is damaged.
    """
    path = folder / "benchmark.json"
    if not path.is_file():
        raise ValueError(f"{folder} is no benchmark folder: it has no benchmark.json")
    about = checkpoint.load_json(path)
    if about.get("format") != FORMAT:
        raise ValueError(f"{path} says format {about.get('format')!r}, and not {FORMAT!r}: it is of something else")
    try:
        listed = [(str(one["label"]), str(one["name"]), one.get("ckpt")) for one in about["upstreams"]]
        tasks = [str(task) for task in about["tasks"]]
        roles = {about.get("baseline"): "baseline", about.get("teacher"): "teacher"}
    except _BAD as error:
        raise ValueError(f"{path} is damaged ({_say(error)}): start the benchmark again to have it rewritten") from None
    unknown = [task for task in tasks if task not in TASKS]
    if unknown:
        raise ValueError(f"{path} names a task {unknown[0]!r}: the tasks are {', '.join(TASKS)}")
    labels = [label for label, _, _ in listed]
    for label in labels:
        if Path(label).name != label or label in ("", ".", "..") or labels.count(label) > 1:
            raise ValueError(f"{path} has the label {label!r}: a label is the name of a folder, each once")
    upstreams = []
    for label, name, ckpt in listed:
        role = roles.get(label, "student" if about.get("teacher") else "")
        cells = {task: _cell(folder / label / task) for task in TASKS if task in tasks}
        cost, reason = _cost(folder / label / "cost.json")
        upstreams.append(Upstream(label, name, None if ckpt is None else str(ckpt), role, cells, cost, reason))
    order = {"baseline": 0, "teacher": 1}
    upstreams.sort(key=lambda upstream: order.get(upstream.role, 2))
    chosen = [task for task in TASKS if task in tasks]
    return Benchmark(folder, str(about.get("tier")), str(about.get("data")), chosen, upstreams, about)


def _cell(folder: Path) -> Cell:
    path, failed = folder / "metrics-test.json", folder / "failed.json"
    if path.is_file():
        try:
            return _measured(checkpoint.load_json(path), folder)
        except _BAD as error:
            reason = f"{folder.parent.name}/{folder.name}/{path.name} cannot be read: {_say(error)}"
            return Cell(hole=reason, short="unreadable")
    if failed.is_file():
        try:
            said = checkpoint.load_json(failed)
            command = said.get("command")
            return Cell(hole=str(said["reason"]), short="failed", command=None if command is None else str(command))
        except _BAD as error:
            return Cell(hole=f"failed, and failed.json cannot be read: {_say(error)}", short="failed")
    return Cell(hole="not run yet", short="not run yet")


def _measured(found: dict[str, Any], folder: Path) -> Cell:
    task = TASKS[folder.name]
    folds = [checkpoint.load_json(folder / str(fold) / "metrics-test.json") for fold in _folds(found, folder)]
    state = found.get("state") or {}
    grids = _grids(found.get("search"))
    cell = Cell(
        protocol=_protocol(found, folds),
        layers=_layers(found, folds),
        layer=int(state["layer"]) if isinstance(state.get("layer"), int) else None,
        grids=grids,
        utterances=None if found.get("utterances") is None else int(found["utterances"]),
        left_out=sum(int(count) for one in [found, *folds] for count in (one.get("left_out") or {}).values()),
        notes=[str(note) for note in found.get("notes") or []],
        features=None if found.get("features") is None else str(found["features"]),
        seconds=_number(found.get("seconds")),
        device=None if found.get("device") is None else str(found["device"]),
        versions=_versions(found),
    )
    if found.get("step") == 0:
        cell.notes.append("the head that was judged is the untrained one of step 0: no later one did better on dev")
    names = [figure.name for figure in task.figures]
    for name in dict.fromkeys([*names, *found["metrics"]]):
        one = found["metrics"][name]
        value = _number(one["value"])
        if value is not None:
            (cell.values if name in names else cell.further)[name] = _value(value, one, found)
    if not cell.values:
        cell.hole, cell.short = "the figure is undefined on this test set", "undefined"
    return cell


def _folds(found: Mapping[str, Any], folder: Path) -> list[str]:
    return [str(fold) for fold in found.get("folds") or [] if (folder / str(fold) / "metrics-test.json").is_file()]


def _value(value: float, one: Mapping[str, Any], found: Mapping[str, Any]) -> Value:
    """Low and high are None together."""
    low, high = _number(one.get("low")), _number(one.get("high"))
    if low is None or high is None:
        low = high = None
    seeds = 1
    if one.get("interval") == "seeds":
        search = found.get("search") or {}
        seeds = int((search.get("folds") or [search])[0].get("seeds") or len(one.get("each") or [0]))
    return Value(value, low, high, seeds, len(found.get("folds") or []), str(one.get("unit") or ""))


def _number(value: Any) -> float | None:
    """None stays None; what is no finite number is an error."""
    if value is None:
        return None
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is no finite number")
    return number


def _needed(value: Any) -> float:
    number = _number(value)
    if number is None:
        raise ValueError("a figure is null")
    return number


def _protocol(found: Mapping[str, Any], folds: list[dict[str, Any]]) -> dict[str, Any] | None:
    stated = found.get("protocol")
    if stated is None and folds and all(fold.get("protocol") for fold in folds):
        first = folds[0]["protocol"]
        stated = first | {"data": {str(i): fold["protocol"].get("data") for i, fold in enumerate(folds, 1)}}
    if stated is not None and not isinstance(stated, dict):
        raise ValueError("its protocol is no JSON object")
    return stated


def _layers(found: Mapping[str, Any], folds: list[dict[str, Any]]) -> list[float]:
    each = [[float(share) for share in one.get("layer_weights") or []] for one in [found, *folds]]
    each = [shares for shares in each if shares]
    if not each or len({len(shares) for shares in each}) > 1:
        return []
    return [sum(shares) / len(each) for shares in zip(*each, strict=True)]


def _grids(search: Any) -> list[Grid]:
    if not search:
        return []
    if "folds" in search:
        return [_grid(one, f"fold {number}") for number, one in enumerate(search["folds"], 1)]
    return [_grid(search, "")]


def _grid(search: Mapping[str, Any], fold: str) -> Grid:
    members = tuple(
        Member(float(one["lr"]), int(one["seed"]), _number(one.get("best")), bool(one.get("diverged")))
        for one in search["members"]
    )
    return Grid(float(search["chosen"]), str(search["metric"]), bool(search["higher_is_better"]), members, fold)


def _cost(path: Path) -> tuple[Cost | None, str]:
    if not path.is_file():
        return None, "not measured yet"
    try:
        found = checkpoint.load_json(path)
        return Cost(
            parameters=_needed(found["parameters"]),
            macs=_needed(found["macs_per_second"]),
            real_time_factor=_needed(found["real_time_factor"]),
            memory=_number(found.get("peak_memory")),
            bare=_number(found.get("parameters_without_heads")),
            seconds=_needed(found["seconds"]),
            batch=int(found["batch"]),
            device=str(found["device"]),
            threads=int(found["threads"]),
            precision=str(found["precision"]),
            versions=_versions(found),
        ), ""
    except _BAD as error:
        return None, f"{path.parent.name}/{path.name} cannot be read: {_say(error)}"


def _versions(found: Mapping[str, Any]) -> dict[str, str]:
    return {str(name): str(version) for name, version in (found.get("versions") or {}).items()}


def _say(error: BaseException) -> str:
    return f"it lacks {error.args[0]!r}" if isinstance(error, KeyError) and error.args else str(error).split("\n")[0]


def flat(tree: Any, prefix: str = "") -> dict[str, str]:
    """Leaves of nested dictionaries by dotted key, as JSON text."""
    if isinstance(tree, Mapping) and tree:
        leaves: dict[str, str] = {}
        for key, value in tree.items():
            leaves |= flat(value, f"{prefix}.{key}" if prefix else str(key))
        return leaves
    return {prefix: json.dumps(tree, ensure_ascii=False, sort_keys=True)}
