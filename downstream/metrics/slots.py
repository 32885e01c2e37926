"""Figures of slot filling, from texts with tags: ``PLAY B-artist NINA SIMONE E-artist``. SUPERB's definitions.

A slot is what is between ``B-TYPE`` and the next ``E-TYPE``, wherever they stand, since what is recognised need not be
well formed. Other tags in between are no part of its value.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from .text import distance

Slot = tuple[str, str]
"""Type and value."""

# As s3prl reads them, so that figures compare: the type at the end is not bounded, E-playlist is found in
# E-playlist_owner. That makes a difference for malformed hypotheses only.
_SLOT = re.compile(r"B-(?P<type>\S+) (?P<value>.+?) E-(?P=type)")
_BEGIN, _END = re.compile(r"B-\S+ "), re.compile(r" E-\S+")


def parse_slots(text: str) -> list[Slot]:
    """Slots of a text with tags, in their order."""
    return [(found["type"], untagged(found["value"])) for found in _SLOT.finditer(re.sub(" +", " ", text))]


def untagged(text: str) -> str:
    """A text without its tags."""
    return _END.sub("", _BEGIN.sub("", re.sub(" +", " ", text)))


def type_f1(reference: Iterable[Slot], hypothesis: Iterable[Slot]) -> float:
    """F1, from 0 to 1, of the set of slot types of one utterance; 1 where neither has any."""
    wanted, found = {name for name, _ in reference}, {name for name, _ in hypothesis}
    if not wanted and not found:
        return 1.0
    return 2 * len(wanted & found) / (len(wanted) + len(found))


def value_errors(reference: Sequence[Slot], hypothesis: Sequence[Slot]) -> tuple[int, int]:
    """Character errors and characters of the values of one utterance's slots.

    Each value of the reference is compared with the closest one of the same type, or with nothing where there is none.
    """
    errors = 0
    for name, value in reference:
        said = [other for kind, other in hypothesis if kind == name] or [""]
        errors += min(distance(value, other) for other in said)
    return errors, sum(len(value) for _, value in reference)


def f1_by_type(pairs: Iterable[tuple[Iterable[Slot], Iterable[Slot]]]) -> dict[str, float]:
    """F1, from 0 to 1, of each slot type's presence over utterances.

    Args:
        pairs: reference and hypothesis of each utterance.
    """
    both, either = Counter[str](), Counter[str]()
    for reference, hypothesis in pairs:
        wanted, found = {name for name, _ in reference}, {name for name, _ in hypothesis}
        both.update(wanted & found)
        either.update(wanted)
        either.update(found)
    return {name: 2 * both[name] / either[name] for name in sorted(either)}
