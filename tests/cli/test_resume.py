"""Whatever ends a run, ``-a`` makes of it what it would have become: the same weights to the last bit, the same log."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

# Dropout is on (0.1). 8 steps of 2 batches are more than an epoch (8 batches), so that its end is crossed as well;
# steps are logged, saved and validated at numbers that do not divide each other.
ACCUMULATED = {
    "task.sequence_length": 8000,
    "data.batch_size": 3,
    "data.num_workers": 1,
    "runner.total_steps": 8,
    "runner.gradient_accumulate_steps": 2,
    "runner.log_step": 3,
    "runner.eval_step": 4,
    "runner.max_keep": 9,
}
IN_PROCESS = {**ACCUMULATED, "runner.gradient_accumulate_steps": 1, "runner.save_step": 3, "data.num_workers": 0}


def one(cwd: Path) -> Path:
    return cwd / "result" / "pretrain" / "one"


@pytest.fixture(scope="module")
def whole(commands: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with workers and accumulation that nothing disturbed, in a new interpreter."""
    cwd = tmp_path_factory.mktemp("whole")
    commands.run_afresh(cwd, *commands.training(ACCUMULATED), "-n", "one").success()
    return one(cwd)


@pytest.fixture
def same(whole: Path, contents: Callable[[Path], dict[str, str]], log_of: Callable[[Path], list]) -> Callable:
    def same(run: Path, reference: Path = whole) -> bool:
        assert log_of(run) == log_of(reference)
        return contents(run / "states-8")["model.safetensors"] == contents(reference / "states-8")["model.safetensors"]

    return same


@pytest.fixture
def begun(whole: Path, tmp_path: Path) -> Path:
    """A working folder in which that run has been killed just after the checkpoint of step 6."""
    shutil.copytree(whole, one(tmp_path))
    for path in (one(tmp_path) / "states-8", one(tmp_path) / "states-8.ckpt", one(tmp_path) / "summary.md"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return tmp_path


def test_workers_change_nothing(commands: Any, tmp_path: Path, same: Callable) -> None:
    settings = {**ACCUMULATED, "data.num_workers": 0}
    commands.run(tmp_path, *commands.training(settings), "-n", "one").success()
    assert same(one(tmp_path))


def test_killed(commands: Any, tmp_path: Path, same: Callable) -> None:
    def story(awaited: str) -> None:
        command = [*commands.training(ACCUMULATED), "-n", "one", "-a"]
        cwd = tmp_path / awaited
        cwd.mkdir()
        first = commands.start(cwd, *command)
        assert first.until((one(cwd) / awaited).exists), first.err
        first.send(signal.SIGKILL)
        assert first.wait().status == -signal.SIGKILL and not (one(cwd) / "states-8").exists()
        again = commands.run(cwd, *command).success()
        assert same(one(cwd)), again.err

    commands.at_once(*(partial(story, awaited) for awaited in ("states-2", "states-6.ckpt")))


def test_killed_in_process_and_between_log_lines(
    commands: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, same: Callable
) -> None:
    other = tmp_path_factory.mktemp("other")
    commands.run(other, *commands.training(IN_PROCESS), "-n", "one").success()
    command = [*commands.training(IN_PROCESS), "-n", "one", "-a"]
    first = commands.start(tmp_path, *command)
    assert first.until((one(tmp_path) / "states-3").exists), first.err
    first.send(signal.SIGKILL)
    first.wait()
    again = commands.run(tmp_path, *command).success()
    assert "states-3" in again.err or "states-6" in again.err
    assert same(one(tmp_path), one(other))


def test_killed_again_and_again_while_it_writes(commands: Any, tmp_path: Path, same: Callable) -> None:
    """A few times as soon as a temporary file or folder is seen, then at random moments."""
    command = [*commands.training({**ACCUMULATED, "runner.save_step": 1}), "-n", "one", "-a"]
    run, chance = one(tmp_path), random.Random(0)
    half_written: set[Path] = set()
    for attempt in range(4):
        before = set(run.glob(".states-*"))
        current = commands.start(tmp_path, *command)
        current.until(lambda before=before: bool(set(run.glob(".states-*")) - before))
        if attempt >= 2:
            time.sleep(chance.uniform(0, 0.2))
        current.send(signal.SIGKILL)
        current.wait()
        half_written |= set(run.glob(".states-*"))
    assert half_written, "no kill came while a checkpoint was written: this test has shown nothing"
    commands.run(tmp_path, *command).success()
    assert not list(run.glob(".states-*"))
    assert same(run)


def test_asked_to_stop(commands: Any, tmp_path: Path, same: Callable) -> None:
    """Also where the whole process group is asked, workers included, as a terminal and Slurm do."""

    def story(number: signal.Signals, group: bool, moment: str) -> None:
        command = [*commands.training(ACCUMULATED), "-n", "one", "-a"]
        cwd = tmp_path / f"{number.name}-{group}-{moment}"
        cwd.mkdir()
        run = one(cwd)
        first = commands.start(cwd, *command)
        assert first.until(lambda: (run / "log.jsonl").exists() and moment in (run / "log.jsonl").read_text())
        first.send(number, group=group)
        stopped = first.wait()
        assert stopped.status == (0 if number == signal.SIGTERM else 130), stopped.err
        assert "Traceback" not in stopped.err and "-a goes on" in stopped.err
        newest = max(int(path.stem.removeprefix("states-")) for path in run.glob("states-*.ckpt"))
        assert f"Stopped at step {newest}" in stopped.err and newest < 8
        assert newest >= 3 or moment == "valid"
        assert (run / f"states-{newest}" / "checksums.json").exists()
        commands.run(cwd, *command).success()
        assert same(run)

    commands.at_once(
        partial(story, signal.SIGTERM, True, "train"),
        partial(story, signal.SIGINT, True, "train"),
        partial(story, signal.SIGTERM, False, "valid"),
    )


# -- damage


def truncate(checkpoint: Path) -> None:
    os.truncate(checkpoint / "model.safetensors", 100_000)


def flip_a_byte(checkpoint: Path) -> None:
    data = bytearray((checkpoint / "trainer.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (checkpoint / "trainer.pt").write_bytes(data)


def forget_the_sums(checkpoint: Path) -> None:
    (checkpoint / "checksums.json").unlink()


def lose_a_file(checkpoint: Path) -> None:
    (checkpoint / "trainer.pt").unlink()


def test_damaged_checkpoint_is_passed_over(commands: Any, begun: Path, same: Callable) -> None:
    def story(damage: Callable[[Path], None]) -> None:
        cwd = begun / damage.__name__
        shutil.copytree(one(begun), one(cwd))
        damage(one(cwd) / "states-6")
        done = commands.run(cwd, *commands.training(ACCUMULATED), "-n", "one", "-a").success()
        assert "WARNING" in done.err and "states-6 is damaged" in done.err
        assert same(one(cwd)), damage

    commands.at_once(*(partial(story, damage) for damage in (truncate, flip_a_byte, forget_the_sums, lose_a_file)))


def test_all_checkpoints_damaged(commands: Any, begun: Path, contents: Callable) -> None:
    """Nothing can be gone on with: that is said, and no step of the old run is overwritten unasked."""
    for step in (2, 4, 6):
        truncate(one(begun) / f"states-{step}")
    before = contents(one(begun))
    done = commands.run(begun, *commands.training(ACCUMULATED), "-n", "one", "-a")
    assert "damaged" in done.refusal()
    after = contents(one(begun))
    assert {name: after.get(name) for name in before if name != "run.log"} == {
        name: value for name, value in before.items() if name != "run.log"
    }


def test_leftovers_of_a_kill_do_no_harm(commands: Any, begun: Path, same: Callable) -> None:
    run = one(begun)
    shutil.copytree(run / "states-6", run / ".states-8.abcdefgh.tmp")
    (run / ".states-8.ckpt.abcdefgh.tmp").write_bytes(b"half")
    (run / "states-8.ckpt").write_bytes(b"half")  # its folder never came
    shutil.copytree(run / "states-6", run / "states-best")
    with (run / "log.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    commands.run(begun, *commands.training(ACCUMULATED), "-n", "one", "-a").success()
    assert same(run)


def test_finished_run_stays_as_it_is(commands: Any, whole: Path, tmp_path: Path, same: Callable) -> None:
    shutil.copytree(whole, one(tmp_path))
    commands.run(tmp_path, *commands.training(ACCUMULATED), "-n", "one", "-a").success()
    assert same(one(tmp_path)) and (one(tmp_path) / "summary.md").exists()
