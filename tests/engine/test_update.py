"""Updates that leave out gradients which are not finite, waited for or not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from s3prl_distiller.engine import Member, OptimizerConfig, Updates
from s3prl_distiller.engine import update as module


def run(ahead: bool, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Tensor], list[tuple[int, list[float]]], Updates]:
    """Weights after each of six updates, of which the third has NaN in its gradient, and the norms as they came."""
    if ahead:  # as on a GPU: fused optimisers run on a CPU too
        build = lambda members, config: torch.optim.AdamW(  # noqa: E731
            [{"params": list(members[0].model.parameters()), "rate": 1.0}], lr=config.lr, fused=True
        )
        monkeypatch.setattr(module, "build_optimizer", build)
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    config = OptimizerConfig(name="AdamW", betas=[0.9, 0.999], eps=1e-8, weight_decay=0.01)
    updates = Updates([Member(model)], config, 0.5, torch.amp.GradScaler("cpu", enabled=False))
    weights, norms = [], []
    for step in range(1, 7):
        model(torch.full((4, 3), float(step))).square().sum().backward()
        if step == 3:
            assert model.weight.grad is not None
            model.weight.grad[0, 0] = math.nan
        updates.make(step, 0.1)
        assert model.weight.grad is None
        weights.append(model.weight.detach().clone())
        norms += updates.norms(newest=False)
    return weights, norms, updates


def test_an_update_is_left_out_with_and_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    waited, norms, _ = run(False, monkeypatch)
    ahead, late, updates = run(True, monkeypatch)
    assert torch.equal(waited[1], waited[2]) and not torch.equal(waited[2], waited[3])
    for one, other in zip(waited, ahead, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    assert [step for step, _ in norms] == [1, 2, 3, 4, 5, 6] and math.isnan(norms[2][1][0])
    assert [step for step, _ in late] == [1, 2, 3, 4, 5] and math.isnan(late[2][1][0])
    late += updates.norms(newest=True)
    assert [step for step, _ in late] == [1, 2, 3, 4, 5, 6] and not list(updates.norms(newest=True))
    for (_, one), (_, other) in zip(norms, late, strict=True):
        assert one == pytest.approx(other, rel=1e-5, nan_ok=True)
