"""Judge a split and leave what people and programs read: figures, predictions, pictures, a page that sums them up."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from s3prl_distiller import checkpoint, settings
from s3prl_distiller.engine import BEST, distributed, precision
from s3prl_distiller.engine.log import JSONL
from s3prl_distiller.machine import device_name, versions

from ..pictures import training
from . import corpus, results
from .config import DownstreamConfig
from .expert import DownstreamExpert
from .protocol import join_protocols, protocol
from .search import Choice
from .task import Row, Task

log = logging.getLogger(__name__)

Facts = dict[str, Any]
"""What else is known of a run, for ``metrics-SPLIT.json``."""


def judge(
    expert: DownstreamExpert, split: str, folder: Path, device: torch.device, step: int, facts: Facts | None = None
) -> list[Row]:
    """Evaluate on a split; write figures, predictions and pictures.

    Raises:
        ValueError: there is no such split.
    """
    rows = _predictions(expert, split, folder, device)
    step_of = {"step": step} if expert.task.trained else {}
    _write(expert, [rows], split, folder, {**step_of, **_made_with(device), **(facts or {})})
    return rows


def judge_search(expert: DownstreamExpert, choice: Choice, folder: Path, device: torch.device, facts: Facts) -> None:
    """Judge the heads of the chosen learning rate on test, one for each seed, each as it was best on dev.

    Figures are means over seeds. Pictures and ``predictions-test.jsonl`` are of the first seed; those of the others are
    in the folders of their own.
    """
    groups = []
    # The first comes last: the task then knows what was chosen on dev for the head whose pictures are drawn.
    for member in reversed(choice.members):
        own = folder / expert.variants[member].name
        best = own / BEST
        expert.load(best, member)
        expert.task.load_state(checkpoint.load_json(best / checkpoint.CONFIG)["state"])
        rows = _predictions(expert, "test", own, device, member)
        groups.insert(0, rows)
        if len(choice.members) > 1 and distributed.is_main():
            results.write_rows(rows, own / "predictions-test.jsonl")
    step = checkpoint.load_json(folder / BEST / checkpoint.CONFIG)["step"]
    facts = {"step": step, "search": choice.record, **_made_with(device), **facts}
    _write(expert, groups, "test", folder, facts, choice.members[0])


def _made_with(device: torch.device) -> Facts:
    return {"device": device_name(device), "versions": versions()}


def _predictions(
    expert: DownstreamExpert, split: str, folder: Path, device: torch.device, member: int = 0
) -> list[Row]:
    task = expert.task
    judged = [name for name in task.splits if name in task.judged or name not in ("train", "dev")]
    if split not in judged:
        raise ValueError(f"{split!r} is no split that {task.name} can be judged on (-t): there is {', '.join(judged)}")
    autocast, _ = precision(expert.config.runner.precision, device)
    rows = expert.evaluate(split, autocast, device, member)
    expert.unheard = sum(distributed.gather([expert.unheard]))
    if expert.unheard:
        log.warning("%d utterances of %s could not be decoded and are not in its figures", expert.unheard, split)
    return rows


def _write(
    expert: DownstreamExpert, seeds: list[list[Row]], split: str, folder: Path, facts: Facts, member: int = 0
) -> None:
    """Figures, predictions and pictures of a split; ``seeds`` has the predictions of each."""
    if not distributed.is_main():
        distributed.wait()
        return
    task, rows = expert.task, seeds[0]
    if len(seeds) == 1:
        figures = results.measure(task.scorer, [rows], task.resample_by, task.units)
    else:
        figures = results.over_seeds(task.score, [[one] for one in seeds], task.units)
    results.write_rows(rows, folder / f"predictions-{split}.jsonl")
    layers = expert.models[member].featurizer.shares()
    left_out = dict(task.left_out.get(split, {})) | ({"undecodable": expert.unheard} if expert.unheard else {})
    summary = {
        "task": task.name,
        "split": split,
        "metric": task.metric,
        "metrics": figures,
        "utterances": len(task.splits[split]) - expert.unheard,
        "left_out": left_out,
        "upstream": {"name": expert.upstream.name, "fingerprint": expert.upstream.fingerprint},
        "layer_weights": layers,
        "state": task.state(),
        "notes": [*task.notes, *([expert.kept.note] if expert.kept else [])],
        "protocol": protocol(expert.config, task),
        **facts,
    }
    checkpoint.save_json(summary, folder / f"metrics-{split}.json")
    if (folder / JSONL).is_file():
        training.draw_curves(folder, task.metric, task.units.get(task.metric, ""))
    if len(layers) > 1 and not task.all_layers:
        training.draw_layers(layers, expert.upstream.name, folder / "layer_weights.png")
    # Pictures of another split than test have a folder of their own: they are called the same.
    gallery = folder if split == "test" else folder / split
    gallery.mkdir(parents=True, exist_ok=True)
    drawn = [str(path.relative_to(folder)) for path in task.figures(rows, gallery)]
    checkpoint.save_text(_page(summary, corpus.counts(task), drawn), page(folder, split))
    distributed.wait()


def page(folder: Path, split: str) -> Path:
    """Where the summary of an evaluation is."""
    return folder / ("summary.md" if split == "test" else f"summary-{split}.md")


def join_folds(task: Task, config: DownstreamConfig, folders: Sequence[Path], folder: Path) -> str:
    """Mean and spread of the figures over folds; writes ``metrics-test.json`` and ``summary.md``."""
    parts = [checkpoint.load_json(place / "metrics-test.json") for place in folders]
    searches = [part["search"] for part in parts if "search" in part]
    if config.search.seeds > 1:
        seeds = range(config.runner.seed, config.runner.seed + config.search.seeds)
        each_seed = [[results.read_rows(_of_seed(place, seed)) for place in folders] for seed in seeds]
        figures = results.over_seeds(task.score, each_seed, task.units)
    else:
        each = [results.read_rows(place / "predictions-test.jsonl") for place in folders]
        figures = results.measure(task.scorer, each, task.resample_by, task.units)
    summary = {
        "task": task.name,
        "split": "test",
        "metric": task.metric,
        "metrics": figures,
        "utterances": sum(part["utterances"] for part in parts),
        "folds": [place.name for place in folders],
        "upstream": parts[0]["upstream"],
        "notes": sorted({note for part in parts for note in part["notes"]}),
        "protocol": join_protocols([part["protocol"] for part in parts]),
        **{key: parts[0][key] for key in ("device", "versions")},
        **({"search": {"folds": searches}} if searches else {}),
        **({"seconds": sum(part["seconds"] for part in parts)} if all("seconds" in part for part in parts) else {}),
    }
    checkpoint.save_text(settings.to_yaml(config), folder / "config.yaml")
    checkpoint.save_json(summary, folder / "metrics-test.json")
    text = _page(summary, [f"{place.name}: see {place.name}/summary.md" for place in folders], [])
    checkpoint.save_text(text, page(folder, "test"))
    return text


def _of_seed(folder: Path, seed: int) -> Path:
    """Predictions of the head of that seed, at the learning rate that was chosen."""
    found = [path for path in folder.glob("*/predictions-test.jsonl") if path.parent.name.endswith(f"seed-{seed}")]
    assert len(found) == 1, f"{folder} has {len(found)} predictions of seed {seed}"
    return found[0]


def _page(summary: Mapping[str, Any], lines: Sequence[str], drawn: Sequence[str]) -> str:
    where = f", the checkpoint of step {summary['step']}, which did best on dev" if "step" in summary else ""
    over_seeds = any(figure.get("interval") == "seeds" for figure in summary["metrics"].values())
    interval = (
        "Intervals are over seeds (Student's t); the order of batches is the same for all of them."
        if over_seeds
        else "Intervals are over the test items (1,000 bootstrap draws), not over seeds."
    )
    return "\n".join(
        [
            f"# {summary['task']} with {summary['upstream']['name']}: {summary['split']}",
            "",
            *(_figure(name, figure, main=name == summary["metric"]) for name, figure in summary["metrics"].items()),
            f"- {summary['utterances']} utterances{where}",
            *(f"- left out: {count} {reason}" for reason, count in summary.get("left_out", {}).items()),
            *(f"- {note}" for note in summary["notes"]),
            *(f"- {line}" for line in lines),
            *(f"- picture: {name}" for name in drawn),
            *_grid(summary.get("search", {})),
            "",
            f"{interval} Every prediction is a line of predictions-{summary['split']}.jsonl"
            f"{' in the folder of its fold' if 'folds' in summary else ''}.",
            "",
        ]
    )


def _grid(search: Mapping[str, Any]) -> list[str]:
    """What each learning rate reached on dev."""
    if "members" not in search:
        return []
    lines = ["", f"| learning rate | seed | {search['metric']} on dev, at best | at step |", "|---|---|---|---|"]
    for member in search["members"]:
        best = "none" if member["best"] is None else f"{member['best']:.2f}"
        best += ", diverged" if member["diverged"] else ""
        chosen = " (chosen)" if member["lr"] == search["chosen"] else ""
        lines.append(f"| {member['lr']:g}{chosen} | {member['seed']} | {best} | {member['step']} |")
    return lines


def _figure(name: str, figure: dict[str, Any], main: bool) -> str:
    text = results.in_words(name, figure)
    return f"- **{text}**" if main else f"- {text}"
