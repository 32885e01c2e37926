"""The page of a report: what is in it, holes and their reasons, text of others, pictures."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from s3prl_distiller.downstream.benchmark import collect, published, tables
from s3prl_distiller.downstream.benchmark.figures import TASKS
from s3prl_distiller.downstream.benchmark.report import write_report
from s3prl_distiller.downstream.benchmark.scores import superb_s
from s3prl_distiller.downstream.pictures import benchmark as pictures

from .benches import LABELS, RUNS, change, figure_of, report, search, settings_of


def test_page_is_well_formed_and_needs_nothing_else(folder: Path, drawn: None):
    page = report(folder)
    assert page.references and all(reference.startswith("#") for reference in page.references)
    assert {reference[1:] for reference in page.references} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    names = {name for name, _ in page.elements}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert text.lstrip().lower().startswith("<!doctype html>")
    assert not re.search(r"@import|url\((?!#)|https?://", text)
    assert re.search(r'<meta name="viewport" content="width=device-width', text)
    assert "prefers-color-scheme: dark" in text


def test_page_can_be_read_aloud(folder: Path, drawn: None):
    page = report(folder)
    count = {name: sum(tag == name for tag, _ in page.elements) for name in ("table", "caption", "svg", "title")}
    assert count["table"] == count["caption"] >= 6
    assert count["title"] == count["svg"] + 1 and count["svg"] >= 5
    assert all(attributes.get("scope") in ("row", "col") for tag, attributes in page.elements if tag == "th")
    assert all(attributes.get("aria-label") for tag, attributes in page.elements if tag == "svg")


def test_every_figure_is_in_the_table(folder: Path):
    page = report(folder)
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    rows = page.rows(0)
    for label in LABELS:
        place = 0
        for name, task in TASKS.items():
            found = json.loads((RUNS / label / name / "metrics-test.json").read_text(encoding="utf-8"))["metrics"]
            for figure in task.figures:
                one = found[figure.name]
                cell = rows[label][place]
                assert cell.startswith(f"{one['value']:.2f}"), (label, name)
                digits = 1 if one["high"] - one["low"] >= 2 else 2
                interval = f"[{one['low']:.{digits}f}, {one['high']:.{digits}f}]".replace("-", "−")
                assert interval in cell and interval in markdown
                assert ("5 folds" in cell) == (name == "er")
                place += 1
    assert "bootstrap over the test items" in page.text and "These are not SUPERB's figures" in page.text


def test_further_figures_are_in_a_table_of_their_own(folder: Path):
    rows = {row[0]: row[1:] for row in report(folder).tables[1][1:]}
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    expected = {}
    for place, label in enumerate(LABELS):
        for name, task in TASKS.items():
            found = json.loads((RUNS / label / name / "metrics-test.json").read_text(encoding="utf-8"))["metrics"]
            for metric in found.keys() - {figure.name for figure in task.figures}:
                unit = found[metric]["unit"]
                row = f"{name} {metric.replace('_', ' ')}{f', {unit}' if unit else ''}"
                expected[row, place] = f"{found[metric]['value']:.{2 if unit else 3}f}"
    assert {"asr cer, %", "sf wer, %", "asv min dcf"} <= {row for row, _ in expected} == rows.keys()
    for (row, place), figure in expected.items():
        assert rows[row][place].startswith(figure), (row, place)
        assert figure in next(line for line in markdown.splitlines() if line.startswith(f"| {row} |"))


def test_untrained_head_and_machine_are_said(folder: Path):
    change(folder / "student" / "ks" / "metrics-test.json", step=0, device="Some GPU")
    page = report(folder)
    assert "student: the head that was judged is the untrained one of step 0" in page.text
    assert "NVIDIA H200, Some GPU" in page.text and "Some CPU" in page.text and "torch 2.11.0+cu130" in page.text


def test_cost_and_what_a_student_saves(folder: Path):
    change(folder / "student" / "cost.json", peak_memory=None)
    rows = report(folder).rows(3)
    assert rows["hubert_small"][0].startswith("26.87 M")
    assert "9.13 M" in rows["student"][0] and "−66 %" in rows["student"][0]
    assert "1.02" in rows["student"][1] and "−56 %" in rows["student"][1]
    assert "−60 %" in rows["student"][2] and "125 × real time" in rows["student"][2]
    assert rows["student"][3].strip() == "not measured"
    change(folder / "student" / "cost.json", threads=8)
    rows = report(folder).rows(3)
    assert "−66 %" in rows["student"][0] and "measured unlike the teacher" in rows["student"][2]


def test_retention(folder: Path):
    report(folder)
    each, mean = tables.retention(collect.read(folder))["student"]
    low, whole, kept = (figure_of(label, "ks", "acc") for label in LABELS)
    assert each["ks"].value == pytest.approx(100 * (kept - low) / (whole - low), abs=0.01)
    assert {task for task, score in each.items() if "overlap" in score.reason} == {"asr", "sd"}
    assert mean.tasks == 8
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    assert f"{each['ks'].value:.1f} [" in markdown and f"**{mean.value:.1f} [" in markdown


def test_without_a_teacher_nothing_is_retained(folder: Path):
    change(folder / "benchmark.json", teacher=None)
    assert "names no teacher" in report(folder).text


def test_holes_have_their_reasons(folder: Path):
    shutil.rmtree(folder / "student" / "sd")
    (folder / "student" / "ic" / "metrics-test.json").unlink()
    failed = {"reason": "the disk is full: free 3 GB", "command": "python run_downstream.py -d ic", "exit": 2}
    (folder / "student" / "ic" / "failed.json").write_text(json.dumps(failed), encoding="utf-8")
    (folder / "student" / "cost.json").unlink()
    shutil.rmtree(folder / "fbank" / "qbe")
    page = report(folder)
    rows = page.rows(0)
    assert rows["student"][6].strip() == "not run yet" and rows["student"][7].strip() == "failed"
    for text in (page.text, (folder / "report.md").read_text(encoding="utf-8")):
        assert "the disk is full: free 3 GB" in text
        assert "not measured yet" in text and "no figure of fbank" in text


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"metrics": []}',
        '{"metrics": {"acc": {"value": "high"}}}',
        '{"metrics": {"acc": {"value": NaN, "low": 1, "high": 2}}}',
        '{"metrics": {"acc": {"value": 1, "low": 0, "high": 2}}, "protocol": 7}',
        '{"metrics": {"acc": {"value": 1, "low": 0, "high": 2}}, "search": {"chosen": 1}}',
        '{"metrics": {"acc": {"value": 1, "low": 0, "high": 2}}, "layer_weights": [null]}',
        b"\xff\xfe",
    ],
)
def test_file_that_cannot_be_read_is_a_hole(folder: Path, content: str | bytes):
    path = folder / "student" / "ks" / "metrics-test.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    page = report(folder)
    assert page.rows(0)["student"][2].strip() == "unreadable"
    assert "student/ks/metrics-test.json cannot be read" in page.text
    assert page.rows(0)["student"][4].startswith("96.67")


def test_undefined_figure_is_a_hole(folder: Path):
    path = folder / "student" / "ks" / "metrics-test.json"
    change(path, metrics={"acc": {"value": None, "low": None, "high": None, "unit": "%"}})
    assert report(folder).rows(0)["student"][2].strip() == "undefined"


def test_folder_with_nothing_but_its_plan(folder: Path, drawn: None):
    for label in LABELS:
        shutil.rmtree(folder / label)
    page = report(folder)
    assert {cell.strip() for label in LABELS for cell in page.rows(0)[label]} == {"not run yet"}
    assert "0 of 30 done" in page.text


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (None, "no benchmark.json"),
        ({"format": "other"}, "format 'other'"),
        ({"upstreams": [{"name": "x"}]}, "it lacks 'label'"),
        ({"tasks": ["asr", "cooking"]}, "'cooking'"),
        ({"upstreams": [{"label": "../student", "name": "x"}]}, "name of a folder"),
        ({"upstreams": [{"label": "a", "name": "x"}] * 2}, "each once"),
    ],
)
def test_folder_that_is_no_benchmark(folder: Path, keys: dict[str, Any] | None, message: str):
    if keys is None:
        (folder / "benchmark.json").unlink()
    else:
        change(folder / "benchmark.json", **keys)
    with pytest.raises(ValueError, match=re.escape(message)):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_text_of_others_does_nothing(folder: Path, drawn: None):
    evil = "<script>alert(1)<"
    (folder / "student").rename(folder / evil)
    upstreams = [{"label": label, "name": "</title><img src=x>", "ckpt": "$x$"} for label in ("fbank", evil)]
    upstreams.append({"label": "hubert_small", "name": "h", "ckpt": None})
    change(folder / "benchmark.json", upstreams=upstreams, data='"><b onclick=x>|', teacher="hubert_small")
    shutil.rmtree(folder / evil / "sd")
    (folder / evil / "sd").mkdir()
    failed = {"reason": "</li><script>x</script> | `y`", "command": "```\n<i>"}
    (folder / evil / "sd" / "failed.json").write_text(json.dumps(failed), encoding="utf-8")
    change(folder / evil / "asr" / "metrics-test.json", notes=["<iframe src='//evil'>"])
    page = report(folder)
    names = {name for name, _ in page.elements}
    assert not names & {"script", "img", "i", "iframe"}
    assert evil in page.text and "</li><script>x</script>" in page.text
    assert all(reference.startswith("#") for reference in page.references)
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    assert not re.search(r"<(script|i|b|img|iframe)\b", re.sub(r"(?s)(`{3,})sh.*?\1", "", markdown))
    head = next(line for line in markdown.splitlines() if line.startswith("| upstream | pr"))
    rows = markdown[markdown.index(head) :].split("\n\n")[0].splitlines()
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


# Seeds, rates, layers


def test_seeds_are_told_from_the_bootstrap(folder: Path):
    path = folder / "student" / "ks" / "metrics-test.json"
    figure = {"value": 98.0, "low": 95.0, "high": 101.0, "unit": "%", "interval": "seeds", "each": [97, 98, 99]}
    change(path, metrics={"acc": figure}, search=search(1e-3, 98.0) | {"seeds": 3})
    page = report(folder)
    assert "3 seeds" in page.rows(0)["student"][2]
    assert "Student's t-interval" in page.text and "bootstrap over the test items" in page.text


def test_the_whole_grid_is_there(folder: Path):
    change(folder / "student" / "ks" / "metrics-test.json", search=search(1e-3, 98.5))
    change(folder / "hubert_small" / "ks" / "metrics-test.json", search=search(1e-4, 99.5))
    folds = [search(rate, 50.0) for rate in (1e-3, 1e-3, 1e-2, 1e-3, 1e-3)]
    change(folder / "student" / "er" / "metrics-test.json", search={"folds": folds})
    page = report(folder)
    grid = next(t for t in page.tables if t[0][1:] == ["1e-4", "1e-3", "1e-2"])
    assert {row[0]: row[1:] for row in grid[1:]} == {
        "hubert_small": ["✓ 99.50", "92.25", "diverged"],
        "student": ["91.25", "✓ 98.50", "diverged"],
    }
    assert "ks, hubert_small: the lowest rate tried: a lower one might do better" in page.text
    assert "ks, student" not in page.text.split("Chosen at the edge")[1].split("whole grid")[0]
    assert "student, fold 3" in page.text
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    own = settings_of(RUNS / "fbank" / "er")["optimizer"]["lr"]
    assert f"| er | {tables.rate(own)} (not searched) | {tables.rate(own)} (not searched) | 1e-3, 1e-2 |" in markdown
    assert tables.rate(3e-4) == "3e-4" and tables.rate(0.1) == "1e-1"


def test_layers_are_drawn_for_upstreams_that_have_some(folder: Path, drawn: None):
    page = report(folder)
    labels = [attributes["aria-label"] for tag, attributes in page.elements if tag == "svg"]
    drawn = [label for label in labels if label and label.startswith("Weights of the layers of")]
    assert [label.split(" ")[5] for label in drawn] == ["hubert_small", "student"]
    assert "No weights to show: fbank" in page.text
    shares = collect.read(folder).upstreams[1].cells["er"].layers
    assert len(shares) == 13 and sum(shares) == pytest.approx(1, abs=1e-4), "the mean over folds"


def test_measured_and_published_points_have_a_legend(folder: Path, drawn: None, monkeypatch: pytest.MonkeyPatch):
    page = report(folder)
    assert "published, not measured here" in page.text and "mean retention (%)" in page.text
    monkeypatch.setattr(tables, "deviation", lambda task, cell: "")
    change(folder / "benchmark.json", tier="superb")
    page = report(folder)
    svg = page.text.split("Size against score")[-1].split("Learning rates")[0]
    assert "measured here" in svg.replace("published, not measured here", "") and "hubert_small" in svg


def test_labels_of_points_do_not_cover_each_other(drawn: None):
    dots = [
        pictures.Dot(one.name, one.parameters, superb_s(one.values), measured=False)
        for one in published.systems()
        if one.parameters
    ]
    dots += [pictures.Dot("a student of mine", 23.5e6, 868.0, 850.0, 886.0), pictures.Dot("another", 26.6e6, 832.0)]
    svg = pictures.size_and_score(dots, "superb_s", "title")
    pattern = r'<text style="font-size: 9px;([^"]*)" x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]+)</text>'
    boxes = []
    for style, x, y, name in re.findall(pattern, svg):
        width = 4.6 * len(name)  # points; letters of 9 points are about so wide
        left = float(x) - (width if "text-anchor: end" in style else 0)
        boxes.append((left, float(y) - 7, left + width, float(y), name))
    assert {box[4] for box in boxes} == {dot.name for dot in dots}
    for index, one in enumerate(boxes):
        for other in boxes[:index]:
            wide = min(one[2], other[2]) - max(one[0], other[0])
            high = min(one[3], other[3]) - max(one[1], other[1])
            assert wide <= 0 or high <= 0, (one[4], other[4])


def test_report_is_written_again_over_itself(folder: Path):
    first = report(folder).text
    assert report(folder).text.split("Written")[0] == first.split("Written")[0]
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == [
        "benchmark.json",
        "report.html",
        "report.md",
    ]
