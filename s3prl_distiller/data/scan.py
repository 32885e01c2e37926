"""Examine every audio file once, and remember what was found for as long as the file stays the same."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from tqdm import tqdm

from s3prl_distiller import audio

from .config import cores
from .utterance import TarMember, as_bytes, open_audio, place_of

if TYPE_CHECKING:
    from lhotse.cut import Cut

log = logging.getLogger(__name__)

_CACHE_VERSION = 1
_BLOCK = 4096  # files handed to the threads at a time


class Facts(NamedTuple):
    """What is known of one file: rate (Hz), channels, frames, peak (0 to 1, ``None`` where only the header was read).

    Of a file that cannot be used only ``reason`` and ``detail`` are set.
    """

    sample_rate: int = 0
    channels: int = 0
    frames: int = 0
    peak: float | None = None
    reason: str | None = None
    detail: str | None = None

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.frames / self.sample_rate


def scan(
    sources: Iterable[str | TarMember | Cut], *, full: bool, cache: Path | None = None, progress: bool = True
) -> dict[str, Facts]:
    """Facts of each source by its place (``place_of``).

    Args:
        full: decode everything; else read headers only.
        cache: file to take known facts from and to write them to.
        progress: show a bar on stderr.

    Threads do the work: decoding releases the interpreter's lock, and they start at once, need no importable
    ``__main__`` and cannot inherit a lock that another library holds.
    """
    known = _read_cache(cache) if cache else {}
    found: dict[str, Facts] = {}
    stamps: dict[str, list[int]] = {}
    todo: list[str | TarMember | Cut] = []
    for source in sources:
        place = place_of(source)
        if place in stamps:
            continue
        stamps[place] = _stamp(source)
        stamp, facts = known.get(place, ([], Facts()))
        if stamp and stamp == stamps[place] and (not full or facts.reason or facts.peak is not None):
            found[place] = facts
        else:
            todo.append(source)
    if todo:
        try:
            _examine_all(todo, found, full, progress)
        finally:  # what was examined before an interrupt is kept
            if cache:
                fresh = {place: (stamps[place], facts) for place, facts in found.items() if stamps[place]}
                _write_cache(cache, known | fresh)
    return found


def _examine_all(todo: list[str | TarMember | Cut], found: dict[str, Facts], full: bool, progress: bool) -> None:
    bar = tqdm(total=len(todo), desc="checking audio", unit="file", disable=not progress)
    remaining = iter(todo)
    pool = ThreadPoolExecutor(cores())
    try:
        while block := list(islice(remaining, _BLOCK)):
            for source, facts in zip(block, pool.map(lambda source: examine(source, full), block), strict=True):
                found[place_of(source)] = facts
                bar.update()
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt need not wait for the rest of the block
        bar.close()


def examine(source: str | TarMember | Cut, full: bool) -> Facts:
    """Read the header, or everything, of one source. Never raises for bad audio: that is a fact too."""
    try:
        if not isinstance(source, (str, TarMember)):
            return _examine_cut(source, full)
        stream = open_audio(source)
        info, peak = audio.measure(stream) if full else (audio.probe(stream), None)
        return Facts(info.sample_rate, info.channels, info.frames, peak)
    except audio.AudioError as error:
        return Facts(reason=error.reason, detail=str(error))
    except OSError as error:
        return Facts(reason="unreadable", detail=f"{place_of(source)}: {error.strerror or error}")


def _examine_cut(cut: Cut, full: bool) -> Facts:
    channels = getattr(cut, "num_channels", 1) or 1
    if not full:
        return Facts(cut.sampling_rate, channels, round(cut.duration * cut.sampling_rate))
    wave = load_cut(cut)
    frames = round(cut.duration * cut.sampling_rate)
    return Facts(cut.sampling_rate, channels, frames, float(wave.abs().max()) if wave.numel() else 0.0)


def load_cut(cut: Cut) -> torch.Tensor:
    """Decode a cut through lhotse, mix it down and resample it. Raises AudioError for whatever lhotse raises."""
    try:
        wave = cut.load_audio()
    except Exception as error:  # lhotse's many back ends raise no common type
        raise audio.AudioError(f"cut {cut.id}: lhotse cannot load it ({_first_line(error)})") from error
    return audio.load((wave, cut.sampling_rate))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]


def _stamp(source: str | TarMember | Cut) -> list[int]:
    """What must stay the same for known facts to hold; empty: nothing can be said."""
    if not isinstance(source, (str, TarMember)):
        return []
    try:
        status = os.stat(source if isinstance(source, str) else source.path)
    except OSError:
        return []
    where = [] if isinstance(source, str) else [source.offset, source.size]
    return [status.st_size, status.st_mtime_ns, *where]


def cache_file(folder: Path, path: str) -> Path:
    """The cache of the data at ``path``."""
    digest = hashlib.sha256(as_bytes(os.path.realpath(os.path.expanduser(path)))).hexdigest()[:16]
    return folder / f"scan-{digest}.jsonl.gz"


def _read_cache(cache: Path) -> dict[str, tuple[list[int], Facts]]:
    if not cache.is_file():
        return {}
    try:
        with gzip.open(cache, "rt", encoding="utf-8") as file:
            if json.loads(next(file)) != {"version": _CACHE_VERSION}:
                return {}
            return {place: (stamp, Facts(*facts)) for place, stamp, facts in map(json.loads, file)}
    except (OSError, EOFError, StopIteration, ValueError, TypeError, zlib.error) as error:
        log.warning("%s is damaged (%s): every file is checked again", cache, error)
        return {}


def _write_cache(cache: Path, entries: dict[str, tuple[list[int], Facts]]) -> None:
    temporary = cache.with_name(f"{cache.name}.{os.getpid()}.tmp")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(temporary, "wt", encoding="utf-8", compresslevel=1) as file:
            file.write(json.dumps({"version": _CACHE_VERSION}) + "\n")
            for place, (stamp, facts) in entries.items():
                file.write(json.dumps([place, stamp, facts]) + "\n")
        os.replace(temporary, cache)
    except OSError as error:
        log.warning("the results of checking the audio could not be kept in %s (%s)", cache, error)
        with suppress(OSError):
            temporary.unlink()
