"""From what a user names to a listener: a student, its teacher, heads."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from s3prl_distiller.hub import load_hub
from s3prl_distiller.settings import QUICKSTART

from ...upstream.distiller.expert import UpstreamExpert
from ...upstream.distiller.student import read_student
from ...upstream.distiller.teacher import Teacher, TeacherConfig, load_teacher
from ..core.run import find_trained, from_saved, restore, task_class
from .listen import Head, Listener

log = logging.getLogger(__name__)


def load_listener(
    student: str, teacher: str | None, heads: Sequence[Path], device: torch.device, limit: float
) -> Listener:
    """Load all that is to listen.

    Args:
        student: whatever :func:`~s3prl_distiller.upstream.distiller.student.load_student` reads.
        teacher: hub name, checkpoint file or Hugging Face folder; None: the one that the student's checkpoint names,
            or none where that cannot be had, which is logged.
        heads: runs of downstream tasks.
        device: for all of them.
        limit: seconds of a recording that are heard.

    Raises:
        ValueError: one of them cannot be loaded, or has nothing to say of a single clip.
    """
    expert = UpstreamExpert(student).eval().requires_grad_(False).to(device)
    loaded = _load_teacher(teacher) if teacher is not None else _find_teacher(student)
    path = Path(student)
    name = "/".join(path.parts[-2:]) if path.exists() else student
    return Listener(
        name,
        expert,
        None if loaded is None else loaded.to(device),
        [_load_head(run, student, device) for run in heads],
        device,
        limit,
    )


def _load_teacher(name: str) -> Teacher:
    teacher = load_teacher(TeacherConfig(model=name))
    log.info("Teacher %s: %d layers, %d wide", teacher.info.name, teacher.info.n_layers, teacher.info.width)
    return teacher


def _find_teacher(student: str) -> Teacher | None:
    """The teacher that the checkpoint names. It names a folder of the machine that it was trained on."""
    name = read_student(student).teacher
    if name is None:
        log.warning("The student does not say what its teacher was: name it with --teacher to compare the two")
        return None
    bundled = QUICKSTART / "hubert_nano"
    if not Path(name).exists() and Path(name).parts[-2:] == bundled.parts[-2:]:
        name = str(bundled)
    try:
        return _load_teacher(name)
    except ValueError as error:
        log.warning("The student's teacher is not here, name it with --teacher to compare the two: %s", error)
        return None


def _load_head(run: Path, student: str, device: torch.device) -> Head:
    trained = find_trained(run)
    task = trained.saved["task"]
    if task_class(task).files_needed > 1:
        raise ValueError(f"{run} is a run of {task}, which compares files: it has nothing to say of a single one")
    options = {}
    saved = trained.saved["settings"]["upstream"]["name"]
    if saved not in load_hub().options() and not Path(saved).exists():
        # It was trained elsewhere: on this student, or its weights are refused.
        options["upstream"] = {"name": str(Path(student).resolve()) if Path(student).exists() else student}
    # A clip is decoded here: processes would take longer to start than it takes.
    config = from_saved(trained, options, ["data.num_workers=0"])
    return Head(trained.run.name, restore(trained, config, device, None))
