"""Several models that learn side by side from the same batches, each by itself; most tasks have one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Member:
    """A model with a gradient norm, a learning rate and a best checkpoint of its own.

    Attributes:
        model: what is trained; no other member has a parameter of it.
        rate: factor on ``optimizer.lr``.
        name: of its figures in the log, and of its folder in that of the run; empty for the only one.
    """

    model: nn.Module
    rate: float = 1.0
    name: str = ""


def clip_gradients(members: Sequence[Member], limit: float) -> Tensor:
    """Scale each member's gradient to a norm of at most ``limit``; the norms before, (members,), on the device."""
    return torch.stack([nn.utils.clip_grad_norm_(member.model.parameters(), limit) for member in members])


def drop_gradients(members: Sequence[Member], finite: Sequence[bool]) -> None:
    """Leave out of the next update whoever has no finite gradient: the others go on."""
    for member, fine in zip(members, finite, strict=True):
        if not fine:
            member.model.zero_grad(set_to_none=True)
