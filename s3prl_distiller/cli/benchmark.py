"""``run_downstream.py -d superb``: all tasks for one or more upstreams, as runs of the ordinary command; a report."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import s3prl_distiller
from s3prl_distiller import checkpoint
from s3prl_distiller.data.config import cores
from s3prl_distiller.machine import visible_gpus

from .common import log_to
from .runs import choose_device, refuse_torchrun

log = logging.getLogger(__name__)

NAME = "superb"

_THREADS = "OMP_NUM_THREADS"

_OWN = ("tasks", "tier", "jobs", "launch", "slurm", "teacher", "report")
_NOT_FOR_IT = {
    "past_exp": "-e: it goes on by itself when the same command is given again",
    "config": "-c: settings of all tasks are a tier's, --tier FILE",
    "upstream_trainable": "-f: its upstreams are frozen",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options that only a benchmark has."""
    add = parser.add_argument_group("with -d superb").add_argument
    add("--tasks", metavar="TASK,...", help="only these of the ten")
    add("--tier", metavar="TIER", help="mini, superb (the official protocol) or a YAML file; default: as the data is")
    add("--jobs", metavar="N", type=int, help="runs at a time on each GPU (default: 1), or on the CPU (one a core)")
    add("--launch", choices=["local", "print", "slurm"], help="run here (default), print a command a run, or submit")
    add("--slurm", metavar="KEY=VALUE,...", help="of --launch slurm: partition, time, gpus, cpus, mem, account ...")
    add("--teacher", metavar="LABEL", help="the upstream that the others were distilled from, for the report")
    add("--report", action="store_true", help="only write the report from the runs that are there")


def refuse_options(args: argparse.Namespace) -> None:
    """Raises ValueError where an option of a benchmark was given to another task."""
    for name in _OWN:
        if getattr(args, name):
            raise ValueError(f"--{name} is for a benchmark: -d {NAME}")


def rates(text: str | None) -> list[float] | None:
    """The learning rates of ``1e-4,1e-3``; None where there are none.

    Raises:
        ValueError: one is no number.
    """
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--learning-rates {text} is no list of numbers, such as 1e-4,1e-3") from None


def main(args: argparse.Namespace) -> int:
    """The exit status: 0; 1 where a run failed; 130 after Ctrl-C, when the same command goes on."""
    refuse_torchrun()
    if args.mode != "train":
        raise ValueError(f"-d {NAME} trains and judges: leave out -m {args.mode}")
    for name, reason in _NOT_FOR_IT.items():
        if getattr(args, name):
            raise ValueError(f"a benchmark does not take {reason}")
    if args.jobs is not None and args.jobs < 1:
        raise ValueError(f"--jobs is {args.jobs}: it must be at least 1")
    if args.slurm and args.launch != "slurm":
        raise ValueError("--slurm is for --launch slurm")
    if args.expdir is None and args.expname is None:
        raise ValueError("give the benchmark a name with -n NAME (it goes to result/superb/NAME), or a folder with -p")
    folder = (args.expdir or Path("result") / NAME / args.expname).expanduser().absolute()
    if args.report:
        if _module("record").read(folder) is None:
            raise ValueError(f"{folder} holds no benchmark to report on")
        return 0 if _report(folder, show=True) else 1
    if args.launch == "print":
        return _print(args, folder)
    if args.launch == "slurm":
        return _submit(args, folder)
    return _run_here(args, folder)


def _prepare(args: argparse.Namespace, folder: Path) -> Any:
    if not args.data:
        raise ValueError("name the corpora: --data ROOT, or --data asr=PATH ks=PATH ...")
    benchmark = _module("plan").prepare(
        folder,
        upstreams=args.upstream or [],
        ckpt=args.upstream_ckpt,
        data=args.data,
        tasks=args.tasks,
        tier=args.tier,
        options=_options(args),
        overrides=args.override,
        teacher=args.teacher,
    )
    benchmark.options += [] if args.device is None else ["--device", args.device]
    return benchmark


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Settings that options stand for."""
    values = {
        "search.learning_rates": rates(args.learning_rates),
        "search.seeds": args.seeds,
        "upstream.feature": args.upstream_feature_selection,
        "upstream.layer": args.upstream_layer_selection,
        "upstream.normalize": args.upstream_feature_normalize or None,
        "features.keep": args.features or None,
        "runner.seed": args.seed,
    }
    return {key: value for key, value in values.items() if value is not None}


# -- doing it


def _run_here(args: argparse.Namespace, folder: Path) -> int:
    device = choose_device(args.device)
    launch = _module("launch")
    benchmark = _prepare(args, folder)
    gpus = visible_gpus(device)
    # Recurrent heads, which take longest, gain nothing from a second thread.
    at_once = args.jobs or (1 if gpus else max(1, min(cores(), len(benchmark.pending))))
    slots = _slots(device, gpus, at_once)
    if _THREADS in slots[0]:
        torch.set_num_threads(int(slots[0][_THREADS]))  # as each run will have
    log.info("Looking at the upstreams")
    costs = _module("estimate").look(benchmark, device)
    on = f"{len(gpus)} GPU{'s' * (len(gpus) > 1)}" if gpus else "the CPU"
    on += f" with {at_once} at a time{' on each' * (len(gpus) > 1)}" if at_once > 1 else ""
    _show(benchmark.table(costs, len(slots), on))
    if args.dry_run:
        return 0
    if device.type == "cuda":
        torch.cuda.empty_cache()
    with launch.alone(folder) as held:
        log_to(folder / "benchmark.log")
        _save(benchmark)
        stopped, failed = _work(benchmark, costs, slots, held)
        reported = _report(folder, show=True)
    for one in failed:
        log.error("%s failed: %s (%s)", one.job.name, one.reason, one.job.folder / launch.SAID)
    if stopped:
        log.info("Stopped. The same command goes on.")
        return 130
    return 1 if failed or not reported else 0


def _work(benchmark: Any, costs: dict[str, Any], slots: list[dict[str, str]], held: int) -> tuple[bool, list[Any]]:
    """Whether it was stopped, and what failed."""
    launch = _module("launch")
    # A measurement is of a machine that does nothing else.
    whole = {name: value for name, value in slots[0].items() if name != _THREADS}
    measuring = launch.Queue([whole], lambda job: log.info("%s: measuring", job.name), held=[held])
    for ended in measuring.run(_measurements(benchmark)):
        if ended.reason is not None:
            log.warning("%s was not measured: %s", ended.job.name, ended.reason)
    jobs = [_job(benchmark, run, costs) for run in benchmark.pending]
    progress = _Progress(benchmark.folder, len(jobs), {job.name: job.expected for job in jobs}, len(slots))
    queue = launch.Queue(slots, progress.begin, progress.end, [held], measuring.stopped)
    ended = queue.run(jobs)
    return queue.stopped is not None, [one for one in ended if one.reason is not None]


@dataclass
class _Progress:
    """Lines on what begins and ends, and a report that is as far as the runs are."""

    folder: Path
    total: int
    waiting: dict[str, float]
    slots: int
    ended: int = 0
    expected: float = 0.0
    taken: float = 0.0

    def begin(self, job: Any) -> None:
        log.info("%s: begins, about %s", job.name, _module("plan").in_words(job.expected))

    def end(self, ended: Any) -> None:
        self.ended += 1
        expected = self.waiting.pop(ended.job.name)
        said = f"failed: {ended.reason}" if ended.reason is not None else _figure(ended.job.result)
        if ended.reason is None:
            self.expected, self.taken = self.expected + expected, self.taken + ended.seconds
        left = _module("plan").wall_time(list(self.waiting.values()), self.slots)
        left *= self.taken / self.expected if self.expected else 1.0
        more = f", about {_module('plan').in_words(left)} left" if self.waiting else ""
        log.info("%d of %d: %s, %.0f s: %s%s", self.ended, self.total, ended.job.name, ended.seconds, said, more)
        _report(self.folder, show=False)


def _figure(path: Path) -> str:
    """The headline of a run."""
    summary = checkpoint.load_json(path)
    results = importlib.import_module("s3prl_distiller.downstream.core.results")
    return results.in_words(summary["metric"], summary["metrics"][summary["metric"]])


def _print(args: argparse.Namespace, folder: Path) -> int:
    """One command a run to stdout; they may run in any order, on any machine that sees the same folders."""
    benchmark = _prepare(args, folder)
    _module("estimate").look(benchmark, None)
    sys.stderr.write(benchmark.table({}, 1, ""))
    if args.dry_run:
        return 0
    _save(benchmark)
    for job in [*_measurements(benchmark), *(_job(benchmark, run, {}) for run in benchmark.pending)]:
        _show(shlex.join(job.command) + "\n")
    report = shlex.join([*_entry(), "-d", NAME, "-p", str(folder), "--report"])
    _show(f"# when all have ended, the report: {report}\n")
    return 0


def _submit(args: argparse.Namespace, folder: Path) -> int:
    slurm, launch = _module("slurm"), _module("launch")
    cluster, options = slurm.options(args.slurm, args.jobs)
    slurm.check()
    benchmark = _prepare(args, folder)
    _module("estimate").look(benchmark, None)
    _show(benchmark.table({}, 1, ""))
    if args.dry_run:
        return 0
    with launch.alone(folder):
        _save(benchmark)
        jobs = [*_measurements(benchmark), *(_job(benchmark, run, {}) for run in benchmark.pending)]
        ids = slurm.submit(jobs, folder / "slurm", cluster, options) if jobs else []
    for job, number in zip(jobs, ids, strict=True):
        _show(f"{number}  {job.name}\n")
    report = shlex.join([*_entry(), "-d", NAME, "-p", str(folder), "--report"])
    _show(f"{len(jobs)} jobs are submitted. What they say is in {folder / 'slurm'}. For the report: {report}\n")
    return 0


# -- commands and places


def _entry() -> list[str]:
    """The ordinary command, from any folder."""
    script = Path(s3prl_distiller.__file__).resolve().parents[1] / "run_downstream.py"
    return [sys.executable, *([str(script)] if script.is_file() else ["-m", "s3prl_distiller.cli.downstream"])]


def _job(benchmark: Any, run: Any, costs: dict[str, Any]) -> Any:
    command = [*_entry(), *run.arguments(), *benchmark.options]
    expected = costs[run.name].seconds if run.name in costs else 0.0
    return _module("launch").Job(run.name, command, run.folder, run.folder / _module("plan").RESULT, expected)


def _measurements(benchmark: Any) -> list[Any]:
    """What each upstream costs, where that is not known yet."""
    launch, cost, jobs = _module("launch"), _module("plan").COST, []
    for upstream in benchmark.upstreams:
        place, config = benchmark.folder / upstream.label, benchmark.runs[0].config.upstream
        ckpt = [] if upstream.ckpt is None else ["-k", upstream.ckpt]
        layer = [] if config.layer is None else ["-l", str(config.layer)]
        what = ["-m", "measure", "-u", upstream.name, *ckpt, "-s", config.feature, *layer, "-p", str(place)]
        command = [*_entry(), *what, *benchmark.options]
        if not (place / cost).is_file():
            jobs.append(launch.Job(upstream.label, command, place, place / cost))
    return jobs


def _slots(device: torch.device, gpus: list[str], jobs: int) -> list[dict[str, str]]:
    """What each run adds to its environment: a GPU, and its share of the cores."""
    # A device with a number is named by --device in the run itself.
    places = [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus] if device.index is None else [{}]
    slots = [dict(place) for _ in range(jobs) for place in places or [{}]]
    if len(slots) > 1 and _THREADS not in os.environ:
        for slot in slots:
            slot[_THREADS] = str(max(1, cores() // len(slots)))
    return slots


def _save(benchmark: Any) -> None:
    path = benchmark.folder / _module("record").FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save_json(benchmark.description, path)


def _report(folder: Path, show: bool) -> bool:
    """Write the report and show its main table; whether that worked. The results do not depend on it."""
    try:
        html, markdown = _module("report").write_report(folder)
        text = Path(markdown).read_text(encoding="utf-8")
    except (ImportError, *checkpoint.UNREADABLE) as error:
        log.warning(
            "The report could not be written (%s: %s); the results are in %s", type(error).__name__, error, folder
        )
        log.debug("the report", exc_info=True)
        return False
    if show:
        lines = text.splitlines()
        first = next((number for number, line in enumerate(lines) if line.startswith("|")), len(lines))
        after = next((number for number, line in enumerate(lines) if number > first and line[:1] != "|"), len(lines))
        _show("\n".join([*lines[first:after], "", f"The report is in {html}", ""]))
    return True


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _module(name: str) -> Any:
    """A module of downstream/benchmark, by name: a type checker finds the folder downstream/ only where it lies."""
    return importlib.import_module(f"s3prl_distiller.downstream.benchmark.{name}")
