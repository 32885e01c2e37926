"""``s3prl-distiller export``, ``import`` and ``info``: what they leave, and what they refuse before doing anything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from s3prl_distiller.upstream.distiller.student import native_writers, read_student, s3prl_states

from s3prl_distiller import checkpoint
from s3prl_distiller.cli.main import COMMANDS, main
from tests.upstream.small import student as small

from .conftest import ROOT

TRAINING = {
    "teacher": {"model": "hubert_base"},
    "data": {"path": "LibriSpeech", "sets": ["train-clean-100"], "license": "cc0"},
}


@pytest.fixture
def ckpt(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "states-12.ckpt"
    checkpoint.save_torch(s3prl_states(small(), TRAINING, 12), path)
    return path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line that says what the user can mend."""
    assert main(list(map(str, arguments))) == 2
    said = capsys.readouterr()
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in said.err and not said.out, said
    return errors[0]


def same(a: Any, b: Any) -> bool:
    ours, theirs = a.model.state_dict(), b.model.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_to_transformers_and_back(ckpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(ckpt), "--to", "hf", "-o", str(tmp_path / "hf"), "--no-costs"]) == 0
    said = capsys.readouterr().out
    assert "It holds." in said and f"All of it is in {tmp_path / 'hf'}" in said
    left = {path.name for path in (tmp_path / "hf").iterdir()}
    assert left == {
        *("config.json", "preprocessor_config.json", "model.safetensors", "distiller.json"),
        *("prediction_heads.safetensors", "parity.md", "parity.json", "README.md"),
    }
    assert main(["import", str(tmp_path / "hf"), "-o", str(tmp_path / "back.ckpt")]) == 0
    assert "It holds." in capsys.readouterr().out
    assert main(["import", str(tmp_path / "hf"), "-o", str(tmp_path / "ours")]) == 0
    first = read_student(ckpt)
    for place, form in (("back.ckpt", "s3prl"), ("ours", "native")):
        back = read_student(tmp_path / place)
        assert same(back, first) and back.model.config == first.model.config
        assert (back.training, back.step, back.form) == (TRAINING, 12, form)


def test_a_run_is_known_by_its_folder(ckpt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its newest checkpoint is meant."""
    checkpoint.save_torch(s3prl_states(small(), TRAINING, 9), ckpt.with_name("states-9.ckpt"))
    assert main(["info", str(ckpt.parent), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["file"] == str(ckpt) and facts["steps"] == 12


def test_info_counts_what_there_is(ckpt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = small()
    assert main(["info", str(ckpt), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    heads = sum(p.numel() for name, p in model.named_parameters() if name.startswith("output_layer"))
    total = sum(p.numel() for p in model.parameters())
    assert facts["parameters"] == total and facts["parameters_without_heads"] == total - heads
    # 10 s are 499 frames. A head is a product of 48 x 144, and three of 48 x 48.
    heads_macs = facts["macs_per_second"] - facts["macs_per_second_without_heads"]
    assert heads_macs * 10 == pytest.approx(499 * (48 * 144 + 3 * 48 * 48))
    assert facts["bytes"] == ckpt.stat().st_size and facts["predicts_layers"] == [1, 2, 3]
    assert (facts["teacher"], facts["steps"]) == ("hubert_base", 12)
    assert facts["data"] == "LibriSpeech (['train-clean-100'])" and facts["license"] is None
    (ckpt.parent / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# A student\n")
    assert main(["info", str(ckpt)]) == 0
    table = capsys.readouterr().out
    assert (
        "cc-by-4.0, its audio cc0" in table
        and "Teacher      hubert_base" in table
        and "loads as distiller_local" in table
    )


def test_a_student_that_says_nothing_of_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "bare"
    checkpoint.save_folder(folder, native_writers(small(normalize=True), {}, 0))
    assert main(["info", str(folder)]) == 0
    table = capsys.readouterr().out
    assert table.count("not said in the checkpoint") == 3 and "with this package only: normalize=True" in table


def test_what_is_there_is_kept(ckpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "student.ckpt").write_text("old")
    export = ["export", ckpt, "--to", "s3prl", "-o", out, "--no-costs"]
    assert "is not empty" in refused(capsys, *export) and (out / "student.ckpt").read_text() == "old"
    assert main([*map(str, export), "--force"]) == 0
    assert (out / "notes.txt").read_text() == "mine" and same(read_student(out / "student.ckpt"), read_student(ckpt))
    capsys.readouterr()
    assert "is there already" in refused(capsys, "import", ckpt, "-o", out / "student.ckpt")
    assert "is a file: give a folder" in refused(capsys, *export[:-2], out / "notes.txt", "--no-costs")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "onxx"], "there is no form 'onxx': --to takes hf, onnx, onnx-int8, torch-export, s3prl"),
        (["--to", "hf", "--model-type", "wavlm"], "not one of hubert, wav2vec2"),
        (["--to", "hf", "--speech", "nowhere.wav"], "nowhere.wav"),
    ],
)
def test_mistakes(arguments: list[str], words: str, ckpt: Path, tmp_path: Path, capsys) -> None:
    assert words in refused(capsys, "export", ckpt, "-o", tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def test_no_student(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("export", "import", "info"):
        more = {"export": ["--to", "hf", "-o", tmp_path / "o"], "import": ["-o", tmp_path / "o"], "info": []}[command]
        assert "there is no checkpoint at" in refused(capsys, command, tmp_path / "none.ckpt", *more)
        (tmp_path / "wavlm").mkdir(exist_ok=True)
        (tmp_path / "wavlm" / "config.json").write_text('{"model_type": "wavlm"}')
        assert "model_type 'wavlm' is not one of" in refused(capsys, command, tmp_path / "wavlm", *more)
        (tmp_path / "half.ckpt").write_bytes(b"PK\x03\x04 and no more")
        assert "half.ckpt cannot be read" in refused(capsys, command, tmp_path / "half.ckpt", *more)
    assert not (tmp_path / "o").exists()


def test_weights_that_give_other_numbers_elsewhere_are_refused(ckpt: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    """As of a Hugging Face model with a part that was overlooked here."""
    assert main(["export", str(ckpt), "--to", "hf", "-o", str(tmp_path / "hf"), "--no-costs"]) == 0
    from s3prl_distiller.upstream.distiller.export import runners

    honest = runners._huggingface
    monkeypatch.setattr(
        runners, "_huggingface", lambda path: lambda *given: {k: 1.01 * v for k, v in honest(path)(*given).items()}
    )
    capsys.readouterr()
    said = refused(capsys, "import", tmp_path / "hf", "-o", tmp_path / "back.ckpt")
    assert "gives other numbers here than where it comes from" in said and not (tmp_path / "back.ckpt").exists()


def test_one_door(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2 and "name a command" in capsys.readouterr().err
    assert main(["exprot"]) == 2 and "was 'export' meant?" in capsys.readouterr().err
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in COMMANDS)
    for name in COMMANDS:
        with pytest.raises(SystemExit, match="0"):
            main([name, "--help"])
        assert "usage:" in capsys.readouterr().out


def test_as_a_module_and_as_a_script(ckpt: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "s3prl_distiller", "info", str(ckpt)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.startswith("File "), done.stderr
