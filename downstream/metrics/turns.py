"""Turns of speakers in seconds, and the same as activity of frames."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from s3prl_distiller.audio import SAMPLE_RATE


class Turn(NamedTuple):
    """One speaker speaks from ``start`` to ``end`` (seconds)."""

    start: float
    end: float
    speaker: str


def merged(turns: Iterable[Turn]) -> list[Turn]:
    """Turns of one speaker that overlap or touch made one; in order of time."""
    last: dict[str, Turn] = {}
    done: list[Turn] = []
    for turn in sorted(turns):
        before = last.get(turn.speaker)
        if before is None:
            last[turn.speaker] = turn
        elif turn.start <= before.end:
            last[turn.speaker] = before._replace(end=max(before.end, turn.end))
        else:
            done.append(before)
            last[turn.speaker] = turn
    return sorted([*done, *last.values()])


def within(turns: Iterable[Turn], start: float, duration: float) -> list[Turn]:
    """What of the turns lies in a stretch, in seconds from its beginning."""
    cut = (Turn(max(t.start - start, 0.0), min(t.end - start, duration), t.speaker) for t in turns)
    return [turn for turn in cut if turn.end > turn.start]


def speakers(turns: Iterable[Turn]) -> list[str]:
    """Who speaks, sorted."""
    return sorted({turn.speaker for turn in turns})


def to_frames(turns: Iterable[Turn], first: int, frames: int, columns: int, shift: int) -> np.ndarray:
    """Who speaks in each frame; a turn begins and ends at the nearest frame, as s3prl has it.

    Args:
        first: frame to begin with.
        columns: speakers there is room for, no fewer than speak; each has a column, in the order of appearance.
        shift: samples at 16 kHz for each frame.

    Returns:
        (frames, columns) float32 of 0 and 1.
    """
    places: dict[str, int] = {}
    active = np.zeros((frames, columns), dtype=np.float32)
    for turn in turns:
        # In this order, as many edges are half-way between frames, and the last bit decides.
        edges = (int(np.rint(time * SAMPLE_RATE / shift)) - first for time in (turn.start, turn.end))
        low, high = (min(max(edge, 0), frames) for edge in edges)
        if high > low:
            active[low:high, places.setdefault(turn.speaker, len(places))] = 1.0
    return active


def from_frames(active: np.ndarray, shift: int) -> list[Turn]:
    """Turns of the speakers "1", "2", ... in order of time.

    Args:
        active: (frames, speakers), true where someone speaks.
        shift: samples at 16 kHz for each frame.
    """
    edges = np.diff(np.pad(active.astype(np.int8), ((1, 1), (0, 0))), axis=0)
    turns = []
    for column in range(active.shape[1]):
        starts, ends = (np.flatnonzero(edges[:, column] == sign) for sign in (1, -1))
        turns += [
            Turn(float(low * shift / SAMPLE_RATE), float(high * shift / SAMPLE_RATE), str(column + 1))
            for low, high in zip(starts, ends, strict=True)
        ]
    return sorted(turns)


def smooth(active: np.ndarray, length: int) -> np.ndarray:
    """Median over ``length`` frames, an odd number; beyond both ends no one speaks.

    Args:
        active: (frames, speakers), true where someone speaks.
    """
    if length == 1 or not len(active):
        return active
    half = length // 2
    counts = np.cumsum(np.pad(active.astype(np.int64), ((half + 1, half), (0, 0))), axis=0)
    return counts[length:] - counts[:-length] > half
