"""Folders of benchmarks, changed for a test, and the pages of their reports."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml
from s3prl_distiller.downstream.benchmark.report import write_report

RUNS = Path(__file__).resolve().parents[3] / "results" / "superb_mini"
LABELS = ("fbank", "hubert_small", "student")
VOID = {"meta", "br", "link", "img", "hr", "input"}
NOT_OF_THE_PROTOCOL = {"data": ("path", "num_workers", "cache_dir"), "runner": ("seed", "log_step", "save_step")}


def change(path: Path, **keys: Any) -> None:
    found = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**found, **keys}), encoding="utf-8")


def settings_of(run: Path) -> dict[str, Any]:
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    config["upstream"] = {key: config["upstream"][key] for key in ("feature", "layer", "normalize")}
    return {
        section: {key: value for key, value in values.items() if key not in NOT_OF_THE_PROTOCOL.get(section, ())}
        for section, values in config.items()
    }


def search(chosen: float, best: float, higher: bool = True) -> dict[str, Any]:
    rates = [1e-2, 1e-3, 1e-4]
    members = [
        {"lr": rate, "seed": 1337, "best": best if rate == chosen else best - 7.25 if higher else best + 7.25}
        | {"step": 100, "diverged": False}
        for rate in rates
    ]
    members[0] |= {"best": None, "diverged": True} if chosen != rates[0] else {}
    more = {"seeds": 1, "chosen": chosen, "metric": "acc", "higher_is_better": higher, "members": members}
    return {"learning_rates": rates, **more}


def figure_of(label: str, task: str, name: str) -> float:
    return json.loads((RUNS / label / task / "metrics-test.json").read_text(encoding="utf-8"))["metrics"][name]["value"]


class Page(HTMLParser):
    """Checks that elements close in order; gathers text, tables, references and ids."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.tables: list[list[list[str]]] = []
        self.bold: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        for name, value in attrs:
            if name.split(":")[-1] in ("href", "src", "srcset", "action", "data", "poster", "background"):
                self.references.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]} at {self.getpos()}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if "table" in self.open and ("td" in self.open or "th" in self.open):
            # Parts of a cell on lines of their own are apart.
            self.tables[-1][-1][-1] += data + (" " if "small" in self.open else "")
            if "strong" in self.open:
                self.bold.append(data)

    def rows(self, table: int) -> dict[str, list[str]]:
        return {row[0].split(" ")[0]: row[1:] for row in self.tables[table]}


def report(folder: Path) -> Page:
    html, markdown = write_report(folder)
    assert html == folder / "report.html" and markdown == folder / "report.md"
    return Page(html.read_text(encoding="utf-8"))
