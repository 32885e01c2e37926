"""How a run is trained. Field names are s3prl's where s3prl has the field; defaults are DistilHuBERT's recipe."""

from __future__ import annotations

from dataclasses import dataclass, field

PRECISIONS = ("auto", "float32", "bfloat16", "float16")


@dataclass
class RunnerConfig:
    """Section ``runner``. Steps are optimiser steps."""

    total_steps: int = 200_000
    gradient_clipping: float = 5.0  # largest norm of the gradient
    gradient_accumulate_steps: int = 1  # batches a step
    gradient_checkpointing: bool = False  # recompute layers in the backward pass: less memory, more time
    precision: str = "auto"  # auto: bfloat16 on a GPU, float32 on a CPU; float16 scales the loss as s3prl's fp16 does
    log_step: int = 50
    eval_step: int = 2_000
    save_step: int = 10_000
    max_keep: int = 10  # checkpoints
    early_stop: int = 0  # evaluations in a row without a better one after which to stop; 0: never
    seed: int = 1337

    def check(self) -> None:
        """Raises ValueError, naming the key, where no run can follow these values."""
        for key in ("total_steps", "gradient_accumulate_steps", "log_step", "eval_step", "save_step", "max_keep"):
            if getattr(self, key) < 1:
                raise ValueError(f"runner.{key}={getattr(self, key)} must be at least 1")
        if self.early_stop < 0:
            raise ValueError(f"runner.early_stop={self.early_stop} must be 0 (never) or a number of evaluations")
        if not self.gradient_clipping > 0:
            raise ValueError(f"runner.gradient_clipping={self.gradient_clipping} must be above 0")
        if self.precision not in PRECISIONS:
            raise ValueError(f"runner.precision={self.precision!r} is not one of {', '.join(PRECISIONS)}")


OPTIMIZERS = ("AdamW_with_schedule", "AdamW", "Adam", "SGD")


@dataclass
class OptimizerConfig:
    """Section ``optimizer``: AdamW (arXiv 1711.05101) with linear warm-up and linear decay to zero, or torch's AdamW,
    Adam or SGD at a constant rate."""

    name: str = "AdamW_with_schedule"
    lr: float = 2e-4  # at the end of the warm-up, if there is one
    warmup_proportion: float = 0.07  # of all steps
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])  # of SGD, the first is the momentum
    eps: float = 1e-6
    weight_decay: float = 1e-6
    decay_bias: bool = True  # whether biases are decayed too

    def check(self) -> None:
        """Raises ValueError, naming the key, where the values make no optimiser."""
        if self.name not in OPTIMIZERS:
            raise ValueError(f"optimizer.name={self.name!r} is not known: use one of {', '.join(OPTIMIZERS)}")
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"optimizer.lr={self.lr} must be above 0 and finite")
        for key in ("eps", "weight_decay"):
            if not 0 <= getattr(self, key) < float("inf"):
                raise ValueError(f"optimizer.{key}={getattr(self, key)} must be 0 or above, and finite")
        if not 0 <= self.warmup_proportion < 1:
            raise ValueError(f"optimizer.warmup_proportion={self.warmup_proportion} must be in [0, 1)")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas={list(self.betas)} must be two numbers in [0, 1)")
