"""``run_downstream.py``: train, evaluate or use a task of SUPERB on an upstream."""

from __future__ import annotations

import argparse
import importlib
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from s3prl_distiller import settings
from s3prl_distiller.engine import distributed
from s3prl_distiller.engine.randomness import seed

from . import benchmark, measure
from .common import log_to, run_command
from .runs import add_options, join, refuse_torchrun, starting_point

log = logging.getLogger(__name__)

TASKS = "asr, pr, ks, ic, sf, sid, asv, sd, er, qbe, or s3prl's names of them; superb: all ten"


def parser() -> argparse.ArgumentParser:
    """The options, with s3prl's letters."""
    p = argparse.ArgumentParser(
        prog="run_downstream.py", description="Train, evaluate or use a SUPERB task on top of an upstream."
    )
    add = p.add_argument
    modes = ["train", "evaluate", "inference", "measure"]
    add(
        "-m",
        "--mode",
        choices=modes,
        default="train",
        help="train (then judge on test), evaluate, inference, or measure what an upstream costs",
    )
    add(
        "-u",
        "--upstream",
        metavar="NAME",
        action="append",
        help="s3prl hub name, checkpoint file, Hugging Face folder or folder of a run; with -d superb several, and "
        "LABEL=NAME",
    )
    add("-k", "--upstream_ckpt", metavar="CKPT", help="what a hub name that takes a checkpoint is to load")
    add("-d", "--downstream", metavar="TASK", help=TASKS)
    add("-s", "--upstream_feature_selection", metavar="KEY", help="hidden_states, last_hidden_state, paper ...")
    add("-l", "--upstream_layer_selection", metavar="N", type=int, help="one layer in place of the weighted sum")
    add("-r", "--upstream_feature_normalize", action="store_true", help="normalise layers before their weighted sum")
    add("-f", "--upstream_trainable", action="store_true", help="train the upstream too")
    add("-c", "--config", metavar="YAML", help="settings over the task's own: a file, or a bundled name")
    add("-t", "--evaluate_split", metavar="SPLIT", default="test", help="what to evaluate on (default: test)")
    add(
        "--data",
        metavar="PATH",
        nargs="+",
        help="the corpus or a folder of manifests; for inference, audio files; with -d superb also TASK=PATH ...",
    )
    add("--learning-rates", metavar="LR,LR,...", help="a head for each, side by side; the best on dev is judged")
    add("--seeds", metavar="N", type=int, help="so many heads for each rate; figures are means over them")
    add("--features", action="store_true", help="compute the hidden states of a frozen upstream once and keep them")
    add_options(p, "downstream", past_exp="a run, or a checkpoint of it, to go on with or to use")
    measure.add_options(p)
    benchmark.add_options(p)
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0; 2 after a mistake in what was asked for; 130 after Ctrl-C, which saves first."""
    args = parser().parse_args(arguments)
    return run_command(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    if args.downstream == benchmark.NAME:
        return benchmark.main(args)
    benchmark.refuse_options(args)
    if args.upstream and len(args.upstream) > 1:
        raise ValueError(f"-u takes one upstream, and {len(args.upstream)} were given: several are for -d superb")
    args.upstream = args.upstream[0] if args.upstream else None
    if args.mode == "measure":
        return measure.measure(args)
    core, names = _module("run"), _module("s3prl_names")
    device = join(args.device)
    if args.downstream:
        args.downstream, args.config = names.task_name(args.downstream, args.config)
        core.task_class(args.downstream)
    if args.mode == "train":
        return _train(args, core, device)
    if args.mode == "evaluate":
        return _evaluate(args, core, device)
    return _infer(args, core, device)


def _train(args: argparse.Namespace, core: Any, device: Any) -> int:
    folder = _folder(args)
    if args.past_exp is not None:
        args.downstream = _task_of(args, core.find_checkpoint(args.past_exp))
    _need(args, "downstream", f"name the task: -d ({TASKS})")
    if args.past_exp is not None and (args.expname or args.expdir):
        raise ValueError("-e goes on with a run where it is: leave out -n and -p, or leave out -e to start a new run")
    config = core.load_config(args.downstream, _files(args, folder), _options(args), args.override)
    folds = core.folds(args.downstream, config)
    if folds and args.past_exp is not None:
        raise ValueError("a run of several folds is gone on with by its first command and -a")
    if args.dry_run and folds:
        config.task.fold = folds[0]
        _show(f"This is fold {folds[0]} of {len(folds)}, which the run goes through one after the other.")
    if args.dry_run or not folds:
        return _train_one(args, core, device, config, folder)
    # The folds are runs of their own; with -a the finished ones are passed over.
    for fold in folds:
        part = folder / f"fold{fold}"
        if args.auto_resume and (part / "metrics-test.json").is_file():
            continue
        each = core.load_config(
            args.downstream, _files(args, folder), _options(args), [*args.override, f"task.fold={fold}"]
        )
        status = _train_one(args, core, device, each, part)
        if status != 0 or not (part / "metrics-test.json").is_file():
            return status
    if distributed.is_main():
        task = core.task_class(args.downstream)(config.task)
        _show(_module("judging").join_folds(task, config, [folder / f"fold{fold}" for fold in folds], folder))
    return 0


def _train_one(args: argparse.Namespace, core: Any, device: Any, config: Any, folder: Path) -> int:
    resume, _ = starting_point(args, folder)
    if resume is not None:
        _check_same(core, args, config, resume)
    if not args.dry_run and distributed.is_main():
        log_to(folder / "run.log")
        log.info("Results go to %s", folder)
    seed(config.runner.seed)
    expert = core.build(args.downstream, config, folder, device)
    if args.dry_run:
        _show(core.dry_run(expert, folder, device))
        return 0
    outcome = core.fit(expert, folder, device, resume)
    if outcome is not None and outcome.signal is not None:
        log.info("Stopped at step %d, saved %s. The same command with -a goes on.", outcome.step, outcome.checkpoint)
        return 130 if outcome.signal == signal.SIGINT else 0
    core.conclude(expert, outcome, folder, device)
    _show_page(_module("judging").page(folder, "test"))
    log.info("All of it is in %s", folder)
    return 0


def _evaluate(args: argparse.Namespace, core: Any, device: Any) -> int:
    """Judge a trained run again: on another split, or on other data, which then needs a folder of its own."""
    _need(args, "past_exp", "name the run to evaluate: -e result/downstream/NAME")
    trained = _find_trained(args, core)
    config = core.from_saved(trained, _options(args), args.override)
    changed = bool(args.data or args.override or args.config)
    if changed and not (args.expname or args.expdir):
        raise ValueError("with --data or -o the figures are not those of the run: give them a place with -n or -p")
    folder = _folder(args) if args.expname or args.expdir else trained.run
    if folder != trained.run and any(folder.glob("metrics-*.json")):
        raise ValueError(f"{folder} already holds results: choose another name (-n)")
    seed(config.runner.seed)
    folder.mkdir(parents=True, exist_ok=True)
    expert = core.restore(trained, config, device, folder)
    _module("judging").judge(expert, args.evaluate_split, folder, device, trained.saved["step"])
    _show_page(_module("judging").page(folder, args.evaluate_split))
    return 0


def _infer(args: argparse.Namespace, core: Any, device: Any) -> int:
    refuse_torchrun()
    _need(args, "data", "name the audio: --data FILE ...")
    paths = [Path(path).expanduser() for path in args.data]
    args.data = None
    if args.past_exp is not None:
        trained = _find_trained(args, core)
        expert = core.restore(trained, core.from_saved(trained, _options(args), args.override), device, None)
    else:
        if not args.downstream or core.task_class(args.downstream).trained:
            raise ValueError("name the trained run: -e result/downstream/NAME")
        config = core.load_config(args.downstream, _files(args, None), _options(args), args.override)
        expert = core.untrained(args.downstream, config, device)
    for line in core.infer(expert, paths, device):
        _show(line)
    return 0


def _module(name: str) -> Any:
    """A module of downstream/core, by name: a type checker finds the folder downstream/ only where it lies."""
    return importlib.import_module(f"s3prl_distiller.downstream.core.{name}")


def _show(text: str) -> None:
    """To stdout, from one process only."""
    if distributed.is_main():
        sys.stdout.write(text if text.endswith("\n") else f"{text}\n")


def _show_page(path: Path) -> None:
    if distributed.is_main():
        _show(path.read_text(encoding="utf-8"))


def _find_trained(args: argparse.Namespace, core: Any) -> Any:
    trained = core.find_trained(args.past_exp)
    _task_of(args, trained)
    return trained


def _task_of(args: argparse.Namespace, trained: Any) -> str:
    task = trained.saved["task"]
    if args.downstream and args.downstream != task:
        raise ValueError(f"{args.past_exp} is a run of {task}, not of {args.downstream}: leave -d out")
    return task


def _need(args: argparse.Namespace, name: str, message: str) -> None:
    if getattr(args, name) is None:
        raise ValueError(message)


def _folder(args: argparse.Namespace) -> Path:
    if args.expdir is not None:
        return args.expdir
    if args.expname is not None:
        return Path("result/downstream") / args.expname
    if args.past_exp is not None:
        inside = args.past_exp.name == "best" or args.past_exp.name.startswith("states-")
        return args.past_exp.parent if inside else args.past_exp
    raise ValueError("give the run a name with -n NAME (results go to result/downstream/NAME), or a folder with -p DIR")


def _files(args: argparse.Namespace, folder: Path | None) -> list[Path]:
    """The config files of a run; one that is gone on with brings its own."""
    if args.past_exp is not None and folder is not None and (folder / "config.yaml").is_file():
        return [folder / "config.yaml"]
    return [settings.find("downstream", args.config)] if args.config else []


def _options(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    upstream = {
        "name": _absolute(args.upstream),
        "ckpt": _absolute(args.upstream_ckpt),
        "feature": args.upstream_feature_selection,
        "layer": args.upstream_layer_selection,
        "normalize": args.upstream_feature_normalize or None,
        "trainable": args.upstream_trainable or None,
    }
    options: dict[str, dict[str, Any]] = {"upstream": {k: v for k, v in upstream.items() if v is not None}}
    if args.data:
        if len(args.data) > 1:
            raise ValueError(f"--data takes one corpus, and {len(args.data)} were given")
        options["data"] = {"path": _absolute(args.data[0])}
    if args.seed is not None:
        options["runner"] = {"seed": args.seed}
    if args.features:
        options["features"] = {"keep": True}
    search = {"learning_rates": benchmark.rates(args.learning_rates), "seeds": args.seeds}
    options["search"] = {key: value for key, value in search.items() if value is not None}
    return options


def _absolute(name: str | None) -> str | None:
    """A path, so that the saved config means the same from another folder; any other name is as it was."""
    return str(Path(name).expanduser().resolve()) if name and Path(name).expanduser().exists() else name


def _check_same(core: Any, args: argparse.Namespace, config: Any, resume: Path) -> None:
    """A run is gone on with as it was begun, unless ``-o`` says otherwise."""
    task = core.find_checkpoint(resume).saved["task"]
    if task != args.downstream:
        raise ValueError(f"{resume.parent} is a run of {task}, not of {args.downstream}: choose another name (-n)")
    saved = core.load_config(args.downstream, [resume.parent / "config.yaml"], {}, args.override)
    fold = getattr(config.task, "fold", None)
    if fold is not None:
        saved.task.fold = fold
    for name, value in settings.differences(config, saved):
        raise ValueError(
            f"the run was begun with {name}={value}, and this command has another: go on as it was begun with "
            f"-e {resume.parent}, change it on purpose with -o {name}=..., or start a new run with -n NAME"
        )


if __name__ == "__main__":
    sys.exit(main())
