"""One training loop for whatever is trained: optimiser, schedule, precision, checkpoints, resume, logging, progress."""

from .config import OptimizerConfig, RunnerConfig
from .estimate import check_disk, estimate
from .loop import Outcome, Task, train
from .state import newest_checkpoint

__all__ = ["OptimizerConfig", "Outcome", "RunnerConfig", "Task", "check_disk", "estimate", "newest_checkpoint", "train"]
