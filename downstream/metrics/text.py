"""Edit distances: word, character and phone error rates (Levenshtein, all errors cost 1)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rapidfuzz.distance import Levenshtein

Edit = tuple[str | None, str | None]
"""What the reference has and what was said in its place: None for nothing."""


def distance(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """Substitutions, deletions and insertions that turn one sequence (or text) into the other, at least."""
    return Levenshtein.distance(reference, hypothesis)


def text_errors(reference: str, hypothesis: str) -> dict[str, int]:
    """Errors and lengths of a text by words and by characters (a space is one); white space counts once."""
    words, said = reference.split(), hypothesis.split()
    text, heard = " ".join(words), " ".join(said)
    return {
        "word_errors": distance(words, said),
        "words": len(words),
        "char_errors": distance(text, heard),
        "chars": len(text),
    }


def rate(rows: Sequence[Mapping[str, Any]], errors: str, total: str) -> float:
    """Errors of all rows per length of all references, in per cent; NaN where there is no reference at all.

    Args:
        errors: key of the number of errors.
        total: key of the length of the reference.
    """
    length = sum(row[total] for row in rows)
    return 100 * sum(row[errors] for row in rows) / length if length else math.nan


def edits(reference: Sequence[str], hypothesis: Sequence[str]) -> Counter[Edit]:
    """The edits of one shortest way from the reference to the hypothesis, as many as their distance."""
    found: Counter[Edit] = Counter()
    for edit in Levenshtein.editops(reference, hypothesis).as_list():
        kind, source, target = str(edit[0]), int(edit[1]), int(edit[2])
        wanted = None if kind == "insert" else reference[source]
        said = None if kind == "delete" else hypothesis[target]
        found[wanted, said] += 1
    return found
