"""Utterances and an upstream for tests of kept features."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from s3prl_distiller.downstream.core.config import UpstreamConfig
from s3prl_distiller.downstream.core.upstream import Upstream, load_upstream

from s3prl_distiller import audio
from s3prl_distiller.audio import SAMPLE_RATE
from s3prl_distiller.data.utterance import Utterance

from .stubs import NANO


@pytest.fixture(scope="module")
def nano() -> Upstream:
    return load_upstream(UpstreamConfig(name=str(NANO)))


@pytest.fixture
def speech(speech_files: list[Path], tmp_path: Path) -> list[Utterance]:
    """Parts of real speech, of 0.4 s to 2.2 s, in no order of length; copied so that a test can harm the files."""
    utterances = []
    for number, path in enumerate(speech_files[:5] + speech_files[24:28]):
        copy = shutil.copy(path, tmp_path)
        seconds = min(audio.probe(copy).duration - 0.1, 0.4 + 0.45 * (number * 2 % 5))
        utterances.append(Utterance(f"u{number}", f"u{number}", str(copy), start=0.1, duration=seconds))
    return utterances


@pytest.fixture
def noise(tmp_path: Path) -> list[Utterance]:
    """Twelve files of a tenth of a second and more."""
    utterances = []
    for number in range(12):
        path, samples = tmp_path / f"{number}.wav", 1600 + 160 * (number * 5 % 12)
        wave = np.random.default_rng(number).uniform(-1, 1, samples)
        soundfile.write(path, wave, SAMPLE_RATE, subtype="FLOAT")
        utterances.append(Utterance(f"n{number}", f"n{number}", str(path), duration=samples / SAMPLE_RATE))
    return utterances
