"""The optimiser and its schedule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .config import OptimizerConfig
from .members import Member


def build_optimizer(members: Sequence[Member], config: OptimizerConfig) -> torch.optim.Optimizer:
    """The config's optimiser over the parameters of all members that ask for a gradient.

    Each group's ``rate`` is its member's factor on the learning rate.
    """
    groups = [group for member in members for group in _groups(member, config)]
    betas = (config.betas[0], config.betas[1])
    if config.name == "SGD":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.betas[0])
    kind = torch.optim.Adam if config.name == "Adam" else torch.optim.AdamW
    on_gpu = all(parameter.is_cuda for group in groups for parameter in group["params"])
    return kind(groups, lr=config.lr, betas=betas, eps=config.eps, fused=on_gpu or None)


def _groups(member: Member, config: OptimizerConfig) -> list[dict[str, Any]]:
    named = [(name, parameter) for name, parameter in member.model.named_parameters() if parameter.requires_grad]
    decayed = [p for name, p in named if config.decay_bias or "bias" not in name]
    spared = [p for name, p in named if not config.decay_bias and "bias" in name]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay, "rate": member.rate},
        {"params": spared, "weight_decay": 0.0, "rate": member.rate},
    ]
    return [group for group in groups if group["params"]]


def learning_rate(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Rate of step ``step``, counted from 1: linear warm-up, then linear decay that reaches zero at the last step; the
    same at every step where the optimiser has no schedule."""
    if not config.name.endswith("_with_schedule"):
        return config.lr
    progress = step / total_steps
    if progress < config.warmup_proportion:
        return config.lr * progress / config.warmup_proportion
    return config.lr * max(0.0, (1 - progress) / (1 - config.warmup_proportion))
