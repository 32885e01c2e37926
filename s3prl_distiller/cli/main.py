"""``s3prl-distiller COMMAND``: one door to all commands."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from difflib import get_close_matches

COMMANDS = {
    "pretrain": "distil a teacher into a student (run_pretrain.py)",
    "manifest": "a list of recordings for --data, without their long silences if that is wanted",
    "downstream": "train, evaluate or use a SUPERB task (run_downstream.py)",
    "info": "what a student is made of, what it costs and where it comes from",
    "export": "a student for transformers, ONNX Runtime, torch.export or s3prl, with or without a trained head",
    "import": "a student that somebody published, as a checkpoint of ours",
    "demo": "a web page where one speaks and sees what student, teacher and trained heads make of it",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its module is loaded only then. Returns its exit status, 2 where there is no such command."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    name = arguments[0] if arguments else None
    if name in ("-h", "--help"):
        sys.stdout.write(_help())
        return 0
    if name not in COMMANDS:
        meant = get_close_matches(name or "", COMMANDS, 1)
        problem = "name a command" if name is None else f"there is no command {name!r}"
        sys.stderr.write(f"error: {problem}{f', was {meant[0]!r} meant?' if meant else ''}\n\n{_help()}")
        return 2
    return importlib.import_module(f"s3prl_distiller.cli.{_module(name)}").main(arguments[1:])


def _module(command: str) -> str:
    return "import_" if command == "import" else command


def _help() -> str:
    lines = [f"  {name:<12}{words}" for name, words in COMMANDS.items()]
    return "\n".join(["usage: s3prl-distiller COMMAND ...", "", *lines, "", "COMMAND -h lists its options.", ""])
