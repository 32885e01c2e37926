"""``s3prl-distiller demo``: a web page where one speaks and sees what student, teacher and trained heads make of it."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .common import run_command
from .runs import choose_device, refuse_torchrun


def parser() -> argparse.ArgumentParser:
    """The options, with s3prl's letters where it has them."""
    p = argparse.ArgumentParser(
        prog="s3prl-distiller demo",
        description="A web page on this machine: speak or drop a file, and see what a student, its teacher and trained "
        "heads make of it. Nothing that is said leaves the machine.",
    )
    add = p.add_argument
    add("-u", "--student", metavar="CKPT", help="a .ckpt, a folder of ours or of Hugging Face, or an id on its hub")
    add(
        "--teacher",
        metavar="NAME",
        help="s3prl hub name, checkpoint file or Hugging Face folder (default: what the student was distilled from)",
    )
    add(
        "-e",
        "--head",
        metavar="RUN",
        type=Path,
        action="append",
        default=[],
        help="a run of run_downstream.py: keywords, transcripts, emotions ...; may be repeated",
    )
    add("--seconds", metavar="S", type=float, default=30.0, help="of a recording that are heard (default: 30)")
    add("--host", default="127.0.0.1", help="address to serve the page on (default: 127.0.0.1, this machine only)")
    add("--port", type=int, metavar="N", help="(default: the first free one from 7860 on)")
    add("--device", metavar="NAME", help="cuda or cpu (default: cuda if there is one)")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves the page until Ctrl-C. Returns the exit status: 130 then, 2 after a mistake in what was asked for."""
    args = parser().parse_args(arguments)
    return run_command(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    """Checks come in the order in which mistakes are cheapest to find."""
    refuse_torchrun()
    load, page = _module("load"), _module("page")
    if args.student is None:
        raise ValueError("name the student: -u result/pretrain/NAME/states-STEP.ckpt, or what else holds one (-h)")
    if not args.seconds >= 1:
        raise ValueError(f"--seconds is {args.seconds:g}: a page that hears less than 1 s shows nothing")
    page.check_gradio()
    port = page.free_port(args.host, args.port)
    device = choose_device(args.device)
    listener = load.load_listener(args.student, args.teacher, args.head, device, args.seconds)
    # Whoever ends it otherwise than by Ctrl-C wants recordings deleted, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with page.serving(listener, args.host, port) as address:
        sys.stdout.write(f"The page is at {address} until Ctrl-C\n")
        sys.stdout.flush()
        threading.Event().wait()
    return 0


def _module(name: str) -> Any:
    """A module of downstream/demo, by name: a type checker finds the folder downstream/ only where it lies."""
    return importlib.import_module(f"s3prl_distiller.downstream.demo.{name}")


if __name__ == "__main__":
    sys.exit(main())
