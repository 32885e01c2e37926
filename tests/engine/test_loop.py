"""The loop on a task of a few numbers: steps that must not be taken, randomness that must not be used, resume."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from s3prl_distiller.engine import OptimizerConfig, RunnerConfig, estimate, train
from s3prl_distiller.engine.estimate import check_disk
from s3prl_distiller.engine.loop import precision

CPU = torch.device("cpu")
OPTIMIZER = OptimizerConfig(lr=0.05)
TIMES = ("audio_s_per_s", "data_wait_share")


def runner(**changes: Any) -> RunnerConfig:
    return RunnerConfig(**{"total_steps": 10, "log_step": 2, "eval_step": 5, "save_step": 3, **changes})


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_it_learns_and_reports(tmp_path: Path, fit: Any) -> None:
    task = fit()
    outcome = train(task, runner(total_steps=60, max_keep=1), OPTIMIZER, tmp_path, CPU)
    assert (outcome.step, outcome.signal, outcome.checkpoint) == (60, None, tmp_path / "states-60")
    valid = [line["loss"] for line in lines(tmp_path) if line["kind"] == "valid"]
    assert valid[-1] < 0.5 * valid[0]
    assert task.asked == [(epoch, 0) for epoch in range(15)]


def test_validation_draws_nothing_at_random_and_weighs_by_audio(fit: Any) -> None:
    task = fit()
    task.model.train()
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    (values,) = task.validate(precision("float32", CPU)[0], CPU)
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert task.model.training and all(parameter.grad is None for parameter in task.model.parameters())
    task.model.eval()
    with torch.no_grad():
        error = {size: float((task.model(torch.full((1, 2), float(size))) - 3 * size).abs()) for size in (1, 3)}
    expected = (1 * error[1] + 3 * error[3]) / 4
    assert values == pytest.approx({"loss": expected, "error_layer1": expected, "cosine_layer1": -expected})
    assert task.validate(precision("float32", CPU)[0], CPU) == [values]


@pytest.mark.parametrize("times", [2, 3])
def test_accumulated_batches_are_one_batch(times: int, tmp_path: Path, fit: Any) -> None:
    """The gradient is the mean over the batches, so that gradients and rates are of one scale for any number."""
    task, whole = fit(batches=times), fit()
    for model in (task.model, whole.model):
        model[1].p = 0.0
    settings = runner(total_steps=1, gradient_accumulate_steps=times)
    batches = list(task.get_train_dataloader(0, 0))
    loss = sum(whole(batch)[0] for batch in batches) / times
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    norm = math.sqrt(sum(float(p.grad.pow(2).sum()) for p in whole.model.parameters()))
    train(task, settings, OPTIMIZER, tmp_path, CPU)
    logged = next(line for line in lines(tmp_path) if line["kind"] == "train")
    assert logged["gradient_norm"] == pytest.approx(norm, rel=1e-5)
    assert logged["loss"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("precision_name", ["float32", "float16"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_without_a_finite_gradient_is_not_taken(
    bad: float, precision_name: str, tmp_path: Path, fit: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The second of three batches is spoilt: the weights are those after the first until the third comes."""
    seen: list[list[torch.Tensor]] = []

    def spoil(epoch: int, batch: int) -> float:
        seen.append(task.weights())
        return bad if batch == 1 else 1e-3  # of a size that float16 scaled by 65536 holds

    task = fit(spoil)
    train(task, runner(total_steps=3, precision=precision_name), OPTIMIZER, tmp_path, CPU)
    start, first, second, end = *seen[:3], task.weights()
    assert any(not torch.equal(a, b) for a, b in zip(start, first, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(tensor.isfinite().all() for tensor in end)
    assert caplog.text.count("the gradient is not finite") == 1 and "Step 2" in caplog.text


def test_a_run_that_cannot_go_on_stops(tmp_path: Path, fit: Any) -> None:
    task = fit(lambda epoch, batch: 1.0 if epoch == 0 else math.nan)
    with pytest.raises(ValueError, match=r"not finite for 20 steps up to step 24: lower optimizer\.lr"):
        train(task, runner(total_steps=1000), OPTIMIZER, tmp_path, CPU)
    assert all(tensor.isfinite().all() for tensor in task.weights())


def test_batches_that_could_not_be_read_are_passed_over(tmp_path: Path, fit: Any) -> None:
    class Holes(fit):  # pyright: ignore[reportGeneralTypeIssues]
        def get_train_dataloader(self, epoch: int, skip: int):
            for batch in super().get_train_dataloader(epoch, skip):
                batch.ids = [] if batch.ids[0].startswith(("0", "2")) or epoch > 0 else batch.ids
                yield batch

    with pytest.raises(ValueError, match="no utterance could be read in epoch 1"):
        train(Holes(), runner(), OPTIMIZER, tmp_path, CPU)
    assert [line["step"] for line in lines(tmp_path) if line["kind"] == "train"] == [2]


@pytest.mark.parametrize("settings", [{}, {"gradient_accumulate_steps": 3, "log_step": 4}, {"precision": "float16"}])
@pytest.mark.parametrize("step", [3, 6, 9])
def test_resume_at_every_checkpoint_is_exact(settings: dict[str, Any], step: int, tmp_path: Path, fit: Any) -> None:
    """To the last bit, dropout included, although a stranger has drawn numbers meanwhile."""
    reference = fit()
    torch.manual_seed(9)
    train(reference, runner(**settings), OPTIMIZER, tmp_path, CPU)
    whole = [{k: v for k, v in line.items() if k not in TIMES} for line in lines(tmp_path)]
    task = fit()
    task.load(tmp_path / f"states-{step}")
    torch.manual_seed(10)
    train(task, runner(**settings), OPTIMIZER, tmp_path, CPU, resume=tmp_path / f"states-{step}")
    assert all(torch.equal(a, b) for a, b in zip(task.weights(), reference.weights(), strict=True))
    assert [{k: v for k, v in line.items() if k not in TIMES} for line in lines(tmp_path)] == whole
    consumed = step * settings.get("gradient_accumulate_steps", 1)
    # A generator is left at its last batch until the next one is asked for.
    assert task.asked[0] == ((consumed - 1) // 4, (consumed - 1) % 4 + 1)


def test_disk_is_measured_in_checkpoints(tmp_path: Path, fit: Any) -> None:
    """Each has the weights twice and two moments; the oldest goes when one more than is kept has been written."""
    model = fit().model
    size = 4 * 4 * sum(parameter.numel() for parameter in model.parameters())
    assert check_disk(model, runner(total_steps=10, save_step=3, max_keep=10), tmp_path / "not" / "yet") == 5 * size
    assert check_disk(model, runner(total_steps=10, save_step=1, max_keep=2), tmp_path) == 3 * size
    with pytest.raises(ValueError, match=r"has .* GB free.*runner\.max_keep"):
        check_disk(model, runner(total_steps=10**15, save_step=1, max_keep=10**15), tmp_path)


def test_estimate_keeps_nothing(tmp_path: Path, fit: Any) -> None:
    text = estimate(fit(), runner(), OPTIMIZER, tmp_path / "run", CPU)
    assert "10 steps" in text and "memory" in text and not (tmp_path / "run").exists()
