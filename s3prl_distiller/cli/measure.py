"""``run_downstream.py -m measure``: what an upstream costs."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

from s3prl_distiller.checkpoint import save_json

from .runs import choose_device, refuse_torchrun


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options that only this mode has."""
    group = parser.add_argument_group("with -m measure")
    group.add_argument("--threads", type=int, metavar="N", help="of the CPU (default: as many as torch takes)")
    group.add_argument("--seconds", type=float, metavar="S", default=10.0, help="of the utterance (default: 10)")


def measure(args: argparse.Namespace) -> int:
    """Measure the upstream that ``-u`` and ``-k`` name; ``cost.json`` goes to ``-p DIR`` or ``-n NAME``, if given.

    Raises:
        ValueError: the upstream cannot be loaded, or a number makes no sense.
    """
    refuse_torchrun()
    cost, core = _module("benchmark.cost"), _module("core.config")
    config = core.UpstreamConfig(
        name=args.upstream,
        ckpt=args.upstream_ckpt,
        feature=args.upstream_feature_selection or "hidden_states",
        layer=args.upstream_layer_selection,
    )
    measured = cost.measure(config, choose_device(args.device), args.seconds, args.threads)
    text = cost.describe(measured)
    folder = args.expdir or (Path("result/downstream") / args.expname if args.expname else None)
    if folder is not None:
        path = folder / cost.FILE
        save_json(cost.as_json(measured), path)
        text += f"All of it is in {path}\n"
    sys.stdout.write(text)
    return 0


def _module(name: str) -> Any:
    """A module of downstream/, by name: a type checker finds the folder downstream/ only where it lies."""
    return importlib.import_module(f"s3prl_distiller.downstream.{name}")
