"""Fluent Speech Commands: spoken commands with an action, an object and a location."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from s3prl_distiller.data.utterance import Utterance

from .absent import absent

SLOTS = ("action", "object", "location")
SOURCE = "https://fluent.ai/fluent-speech-commands-a-dataset-for-spoken-language-understanding-research/"
TREE = """\
  fluent_speech_commands_dataset/data/train_data.csv, valid_data.csv, test_data.csv
  fluent_speech_commands_dataset/wavs/speakers/SPEAKER/*.wav"""
MANIFESTS = "train.jsonl, dev.jsonl, test.jsonl with the keys id, audio, intent (a list of slot values)"
LISTS = {"train": "train_data.csv", "dev": "valid_data.csv", "test": "test_data.csv"}


def read_fluent_commands(root: Path, slots: Sequence[str]) -> dict[str, list[Utterance]]:
    """Utterances by split, with ``intent`` (value by slot), ``speaker`` and ``text``.

    Args:
        root: the corpus' folder, or the one it is in.
        slots: columns of its lists.

    Raises:
        ValueError: a list is missing or lacks a column.
    """
    places = [root, root / "fluent_speech_commands_dataset"]
    folder = next(
        (place for place in places if any((place / "data" / name).is_file() for name in LISTS.values())), None
    )
    if folder is None:
        raise absent(root, "Fluent Speech Commands", SOURCE, TREE, MANIFESTS)
    return {split: _read_list(folder, folder / "data" / name, slots) for split, name in LISTS.items()}


def _read_list(folder: Path, path: Path, slots: Sequence[str]) -> list[Utterance]:
    if not path.is_file():
        raise ValueError(f"there is no {path}: is {folder} unpacked as a whole?")
    utterances = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if lacking := [name for name in ("path", *slots) if name not in (reader.fieldnames or [])]:
                raise ValueError(
                    f"{path} has no column {', '.join(lacking)}: it has {', '.join(reader.fieldnames or [])}"
                )
            for row in reader:
                if any(row[name] is None for name in ("path", *slots)):
                    raise ValueError(f"{path}, line {reader.line_num}: fewer columns than in the first line")
                custom = {
                    "intent": {slot: row[slot] for slot in slots},
                    "speaker": row.get("speakerId"),
                    "text": row.get("transcription"),
                }
                name = PurePosixPath(row["path"]).stem
                utterances.append(Utterance(name, name, str(folder / row["path"]), custom=custom))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as a table in UTF-8: {error}") from error
    return utterances
