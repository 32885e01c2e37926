"""Which layers to predict: a small set that stands for all others and holds what each probe found.

The rule is a heuristic. Layers are medoids: the set is taken whose members are together most similar to every layer,
which is facility location, and so needs no threshold and no clustering to be tuned. Similarity alone would pass over
what few layers hold, so a set must also have, for each probed property, a layer that is as good as the best one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np

MOST_SETS = 50_000
"""Sets up to which all are compared: 3 of 48 layers, 5 of 24. Beyond, sets are grown and bettered layer by layer."""


@dataclass(frozen=True)
class Choice:
    """A set of layers.

    Attributes:
        layers: ascending.
        coverage: mean over all layers of the similarity to the chosen layer that is nearest, 1 at the most.
        met: how many of the wanted groups have a member in it.
    """

    layers: tuple[int, ...]
    coverage: float
    met: int


def rank(similarity: np.ndarray, count: int, wanted: Sequence[frozenset[int]] = (), best: int = 1) -> list[Choice]:
    """The best sets of ``count`` layers: those that meet most of the groups wanted, and of these the best coverage.

    Exact up to :data:`MOST_SETS` sets; beyond, one set that no exchange of a single layer makes better.

    Args:
        similarity: (n, n), of layer with layer, such as CKA. Equal sets: the one with the earlier layers.
        wanted: groups of layers of which a set should have one at least.
        best: how many sets.

    Raises:
        ValueError: there are fewer layers than asked for, or a similarity is no number.
    """
    layers = len(similarity)
    if not 1 <= count <= layers:
        raise ValueError(f"{count} layers are to be chosen, and there are {layers} to choose from")
    if not np.isfinite(similarity).all():
        raise ValueError("layers without a similarity cannot be chosen from")
    if comb(layers, count) > MOST_SETS:
        return [_grown(similarity, count, wanted)]
    sets = np.array(list(combinations(range(layers), count)))
    coverage, met = _judge(similarity, sets, wanted)
    return [_choice(sets, coverage, met, place) for place in _order(coverage, met)[:best]]


def weigh(similarity: np.ndarray, layers: Sequence[int], wanted: Sequence[frozenset[int]] = ()) -> Choice:
    """A given set, judged as :func:`rank` judges."""
    sets = np.array([sorted(layers)])
    return _choice(sets, *_judge(similarity, sets, wanted), 0)


def _judge(similarity: np.ndarray, sets: np.ndarray, wanted: Sequence[frozenset[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Coverage, and number of groups met, of each of (sets, layers)."""
    coverage = similarity[:, sets].max(2).mean(0)
    met = np.zeros(len(sets), int)
    for group in wanted:
        met += np.isin(sets, list(group)).any(1)
    return coverage, met


def _order(coverage: np.ndarray, met: np.ndarray) -> np.ndarray:
    # Sums in another order round otherwise; sets that are equal but for that should stay in their order.
    return np.lexsort((np.arange(len(met)), -coverage.round(12), -met))


def _choice(sets: np.ndarray, coverage: np.ndarray, met: np.ndarray, place: int) -> Choice:
    return Choice(tuple(int(layer) for layer in sets[place]), float(coverage[place]), int(met[place]))


def _grown(similarity: np.ndarray, count: int, wanted: Sequence[frozenset[int]]) -> Choice:
    chosen: list[int] = []
    while len(chosen) < count:
        chosen = _best_of(similarity, [[*chosen, new] for new in range(len(similarity)) if new not in chosen], wanted)
    while True:
        others = [layer for layer in range(len(similarity)) if layer not in chosen]
        swapped = [sorted({*chosen} - {old} | {new}) for old in chosen for new in others]
        better = _best_of(similarity, [sorted(chosen), *swapped], wanted)
        if sorted(better) == sorted(chosen):
            return weigh(similarity, chosen, wanted)
        chosen = better


def _best_of(similarity: np.ndarray, sets: list[list[int]], wanted: Sequence[frozenset[int]]) -> list[int]:
    return sets[_order(*_judge(similarity, np.array(sets), wanted))[0]]
