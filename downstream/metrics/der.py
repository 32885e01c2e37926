"""Diarization error rate: how long speakers were missed, invented or taken for each other, of how long they spoke.

Exact in time (turns are not cut into frames), no collar around their edges, and overlapping speech counts for each of
its speakers, as SUPERB has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from .turns import Turn, speakers


@dataclass(frozen=True)
class DiarizationError:
    """Seconds, added up over speakers: ``speech`` is how long those of the reference speak."""

    missed: float
    false_alarm: float
    confusion: float
    speech: float

    @property
    def total(self) -> float:
        return self.missed + self.false_alarm + self.confusion


@dataclass(frozen=True)
class Comparison:
    """Reference and hypothesis over stretches of time in which neither changes.

    Attributes:
        edges: (K + 1,) seconds at which the K stretches begin, and the last ends.
        missed: (K,) speakers of the reference without one in the hypothesis.
        false_alarm: (K,) speakers of the hypothesis without one in the reference.
        confusion: (K,) speakers of the hypothesis in place of another.
        speech: (K,) speakers of the reference.
        names: the reference's speaker of each of the hypothesis' that has one, chosen for the least confusion.
    """

    edges: np.ndarray
    missed: np.ndarray
    false_alarm: np.ndarray
    confusion: np.ndarray
    speech: np.ndarray
    names: dict[str, str]

    def error(self) -> DiarizationError:
        """Over the whole time."""
        spans = np.diff(self.edges)
        parts = (self.missed, self.false_alarm, self.confusion, self.speech)
        return DiarizationError(*(float(spans @ part) for part in parts))


def compare(reference: Sequence[Turn], hypothesis: Sequence[Turn]) -> Comparison:
    """Turns of one recording against those it should have. Names need not be the same: the best pairing counts."""
    edges = np.unique([time for turn in (*reference, *hypothesis) for time in (turn.start, turn.end)])
    if not len(edges):
        edges = np.zeros(1)
    said, heard = _activity(reference, edges), _activity(hypothesis, edges)
    together = said.T @ (heard * np.diff(edges)[:, None])  # seconds for each pair of speakers
    rows, columns = linear_sum_assignment(together, maximize=True)
    agreed = (said[:, rows] * heard[:, columns]).sum(axis=1)
    in_reference, in_hypothesis = said.sum(axis=1), heard.sum(axis=1)
    of_reference, of_hypothesis = speakers(reference), speakers(hypothesis)
    return Comparison(
        edges=edges,
        missed=np.maximum(in_reference - in_hypothesis, 0),
        false_alarm=np.maximum(in_hypothesis - in_reference, 0),
        confusion=np.minimum(in_reference, in_hypothesis) - agreed,
        speech=in_reference,
        names={
            of_hypothesis[column]: of_reference[row]
            for row, column in zip(rows, columns, strict=True)
            if together[row, column] > 0
        },
    )


def diarization_error(reference: Sequence[Turn], hypothesis: Sequence[Turn]) -> DiarizationError:
    """The parts of the error of one recording, in seconds; add them up over recordings before dividing."""
    return compare(reference, hypothesis).error()


def _activity(turns: Sequence[Turn], edges: np.ndarray) -> np.ndarray:
    """(K, speakers): 1 where a speaker speaks in a stretch between edges."""
    names = {name: column for column, name in enumerate(speakers(turns))}
    columns = np.array([names[turn.speaker] for turn in turns], dtype=np.intp)
    changes = np.zeros(len(edges) * len(names))
    for times, change in (([turn.start for turn in turns], 1), ([turn.end for turn in turns], -1)):
        np.add.at(changes, np.searchsorted(edges, times) * len(names) + columns, change)
    # Overlapping turns of one speaker count once.
    return (changes.reshape(len(edges), len(names)).cumsum(axis=0)[:-1] > 0).astype(float)
