"""``run_pretrain.py -u distiller``: from words on the command line to a distilled student."""

from __future__ import annotations

import argparse
import importlib.resources
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from s3prl_distiller import registry, report, settings
from s3prl_distiller.engine import distributed, estimate, train
from s3prl_distiller.engine.randomness import seed

from .common import log_to, run_command
from .runs import add_options, agree, joined, starting_point

log = logging.getLogger(__name__)

QUICKSTART = """\
Nothing was said about a teacher or data, so this is the quick start: the bundled 12-layer teacher hubert_nano is
distilled into a 2-layer student on the bundled synthetic speech. To distil your own teacher on your own audio:
    python run_pretrain.py -u distiller -n NAME --teacher HUB_NAME_OR_FOLDER --data FOLDER_OF_AUDIO
"""


def parser() -> argparse.ArgumentParser:
    """The options, with s3prl's letters."""
    p = argparse.ArgumentParser(
        prog="run_pretrain.py",
        description="Distil a speech model into a small student.",
        epilog="Without a config, teacher or data it runs the bundled quick start.",
    )
    add = p.add_argument
    add("-u", "--upstream", required=True, metavar="NAME", help="what to train: distiller")
    add("-g", "--upstream_config", metavar="YAML", help="student and teacher: a file, or a bundled name")
    add("-c", "--config", metavar="YAML", help="runner, optimizer, data: a file, or a bundled name")
    add("--teacher", metavar="NAME", help="s3prl hub name, checkpoint file or Hugging Face folder")
    add("--data", metavar="PATH", help="folder of audio, CSV or JSONL manifest, lhotse cuts or Shar folder")
    past_exp = "go on with that run (its folder or newest checkpoint); with -n or -p start a new run from its weights"
    add_options(p, "pretrain", past_exp)
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0; 2 after a mistake in what was asked for; 130 after Ctrl-C, which saves first."""
    args = parser().parse_args(arguments)
    return run_command(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    module = registry.find("upstream", args.upstream, "pretrain_expert")
    with joined(args.device) as device:
        return _train(args, module, device)


def _train(args: argparse.Namespace, module: ModuleType, device: torch.device) -> int:
    """Checks come in the order in which mistakes are cheapest to find."""
    if args.dry_run and distributed.world() > 1:
        raise ValueError("--dry-run times the steps of one process: start it without torchrun")
    folder = _folder(args)
    resume, weights = starting_point(args, folder)
    agree(resume, folder)
    config, given = _config(args, module, resume)
    if not args.dry_run and distributed.is_main():
        log_to(folder / "run.log")
        log.info("Results go to %s", folder)
    seed(config.runner.seed)
    expert = module.build(config, given, folder, device, resume or weights)
    if args.dry_run:
        text = estimate(expert, config.runner, config.optimizer, folder, device)
        sys.stdout.write(f"{text}\n")
        return 0
    text = settings.to_yaml(config)
    outcome = train(expert, config.runner, config.optimizer, folder, device, resume, text)
    if outcome.signal is not None:
        log.info("Stopped at step %d, saved %s. The same command with -a goes on.", outcome.step, outcome.checkpoint)
        return 130 if outcome.signal == signal.SIGINT else 0
    if distributed.is_main():
        sys.stdout.write(report.write(folder, expert.describe(), outcome.checkpoint))
    return 0


def _quickstart(args: argparse.Namespace) -> bool:
    return not (args.config or args.upstream_config or args.teacher or args.data or args.past_exp)


def _folder(args: argparse.Namespace) -> Path:
    if args.expdir is not None:
        return args.expdir
    if args.expname is not None:
        return Path("result/pretrain") / args.expname
    if args.past_exp is not None:
        path = args.past_exp
        return path.parent if path.name.startswith("states-") else path
    if _quickstart(args):
        return Path("result/pretrain/quickstart")
    raise ValueError("give the run a name with -n NAME (results go to result/pretrain/NAME), or a folder with -p DIR")


def _config(args: argparse.Namespace, module: ModuleType, resume: Path | None) -> tuple[Any, dict[str, Any]]:
    options: dict[str, dict[str, Any]] = {}
    if args.teacher:
        options["teacher"] = {"model": args.teacher}
    if args.data:
        options["data"] = {"path": args.data}
    if args.seed is not None:
        options["runner"] = {"seed": args.seed}
    files = [settings.find("pretrain", name) for name in (args.config, args.upstream_config) if name]
    if resume is not None:
        saved = resume.parent / "config.yaml"
        resumed = module.load_config([saved], {}, args.override)
        again, _ = module.load_config([saved, *files], options, args.override)
        for name, value in settings.differences(resumed[0], again):
            raise ValueError(
                f"the run was begun with another {name} than {value}: resume it as it was begun, change it on purpose "
                f"with -o {name}=..., or start a new run with -n NAME"
            )
        return resumed
    if _quickstart(args):
        if distributed.is_main():
            sys.stderr.write(QUICKSTART)
        files = [settings.bundled("pretrain", "quickstart")]
        bundle = Path(str(importlib.resources.files("s3prl_distiller"))) / "quickstart"
        options["teacher"] = {"model": str(bundle / "hubert_nano")}
        options["data"] = {"path": str(bundle / "corpus" / "pretrain.jsonl")}
    else:
        files.insert(0, settings.bundled("pretrain", "distilhubert"))
    return module.load_config(files, options, args.override)
