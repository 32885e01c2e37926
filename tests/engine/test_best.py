"""Which weights are kept as the best, when a run stops early, and the steps of optimisers at a constant rate."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from s3prl_distiller import checkpoint
from s3prl_distiller.engine import OptimizerConfig, RunnerConfig, train
from s3prl_distiller.engine.optimizer import learning_rate
from s3prl_distiller.engine.state import Progress

CPU = torch.device("cpu")
OPTIMIZER = OptimizerConfig(name="SGD", lr=0.01, betas=[0.0, 0.9])
NAN = math.nan


def runner(**changes: Any) -> RunnerConfig:
    return RunnerConfig(**{"total_steps": 10, "log_step": 2, "eval_step": 2, "save_step": 2, **changes})


@pytest.fixture
def judged(fit: Any) -> Any:
    """A task whose evaluations, one every second step from step 0 on, have the figures that they are given."""

    class Judged(fit):  # pyright: ignore[reportGeneralTypeIssues]
        metric, keep_best = "figure", True

        def __init__(self, figures: list[float], higher: bool = True, done: int = 0):
            super().__init__()
            self.figures, self.higher_is_better, self.seen = figures, higher, done
            self.weights_at: dict[int, list[torch.Tensor]] = {}

        def validate(self, autocast: Any, device: torch.device) -> list[dict[str, float]]:
            self.weights_at[2 * self.seen] = self.weights()
            self.seen += 1
            return [{"figure": self.figures[self.seen - 1], "other": 1.0}]

        def native_writers(self, step: int, member: int | None = None) -> dict[str, Any]:
            return {
                **super().native_writers(step),
                "step.json": lambda path: checkpoint.save_json({"step": step}, path),
            }

    return Judged


def kept(task: Any, folder: Path) -> int:
    """The step of the weights in ``best``, which are those that the task had then."""
    assert checkpoint.folder_damage(folder / "best") is None
    step = checkpoint.load_json(folder / "best" / "step.json")["step"]
    weights = checkpoint.load_torch(folder / "best" / "weights.pt")
    assert all(torch.equal(a, b) for a, b in zip(weights.values(), task.weights_at[step], strict=True))
    return step


@pytest.mark.parametrize(
    ("figures", "higher", "step"),
    [
        ([1, 3, 2, 5, 4, 4.5], True, 6),
        ([1, 3, 2, 5, 4, 4.5], False, 4),  # not the untrained one
        ([9, 3, 2, 5, 4, 4.5], True, 6),
        ([5, 4, 3, 3, 6, 2.9], False, 10),
        ([5, 5, 5, 5, 5, 5], True, 2),  # the first of equals
        ([NAN, NAN, 1, NAN, 0.5, NAN], True, 4),
        ([NAN, 7, NAN, 8, 9, 9], False, 2),
        ([-math.inf, 1, 0, 0, 0, math.inf], True, 10),
    ],
)
def test_best_has_the_weights_of_the_best_evaluation(
    figures: list[float], higher: bool, step: int, judged: Any, tmp_path: Path
) -> None:
    task = judged(figures, higher)
    train(task, runner(), OPTIMIZER, tmp_path, CPU)
    assert task.seen == 6 and kept(task, tmp_path) == step
    steps = list(task.weights_at.values())
    assert all(not torch.equal(one[0], other[0]) for one, other in zip(steps, steps[1:], strict=False))


def test_nothing_is_best_without_a_figure_or_where_it_is_not_asked_for(judged: Any, tmp_path: Path) -> None:
    for name in ("nan", "off"):
        (tmp_path / name).mkdir()
    train(judged([NAN] * 6), runner(), OPTIMIZER, tmp_path / "nan", CPU)
    task = judged([1, 2, 3, 4, 5, 6])
    task.keep_best = False
    train(task, runner(), OPTIMIZER, tmp_path / "off", CPU)
    for name in ("nan", "off"):
        assert (tmp_path / name / "states-10").is_dir() and not (tmp_path / name / "best").exists()


@pytest.mark.parametrize(
    ("before", "after", "step"),
    [([1, 9, 2], [3, 4, 5], 2), ([1, 3, 2], [2.5, 4, 3.5], 8), ([1, NAN, NAN], [NAN, 1, 0.5], 8)],
)
def test_a_resumed_run_knows_the_best_so_far(
    before: list[float], after: list[float], step: int, judged: Any, tmp_path: Path
) -> None:
    first = judged(before)
    train(first, runner(total_steps=4), OPTIMIZER, tmp_path, CPU)
    second = judged(before + after, done=3)
    second.load(tmp_path / "states-4")
    train(second, runner(), OPTIMIZER, tmp_path, CPU, resume=tmp_path / "states-4")
    second.weights_at |= first.weights_at
    assert second.seen == 6 and kept(second, tmp_path) == step


@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize(
    ("figures", "patience", "last"),
    [
        ([1, 2, 1, 1, 9, 9], 0, 10),  # 0: never
        ([1, 2, 1, 1, 9, 9], 1, 4),
        ([1, 2, 1, 1, 9, 9], 2, 6),
        ([1, 2, 1, 1, 9, 9], 3, 10),
        ([1, 1, 1, 1, 2, 9], 2, 6),  # equal is no better
        ([1, 2, NAN, NAN, 3, 4], 2, 6),  # nor is NaN
        ([1, 2, 1, 3, 2, 4], 2, 10),  # a better one starts the count again
    ],
)
def test_early_stop(figures: list[float], patience: int, last: int, higher: bool, judged: Any, tmp_path: Path) -> None:
    task = judged([figure if higher else -figure for figure in figures], higher)
    outcome = train(task, runner(early_stop=patience, save_step=100), OPTIMIZER, tmp_path, CPU)
    assert (outcome.step, outcome.signal) == (last, None) and task.seen == last // 2 + 1
    # The run can be gone on with from where it stopped, whenever checkpoints are due.
    assert outcome.checkpoint == tmp_path / f"states-{last}" and outcome.checkpoint.is_dir()
    train_again = judged(figures, higher, done=task.seen)
    train_again.load(outcome.checkpoint)
    assert train(train_again, runner(early_stop=patience), OPTIMIZER, tmp_path, CPU, outcome.checkpoint).step == last


def test_early_stop_is_off_by_default() -> None:
    assert RunnerConfig().early_stop == 0
    with pytest.raises(ValueError, match=r"^runner\.early_stop=-1 "):
        RunnerConfig(early_stop=-1).check()


@given(values=st.lists(st.floats(allow_infinity=False), min_size=1), higher=st.booleans())
def test_progress_notes_the_best(values: list[float], higher: bool) -> None:
    position = Progress()
    better = [position.note(value, higher, step) for step, value in enumerate(values)]
    numbers = [value for value in values if value == value]
    assert position.best == (None if not numbers else max(numbers) if higher else min(numbers))
    assert position.step == (len(better) - 1 - better[::-1].index(True) if any(better) else 0)
    assert position.worse == (better[::-1].index(True) if any(better) else len(values))
    assert all(value == value for value, is_better in zip(values, better, strict=True) if is_better)


@pytest.mark.parametrize(
    ("config", "reference"),
    [
        (OptimizerConfig(name="Adam", lr=1e-2, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.0), torch.optim.Adam),
        (OptimizerConfig(name="AdamW", lr=1e-2, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.01), torch.optim.AdamW),
        (OptimizerConfig(name="SGD", lr=1e-2, betas=[0.9, 0.0], weight_decay=0.0), torch.optim.SGD),
    ],
    ids=["Adam", "AdamW", "SGD"],
)
def test_steps_are_those_of_torch(config: OptimizerConfig, reference: Any, fit: Any, tmp_path: Path) -> None:
    """torch's own defaults and a gradient clipped to a norm of 1, as s3prl trains its heads."""
    task, other = fit(lambda epoch, batch: 5.0), fit()
    for each in (task, other):
        each.model[1].p = 0.0
    train(task, runner(total_steps=12, gradient_clipping=1.0), config, tmp_path, CPU)
    settings: dict[str, Any] = {"lr": 1e-2, "momentum": 0.9} if reference is torch.optim.SGD else {"lr": 1e-2}
    optimizer = reference(other.model.parameters(), **settings)
    clipped = 0
    for step in range(12):
        (batch,) = list(other.get_train_dataloader(step // 4, step % 4))[:1]
        optimizer.zero_grad()
        (5.0 * other(batch)[0]).backward()
        clipped += float(torch.nn.utils.clip_grad_norm_(other.model.parameters(), 1.0)) > 1
        optimizer.step()
    assert clipped == 12
    for one, its in zip(task.weights(), other.weights(), strict=True):
        torch.testing.assert_close(one, its, atol=1e-7, rtol=1e-6)
    assert {learning_rate(step, 12, config) for step in range(1, 13)} == {1e-2}


@pytest.mark.parametrize("name", ["Adam", "SGD"])
@pytest.mark.parametrize("times", [2, 4])
def test_accumulation_gives_the_weights_of_one_large_batch(name: str, times: int, fit: Any, tmp_path: Path) -> None:
    """A mean loss over batches of one size is the mean over all of them."""

    class Large(fit):  # pyright: ignore[reportGeneralTypeIssues]
        def get_train_dataloader(self, epoch: int, skip: int):
            batches = list(super().get_train_dataloader(epoch, 0))
            for low in list(range(0, len(batches), times))[skip:]:
                part = batches[low : low + times]
                yield type(part[0])(torch.cat([one.x for one in part]), [name for one in part for name in one.ids])

    config = OptimizerConfig(name=name, lr=0.01, betas=[0.9, 0.999], eps=1e-3, weight_decay=0.0)
    tasks = fit(), Large()
    for number, (task, accumulated) in enumerate(zip(tasks, (times, 1), strict=True)):
        task.model[1].p = 0.0
        (tmp_path / str(number)).mkdir()
        settings = runner(total_steps=5, gradient_accumulate_steps=accumulated, gradient_clipping=1.0)
        train(task, settings, config, tmp_path / str(number), CPU)
    for one, other in zip(*(task.weights() for task in tasks), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
