"""Speaker verification data: VoxCeleb1 in its official layout, lists of trials, and trials made of any utterances."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from s3prl_distiller.data.utterance import Utterance, as_bytes

SOURCE = "https://www.robots.ox.ac.uk/~vgg/data/voxceleb/vox1.html (audio: dev and test; list: meta/veri_test.txt)"
TREE = """\
  VoxCeleb1/voxceleb1_test_v2.txt (or veri_test.txt, veri_test2.txt)
  VoxCeleb1/dev/wav/id10001/VIDEO/00001.wav
  VoxCeleb1/test/wav/id10270/VIDEO/00001.wav (or the speakers of both in one wav/)"""
LISTS = ("voxceleb1_test_v2.txt", "veri_test.txt", "veri_test2.txt")
"""SUPERB's list first (37,720 trials), which s3prl has; then those of the corpus's site."""


class Trial(NamedTuple):
    """Two utterances by id, and whether one speaker says both."""

    label: int
    enrol: str
    test: str


def read_trials(path: Path) -> list[Trial]:
    """Trials of a list in VoxCeleb's form: ``1 enrol test`` for the same speaker, ``0 enrol test`` for two.

    Raises:
        ValueError: the list is missing or empty, a line cannot be read, or all trials are of one kind.
    """
    if not path.is_file():
        raise ValueError(f"the list of trials {path} is missing")
    trials = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        fields = line.split()
        if len(fields) == 3 and fields[0] in ("0", "1"):
            trials.append(Trial(int(fields[0]), fields[1], fields[2]))
        elif fields:
            raise ValueError(f"{path}, line {number}: {line.strip()!r}, where '1 enrol test' or '0 enrol test' is due")
    kinds = {trial.label for trial in trials}
    if kinds != {0, 1}:
        what = "no trial" if not kinds else f"only trials of label {kinds.pop()}"
        raise ValueError(f"{path} has {what}: an error rate needs trials of one speaker and of two")
    return trials


def trial_files(trials: Sequence[Trial], folders: Sequence[Path], where: Path) -> dict[str, Path]:
    """The file of each utterance that trials name, looked for in each of the folders.

    Raises:
        ValueError: some are not there; how many, and the first names.
    """
    found: dict[str, Path] = {}
    missing = []
    for name in dict.fromkeys(name for trial in trials for name in (trial.enrol, trial.test)):
        file = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if file is None:
            missing.append(name)
        else:
            found[name] = file
    if missing:
        places = " or ".join(map(str, folders)) or "any folder"
        raise ValueError(
            f"{where} names {len(missing)} files (of {len(missing) + len(found)}) that are not in {places}: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
        )
    return found


def find_voxceleb1(root: Path) -> list[Path]:
    """The folders of speakers' folders: ``dev/wav`` and ``test/wav``, or ``wav``; empty where there are none."""
    places = [root / "dev" / "wav", root / "test" / "wav", root / "wav", root / "dev", root / "test", root]
    return [place for place in places if place.is_dir() and any(place.glob("id*/"))]


def read_speakers(folders: Sequence[Path], leave_out: frozenset[str] = frozenset()) -> list[Utterance]:
    """Every ``idXXXXX/video/NNNNN.wav``, ``custom`` being ``{"speaker": "idXXXXX"}``, sorted by id.

    Args:
        leave_out: speakers who are not wanted.
    """
    utterances: dict[str, Utterance] = {}
    for folder in folders:
        for speaker in sorted(os.listdir(folder)):
            if not speaker.startswith("id") or speaker in leave_out:
                continue
            for file in sorted((folder / speaker).glob("*/*.wav")):
                name = f"{speaker}/{file.parent.name}/{file.name}"
                utterances.setdefault(name, Utterance(name, f"{speaker}/{file.parent.name}", str(file)))
                utterances[name].custom = {"speaker": speaker}
    return [utterances[name] for name in sorted(utterances)]


def hold_out(utterances: Sequence[Utterance], speakers: int) -> tuple[list[Utterance], list[Utterance]]:
    """Part some speakers, whom a hash picks, from the others: (the others', theirs)."""
    names = sorted({speaker_of(utterance) for utterance in utterances}, key=lambda name: (_hash(name), name))
    held = set(names[:speakers])
    kept = [utterance for utterance in utterances if speaker_of(utterance) not in held]
    return kept, [utterance for utterance in utterances if speaker_of(utterance) in held]


def make_trials(speakers: Mapping[str, str], count: int) -> list[Trial]:
    """Trials among utterances, half of them of one speaker as far as there are so many; the same ones each time.

    Args:
        speakers: of each utterance, by its id.
        count: how many trials at most.
    """
    rng = random.Random(0)
    members: dict[str, list[str]] = {}
    for name in sorted(speakers):
        members.setdefault(speakers[name], []).append(name)
    pairs = [(a, b) for names in members.values() for i, a in enumerate(names) for b in names[i + 1 :]]
    same = rng.sample(pairs, min(len(pairs), count // 2))
    names = sorted(speakers)
    apart = len(names) * (len(names) - 1) // 2 - len(pairs)
    different: set[tuple[str, str]] = set()
    while len(different) < min(apart, count - len(same)):
        a, b = sorted(rng.sample(names, 2))
        if speakers[a] != speakers[b]:
            different.add((a, b))
    return [Trial(1, a, b) for a, b in same] + [Trial(0, a, b) for a, b in sorted(different)]


def speaker_of(utterance: Utterance) -> str:
    """The speaker of an utterance that is known to have one."""
    return str((utterance.custom or {})["speaker"])


def _hash(text: str) -> str:
    return hashlib.blake2b(as_bytes(text), digest_size=8).hexdigest()
