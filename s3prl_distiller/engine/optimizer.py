"""The optimiser and its schedule."""

from __future__ import annotations

import torch
from torch import nn

from .config import OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The config's optimiser over the parameters of ``model`` that ask for a gradient."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decayed = [p for name, p in named if config.decay_bias or "bias" not in name]
    spared = [p for name, p in named if not config.decay_bias and "bias" in name]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    betas = (config.betas[0], config.betas[1])
    if config.name == "SGD":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.betas[0])
    kind = torch.optim.Adam if config.name == "Adam" else torch.optim.AdamW
    return kind(groups, lr=config.lr, betas=betas, eps=config.eps)


def learning_rate(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Rate of step ``step``, counted from 1: linear warm-up, then linear decay that reaches zero at the last step; the
    same at every step where the optimiser has no schedule."""
    if not config.name.endswith("_with_schedule"):
        return config.lr
    progress = step / total_steps
    if progress < config.warmup_proportion:
        return config.lr * progress / config.warmup_proportion
    return config.lr * max(0.0, (1 - progress) / (1 - config.warmup_proportion))
