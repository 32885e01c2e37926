"""The plan of a benchmark: which runs there are, what each is told, how far each is, what is still to be done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from s3prl_distiller import checkpoint, settings
from s3prl_distiller.engine import newest_checkpoint

from ..core import run as core
from ..core.config import DownstreamConfig
from ..core.s3prl_names import TASKS as NAMES
from . import record
from .launch import FAILED
from .places import Corpus, read_corpora, read_places, usual_tier
from .tiers import TASKS, Flat, Tier, absolute_paths, as_override, load_config, load_tier, read_overrides
from .upstreams import Upstream, check_upstreams, read_upstreams

RESULT = "metrics-test.json"
COST = "cost.json"

DONE, BEGUN, NEW, AGAIN = "done", "go on", "new", "failed before: try again"


@dataclass(frozen=True)
class Run:
    """One task on one upstream.

    Attributes:
        folder: of the run.
        data: of the corpus.
        values: settings over the task's own.
        config: all of them, with upstream and data.
        status: one of ``DONE``, ``BEGUN``, ``NEW``, ``AGAIN``.
    """

    upstream: Upstream
    task: str
    folder: Path
    data: Path
    values: Flat
    config: DownstreamConfig
    status: str

    @property
    def name(self) -> str:
        return f"{self.upstream.label} {self.task}"

    @property
    def heads(self) -> int:
        """How many are trained side by side."""
        if not core.task_class(self.task).trained:
            return 0
        return max(1, len(self.config.search.learning_rates)) * self.config.search.seeds

    def arguments(self) -> list[str]:
        """Of the ordinary command that does it, or goes on with it."""
        ckpt = [] if self.upstream.ckpt is None else ["-k", self.upstream.ckpt]
        fixed = ["-d", self.task, "-u", self.upstream.name, *ckpt, "-p", str(self.folder), "-a"]
        overrides = ["-o", as_override(self.values)] if self.values else []
        return [*fixed, "--data", str(self.data), *overrides]


def read_tasks(text: str | None) -> list[str]:
    """Tasks of ``--tasks``, in SUPERB's order; all ten by default.

    Raises:
        ValueError: one is not known.
    """
    if text is None:
        return list(TASKS)
    asked = {name: NAMES.get(name, name) for name in (part.strip() for part in text.split(",")) if name}
    if unknown := [name for name, task in asked.items() if task not in TASKS]:
        raise ValueError(f"--tasks: there is no task {', '.join(unknown)}: choose from {', '.join(TASKS)}")
    if not asked:
        raise ValueError(f"--tasks names no task: choose from {', '.join(TASKS)}")
    return [task for task in TASKS if task in asked.values()]


def values_of(tier: Tier, tasks: Sequence[str], options: Flat, overrides: Sequence[str]) -> dict[str, Flat]:
    """By task, all settings over the task's own: the tier's, then those of options, then ``-o``.

    Raises:
        ValueError: a text of ``-o`` is malformed.
    """
    own = read_overrides(overrides)
    found = {}
    for task in tasks:
        trained = core.task_class(task).trained
        asked = {key: value for key, value in options.items() if trained or not key.startswith("search.")}
        found[task] = absolute_paths({**tier.of(task), **asked, **own["all"], **own[task]})
    return found


def status(folder: Path) -> str:
    """How far the run in a folder is."""
    if (folder / RESULT).is_file():
        return DONE
    if (folder / FAILED).is_file():
        return AGAIN
    return BEGUN if newest_checkpoint(folder) is not None or any(folder.glob("fold*/")) else NEW


def check_same(run: Run) -> None:
    """Raises ValueError where the run that is there was made with other settings; it says which."""
    path = run.folder / "config.yaml"
    if run.status != DONE or not path.is_file():
        return
    saved = core.load_config(run.task, [path], {}, [])
    for key, value in settings.differences(run.config, saved):
        if not record.FREE.fullmatch(key):
            raise ValueError(
                f"{run.folder} was made with {key}={value}, and this command asks for another: give the benchmark "
                "another name (-n)"
            )


def fingerprint_of(folder: Path) -> str | None:
    """Of the upstream that a run was made on, or whose cost was measured; None where nothing was made yet."""
    if (folder / COST).is_file():
        return checkpoint.load_json(folder / COST).get("fingerprint")
    for place in (folder, *sorted(folder.glob("fold*/"))):
        newest = newest_checkpoint(place)
        path = place / RESULT
        if not path.is_file() and newest is not None:
            path = newest / checkpoint.CONFIG
        if path.is_file():
            return checkpoint.load_json(path).get("upstream", {}).get("fingerprint")
    return None


@dataclass
class Cost:
    """What a run takes: seconds, and bytes of features that no earlier run of the same upstream keeps."""

    seconds: float
    disk: int


@dataclass
class Benchmark:
    """What a command asks for.

    Attributes:
        description: what ``benchmark.json`` is to say.
        corpora: by task.
        options: of every command, beside its own.
    """

    folder: Path
    runs: list[Run]
    upstreams: list[Upstream]
    description: dict[str, Any]
    corpora: dict[str, Corpus]
    options: list[str] = field(default_factory=list)

    @property
    def pending(self) -> list[Run]:
        return [run for run in self.runs if run.status != DONE]

    def table(self, costs: Mapping[str, Cost], slots: int, devices: str) -> str:
        """The plan as people read it.

        Args:
            costs: by name of a run; empty: nothing is said of time and disk.
            slots: how many runs there are at a time.
            devices: on what, in words.
        """
        rows: list[tuple[str, ...]] = [("upstream", "task", "status", "steps", "heads", "minutes", "disk")]
        for run in self.runs:
            folds, steps = self.corpora[run.task].folds, str(run.config.runner.total_steps)
            what = ("-", "-") if not run.heads else (f"{folds} x {steps}" if folds > 1 else steps, str(run.heads))
            cost = costs.get(run.name)
            spent = ("", "") if cost is None else (f"{cost.seconds / 60:.1f}", f"{cost.disk / 1e9:.2f} GB")
            rows.append((run.upstream.label, run.task, run.status, *what, *spent))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        text = []
        for row in rows:
            cells = zip(row, widths, strict=True)
            text.append("  ".join(c.ljust(w) if at < 3 else c.rjust(w) for at, (c, w) in enumerate(cells)).rstrip())
        text.append(f"Tier {self.description['tier']}: {len(self.pending)} of {len(self.runs)} runs to do.")
        if costs:
            seconds = [cost.seconds for cost in costs.values()]
            text.append(
                f"Estimate, from a moment of each upstream and head: {in_words(sum(seconds))} of runs, "
                f"{in_words(wall_time(seconds, slots))} on {devices}, "
                f"{sum(cost.disk for cost in costs.values()) / 1e9:.1f} GB for features."
            )
        return "\n".join(text) + "\n"


def prepare(
    folder: Path,
    *,
    upstreams: Sequence[str],
    ckpt: str | None,
    data: Sequence[str],
    tasks: str | None,
    tier: str | None,
    options: Flat,
    overrides: Sequence[str],
    teacher: str | None,
) -> Benchmark:
    """Read what was asked for and check whatever can be wrong before any time is spent. Writes nothing.

    Args:
        folder: of the benchmark.
        upstreams, ckpt, data, tasks, tier, overrides, teacher: texts of the command line.
        options: settings that other options stand for.

    Raises:
        ValueError: an upstream, a corpus, a task or a setting is wrong, or the folder holds another benchmark.
    """
    before = record.read(folder)
    named = read_upstreams(upstreams, ckpt, record.upstreams_of(before))
    check_upstreams(named)
    asked = read_tasks(tasks)
    places = read_places(data)
    paths = {task: place for task in asked if (place := places.of(task)) is not None}
    if lacking := [task for task in asked if task not in paths]:
        raise ValueError(
            f"--data names no corpus for {', '.join(lacking)}: add a root or {lacking[0]}=PATH, or leave them out with "
            "--tasks"
        )
    chosen = load_tier(tier or usual_tier(list(paths.values())))
    values = values_of(chosen, asked, options, overrides)
    configs = {task: load_config(task, chosen, values[task], paths[task]) for task in asked}
    corpora = read_corpora(configs)
    said = " ".join(str(Path(text).resolve()) if Path(text).exists() else text for text in data)
    description = record.join(before, record.describe(chosen, said, named, values, paths), teacher, folder)
    runs = []
    for upstream in named:
        for task in asked:
            place = folder / upstream.label / task
            own = replace(configs[task].upstream, name=upstream.name, ckpt=upstream.ckpt)
            config = replace(configs[task], upstream=own)
            run = Run(upstream, task, place, paths[task], values[task], config, status(place))
            check_same(run)
            runs.append(run)
    return Benchmark(folder, runs, named, description, corpora)


def wall_time(seconds: Sequence[float], slots: int) -> float:
    """Until the last of some runs has ended, the longest begun first, so many at a time."""
    ends = [0.0] * max(1, slots)
    for one in sorted(seconds, reverse=True):
        ends[ends.index(min(ends))] += one
    return max(ends)


def in_words(seconds: float) -> str:
    """Such as ``40 s`` or ``3.5 minutes``."""
    minutes = seconds / 60
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes:.1f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"
