"""Files of hidden states: one folder for all that decides them, in it shards that are whole or not there at all."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import math
import mmap
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from s3prl_distiller import checkpoint
from s3prl_distiller.data.utterance import TarMember, Utterance, as_bytes

log = logging.getLogger(__name__)

KEY = "key.json"
SHARD_BYTES = 256_000_000
SPARE_BYTES = 2_000_000_000
"""of the disk, left free for others"""
_DTYPES = {"F16": torch.float16, "F32": torch.float32}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class NotKept(Exception):
    """Nothing can be kept, for the reason that is given."""


class FeatureStore:
    """Hidden states (L, T, D) by the name of what was heard (:class:`Names`).

    Reading needs no lock: shards come by renaming and are never changed. What is there is told by their headers alone.

    Args:
        root: where the folders of all stores lie; the budget is for all of them.
        key: all that decides the states, of JSON's types. The folder's name is its hash.
        budget: bytes that ``root`` may hold.

    Attributes:
        folder: of this store; made when it is first filled.
    """

    def __init__(self, root: Path, key: Mapping[str, Any], budget: float):
        self.root, self.key, self.budget = root, json.loads(json.dumps(key)), budget
        digest = hashlib.sha256(as_bytes(json.dumps(self.key, sort_keys=True))).hexdigest()
        self.folder = root / digest[:16]
        self._states: dict[str, Tensor] = {}
        self._shards: set[str] = set()
        self._pending: dict[str, Tensor] = {}
        self._size = 0
        self._writer: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._states

    def __getitem__(self, name: str) -> Tensor:
        """(L, T, D) in the file, mapped to memory: nothing is read before it is used."""
        return self._states[name]

    def read(self) -> None:
        """Take notice of shards that have come; damaged ones are left out.

        Raises:
            NotKept: the folder does not say that it holds these states.
        """
        if not (self.folder / KEY).exists():
            return
        self._check_key()
        for path in sorted(self.folder.glob("*.safetensors")):
            if path.name not in self._shards and self._open(path):
                self._shards.add(path.name)

    @contextmanager
    def filling(self) -> Iterator[None]:
        """As the only process that adds to this store; waits for another one to end. What is there is read then.

        Raises:
            OSError: the folder cannot be written to, or locks nothing.
            NotKept: the folder does not say that it holds these states.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("Waiting for another run that is filling %s", self.folder)
                fcntl.flock(file, fcntl.LOCK_EX)
            if not (self.folder / KEY).exists():
                checkpoint.save_json(self.key, self.folder / KEY)
            self.read()
            # Nobody else adds anything now: temporary files are of processes that were killed, and a shard that
            # cannot be opened will never be.
            for path in self.folder.glob(".*.tmp"):
                path.unlink(missing_ok=True)
            for path in self.folder.glob("*.safetensors"):
                if path.name not in self._shards:
                    path.unlink(missing_ok=True)
            self._pending, self._size, self._writing = {}, 0, None
            with ThreadPoolExecutor(1) as self._writer:
                yield

    def add(self, name: str, states: Tensor) -> None:
        """Keep (L, T, D) of the CPU under a name, with the next :meth:`flush`; it must not change until then."""
        self._pending[name] = states
        self._size += states.nbytes

    def flush(self, least: int = SHARD_BYTES) -> bool:
        """Write what was added as one shard, where it is at least so many bytes; :meth:`finish` waits for it.

        Returns:
            Whether it is being written.

        Raises:
            NotKept: the budget is spent, or the disk full.
            OSError: it, or the shard before, cannot be written.
        """
        if not self._pending or self._size < least:
            return False
        assert self._writer is not None, "within filling()"
        self._wait()
        self.check_room(self._size)
        self._writing = self._writer.submit(self._write, self._pending)
        self._pending, self._size = {}, 0
        return True

    def finish(self) -> None:
        """Write all that was added. Raises what :meth:`flush` does."""
        self.flush(0)
        self._wait()
        self.read()

    def check_room(self, size: int) -> None:
        """Raises NotKept where so many more bytes do not fit."""
        used = _bytes_in(self.root)
        existing = next(path for path in (self.root, *self.root.resolve().parents) if path.exists())
        free = shutil.disk_usage(existing).free
        if used + size > self.budget:
            raise NotKept(
                f"{gigabytes(size)} more do not fit into {self.root}, which may hold {gigabytes(self.budget)} "
                f"and holds {gigabytes(used)}: raise features.disk_gb, or remove what is no longer needed there"
            )
        if size > free - SPARE_BYTES:
            raise NotKept(
                f"{gigabytes(size)} more do not fit onto the disk of {self.root}, which has {gigabytes(free)} free, of "
                f"which {gigabytes(SPARE_BYTES)} stay free: make room, or choose another folder (features.folder)"
            )

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()

    def _write(self, states: Mapping[str, Tensor]) -> None:
        with checkpoint.replacing(self.folder / f"{secrets.token_hex(8)}.safetensors") as temporary:
            _save(states, temporary)

    def _check_key(self) -> None:
        try:
            found = checkpoint.load_json(self.folder / KEY)
        except checkpoint.CheckpointError:
            found = {}
        if found != self.key:
            raise NotKept(f"{self.folder / KEY} names other states than those that are asked for: remove the folder")

    def _open(self, path: Path) -> bool:
        try:
            self._states.update(_mapped(path))
        except FileNotFoundError:
            return False  # removed by the process that fills the store
        except (safetensors.SafetensorError, OSError, KeyError) as error:
            log.warning("%s is damaged (%s): what it held is computed again", path, error)
            return False
        return True


class Names:
    """Names for stretches of audio; they change when the file does."""

    def __init__(self) -> None:
        self._stamps: dict[str, str | None] = {}

    def of(self, utterance: Utterance, first: int, samples: int) -> str | None:
        """Of ``samples`` samples at 16 kHz from number ``first`` of the audio on; None where its file is not there."""
        if utterance.place not in self._stamps:
            self._stamps[utterance.place] = _stamp(utterance)
        stamp = self._stamps[utterance.place]
        if stamp is None:
            return None
        return hashlib.blake2b(as_bytes(f"{stamp}\0{first}\0{samples}"), digest_size=16).hexdigest()


def _stamp(utterance: Utterance) -> str | None:
    """What must stay the same for states of an utterance's audio to hold."""
    audio = utterance.audio
    if not isinstance(audio, (str, TarMember)):
        return None
    path = os.path.realpath(audio if isinstance(audio, str) else audio.path)
    try:
        status = os.stat(path)
    except OSError:
        return None
    member = [] if isinstance(audio, str) else [audio.name, str(audio.offset), str(audio.size)]
    return "\0".join([path, str(status.st_size), str(status.st_mtime_ns), *member])


def _mapped(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, mapped to memory. The library's own way reads the whole file at once."""
    with safetensors.safe_open(path, framework="pt"):
        pass  # it compares header and size
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    states = {}
    for name in header.keys() - {"__metadata__"}:
        dtype, shape = _DTYPES[header[name]["dtype"]], header[name]["shape"]
        offset = 8 + size + header[name]["data_offsets"][0]
        states[name] = torch.frombuffer(content, dtype=dtype, count=math.prod(shape), offset=offset).view(shape)
    return states


def _save(states: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file. The library's own way copies everything first, and lets no other thread run."""
    header, offset = {}, 0
    for name, state in states.items():
        place = [offset, offset := offset + state.nbytes]
        header[name] = {"dtype": _NAMES[state.dtype], "shape": list(state.shape), "data_offsets": place}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for state in states.values():
            file.write(state.contiguous().numpy().data.cast("B"))


def _bytes_in(folder: Path) -> int:
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # of another process, which has renamed or removed it
                total += os.stat(os.path.join(where, name)).st_size
    return total


def gigabytes(count: float) -> str:
    """Such as "1.25 GB"; below a tenth of that "3.2 MB"."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
