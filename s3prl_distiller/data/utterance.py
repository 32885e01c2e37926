"""A stretch of audio that is trained on as one, and where it is: in a file, in a tar, or behind a lhotse cut."""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

if TYPE_CHECKING:
    from lhotse.cut import Cut


class TarMember(NamedTuple):
    """One file inside an uncompressed tar, read in place."""

    path: str
    name: str
    offset: int
    size: int


class NamedBytes(io.BytesIO):
    """Bytes in memory that know what to be called in a message."""

    def __init__(self, data: bytes, name: str):
        super().__init__(data)
        self.name = name


@dataclass(slots=True)
class Utterance:
    """A stretch of audio that is trained on as one.

    ``audio`` is a path, a member of a tar, or a lhotse cut for whatever is neither. ``start`` and ``duration``
    (seconds) lie within it; ``duration`` is ``None`` until the audio has been scanned where nothing states it.
    ``group`` is shared by utterances of one recording. ``claimed`` is a length in seconds that a manifest states for
    the whole file.
    """

    id: str
    group: str
    audio: str | TarMember | Cut
    start: float = 0.0
    duration: float | None = None
    claimed: float | None = None
    custom: dict[str, Any] | None = None

    @property
    def place(self) -> str:
        """Where the audio is, for messages and as the key of its scan."""
        return place_of(self.audio)


def place_of(audio: str | TarMember | Cut) -> str:
    """A name for where the audio is: a path, ``TAR:MEMBER`` or ``cut:ID``."""
    if isinstance(audio, str):
        return audio
    return f"{audio.path}:{audio.name}" if isinstance(audio, TarMember) else f"cut:{audio.id}"


def as_bytes(text: str) -> bytes:
    """For hashing: file names need not be valid UTF-8, and Python carries their odd bytes as surrogates."""
    return text.encode("utf-8", "surrogateescape")


def stable_hash(text: str) -> int:
    """64 bits that only ``text`` decides, on every machine and in every process."""
    return int.from_bytes(hashlib.blake2b(as_bytes(text), digest_size=8).digest(), "big")


def open_audio(audio: str | TarMember) -> str | BinaryIO:
    """What ``s3prl_distiller.audio`` can read: the path itself, or a member's bytes."""
    if isinstance(audio, str):
        return audio
    now = os.stat(audio.path)
    tar = _open_tar(audio.path, (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns))
    # At a place, so that threads, and processes that were forked, may read from one open file.
    return NamedBytes(os.pread(tar.fileno(), audio.size, audio.offset), place_of(audio))


@lru_cache(maxsize=64)
def _open_tar(path: str, identity: tuple[int, ...]) -> io.FileIO:
    """Kept open: an utterance is followed by others of its tar, and opening takes long where the disk is far away.

    ``identity`` changes when another file has taken the place of the one that is open.
    """
    return open(path, "rb", buffering=0)
