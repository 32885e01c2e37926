"""What ``benchmark.json`` says of a benchmark, and whether what a command asks for belongs to it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from s3prl_distiller import checkpoint

from .collect import FORMAT
from .tiers import TASKS, Flat, Tier
from .upstreams import Upstream

FILE = "benchmark.json"

FREE = re.compile(
    r"data\.(num_workers|memory_hours|cache_dir|check)|features\.(folder|disk_gb|memory_gb)|"
    r"runner\.(log_step|save_step|max_keep)"
)
"""Settings that figures do not depend on: where things are kept, how they are read, how often something is written."""


def describe(
    tier: Tier, data: str, upstreams: Sequence[Upstream], values: dict[str, Flat], places: dict[str, Path]
) -> dict[str, Any]:
    """What ``benchmark.json`` says of a benchmark, apart from its teacher."""
    baseline = next((one.label for one in upstreams if one.name == "fbank"), None)
    return {
        "format": FORMAT,
        "tier": tier.name,
        "data": data,
        "upstreams": [{"label": one.label, "name": one.name, "ckpt": one.ckpt} for one in upstreams],
        "tasks": [task for task in TASKS if task in values],
        "teacher": None,
        "baseline": baseline,
        "places": {task: str(places[task]) for task in values},
        "settings": values,
    }


def read(folder: Path) -> dict[str, Any] | None:
    """What ``benchmark.json`` says; None where there is none.

    Raises:
        ValueError: it is none of ours.
    """
    if not (folder / FILE).is_file():
        return None
    found = checkpoint.load_json(folder / FILE)
    if found.get("format") != FORMAT:
        raise ValueError(f"{folder / FILE} is not of a benchmark: choose another name (-n)")
    return found


def upstreams_of(found: dict[str, Any] | None) -> list[Upstream]:
    """Those that ``benchmark.json`` names."""
    return [Upstream(one["label"], one["name"], one["ckpt"]) for one in (found or {}).get("upstreams", [])]


def join(before: dict[str, Any] | None, now: dict[str, Any], teacher: str | None, folder: Path) -> dict[str, Any]:
    """A benchmark that has what it had and what is asked for now: upstreams and tasks may be added to it.

    Raises:
        ValueError: what is asked for does not belong to it, or the teacher is none of its upstreams.
    """
    joined = now
    if before is not None:
        _check_belongs(before, now, folder)
        upstreams = {one["label"]: one for one in [*before["upstreams"], *now["upstreams"]]}
        tasks = {*before["tasks"], *now["tasks"]}
        joined = {
            **now,
            "data": before["data"],
            "upstreams": list(upstreams.values()),
            "tasks": [task for task in TASKS if task in tasks],
            "teacher": before["teacher"],
            "baseline": before["baseline"] or now["baseline"],
            "places": {**before["places"], **now["places"]},
            "settings": {**before["settings"], **now["settings"]},
        }
    if teacher is not None:
        labels = [one["label"] for one in joined["upstreams"]]
        if teacher not in labels:
            raise ValueError(f"--teacher {teacher} is none of the labels {', '.join(labels)}")
        joined["teacher"] = teacher
    return joined


def _check_belongs(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    pairs: list[tuple[str, Any, Any]] = [("the tier", before["tier"], now["tier"])]
    names = {one["label"]: (one["name"], one["ckpt"]) for one in before["upstreams"]}
    for one in now["upstreams"]:
        if one["label"] in names:
            pairs.append((f"the upstream of {one['label']}", names[one["label"]], (one["name"], one["ckpt"])))
    for task in now["tasks"]:
        if task in before["tasks"]:
            pairs.append((f"the data of {task}", before["places"][task], now["places"][task]))
            old, new = before["settings"][task], now["settings"][task]
            pairs += [(f"{key} of {task}", old.get(key), new.get(key)) for key in {**old, **new}]
    for what, one, other in pairs:
        if one != other and not FREE.fullmatch(what.split(" ")[0]):
            raise ValueError(
                f"{folder} holds another benchmark: {what} is {_words(one)} there and {_words(other)} in this command; "
                "give the new one another name (-n)"
            )


def _words(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return " ".join(str(part) for part in value if part is not None)
    return "the task's own" if value is None else str(value)
