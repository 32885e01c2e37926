"""The ``data:`` section of a pre-training config."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class DataConfig:
    """What audio is read, what is left out and how it is batched."""

    path: str | None = None
    """what --data names: a folder, a manifest (CSV, JSONL), lhotse cuts or recordings, or a lhotse Shar folder"""
    license: str | None = None
    """of the audio, such as cc-by-4.0: kept with the student, for those whom it is handed on to"""
    language: list[str] = field(default_factory=list)
    """codes such as pt-BR, kept with the student too; empty: those that a manifest has in a field lang or language"""
    sets: list[str] = field(default_factory=list)
    """subfolders of ``path`` to use, as of LibriSpeech; empty: everything"""
    batch_size: int = 24
    """most utterances in a batch"""
    batch_seconds: float = 375.0
    """most seconds of audio in a batch, padding counted (24 x 15.625)"""
    num_workers: int = -1
    """decoding processes of each training process; -1: one fewer than it has cores, at most 16; 0: decode in it"""
    shuffle: str = "all"
    """"all": any utterance may follow any other; "shards": tars of a Shar folder follow each other in any order, and
    utterances are drawn from the next 5000 (some tars) only: for data on a disk that is slow to seek in, or far away"""
    num_buckets: int = 20
    """groups of similar length that batches are drawn from; more means less padding"""
    valid_share: float = 0.02
    """share of the recordings held out for validation (0 to 1); at least one is"""
    valid_seconds: float = 600.0
    """most seconds of audio held out"""
    max_bad_share: float = 0.05
    """larger shares of unusable utterances (0 to 1) stop before training"""
    check: str = "full"
    """"full": decode every file once; "header": read headers only, and drop what fails while training"""
    min_seconds: float = 0.05
    """shorter utterances are left out"""
    split_seconds: float = 40.0
    """longer recordings are cut into consecutive windows of at most this many seconds, so that all of them is used"""
    cache_dir: str | None = None
    """where the results of checking files are kept; null: $S3PRL_DISTILLER_CACHE, else ~/.cache/s3prl-distiller"""


def validate(config: DataConfig) -> None:
    """Raise ValueError, by the name of its key, for a value that cannot work."""
    for name in ("batch_size", "num_buckets"):
        if getattr(config, name) < 1:
            raise ValueError(f"data.{name} is {getattr(config, name)}: it must be at least 1")
    for name in ("batch_seconds", "valid_seconds", "split_seconds"):
        if not getattr(config, name) > 0:
            raise ValueError(f"data.{name} is {getattr(config, name)}: it must be more than 0 seconds")
    for name in ("valid_share", "max_bad_share"):
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"data.{name} is {getattr(config, name)}: it is a share between 0 and 1")
    if not 0 <= config.min_seconds < config.split_seconds:
        raise ValueError(f"data.min_seconds is {config.min_seconds}: it must be from 0 to below data.split_seconds")
    if config.num_workers < -1:
        raise ValueError(f"data.num_workers is {config.num_workers}: give -1 (automatic), 0 or a number of processes")
    if config.shuffle not in ("all", "shards"):
        raise ValueError(f"data.shuffle is {config.shuffle!r}: it is 'all' or 'shards'")
    if config.check not in ("full", "header"):
        raise ValueError(f"data.check is {config.check!r}: it is 'full' or 'header'")


def worker_count(num_workers: int) -> int:
    """Number of decoding processes, -1 resolved; the processes that torchrun starts on a machine share its cores."""
    share = cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(0, min(16, share - 1)) if num_workers < 0 else num_workers


def cache_folder(config: DataConfig) -> Path:
    """Where the results of checking files are kept."""
    chosen = config.cache_dir or os.environ.get("S3PRL_DISTILLER_CACHE") or "~/.cache/s3prl-distiller"
    return Path(chosen).expanduser()


def cores() -> int:
    """CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1
