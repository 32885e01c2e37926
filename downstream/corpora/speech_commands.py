"""Google's Speech Commands, v0.01 and v0.02, with the twelve classes and splits of SUPERB's keyword spotting."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from s3prl_distiller.data.utterance import Utterance, as_bytes

from .absent import absent

WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
UNKNOWN, SILENCE = "_unknown_", "_silence_"
NOISE = "_background_noise_"
SOURCE = "http://download.tensorflow.org/data/ (speech_commands_v0.01.tar.gz and speech_commands_test_set_v0.01.tar.gz)"
TREE = """\
  speech_commands_v0.01/yes/*.wav           a folder for each of the 30 words (35 in v0.02)
  speech_commands_v0.01/_background_noise_/*.wav
  speech_commands_test_set_v0.01/yes/*.wav  and no, up, ..., _unknown_, _silence_"""
MANIFESTS = "train.jsonl, dev.jsonl, test.jsonl with the keys id, audio, label"
_HASHES = 2**27  # a constant of the corpus' own rule


def read_speech_commands(root: Path, test_root: Path | None, silence_seconds: float) -> dict[str, list[Utterance]]:
    """Utterances by split, with ``label``, ``word`` and, of background noise, ``crop_seconds``.

    Each noise recording is one utterance of train and one of dev, as s3prl has it.

    Args:
        root: a folder with the archives' folders in it, or that of the training archive.
        test_root: that of the test archive, where it is elsewhere.
        silence_seconds: how much of a noise recording is one example of silence.

    Raises:
        ValueError: either archive is missing or not whole.
    """
    train_root, test_root = find_archives(root, test_root)
    splits: dict[str, list[Utterance]] = {"train": [], "dev": [], "test": []}
    for word, name, path in _clips(train_root):
        if word != NOISE and (split := split_of(name)) != "test":  # the test archive has other clips
            splits[split].append(_utterance(word, name, path, word if word in WORDS else UNKNOWN))
        elif word == NOISE:
            for split in ("train", "dev"):
                splits[split].append(_utterance(word, name, path, SILENCE, silence_seconds))
    for word, name, path in _clips(test_root):
        splits["test"].append(_utterance(word, name, path, word))
    return splits


def split_of(name: str) -> str:
    """The corpus' own rule: all recordings of one speaker, whose hash begins a file's name, are in one split."""
    speaker = re.sub(r"_nohash_.*$", "", name)
    number = int(hashlib.sha1(as_bytes(speaker)).hexdigest(), 16) % _HASHES
    percent = number * (100 / (_HASHES - 1))
    return "dev" if percent < 10 else "test" if percent < 20 else "train"


def find_archives(root: Path, test_root: Path | None) -> tuple[Path, Path]:
    """The folders of the training and of the test archive.

    Raises:
        ValueError: one of them is not there or lacks a class, or it is not clear which is meant.
    """
    beside = _folders(root)
    trains = [root] if (root / NOISE).is_dir() else [path for path in beside if (path / NOISE).is_dir()]
    if not trains:
        raise absent(root, "Speech Commands", SOURCE, TREE, MANIFESTS)
    if len(trains) > 1:
        names = ", ".join(path.name for path in trains)
        raise ValueError(f"{root} holds several training archives ({names}): name one of them with --data")
    train_root = trains[0]
    if test_root is None:
        own = train_root.parent / train_root.name.replace("speech_commands_", "speech_commands_test_set_", 1)
        tests = [own] if own != train_root and own.is_dir() else []
        tests = tests or [path for path in beside if (path / SILENCE).is_dir()]
        if len(tests) != 1:
            problem = f"holds several test archives ({', '.join(p.name for p in tests)})" if tests else "has none in it"
            raise ValueError(
                f"the test archive of Speech Commands belongs beside {train_root}, but {root} {problem}: get it from "
                f"{SOURCE}, and name its folder with task.test_root"
            )
        test_root = tests[0]
    for path, classes in ((train_root, WORDS), (test_root, (*WORDS, UNKNOWN, SILENCE))):
        if lacking := [name for name in classes if not (path / name).is_dir()]:
            raise ValueError(f"{path} has no folder {', '.join(lacking)}: is the archive unpacked as a whole?")
    return train_root, test_root


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _clips(root: Path) -> Iterator[tuple[str, str, str]]:
    """Folder, file name and path of every clip. Nothing is opened."""
    for folder in _folders(root):
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.name.endswith(".wav") and entry.name[0] != ".")
        if not names:
            raise ValueError(f"{folder} holds no .wav: is the archive unpacked as a whole?")
        for name in names:
            yield folder.name, name, str(folder / name)


def _utterance(word: str, name: str, path: str, label: str, crop_seconds: float | None = None) -> Utterance:
    custom = {"label": label, "word": word} | ({"crop_seconds": crop_seconds} if crop_seconds else {})
    identity = f"{word}/{name.removesuffix('.wav')}"
    return Utterance(identity, identity, path, custom=custom)
