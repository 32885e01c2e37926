"""``s3prl-distiller import``: a student that somebody published, as a checkpoint of ours."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from s3prl_distiller import checkpoint

from .common import run_command
from .speech import speech

_RUN_BY = {"huggingface": "hf", "s3prl": "s3prl"}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="s3prl-distiller import",
        description="Take over a student from Hugging Face or s3prl, checked against what it gives there.",
    )
    add = p.add_argument
    add("source", metavar="SOURCE", help="a Hugging Face folder or id, s3prl's .ckpt, or any other student")
    add("-o", "--output", metavar="PATH", type=Path, required=True, help="NAME.ckpt (s3prl's form), or a folder (ours)")
    add("--force", action="store_true", help="write over what is there")
    add("--speech", metavar="PATH", nargs="+", type=Path, help="audio to check with (default: bundled speech)")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0; 2 where the source cannot be read or gives other numbers here."""
    args = parser().parse_args(arguments)
    return run_command(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    output: Path = args.output
    file = output.suffix == ".ckpt"
    if file and output.is_dir():
        raise ValueError(f"{output} is a folder: name a file (-o NAME.ckpt), or a folder that does not end in .ckpt")
    if file and output.exists() and not args.force:
        raise ValueError(f"{output} is there already: choose another name (-o), or write over it with --force")
    if not file:
        _module("export.save").check_folder(output, args.force)
    students = _module("student")
    student = students.read_student(args.source)
    text = _compared(student, args)
    step = student.step or 0
    if file:
        checkpoint.save_torch(students.s3prl_states(student.model, student.training, step), output)
    else:
        with _module("export.save").beside(output) as folder:
            for name, write in students.native_writers(student.model, student.training, step).items():
                write(folder / name)
    sys.stdout.write(f"{text}\nWritten to {output}\n")
    return 0


def _compared(student: Any, args: argparse.Namespace) -> str:
    """The parity report against what the source is run by elsewhere. Raises ValueError where numbers differ."""
    form = _RUN_BY.get(student.form)
    if form is None:
        return "The source is a checkpoint of ours: its weights are taken as they are.\n"
    parity, report, runners = (_module(f"export.{name}") for name in ("parity", "report", "runners"))
    padding = report.lets_padding_in(student.model.config)
    run = runners.open_runner(form, student.path)
    checks = parity.compare(student.model.eval(), form, run, speech(args.speech), judge_padding=not padding)
    if (problem := report.broken(checks, parity.FLOAT32)) is not None:
        raise ValueError(f"{args.source} gives other numbers here than where it comes from: {problem}")
    notes = [padding] if padding else []
    return report.page(f"{args.source}, here and where it comes from", checks, parity.FLOAT32, None, notes)


def _module(name: str) -> Any:
    """A module of upstream/distiller, by name: a type checker finds the folder only where it lies."""
    return importlib.import_module(f"s3prl_distiller.upstream.distiller.{name}")
