"""The report of benchmark folders that are made from the committed figures of real runs."""

from __future__ import annotations

import copy
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from s3prl_distiller.downstream.benchmark import collect, protocol, published, tables
from s3prl_distiller.downstream.benchmark.figures import TASKS
from s3prl_distiller.downstream.benchmark.report import write_report
from s3prl_distiller.downstream.benchmark.scores import superb_s
from s3prl_distiller.downstream.pictures import benchmark as pictures

RUNS = Path(__file__).resolve().parents[2] / "results" / "superb_mini"
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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """fbank, a teacher and its student on ten tasks, with the keys that runs leave today."""
    top = tmp_path / "bench"
    for label in LABELS:
        for task in TASKS:
            run = top / label / task
            shutil.copytree(RUNS / label / task, run)
            stated = {"data": {"train": "aa11", "test": f"of {task}"}, "settings": settings_of(run)}
            change(run / "metrics-test.json", protocol=stated, seconds=12.5, search=None)
        cost = {"name": label, "parameters": 26_870_000, "macs_per_second": 2.31e9, "real_time_factor": 0.02}
        cost |= {"seconds": 10.0, "batch": 1, "device": "Some CPU", "threads": 2, "precision": "float32"}
        cost |= {"peak_memory": 400 * 2**20, "versions": {"torch": "2.11.0"}}
        (top / label / "cost.json").write_text(json.dumps(cost), encoding="utf-8")
    change(top / "student" / "cost.json", parameters=9_130_000, macs_per_second=1.02e9, real_time_factor=0.008)
    upstreams = [{"label": label, "name": f"models/{label}", "ckpt": None} for label in LABELS]
    about = {"format": "s3prl_distiller.superb", "tier": "mini", "data": "speech", "upstreams": upstreams}
    about |= {"tasks": list(TASKS), "teacher": "hubert_small", "baseline": "fbank"}
    (top / "benchmark.json").write_text(json.dumps(about), encoding="utf-8")
    return top


@pytest.fixture
def drawn() -> None:
    """For tests that look at pictures: the others do without, which takes seconds."""


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "drawn" not in request.fixturenames:
        for name in ("layers", "size_and_score", "forest"):
            monkeypatch.setattr(pictures, name, lambda *_: "")


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


# Protocol


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
