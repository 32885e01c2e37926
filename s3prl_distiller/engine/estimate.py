"""What a run will cost, from a few steps of it."""

from __future__ import annotations

import resource
import shutil
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from s3prl_distiller import checkpoint

from .config import OptimizerConfig, RunnerConfig
from .loop import Task, precision
from .optimizer import build_optimizer

# A first step also allocates, tunes and compiles; on a GPU so does the first one of each shape.
_WARM_UP, _TIMED = 1, 3


def check_disk(model: nn.Module, runner: RunnerConfig, folder: Path) -> int:
    """Bytes that the checkpoints of a run will take at most.

    Args:
        model: what is trained. A checkpoint has its weights twice, and AdamW's two moments of each.

    Raises:
        ValueError: the disk has no room for them.
    """
    most = min(runner.max_keep, -(-runner.total_steps // runner.save_step)) + 1
    need = most * 4 * sum(p.numel() * p.element_size() for p in model.parameters())
    existing = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if need > free:
        raise ValueError(
            f"{folder} has {_gigabytes(free)} free, but {most} checkpoints (one more than runner.max_keep at the most) "
            f"take {_gigabytes(need)}: make room, keep fewer (-o runner.max_keep=2) or choose another folder (-p)"
        )
    return need


def estimate(
    task: Task, runner: RunnerConfig, optimizer_config: OptimizerConfig, folder: Path, device: torch.device
) -> str:
    """Run a few steps, keep nothing of them, and say what the whole run will take.

    Raises:
        ValueError: the disk has no room for the checkpoints.
    """
    need = check_disk(task.model, runner, folder)
    optimizer = build_optimizer(task.members, optimizer_config)
    autocast, _ = precision(runner.precision, device)
    count = (_WARM_UP + _TIMED) * runner.gradient_accumulate_steps
    held = [batch for batch in islice(task.get_train_dataloader(0, 0), count) if batch.ids]
    times, audio = [], []
    for batch in held * 2 if device.type == "cuda" else held:
        started = time.monotonic()
        with autocast():
            loss, _ = task(batch.to(device))
        loss.sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.sum().item()  # waits for the device
        times.append(time.monotonic() - started)
        audio.append(batch.seconds)
    warm_up = len(held) if device.type == "cuda" else _WARM_UP
    timed, heard = times[warm_up:] or times, audio[warm_up:] or audio
    step = sum(timed) / len(timed) * runner.gradient_accumulate_steps
    with tempfile.TemporaryDirectory() as place:
        checkpoint.save_folder(Path(place) / "states-0", task.native_writers(0))
        size = sum(path.stat().st_size for path in (Path(place) / "states-0").iterdir())
    return "\n".join(
        [
            "Dry run: models, data, one checkpoint and a few steps are in order.",
            f"  a step: {step:.2f} s, {sum(heard) / sum(timed):.0f} s of audio per second on {device.type}",
            f"  the whole run: {runner.total_steps} steps, about {_duration(step * runner.total_steps)}",
            f"  memory at its highest: {_gigabytes(_peak(device))}",
            f"  disk: {_gigabytes(need)} at most; the weights of one checkpoint take {_gigabytes(size)}",
        ]
    )


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:.1f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"
