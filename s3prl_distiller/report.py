"""What a run leaves for people: a picture of its losses and a page that sums it up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from s3prl_distiller.engine.log import JSONL, read_log


def write(folder: Path, description: Mapping[str, str], checkpoint: Path) -> str:
    """Write ``loss.png`` and ``summary.md``.

    Args:
        folder: of the run.
        description: what was trained on what.
        checkpoint: the last one.

    Returns:
        The summary, for the screen.
    """
    lines = read_log(folder / JSONL)
    train = [line for line in lines if line["kind"] == "train"]
    valid = [line for line in lines if line["kind"] == "valid"]
    plot(train, valid, folder / "loss.png")
    text = summary(train, valid, description, checkpoint)
    (folder / "summary.md").write_text(text, encoding="utf-8")
    return text


def held_out(folder: Path) -> dict[str, tuple[float, float]]:
    """Figures of a run's held-out audio by name: at its first and at its last step."""
    valid = [line for line in read_log(folder / JSONL) if line["kind"] == "valid"]
    return {name: (valid[0][name], valid[-1][name]) for name in valid[-1] if name not in ("kind", "step")}


def summary(train: list[dict], valid: list[dict], description: Mapping[str, str], checkpoint: Path) -> str:
    first, last = valid[0], valid[-1]
    rows = [f"| {name} | {first[name]:.4f} | {last[name]:.4f} |" for name in last if name not in ("kind", "step")]
    speed = sorted(line["audio_s_per_s"] for line in train)[len(train) // 2]
    waited = sum(line["data_wait_share"] for line in train) / len(train)
    return "\n".join(
        [
            "# Distilled student",
            "",
            *(f"- {name}: {text}" for name, text in description.items()),
            f"- Speed: {speed:.0f} s of audio per second, {100 * waited:.1f} % of the time waiting for data",
            "",
            f"| on held-out speech | at step {first['step']} | at step {last['step']} |",
            "|---|---|---|",
            *rows,
            "",
            f"Validation loss: {first['loss']:.4f} -> {last['loss']:.4f} "
            f"({100 * (last['loss'] / first['loss'] - 1):+.0f} %). Curves: loss.png; figures: log.jsonl, TensorBoard.",
            "",
            f"Use it: `s3prl_distiller.register(); s3prl.hub.distiller_local(ckpt='{checkpoint}.ckpt')`",
            "",
        ]
    )


def plot(train: list[dict], valid: list[dict], path: Path) -> None:
    """Loss, and distance and cosine of each layer, over steps: training and held out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    layers = [name for name in valid[-1] if "_layer" in name]
    distances = [name for name in layers if not name.startswith("cosine")]
    cosines = [name for name in layers if name.startswith("cosine")]
    panels = [("loss", ["loss"]), ("distance to the teacher", distances), ("cosine similarity to the teacher", cosines)]
    for axes, (title, names) in zip(figure.subplots(1, 3), panels, strict=True):
        for name in names:
            label = "" if name == "loss" else f"layer {name.rsplit('layer', 1)[1]}, "
            steps = [line["step"] for line in train]
            (curve,) = axes.plot(steps, [line[name] for line in train], linewidth=1, alpha=0.6, label=f"{label}train")
            axes.plot(
                [line["step"] for line in valid],
                [line[name] for line in valid],
                "o--",
                color=curve.get_color(),
                markersize=4,
                label=f"{label}held out",
            )
        axes.set(title=title, xlabel="step")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
