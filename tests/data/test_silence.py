"""Long silences: where they are found, that speech is kept, and the command that lists what is left."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s3prl_distiller import audio
from s3prl_distiller.cli.main import main
from s3prl_distiller.data.silence import loud_stretches
from s3prl_distiller.data.sources import read_utterances
from s3prl_distiller.settings import QUICKSTART

RATE = 16_000


def recording(parts: list[tuple[bool, float]]) -> torch.Tensor:
    """Noise and near-silence in turn; seconds of each."""
    noise = torch.Generator().manual_seed(0)
    waves = [torch.randn(round(s * RATE), generator=noise) * (0.1 if loud else 1e-4) for loud, s in parts]
    return torch.cat(waves)


def stretches(wave: torch.Tensor, silence: float = 0.5, margin: float = 0.1, pieces: int = 1):
    found, seconds = loud_stretches(wave.chunk(pieces), 30.0, silence, margin)
    assert seconds == len(wave) / RATE
    return [(pytest.approx(one.start, abs=0.021), pytest.approx(one.end, abs=0.021)) for one in found]


def test_long_silences_part_and_short_ones_do_not() -> None:
    wave = recording([(False, 1.0), (True, 1.0), (False, 0.3), (True, 0.5), (False, 2.0), (True, 0.4)])
    assert stretches(wave) == [(0.9, 2.9), (4.7, 5.2)]
    assert stretches(wave, silence=3.0) == [(0.9, 5.2)]
    assert stretches(wave, silence=0.2, margin=0.0) == [(1.0, 2.0), (2.3, 2.8), (4.8, 5.2)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.05, 1.2), min_size=1, max_size=8), st.integers(1, 30), st.floats(0.0, 1.0))
def test_all_sound_is_kept_and_stretches_do_not_overlap(lengths: list[float], pieces: int, silence: float) -> None:
    wave = recording([(index % 2 == 0, seconds) for index, seconds in enumerate(lengths)])
    found, seconds = loud_stretches(wave.chunk(pieces), 30.0, silence, 0.1)
    whole, _ = loud_stretches([wave], 30.0, silence, 0.1)
    assert found == whole, "the way a recording comes in pieces makes no difference"
    assert all(0 <= one.start < one.end <= seconds for one in found)
    assert all(one.end <= other.start for one, other in zip(found, found[1:], strict=False))
    loud = wave.abs() > 0.05
    inside = torch.zeros_like(loud)
    for one in found:
        inside[round(one.start * RATE) : round(one.end * RATE)] = True
    assert (loud <= inside).all()


@pytest.mark.parametrize("wave", [torch.zeros(0), torch.zeros(RATE)], ids=["empty", "silent"])
def test_without_sound_there_is_nothing(wave: torch.Tensor) -> None:
    assert loud_stretches([wave], 30.0, 0.5, 0.1) == ([], len(wave) / RATE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two bundled utterances with three seconds of silence between them; one plain; one that is no audio."""
    files = sorted((QUICKSTART / "corpus" / "audio").glob("pt*_s0*.opus"))[:3]
    first, second, third = (audio.load(path).numpy() for path in files)
    (tmp_path / "in").mkdir()
    gap = 1e-4 * np.random.default_rng(0).normal(size=3 * RATE)
    soundfile.write(tmp_path / "in" / "long.flac", np.concatenate([first, gap, second]), RATE)
    soundfile.write(tmp_path / "in" / "short.flac", third, RATE)
    (tmp_path / "in" / "broken.flac").write_bytes(b"no audio")
    return tmp_path


def test_the_command_lists_stretches_that_train(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = folder / "pt.jsonl"
    arguments = ["manifest", str(folder / "in"), "-o", str(output), "--language", "pt-BR", "--trim-silence", "1"]
    assert main(arguments) == 0
    said = capsys.readouterr()
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["audio"] for row in rows] == ["in/long.flac"] * 2 + ["in/short.flac"]
    assert {row["lang"] for row in rows} == {"pt-BR"} and "broken.flac" in said.err and "1 cannot be read" in said.out
    assert 2.5 < rows[1]["start"] - (rows[0]["start"] + rows[0]["duration"]) < 4.0
    utterances, _ = read_utterances(str(output), [])
    assert [(one.start, one.duration) for one in utterances] == [(row["start"], row["duration"]) for row in rows]
    # Windows of one recording are held out together.
    assert utterances[0].group == utterances[1].group != utterances[2].group
    assert "error" in refuse(capsys, *arguments) and output.exists()
    assert main([*arguments, "--force"]) == 0


def test_without_trimming_there_is_a_line_for_each_file(folder: Path) -> None:
    (folder / "in" / "broken.flac").unlink()
    assert main(["manifest", str(folder / "in"), "-o", str(folder / "all.jsonl")]) == 0
    rows = [json.loads(line) for line in (folder / "all.jsonl").read_text().splitlines()]
    assert [set(row) for row in rows] == [{"id", "audio", "duration"}] * 2
    expected = soundfile.info(folder / "in" / "long.flac").duration
    assert rows[0]["duration"] == pytest.approx(expected, abs=1e-4)


def refuse(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.err and len([x for x in said.err.splitlines() if x.startswith("error: ")]) == 1
    return said.err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["-o", "list.txt"], "ends in .jsonl"),
        (["-o", "list.jsonl", "--trim-silence", "-1"], "--trim-silence is -1.0: it must be 0 or more"),
    ],
)
def test_mistakes(folder: Path, more: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in refuse(capsys, "manifest", str(folder / "in"), *more)


def test_nothing_but_silence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write(tmp_path / "silence.wav", np.zeros(RATE), RATE)
    arguments = ["manifest", str(tmp_path), "-o", str(tmp_path / "x.jsonl"), "--trim-silence", "0.5"]
    assert "every recording is silent" in refuse(capsys, *arguments)
