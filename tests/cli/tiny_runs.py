"""Downstream runs of seconds: their arguments, and what they left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from .conftest import Finished

TINY = "runner.eval_step=2,runner.log_step=1,runner.save_step=2,data.batch_size=4,runner.total_steps=2"
SMALLER = {"asr": "task.project_dim=16,task.hidden=16", "sf": "task.project_dim=16,task.hidden=16"}


def training(task: str, data: Path | str, *more: str, name: str = "run") -> list[str]:
    upstream = [] if "-u" in more else ["-u", "fbank"]
    fixed = [*upstream, "-d", task, "-n", name, "--data", str(data), "-o", TINY]
    return [*fixed, *(["-o", SMALLER[task]] if task in SMALLER else []), *more]


def metrics(cwd: Path, name: str = "run", split: str = "test") -> dict[str, Any]:
    return json.loads((cwd / "result" / "downstream" / name / f"metrics-{split}.json").read_text())


def log_lines(cwd: Path, kind: str, name: str = "run") -> list[dict[str, Any]]:
    path = cwd / "result" / "downstream" / name / "log.jsonl"
    return [line for line in map(json.loads, path.read_text().splitlines()) if line["kind"] == kind]


def says(done: Finished, *parts: str) -> None:
    said = done.refusal()
    assert all(part in said for part in parts), said


def nothing_was_trained(cwd: Path) -> None:
    assert not list(cwd.glob("result/downstream/*/states-*")) and not list(cwd.glob("result/downstream/*/best"))


def wav(path: Path, samples: np.ndarray) -> str:
    soundfile.write(path, samples.astype(np.float32), 16000, subtype="FLOAT")
    return str(path)
