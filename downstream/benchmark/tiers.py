"""Tiers: what a benchmark sets for each task over ``config/downstream/TASK.yaml``, and the learning rates it tries."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any

from s3prl_distiller import settings

from ..core import run
from ..core.config import DownstreamConfig
from ..core.s3prl_names import translate
from . import figures

TASKS = tuple(figures.TASKS)
"""In the order of SUPERB's table."""

Flat = dict[str, Any]
"""Settings by ``section.key``."""


_PATHS = (
    "task.lm",
    "task.lexicon",
    "task.test_root",
    "task.split_file",
    "task.trials",
    "features.folder",
    "data.cache_dir",
)


@dataclass(frozen=True)
class Tier:
    """A tier by its name, or by that of its file."""

    name: str
    path: Path
    learning_rates: list[float]
    by_task: dict[str, Flat]

    def of(self, task: str) -> Flat:
        """What it sets for a task; the learning rates only where something is trained."""
        searched = self.learning_rates and run.task_class(task).trained
        grid = {"search.learning_rates": self.learning_rates} if searched else {}
        return {**grid, **self.by_task["all"], **self.by_task[task]}


def load_tier(name: str) -> Tier:
    """A bundled tier, or a YAML file with sections such as ``asr: {runner: {total_steps: 300}}`` and ``all``.

    Raises:
        ValueError: there is none, or it names another task; sections are looked at with the config of their task.
    """
    path = settings.find("superb", name)
    sections = [(task, dict[str, Any], field(default_factory=dict)) for task in ("all", *TASKS)]
    schema = make_dataclass("TierFile", [("learning_rates", list[float], field(default_factory=list)), *sections])
    loaded, _ = settings.load(schema, [path], {}, [])
    return Tier(
        path.stem, path, list(loaded.learning_rates), {name: flatten(getattr(loaded, name)) for name, *_ in sections}
    )


def load_config(task: str, tier: Tier, values: Flat, data: Path) -> DownstreamConfig:
    """The config of a run of a task; its upstream is still to be named.

    Args:
        values: of the tier and, over them, of the command line.

    Raises:
        ValueError: it cannot have these settings; it is said whose they are.
    """
    try:
        return _load(task, values, data)
    except ValueError as error:
        message = f"the settings of {task}: {error}"
    try:
        _load(task, tier.of(task), data)
    except ValueError as error:
        message = f"{tier.path} for {task}: {error}"
    raise ValueError(message)


def _load(task: str, values: Flat, data: Path) -> DownstreamConfig:
    return run.load_config(task, [], {"data": {"path": str(data)}}, [as_override(values)])


def read_overrides(texts: Sequence[str]) -> dict[str, Flat]:
    """Texts of ``-o``, by task; those of all tasks under "all". ``asr.task.hidden=128`` is for one task.

    Raises:
        ValueError: a text is malformed.
    """
    found: dict[str, Flat] = {name: {} for name in ("all", *TASKS)}
    for text in texts:
        values = settings.parse_overrides(text)
        for task in TASKS:
            if task in values:
                section = values.pop(task)
                if not isinstance(section, dict):
                    raise ValueError(f"-o {task}={section}: give a key below it, such as {task}.runner.total_steps=100")
                found[task] |= flatten(translate(section))
        found["all"] |= flatten(translate(values))
    return found


def flatten(values: Mapping[str, Any], prefix: str = "") -> Flat:
    """Nested settings by ``section.key``."""
    flat: Flat = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def as_override(values: Flat) -> str:
    """The text of ``-o`` that sets them; JSON's values are YAML's too."""
    return ",".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items())


def absolute_paths(values: Flat) -> Flat:
    """With the paths among them absolute, so that they mean the same from another folder."""
    return {key: _absolute(value) if key in _PATHS else value for key, value in values.items()}


def _absolute(value: Any) -> Any:
    if isinstance(value, list):
        return [_absolute(one) for one in value]
    return str(Path(value).expanduser().absolute()) if isinstance(value, str) else value
