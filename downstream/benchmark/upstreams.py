"""The upstreams of a benchmark, each with a label that names its row and its folder."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from s3prl_distiller.hub import load_hub, register

_RESERVED = ("slurm",)


@dataclass(frozen=True)
class Upstream:
    """An upstream, and the name of its row and folder."""

    label: str
    name: str
    ckpt: str | None = None


def read_upstreams(texts: Sequence[str], ckpt: str | None, known: Sequence[Upstream] = ()) -> list[Upstream]:
    """Upstreams of ``-u NAME`` or ``-u LABEL=NAME``, each with a label that is unique and can name a folder.

    Args:
        ckpt: of ``-k``, which goes with one upstream.
        known: those that the benchmark has already, whose labels stay.

    Raises:
        ValueError: a label cannot be used or two are the same.
    """
    if not texts:
        raise ValueError("name the upstreams: -u NAME, several times for several (LABEL=NAME gives one a label)")
    if ckpt is not None and len(texts) > 1:
        raise ValueError(f"-k goes with one upstream, and {len(texts)} were given: run them one after the other")
    ckpt = _path(ckpt) if ckpt else None
    found: list[Upstream] = []
    for text in texts:
        label, equals, name = text.partition("=")
        if not equals or _exists(text):
            label, name = "", text
        name = _path(name)
        if not name:
            raise ValueError(f"-u {text} names no upstream: write LABEL=NAME")
        taken = {one.label.lower() for one in [*known, *found]}
        for one in found:
            if (one.name, one.ckpt) == (name, ckpt):
                raise ValueError(f"-u {name} was given twice")
        if not label:
            label = next((one.label for one in known if (one.name, one.ckpt) == (name, ckpt)), "")
            label = label or _derive(ckpt or name, taken)
        elif any(one.label.lower() == label.lower() for one in found):
            raise ValueError(f"the label {label} was given twice: every upstream needs its own, -u LABEL=NAME")
        if not re.fullmatch(r"\w[\w.+-]*", label) or label in _RESERVED:
            raise ValueError(f"the label {label!r} cannot name a folder: use letters, digits, '_', '-' and '.'")
        found.append(Upstream(label, name, ckpt))
    return found


def check_upstreams(upstreams: Sequence[Upstream]) -> None:
    """Raises ValueError where a name is none of the hub and no path either; all of these are named."""
    register()
    known = load_hub().options()
    unknown = [one.name for one in upstreams if one.name not in known and not _exists(one.name)]
    lost = [one.ckpt for one in upstreams if one.ckpt and "://" not in one.ckpt and not _exists(one.ckpt)]
    if unknown:
        near = {hint for name in unknown for hint in difflib.get_close_matches(name, known, n=1)}
        raise ValueError(
            f"-u {', '.join(unknown)}: no name in the s3prl hub, no checkpoint file and no Hugging Face folder"
            + (f"; did you mean {' and '.join(sorted(near))}?" if near else "")
        )
    if lost:
        raise ValueError(f"-k {lost[0]}: there is no such file")


def _path(name: str) -> str:
    """Absolute where it is a path, so that it means the same from another folder."""
    return os.path.realpath(os.path.expanduser(name)) if name and _exists(name) else name


def _exists(name: str) -> bool:
    return os.path.exists(os.path.expanduser(name))


def _derive(name: str, taken: set[str]) -> str:
    path = Path(name)
    stem = path.stem if path.suffix in (".ckpt", ".pt", ".pth", ".bin") else path.name
    if re.fullmatch(r"best|states-\d+|checkpoint.*|model", stem) and path.parent.name:
        stem = f"{path.parent.name}-{stem}"
    label = re.sub(r"[^\w.+-]+", "_", stem).lstrip("_.+-")[:60] or "upstream"
    number = 1
    while (unique := label if number == 1 else f"{label}-{number}").lower() in taken or unique in _RESERVED:
        number += 1
    return unique
