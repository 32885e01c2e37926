"""Data in our own form, for any task: a folder with a JSON-lines manifest for each split; audio paths start there."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from s3prl_distiller.data.sources import read_utterances
from s3prl_distiller.data.utterance import Utterance


def manifest_folder(root: Path, folder: str, names: Sequence[str]) -> Path | None:
    """Where the manifests of a task are: ``root`` itself or ``root/folder``; None where neither has any of them.

    Args:
        root: what ``--data`` names.
        folder: the task's own, in a collection of corpora for several tasks.
        names: file names, such as "train.jsonl".
    """
    for place in (root, root / folder):
        if any((place / name).is_file() for name in names):
            return place
    return None


def read_manifests(folder: Path, files: Mapping[str, str], required: Sequence[str]) -> dict[str, list[Utterance]]:
    """Utterances by split.

    Args:
        folder: where the manifests are.
        files: the file of each split, by split.
        required: keys that every line must have, beside the path of its audio.

    Raises:
        ValueError: a manifest is missing, an id is there twice, or a line lacks a key; file, id and key are named.
    """
    missing = [name for name in files.values() if not (folder / name).is_file()]
    if missing:
        there = ", ".join(sorted(path.name for path in folder.glob("*.jsonl"))) or "no .jsonl at all"
        raise ValueError(f"{folder} has no {' and no '.join(missing)}: it has {there}")
    return {split: read_manifest(folder / name, required) for split, name in files.items()}


def read_manifest(path: Path, required: Sequence[str] = ()) -> list[Utterance]:
    """Utterances of one manifest; the keys of a line beside id, audio and duration are in ``custom``.

    Raises:
        ValueError: as :func:`read_manifests`.
    """
    utterances, _ = read_utterances(str(path), [])
    seen: set[str] = set()
    for utterance in utterances:
        if utterance.id in seen or "#" in utterance.id and utterance.id.rsplit("#", 1)[0] in seen:
            raise ValueError(f"{path}: the id {utterance.id.rsplit('#', 1)[0]!r} is there twice: ids must differ")
        seen.add(utterance.id)
        values = utterance.custom or {}
        for key in required:
            if values.get(key) is None:
                raise ValueError(f"{path}: {utterance.id} has no {key!r}{near_miss(key, values)}")
    return utterances


def near_miss(key: str, keys: Collection[str]) -> str:
    """The end of a message about a key that is not there, or null: what was probably meant, or what there is."""
    if key in keys:
        return ", it is null: give it a value, or take the line out"
    near = difflib.get_close_matches(key, keys, n=1)
    return f"; did you mean {key!r} for {near[0]!r}?" if near else f": it has {', '.join(map(repr, keys)) or 'no keys'}"
