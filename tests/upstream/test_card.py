"""Model cards: what their header says, that their code runs, and whose they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from s3prl_distiller.upstream.distiller import card
from s3prl_distiller.upstream.distiller.export import save
from s3prl_distiller.upstream.distiller.export.forms import Options
from s3prl_distiller.upstream.distiller.student import Student, read_student, s3prl_states

from s3prl_distiller import checkpoint

from .small import student as small

TRAINING: dict[str, Any] = {
    "card": {"name": "Small ears", "license": "apache-2.0", "datasets": ["mls"]},
    "teacher": {"model": "/home/somebody/models/xlsr"},
    "data": {"path": "/home/somebody/pt", "language": ["pt-BR", "en"], "license": "cc-by-4.0"},
}


def saved(folder: Path, training: dict[str, Any], **options: Any) -> Student:
    path = folder / "run" / "states-12.ckpt"
    checkpoint.save_torch(s3prl_states(small(**options), training, 12), path)
    return read_student(path)


def code_of(text: str) -> str:
    return text.partition("```python\n")[2].partition("```")[0]


def test_what_is_known_stands_in_the_header_and_nothing_else(tmp_path: Path) -> None:
    text = card.page(saved(tmp_path, TRAINING), {"loss": (1.5, 0.5)}, "3 hours")
    header = card.read_header(text)
    assert (header["language"], header["license"], header["datasets"]) == (["pt-BR", "en"], "apache-2.0", ["mls"])
    assert "# Small ears" in text and "| loss | 1.5000 | 0.5000 |" in text and "3 hours" in text
    assert "| Teacher | xlsr |" in text and "somebody" not in text
    bare = card.page(saved(tmp_path, {}))
    assert not {"language", "license", "datasets"} & set(card.read_header(bare))
    assert "none is stated (`card.license`)" in bare and "is not said" in bare


def test_the_code_for_this_package_gives_the_student_s_features(tmp_path: Path, monkeypatch) -> None:
    student = saved(tmp_path, TRAINING)
    monkeypatch.chdir(student.path.parent)
    names: dict[str, Any] = {"waveform": torch.randn(8_000, generator=torch.Generator().manual_seed(0))}
    exec(code_of(card.page(student)), names)  # noqa: S102 - the card's own code
    with torch.no_grad():
        expected = student.model.eval()(names["waveform"][None], torch.tensor([8_000])).listed
    for ours, theirs in zip(expected, names["features"], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["hf", "onnx", "torch-export"])
def test_an_export_s_card_has_the_code_for_its_form(form: str, tmp_path: Path, monkeypatch) -> None:
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    student = saved(tmp_path, TRAINING)
    card.save(card.page(student, {"loss": (1.5, 0.5)}, "3 hours"), student.path.parent)
    speech = [torch.randn(16_000, generator=torch.Generator().manual_seed(0))]
    save.export(student, form, tmp_path / "out", speech, Options(costs=False))
    text = (tmp_path / "out" / card.FILE).read_text()
    assert "| loss | 1.5000 | 0.5000 |" in text and text.count(card._USE) == 1 and "## Limits" in text
    assert card.read_header(text)["library_name"] == {"hf": "transformers", "onnx": "onnx"}.get(form, "s3prl")
    monkeypatch.chdir(tmp_path / "out")
    names: dict[str, Any] = {"waveform": speech[0] if form == "torch-export" else speech[0].numpy()}
    exec(code_of(text), names)  # noqa: S102 - the card's own code
    features = names["features"]
    last = list(features.values())[-1] if isinstance(features, dict) else features[-1]
    with torch.no_grad():
        out = student.model.eval()(speech[0][None], torch.tensor([16_000]))
    expected = out.output if form == "hf" else out.listed[-1]
    torch.testing.assert_close(torch.as_tensor(last), expected, atol=1e-4, rtol=1e-3)


def test_a_card_that_somebody_wrote_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    card.save(f"{card.MARK}\nfirst", tmp_path)
    card.save(f"{card.MARK}\nsecond", tmp_path)
    assert "second" in (tmp_path / card.FILE).read_text()
    (tmp_path / card.FILE).write_text("mine")
    card.save(f"{card.MARK}\nthird", tmp_path)
    assert (tmp_path / card.FILE).read_text() == "mine" and "is yours" in caplog.text


@pytest.mark.parametrize("text", ["", "no header", "---\n: [\n---\n", "---\n- a list\n---\n", "x\n---\na: 1\n---\n"])
def test_texts_without_a_header(text: str) -> None:
    assert card.read_header(text) == {}


def test_a_readme_of_the_user_s_gets_a_section(tmp_path: Path) -> None:
    student = saved(tmp_path, TRAINING)
    (student.path.parent / card.FILE).write_text("---\nlicense: mit\n---\n# Mine\nwords\n")
    text = card.for_export(student, "hf", ".")
    assert text.startswith("---\nlicense: mit\n---\n# Mine\nwords\n") and "AutoModel" in text
