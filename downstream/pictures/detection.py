"""Pictures of scores: how well they part two kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..metrics.verification import Errors, det_points, equal_error

_TICKS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)


def draw_det(curve: Errors, path: Path) -> Path:
    """The DET curve on normal-deviate axes, the equal error rate marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from scipy.special import ndtri

    figure = Figure(figsize=(5.2, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    across, up = det_points(curve)
    rate, _ = equal_error(curve)
    axes.plot(across, up, drawstyle="steps-post")
    ticks = [float(ndtri(tick)) for tick in _TICKS]
    axes.plot(ticks, ticks, color="grey", linestyle=":", linewidth=1)
    if 0 < rate < 1:
        axes.plot(ndtri(rate), ndtri(rate), "o", color="C3", label=f"equal error rate {100 * rate:.2f} %")
    else:
        axes.plot([], [], "o", color="C3", label=f"equal error rate {100 * rate:.2f} %, outside the axes")
    span = [*across, *up, *([float(ndtri(rate))] if 0 < rate < 1 else []), float(ndtri(0.02)), float(ndtri(0.2))]
    limits = (max(min(span), ticks[0]) - 0.1, min(max(span), ticks[-1]) + 0.1)
    labels = [f"{100 * tick:g}" for tick in _TICKS]
    axes.set_xticks(ticks, labels)
    axes.set_yticks(ticks, labels)
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    axes.set(title="detection error trade-off", xlabel="false alarms (%)", ylabel="misses (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    return path


def draw_scores(
    scores: Mapping[str, Sequence[float]], lines: Mapping[str, float], axis: str, what: str, path: Path
) -> Path:
    """Histograms of the scores of each kind, as shares of the kind, with vertical lines at some scores."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    bins = np.histogram_bin_edges([score for values in scores.values() for score in values], bins=50)
    for name, values in scores.items():
        shares = np.full(len(values), 100 / max(len(values), 1))
        axes.hist(values, bins=bins.tolist(), weights=shares, alpha=0.6, label=f"{name} ({len(values)} {what})")
    for color, (name, place) in zip(("black", "C3"), lines.items(), strict=False):
        axes.axvline(place, color=color, linestyle="--", linewidth=1, label=f"{name} ({place:.4g})")
    axes.set(xlabel=axis, ylabel=f"share of the {what} of a kind (%)")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    return path


def draw_layers(values: Sequence[float], chosen: int, unit: str, path: Path) -> Path:
    """A bar for each layer, the chosen one in another colour; NaN where a layer was not tried."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(4.0, 0.45 * len(values) + 2), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    colors = ["C3" if layer == chosen else "C0" for layer in range(len(values))]
    axes.bar(range(len(values)), list(values), color=colors)
    axes.set(title=f"on dev; layer {chosen} is used", xlabel="layer (0: the first layer's input)", ylabel=unit)
    axes.set_xticks(range(len(values)))
    axes.grid(alpha=0.3, axis="y")
    figure.savefig(path, dpi=120)
    return path
