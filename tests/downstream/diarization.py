"""A diarization task with its data read."""

from pathlib import Path

import numpy as np
from s3prl_distiller.downstream.sd import DiarizationConfig, Task

from .durations import with_durations

RATE = 320


def prepared(root: Path, rate: int = RATE, **config) -> Task:
    task = Task(DiarizationConfig(**config))
    task.prepare(with_durations(task.read(root)), rate)
    return task


def rows_of(task: Task, hypothesis, reference):
    """The row of one recording whose probabilities are near 0 and 1."""
    frames = 500
    probabilities = np.full((frames, 2), 0.05)
    for turn in hypothesis:
        probabilities[round(turn.start * 50) : round(turn.end * 50), int(turn.speaker) - 1] = 0.95
    return task.rows([{"id": "r", "reference": reference, "probabilities": probabilities}], "test")[0]
