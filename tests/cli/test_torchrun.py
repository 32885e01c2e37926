"""``torchrun --nproc_per_node=2 run_downstream.py``: figures and weights of one process, through stop and resume."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from .conftest import ROOT, Commands, Finished

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
# Batches of five, the last of an epoch of four: parts of unequal size.
TINY = "runner.eval_step=2,runner.log_step=1,runner.save_step=2,data.batch_size=5,optimizer.lr=0.003"


@contextmanager
def two_processes(
    commands: Commands, cwd: Path, *arguments: str | Path, script: str = "run_downstream.py"
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a script of the checkout in two processes on the CPU."""
    command = [*TORCHRUN, "--nproc_per_node=2", str(ROOT / script), *map(str, arguments)]
    environment = {**commands.environment, "PYTHONPATH": str(ROOT)}
    with (cwd / "err").open("w") as err, (cwd / "out").open("w") as out:
        process = subprocess.Popen(
            [*command, "--device", "cpu"], cwd=cwd, env=environment, stdout=out, stderr=err, start_new_session=True
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def run(commands: Commands, cwd: Path, *arguments: str | Path) -> Finished:
    with two_processes(commands, cwd, *arguments) as process:
        status = process.wait(timeout=240)
    return Finished(status, (cwd / "out").read_text(), (cwd / "err").read_text())


def training(task: str, data: Path, name: str, steps: int, *more: str) -> list[str]:
    fixed = ["-u", "fbank", "-d", task, "-n", name, "--data", str(data)]
    return [*fixed, "-o", f"{TINY},runner.total_steps={steps}", *more]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def same_weights(one: Path, other: Path) -> None:
    theirs = weights(other)
    for name, tensor in weights(one).items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-5, rtol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


@pytest.fixture(scope="module")
def whole(commands: Commands, minis: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keyword spotting, eight steps in one process: its epochs have five batches."""
    folder = tmp_path_factory.mktemp("whole")
    commands.downstream(folder, *training("ks", minis, "run", 8)).success()
    return folder / "result" / "downstream" / "run"


def test_two_processes_train_as_one(commands: Commands, minis: Path, whole: Path, tmp_path: Path) -> None:
    done = run(commands, tmp_path, *training("ks", minis, "run", 8)).success()
    two = tmp_path / "result" / "downstream" / "run"
    for place in ("states-6", "states-8", "best"):
        same_weights(two / place, whole / place)
    start, end = weights(whole / "states-6"), weights(whole / "states-8")
    assert max(float((start[name] - end[name]).abs().max()) for name in start) > 1e-3  # there was something to learn
    assert lines(two, "valid") == lines(whole, "valid") and len(lines(two, "valid")) == 5
    norms = [[line["gradient_norm"] for line in lines(folder, "train")] for folder in (two, whole)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    metrics = [json.loads((folder / "metrics-test.json").read_text()) for folder in (two, whole)]
    assert [one["metrics"] for one in metrics][0] == metrics[1]["metrics"]
    rows = [(folder / "predictions-test.jsonl").read_text().splitlines() for folder in (two, whole)]
    ids = [[json.loads(row)["id"] for row in some] for some in rows]
    assert ids[0] == ids[1] and len(set(ids[0])) == 8
    assert done.out.count("# ks with fbank: test") == 1  # one of them speaks


def test_what_two_began_one_ends(commands: Commands, minis: Path, whole: Path, tmp_path: Path) -> None:
    run(commands, tmp_path, *training("ks", minis, "run", 4)).success()
    commands.downstream(tmp_path, *training("ks", minis, "run", 8, "-a")).success()
    ended = tmp_path / "result" / "downstream" / "run"
    same_weights(ended / "states-8", whole / "states-8")
    assert lines(ended, "valid") == lines(whole, "valid")


def test_sigterm_of_torchrun_saves(commands: Commands, minis: Path, whole: Path, tmp_path: Path) -> None:
    """As a cluster's scheduler does before it takes the machine away; then one process goes on for a while."""
    folder = tmp_path / "result" / "downstream" / "run"
    with two_processes(commands, tmp_path, *training("ks", minis, "run", 100_000)) as process:
        end = time.monotonic() + 120
        while not list(folder.glob("states-*/trainer.pt")):
            assert process.poll() is None and time.monotonic() < end, (tmp_path / "err").read_text()
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
    said = (tmp_path / "err").read_text()
    steps = sorted(int(path.name.removeprefix("states-")) for path in folder.glob("states-*"))
    assert f"Stopped at step {steps[-1]}, saved" in said and not list(folder.glob(".*"))
    logged = [line["step"] for line in lines(folder, "train")]
    assert logged == list(range(1, steps[-1] + 1))
    more = steps[-1] + 2
    commands.downstream(tmp_path, *training("ks", minis, "run", more, "-a")).success()
    assert [line["step"] for line in lines(folder, "train")] == list(range(1, more + 1))
    heard, expected = ([line["acc"] for line in lines(one, "valid")] for one in (folder, whole))
    shared = min(len(heard), len(expected))
    assert shared >= 3 and heard[:shared] == expected[:shared]


def test_query_by_example(commands: Commands, minis: Path, tmp_path: Path) -> None:
    """Nothing is trained, and queries and documents are dealt out."""
    arguments = ["-u", "fbank", "-d", "qbe", "--data", minis]
    commands.downstream(tmp_path, *arguments, "-n", "one").success()
    run(commands, tmp_path, *arguments, "-n", "two").success()
    one, two = (tmp_path / "result" / "downstream" / name for name in ("one", "two"))
    rows = [(folder / "predictions-test.jsonl").read_text().splitlines() for folder in (one, two)]
    for mine, theirs in zip(*([json.loads(row) for row in some] for some in rows), strict=True):
        assert {**mine, "score": 0} == {**theirs, "score": 0}
        assert mine["score"] == pytest.approx(theirs["score"], abs=1e-4)
    metrics = [json.loads((folder / "metrics-test.json").read_text()) for folder in (one, two)]
    for name, figure in metrics[0]["metrics"].items():
        assert figure["value"] == pytest.approx(metrics[1]["metrics"][name]["value"], abs=0.01)


def test_folds_wait_for_each_other(commands: Commands, minis: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "emotions"
    shutil.copytree(minis / "emotions_mini", corpus, symlinks=True)
    for path in [*corpus.glob("fold[345]_*.jsonl")]:
        path.unlink()
    run(commands, tmp_path, *training("er", corpus, "run", 1)).success()
    folder = tmp_path / "result" / "downstream" / "run"
    assert len(json.loads((folder / "metrics-test.json").read_text())["metrics"]["acc"]["each"]) == 2


def test_what_cannot_be_decoded_is_counted_once(commands: Commands, minis: Path, tmp_path: Path) -> None:
    """By whichever process meets it, and for the split that it is in."""
    corpus = tmp_path / "keywords"
    shutil.copytree(minis / "keywords_mini", corpus, symlinks=True)
    audio = (corpus / "audio").resolve()
    (corpus / "audio").unlink()
    shutil.copytree(audio, corpus / "audio")
    for split, count in (("dev", 3), ("test", 2)):
        rows = [json.loads(line) for line in (corpus / f"{split}.jsonl").read_text().splitlines()]
        for row in rows[:count]:
            spoil(corpus, row)
        (corpus / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ["-o", "data.check=header"]
    commands.at_once(
        lambda: commands.downstream(tmp_path, *training("ks", corpus, "one", 2), *settings).success(),
        lambda: run(commands, tmp_path, *training("ks", corpus, "two", 2), *settings).success(),
    )
    for name in ("one", "two"):
        found = json.loads((tmp_path / "result" / "downstream" / name / "metrics-test.json").read_text())
        assert (found["left_out"], found["utterances"]) == ({"undecodable": 2}, 6), name


def spoil(corpus: Path, row: dict[str, Any]) -> None:
    """Give it FLAC of one second whose first half alone is there, which its header does not tell."""
    import numpy as np
    import soundfile

    row["audio"] = f"audio/{row['id']}.flac"
    soundfile.write(corpus / row["audio"], 0.1 * np.random.default_rng(0).standard_normal(16000), 16000)
    data = (corpus / row["audio"]).read_bytes()
    (corpus / row["audio"]).write_bytes(data[: len(data) // 2])
