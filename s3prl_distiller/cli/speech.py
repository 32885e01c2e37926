"""The speech that an export or an import is checked with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from s3prl_distiller import audio
from s3prl_distiller.data.sources import audio_files
from s3prl_distiller.settings import QUICKSTART

_ENOUGH = 40.0  # seconds


def speech(paths: Sequence[Path] | None = None) -> list[Tensor]:
    """Waveforms (samples,) at 16 kHz, about 40 seconds in all: of files, of all audio in folders, or bundled ones.

    Raises:
        ValueError: a file cannot be read, or there is none.
    """
    waves, seconds = [], 0.0
    for path in speech_files(paths):
        waves.append(audio.load(path))
        seconds += len(waves[-1]) / audio.SAMPLE_RATE
        if seconds >= _ENOUGH:
            break
    return waves


def speech_files(paths: Sequence[Path] | None = None) -> list[Path]:
    """Those files: all that are named, or a dozen that are bundled.

    Raises:
        ValueError: there is none.
    """
    return audio_files(paths) if paths else _bundled()


def _bundled() -> list[Path]:
    folder = QUICKSTART / "corpus" / "audio"
    found = sorted(folder.glob("*_s[0-9][0-9].opus"))
    if not found:
        raise ValueError(f"the bundled speech is missing from {folder}: install the package again, or give --speech")
    return found[:: max(1, len(found) // 12)]
