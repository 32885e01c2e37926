"""The other ways to start: ``-h``, ``--dry-run``, the quick start, s3prl's recipe, reduced precision."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from s3prl_distiller.cli.common import run_command

TWO = {"task.sequence_length": 8000, "runner.total_steps": 2}
RESULTS = Path("result") / "pretrain"


def test_help_names_every_option(commands: Any, tmp_path: Path) -> None:
    done = commands.run(tmp_path, "-h").success()
    for option in ("-u", "-g", "-c", "-n", "-p", "-a", "-e", "-o", "--teacher", "--data", "--seed", "--device"):
        assert re.search(rf"^\s+{option}\b", done.out, re.MULTILINE), option
    assert "--dry-run" in done.out and "quick start" in done.out
    assert list(tmp_path.iterdir()) == []


def test_quick_start_without_anything_said(commands: Any, tmp_path: Path) -> None:
    """In a new interpreter and an empty folder; shortened, where a user would wait for minutes."""
    short = "runner.total_steps=4,runner.eval_step=4,task.sequence_length=8000,data.batch_size=2,data.valid_seconds=5"
    done = commands.run_afresh(tmp_path, "-u", "distiller", "-o", short).success()
    assert "quick start" in done.err and "--teacher" in done.err and "--data" in done.err
    run = tmp_path / RESULTS / "quickstart"
    assert (run / "states-4.ckpt").exists() and (run / "summary.md").exists()
    assert "Validation loss" in done.out and "states-4.ckpt" in done.out
    assert [path.name for path in tmp_path.iterdir()] == ["result"]
    again = commands.run(tmp_path, "-u", "distiller", "-o", short).refusal()
    assert "already holds a run" in again


def test_dry_run_says_what_the_run_will_cost(commands: Any, tmp_path: Path, contents: Callable) -> None:
    settings = {**TWO, "runner.total_steps": 1_000_000, "runner.save_step": 1_000_000}
    command = [*commands.training(settings), "-n", "one"]
    done = commands.run(tmp_path, *command, "--dry-run").success()
    step = re.search(r"a step: ([\d.]+) s", done.out)
    whole = re.search(r"1000000 steps, about ([\d.]+) hours", done.out)
    memory = re.search(r"memory at its highest: ([\d.]+) GB", done.out)
    disk = re.search(r"disk: ([\d.]+) GB", done.out)
    assert step and whole and memory and disk, done.out
    assert float(whole[1]) == pytest.approx(float(step[1]) * 1e6 / 3600, rel=0.2, abs=2)
    assert 0.2 < float(memory[1]) < 20
    run = tmp_path / RESULTS / "one"
    assert float(disk[1]) == pytest.approx(0.05, abs=0.02)  # two checkpoints of 1.6 M parameters: weights 2x, AdamW 2x
    assert {path.name for path in run.iterdir()} <= {"data_report.md", "data_report.jsonl"}
    commands.run(tmp_path, *command, "-o", "runner.total_steps=2").success()
    before = contents(run)
    commands.run(tmp_path, *command, "-o", "runner.total_steps=2", "--dry-run").success()
    assert contents(run) == before, "a dry run beside a finished run changes it"


def test_recipe_of_s3prl(commands: Any, tmp_path: Path) -> None:
    """Teacher in train mode, loss on padding, loss scaling, decay of all but biases: what the file says is done."""
    run = tmp_path / RESULTS / "one"
    # Crops are short because a CPU is slow in float16, but longer than a mask of SpecAugment (10 frames).
    command = [*commands.training({**TWO, "runner.log_step": 1, "task.sequence_length": 4800}), "-n", "one"]
    command[command.index("quickstart")] = "distilhubert_s3prl"
    done = commands.run(tmp_path, *command).success()
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["teacher"]["train_mode"] and not config["teacher"]["twin"]
    assert config["task"]["loss_on_padding"] and config["distiller"]["norm_over_padding"]
    assert config["distiller"]["pred_layer_id"] == [4, 12]
    assert config["runner"]["precision"] == "float16"
    assert "run as the hub gives it" in done.err
    trainer = torch.load(run / "states-2" / "trainer.pt", weights_only=True)
    assert [group["weight_decay"] for group in trainer["optimizer"]["param_groups"]] == [0.01, 0.0]
    assert trainer["scaler"]["scale"] > 1
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2]
    assert all(math.isfinite(line["loss"]) and "l1_layer12" in line and "l1_layer8" not in line for line in lines)


def test_reduced_precision_on_a_cpu(commands: Any, tmp_path: Path, log_of: Callable) -> None:
    """bfloat16 and float16 train on a CPU, too, and mean what float32 means."""

    def story(precision: str) -> None:
        command = commands.training({**TWO, "runner.precision": precision, "runner.log_step": 1})
        commands.run(tmp_path, *command, "-n", precision).success()

    names = ("float32", "bfloat16", "float16")
    commands.at_once(*(partial(story, name) for name in names))
    losses = {name: [line["loss"] for line in log_of(tmp_path / RESULTS / name)] for name in names}
    for name in names[1:]:
        assert losses[name] == pytest.approx(losses["float32"], rel=0.02)
        assert losses[name] != losses["float32"]


def test_a_command_flushes_subnormal_numbers() -> None:
    """With the gradients of real CTC heads a CPU was half as fast; the process is left as it was."""
    smallest = torch.tensor(torch.finfo(torch.float32).tiny)
    seen: list[float] = []

    def command() -> int:
        seen.append((smallest / 2).item())
        return 0

    assert run_command(command) == 0
    assert seen == [0.0]
    assert (smallest / 2).item() > 0
