"""A student in every form that it is exported to: how near, how large, how fast.

    python benchmarks/export.py --ckpt states-200000.ckpt --speech LibriSpeech/dev-clean --out results/export.md

Each form is run by what it is for (transformers, ONNX Runtime, torch, s3prl) in turns with the student as this package
runs it in float32: one utterance of 15 s, medians. Each form is checked on speech first, and is an error if it does not
hold; the figures are those of its ``parity.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from s3prl_distiller.upstream.distiller.export.forms import FORMS

from s3prl_distiller import checkpoint, machine
from s3prl_distiller.cli.export import main as export


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", type=Path, required=True, help="a student")
    parser.add_argument(
        "--speech", type=Path, help="a file or folder of speech to check with; by default bundled speech"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        figures = {form: exported(args, form, Path(folder) / form) for form in FORMS}
    text = report(args, figures)
    sys.stdout.write(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    return 0


def exported(args: argparse.Namespace, form: str, folder: Path) -> dict[str, Any]:
    """What ``parity.json`` of a form holds."""
    more = ["--speech", str(args.speech)] if args.speech else []
    with contextlib.redirect_stdout(io.StringIO()):
        status = export([str(args.ckpt), "--to", form, "-o", str(folder), *more])
    if status != 0:
        sys.exit(status)
    return checkpoint.load_json(folder / "parity.json")


def report(args: argparse.Namespace, figures: dict[str, dict[str, Any]]) -> str:
    device = machine.device_name(torch.device("cpu"))
    lines = [f"# {args.ckpt.name}, exported, on {device}, {args.threads} threads", ""]
    lines += [
        "| form | MB | 15 s, ms | the student beside it, ms | ratio | peak MB | largest difference | lowest cosine |"
    ]
    lines += ["|---" * 8 + "|"]
    for form, found in figures.items():
        student, export = found["student"], found["export"]
        judged = [check for check in found["checks"] if check["judged"]]
        memory = "" if export["memory"] is None else f"{export['memory'] / 1e6:.0f}"
        lines.append(
            f"| {form} | {export['size'] / 1e6:.1f} | {1000 * export['seconds']:.0f} | {1000 * student['seconds']:.0f} "
            f"| {export['seconds'] / student['seconds']:.2f} | {memory} "
            f"| {max(check['largest'] for check in judged):.1e} | {min(check['cosine'] for check in judged):.5f} |"
        )
    student = next(iter(figures.values()))["student"]
    memory = "" if student["memory"] is None else f", and takes {student['memory'] / 1e6:.0f} MB at its peak"
    lines += [
        "",
        f"The student itself has {student['size'] / 1e6:.1f} MB of weights{memory}. Ratio: below 1 is faster.",
    ]
    command = f"python benchmarks/export.py --ckpt {args.ckpt.name} --threads {args.threads}"
    command += f" --speech {args.speech.name}" if args.speech else ""
    versions = {name: value for found in figures.values() for name, value in found["versions"].items()}
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    return "\n".join([*lines, "", f"`{command}`", "", told, ""])


if __name__ == "__main__":
    sys.exit(main())
