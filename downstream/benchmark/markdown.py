"""The report in short, as Markdown: for a pull request, a terminal or a mail."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .tables import MINUS, Shown


def render(content: Mapping[str, Any]) -> str:
    """Main table, cost, retention, chosen learning rates and protocol; the page has the rest.

    Args:
        content: what the page is made of.
    """
    holes = [f"- {hole.label}, {hole.task}: {hole.reason}" for hole in content["holes"]]
    parts = [
        f"# {plain(content['title'])}",
        "\n".join(f"- {name}: {plain(text)}" for name, text in content["facts"].items()),
        plain(content["meaning"]),
        "Pictures, published systems, all learning rates and settings: [report.html](report.html), which opens from a "
        "file.",
        "## Figures\n\n" + _main(content),
        "\n".join(f"- {plain(line)}" for line in content["footnotes"]),
        *(["Missing:\n\n" + "\n".join(plain(line) for line in holes)] if holes else []),
        *(["### Further figures\n\n" + _further(content)] if content["further"] else []),
        "## Size and cost\n\n" + _cost(content),
        "## superb_s\n\n" + _superb_s(content),
        "## Retention of the teacher\n\n" + _retention(content),
        "## Chosen learning rates\n\n" + _rates(content),
        "## Protocol\n\n" + _protocol(content),
        "## Again\n\n" + "\n".join(_code(command) for command in content["commands"]),
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _main(content: Mapping[str, Any]) -> str:
    head = [f"{c.task} {c.figure.label}, {c.figure.unit} {c.figure.arrow}" for c in content["columns"]]
    rows = [[_name(line.label, line.role), *map(_cell, line.cells)] for line in content["main"]]
    return table(["upstream", *head], rows)


def _further(content: Mapping[str, Any]) -> str:
    labels = [plain(upstream.label) for upstream in content["benchmark"].upstreams]
    return table(["", *labels], [[plain(line.label), *map(_cell, line.cells)] for line in content["further"]])


def _cell(cell: Shown) -> str:
    if cell.hole:
        return f"– ({plain(cell.text)})"
    text = f"**{cell.text}**" if cell.best else cell.text
    more = " ".join(filter(None, [cell.detail, f"({cell.tag})" if cell.tag else ""]))
    return f"{text}{f' ({cell.mark})' if cell.mark else ''} {more}".strip()


def _cost(content: Mapping[str, Any]) -> str:
    rows = []
    for line in content["costs"]:
        cells = [" ".join(filter(None, [plain(c.text), f"({c.detail})" if c.detail else ""])) for c in line.cells]
        cells += [""] * (len(content["cost_columns"]) - len(cells))
        rows.append([_name(line.label, line.role), *cells])
    text = table(["upstream", *content["cost_columns"]], rows)
    measured = "; ".join(content["conditions"])
    return text + (f"\n\nMeasured: {plain(measured)}. In brackets: against the teacher." if measured else "")


def _superb_s(content: Mapping[str, Any]) -> str:
    rows = [[plain(name), kind, _kept(text)] for name, kind, _, text in content["superb_s"]]
    zero, one = content["references"]
    return table(["system", "", "superb_s"], rows) + f"\n\n0 is the row “{zero}”, 1000 the row “{one}”."


def _retention(content: Mapping[str, Any]) -> str:
    if content["no_retention"]:
        return plain(content["no_retention"])
    found = content["retention_text"]
    tasks = content["benchmark"].tasks
    rows = [[task, *(_kept(each[task]) for each, _ in found.values())] for task in tasks]
    rows.append(["**mean of decided tasks**", *(f"**{_kept(mean)}**" for _, mean in found.values())])
    head = ["task", *(f"{plain(label)}, %" for label in found)]
    return table(head, rows) + "\n\n(student - baseline) / (teacher - baseline), 95 % interval in brackets."


def _kept(text: str) -> str:
    """A score; brackets of an interval stay, a label within a reason is escaped."""
    return text if text[:1].isdigit() or text[:1] == MINUS else plain(text)


def _rates(content: Mapping[str, Any]) -> str:
    labels = [upstream.label for upstream in content["benchmark"].upstreams]
    rows, warnings = [], []
    for search in content["searches"]:
        chosen = [plain(search.chosen[label]) for label in labels]
        rows.append([search.task, *chosen, ", ".join(search.rates) or "–"])
        warnings += [f"- {search.task}, {plain(label)}: {plain(text)}" for label, text in search.edges.items()]
    text = table(["task", *map(plain, labels), "tried"], rows)
    return text + ("\n\nAt the edge of the grid:\n\n" + "\n".join(warnings) if warnings else "")


def _protocol(content: Mapping[str, Any]) -> str:
    rows = [[one.task, *map(plain, one.cells)] for one in content["protocols"]]
    lines = [f"- {one.task}: {plain(line)}" for one in content["protocols"] for line in one.differences]
    notes = [f"- {one.task}: {plain(line)}" for one in content["protocols"] for line in one.notes]
    text = table(["task", *content["protocol_columns"]], rows)
    text += "\n\nDifferences between rows:\n\n" + ("\n".join(lines) or "- none")
    return text + ("\n\nNotes:\n\n" + "\n".join(notes) if notes else "")


def _name(label: str, role: str) -> str:
    return plain(label) + (f" ({role})" if role else "")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A pipe table; cells are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(text: str) -> str:
    """Text that means nothing to Markdown: no tags, no cells, no emphasis, no links, one line."""
    text = html.escape(" ".join(str(text).split()), quote=False)
    for mark in "\\`*[]|":
        text = text.replace(mark, f"\\{mark}")
    return text


def _code(command: str) -> str:
    """A fenced block whose fence the command cannot close."""
    fence = "```"
    while fence in command:
        fence += "`"
    return f"{fence}sh\n{command}\n{fence}"
