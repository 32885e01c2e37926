"""``run_downstream.py -d superb``: all tasks for one or more upstreams, as runs of the ordinary command, and a report."""

from __future__ import annotations

import argparse

NAME = "superb"

_OWN = ("tasks", "tier", "jobs", "launch", "slurm", "teacher", "report")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options that only a benchmark has."""
    add = parser.add_argument_group("with -d superb").add_argument
    add("--tasks", metavar="TASK,...", help="only these of the ten")
    add("--tier", metavar="TIER", help="mini, superb (the official protocol) or a YAML file; default: as the data is")
    add("--jobs", metavar="N", type=int, help="runs at a time on each GPU, or on the CPU (default 1)")
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
    raise ValueError("not yet")
