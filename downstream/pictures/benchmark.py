"""Pictures of a benchmark's report: SVG text that stands in a page, in the page's font and colours, light or dark."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

MEASURED, PUBLISHED = "#2f7de1", "#e0803a"
_INK = "#010203"  # becomes the colour of the page's text
_COLOURS = ("#2f7de1", "#d1495b", "#2a9d6f", "#8e5bd0", "#c98a00", "#0f9bb0")
_SPREAD = (0, 10, -10, 20, -20, 30, -30, 41, -41, 52, -52, 63, -63, 75, -75)  # points: where a label may go, up or down


@dataclass(frozen=True)
class Dot:
    """A point of a picture: a system's name, its parameters, its score and the score's 95 % interval."""

    name: str
    parameters: float
    score: float
    low: float | None = None
    high: float | None = None
    measured: bool = True


def layers(shares: Mapping[str, Sequence[float]], marked: Mapping[str, int], title: str) -> str:
    """A heat-map: tasks down, layers across, the darker the more a layer counts for.

    Args:
        shares: by task, from 0 to 1; all of one length.
        marked: by task the one layer that was chosen, in place of shares.
    """
    from matplotlib.patches import Rectangle

    tasks = [*shares, *(task for task in marked if task not in shares)]
    count = max([len(values) for values in shares.values()] + [1 + layer for layer in marked.values()])
    # Equal weights are half as dark as can be: what is near them looks alike.
    darkest = max([2 / count, *(max(values) for values in shares.values())])
    with _figure((0.34 * count + 0.95, 0.27 * len(tasks) + 0.55)) as (figure, axes):
        for row, task in enumerate(tasks):
            for layer, share in enumerate(shares.get(task, ())):
                depth = 0.04 + 0.76 * share / darkest
                axes.add_patch(Rectangle((layer - 0.48, row - 0.46), 0.96, 0.92, color=MEASURED, alpha=depth, lw=0))
                if share == max(shares[task]) > min(shares[task]):
                    axes.add_patch(
                        Rectangle((layer - 0.46, row - 0.44), 0.92, 0.88, fill=False, edgecolor=_INK, lw=1.2)
                    )
                text = axes.text(layer, row, f"{100 * share:.0f}", ha="center", va="center_baseline", fontsize=8)
                text.set_in_layout(False)  # it is within the axes; to measure hundreds takes seconds
            if task in marked and task not in shares:
                axes.plot(range(count), [row] * count, color=_INK, alpha=0.25, lw=0.8)
                axes.plot(marked[task], row, "o", color=_COLOURS[1], markersize=7)
        axes.set(xlim=(-0.55, count - 0.45), ylim=(len(tasks) - 0.45, -0.55), xlabel="layer")
        axes.set_xticks(range(count))
        axes.set_yticks(range(len(tasks)), tasks)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        return _svg(figure, title)


def size_and_score(
    dots: Sequence[Dot], ylabel: str, title: str, line: tuple[float, str] | None = None, width: float = 8.2
) -> str:
    """Parameters (logarithmic) against a score; measured and published points differ in colour and shape.

    Args:
        line: a level to mark, and what it is.
        width: of the picture in inches.
    """
    from matplotlib.ticker import FixedLocator, NullLocator

    with _figure((width, 4.9)) as (figure, axes):
        sizes = [dot.parameters / 1e6 for dot in dots]
        scores = [s for dot in dots for s in (dot.score, dot.low, dot.high) if s is not None]
        scores += [line[0]] if line else []
        edge = 0.12 * (max(scores) - min(scores)) or 10
        axes.set_xscale("log")
        axes.set(xlim=(min(sizes) / 1.75, max(sizes) * 1.75), ylim=(min(scores) - edge, max(scores) + edge))
        if line:
            axes.axhline(line[0], color=_INK, alpha=0.45, lw=1, ls="--")
            place = (0.005, line[0])
            axes.annotate(
                line[1], place, xycoords=("axes fraction", "data"), xytext=(2, 3), textcoords="offset points", alpha=0.8
            )
        for measured, colour, marker, label in (
            (True, MEASURED, "o", "measured here"),
            (False, PUBLISHED, "D", "published, not measured here"),
        ):
            some = [dot for dot in dots if dot.measured == measured]
            if not some:
                continue
            low = [dot.score - (dot.score if dot.low is None else dot.low) for dot in some]
            high = [(dot.score if dot.high is None else dot.high) - dot.score for dot in some]
            axes.errorbar(
                [dot.parameters / 1e6 for dot in some],
                [dot.score for dot in some],
                yerr=np.maximum([low, high], 0),
                fmt=marker,
                color=colour,
                markersize=7 if measured else 6,
                elinewidth=1.2,
                capsize=0,
                label=label,
            )
        ticks = [one * ten for ten in (0.01, 0.1, 1, 10, 100, 1000) for one in (1, 2, 3, 5)]
        left, right = axes.get_xlim()
        axes.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if left <= tick <= right]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set(xlabel="parameters (millions, logarithmic)", ylabel=ylabel)
        axes.grid(alpha=0.18, color=_INK, lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="lower right", frameon=False)
        _label(figure, axes, dots)
        return _svg(figure, title)


def forest(rows: Sequence[tuple[str, Mapping[str, tuple[float, float | None, float | None]]]], title: str) -> str:
    """Retention with intervals: a row for each task and a colour for each student; 0 is the baseline, 100 the teacher.

    Args:
        rows: of each task its name, and by student the value, low and high in percent.
    """
    students = list(dict.fromkeys(student for _, values in rows for student in values))
    ends = [end for _, values in rows for three in values.values() for end in three if end is not None]
    left, right = max(min([-10.0, *ends]), -150.0), min(max([120.0, *ends]), 250.0)
    with _figure((6.4, 0.32 * len(rows) * max(1, 0.6 * len(students)) + 1.0)) as (figure, axes):
        for level, style in ((0, ":"), (100, "--")):
            axes.axvline(level, color=_INK, alpha=0.5, lw=1, ls=style)
        for index, student in enumerate(students):
            colour = _COLOURS[index % len(_COLOURS)]
            offset = (index - (len(students) - 1) / 2) * 0.7 / max(len(students), 1)
            shown = [(row + offset, *values[student]) for row, (_, values) in enumerate(rows) if student in values]
            for place, _, low, high in shown:
                if low is not None and high is not None:
                    axes.plot([low, high], [place, place], color=colour, lw=2.2, alpha=0.5, solid_capstyle="round")
            axes.plot([s[1] for s in shown], [s[0] for s in shown], "o", color=colour, markersize=6.5, label=student)
        axes.set(
            xlim=(left - 4, right + 4), ylim=(len(rows) - 0.5, -0.5), xlabel="% of the way from baseline to teacher"
        )
        axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        for level, name in ((0, "baseline"), (100, "teacher")):
            axes.annotate(
                name,
                (level, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
            )
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", alpha=0.18, color=_INK, lw=0.6)
        axes.spines[["top", "right", "left"]].set_visible(False)
        if len(students) > 1:
            figure.legend(frameon=False, loc="outside lower center", ncols=min(len(students), 3))
        return _svg(figure, title)


def _label(figure: Any, axes: Any, dots: Sequence[Dot]) -> None:
    """A name beside each point, moved up or down, with a thin line back to it, until it covers nothing."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    figure.set_layout_engine("none")  # labels have their places in this layout
    renderer = canvas.get_renderer()
    points = [axes.transData.transform((dot.parameters / 1e6, dot.score)) for dot in dots]
    scale = figure.dpi / 72
    taken = [_box(x - 5 * scale, y - 5 * scale, x + 5 * scale, y + 5 * scale) for x, y in points]
    for dot in dots:
        ends = [(dot.parameters / 1e6, end) for end in (dot.low, dot.high) if end is not None]
        if len(ends) == 2:
            (x, bottom), (_, top) = axes.transData.transform(ends)
            taken.append(_box(x - 2 * scale, bottom, x + 2 * scale, top))
    legend = axes.get_legend()
    if legend is not None:
        bounds = legend.get_window_extent(renderer)
        taken.append(_box(bounds.x0, bounds.y0, bounds.x1, bounds.y1))
    frame = axes.get_window_extent(renderer)
    middle = float(np.median([x for x, _ in points]))
    # From the top down, so that those of a crowd keep their order.
    for index in sorted(range(len(dots)), key=lambda i: -points[i][1]):
        x, y = points[index]
        best: tuple[float, Any, tuple[float, float], str] | None = None
        sides = (1, -1) if x >= middle else (-1, 1)
        text = figure.text(0, 0, dots[index].name, fontsize=9)
        extent = text.get_window_extent(renderer)
        text.remove()
        wide, high = extent.width + 4, extent.height + 2
        for side in sides:
            for up in _SPREAD:
                shift = (side * (9 if abs(up) <= 10 else 16), up)
                left = x + shift[0] * scale - (2 if side > 0 else wide - 2)
                bottom = y + up * scale - high / 2
                box = _box(left, bottom, left + wide, bottom + high)
                outside = max(0.0, frame.x0 - box[0]) + max(0.0, box[2] - frame.x1)
                outside += max(0.0, frame.y0 - box[1]) + max(0.0, box[3] - frame.y1)
                bad = sum(_overlap(box, other) for other in taken) + 100 * outside
                cost = bad + 0.1 * abs(up) + (4 if side != sides[0] else 0)
                if best is None or cost < best[0]:
                    best = (cost, box, shift, "left" if side > 0 else "right")
        assert best is not None, "there are places to try"
        _, box, shift, ha = best
        taken.append(box)
        line = {
            "arrowstyle": "-",
            "color": _INK,
            "alpha": 0.35,
            "lw": 0.7,
            "shrinkA": 1,
            "shrinkB": 4,
            "relpos": (ha == "right", 0.5),
        }
        axes.annotate(
            dots[index].name,
            (dots[index].parameters / 1e6, dots[index].score),
            xytext=shift,
            textcoords="offset points",
            ha=ha,
            va="center",
            fontsize=9,
            arrowprops=line if abs(shift[1]) > 4 else None,
        )


def _box(x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
    return x0, y0, x1, y1


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Area that two boxes share."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return wide * high if wide > 0 and high > 0 else 0.0


@contextmanager
def _figure(size: tuple[float, float]) -> Iterator[tuple[Any, Any]]:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    ink = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "font.size": 10,
        "font.family": "DejaVu Sans",
        "text.parse_math": False,
    }
    with matplotlib.rc_context({**style, **dict.fromkeys(ink, _INK)}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        yield figure, axes


def _svg(figure: Any, title: str) -> str:
    """The picture as an ``svg`` element without styles, scripts and outer references, with a title."""
    import matplotlib

    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": title}):
        figure.savefig(file, format="svg", metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    view = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    assert view, "matplotlib says how large a picture is"
    text = text[text.index(">") + 1 :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = text.replace("xlink:href", "href").replace(_INK, "currentColor")
    text = re.sub(r"font-family: [^;\"]*;?", "", re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text))
    # Ids that nothing refers to are the same in each picture; the others have the title hashed into them.
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    name = html.escape(title)
    wide, high = (float(number) for number in view.groups())
    return (
        f'<svg class="chart" viewBox="0 0 {wide:g} {high:g}" style="max-width: {wide * 1.3:.0f}px; '
        f'min-width: {min(0.86 * wide, 480):.0f}px" role="img" aria-label="{name}">'
        f"<title>{name}</title>{text.strip()}\n"
    )
