"""``torchrun --nproc_per_node=2 run_pretrain.py``: losses and weights of one process, whoever goes on after whom."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from s3prl_distiller.cli.runs import agree
from s3prl_distiller.engine import distributed

from .conftest import Commands, Finished
from .test_torchrun import two_processes

# Without dropout, which each process draws for itself. Batches of three of different lengths, the last of an epoch of
# two: parts of unequal size. Two batches a step, so that steps and epochs (8 batches) do not end together.
PLAIN = {
    "distiller.dropout": 0.0,
    "distiller.attention_dropout": 0.0,
    "distiller.activation_dropout": 0.0,
    "distiller.encoder_layerdrop": 0.0,
    "task.sequence_length": 48000,
    "data.batch_size": 3,
    "data.num_buckets": 1,
    "data.num_workers": 1,
    "runner.total_steps": 6,
    "runner.gradient_accumulate_steps": 2,
    "runner.log_step": 2,
    "runner.eval_step": 3,
    "runner.save_step": 3,
    "runner.max_keep": 9,
}


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / f"states-{step}" / "model.safetensors")


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], atol=1e-5, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}")


def close_logs(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    for mine, theirs in zip(one, other, strict=True):
        assert mine.pop("kind") == theirs.pop("kind") and mine == pytest.approx(theirs, rel=1e-3)


def two(commands: Commands, cwd: Path, *arguments: str | Path) -> Finished:
    with two_processes(commands, cwd, *arguments, script="run_pretrain.py") as process:
        status = process.wait(timeout=240)
    return Finished(status, (cwd / "out").read_text(), (cwd / "err").read_text())


def result(cwd: Path) -> Path:
    return cwd / "result" / "pretrain" / "one"


@pytest.fixture(scope="module")
def whole(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cwd = tmp_path_factory.mktemp("whole")
    commands.run(cwd, *commands.training(PLAIN), "-n", "one").success()
    return result(cwd)


def test_two_processes_distil_as_one(commands: Commands, whole: Path, tmp_path: Path, log_of: Any) -> None:
    done = two(commands, tmp_path, *commands.training(PLAIN), "-n", "one").success()
    assert done.out.count("Validation loss") == 1 and done.err.count("Data: training") == 1
    start, end = weights(whole, 3), weights(whole, 6)
    assert max(float((start[name] - end[name]).abs().max()) for name in start) > 1e-4  # there was something to learn
    for step in (3, 6):
        close(weights(result(tmp_path), step), weights(whole, step))
    close_logs(log_of(result(tmp_path)), log_of(whole))


@pytest.mark.parametrize("first", [1, 2])
def test_what_some_began_others_end(commands: Commands, whole: Path, tmp_path: Path, log_of: Any, first: int) -> None:
    """A line of the log is of steps before and after."""
    ways = {1: lambda *a: commands.run(tmp_path, *a).success(), 2: lambda *a: two(commands, tmp_path, *a).success()}
    command = [*commands.training(PLAIN), "-n", "one", "-a"]
    short = result(tmp_path)
    if first == 1:
        shutil.copytree(whole, short)
        for path in (short / "states-6", short / "states-6.ckpt"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    else:
        ways[2](*command)
        shutil.rmtree(short / "states-6")
    ways[3 - first](*command)
    close(weights(short, 6), weights(whole, 6))
    close_logs(log_of(short), log_of(whole))


def test_fewer_utterances_in_a_batch_than_processes(commands: Commands, tmp_path: Path, log_of: Any) -> None:
    """One process has nothing to do, and the run is that of the other."""
    alone = {**PLAIN, "data.batch_size": 1, "runner.total_steps": 2, "runner.eval_step": 2}
    commands.run(tmp_path, *commands.training(alone), "-n", "alone").success()
    two(commands, tmp_path, *commands.training(alone), "-n", "one").success()
    close(weights(result(tmp_path), 2), weights(result(tmp_path).with_name("alone"), 2))
    close_logs(log_of(result(tmp_path)), log_of(result(tmp_path).with_name("alone")))


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def rank_of(pid: int) -> str | None:
    found = re.search(rb"(?:^|\0)RANK=(\d+)", Path(f"/proc/{pid}/environ").read_bytes())
    return found[1].decode() if found else None


def test_a_killed_process_ends_the_run_and_a_resume_makes_it_whole(
    commands: Commands, tmp_path: Path, log_of: Any
) -> None:
    """With dropout, each process its own: the run that was killed becomes, bit for bit, the one that was not."""
    settings = {"task.sequence_length": 8000, "data.batch_size": 3, "runner.total_steps": 24, "runner.save_step": 4}
    command = [*commands.training({**settings, "runner.eval_step": 24}), "-n", "one", "-a"]
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    two(commands, undisturbed, *command).success()
    with two_processes(commands, tmp_path, *command, script="run_pretrain.py") as process:
        end = time.monotonic() + 120
        while not (result(tmp_path) / "states-4").exists():
            assert process.poll() is None and time.monotonic() < end, (tmp_path / "err").read_text()
            time.sleep(0.01)
        (victim,) = [pid for pid in children(process.pid) if rank_of(pid) == "1"]
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        assert process.wait(timeout=60) != 0 and time.monotonic() - killed < 60
    said = (tmp_path / "err").read_text()
    assert "error: another process of this run has ended" in said and "-a goes on" in said, said
    assert not (result(tmp_path) / "states-24").exists()
    two(commands, tmp_path, *command).success()
    one, other = (weights(result(folder), 24) for folder in (tmp_path, undisturbed))
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert log_of(result(tmp_path)) == log_of(result(undisturbed))


def test_all_machines_must_see_the_checkpoints(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    theirs: list[Path | None] = [tmp_path / "states-3"]
    monkeypatch.setattr(distributed, "gather", lambda own: [*own, *theirs])
    agree(tmp_path / "states-3", tmp_path)
    with pytest.raises(ValueError, match=f"not all processes see the same checkpoints in {tmp_path}"):
        agree(None, tmp_path)


def test_a_dry_run_is_of_one_process(commands: Commands, tmp_path: Path) -> None:
    done = two(commands, tmp_path, *commands.training(PLAIN), "-n", "one", "--dry-run")
    assert done.status != 0 and "error: --dry-run times the steps of one process: start it without torchrun" in done.err
    assert not result(tmp_path).exists()
