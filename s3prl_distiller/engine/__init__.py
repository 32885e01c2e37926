"""One training loop for whatever is trained: optimiser, schedule, precision, checkpoints, resume, logging, progress."""

from .config import OptimizerConfig, RunnerConfig
from .estimate import check_disk, estimate
from .loop import Outcome, Task, mean_loss, precision, train
from .members import Member
from .prefetch import to_device
from .state import BEST, Progress, newest_checkpoint
from .update import Updates

__all__ = [
    "BEST",
    "Member",
    "OptimizerConfig",
    "Outcome",
    "Progress",
    "RunnerConfig",
    "Task",
    "Updates",
    "check_disk",
    "estimate",
    "mean_loss",
    "newest_checkpoint",
    "precision",
    "to_device",
    "train",
]
