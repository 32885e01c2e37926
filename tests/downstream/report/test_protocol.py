"""Which rows of a report are compared, and with what."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from s3prl_distiller.downstream.benchmark import collect, protocol, tables

from .benches import LABELS, change, report


def other_steps(folder: Path, label: str, task: str, **runner: Any) -> None:
    path = folder / label / task / "metrics-test.json"
    stated = copy.deepcopy(json.loads(path.read_text(encoding="utf-8"))["protocol"])
    stated["settings"]["runner"] |= runner
    change(path, protocol=stated)


def bold(folder: Path, column: int) -> set[str]:
    lines = tables.main(collect.read(folder))
    return {line.label for line in lines if line.cells[column].best}


def test_best_is_bold_among_rows_of_one_protocol_only(folder: Path):
    assert bold(folder, 2) == {"hubert_small"} and bold(folder, 3) == {"student"}
    other_steps(folder, "hubert_small", "ks", total_steps=1_600)
    assert bold(folder, 2) == {"student"}, "hubert_small has the best figure, by a protocol of its own"
    other_steps(folder, "student", "ks", total_steps=2_400)
    assert bold(folder, 2) == set()
    page = report(folder)
    marks = [page.rows(0)[label][2].split(" ")[0] for label in LABELS]
    assert [re.sub(r"\[.*", "", mark)[-1] for mark in marks] == ["A", "B", "C"]
    assert "runner.total_steps: A 400, B 1600, C 2400" in page.text
    assert tables.retention(collect.read(folder))["student"][0]["ks"].reason == "other protocol"


def test_other_data_is_another_protocol(folder: Path):
    path = folder / "student" / "pr" / "metrics-test.json"
    stated = json.loads(path.read_text(encoding="utf-8"))["protocol"]
    change(path, protocol={**stated, "data": {"train": "aa11", "test": "other"}})
    assert bold(folder, 0) == {"hubert_small"}
    assert 'test: A "of pr", B "other"' in report(folder).text


def test_precision_is_noted_but_compared(folder: Path):
    other_steps(folder, "hubert_small", "ks", precision="float32")
    assert bold(folder, 2) == {"hubert_small"}
    assert "runner.precision (noted; rows are compared all the same): fbank auto, hubert_small float32" in (
        report(folder).text
    )


def test_row_that_states_no_protocol_is_compared_with_nothing(folder: Path):
    change(folder / "hubert_small" / "ks" / "metrics-test.json", protocol=None)
    assert bold(folder, 2) == {"student"}
    page = report(folder)
    assert "?" in page.rows(0)["hubert_small"][2]
    grouping = protocol.group(collect.read(folder), "ks")
    assert not grouping.alike("hubert_small", "student") and not grouping.alike("hubert_small")


def test_published_rows_are_apart_from_measured_ones(folder: Path):
    page = report(folder)
    measured, others = page.tables[0], page.tables[2]
    assert {row[0].split(" ")[0] for row in measured[1:]} == set(LABELS)
    assert len(others) == 16 and all("published" in row[0] for row in others[1:])
    assert any("arXiv 2110.01900" in row[-1] for row in others)
    scored = {row[0].strip(): row for row in page.tables[4][1:]}
    assert scored["HuBERT base"][2] == "941.0" and "published" in scored["HuBERT base"][1]
    assert all(scored[label][2] == "not comparable: other data" for label in LABELS)


def test_superb_s_is_refused_to_what_is_not_superb_in_fact(folder: Path):
    """A tier by SUPERB's name on small corpora, with few steps."""
    change(folder / "benchmark.json", tier="superb")
    page = report(folder)
    scored = {row[0].strip(): row[2] for row in page.tables[4][1:]}
    assert all("not SUPERB's protocol in pr" in scored[label] for label in LABELS)
    assert "These are not SUPERB's figures" in page.text and "runner.total_steps is 400 and not 100000" in page.text


def test_superb_s_of_official_runs(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tables, "deviation", lambda task, cell: "")
    change(folder / "benchmark.json", tier="superb")
    page = report(folder)
    scored = {row[0].strip(): row[2] for row in page.tables[4][1:]}
    assert all(re.fullmatch(r"−?\d+\.\d \[.*\]", scored[label]) for label in LABELS)
    assert "set beside published ones" in page.text
    shutil.rmtree(folder / "student" / "sd")
    scored = {row[0].strip(): row[2] for row in report(folder).tables[4][1:]}
    assert scored["student"] == "not computed: no figure of sd"
