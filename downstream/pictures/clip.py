"""Pictures of one clip, for a web page: SVG that takes the page's text colour, so that it reads in light and dark."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torchaudio
from torch import Tensor

from s3prl_distiller.audio import SAMPLE_RATE

_INK = "#010203"  # stands for the page's text colour until the picture is written
_COLOURS = ("#e8743b", "#3fa45b", "#8d6cd1", "#c2a01c", "#d45087", "#2f9bb3")
_WAVE = "#4c8bd6"
_COLUMNS = 1000  # of the waveform's outline
_DECIBELS = 80  # of the spectrogram, below its loudest


def draw_clip(wave: Tensor, cosines: Mapping[str, Tensor], frame: float) -> str:
    """Waveform, log-mel spectrogram and, where there are any, cosines, over the same time: the text of an SVG.

    Args:
        wave: (samples,) at 16 kHz.
        cosines: (T,) by name.
        frame: seconds from a frame to the next.
    """
    seconds = len(wave) / SAMPLE_RATE
    heights = [1.0, 1.3, *([1.6] if cosines else [])]
    with _figure(9, 1.35 * sum(heights)) as (figure, svg):
        rows = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
        low, high = _outline(wave.numpy())
        rows[0].fill_between(np.linspace(0, seconds, len(low)), low, high, color=_WAVE, linewidth=0.6)
        rows[0].set(ylabel="amplitude", xlim=(0, seconds))
        mel = _log_mel(wave)
        rows[1].imshow(
            mel,
            origin="lower",
            aspect="auto",
            cmap="magma",
            extent=(0, seconds, 0, len(mel)),
            vmin=mel.max() - _DECIBELS,
            vmax=mel.max(),
        )
        rows[1].set(ylabel="mel band")
        if cosines:
            for (name, values), colour in zip(cosines.items(), _cycled(len(cosines)), strict=True):
                rows[2].plot((np.arange(len(values)) + 0.5) * frame, values.numpy(), label=name, color=colour, lw=1.3)
            rows[2].set(ylabel="cosine", ylim=(min(0.0, *(float(v.min()) for v in cosines.values())), 1.02))
            rows[2].legend(loc="lower right", ncols=min(6, len(cosines)), fontsize="small", framealpha=0, borderpad=0.2)
            rows[2].grid(alpha=0.25)
        rows[-1].set_xlabel("time (s)")
    return svg()


def draw_cka(cka: Tensor, rows: Sequence[str], targets: Mapping[int, int]) -> str:
    """A heat map of CKA, student's states by teacher's layers, the highest of a row in bold: the text of an SVG.

    Args:
        cka: (len(rows), layers); NaN is left empty.
        rows: names of the student's states.
        targets: by row, the column that is framed.
    """
    from matplotlib.patches import Rectangle

    columns = cka.shape[1]
    with _figure(max(5.0, 0.55 * columns + 2.2), 0.42 * len(rows) + 1.1) as (figure, svg):
        axes = figure.subplots()
        values = cka.numpy()
        # Most are close to 1 and to each other: shades begin at the lowest.
        image = axes.imshow(values, cmap="Blues", vmin=min(0.9, np.nanmin(values, initial=1)), vmax=1, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                ink = "white" if image.norm(value) > 0.55 else "#203040"
                weight = "bold" if value == np.nanmax(values[row]) else "normal"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=9, weight=weight)
        for row, column in targets.items():
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=_COLOURS[0], linewidth=2.5))
        axes.set_xticks(range(columns))
        axes.set_yticks(range(len(rows)), list(rows))
        axes.tick_params(length=0)
        axes.set(xlabel="layer of the teacher (0: the first layer's input)")
    return svg()


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Any, Any]]:
    """A figure of that many inches, and a function that gives its SVG once it is drawn."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    with rc_context({**dict.fromkeys(inked, _INK), "svg.fonttype": "none", "axes.facecolor": "none"}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        file = io.StringIO()
        yield figure, lambda: _of_the_page(file.getvalue())
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)


def _of_the_page(svg: str) -> str:
    return svg[svg.index("<svg") :].replace(_INK, "currentColor")


def _cycled(count: int) -> Iterator[str]:
    return (_COLOURS[place % len(_COLOURS)] for place in range(count))


def _outline(wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest sample of each of at most ``_COLUMNS`` stretches."""
    parts = np.array_split(wave, min(_COLUMNS, len(wave)))
    return np.array([part.min() for part in parts]), np.array([part.max() for part in parts])


def _log_mel(wave: Tensor) -> np.ndarray:
    """(80, frames) in decibels, a frame each 10 ms."""
    mel = torchaudio.transforms.MelSpectrogram(SAMPLE_RATE, n_fft=1024, win_length=400, hop_length=160, n_mels=80)
    return (10 * torch.log10(mel(wave) + 1e-10)).numpy()
