"""What figures depend on besides the upstream: rows of a table may be compared where this is the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from s3prl_distiller import settings

from .config import DownstreamConfig
from .corpus import fingerprint
from .task import Task

# Where things lie, how fast they are read, what is logged and kept: figures do not depend on it.
_LEFT_OUT = {
    "upstream": {"name", "ckpt", "trainable"},
    "data": {"path", "num_workers", "memory_hours", "check", "cache_dir", "eval_batch_size"},
    "runner": {"seed", "log_step", "save_step", "max_keep", "gradient_checkpointing"},
    "features": {"keep", "folder", "disk_gb", "memory_gb", "dtype"},
}


def protocol(config: DownstreamConfig, task: Task) -> dict[str, Any]:
    """Of JSON's types: ``data``, a fingerprint of the utterances of each split, and ``settings``, by section."""
    kept = {
        section: {key: _portable(value) for key, value in values.items() if key not in _LEFT_OUT.get(section, ())}
        for section, values in settings.plain(config).items()
    }
    return {
        "data": {split: fingerprint(task.recordings(split)) for split in task.splits},
        "settings": {section: values for section, values in kept.items() if values},
    }


def join_protocols(folds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The protocol of a task of several folds: what they share, and the data of each."""
    joined = {section: dict(values) for section, values in folds[0]["settings"].items()}
    joined["task"].pop("fold", None)
    return {
        "data": {f"{split} {place + 1}": v for place, fold in enumerate(folds) for split, v in fold["data"].items()},
        "settings": joined,
    }


def _portable(value: Any) -> Any:
    """A path by its last part: it lies elsewhere on another machine."""
    return Path(value).name if isinstance(value, str) and "/" in value else value
