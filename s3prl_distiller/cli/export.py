"""``s3prl-distiller export``: a student in the form in which others use it."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .common import run_command
from .speech import speech, speech_files


def parser() -> argparse.ArgumentParser:
    forms = _module("forms").FORMS
    p = argparse.ArgumentParser(
        prog="s3prl-distiller export",
        description="Write a student in another form, checked against the student itself.",
        epilog="\n".join(["forms:", *(f"  {name:<14}{words}" for name, words in forms.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = p.add_argument
    add(
        "student",
        metavar="CKPT",
        nargs="?",
        help="a states-STEP.ckpt, the folder of a run, or any other student; with --with-head by default the run's own",
    )
    add("--to", metavar="FORM", required=True, help=", ".join(forms))
    add("-o", "--output", metavar="DIR", type=Path, required=True, help="a folder for the files and the parity report")
    add("--force", action="store_true", help="write over files that are there")
    add(
        "--no-predictions",
        action="store_true",
        help="leave out the prediction heads, which downstream tasks do not use",
    )
    add(
        "--with-head", metavar="RUN", type=Path, help="a run of run_downstream.py: from waveform to answer in one model"
    )
    add("--model-type", metavar="TYPE", help="with --to hf: hubert (default) or wav2vec2")
    add("--speech", metavar="PATH", nargs="+", type=Path, help="audio to check with (default: bundled speech)")
    add("--no-costs", action="store_true", help="do not measure speed and memory")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0; 2 where the student cannot be had in that form, or does not keep its numbers."""
    args = parser().parse_args(arguments)
    return run_command(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    save, forms = _module("save"), _module("forms")
    save.check_folder(args.output, args.force)
    if args.with_head is not None:
        return _with_head(args)
    if args.student is None:
        raise ValueError("name the student: s3prl-distiller export CKPT ..., or a run with a head: --with-head RUN")
    student = _module("student", "").read_student(args.student)
    options = forms.Options(not args.no_predictions, args.model_type, not args.no_costs)
    forms.check(student, args.to, options)
    sys.stdout.write(save.export(student, args.to, args.output, speech(args.speech), options))
    sys.stdout.write(f"\nAll of it is in {args.output}\n")
    return 0


def _with_head(args: argparse.Namespace) -> int:
    run = importlib.import_module("s3prl_distiller.downstream.core.run")
    head = importlib.import_module("s3prl_distiller.downstream.export.save")
    if args.no_predictions or args.model_type:
        raise ValueError("--no-predictions and --model-type are for a student alone: leave them out with --with-head")
    trained, files = run.find_trained(args.with_head), speech_files(args.speech)
    sys.stdout.write(head.export_head(trained, args.student, args.to, args.output, files, not args.no_costs))
    sys.stdout.write(f"\nAll of it is in {args.output}\n")
    return 0


def _module(name: str, package: str = "export.") -> Any:
    """A module of upstream/distiller, by name: a type checker finds the folder only where it lies."""
    return importlib.import_module(f"s3prl_distiller.upstream.distiller.{package}{name}")
