"""What users get wrong, and what goes wrong by itself: one clear line, before training, and nothing lost."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch

RATE = 16_000
TWO = {"task.sequence_length": 8000, "runner.total_steps": 2}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "result" / "pretrain" / "one"


def speech(file: Path, seconds: float, rate: int = RATE) -> np.ndarray:
    """A stretch of a file of speech, repeated where it is too short, as if sampled at ``rate``."""
    wav, _ = soundfile.read(file, dtype="float32")
    return np.resize(wav, int(seconds * rate))


def no_folder(data: Path, _: list[Path]) -> list[str]:
    return [str(data), "does not exist"]


def empty_folder(data: Path, _: list[Path]) -> list[str]:
    data.mkdir()
    return [str(data), "no audio"]


def text_called_wav(data: Path, _: list[Path]) -> list[str]:
    data.mkdir()
    (data / "a.wav").write_text("I am no audio.\n" * 99)
    return ["a.wav", "1 of 1"]


def truncated(data: Path, files: list[Path]) -> list[str]:
    data.mkdir()
    for number, file in enumerate(files[:4]):
        soundfile.write(data / f"{number}.flac", speech(file, 3), RATE)
        if number:
            whole = (data / f"{number}.flac").read_bytes()
            (data / f"{number}.flac").write_bytes(whole[: len(whole) // 2])
    return ["3 of 4", "truncated", "data.max_bad_share", "1.flac", "data_report.jsonl"]


def not_a_number(data: Path, files: list[Path]) -> list[str]:
    data.mkdir()
    for number, file in enumerate(files[:4]):
        wav = speech(file, 2)
        wav[1000] = [math.nan, math.inf][number % 2]
        soundfile.write(data / f"{number}.wav", wav, RATE, subtype="FLOAT")
    return ["4 of 4", "0.wav"]


def one_file(data: Path, files: list[Path]) -> list[str]:
    data.mkdir()
    shutil.copy(files[0], data)
    return ["one usable recording"]


def files_gone(data: Path, _: list[Path]) -> list[str]:
    data.with_suffix(".jsonl").write_text('{"id": "a", "audio": "gone.wav"}\n{"id": "b", "audio": "gone2.wav"}\n')
    return ["gone.wav", "2 of 2"]


CASES = [no_folder, empty_folder, text_called_wav, truncated, not_a_number, one_file, files_gone]


def test_data_that_cannot_be_used(commands: Any, corpus: Path, tmp_path: Path) -> None:
    files = sorted(corpus.iterdir())

    def story(case: Callable[[Path, list[Path]], list[str]]) -> None:
        cwd = tmp_path / case.__name__
        cwd.mkdir()
        expected = case(cwd / "data", files)
        manifest = cwd / "data.jsonl"
        data = manifest if manifest.exists() else cwd / "data"
        error = commands.run(cwd, *commands.training(TWO, data), "-n", "one").refusal()
        assert all(words in error for words in expected), (case.__name__, error)
        assert not list(cwd.rglob("states-*")) and not list(cwd.rglob("log.jsonl")), case.__name__

    commands.at_once(*(partial(story, case) for case in CASES))


def test_mixed_real_data_is_trained_on(commands: Any, speech_files: list[Path], tmp_path: Path, run: Path) -> None:
    """8, 16 and 44.1 kHz, stereo, 20 minutes long, four depths, three formats: what needs saying is in the report."""
    data = tmp_path / "data"
    for place in ("a", "a/b", "c d"):
        (data / place).mkdir(parents=True)
    for file in speech_files[:8]:
        shutil.copy(file, data / "a")
    soundfile.write(data / "a" / "b" / "telephone.wav", speech(speech_files[8], 4, 8000), 8000)
    soundfile.write(data / "a" / "studio.wav", speech(speech_files[11], 3, 44_100), 44_100)
    left = speech(speech_files[9], 4)
    soundfile.write(data / "c d" / "stéréo.flac", np.stack([left, left[::-1]], 1), RATE)
    soundfile.write(data / "lecture.flac", speech(speech_files[10], 20 * 60), RATE)
    command = commands.training({**TWO, "data.batch_size": 4, "data.valid_seconds": 20}, data)
    done = commands.run(tmp_path, *command, "-n", "one").success()
    findings = {
        Path(row["path"]).name: (row["detail"], row["action"])
        for row in map(json.loads, (run / "data_report.jsonl").read_text().splitlines())
    }
    assert findings == {
        "telephone.wav": ("8000 Hz", "resampled to 16000 Hz"),
        "studio.wav": ("44100 Hz", "resampled to 16000 Hz"),
        "stéréo.flac": ("2 channels", "mixed down to their mean"),
    }
    report = (run / "data_report.md").read_text()
    assert "resampled" in report and "mixed down" in report and "12 utterances listed, 0 of them left out" in report
    assert "left out: nothing" in done.err
    losses = [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 3 and all(map(math.isfinite, losses))


def test_a_few_bad_files_are_left_out_and_named(commands: Any, corpus: Path, tmp_path: Path, run: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(corpus, data)
    (data / "bad.wav").write_text("no audio")
    done = commands.run(tmp_path, *commands.training(TWO, data), "-n", "one").success()
    assert "left out: 1" in done.err
    assert [Path(json.loads(line)["path"]).name for line in (run / "data_report.jsonl").open()] == ["bad.wav"]


def test_settings_that_do_not_fit(commands: Any, tmp_path: Path) -> None:
    """Everything that is found out without touching data or teacher, and what is found out with them."""
    typo = tmp_path / "typo.yaml"
    typo.write_text("distiller: {encoder_layer: 3}\n")
    broken = tmp_path / "broken.yaml"
    broken.write_text("runner: [1\n")

    def training(**changes: Any) -> list[str]:
        return commands.training({**TWO, **{key.replace("__", "."): value for key, value in changes.items()}})

    named = ["-n", "one"]
    cases: list[tuple[list[str], list[str]]] = [
        ([*training(), *named, "-g", str(typo)], ["distiller.encoder_layer ", "encoder_layers", "typo.yaml"]),
        ([*training(), *named, "-g", str(broken)], ["broken.yaml", "YAML"]),
        ([*training(), *named, "-g", "distilhubrt"], ["distilhubrt", "distilhubert"]),
        ([*training(runner__total_steps="many"), *named], ["runner.total_steps", "many"]),
        ([*training(runner__total_step=3), *named], ["runner.total_step ", "total_steps"]),
        ([*training(runner=3), *named], ["runner", "section"]),
        ([*training(), *named, "-o", "total_steps"], ["total_steps", "section.key=value"]),
        ([*training(runner__save_step=0), *named], ["runner.save_step=0"]),
        ([*training(runner__precision="float8"), *named], ["runner.precision", "bfloat16"]),
        ([*training(optimizer__lr=-1), *named], ["optimizer.lr"]),
        ([*training(data__batch_size=0), *named], ["data.batch_size"]),
        ([*training(data__sets="[train]"), *named], ["data.sets", "train"]),
        (training(), ["-n NAME"]),
        (["-u", "distillr", *named], ["distillr", "distiller"]),
        ([*training(), *named, "--device", "quantum"], ["--device quantum"]),
        (["-u", "distiller", *named, "--teacher", "hubert_bse"], ["give the audio"]),
        ([*training(), *named, "--teacher", "hubert_bse"], ["hubert_bse", "hubert_base"]),
        ([*training(), *named, "--teacher", str(typo)], ["typo.yaml"]),
        ([*training(distiller__pred_layer_id="[4,13]"), *named], ["13", "12 layers"]),
        ([*training(distiller__encoder_layers=13), *named], ["13", "12"]),
        ([*training(distiller__n_tasks=13, distiller__pred_layer_id="null"), *named], ["pred_layer_id"]),
        ([*training(distiller__init_layers="[1,13]"), *named], ["init_layers=[1, 13]", "1 to 12"]),
        (["-u", "distiller", *named, "--teacher", "fbank", "--data", str(commands.corpus)], ["fbank", "160", "320"]),
        ([*training(distiller__encoder_embed_dim=200), *named], ["encoder_embed_dim=200", "heads=3"]),
        ([*training(distiller__encoder_embed_dim=384), *named], ["encoder_embed_dim", "384", "192"]),
        ([*training(teacher__n_layers=24), *named], ["teacher.n_layers=24", "12 layers"]),
        ([*training(task__sequence_length=399), *named], ["task.sequence_length=399", "400"]),
        (
            [*training(runner__max_keep=10_000_000, runner__save_step=1, runner__total_steps=10_000_000), *named],
            ["free", "checkpoints", "runner.max_keep"],
        ),
    ]
    if not torch.cuda.is_available():
        cases.append(([*training(), *named, "--device", "cuda"], ["--device cuda", "no GPU"]))
    failures = []

    def story(number: int, arguments: list[str], expected: list[str]) -> None:
        cwd = tmp_path / str(number)
        cwd.mkdir()
        try:
            error = commands.run(cwd, *arguments).refusal()
            assert all(words in error for words in expected), error
            assert len(error) < 500, error
            assert not list(cwd.rglob("states-*")) and not list(cwd.rglob("log.jsonl"))
        except AssertionError as failure:
            failures.append(f"{' '.join(arguments[9:])}: expected {expected}\n{failure}")

    commands.at_once(*(partial(story, number, *case) for number, case in enumerate(cases)))
    assert not failures, "\n\n".join(failures)


def test_a_refusal_in_a_new_interpreter(commands: Any, tmp_path: Path) -> None:
    assert "did you mean distiller" in commands.run_afresh(tmp_path, "-u", "distillr").refusal()
    wrong = commands.run_afresh(tmp_path, "-n", "one")
    assert wrong.status == 2 and "-u" in wrong.err and "Traceback" not in wrong.err
    assert list(tmp_path.iterdir()) == []


def test_refused_before_a_run_leaves_the_name_free(commands: Any, tmp_path: Path, run: Path) -> None:
    command = [*commands.training(TWO), "-n", "one"]
    commands.run(tmp_path, *command, "-o", "distiller.pred_layer_id=[4,13]").refusal()
    commands.run(tmp_path, *command).success()
    assert (run / "states-2.ckpt").exists()


def test_disk_full_while_running(commands: Any, tmp_path: Path, run: Path, contents: Callable) -> None:
    """A checkpoint that cannot be written ends the run; the earlier ones are whole and are gone on with."""
    settings = {**TWO, "runner.total_steps": 4}
    command = [*commands.training(settings), "-n", "one", "-a"]
    commands.run(tmp_path, *commands.training({**settings, "runner.total_steps": 2}), "-n", "one").success()
    before = contents(run)
    error = commands.run(tmp_path, *command, file_limit=1_000_000).refusal()
    assert "step 4" in error and "could not be written" in error and "-a" in error
    after = contents(run)
    for name in before:
        if name.startswith("states-"):
            assert after[name] == before[name]
    assert not [name for name in after if name.startswith(("states-4", ".states"))]
    commands.run(tmp_path, *command).success()
    assert (run / "states-4" / "checksums.json").exists()


def test_exploding_run_stops_and_saves_no_nonsense(commands: Any, tmp_path: Path, run: Path) -> None:
    """A rate of 1e30 makes the second step's gradient not finite."""
    settings = {**TWO, "runner.total_steps": 40, "runner.save_step": 1, "optimizer.lr": 1e30, "runner.max_keep": 99}
    error = commands.run(tmp_path, *commands.training(settings), "-n", "one").refusal()
    assert "not finite" in error and "optimizer.lr" in error
    for weights in run.glob("states-*/model.safetensors"):
        tensors = safetensors.torch.load_file(weights)
        assert all(tensor.isfinite().all() for tensor in tensors.values()), weights
