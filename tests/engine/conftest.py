"""A task small enough to train in milliseconds, with dropout and data of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from s3prl_distiller import checkpoint
from s3prl_distiller.engine import Member, mean_loss


@dataclass
class Samples:
    """Pairs that a line is fitted to."""

    x: Tensor
    ids: list[str]
    dropped: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return float(len(self.ids))

    def to(self, device: torch.device) -> Samples:
        return self


class Fit:
    """Fits y = 3x; ``spoil(epoch, batch)`` says what to multiply the loss of a batch by."""

    fingerprint = "samples"
    metric, higher_is_better, keep_best = "loss", False, False

    def __init__(self, spoil: Callable[[int, int], float] | None = None, batches: int = 4):
        torch.manual_seed(5)
        self.model: nn.Module = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.3), nn.Linear(8, 1))
        self.spoil, self.batches, self.asked = spoil or (lambda epoch, batch: 1.0), batches, []
        self.factor = 1.0

    def get_train_dataloader(self, epoch: int, skip: int) -> Iterator[Samples]:
        self.asked.append((epoch, skip))
        for index in range(skip, self.batches):
            x = torch.randn(6, 2, generator=torch.Generator().manual_seed(100 * epoch + index))
            self.factor = self.spoil(epoch, index)
            yield Samples(x, [f"{index}-{row}" for row in range(6)])

    def get_valid_dataloader(self) -> Iterator[Samples]:
        self.factor = 1.0
        yield Samples(torch.zeros(0, 2), [])
        for size in (1, 3):
            yield Samples(torch.full((size, 2), float(size)), [str(size)] * size)

    @property
    def members(self) -> list[Member]:
        return [Member(self.model)]

    def validate(self, autocast: Any, device: torch.device) -> list[dict[str, float]]:
        return [mean_loss(self, self.get_valid_dataloader(), autocast, device)]

    def weight(self, batch: Samples) -> int:
        return len(batch.ids)

    def __call__(self, batch: Samples) -> tuple[Tensor, dict[str, Tensor]]:
        error = (self.model(batch.x) - 3 * batch.x[:, :1]).abs().mean()
        return error * self.factor, {"error_layer1": error.detach(), "cosine_layer1": -error.detach()}

    def add_state_to_save(self, all_states: dict[str, Any], step: int) -> dict[str, Any]:
        return {**all_states, "Fit": self.model.state_dict(), "Step": step}

    def native_writers(self, step: int, member: int | None = None) -> dict[str, Any]:
        weights = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        return {"weights.pt": lambda path: torch.save(weights, path)}

    def weights(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.model.parameters()]

    def load(self, folder: Any) -> None:
        self.model.load_state_dict(checkpoint.load_torch(folder / "weights.pt"))


@pytest.fixture
def fit() -> type[Fit]:
    return Fit
