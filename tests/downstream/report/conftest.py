"""A benchmark of three upstreams made from the committed figures of real runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from s3prl_distiller.downstream.benchmark.figures import TASKS
from s3prl_distiller.downstream.pictures import benchmark as pictures

from .benches import LABELS, RUNS, change, settings_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """fbank, a teacher and its student on ten tasks, with the keys that runs leave today."""
    top = tmp_path / "bench"
    for label in LABELS:
        for task in TASKS:
            run = top / label / task
            shutil.copytree(RUNS / label / task, run)
            stated = {"data": {"train": "aa11", "test": f"of {task}"}, "settings": settings_of(run)}
            change(run / "metrics-test.json", protocol=stated, seconds=12.5, search=None)
        cost = {"name": label, "parameters": 26_870_000, "macs_per_second": 2.31e9, "real_time_factor": 0.02}
        cost |= {"seconds": 10.0, "batch": 1, "device": "Some CPU", "threads": 2, "precision": "float32"}
        cost |= {"peak_memory": 400 * 2**20, "versions": {"torch": "2.11.0"}}
        (top / label / "cost.json").write_text(json.dumps(cost), encoding="utf-8")
    change(top / "student" / "cost.json", parameters=9_130_000, macs_per_second=1.02e9, real_time_factor=0.008)
    upstreams = [{"label": label, "name": f"models/{label}", "ckpt": None} for label in LABELS]
    about = {"format": "s3prl_distiller.superb", "tier": "mini", "data": "speech", "upstreams": upstreams}
    about |= {"tasks": list(TASKS), "teacher": "hubert_small", "baseline": "fbank"}
    (top / "benchmark.json").write_text(json.dumps(about), encoding="utf-8")
    return top


@pytest.fixture
def drawn() -> None:
    """For tests that look at pictures: the others do without, which takes seconds."""


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "drawn" not in request.fixturenames:
        for name in ("layers", "size_and_score", "forest"):
            monkeypatch.setattr(pictures, name, lambda *_: "")
