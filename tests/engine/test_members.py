"""Models that learn side by side learn as each would alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from s3prl_distiller import checkpoint
from s3prl_distiller.engine import Member, OptimizerConfig, RunnerConfig, train

CPU = torch.device("cpu")
RATES = (0.05, 0.2, 1.0)
OPTIMIZER = OptimizerConfig(lr=0.1)


def runner(**changes: Any) -> RunnerConfig:
    return RunnerConfig(
        **{
            "total_steps": 12,
            "log_step": 3,
            "eval_step": 4,
            "save_step": 6,
            "gradient_clipping": 0.5,
            "gradient_accumulate_steps": 2,
            **changes,
        }
    )


@pytest.fixture
def alone(fit: Any) -> Any:
    """The task without dropout, of which several learn the same side by side."""

    class Alone(fit):  # pyright: ignore[reportGeneralTypeIssues]
        keep_best = True

        def __init__(self, **settings: Any):
            super().__init__(**settings)
            self.model[1].p = 0.0

    return Alone


@pytest.fixture
def together(alone: Any) -> Any:
    class Together(alone):  # pyright: ignore[reportGeneralTypeIssues]
        def __init__(self, spoilt: int | None = None):
            super().__init__()
            self.tasks = [alone() for _ in RATES]
            self.model = nn.ModuleList(task.model for task in self.tasks)
            self.spoilt = spoilt

        @property
        def members(self) -> list[Member]:
            return [Member(t.model, rate / 0.1, f"lr-{rate}") for t, rate in zip(self.tasks, RATES, strict=True)]

        def validate(self, autocast: Any, device: torch.device) -> list[dict[str, float]]:
            return [task.validate(autocast, device)[0] for task in self.tasks]

        def __call__(self, batch: Any) -> Any:
            losses, parts = zip(*(task(batch) for task in self.tasks), strict=True)
            loss = torch.stack(losses)
            if self.spoilt is not None:
                loss = loss * torch.tensor([math.nan if i == self.spoilt else 1.0 for i in range(len(RATES))])
            return loss, {name: torch.stack([part[name] for part in parts]) for name in parts[0]}

        def native_writers(self, step: int, member: int | None = None) -> dict[str, Any]:
            return super().native_writers(step) if member is None else self.tasks[member].native_writers(step)

    return Together


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def fitted(task: Any, settings: RunnerConfig, optimizer: OptimizerConfig, folder: Path, resume: Path | None = None):
    folder.mkdir(exist_ok=True)
    return train(task, settings, optimizer, folder, CPU, resume)


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["AdamW_with_schedule", "Adam", "SGD"])
def test_each_learns_as_it_would_alone(name: str, alone: Any, together: Any, tmp_path: Path) -> None:
    task = together()
    outcome = fitted(task, runner(), OptimizerConfig(name=name, lr=0.1), tmp_path / "together")
    log = log_of(tmp_path / "together")
    for index, rate in enumerate(RATES):
        single, folder = alone(), tmp_path / str(rate)
        only = fitted(single, runner(), OptimizerConfig(name=name, lr=rate), folder).members[0]
        assert same(task.tasks[index].model, single.model)
        assert outcome.members[index] == only
        best = checkpoint.load_torch(tmp_path / "together" / f"lr-{rate}" / "best" / "weights.pt")
        kept = checkpoint.load_torch(folder / "best" / "weights.pt")
        assert best.keys() == kept.keys() and all(torch.equal(best[key], kept[key]) for key in kept)
        for line, expected in zip(log, log_of(folder), strict=True):
            for key in ("loss", "error_layer1", "gradient_norm"):
                if key in expected:
                    assert line[f"{key}/lr-{rate}"] == pytest.approx(expected[key], rel=1e-6)


def test_one_that_diverges_does_not_hold_up_the_others(alone: Any, together: Any, tmp_path: Path) -> None:
    task = together(spoilt=1)
    before = [p.clone() for p in task.tasks[1].model.parameters()]
    outcome = fitted(task, runner(total_steps=30), OPTIMIZER, tmp_path / "together")
    assert [member.diverged for member in outcome.members] == [False, True, False]
    assert all(torch.equal(a, b) for a, b in zip(before, task.tasks[1].model.parameters(), strict=True))
    single = alone()
    fitted(single, runner(total_steps=30), OptimizerConfig(lr=RATES[2]), tmp_path / "alone")
    assert same(task.tasks[2].model, single.model)
    losses = [line["loss"] for line in log_of(tmp_path / "together") if line["kind"] == "train"]
    assert losses and all(math.isfinite(loss) for loss in losses)


def test_all_diverging_is_an_error(together: Any, tmp_path: Path) -> None:
    task = together()
    for single in task.tasks:
        with torch.no_grad():
            single.model[0].weight.fill_(math.nan)
    with pytest.raises(ValueError, match="not finite for 20 steps"):
        fitted(task, runner(total_steps=30), OPTIMIZER, tmp_path)


def test_resume_is_exact(together: Any, tmp_path: Path) -> None:
    settings = OptimizerConfig(name="Adam", lr=0.1)
    whole, first, second = together(), together(), together()
    expected = fitted(whole, runner(save_step=8), settings, tmp_path / "whole")
    # At step 8 lines of the log and evaluations are half-way between two.
    stopped = fitted(first, runner(total_steps=8, save_step=8), settings, tmp_path / "parts")
    second.load(stopped.checkpoint)
    outcome = fitted(second, runner(save_step=8), settings, tmp_path / "parts", stopped.checkpoint)
    assert same(second.model, whole.model) and outcome.members == expected.members
    times = ("audio_s_per_s", "data_wait_share")
    parts, at_once = (
        [{key: value for key, value in line.items() if key not in times} for line in log_of(tmp_path / name)]
        for name in ("parts", "whole")
    )
    # The first part ended with step 8 and logged what it had; after that the two agree.
    assert [line for line in parts if line["kind"] == "valid"] == [line for line in at_once if line["kind"] == "valid"]
    assert parts[-1] == at_once[-1]
