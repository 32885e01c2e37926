"""Shared fixtures: where the real speech is, and some of it."""

import json
import os
from pathlib import Path

import pytest
import torch

from .minis import make_minis

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real speech and teachers: S3PRL_DISTILLER_SHARED, else ``../shared`` beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("S3PRL_DISTILLER_SHARED", beside))
    if not folder.is_dir():
        pytest.skip(f"no real speech at {folder}: set S3PRL_DISTILLER_SHARED")
    return folder


@pytest.fixture(scope="session")
def minisuperb(shared: Path) -> Path:
    folder = shared / "data" / "minisuperb"
    if not (folder / "pretrain.jsonl").is_file():
        pytest.skip(f"no real speech at {folder}")
    return folder


@pytest.fixture(scope="session")
def minis(minisuperb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few utterances of each corpus of real speech."""
    return make_minis(minisuperb, tmp_path_factory.mktemp("minis"))


@pytest.fixture(scope="session")
def speech_files(minisuperb: Path) -> list[Path]:
    """Real speech, 16 kHz mono: 24 FLAC files of LibriSpeech (3 to 17 s), then 24 Opus files of 2 s and more."""
    with (minisuperb / "pretrain.jsonl").open() as file:
        rows = [json.loads(line) for line in file]
    flac = [row for row in rows if row["audio"].endswith(".flac")][:24]
    opus = [row for row in rows if row["audio"].endswith(".ogg") and row["duration"] > 2][:240:10]
    return [minisuperb / row["audio"] for row in flac + opus]
