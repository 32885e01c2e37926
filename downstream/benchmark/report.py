"""The report of a benchmark folder: one page that needs nothing but itself, and the same in short as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from s3prl_distiller import checkpoint

from ..pictures import benchmark as pictures
from . import details, markdown, published, tables
from .collect import Benchmark, read
from .scores import Score, superb_s
from .tables import interval, number

HTML, MARKDOWN = "report.html", "report.md"
_TEMPLATE = Path(__file__).parent / "templates" / "report.html.j2"


@dataclass(frozen=True)
class Picture:
    """An SVG element and what is to be read beside it."""

    name: str
    svg: Markup
    caption: str = ""
    wide: bool = False


def write_report(folder: Path) -> tuple[Path, Path]:
    """Write ``report.html`` and ``report.md`` of a benchmark folder, at any time: what is missing is said to be.

    Returns:
        Both paths.

    Raises:
        ValueError: there is no ``benchmark.json``, or it is damaged.
    """
    benchmark = read(folder)
    content = _content(benchmark)
    paths = folder / HTML, folder / MARKDOWN
    checkpoint.save_text(_template().render(content), paths[0])
    checkpoint.save_text(markdown.render(content), paths[1])
    return paths


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))


def _content(benchmark: Benchmark) -> dict[str, Any]:
    """All that the two files say, as text."""
    retention = tables.retention(benchmark)
    costs = [one.cost for one in benchmark.upstreams if one.cost is not None]
    cells = [cell for one in benchmark.upstreams for cell in one.cells.values() if cell.hole is None]
    versions = [text for one in [*cells, *costs] if (text := _listed(one.versions))]
    return {
        "title": "SUPERB report: " + ", ".join(one.label for one in benchmark.upstreams),
        "tier": benchmark.tier,
        "facts": {
            "Tier": benchmark.tier,
            "Data": benchmark.data,
            "Written": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            "Runs": f"{len(cells)} of {sum(len(one.cells) for one in benchmark.upstreams)} done",
            "Runs made on": _distinct(cell.device for cell in cells),
            "Cost measured on": _distinct(cost.device for cost in costs),
            "Versions": "; ".join(dict.fromkeys(versions)) or "not stated",
        },
        "meaning": meaning(benchmark.tier, tables.deviations(benchmark)),
        "cards": _cards(benchmark, retention),
        "benchmark": benchmark,
        "columns": tables.columns(benchmark),
        "main": tables.main(benchmark),
        "further": tables.further(benchmark),
        "holes": tables.holes(benchmark),
        "footnotes": tables.footnotes(benchmark),
        "published_columns": [(task, figure) for task in tables.TASKS.values() for figure in task.figures],
        "published": tables.others(),
        "cost_columns": tables.COST,
        "costs": tables.cost(benchmark),
        "conditions": tables.conditions(benchmark),
        "superb_s": [(name, kind, score, shown(score, 1)) for name, kind, score in tables.superb_s(benchmark)],
        "references": (published.FBANK, published.SOTA),
        "retention": retention,
        "retention_text": {
            label: ({task: shown(score, 1) for task, score in each.items()}, shown(mean, 1))
            for label, (each, mean) in retention.items()
        },
        "no_retention": _no_retention(benchmark),
        "forest": _forest(benchmark, retention),
        "layers": _layers(benchmark),
        "no_layers": [one.label for one in benchmark.upstreams if not _drawable(one.cells)],
        "size_plots": _sizes(benchmark, retention),
        "searches": details.searches(benchmark),
        "protocol_columns": details.PROTOCOL,
        "protocols": details.protocols(benchmark),
        "commands": details.commands(benchmark),
    }


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _distinct(devices: Iterable[str | None]) -> str:
    return ", ".join(dict.fromkeys(device for device in devices if device)) or "not stated"


def meaning(tier: str, deviations: Sequence[str]) -> str:
    """What the figures are and are not.

    Args:
        deviations: in what runs of the official tier are not by SUPERB's protocol.
    """
    if tier == "superb" and deviations:
        return (
            "These are not SUPERB's figures: the tier is SUPERB's, but what was run is not its protocol. "
            f"{'; '.join(deviations)}. Rows may be compared with each other where their protocol is the same, and with "
            "no published figure of these tasks."
        )
    if tier == "superb":
        return (
            "Figures by SUPERB's protocol: its corpora, heads, steps and metrics, with the upstream frozen. They may "
            "be set beside published ones as far as the protocol at the end of this page is theirs; published figures "
            "come without intervals."
        )
    start = "These are not SUPERB's figures. "
    if tier != "mini":
        start += f"The tier “{tier}” has settings of its own. "
    return start + (
        "The tasks, losses and metrics are SUPERB's, but corpora are others, far smaller, and training is shorter. "
        "What can be read here is how upstreams compare that were trained and judged alike on the same data: a cheap "
        "proxy while a student is being developed. No figure here may be set beside a published one."
    )


def shown(score: Score, digits: int) -> str:
    """A score with its interval, or why there is none."""
    if score.value is None:
        return score.reason
    return f"{number(score.value, digits)} {interval(score.low, score.high, digits)}".strip()


def _cards(benchmark: Benchmark, retention: dict[str, Any]) -> list[dict[str, Any]]:
    """For each student what matters most: what it keeps, and what it saves."""
    cards = []
    costs = {line.label: line.cells for line in tables.cost(benchmark)}
    for student in benchmark.students:
        facts = []
        if student.label in retention:
            each, mean = retention[student.label]
            if mean.value is not None:
                decided = f"retention of the teacher, mean of {mean.tasks} of {len(each)} tasks"
                facts.append((f"{number(mean.value, 0)} %", decided, interval(mean.low, mean.high, 0)))
        for name, cell in zip(("parameters", "MACs"), costs[student.label], strict=False):
            if cell.detail:
                facts.append((cell.detail, name, cell.text + (" GMAC a second of audio" if name == "MACs" else "")))
        teacher = benchmark.of_role("teacher")
        if student.cost and teacher and teacher.cost and student.cost.conditions == teacher.cost.conditions:
            times = teacher.cost.real_time_factor / (student.cost.real_time_factor or float("inf"))
            if times > 0:
                facts.append((f"{times:.2g}×", "the teacher's speed", costs[student.label][2].tag))
        if facts:
            cards.append({"label": student.label, "facts": facts})
    return cards


def _no_retention(benchmark: Benchmark) -> str:
    missing = [role for role in ("teacher", "baseline") if benchmark.of_role(role) is None]
    if missing:
        return f"Not computed: benchmark.json names no {' and no '.join(missing)} among the upstreams."
    return "" if benchmark.students else "Not computed: there is no student among the upstreams."


def _forest(benchmark: Benchmark, retention: dict[str, Any]) -> Picture | None:
    rows = []
    for task in benchmark.tasks:
        values = {label: each[task] for label, (each, _) in retention.items() if each[task].value is not None}
        if values:
            rows.append((task, {label: (s.value, s.low, s.high) for label, s in values.items()}))
    means = {label: (m.value, m.low, m.high) for label, (_, m) in retention.items() if m.value is not None}
    if not means:
        return None
    rows.append(("mean", means))
    title = f"Retention of the teacher by task, with 95 % intervals: {', '.join(means)}"
    return Picture("Retention by task", Markup(pictures.forest(rows, title)), "Undecided tasks are left out.")


def _drawable(cells: dict[str, Any]) -> bool:
    return any(len(cell.layers) > 1 for cell in cells.values())


def _layers(benchmark: Benchmark) -> list[Picture]:
    drawn = []
    for one in benchmark.upstreams:
        if not _drawable(one.cells):
            continue
        count = max(len(cell.layers) for cell in one.cells.values())
        chosen = {task: cell.layer for task, cell in one.cells.items() if cell.layer is not None and cell.layer < count}
        shares = {
            task: cell.layers for task, cell in one.cells.items() if len(cell.layers) == count and cell.layer is None
        }
        svg = pictures.layers(shares, chosen, f"Weights of the layers of {one.label} by task")
        caption = f"{count} layers; equal weights would be {100 / count:.0f} % each"
        drawn.append(Picture(one.label, Markup(svg), caption, wide=count > 16))
    return drawn


def _sizes(benchmark: Benchmark, retention: dict[str, Any]) -> list[Picture]:
    """Published systems (and measured ones of the official tier); beside it the mini tier's own retention."""
    dots = [
        pictures.Dot(system.name, system.parameters, superb_s(system.values), measured=False)
        for system in published.systems()
        if system.parameters
    ]
    for one in benchmark.upstreams:
        score = tables.measured_score(benchmark, one)
        if one.cost is not None and one.cost.parameters > 0 and score.value is not None:
            dots.append(pictures.Dot(one.label, one.cost.parameters, score.value, score.low, score.high))
    title = "Parameters against superb_s"
    drawn = [
        Picture(
            title,
            Markup(pictures.size_and_score(dots, "superb_s", title, (1000, "SOTA row (2021)"))),
            "Published systems" + (" and measured ones" if any(dot.measured for dot in dots) else " only"),
        )
    ]
    own = []
    for one in benchmark.upstreams:
        mean = retention.get(one.label, (None, Score(None)))[1]
        if one.cost is None or one.cost.parameters <= 0 or not retention:
            continue
        if one.role == "teacher":
            own.append(pictures.Dot(f"{one.label} (teacher)", one.cost.parameters, 100.0))
        elif mean.value is not None:
            own.append(pictures.Dot(one.label, one.cost.parameters, mean.value, mean.low, mean.high))
    if benchmark.tier != "superb" and len(own) > 1:
        title = "Parameters against mean retention of the teacher, measured here"
        svg = pictures.size_and_score(own, "mean retention (%)", title, (0, "baseline"), 5.2)
        drawn.append(Picture(title, Markup(svg), "Measured on this data; another scale than superb_s"))
    return drawn
