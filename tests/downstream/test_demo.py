"""What is made of one clip: figures against the plain models', whatever the clip is, and words on the page."""

from __future__ import annotations

import logging
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from s3prl_distiller.downstream.demo import render
from s3prl_distiller.downstream.demo.listen import Heard, Listener, Said
from s3prl_distiller.downstream.demo.load import load_listener
from s3prl_distiller.upstream.distiller.objective import distillation_loss
from s3prl_distiller.upstream.distiller.student import load_student, native_writers, read_student, s3prl_states
from s3prl_distiller.upstream.distiller.teacher import TeacherConfig, load_teacher

from s3prl_distiller import audio, checkpoint
from s3prl_distiller.settings import QUICKSTART
from tests.upstream.small import student as small

CPU = torch.device("cpu")
NANO = str(QUICKSTART / "hubert_nano")


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That predicts layers 4, 8 and 12 of the bundled teacher, which its checkpoint has at a place that is gone."""
    model = small(final_dim=192, pred_layer_id=[4, 8, 12])
    path = tmp_path_factory.mktemp("student") / "states-1.ckpt"
    checkpoint.save_torch(s3prl_states(model, {"teacher": {"model": "/gone/quickstart/hubert_nano"}}, 1), path)
    return path


@pytest.fixture(scope="module")
def listener(student: Path) -> Listener:
    return load_listener(str(student), None, [], CPU, 4.0)


@pytest.fixture(scope="module")
def heard(listener: Listener, speech_files: list[Path]) -> Heard:
    return listener.listen(speech_files[0])


def test_figures_are_those_of_distillation(student: Path, heard: Heard) -> None:
    """The mean cosine is what a run of distillation logs of the same clip."""
    model, teacher = load_student(student).eval(), load_teacher(TeacherConfig(model=NANO))
    wave, lengths = heard.wave[None], torch.tensor([len(heard.wave)])
    with torch.no_grad():
        out = model(wave, lengths)
        loss = distillation_loss(out.predictions, teacher(wave, lengths, [4, 8, 12]), None, [4, 8, 12])
    likeness = heard.likeness
    assert likeness is not None
    means = [float(values.mean()) for values in likeness.cosines]
    assert means == pytest.approx([float(loss.parts[f"cosine_layer{layer}"]) for layer in (4, 8, 12)], abs=1e-4)
    assert likeness.rows[:3] == ["projection", "layer 1", "layer 2"]
    assert likeness.rows[3:] == ["prediction of 4", "prediction of 8", "prediction of 12"]
    assert likeness.targets == {3: 4, 4: 8, 5: 12} and likeness.frame == 0.02
    assert likeness.cka.shape == (6, 13) and likeness.cka.isfinite().all() and likeness.cka.abs().max() <= 1.001


def test_the_beginning_of_a_long_recording_is_heard(heard: Heard, speech_files: list[Path]) -> None:
    assert heard.seconds == 4.0
    assert heard.recorded == pytest.approx(audio.probe(speech_files[0]).duration) and heard.recorded > 4
    torch.testing.assert_close(heard.wave, audio.load(speech_files[0])[:64000])
    assert f"Only the first 4.0 s of {heard.recorded:.1f} s" in render.answer(heard)
    assert heard.student.seconds > 0 and heard.teacher is not None and heard.teacher.parameters > 5e6


def test_a_student_is_like_itself(tmp_path: Path, speech_files: list[Path]) -> None:
    """As its own teacher, all on the diagonal is 1; it is not the teacher that was distilled."""
    path = tmp_path / "states-1.ckpt"
    checkpoint.save_torch(s3prl_states(small(pred_layer_id=[4, 8, 12]), {}, 1), path)
    heard = load_listener(str(path), str(path), [], CPU, 4.0).listen(speech_files[0])
    assert heard.likeness is not None and heard.likeness.cosines == []
    assert heard.likeness.cka.diagonal().tolist() == pytest.approx([1] * 6, abs=1e-3)
    assert "cannot be the one that was distilled" in render.layers(heard) and "Framed" not in render.layers(heard)
    assert "cosine" not in render.clip(heard)


def test_any_rate_and_channels(listener: Listener, speech_files: list[Path], tmp_path: Path) -> None:
    wave = audio.load(speech_files[0], duration=2.0, sample_rate=8000).numpy()
    soundfile.write(tmp_path / "phone.wav", np.stack([wave, wave], 1), 8000)
    found = listener.listen(tmp_path / "phone.wav")
    assert found.seconds == found.recorded == 2.0
    assert "All 2.0 s" in render.answer(found)


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (np.zeros(0), "not a single sample"),
        (np.ones(1600) * 0.1, "0.100 s is too short, at least 0.2 s"),
        (np.zeros(16000), "silence"),
        (np.full(16000, np.nan), "not finite"),
        (None, "use one of .wav, .flac"),
    ],
)
def test_clips_that_cannot_be_heard(samples, said: str, listener: Listener, tmp_path: Path) -> None:
    """They are named by the name that the user knows, without the folder that an upload lies in."""
    path = tmp_path / "clip.wav"
    if samples is None:
        path.write_text("no sound at all")
    else:
        soundfile.write(path, samples, 16000, subtype="FLOAT")
    with pytest.raises(ValueError, match=said) as refused:
        listener.listen(path)
    assert str(refused.value).startswith("clip.wav: ") and str(tmp_path) not in str(refused.value)


def test_which_teacher_a_checkpoint_names(student: Path, tmp_path: Path) -> None:
    assert read_student(student).teacher == "/gone/quickstart/hubert_nano"
    checkpoint.save_folder(tmp_path / "ours", native_writers(small(), {"teacher": {"model": "hubert_base"}}, 1))
    assert read_student(tmp_path / "ours").teacher == "hubert_base"
    checkpoint.save_torch(s3prl_states(small(), {}, 1), tmp_path / "bare.ckpt")
    assert read_student(tmp_path / "bare.ckpt").teacher is None


@pytest.mark.parametrize(
    ("training", "said"),
    [({}, "does not say what its teacher was"), ({"teacher": {"model": "/gone/xlsr"}}, "/gone/xlsr")],
)
def test_without_a_teacher(training, said: str, tmp_path: Path, speech_files: list[Path], caplog) -> None:
    checkpoint.save_torch(s3prl_states(small(), training, 1), tmp_path / "states-1.ckpt")
    with caplog.at_level(logging.WARNING):
        listener = load_listener(str(tmp_path / "states-1.ckpt"), None, [], CPU, 4.0)
    assert said in caplog.text and "--teacher" in caplog.text
    heard = listener.listen(speech_files[0])
    assert heard.teacher is None and heard.likeness is None
    assert "--teacher" in render.layers(heard) and "<svg" in render.clip(heard) and "student" in render.cost(heard)


def test_page_is_whole_and_escaped(listener: Listener, heard: Heard) -> None:
    said = [Said("ks", "run<1>", "u&u", "<script>"), Said("asr", "run", "u", "too short <b>", refused=True)]
    pieces = [render.header(listener, True), render.refusal("<script>")]
    whole = Heard(heard.wave, heard.recorded, heard.student, heard.teacher, heard.likeness, said)
    pieces += [part(whole) for part in (render.answer, render.clip, render.layers, render.cost)]
    assert "<script" not in "".join(pieces) and "run&lt;1&gt;" in pieces[2] and "too short &lt;b&gt;" in pieces[2]
    for piece in pieces:
        _Balanced(piece)
    assert all(f"layer {layer}" in pieces[3] for layer in (4, 8, 12)) and "prediction of 12" in pieces[4]
    # Pictures take the page's text colour and fetch nothing.
    assert "currentColor" in pieces[3] and 'href="http' not in "".join(pieces) and "url(http" not in "".join(pieces)


class _Balanced(HTMLParser):
    """Fails on tags that are not closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.feed(text)
        assert self.open == [], text[:300]

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
