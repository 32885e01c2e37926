"""A picture of who spoke when, who was thought to, and where the two differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..metrics.der import compare
from ..metrics.turns import Turn, speakers


def draw(path: Path, title: str, reference: Sequence[Turn], hypothesis: Sequence[Turn]) -> None:
    """Write the turns of each speaker of reference and hypothesis, and the parts of the diarization error, over time.

    A speaker of the hypothesis has the colour of the speaker of the reference it is paired with.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    compared = compare(reference, hypothesis)
    error = compared.error()
    palette = colormaps["tab10"].colors  # pyright: ignore[reportAttributeAccessIssue]
    names = speakers(reference)
    colours = {name: palette[index % 10] for index, name in enumerate(names)}
    lanes: list[tuple[str, list[tuple[float, float]], object, float]] = []
    for name in names:
        lanes.append((f"reference {name}", _bars(reference, name), colours[name], 1.0))
    # Below them in the same order of speakers, and who is paired with none last.
    order = sorted(speakers(hypothesis), key=lambda name: (name not in compared.names, compared.names.get(name, name)))
    for name in order:
        pair = compared.names.get(name)
        label = f"hypothesis {name}" + (f" = {pair}" if pair is not None else "")
        lanes.append((label, _bars(hypothesis, name), colours.get(pair or "", "0.6"), 0.55))
    of_speech = f"{{:.1f}} of {error.speech:.1f} s" if error.speech else "{:.1f} s"
    for part in ("missed", "false_alarm", "confusion"):
        label = f"{part.replace('_', ' ')}, {of_speech.format(getattr(error, part))}"
        lanes.append((label, _spans(compared.edges, getattr(compared, part)), "black", 1.0))

    figure = Figure(figsize=(11, 0.8 + 0.34 * len(lanes)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, (_, bars, colour, opacity) in enumerate(lanes):
        axes.broken_barh(bars, (place - 0.38, 0.76), facecolors=colour, alpha=opacity)  # pyright: ignore
    axes.set_yticks(range(len(lanes)), [lane[0] for lane in lanes])
    axes.set_ylim(len(lanes) - 0.5, -0.5)
    axes.axhline(len(names) - 0.5, color="0.7", linewidth=0.8)
    axes.axhline(len(lanes) - 3.5, color="0.7", linewidth=0.8)
    axes.set_xlim(0, max(compared.edges[-1], 1e-3))
    der = f": DER {100 * error.total / error.speech:.1f} %" if error.speech else ""
    axes.set(xlabel="time (s)", title=f"{title}{der}")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)


def _bars(turns: Sequence[Turn], name: str) -> list[tuple[float, float]]:
    return [(turn.start, turn.end - turn.start) for turn in turns if turn.speaker == name]


def _spans(edges: np.ndarray, counts: np.ndarray) -> list[tuple[float, float]]:
    return [(float(low), float(high - low)) for low, high, n in zip(edges, edges[1:], counts, strict=False) if n > 0]
