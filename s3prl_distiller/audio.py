"""The one door audio comes in by: any file, stream or waveform becomes float32 mono samples at one rate."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr
import torch

SAMPLE_RATE = 16_000
"""Hz; the student and its teachers run at this rate."""

Source = str | os.PathLike[str] | BinaryIO | tuple[np.ndarray | torch.Tensor, int]

# Seeking lands on the very sample only in these. After a seek, Opus and MP3 decode to slightly other samples because
# their decoder's state is lost, and Vorbis sometimes does: those are decoded from the start.
_SEEKABLE = {"WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "NIST", "FLAC"}
_SEEKABLE_SUBTYPE = re.compile(r"PCM_\w+|FLOAT|DOUBLE|ULAW|ALAW")
# libsndfile quietly shortens a container whose data chunk runs past the end of the file and says so only in its log.
_SHORT_CHUNK = re.compile(r"^\s*(?:data|SSND|Data Size|riff)\s*:\s*(\d+) \(should be (\d+)\)", re.MULTILINE)
_UNKNOWN_SIZE = 0x7FFF_0000  # written by encoders that stream and cannot go back to fill in the size
_BLOCK = 1 << 20  # frames decoded at a time where the whole is not wanted
_MARGIN = 0.05  # seconds of context on each side of a resampled excerpt: longer than soxr's filter


class _SoundFile(soundfile.SoundFile):
    """After each read python-soundfile seeks to where the read ended, which by itself breaks the next read of an Opus
    or MP3 file. Calling the file not seekable keeps it from doing so."""

    forward_only = False

    def seekable(self) -> bool:
        return not self.forward_only and super().seekable()


class AudioError(ValueError):
    """Audio that cannot be used. ``reason`` is ``missing``, ``unreadable``, ``truncated`` or ``non-finite``."""

    def __init__(self, message: str, reason: str = "unreadable"):
        super().__init__(message)
        self.reason = reason

    def __reduce__(self):
        return type(self), (str(self), self.reason)


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says. ``frames`` are samples of one channel at ``sample_rate`` (Hz)."""

    sample_rate: int
    channels: int
    frames: int

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.frames / self.sample_rate


def load(
    source: Source, *, start: float = 0.0, duration: float | None = None, sample_rate: int = SAMPLE_RATE
) -> torch.Tensor:
    """Decode, mix down to the mean of the channels and resample.

    Args:
        source: a path, a seekable binary file object, or ``(waveform, rate)`` with the waveform of shape (samples,) or
            (channels, samples); integer waveforms are scaled to [-1, 1).
        start: seconds to skip.
        duration: seconds to keep, to the end where ``None`` or beyond it.
        sample_rate: Hz of what is returned.

    Returns:
        float32 of shape (samples,), the same samples as slicing the whole (to 1e-6 where it is resampled).

    Raises:
        AudioError: not audio, fewer samples than its header says, or samples that are not finite.
    """
    if start < 0 or (duration is not None and duration < 0):
        raise AudioError(f"{name_of(source)}: start ({start}) and duration ({duration}) cannot be negative")
    first = round(start * sample_rate)
    last = None if duration is None else first + round(duration * sample_rate)
    if isinstance(source, tuple):
        wave, rate = _mono(*source)
        wave, skip = _resample(wave, rate, sample_rate), first
    else:
        with _opened(source) as file:
            low, high, skip = _native_span(first, last, file.samplerate, sample_rate, file.frames)
            blocks = list(_blocks(file, source, low, high)) or [np.zeros(0, np.float32)]
            wave = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
            wave = _resample(wave, file.samplerate, sample_rate)
    wave = wave[skip : None if last is None else skip + last - first]
    if not np.isfinite(wave).all():
        raise AudioError(f"{name_of(source)}: holds samples that are not finite numbers", "non-finite")
    return torch.from_numpy(np.ascontiguousarray(wave))


def stream(source: Source, *, sample_rate: int = SAMPLE_RATE) -> Iterator[torch.Tensor]:
    """As :func:`load` does the whole, but piece by piece, in memory that does not grow with the recording.

    Yields float32 of shape (samples,), about a minute at a time; raises the same AudioError, when it comes to it.
    """
    if isinstance(source, tuple):
        yield from load(source, sample_rate=sample_rate).split(_BLOCK)
        return
    with _opened(source) as file:
        blocks = _blocks(file, source, 0, file.frames)
        if file.samplerate != sample_rate:
            blocks = _resampled(blocks, soxr.ResampleStream(file.samplerate, sample_rate, 1, quality="HQ"))
        for block in blocks:
            if not np.isfinite(block).all():
                raise AudioError(f"{name_of(source)}: holds samples that are not finite numbers", "non-finite")
            yield torch.from_numpy(np.ascontiguousarray(block))


def probe(source: str | os.PathLike[str] | BinaryIO) -> AudioInfo:
    """Read the header only. Raises AudioError where there is none, or where the file is shorter than it says."""
    with _opened(source) as file:
        return AudioInfo(file.samplerate, file.channels, file.frames)


def measure(source: str | os.PathLike[str] | BinaryIO) -> tuple[AudioInfo, float]:
    """Decode everything, holding little of it, and return the header with the peak level (0 to 1) of the mono mix.

    Raises the same AudioError as :func:`load`.
    """
    with _opened(source) as file:
        peak = 0.0
        for block in _blocks(file, source, 0, file.frames):
            level = float(np.abs(block).max(initial=0.0))
            if not math.isfinite(level):
                raise AudioError(f"{name_of(source)}: holds samples that are not finite numbers", "non-finite")
            peak = max(peak, level)
        return AudioInfo(file.samplerate, file.channels, file.frames), peak


def name_of(source: Source) -> str:
    """What to call a source in a message."""
    if isinstance(source, tuple):
        return "waveform"
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    return str(getattr(source, "name", "audio stream"))


@contextmanager
def _opened(source: str | os.PathLike[str] | BinaryIO) -> Iterator[_SoundFile]:
    name = name_of(source)
    opened: bytes | str | BinaryIO
    if isinstance(source, (str, os.PathLike)):
        if not Path(source).is_file():
            raise AudioError(f"{name}: no such audio file", "missing")
        # As bytes, because python-soundfile cannot encode names that are not valid UTF-8.
        opened = os.fsencode(source) if os.name == "posix" else os.fspath(source)
    else:
        opened = source
    try:
        file = _SoundFile(opened)  # pyright: ignore[reportArgumentType]  it takes bytes too
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: headerless .raw, whose rate cannot be known
        raise AudioError(f"{name}: not readable as audio ({_why(error)})") from error
    with file:
        file.forward_only = file.format not in _SEEKABLE or not _SEEKABLE_SUBTYPE.fullmatch(file.subtype)
        for declared, present in _SHORT_CHUNK.findall(file.extra_info):
            if int(present) < int(declared) < _UNKNOWN_SIZE:
                message = f"{name}: truncated, its header announces {declared} bytes of audio and {present} are there"
                raise AudioError(message, "truncated")
        yield file


def _why(error: Exception) -> str:
    return str(getattr(error, "error_string", error)).strip().rstrip(".")


def _blocks(file: soundfile.SoundFile, source: Source, low: int, high: int) -> Iterator[np.ndarray]:
    """Yield frames ``low`` to ``high`` as mono float32 arrays; a short read is an error, never silence."""
    position = 0
    try:
        if file.seekable() and low:
            position = file.seek(low)
        while position < high:
            wanted = min(_BLOCK, (low if position < low else high) - position)
            block = file.read(wanted, dtype="float32", always_2d=True)
            if len(block) < wanted:
                message = f"{name_of(source)}: truncated, {position + len(block)} of {file.frames} samples decode"
                raise AudioError(message, "truncated")
            if position >= low:
                yield block.mean(axis=1) if file.channels > 1 else block[:, 0]
            position += wanted
    except soundfile.SoundFileError as error:
        message = f"{name_of(source)}: truncated or damaged after {position / file.samplerate:.2f} s ({_why(error)})"
        raise AudioError(message, "truncated") from error


def _native_span(first: int, last: int | None, rate: int, sample_rate: int, frames: int) -> tuple[int, int, int]:
    """The file's frames ``[low, high)`` that samples ``[first, last)`` at ``sample_rate`` need.

    ``skip`` samples then precede ``first`` after resampling. ``low`` is where samples of both rates coincide, so that
    an excerpt is resampled in the same phase as the whole.
    """
    if rate == sample_rate:
        return min(first, frames), frames if last is None else min(last, frames), 0
    margin, divisor = round(_MARGIN * sample_rate), math.gcd(rate, sample_rate)
    periods = max(0, first - margin) // (sample_rate // divisor)
    low = periods * (rate // divisor)
    high = frames if last is None else min(frames, math.ceil((last + margin) * rate / sample_rate))
    return min(low, frames), high, first - periods * (sample_rate // divisor)


def _mono(waveform: np.ndarray | torch.Tensor, rate: int) -> tuple[np.ndarray, int]:
    wave: np.ndarray = waveform.detach().cpu().numpy() if isinstance(waveform, torch.Tensor) else np.asarray(waveform)
    if wave.ndim not in (1, 2) or (wave.ndim == 2 and 0 < wave.shape[1] < wave.shape[0]):
        raise AudioError(f"a waveform has shape (samples,) or (channels, samples), not {tuple(wave.shape)}")
    if np.issubdtype(wave.dtype, np.integer):
        wave = wave / -float(np.iinfo(wave.dtype).min or -1)
    wave = wave.astype(np.float32, copy=False)
    return wave.mean(axis=0) if wave.ndim == 2 else wave, int(rate)


def _resample(wave: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    if rate == sample_rate or not wave.size:
        return wave
    return soxr.resample(wave, rate, sample_rate, quality="HQ")


def _resampled(blocks: Iterator[np.ndarray], resampler: soxr.ResampleStream) -> Iterator[np.ndarray]:
    for block in blocks:
        yield resampler.resample_chunk(np.ascontiguousarray(block))
    yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)
