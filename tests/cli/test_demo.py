"""``s3prl-distiller demo``: the real server, asked as its page asks it, and what is refused before loading."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
from s3prl_distiller.upstream.distiller.student import s3prl_states

from s3prl_distiller import checkpoint
from s3prl_distiller.cli.demo import main
from tests.upstream.small import student as small

from .conftest import BUNDLE, ROOT, Commands
from .tiny_runs import training

pytest.importorskip("gradio", reason="the demo is an extra: pip install '.[demo]'")


@pytest.fixture(scope="module")
def runs(commands: Commands, minis: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of the bundled teacher, and heads that were trained on it for two steps: keywords and transcripts."""
    folder = tmp_path_factory.mktemp("runs")
    states = s3prl_states(small(encoder_embed_dim=192, final_dim=192, pred_layer_id=[4, 8, 12]), {}, 1)
    checkpoint.save_torch(states, folder / "student.ckpt")
    for task, corpus in (("ks", "keywords_mini"), ("asr", "librispeech_mini")):
        arguments = training(task, minis / corpus, "-u", "student.ckpt", name=task)
        commands.downstream(folder, *arguments).success()
    return folder


@pytest.fixture(scope="module")
def server(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, subprocess.Popen[str], Path]]:
    """Its address, its process, and the folder of its temporary files. The student is not where the heads know it."""
    cwd, temporary = tmp_path_factory.mktemp("cwd"), tmp_path_factory.mktemp("temporary")
    (runs / "student.ckpt").rename(runs / "moved.ckpt")
    heads = [argument for task in ("ks", "asr") for argument in ("-e", str(runs / "result" / "downstream" / task))]
    command = ["demo", "-u", str(runs / "moved.ckpt"), "--teacher", str(BUNDLE / "hubert_nano"), *heads]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-m", "s3prl_distiller", *command, "--seconds", "3", "--device", "cpu"],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("The page is at http://127.0.0.1:"), line
        yield line.split()[4], process, temporary
        process.kill()
    assert list(cwd.iterdir()) == []


def test_the_page_answers(server: tuple[str, Any, Path], speech_files: list[Path], tmp_path: Path) -> None:
    """What is said is what ``-m inference`` says; recordings are deleted when the server is told to end."""
    from gradio_client import Client, handle_file

    address, process, temporary = server
    with urllib.request.urlopen(address) as page:
        assert "default-src 'self'" in page.headers["content-security-policy"]
        assert "Recordings do not leave this machine" in page.read().decode()
    client = Client(address, verbose=False, analytics_enabled=False, download_files=False)
    said, clip, layers, cost = client.predict(handle_file(str(speech_files[0])), api_name="/listen")
    assert "Only the first 3.0 s of" in said and "keyword: ks, run ks, on moved.ckpt" in said and " %; next " in said
    assert "transcript: asr, run asr" in said
    assert "mean cosine" in clip and clip.count("<svg") == 1 and layers.count("<svg") == 1
    assert "prediction of 12" in layers and "Framed" in layers
    assert "<td>teacher</td><td>5.8 M" in cost and "times as fast as the teacher" in cost
    soundfile.write(tmp_path / "silent.wav", [0.0] * 16000, 16000)
    assert "silent.wav: silence" in client.predict(handle_file(str(tmp_path / "silent.wav")), api_name="/listen")[0]
    (tmp_path / "letter.wav").write_text("Dear all")
    assert (
        "letter.wav: not readable" in client.predict(handle_file(str(tmp_path / "letter.wav")), api_name="/listen")[0]
    )
    assert "first" in client.predict(None, api_name="/listen")[0]
    assert len(list(temporary.rglob("*.wav"))) >= 2
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 130
    assert list(temporary.rglob("*.wav")) == [] and list(temporary.glob("s3prl-distiller-demo-*")) == []


def test_heads_say_what_inference_says(runs: Path, speech_files: list[Path], tmp_path: Path) -> None:
    import torch
    from s3prl_distiller.downstream.core import run
    from s3prl_distiller.downstream.demo.load import load_listener

    student = next(path for path in (runs / "moved.ckpt", runs / "student.ckpt") if path.is_file())
    wave = soundfile.read(speech_files[1], frames=32000)[0]
    soundfile.write(tmp_path / "clip.wav", wave, 16000, subtype="FLOAT")
    heads = [runs / "result" / "downstream" / task for task in ("ks", "asr")]
    listener = load_listener(str(student), None, heads, torch.device("cpu"), 30.0)
    said = listener.listen(tmp_path / "clip.wav").said
    assert [each.task for each in said] == ["ks", "asr"] and not any(each.refused for each in said)
    for head, each in zip(listener.heads, said, strict=True):
        (line,) = run.infer(head.expert, [tmp_path / "clip.wav"], torch.device("cpu"))
        assert line == f"{tmp_path / 'clip.wav'}: {each.words}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name the student: -u"),
        (["-u", "nothing_here"], "there is no checkpoint at nothing_here"),
        (["-u", "x.ckpt", "--seconds", "0"], "--seconds is 0"),
        (["-u", "x.ckpt", "--port", "70000"], "port 70000"),
        (["-u", "x.ckpt", "--host", "192.0.2.1"], "192.0.2.1"),
        (["-u", "STUDENT", "--teacher", "hubert_bsae"], "hubert_base"),
        (["-u", "STUDENT", "-e", "nothing_here"], "nothing_here holds no trained task"),
        (["-u", "STUDENT", "-e", "COMPARES"], "which compares files"),
    ],
)
def test_what_is_refused(arguments: list[str], said: str, tmp_path: Path, capsys: Any) -> None:
    if "STUDENT" in arguments:
        checkpoint.save_torch(s3prl_states(small(), {}, 1), tmp_path / "student.ckpt")
    if "COMPARES" in arguments:
        description = {"format": "s3prl_distiller.downstream", "task": "asv"}
        writers = {checkpoint.CONFIG: lambda path: checkpoint.save_json(description, path)}
        checkpoint.save_folder(tmp_path / "run" / "best", writers)
    names = {"STUDENT": str(tmp_path / "student.ckpt"), "COMPARES": str(tmp_path / "run")}
    assert said in _refusal([names.get(argument, argument) for argument in arguments], capsys)


def test_port_in_use(capsys: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = _refusal(["-u", "x.ckpt", "--port", str(port)], capsys)
    assert f"port {port}" in said and "in use" in said and "--port" in said


def test_without_gradio(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert 'pip install "s3prl-distiller[demo]"' in _refusal(["-u", "x.ckpt"], capsys)


def _refusal(arguments: list[str], capsys: Any) -> str:
    """The one line that the command says, with exit status 2."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert captured.out == "" and len(lines) == 1 and captured.err.rstrip().endswith(lines[0]), captured.err
    return lines[0]
