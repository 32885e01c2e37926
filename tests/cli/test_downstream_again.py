"""Downstream runs that are there: gone on with, judged and used again as they were begun, never written over."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch

from .conftest import BUNDLE, Commands
from .tiny_runs import SMALLER, log_lines, metrics, says, training, wav

# -- s3prl's names


def test_s3prls_names(commands: Commands, minis: Path, tmp_path: Path) -> None:
    """Of tasks, and of keys with ``config.`` before and ``,,`` between them."""

    def keywords() -> None:
        options = [
            "config.runner.total_steps=3,,config.runner.eval_step=1,,config.downstream_expert.datarc.train_batch_size=4"
        ]
        fixed = ["-u", "fbank", "-d", "speech_commands", "-n", "ks", "--data", str(minis)]
        commands.downstream(tmp_path, *fixed, "-o", *options).success()
        assert metrics(tmp_path, "ks")["task"] == "ks"
        folder = tmp_path / "result" / "downstream" / "ks"
        config = (folder / "config.yaml").read_text()
        assert "batch_size: 4\n" in config and "total_steps: 3\n" in config
        assert [line["step"] for line in log_lines(tmp_path, "valid", "ks")] == [0, 1, 2, 3]

    def slots() -> None:
        fixed = training("ctc", minis, "-c", "snips", "-o", SMALLER["sf"], name="sf")
        commands.downstream(tmp_path, *fixed).success()
        assert metrics(tmp_path, "sf")["task"] == "sf"

    commands.at_once(keywords, slots)


# -- a run that is there


@pytest.fixture(scope="module")
def trained(commands: Commands, minis: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keyword spotting on a copy of the bundled teacher, trained for two steps."""
    cwd = tmp_path_factory.mktemp("trained")
    shutil.copytree(BUNDLE / "hubert_nano", cwd / "teacher")
    commands.downstream(cwd, *training("ks", minis, "-u", "teacher")).success()
    return cwd


@pytest.fixture
def again(trained: Path, tmp_path: Path) -> Path:
    """A copy of its folder, where its upstream is the same file as before."""
    shutil.copytree(trained / "result", tmp_path / "result")
    return tmp_path


def test_a_run_is_not_overwritten(
    commands: Commands, again: Path, minis: Path, contents: Callable[[Path], dict[str, str]]
) -> None:
    run = again / "result" / "downstream" / "run"
    before = contents(again)
    attempts = [
        training("ks", minis),
        training("sid", minis),
        training("ks", minis, "-p", str(run)),
        training("ks", minis, "--seed", "3"),
    ]
    for arguments in attempts:
        says(commands.downstream(again, *arguments), "already holds a run", "-a", "-n")
        assert contents(again) == before
    # Nor gone on with as another run.
    for arguments, part in (
        (training("ks", minis, "-a"), "upstream.name"),
        (training("sid", minis, "-a", "-u", "fbank"), "is a run of ks, not of sid"),
        (["-m", "evaluate", "-e", str(run), "-d", "sid"], "is a run of ks, not of sid"),
        (["-m", "evaluate", "-e", str(run), "-l", "2"], "upstream.layer=None"),
        (["-m", "evaluate", "-e", str(run), "-r"], "upstream.normalize=False"),
        (["-m", "evaluate", "-e", str(run), "-s", "last_hidden_state"], "upstream.feature=hidden_states"),
        (["-m", "evaluate", "-e", str(run), "-n", "run", "-o", "data.batch_size=2"], "already holds results"),
        (["-m", "evaluate", "-e", str(run), "-o", "data.batch_size=2"], "-n"),
        (["-m", "evaluate", "-e", str(run), "-t", "tset"], "'tset'"),
    ):
        says(commands.downstream(again, *arguments), part)
        after = contents(run)
        lost = {name for name in before if name.startswith("result/downstream/run/")} - {
            f"result/downstream/run/{name}" for name in after
        }
        assert not lost
        changed = {n for n in after if before.get(f"result/downstream/run/{n}") != after[n]}
        assert changed <= {"run.log", "data_report.md", "data_report.jsonl"}, changed


def test_an_upstream_whose_weights_have_changed(
    commands: Commands, trained: Path, minis: Path, tmp_path: Path, speech_files: list[Path]
) -> None:
    """A head fits the weights that it was trained on: with others its figures would say nothing."""
    run = tmp_path / "result" / "downstream" / "run"
    shutil.copytree(trained / "result" / "downstream" / "run", run)
    other = tmp_path / "other"
    shutil.copytree(trained / "teacher", other)
    weights = safetensors.torch.load_file(other / "model.safetensors")
    name = next(name for name in sorted(weights) if name.endswith("weight"))
    weights[name] = weights[name] * 1.001
    safetensors.torch.save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    for arguments in (
        ["-m", "evaluate", "-e", str(run), "-u", str(other)],
        ["-m", "inference", "-e", str(run), "-u", str(other), "--data", str(speech_files[30])],
        ["-m", "evaluate", "-e", str(run), "-u", "fbank"],
    ):
        says(commands.downstream(tmp_path, *arguments), "was trained on", "weights are others")
    assert not list(run.glob("metrics-dev*"))
    commands.downstream(tmp_path, "-m", "evaluate", "-e", str(run), "-t", "dev").success()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "checksums.json"])
def test_a_damaged_best_checkpoint(
    name: str, commands: Commands, again: Path, contents: Callable[[Path], dict[str, str]]
) -> None:
    run = again / "result" / "downstream" / "run"
    path = run / "best" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x55
    path.write_bytes(data)
    before = contents(run)
    says(commands.downstream(again, "-m", "evaluate", "-e", str(run), "-t", "dev"), "best", "damaged")
    assert contents(run) == before
    # The others are whole, and each can be named.
    (whole,) = run.glob("states-*")
    commands.downstream(again, "-m", "evaluate", "-e", str(whole), "-t", "dev").success()
    path.unlink()
    done = commands.downstream(again, "-m", "evaluate", "-e", str(run), "-t", "dev")
    assert done.status in (0, 2) and "Traceback" not in done.err


def test_files_that_cannot_be_heard(commands: Commands, again: Path, tmp_path: Path, speech_files: list[Path]) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(16000)
    broken = noise.copy()
    broken[8000] = np.nan
    (tmp_path / "letter.wav").write_text("Dear Sir or Madam")
    (tmp_path / "empty").mkdir()
    (tmp_path / "half.flac").write_bytes(speech_files[0].read_bytes()[:9000])
    good = str(speech_files[30])
    refused = {
        "letter.wav": str(tmp_path / "letter.wav"),
        "gone.wav": str(tmp_path / "gone.wav"),
        "empty": str(tmp_path / "empty"),
        "short.wav": wav(tmp_path / "short.wav", noise[:100]),
        "none.wav": wav(tmp_path / "none.wav", noise[:0]),
        "nan.wav": wav(tmp_path / "nan.wav", broken),
        "half.flac": str(tmp_path / "half.flac"),
    }
    start = ["-m", "inference", "-e", "result/downstream/run", "--data"]

    def refuse(name: str) -> None:
        says(commands.downstream(again, *start, good, refused[name]), name)

    commands.at_once(*(lambda name=name: refuse(name) for name in refused))
    assert commands.downstream(again, *start, good, wav(tmp_path / "good.wav", noise)).success().out.count("%") >= 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_ends_as_one_in_one_go(
    number: signal.Signals, commands: Commands, minis: Path, tmp_path: Path, contents: Callable[[Path], dict[str, str]]
) -> None:
    folder = tmp_path / "result" / "downstream" / "stopped"
    settings = ["-o", "runner.save_step=1000,runner.eval_step=1000"]
    running = commands.start(
        tmp_path,
        *training("ks", minis, *settings, "-o", "runner.total_steps=100000", name="stopped"),
        script="run_downstream.py",
    )
    log = folder / "log.jsonl"
    assert running.until(lambda: log.is_file() and log.read_bytes().count(b"\n") > 7)
    running.send(number)
    done = running.wait()
    assert done.status == (130 if number == signal.SIGINT else 0) and "Traceback" not in done.err, done.err
    (saved,) = folder.glob("states-*")
    step = int(saved.name.removeprefix("states-"))
    assert step >= 6 and f"Stopped at step {step}, saved" in done.err and "-a goes on" in done.err
    more = ["-o", f"runner.total_steps={step + 5}"]
    commands.at_once(
        lambda: commands.downstream(tmp_path, *training("ks", minis, *settings, *more, "-a", name="stopped")).success(),
        lambda: commands.downstream(tmp_path, *training("ks", minis, *settings, *more, name="whole")).success(),
    )
    whole = folder.parent / "whole"
    for place in (f"states-{step + 5}/model.safetensors", "best/model.safetensors", "predictions-test.jsonl"):
        assert contents(folder)[place] == contents(whole)[place], place
