"""The optimiser and its schedule against s3prl's, and what their settings refuse."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from s3prl_distiller.engine import OptimizerConfig, RunnerConfig
from s3prl_distiller.engine.members import Member
from s3prl_distiller.engine.optimizer import build_optimizer, learning_rate

optimizers = pytest.importorskip("s3prl.optimizers")


@settings(max_examples=200, deadline=None)
@given(total=st.integers(1, 300_000), share=st.floats(0, 0.99), lr=st.floats(1e-8, 10), data=st.data())
def test_rate_is_that_of_s3prl(total: int, share: float, lr: float, data: Any) -> None:
    step = data.draw(st.integers(1, total))
    config = OptimizerConfig(lr=lr, warmup_proportion=share)
    schedule = optimizers.WarmupLinearSchedule(warmup=share, t_total=total)
    assert learning_rate(step, total, config) == pytest.approx(lr * schedule.get_lr(step, nowarn=True), rel=1e-9)


@settings(max_examples=200, deadline=None)
@given(total=st.integers(2, 100_000), share=st.floats(0, 0.99), lr=st.floats(1e-8, 10))
def test_rate_rises_to_its_height_and_falls_to_zero(total: int, share: float, lr: float) -> None:
    config = OptimizerConfig(lr=lr, warmup_proportion=share)
    steps = sorted({1, 2, *(max(1, total * k // 20) for k in range(21)), total - 1, total})
    rates = [learning_rate(step, total, config) for step in steps]
    top = rates.index(max(rates))
    assert rates[-1] == 0 and min(rates) >= 0 and max(rates) <= lr * (1 + 1e-9)
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)


@pytest.mark.filterwarnings("ignore:This overload of add")
def test_steps_are_those_of_s3prl() -> None:
    """With an epsilon too small to matter: s3prl adds it before the bias correction, torch after."""
    torch.manual_seed(0)
    mine, theirs = nn.Linear(6, 3), nn.Linear(6, 3)
    theirs.load_state_dict(mine.state_dict())
    config = OptimizerConfig(lr=1e-2, eps=1e-12, weight_decay=0.0, warmup_proportion=0.3)
    ours = build_optimizer([Member(mine)], config)
    groups = [{"params": list(theirs.parameters()), "weight_decay": 0.0}]
    lamb = optimizers.Lamb(
        groups, lr=1e-2, warmup=0.3, t_total=20, betas=(0.9, 0.98), eps=1e-12, adam=True, correct_bias=True
    )
    for step in range(1, 21):
        x = torch.randn(5, 6)
        for model, optimizer in ((mine, ours), (theirs, lamb)):
            for group in ours.param_groups:
                group["lr"] = learning_rate(step, 20, config)
            optimizer.zero_grad()
            (model(x) - x[:, :3]).pow(2).mean().backward()
            optimizer.step()
        torch.testing.assert_close(mine.weight, theirs.weight, atol=1e-6, rtol=1e-5)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)
        self.layer_norm = nn.LayerNorm(3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)


@pytest.mark.parametrize("decay_bias", [True, False])
def test_what_is_decayed(decay_bias: bool) -> None:
    model = Named()
    optimizer = build_optimizer(
        [Member(model)], OptimizerConfig(weight_decay=0.25, decay_bias=decay_bias, betas=[0.5, 0.75])
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    bias = 0.25 if decay_bias else 0.0
    assert found == {
        "layer.weight": 0.25,
        "layer.bias": bias,
        "layer_norm.weight": 0.25,
        "layer_norm.bias": bias,
    }
    if not decay_bias:
        expected = {p.data_ptr() for p in optimizers.get_grouped_parameters([model])[1]["params"] if p.requires_grad}
        assert {p.data_ptr() for p in optimizer.param_groups[1]["params"]} == expected
    assert all(group["betas"] == (0.5, 0.75) for group in optimizer.param_groups)


@pytest.mark.parametrize(
    ("config", "key", "value"),
    [
        *((RunnerConfig, key, 0) for key in ("total_steps", "log_step", "eval_step", "save_step", "max_keep")),
        (RunnerConfig, "gradient_accumulate_steps", -1),
        (RunnerConfig, "gradient_clipping", 0.0),
        (RunnerConfig, "gradient_clipping", float("nan")),
        (RunnerConfig, "precision", "half"),
        (OptimizerConfig, "name", "Adagrad"),
        (OptimizerConfig, "lr", 0.0),
        (OptimizerConfig, "lr", float("nan")),
        (OptimizerConfig, "lr", float("inf")),
        (OptimizerConfig, "warmup_proportion", 1.0),
        (OptimizerConfig, "warmup_proportion", -0.1),
        (OptimizerConfig, "betas", [0.9]),
        (OptimizerConfig, "betas", [0.9, 1.0]),
        (OptimizerConfig, "eps", -1e-8),
        (OptimizerConfig, "weight_decay", -0.1),
    ],
)
def test_values_that_no_run_can_follow(config: type, key: str, value: Any) -> None:
    config().check()
    section = "runner" if config is RunnerConfig else "optimizer"
    with pytest.raises(ValueError, match=rf"^{section}\.{key}=") as refused:
        dataclasses.replace(config(), **{key: value}).check()
    assert "\n" not in str(refused.value)
