"""Judge a split and leave what people and programs read: figures, predictions, pictures, a page that sums them up."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from s3prl_distiller import checkpoint, settings
from s3prl_distiller.engine import distributed, precision
from s3prl_distiller.engine.log import JSONL

from ..pictures import training
from . import corpus, results
from .config import DownstreamConfig
from .expert import DownstreamExpert
from .task import Row, Task

log = logging.getLogger(__name__)


def judge(expert: DownstreamExpert, split: str, folder: Path, device: torch.device, step: int) -> list[Row]:
    """Evaluate on a split; write figures, predictions and pictures.

    Raises:
        ValueError: there is no such split.
    """
    task = expert.task
    judged = [name for name in task.splits if name in task.judged or name not in ("train", "dev")]
    if split not in judged:
        raise ValueError(f"{split!r} is no split that {task.name} can be judged on (-t): there is {', '.join(judged)}")
    autocast, _ = precision(expert.config.runner.precision, device)
    rows = expert.evaluate(split, autocast, device)
    unheard = sum(distributed.gather([expert.unheard]))
    if unheard:
        log.warning("%d utterances of %s could not be decoded and are not in its figures", unheard, split)
    if distributed.is_main():
        _write(expert, rows, split, folder, step, unheard)
    distributed.wait()
    return rows


def _write(expert: DownstreamExpert, rows: list[Row], split: str, folder: Path, step: int, unheard: int) -> None:
    """Figures, predictions and pictures of a split; ``unheard`` of its utterances could not be decoded."""
    task = expert.task
    figures = results.measure(task.score, [rows], task.resample_by, task.units)
    results.write_rows(rows, folder / f"predictions-{split}.jsonl")
    layers = expert.model.featurizer.shares()
    left_out = dict(task.left_out.get(split, {})) | ({"undecodable": unheard} if unheard else {})
    summary = {
        "task": task.name,
        "split": split,
        "metric": task.metric,
        "metrics": figures,
        "utterances": len(task.splits[split]) - unheard,
        "left_out": left_out,
        "upstream": {"name": expert.upstream.name, "fingerprint": expert.upstream.fingerprint},
        **({"step": step} if task.trained else {}),
        "layer_weights": layers,
        "state": task.state(),
        "notes": task.notes,
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


def page(folder: Path, split: str) -> Path:
    """Where the summary of an evaluation is."""
    return folder / ("summary.md" if split == "test" else f"summary-{split}.md")


def join_folds(task: Task, config: DownstreamConfig, folders: Sequence[Path], folder: Path) -> str:
    """Mean and spread of the figures over folds; writes ``metrics-test.json`` and ``summary.md``."""
    each = [results.read_rows(place / "predictions-test.jsonl") for place in folders]
    figures = results.measure(task.score, each, task.resample_by, task.units)
    parts = [checkpoint.load_json(place / "metrics-test.json") for place in folders]
    summary = {
        "task": task.name,
        "split": "test",
        "metric": task.metric,
        "metrics": figures,
        "utterances": sum(part["utterances"] for part in parts),
        "folds": [place.name for place in folders],
        "upstream": parts[0]["upstream"],
        "notes": sorted({note for part in parts for note in part["notes"]}),
    }
    checkpoint.save_text(settings.to_yaml(config), folder / "config.yaml")
    checkpoint.save_json(summary, folder / "metrics-test.json")
    text = _page(summary, [f"{place.name}: see {place.name}/summary.md" for place in folders], [])
    checkpoint.save_text(text, page(folder, "test"))
    return text


def _page(summary: Mapping[str, Any], lines: Sequence[str], drawn: Sequence[str]) -> str:
    where = f", the checkpoint of step {summary['step']}, which did best on dev" if "step" in summary else ""
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
            "",
            "Intervals are over the test items (1,000 bootstrap draws), not over seeds. Every prediction is a line of "
            f"predictions-{summary['split']}.jsonl{' in the folder of its fold' if 'folds' in summary else ''}.",
            "",
        ]
    )


def _figure(name: str, figure: dict[str, Any], main: bool) -> str:
    text = results.in_words(name, figure)
    return f"- **{text}**" if main else f"- {text}"
