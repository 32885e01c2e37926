"""From what was measured to the layers that are proposed, with what speaks for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .choose import Choice, rank, weigh
from .linear import Probe

_NEXT_BEST = 3


@dataclass(frozen=True)
class Proposal:
    """Layers to predict, and the evidence.

    Attributes:
        chosen, others: the best set and those that follow it.
        by_cka: the best where probes are not asked.
        recipe: the set that the recipe names, judged alike; None where the teacher lacks one of its layers.
        on_parts: the layers that would be chosen on each part of the speech.
        counted: probes that count in the choice.
        cka, cka_error: (layers, layers) from layer 0 on, mean and standard error over parts of the speech.
        probes, left_out: what each layer says; why what is not there was left out.
        teacher: its name.
        setting: what was heard, with what, how, for people.
        remarks: what was passed over.
    """

    chosen: Choice
    others: Sequence[Choice]
    by_cka: Choice
    recipe: Choice | None
    on_parts: Sequence[tuple[int, ...]]
    counted: int
    cka: np.ndarray
    cka_error: np.ndarray
    probes: Sequence[Probe]
    left_out: Sequence[str]
    teacher: str
    setting: Mapping[str, str]
    remarks: Sequence[str]

    @property
    def line(self) -> str:
        """The choice in one line."""
        told = [f"{one.name} best in {one.best}" for one in self.probes if one.informative]
        why = f"coverage {self.chosen.coverage:.3f} by CKA" + "".join(f", {text}" for text in told)
        recipe = ""
        if self.recipe is not None and self.recipe.layers != self.chosen.layers:
            recipe = f"; the recipe's {', '.join(map(str, self.recipe.layers))}: {self.recipe.coverage:.3f}"
        return f"layers {', '.join(map(str, self.chosen.layers))} ({why}{recipe})"


def conclude(
    parts: np.ndarray,
    probes: Sequence[Probe],
    left_out: Sequence[str],
    count: int,
    recipe: Sequence[int],
    teacher: str,
    setting: Mapping[str, str],
    remarks: Sequence[str],
) -> Proposal:
    """Choose ``count`` of layers 1 to n. Layers that do not vary are neither chosen nor to be stood for.

    Args:
        parts: (parts, n + 1, n + 1), CKA on each part of the speech.
        recipe: layers to compare the choice with.

    Raises:
        ValueError: there are fewer layers than are to be chosen.
    """
    cka = parts.mean(0)
    error = parts.std(0, ddof=1) / len(parts) ** 0.5 if len(parts) > 1 else np.full_like(cka, np.nan)
    layers = [layer for layer in range(1, len(cka)) if np.isfinite(cka[layer, layer])]
    if len(layers) < count:
        raise ValueError(
            f"{count} layers are to be predicted, but teacher {teacher} has {len(layers)} to choose from: give as many "
            "with --targets, or fewer in distiller.pred_layer_id of the recipe"
        )
    places = {layer: place for place, layer in enumerate(layers)}
    counting = [one for one in probes if one.informative]
    wanted = [frozenset(places[layer] for layer in one.near if layer in places) for one in counting]

    def named(choice: Choice) -> Choice:
        return replace(choice, layers=tuple(layers[place] for place in choice.layers))

    alike = cka[np.ix_(layers, layers)]
    best, *others = rank(alike, count, wanted, 1 + _NEXT_BEST)
    by_cka = weigh(alike, rank(alike, count)[0].layers, wanted)
    known = sorted({places[layer] for layer in recipe if layer in places})
    return Proposal(
        chosen=named(best),
        others=[named(one) for one in others],
        by_cka=named(by_cka),
        recipe=named(weigh(alike, known, wanted)) if len(known) == len(recipe) > 0 else None,
        on_parts=[named(rank(part[np.ix_(layers, layers)], count, wanted)[0]).layers for part in parts],
        counted=len(counting),
        cka=cka,
        cka_error=error,
        probes=probes,
        left_out=left_out,
        teacher=teacher,
        setting=setting,
        remarks=remarks,
    )
