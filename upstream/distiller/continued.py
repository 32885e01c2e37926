"""Going on with a student under another name, on other data: its shape, its teacher and its weights are kept."""

from __future__ import annotations

import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

from s3prl_distiller import settings
from s3prl_distiller.checkpoint import check_weights

from .model import DistillerModel
from .model_config import EncoderConfig
from .student import load_student, read_student

log = logging.getLogger(__name__)

_HEADS = ("task_embedding.", "output_layer.")


def student_settings(path: Path) -> dict[str, Any]:
    """Sections of a config that say what a student is, for a run that begins with its weights.

    Args:
        path: what :func:`~.student.read_student` reads.

    Returns:
        ``distiller``, without what is said of prediction heads where it has none; ``card``; ``teacher``, if known.

    Raises:
        ValueError: it cannot be read.
    """
    student = read_student(path)
    shape = settings.plain(student.model.config)
    if not student.model.config.n_tasks:
        encoder = {field.name for field in fields(EncoderConfig)}
        shape = {key: value for key, value in shape.items() if key in encoder}
    teacher = {} if student.teacher is None else {"teacher": {"model": student.teacher}}
    return {"distiller": shape, "card": {"begun_from": str(path)}, **teacher}


def take_weights(student: DistillerModel, path: Path) -> None:
    """Start a student from the weights of another; prediction heads that this one lacks stay random.

    Raises:
        ValueError: it is of another shape, or cannot be read.
    """
    saved = load_student(path).state_dict()
    own = student.state_dict()
    heads = [name for name in own if name.startswith(_HEADS)]
    lacks_heads = not any(name.startswith(_HEADS) for name in saved)
    if lacks_heads:
        saved |= {name: own[name] for name in heads}
    check_weights(saved, student, path)
    student.load_state_dict(saved)
    more = "; its prediction heads are new, as that has none" if lacks_heads and heads else ""
    log.info("The student's weights are those of %s%s", path, more)
