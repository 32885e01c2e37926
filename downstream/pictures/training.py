"""Pictures of a run that every task has: learning curves, and what each layer of the upstream counts for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from s3prl_distiller.engine.log import JSONL, read_log


def draw_curves(folder: Path, metric: str, unit: str) -> Path:
    """``curves.png``: training loss, and the figure that picks the best checkpoint, over steps; of each head."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = read_log(folder / JSONL)
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    loss, judged = figure.subplots(1, 2)
    _draw_heads(loss, [line for line in lines if line["kind"] == "train"], "loss")
    _draw_heads(judged, [line for line in lines if line["kind"] == "valid"], metric)
    loss.set(title="training loss", xlabel="step", ylabel="loss")
    judged.set(title="held-out data (dev)", xlabel="step", ylabel=f"{metric} ({unit})" if unit else metric)
    for axes in (loss, judged):
        axes.grid(alpha=0.3)
    path = folder / "curves.png"
    figure.savefig(path, dpi=120)
    return path


def _draw_heads(axes: Any, lines: Sequence[dict[str, Any]], name: str) -> None:
    """A line for the figure of that name, or one for each head that has one, ``NAME/HEAD``."""
    heads = list(dict.fromkeys(key for line in lines for key in line if key.startswith(f"{name}/")))
    for key in heads or [name]:
        marker = "." if len(lines) < 30 else ""
        label = key.partition("/")[2]
        axes.plot([line["step"] for line in lines], [line.get(key) for line in lines], marker=marker, label=label)
    if 1 < len(heads) <= 12:
        axes.legend(fontsize="x-small")


def draw_layers(shares: Sequence[float], upstream: str, path: Path) -> Path:
    """Bars: the weight of each layer in the weighted sum."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(4.0, 0.45 * len(shares) + 2), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.bar(range(len(shares)), [100 * share for share in shares])
    axes.axhline(100 / len(shares), color="grey", linestyle="--", linewidth=1, label="equal weights")
    axes.set(title=f"layers of {Path(upstream).name}", xlabel="layer (0: the first layer's input)", ylabel="weight (%)")
    axes.set_xticks(range(len(shares)))
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    return path
