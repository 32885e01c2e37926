"""Whether a run is by SUPERB's own protocol, whatever its tier is called: its settings and the size of its test set."""

from __future__ import annotations

from functools import cache

from s3prl_distiller import settings

from ..core import run
from ..er import COUNTS
from .collect import Cell, flat

# What SUPERB leaves open or this program adds, and where files lie.
_FREE = ("task.lexicon", "task.test_root", "task.split_file", "task.trials", "task.fold")
_SECTIONS = ("task", "data", "runner", "optimizer")
_OPEN = ("optimizer.lr", "runner.precision")


def deviation(task: str, cell: Cell) -> str:
    """What of a run is not SUPERB's, in a few words; empty where nothing is."""
    stated = flat(cell.settings)
    for key, value in _settings(task).items():
        if key not in stated and key not in _FREE and key in _ESSENTIAL:
            return f"{key} is not stated"
        if key in stated and key not in _FREE + _OPEN and stated[key] != value:
            return f"{key} is {stated[key]} and not {value}"
    expected = _test_items(task)
    if expected and cell.utterances is not None and cell.utterances + cell.left_out != expected:
        return f"{cell.utterances + cell.left_out:,} test items and not {expected:,}"
    return ""


_ESSENTIAL = ("runner.total_steps", "data.batch_size", "runner.gradient_accumulate_steps", "optimizer.name")


@cache
def _settings(task: str) -> dict[str, str]:
    found = settings.plain(run.load_config(task, [], {}, []))
    left = {"runner": ("seed", "log_step", "save_step", "max_keep", "gradient_checkpointing")}
    own = {
        section: {key: value for key, value in found[section].items() if key not in left.get(section, ())}
        for section in _SECTIONS
    }
    for key in ("path", "num_workers", "memory_hours", "check", "cache_dir", "eval_batch_size"):
        own["data"].pop(key, None)
    return flat(own)


def _test_items(task: str) -> int | None:
    if task == "er":
        return sum(COUNTS.values())  # over its folds
    published = run.task_class(task).published
    return published.get("test")
