"""The optimiser and its schedule."""

from __future__ import annotations

import torch
from torch import nn

from .config import OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the parameters of ``model`` that ask for a gradient."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decayed = [p for name, p in named if config.decay_bias or "bias" not in name]
    spared = [p for name, p in named if not config.decay_bias and "bias" in name]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
    )


def learning_rate(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Rate of step ``step``, counted from 1: linear warm-up, then linear decay that reaches zero at the last step."""
    progress = step / total_steps
    if progress < config.warmup_proportion:
        return config.lr * progress / config.warmup_proportion
    return config.lr * max(0.0, (1 - progress) / (1 - config.warmup_proportion))
