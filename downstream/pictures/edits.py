"""Pictures of what CTC tasks get wrong: the most frequent edits, and each slot type's F1."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..metrics.text import Edit

_MOST = 12


def draw_edits(edits: Iterable[Counter[Edit]], unit: str, path: Path) -> Path:
    """Bars of the most frequent substitutions, deletions and insertions.

    Args:
        edits: of each utterance.
        unit: what is edited, in the plural.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    total: Counter[Edit] = Counter()
    for some in edits:
        total.update(some)
    kinds: dict[str, dict[str, int]] = {"substitutions": {}, "deletions": {}, "insertions": {}}
    sums = dict.fromkeys(kinds, 0)
    for (wanted, said), count in total.most_common():
        kind = "insertions" if wanted is None else "deletions" if said is None else "substitutions"
        label = " → ".join(_show(token) for token in (wanted, said) if token is not None)
        sums[kind] += count
        if len(kinds[kind]) < _MOST:
            kinds[kind][label] = count
    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (kind, counts) in zip(figure.subplots(1, 3), kinds.items(), strict=True):
        axes.barh(list(counts), list(counts.values()), color="tab:blue")
        axes.invert_yaxis()
        axes.set(title=f"{kind}: {sums[kind]} {unit}", xlabel=f"number of {unit}")
        axes.grid(axis="x", alpha=0.3)
        if not counts:
            axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", va="center")
            axes.set(xticks=[], yticks=[])
    figure.axes[0].set_ylabel("reference → recognised")
    figure.savefig(path, dpi=120)
    return path


def draw_slots(f1: Mapping[str, float], pairs: Sequence[tuple[Sequence[Any], Any]], path: Path) -> Path:
    """Bars: F1 of each slot type, and in how many references it is.

    Args:
        f1: from 0 to 1 by type.
        pairs: slots of reference and hypothesis of each utterance.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    wanted = Counter(name for reference, _ in pairs for name in {slot[0] for slot in reference})
    names = sorted(f1, key=lambda name: (-f1[name], name))
    figure = Figure(figsize=(7, 1.2 + 0.28 * max(len(names), 3)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    bars = axes.barh([f"{name} ({wanted[name]})" for name in names], [100 * f1[name] for name in names])
    axes.bar_label(bars, fmt="%.0f", padding=2)
    axes.invert_yaxis()
    axes.set(title="slot types", xlabel="F1 (%)", ylabel="type (utterances that have it)", xlim=(0, 108))
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)
    return path


def _show(token: str) -> str:
    return "␣" if token == " " else token
