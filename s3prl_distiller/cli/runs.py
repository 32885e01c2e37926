"""What runs of both kinds share: where they start from, on what device, from which seed."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

import torch

from s3prl_distiller.engine import distributed, newest_checkpoint


def add_options(parser: argparse.ArgumentParser, kind: str, past_exp: str) -> None:
    """Options that every command has, with s3prl's letters.

    Args:
        kind: folder of the results, "pretrain" or "downstream".
        past_exp: what ``-e`` is for.
    """
    add = parser.add_argument
    add("-n", "--expname", metavar="NAME", help=f"results go to result/{kind}/NAME")
    add("-p", "--expdir", metavar="DIR", type=Path, help="results go to DIR")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("-a", "--auto_resume", action="store_true", help="go on from the newest checkpoint, if any")
    start.add_argument("-e", "--past_exp", metavar="RUN", type=Path, help=past_exp)
    add(
        "-o",
        "--override",
        metavar="KEY=VALUE,...",
        action="append",
        default=[],
        help="settings over those of files, such as runner.total_steps=3",
    )
    add("--seed", type=int, metavar="N", help="of every random choice (default 1337)")
    add("--device", metavar="NAME", help="cuda or cpu (default: cuda if there is one)")
    add("--dry-run", action="store_true", help="check everything, time a few steps, estimate the whole run")


def starting_point(args: argparse.Namespace, folder: Path) -> tuple[Path | None, Path | None]:
    """The checkpoint folder to resume exactly, or the checkpoint whose weights to start from.

    Raises:
        ValueError: there is a run already, or none where one should be.
    """
    newest = newest_checkpoint(folder)
    if args.past_exp is not None and (args.expname or args.expdir):
        if not args.past_exp.exists():
            raise ValueError(f"there is no checkpoint at {args.past_exp}")
        if newest is None and not (folder / "log.jsonl").exists():
            return None, newest_checkpoint(args.past_exp) or args.past_exp
    elif args.past_exp is not None:
        if newest is None:
            raise ValueError(
                f"{args.past_exp} is no run that can be resumed. To start a new one from its weights, name it: -n NAME"
            )
        if args.past_exp.name.startswith("states-") and args.past_exp.with_suffix("").name != newest.name:
            raise ValueError(
                f"{args.past_exp} is not the newest checkpoint of its run, {newest}, which would be lost: resume that "
                "one, or start a new run from these weights with -n NAME"
            )
        return newest, None
    elif args.auto_resume or args.dry_run:
        return newest if args.auto_resume else None, None
    if newest is not None or (folder / "log.jsonl").exists():
        raise ValueError(f"{folder} already holds a run: go on with it (-a), or choose another name (-n)")
    return None, None


def agree(resume: Path | None, folder: Path) -> None:
    """Raises ValueError where processes, those of another machine say, would go on from something else."""
    if len(set(distributed.gather([resume]))) > 1:
        raise ValueError(
            f"not all processes see the same checkpoints in {folder}: with several machines the results must go to a "
            "folder that all of them share (-p)"
        )


def choose_device(name: str | None) -> torch.device:
    """The device of that name, by default a GPU if there is one, which is then told to suit batches of any lengths.

    Raises:
        ValueError: there is none.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise ValueError(f"--device {name} is no device: use cuda or cpu") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this machine has no GPU that torch can use; leave it out to run on the CPU")
    if device.type == "cuda":
        # cuDNN's attention makes a plan for each new shape, and ours hardly come twice: others are faster here.
        torch.backends.cuda.enable_cudnn_sdp(False)
    return device


def join(device: str | None) -> torch.device:
    """The device of this process, which works with those that torchrun started with it, if it did.

    All but the main one are silent but for errors.

    Raises:
        ValueError: there is no such device, or there are more processes than GPUs.
    """
    own = distributed.start(choose_device(device))
    if not distributed.is_main():
        logging.getLogger("s3prl_distiller").setLevel(logging.ERROR)
    return own


def refuse_torchrun() -> None:
    """Raises ValueError where several processes were started for what runs in one."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("this runs on one GPU: start it without torchrun")
