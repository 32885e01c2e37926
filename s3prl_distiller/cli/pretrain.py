"""``run_pretrain.py -u distiller``: from words on the command line to a distilled student."""

from __future__ import annotations

import argparse
import logging
import re
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
from .runs import add_options, agree, join, starting_point

log = logging.getLogger(__name__)

AUTO = "auto"
"""``--targets auto``: probe the teacher's layers before training."""

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
    add("--teacher", metavar="NAME", help="s3prl hub name, checkpoint file, Hugging Face folder or folder of a run")
    add("--data", metavar="PATH", help="folder of audio, CSV or JSONL manifest, lhotse cuts or Shar folder")
    add(
        "--targets",
        metavar="LAYERS",
        help="teacher layers to predict: such as 4,8,12; auto: probe them and propose some",
    )
    past_exp = "go on with that run (its folder or newest checkpoint); with -n or -p a new run from its weights"
    add_options(p, "pretrain", past_exp)
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0; 2 after a mistake in what was asked for; 130 after Ctrl-C, which saves first."""
    args = parser().parse_args(arguments)
    return run_command(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    module = registry.find("upstream", args.upstream, "pretrain_expert")
    return _train(args, module, join(args.device))


def _train(args: argparse.Namespace, module: ModuleType, device: torch.device) -> int:
    """Checks come in the order in which mistakes are cheapest to find."""
    if args.dry_run and distributed.world() > 1:
        raise ValueError("--dry-run times the steps of one process: start it without torchrun")
    folder = _folder(args)
    resume, weights = starting_point(args, folder)
    agree(resume, folder)
    _check_targets(args)
    config, given = _config(args, module, resume, weights)
    if not args.dry_run and distributed.is_main():
        log_to(folder / "run.log")
        log.info("Results go to %s", folder)
    seed(config.runner.seed)
    probes = args.targets == AUTO and resume is None
    expert = module.build(config, given, folder, device, resume or weights, auto_targets=probes)
    if args.dry_run:
        if probes:
            sys.stdout.write(f"{(folder / 'targets.md').read_text(encoding='utf-8')}\n")
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
        ckpt = outcome.checkpoint.with_name(f"{outcome.checkpoint.name}.ckpt")
        expert.write_card(folder, outcome.step, ckpt, report.held_out(folder))
    return 0


def _check_targets(args: argparse.Namespace) -> None:
    """Raises ValueError where ``--targets`` is neither layers nor auto, or layers are given twice."""
    if args.targets is None:
        return
    if args.targets != AUTO and not re.fullmatch(r"\d+(,\d+)*", args.targets):
        raise ValueError(f"--targets {args.targets!r} is neither {AUTO} nor layers such as 4,8,12")
    for text in args.override:
        distiller = settings.parse_overrides(text).get("distiller")
        if isinstance(distiller, dict) and "pred_layer_id" in distiller:
            raise ValueError(
                f"--targets {args.targets} and -o distiller.pred_layer_id both say which layers are predicted: give one"
            )


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


def _config(
    args: argparse.Namespace, module: ModuleType, resume: Path | None, weights: Path | None
) -> tuple[Any, dict[str, Any]]:
    options: dict[str, dict[str, Any]] = {}
    if args.teacher:
        options["teacher"] = {"model": args.teacher}
    if args.data:
        options["data"] = {"path": args.data}
    if args.seed is not None:
        options["runner"] = {"seed": args.seed}
    if args.targets not in (None, AUTO):
        options["distiller"] = {"pred_layer_id": [int(layer) for layer in args.targets.split(",")]}
    names = [name for name in (args.config, args.upstream_config) if name]
    files: list[Path | dict[str, Any]] = [settings.find("pretrain", name) for name in names]
    if resume is not None:
        saved = resume.parent / "config.yaml"
        resumed = module.load_config([saved], {}, args.override)
        if args.targets == AUTO:  # what was proposed when the run began, and not what a recipe names
            options["distiller"] = {"pred_layer_id": list(resumed[0].distiller.pred_layer_id)}
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
        options["teacher"] = {"model": str(settings.QUICKSTART / "hubert_nano")}
        options["data"] = {"path": str(settings.QUICKSTART / "corpus" / "pretrain.jsonl")}
    else:
        recipe = settings.bundled("pretrain", "distilhubert")
        files = [recipe, *([] if weights is None else [module.student_settings(weights)]), *files]
    return module.load_config(files, options, args.override)
