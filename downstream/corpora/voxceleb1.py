"""VoxCeleb1 for speaker identification: the utterances of every speaker parted by the corpus' own list."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from s3prl_distiller.data.utterance import Utterance

from .absent import absent

SOURCE = "https://www.robots.ox.ac.uk/~vgg/data/voxceleb/ (audio: vox1 dev and test; list: meta/iden_split.txt)"
TREE = """\
  VoxCeleb1/iden_split.txt
  VoxCeleb1/dev/wav/id10001/VIDEO/00001.wav
  VoxCeleb1/test/wav/id10270/VIDEO/00001.wav"""
MANIFESTS = "train.jsonl, dev.jsonl, test.jsonl with the keys id, audio, speaker (or label)"
LISTS = ("iden_split.txt", "veri_test_class.txt")
"""Names of the list: the corpus' own, and that of the copy in s3prl."""
SPLITS = {"1": "train", "2": "dev", "3": "test"}


def read_voxceleb1(root: Path, split_file: Path | None = None) -> dict[str, list[Utterance]]:
    """Utterances by split, with ``label`` and ``speaker``. No audio is opened, nor is its existence looked up.

    Args:
        root: the folder with dev/wav and test/wav.
        split_file: the list, where it is not in ``root``.

    Raises:
        ValueError: the list or a speaker's folder is missing, or a line of the list is something else.
    """
    speakers = _speakers(root)
    path = split_file or next((root / name for name in LISTS if (root / name).is_file()), None)
    if not speakers or path is None or not path.is_file():
        if speakers:
            wanted = split_file or root / LISTS[0]
            raise ValueError(f"there is no {wanted}: get meta/iden_split.txt from {SOURCE}")
        raise absent(root, "VoxCeleb1", SOURCE, TREE, MANIFESTS)
    splits: dict[str, list[Utterance]] = {"train": [], "dev": [], "test": []}
    missing: dict[str, None] = {}
    customs: dict[str, dict[str, Any]] = {}  # one for each speaker, and not for each of 153,516 utterances
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or words[0] not in SPLITS or words[1].count("/") != 2:
            raise ValueError(f"{path}, line {number}: {line!r}, where '1|2|3 SPEAKER/VIDEO/FILE.wav' is expected")
        speaker = words[1].split("/", 1)[0]
        if speaker not in speakers:
            missing[speaker] = None
            continue
        name, _ = os.path.splitext(words[1])
        custom = customs.setdefault(speaker, {"label": speaker, "speaker": speaker})
        audio = f"{speakers[speaker]}/{words[1]}"
        splits[SPLITS[words[0]]].append(Utterance(name, name.rsplit("/", 1)[0], audio, custom=custom))
    if missing:
        raise ValueError(
            f"{root} lacks {len(missing)} of the {len(missing) + len(customs)} speakers in {path}, such as "
            f"{next(iter(missing))}: are both archives, dev and test, unpacked there?"
        )
    return splits


def _speakers(root: Path) -> dict[str, str]:
    """The folder that holds each speaker's folder."""
    found: dict[str, str] = {}
    for folder in [root, root / "wav", *sorted(root.glob("*/wav"))]:
        if folder.is_dir():
            with os.scandir(folder) as entries:
                found |= {
                    entry.name: str(folder) for entry in entries if entry.name.startswith("id") and entry.is_dir()
                }
    return found
