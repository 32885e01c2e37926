"""Checkpoints of a run: written whole or not at all, found again even if the last one is damaged, exact on resume.

The folder ``states-STEP`` has the weights as safetensors with a JSON config, and ``trainer.pt`` with all that a resumed
run needs to go on exactly. ``states-STEP.ckpt`` beside it is a student as it is handed on, in s3prl's form. ``best``
has the weights that did best on held-out data, of tasks that ask for it.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from s3prl_distiller import checkpoint

from . import distributed, randomness

log = logging.getLogger(__name__)

TRAINER = "trainer.pt"
BEST = "best"
# So many steps in a row without a finite gradient will not mend themselves.
MOST_SKIPPED = 20
_NAME = re.compile(r"states-(\d+)")


@dataclass
class Progress:
    """How a member has done so far."""

    best: float | None = None  # its best figure on held-out data
    step: int = 0  # of that
    worse: int = 0  # evaluations in a row without a better one
    skipped: int = 0  # steps in a row without an update, the gradient not being finite

    @property
    def diverged(self) -> bool:
        """Whether its gradient has not been finite for long."""
        return self.skipped >= MOST_SKIPPED

    def note(self, value: float, higher_is_better: bool, step: int) -> bool:
        """Take down an evaluation; whether it is the best so far. NaN never is."""
        better = self.best is None or (value > self.best if higher_is_better else value < self.best)
        if value != value:
            better = False
        if better:
            self.best, self.step = value, step
        self.worse = 0 if better else self.worse + 1
        return better


@dataclass
class Position:
    """Where a run stands."""

    step: int = 0  # optimiser steps taken
    epoch: int = 0
    batches: int = 0  # batches of this epoch that were consumed
    sums: dict[str, Any] = field(default_factory=dict)  # what has been added up since the last line of the log
    members: list[Progress] = field(default_factory=lambda: [Progress()])

    def stale(self, patience: int) -> bool:
        """Whether it is time to stop early, no member getting better; never with a ``patience`` of 0."""
        return all(0 < patience <= member.worse for member in self.members)


def save_checkpoint(folder: Path, task: Any, trainer: Mapping[str, Any], step: int, max_keep: int) -> Path:
    """Write a checkpoint, in both forms where the task has one to hand on, then drop the oldest beyond ``max_keep``.

    Raises:
        ValueError: it cannot be written, on a full disk say; the earlier ones are as they were.
    """
    path = folder / f"states-{step}"
    try:
        # The folder comes last: that it is there says that the file is, too.
        if handed_on := task.add_state_to_save({}, step):
            checkpoint.save_torch(handed_on, folder / f"states-{step}.ckpt")
        writers = {**task.native_writers(step), TRAINER: lambda target: torch.save(dict(trainer), target)}
        checkpoint.save_folder(path, writers)
    except (OSError, RuntimeError) as error:
        # torch reports a failed write as a RuntimeError.
        raise ValueError(
            f"the checkpoint of step {step} could not be written to {folder}: {str(error).splitlines()[0]}. The "
            "earlier checkpoints are intact: mend this (make room, say) and resume with -a."
        ) from error
    kept = sorted(_checkpoints(folder), reverse=True)
    for old, old_path in kept[max_keep:]:
        shutil.rmtree(old_path, ignore_errors=True)
        (folder / f"states-{old}.ckpt").unlink(missing_ok=True)
    return path


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None where it has none yet; a damaged one is passed over with a warning.

    Raises:
        ValueError: there are checkpoints, and all are damaged.
    """
    found = sorted(_checkpoints(folder), reverse=True)
    for _, path in found:
        damage = checkpoint.folder_damage(path)
        if damage is None:
            return path
        log.warning("The checkpoint %s is damaged (%s): looking for the one before it.", path, damage)
    if found:
        raise ValueError(f"every checkpoint in {folder} is damaged: start again under another name (-n)")
    return None


def remove_leftovers(folder: Path) -> None:
    """Remove what a run that was killed while it wrote a checkpoint left half-written."""
    for path in (*folder.glob(".states-*.tmp"), *folder.glob(f".{BEST}.*.tmp"), *folder.glob(f"*/.{BEST}.*.tmp")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    found = []
    for path in folder.glob("states-*"):
        match = _NAME.fullmatch(path.name)
        if match and path.is_dir():
            found.append((int(match[1]), path))
    return found


def trainer_state(
    position: Position, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, data: str
) -> dict[str, Any]:
    """All that decides how a run goes on, in types that load with ``weights_only=True``. All processes call it.

    Args:
        data: fingerprint of the corpus.
    """
    generators = distributed.gather([randomness.state()])
    return {
        "position": asdict(position),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "data": data,
        "random": generators[0],
        "others": generators[1:],  # of the other processes
    }


def restore(
    state: Mapping[str, Any], optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, data: str, source: Path
) -> Position:
    """Put everything back where :func:`trainer_state` took it.

    A process that the run did not have before keeps its random numbers.

    Raises:
        ValueError: the corpus is not the one that the run was trained on, or the state is of another version.
    """
    try:
        position = Position(**state["position"])
        position.members = [Progress(**member) for member in state["position"]["members"]]
    except (KeyError, TypeError):
        raise ValueError(
            f"{source} was written by another version of this program, and cannot be resumed exactly by this one: "
            "start a new run (-n NEW_NAME)"
        ) from None
    if state["data"] != data:
        raise ValueError(
            f"the data is not what {source} was trained on, so that its run cannot be resumed exactly. To go on from "
            f"its weights with other data, start a new run: -e {source} -n NEW_NAME"
        )
    optimizer.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state["scaler"])
    generators = [state["random"], *state.get("others", [])]
    if distributed.rank() < len(generators):
        randomness.restore(generators[distributed.rank()])
    return position
