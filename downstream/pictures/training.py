"""Pictures of a run that every task has: learning curves, and what each layer of the upstream counts for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from s3prl_distiller.engine.log import JSONL, read_log


def draw_curves(folder: Path, metric: str, unit: str) -> Path:
    """``curves.png``: training loss, and the figure that picks the best checkpoint, over steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = read_log(folder / JSONL)
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    loss, judged = figure.subplots(1, 2)
    train = [line for line in lines if line["kind"] == "train"]
    valid = [line for line in lines if line["kind"] == "valid"]
    loss.plot([line["step"] for line in train], [line["loss"] for line in train], marker="." if len(train) < 30 else "")
    loss.set(title="training loss", xlabel="step", ylabel="loss")
    judged.plot([line["step"] for line in valid], [line.get(metric) for line in valid], "o-", markersize=4)
    judged.set(title="held-out data (dev)", xlabel="step", ylabel=f"{metric} ({unit})" if unit else metric)
    for axes in (loss, judged):
        axes.grid(alpha=0.3)
    path = folder / "curves.png"
    figure.savefig(path, dpi=120)
    return path


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
