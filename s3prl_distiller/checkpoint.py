"""Files that hold weights: read without running anything in them, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import pickletools
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
CHECKSUMS = "checksums.json"

# What s3prl, fairseq and their users' trainers leave in a checkpoint beside the weights. None of it is needed, so each
# is read as an inert object; anything else is refused.
_PASSED_OVER = (
    "argparse.Namespace",
    "builtins.dict",  # these four and typing: what an omegaconf.DictConfig says of the types of its values
    "builtins.int",
    "builtins.list",
    "builtins.str",
    "collections.",
    "numpy.",
    "omegaconf.",
    "optimizers.",
    "pathlib.",
    "s3prl.optimizers.",
    "s3prl.schedulers.",
    "schedulers.",
    "torch.optim.",
    "typing.",
)

# What damaged bytes make torch's unpickler, zipfile and safetensors raise.
UNREADABLE = (
    MemoryError,  # a damaged length asks for it
    pickle.UnpicklingError,
    safetensors.SafetensorError,
    zipfile.BadZipFile,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


class CheckpointError(ValueError):
    """A file that is no checkpoint, is damaged or is of another model."""


class _Inert:
    """Stands where a checkpoint names a class that is not needed: takes anything, keeps nothing, does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any):
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def load_torch(path: str | Path) -> Any:
    """Read a file of ``torch.save`` on the CPU, executing nothing that it holds.

    Objects other than tensors and plain containers, such as the ``argparse.Namespace`` of s3prl's checkpoints, come
    back as inert stand-ins.

    Raises:
        CheckpointError: the file is damaged, no checkpoint, or names code that a checkpoint has no need of.
    """
    path = Path(path)
    try:
        foreign = _foreign_globals(path)
        refused = [name for name in foreign if not name.startswith(_PASSED_OVER)]
        if refused:
            raise CheckpointError(
                f"{path} is refused: it would run {', '.join(sorted(refused))} when unpickled, which no checkpoint "
                "needs. Nothing of it was run. Save it again with plain dictionaries and tensors if you trust it."
            )
        names = {"argparse.Namespace", *foreign}
        stand_ins = [(type("Inert", (_Inert,), {}), name) for name in names]
        with torch.serialization.safe_globals(stand_ins):  # pyright: ignore[reportArgumentType]
            return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint at {path}") from None
    except UNREADABLE as error:
        reason = str(error).split("\n")[0][:200]
        raise CheckpointError(f"{path} cannot be read as a checkpoint (damaged, or not one): {reason}") from None


def load_safetensors(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, by name.

    Raises:
        CheckpointError: the file is missing, damaged or no safetensors file.
    """
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"there is no file {path}") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors (damaged, or not one): {error}") from None


def load_json(path: str | Path) -> dict[str, Any]:
    """Raises CheckpointError where the file is missing or holds no JSON object."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"there is no file {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return value


def check_weights(weights: Any, model: torch.nn.Module, source: str | Path) -> None:
    """Compare names and shapes with the model's before anything is loaded. ``weights`` should be a state dict.

    Raises:
        CheckpointError: they differ; the first few differences are named.
    """
    if not isinstance(weights, Mapping):
        raise CheckpointError(f"{source} has a {type(weights).__name__} where its weights should be")
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{source} has a {type(tensor).__name__} for the weight {name}")
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    problems = [f"lacks {name}" for name in expected if name not in found]
    problems += [f"has {name}, which the model has not" for name in found if name not in expected]
    other = [name for name, shape in expected.items() if found.get(name, shape) != shape]
    problems += [f"{name} is {found[name]} and not {expected[name]}" for name in other]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise CheckpointError(f"{source} is a checkpoint of another model: it {'; '.join(problems[:3])}{more}")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` to write a file to; it takes the place of ``path`` once the block has ended.

    The content is flushed to the disk before the renaming, so that after a crash there is the old file or the new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _flush(temporary)
        # mkstemp makes the file private; a result is as readable as any other file of its owner.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def save_text(text: str, path: str | Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_json(value: Any, path: str | Path) -> None:
    save_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", path)


def save_torch(value: Any, path: str | Path) -> None:
    with replacing(path) as temporary:
        torch.save(value, temporary)


def save_folder(path: Path, writers: Mapping[str, Callable[[Path], None]]) -> None:
    """Write a folder of files whole or not at all, with their SHA-256 sums in ``checksums.json``.

    Args:
        path: the folder; one that is there already is replaced.
        writers: for each file name, a function that writes that file to the path it is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        sums = {}
        for name, write in writers.items():
            write(temporary / name)
            (temporary / name).chmod(0o666 & ~_umask())  # safetensors makes its files private
            _flush(temporary / name)
            sums[name] = _sha256(temporary / name)
        (temporary / CHECKSUMS).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")
        _flush(temporary / CHECKSUMS)
        temporary.chmod(0o777 & ~_umask())
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
        _flush(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def folder_damage(path: Path) -> str | None:
    """What is wrong with a folder written by :func:`save_folder`, or None where every sum agrees."""
    try:
        sums = load_json(path / CHECKSUMS)
        for name, expected in sums.items():
            if _sha256(path / name) != expected:
                return f"{name} does not match its checksum"
    except (CheckpointError, OSError) as error:
        return str(error)
    return None


def _foreign_globals(path: Path) -> list[str]:
    """Names of what a file of ``torch.save`` would import, beyond what torch itself puts there."""
    if zipfile.is_zipfile(path):
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    names = set()
    with path.open("rb") as file:
        # The form before torch 1.6: pickles of a magic number, a version, the system and the content, then raw bytes.
        for _ in range(4):
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name in ("GLOBAL", "INST"):
                    names.add(str(argument).replace(" ", "."))
    return [name for name in names if not name.startswith(("torch.", "_codecs.encode"))]


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
