"""``run_downstream.py`` on a few utterances of real speech: every task trains, is judged, goes on exactly, is used."""

from __future__ import annotations

import json
import math
from importlib.metadata import version
from pathlib import Path

import pytest
from s3prl_distiller.downstream.core import results, run

from .conftest import BUNDLE, Commands, sha256

TASKS = {
    "asr": "wer",
    "pr": "per",
    "ks": "acc",
    "ic": "acc",
    "sf": "slot_f1",
    "sid": "acc",
    "asv": "eer",
    "sd": "der",
    "er": "acc",
    "qbe": "mtwv",
}
TINY = "runner.eval_step=2,runner.log_step=1,runner.save_step=2,data.batch_size=4,task.unseen_labels=skip"


# SUPERB's recurrent heads take seconds a step on a CPU.
SMALLER = {
    "asr": "task.project_dim=32,task.hidden=32",
    "sf": "task.project_dim=32,task.hidden=32",
    "er": "task.fold=2",
}


def training(task: str, minis: Path, name: str, steps: int, *more: str) -> list[str]:
    upstream = str(BUNDLE / "hubert_nano") if task in ("ks", "asr", "qbe") else "fbank"
    fixed = ["-u", upstream, "-d", task, "-n", name, "--data", str(minis), "-o", f"{TINY},runner.total_steps={steps}"]
    return [*fixed, *(["-o", SMALLER[task]] if task in SMALLER else []), *more]


@pytest.mark.parametrize("task", TASKS)
def test_task(task: str, minis: Path, commands: Commands, tmp_path: Path, speech_files: list[Path]):
    """From data to figures, in one go and in two, on another split, and on a user's own files."""
    kind = run.task_class(task)
    folder = tmp_path / "result" / "downstream"
    whole, halves = folder / "whole", folder / "halves"
    said = []
    stories = [lambda: said.append(commands.downstream(tmp_path, *training(task, minis, "whole", 4)).success())]
    if kind.trained:
        stories.append(lambda: commands.downstream(tmp_path, *training(task, minis, "halves", 2)).success())
    commands.at_once(*stories)
    summary = json.loads((whole / "metrics-test.json").read_text())
    figure = summary["metrics"][TASKS[task]]
    assert summary["metric"] == TASKS[task] and math.isfinite(figure["value"])
    assert figure["low"] <= figure["value"] + 1e-6 and figure["value"] <= figure["high"] + 1e-6
    assert f"{TASKS[task]} {figure['value']:.2f}" in said[0].out and "95 % interval" in said[0].out

    assert summary["device"] and summary["versions"]["torch"] == version("torch")

    # What is reported follows from the predictions that are written.
    rows = results.read_rows(whole / "predictions-test.jsonl")
    trained = run.find_trained(whole)
    judge = kind(run.from_saved(trained, {}, []).task)
    judge.load_state(trained.saved["state"])
    assert judge.score(rows)[TASKS[task]] == pytest.approx(figure["value"], abs=1e-3)
    assert (whole / "config.yaml").is_file() and (whole / "summary.md").is_file()
    assert len(list(whole.rglob("*.png"))) >= (2 if kind.trained else 1)

    files = list(map(str, speech_files[24:26]))
    use = ["-m", "inference", "-e", str(whole), "--data", *files]
    judge_dev = ["-m", "evaluate", "-e", str(whole), "-t", "dev"]
    commands.at_once(
        lambda: said.append(commands.downstream(tmp_path, *use).success()),
        lambda: commands.downstream(tmp_path, *judge_dev).success(),
    )
    assert files[-1] in said[-1].out, "every answer says which file it is about"
    if not kind.trained:
        return

    # Half, then the rest: the same weights, byte by byte, as in one go.
    commands.downstream(tmp_path, *training(task, minis, "halves", 4, "-a")).success()
    for place in ("states-4", "best"):
        assert sha256(halves / place / "model.safetensors") == sha256(whole / place / "model.safetensors"), place
    assert results.read_rows(halves / "predictions-test.jsonl") == rows

    # The best on dev was kept, the untrained head apart.
    values = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    dev = [line[TASKS[task]] for line in values if line["kind"] == "valid" and line["step"] > 0]
    best = max(dev) if kind.higher_is_better else min(dev)
    again = json.loads((whole / "metrics-dev.json").read_text())["metrics"][TASKS[task]]["value"]
    assert again == pytest.approx(best, abs=1e-3)


def test_an_untrained_task_needs_no_run(commands: Commands, tmp_path: Path, speech_files: list[Path]):
    """Query by example: the first file is looked for in the others, in the order they are given in."""
    query, *documents = map(str, speech_files[24:27])
    upstream = str(BUNDLE / "hubert_nano")
    done = commands.downstream(
        tmp_path, "-m", "inference", "-d", "qbe", "-u", upstream, "--data", query, *documents
    ).success()
    lines = done.out.splitlines()
    assert len(lines) == 2
    for line, document in zip(lines, documents, strict=True):
        assert line.startswith(f"{query} in {document}: -")
