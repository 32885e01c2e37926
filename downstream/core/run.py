"""Train, load and use a downstream task: what the command line calls."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from s3prl_distiller import audio, checkpoint, registry, settings
from s3prl_distiller.data.sources import audio_files
from s3prl_distiller.data.utterance import Utterance
from s3prl_distiller.engine import BEST, Outcome, check_disk, distributed, estimate, newest_checkpoint, precision, train

from . import corpus, judging
from .config import DownstreamConfig, schema
from .expert import FORMAT, SEARCH_FORMAT, DownstreamExpert, check_upstream
from .s3prl_names import translate
from .search import choose
from .task import Row, Task
from .upstream import Upstream, load_upstream

log = logging.getLogger(__name__)


@dataclass
class Trained:
    """A checkpoint of a run: its folder, the folder of the run, what it says of itself."""

    checkpoint: Path
    run: Path
    saved: dict[str, Any]


def task_class(name: str) -> type[Task]:
    """The task of that name. Raises ValueError where there is none."""
    return registry.find("downstream", name).Task


def load_config(
    name: str, files: Sequence[Path], options: Mapping[str, Any], overrides: Sequence[str]
) -> DownstreamConfig:
    """The config of a run of a task.

    Args:
        files: YAML files, the later ones over the earlier; the task's own is read before them.
        options: values by section, over the files.
        overrides: texts of ``-o``, over both.

    Raises:
        ValueError: a key or type is wrong; it is named.
    """
    task = task_class(name)
    # A third party's task has its defaults in its config_class.
    own = [path] if (path := settings.bundled_or_none("downstream", name)) else []
    config, _ = settings.load(schema(task), [*own, *files], options, overrides, translate)
    config.validate()
    return config


def folds(name: str, config: DownstreamConfig) -> list[int]:
    """The folds that a run goes through one after the other; none for a task or config without."""
    if not config.data.path or getattr(config.task, "fold", None) != 0:
        return []
    return task_class(name)(config.task).folds(Path(config.data.path).expanduser())


def build(name: str, config: DownstreamConfig, folder: Path, device: torch.device) -> DownstreamExpert:
    """Put a run together, cheap checks first.

    Raises:
        ValueError: upstream or data cannot be used, or do not fit together.
    """
    task = task_class(name)(config.task)
    _check_crops(task, config)
    splits = corpus.read(task, config.data)
    upstream = load_upstream(config.upstream)
    log.info("Upstream %s: %d layers, %d wide", upstream.name, upstream.n_layers, upstream.width)
    with distributed.main_first():
        corpus.prepare(task, splits, config.data, upstream.downsample_rate, folder)
    for line in corpus.counts(task):
        log.info("Data: %s", line)
    return DownstreamExpert(config, task, upstream).to(device)


def _check_crops(task: Task, config: DownstreamConfig) -> None:
    for key in ("crop_seconds", "eval_crop_seconds"):
        if not task.crops and getattr(config.data, key) is not None:
            raise ValueError(f"data.{key} cannot be used with {task.name}: what is said belongs to the whole utterance")


def dry_run(expert: DownstreamExpert, folder: Path, device: torch.device) -> str:
    """What the corpus holds and, from a few steps, what the whole run will take."""
    config, task = expert.config, expert.task
    head = sum(parameter.numel() for parameter in expert.models[0].head.parameters())
    several = f"{len(expert.models)} heads side by side, each" if len(expert.models) > 1 else "head:"
    lines = [f"Task {task.name}, upstream {expert.upstream.name}; {several} {head / 1e6:.2f} M parameters", "Corpus:"]
    lines += [f"  {line}" for line in [*corpus.counts(task, compare=True), *task.notes]]
    if task.trained:
        log.info("Timing a few steps")
        lines.append(estimate(expert, config.runner, config.optimizer, folder, device))
    return "\n".join(lines)


def fit(expert: DownstreamExpert, folder: Path, device: torch.device, resume: Path | None) -> Outcome | None:
    """Train until the last step or a signal; None where the task has nothing to train."""
    config = expert.config
    autocast, _ = precision(config.runner.precision, device)
    if not expert.task.trained:
        # Whatever is chosen on dev is chosen now.
        expert.validate(autocast, device)
        if distributed.is_main():
            checkpoint.save_text(settings.to_yaml(config), folder / "config.yaml")
            checkpoint.save_folder(folder / BEST, expert.native_writers(0))
        distributed.wait()
        return None
    check_disk(expert.model, config.runner, folder)
    if resume is not None:
        expert.load(resume)
        expert.task.load_state(checkpoint.load_json(resume / checkpoint.CONFIG)["state"])
    expert.keep_features(autocast, device)
    return train(expert, config.runner, config.optimizer, folder, device, resume, settings.to_yaml(config))


def conclude(expert: DownstreamExpert, outcome: Outcome | None, folder: Path, device: torch.device) -> None:
    """Judge on test what did best on dev; of several heads, those of the learning rate that did.

    Raises:
        ValueError: no head has a figure on dev to be chosen by.
    """
    seconds = {"seconds": round(time.monotonic() - expert.started, 1)}
    if outcome is None or not expert.config.search.active:
        best = find_trained(folder)
        expert.load(best.checkpoint)
        expert.task.load_state(best.saved["state"])
        judging.judge(expert, "test", folder, device, best.saved["step"], seconds)
        return
    choice = choose(expert.variants, outcome.members, expert.metric, expert.higher_is_better, expert.config.search)
    log.info("The learning rate %g did best on dev", choice.lr)
    chosen = folder / expert.variants[choice.members[0]].name / BEST
    if distributed.is_main() and chosen != folder / BEST:
        # The best of the run, as of a run of one head.
        checkpoint.save_folder(
            folder / BEST, {name: partial(_copy, chosen / name) for name in (checkpoint.WEIGHTS, checkpoint.CONFIG)}
        )
    distributed.wait()
    judging.judge_search(expert, choice, folder, device, seconds)
    if distributed.is_main():
        for place, variant in enumerate(expert.variants):
            if place not in choice.members:
                shutil.rmtree(folder / variant.name, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def find_trained(path: Path) -> Trained:
    """The best checkpoint of the run at ``path`` (its newest where no evaluation had a figure), or ``path`` itself.

    Raises:
        ValueError: there is none, or the run has several heads and has not chosen among them.
    """
    trained = find_checkpoint(path)
    if trained.saved["format"] == SEARCH_FORMAT:
        raise ValueError(f"{path} has not chosen among its heads yet: go on with its training (-a) to the end")
    return trained


def find_checkpoint(path: Path) -> Trained:
    """As :func:`find_trained`; of a run that has not chosen among its heads, the checkpoint of all of them."""
    places = [path, path / BEST]
    folder = next((place for place in places if (place / checkpoint.CONFIG).is_file()), None)
    if folder is None and path.is_dir():
        folder = newest_checkpoint(path)
    if folder is None:
        raise ValueError(f"{path} holds no trained task: give the folder of a run (result/downstream/NAME)")
    if damage := checkpoint.folder_damage(folder):
        raise ValueError(f"the checkpoint {folder} is damaged: {damage}")
    saved = checkpoint.load_json(folder / checkpoint.CONFIG)
    if saved.get("format") not in (FORMAT, SEARCH_FORMAT):
        raise ValueError(f"{folder} is no checkpoint of a downstream task")
    return Trained(folder, folder.parent, saved)


def restore(
    trained: Trained, config: DownstreamConfig, device: torch.device, read_data: Path | None
) -> DownstreamExpert:
    """The expert of a checkpoint.

    Args:
        config: of its run, with what the user has changed.
        read_data: a folder for the report on the data, which is then read; None: without data.

    Raises:
        ValueError: the upstream is another than the one that the head was trained on, or the data cannot be used.
    """
    task = task_class(trained.saved["task"])(config.task)
    _check_crops(task, config)
    upstream: Upstream = load_upstream(config.upstream)
    check_upstream(trained.saved, upstream, trained.checkpoint)
    task.load_state(trained.saved["state"])
    if read_data is not None:
        with distributed.main_first():
            splits = corpus.read(task, config.data)
            corpus.prepare(task, splits, config.data, upstream.downsample_rate, read_data)
        task.load_state(trained.saved["state"])
    expert = DownstreamExpert(config, task, upstream).to(device)
    expert.load(trained.checkpoint)
    return expert


def infer(expert: DownstreamExpert, paths: Sequence[Path], device: torch.device) -> Iterator[str]:
    """What the task says of a user's own files, or of all audio in a folder: a line or more for each.

    Raises:
        ValueError: a file cannot be read, or there is none.
    """
    files = audio_files(paths)
    names = set(map(str, files))
    for row, words in hear(expert, files, device):
        # A row of one file says what was heard in it; one of several names them itself.
        if row["id"] in names:
            words = f"{row['id']}: {words}" if "\n" not in words else f"{row['id']}:\n{words}"
        yield words


def hear(expert: DownstreamExpert, files: Sequence[Path], device: torch.device) -> Iterator[tuple[Row, str]]:
    """What the task says of files, in their order: each prediction, and the same in words.

    Raises:
        ValueError: a file cannot be read, or is too short.
    """
    task, config = expert.task, expert.config
    utterances = [user_utterance(path, config.data.min_seconds) for path in files]
    autocast, _ = precision(config.runner.precision, device)
    place = {utterance.id: index for index, utterance in enumerate(utterances)}
    outputs = sorted(expert.predict(utterances, autocast, device), key=lambda output: place[output["id"]])
    for row in task.rows(outputs, None):
        yield row, task.say(row)


def untrained(name: str, config: DownstreamConfig, device: torch.device) -> DownstreamExpert:
    """An expert of a task that has nothing to train, without data."""
    return DownstreamExpert(config, task_class(name)(config.task), load_upstream(config.upstream)).to(device)


def from_saved(trained: Trained, options: Mapping[str, Any], overrides: Sequence[str]) -> DownstreamConfig:
    """The config of a checkpoint, with what the user changes."""
    task = task_class(trained.saved["task"])
    saved = cast(dict[str, Any], trained.saved["settings"])
    merged = {section: {**values, **options.get(section, {})} for section, values in saved.items()}
    config, _ = settings.load(schema(task), [], merged, overrides, translate)
    config.validate()
    for key in ("feature", "layer", "normalize"):
        if getattr(config.upstream, key) != saved["upstream"][key]:
            raise ValueError(
                f"the head in {trained.checkpoint} was trained with upstream.{key}={saved['upstream'][key]}, and what "
                f"it would be given with {getattr(config.upstream, key)} is something else: leave -s, -l and -r out"
            )
    return config


def user_utterance(path: Path, min_seconds: float) -> Utterance:
    """A user's own file.

    Raises:
        ValueError: it cannot be read, or is shorter than ``min_seconds``.
    """
    # Decoded in full: what fails here would be left out later, without a word.
    seconds = audio.measure(path)[0].duration
    if seconds < min_seconds:
        raise ValueError(f"{path} has {seconds:.4f} s of audio, less than data.min_seconds = {min_seconds}")
    return Utterance(str(path), str(path), str(path), duration=seconds)
