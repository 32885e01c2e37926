"""From what ``--data`` names to a list of utterances. Audio is not opened here; see ``scan``."""

from __future__ import annotations

import csv
import difflib
import gzip
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .utterance import Utterance

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3")
OTHER_AUDIO = (".m4a", ".aac", ".wma", ".mp4", ".webm", ".amr", ".sph", ".mka", ".aif", ".aiff")
AUDIO_KEYS = ("audio", "path", "file_path", "audio_filepath", "audio_path", "wav")
ID_KEYS = ("id", "utt_id", "utterance_id")
ACCEPTED = (
    f"a folder of audio ({', '.join(SUFFIXES)}), a .csv or .jsonl manifest, "
    "lhotse cuts or recordings (.jsonl, .jsonl.gz) or a lhotse Shar folder"
)


def read_utterances(
    path: str | None, sets: list[str], labels: bool = True, languages: Counter[str] | None = None
) -> tuple[list[Utterance], list[str]]:
    """List the utterances under ``path`` with unique ids, and remarks about what was passed over.

    Without ``labels`` nothing is kept of what a manifest says of an utterance beyond its audio. ``languages`` counts
    what it says of the utterances' languages.

    Raises ValueError where the path does not exist or holds nothing that is accepted.
    """
    if not path:
        raise ValueError(f"no data is named: give --data (data.path), {ACCEPTED}")
    root = Path(path).expanduser()
    if not root.exists():
        raise ValueError(f"data.path {root} does not exist: it may be {ACCEPTED}")
    remarks: list[str] = []
    if root.is_dir():
        utterances = _number_doubles(_from_folders(root, sets, remarks), labels, languages)
    elif sets:
        raise ValueError(f"data.sets picks subfolders, but data.path {root} is a file: leave data.sets empty")
    else:
        try:
            utterances = _number_doubles(_from_file(root), labels, languages)
        except (UnicodeDecodeError, OSError, EOFError, zlib.error, csv.Error) as error:
            raise ValueError(f"{root} cannot be read as a manifest in UTF-8: {error}") from error
    if not utterances:
        raise ValueError(f"{root} lists no utterance: it may be {ACCEPTED}")
    return utterances, remarks


def _number_doubles(utterances: Iterable[Utterance], labels: bool, languages: Counter[str] | None) -> list[Utterance]:
    """Give the second and later of equal ids a number, so that each utterance can be told from the others."""
    seen: Counter[str] = Counter()
    result: list[Utterance] = []
    for utterance in utterances:
        result.append(utterance)
        if languages is not None and utterance.custom:
            language = utterance.custom.get("lang") or utterance.custom.get("language")
            languages.update([str(language)] if language else [])
        if not labels:
            utterance.custom = None
        seen[utterance.id] += 1
        if seen[utterance.id] > 1:
            utterance.id = f"{utterance.id}#{seen[utterance.id]}"
    return result


def _from_folders(root: Path, sets: list[str], remarks: list[str]) -> Iterator[Utterance]:
    missing = [name for name in sets if not (root / name).is_dir()]
    if missing:
        there = ", ".join(sorted(p.name for p in root.iterdir() if p.is_dir() and p.name[0] != ".")) or "no subfolder"
        raise ValueError(f"data.sets names {', '.join(missing)}, which {root} does not hold: there is {there}")
    for folder in [root / name for name in sets] or [root]:
        if any(folder.glob("cuts.*.jsonl*")):
            from .shar import read_shar

            yield from read_shar(folder)
        else:
            yield from _from_folder(folder, root, remarks)


def _from_folder(folder: Path, root: Path, remarks: list[str]) -> Iterator[Utterance]:
    others: Counter[str] = Counter()
    count = 0
    for file in _walk(folder):
        suffix = os.path.splitext(file)[1].lower()
        if suffix in SUFFIXES:
            count += 1
            name = os.path.relpath(file, root).replace(os.sep, "/")
            yield Utterance(name, name, file)
        else:
            others[suffix] += 1
    unread = [f"{n} {suffix}" for suffix, n in sorted(others.items()) if suffix in OTHER_AUDIO]
    if unread:
        remarks.append(f"{folder}: passed over {', '.join(unread)} (convert them to .flac or .wav to use them)")
    if not count:
        seen = ", ".join(f"{n} {suffix or 'without suffix'}" for suffix, n in others.most_common(5)) or "no file at all"
        raise ValueError(f"{folder} holds no audio, but {seen}: accepted are {', '.join(SUFFIXES)} at any depth")


def _walk(folder: Path) -> Iterator[str]:
    """Visible files in a fixed order. Links to folders are followed, each folder once."""
    visited: set[str] = set()
    for where, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(where, name) for name in sorted(files) if not name.startswith("."))


def _from_file(path: Path) -> Iterator[Utterance]:
    name = path.name.lower()
    if name.endswith((".csv", ".tsv")):
        yield from _from_rows(path, _csv_rows(path))
    elif name.endswith((".jsonl", ".jsonl.gz")):
        first = next(iter(_json_rows(path)), None)
        if first and ("sources" in first[1] or first[1].get("type") in ("MonoCut", "MultiCut", "MixedCut", "Cut")):
            from .shar import read_lhotse

            yield from read_lhotse(path)
        else:
            yield from _from_rows(path, _json_rows(path))
    else:
        what = "one audio file: give the folder it is in" if name.endswith(SUFFIXES) else "of a kind that is not read"
        raise ValueError(f"data.path {path} is {what}; accepted: {ACCEPTED}")


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", restkey="")
        for row in reader:
            yield reader.line_num, {key: value for key, value in row.items() if value not in (None, "")}


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not a JSON object ({error.msg})") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: a JSON {type(row).__name__}, where an object is expected")
            yield number, row


def _from_rows(path: Path, rows: Iterator[tuple[int, dict[str, Any]]]) -> Iterator[Utterance]:
    for number, row in rows:
        key = next((key for key in AUDIO_KEYS if key in row), None)
        if key is None:
            raise ValueError(f"{path}, line {number}: {_no_audio_key(list(row))}")
        if not isinstance(row[key], str):
            raise ValueError(f"{path}, line {number}: {key!r} is {row[key]!r}, where the path of a file is expected")
        id_key = next((key for key in ID_KEYS if key in row), key)
        file = os.path.join(path.parent, os.path.expanduser(row[key]))
        custom = {name: value for name, value in row.items() if name not in (key, id_key, "duration", "start")}
        where = f"{path}, line {number}"
        duration = _seconds(row.get("duration"), where, "duration")
        # Where in the file a line's stretch begins, which then is as long as "duration" says.
        start = _seconds(row.get("start"), where, "start")
        if start is None:
            yield Utterance(str(row[id_key]), row[key], file, claimed=duration, custom=custom or None)
        else:
            yield Utterance(str(row[id_key]), row[key], file, start, duration, custom=custom or None)


def _no_audio_key(keys: list[str]) -> str:
    message = f"no audio key among {', '.join(map(repr, keys)) or 'nothing'}; expected one of {', '.join(AUDIO_KEYS)}"
    close = [(key, match) for key in keys for match in difflib.get_close_matches(key.lower(), AUDIO_KEYS, 1)]
    return f"{message}; did you mean {close[0][1]!r} for {close[0][0]!r}?" if close else message


def _seconds(value: Any, where: str, key: str) -> float | None:
    if value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {key!r} is {value!r}, where seconds are expected") from error


def audio_files(paths: Sequence[Path]) -> list[Path]:
    """Files that a user names, and all audio in folders that a user names.

    Raises:
        ValueError: a folder has none.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        if not inside:
            raise ValueError(f"there is no audio ({', '.join(SUFFIXES)}) in {path}")
        found += inside
    return found
