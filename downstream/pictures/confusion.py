"""The picture of what a classifier takes for what."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ..metrics.classification import confusion, most_confused

READABLE = 30
"""Classes above which only the most confused ones are drawn."""
_LONGEST = 24  # characters of a label


def draw_confusion(
    pairs: Sequence[tuple[str, str]], labels: Iterable[str], path: Path, title: str, noun: str = "class"
) -> Path:
    """Draw the confusion matrix of pairs (reference, prediction) as a PNG.

    Cells hold counts; their shade is the share of their row, which is one reference class. Above :data:`READABLE`
    classes the most confused ones are drawn, and predictions of others are in a column of their own.

    Args:
        labels: that the classifier knows; others that occur are added.
        noun: what a label is.

    Returns:
        ``path``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    labels = sorted({*labels, *(label for pair in pairs for label in pair)})
    counts = confusion(pairs, labels)
    totals = counts.sum(1)
    columns = list(labels)
    if len(labels) > READABLE:
        shown = most_confused(counts, READABLE)
        title += f"\nthe {len(shown)} most confused of {len(labels)}"
        others = counts[shown].sum(1) - counts[np.ix_(shown, shown)].sum(1)
        counts = np.column_stack([counts[np.ix_(shown, shown)], others])
        labels, totals = [labels[index] for index in shown], totals[shown]
        columns = [*labels, "(others)"]
    shares = 100 * counts / np.maximum(totals, 1)[:, None]

    size = max(4.0, 0.42 * len(labels) + 1.5)
    figure = Figure(figsize=(size + 1.5, size), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if shares[row, column] > 55 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(columns)), [_short(label) for label in columns], rotation=90, fontsize=8)
    axes.set_yticks(
        range(len(labels)), [f"{_short(label)} ({n})" for label, n in zip(labels, totals, strict=True)], fontsize=8
    )
    axes.set(title=title, xlabel=f"predicted {noun}", ylabel=f"reference {noun} (utterances)")
    figure.colorbar(image, ax=axes, label="share of the reference's utterances (%)", shrink=0.8)
    figure.savefig(path, dpi=110)
    return path


def _short(label: str) -> str:
    # A dollar sign would begin a formula.
    return (label if len(label) <= _LONGEST else label[: _LONGEST - 1] + "…").replace("$", r"\$")
