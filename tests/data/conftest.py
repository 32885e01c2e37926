"""A corpus of real speech on disk, and a short way to prepare it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from s3prl_distiller.data import Corpus, DataConfig, prepare

Prepare = Callable[..., Corpus]


@pytest.fixture
def folder(speech_files: list[Path], tmp_path: Path) -> Path:
    """16 real utterances (8 FLAC, 8 Opus) at two depths."""
    root = tmp_path / "speech"
    for number, path in enumerate(speech_files[:8] + speech_files[24:32]):
        place = root / ("deep/er" if number % 2 else ".")
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place / path.name)
    return root


@pytest.fixture
def make(tmp_path: Path) -> Prepare:
    """``make(path, key=value, ...)`` prepares with a cache of its own and without worker processes."""

    def make(path: Path | str | None, *, crop_samples: int = 64_000, seed: int = 0, **config) -> Corpus:
        options = {"num_workers": 0, "cache_dir": str(tmp_path / "cache")} | config
        data = DataConfig(path=None if path is None else str(path), **options)
        return prepare(data, crop_samples=crop_samples, seed=seed, report_dir=tmp_path / "report", progress=False)

    return make
