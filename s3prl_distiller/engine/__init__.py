"""One training loop for whatever is trained: optimiser, schedule, precision, checkpoints, resume, logging, progress."""

from .config import OptimizerConfig, RunnerConfig
from .estimate import check_disk, estimate
from .loop import Outcome, Task, mean_loss, precision, train
from .members import Member, clip_gradients
from .optimizer import build_optimizer
from .state import BEST, Progress, newest_checkpoint

__all__ = [
    "BEST",
    "Member",
    "OptimizerConfig",
    "Outcome",
    "Progress",
    "RunnerConfig",
    "Task",
    "build_optimizer",
    "check_disk",
    "clip_gradients",
    "estimate",
    "mean_loss",
    "newest_checkpoint",
    "precision",
    "train",
]
