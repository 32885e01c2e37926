"""IEMOCAP: acted dialogues of ten speakers in five sessions, with the four emotions that SUPERB uses."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from s3prl_distiller.data.utterance import Utterance, as_bytes

from .absent import absent

EMOTIONS = {"neu": "neutral", "hap": "happy", "exc": "happy", "ang": "angry", "sad": "sad"}
"""Label of SUPERB by the corpus' own; utterances of other emotions are not used."""
SESSIONS = (1, 2, 3, 4, 5)
SOURCE = "https://sail.usc.edu/iemocap/ (a form is to be filled in)"
TREE = """\
  IEMOCAP_full_release/Session1/dialog/EmoEvaluation/*.txt
  IEMOCAP_full_release/Session1/sentences/wav/DIALOGUE/*.wav
  and Session2 to Session5"""
MANIFESTS = "train.jsonl, dev.jsonl, test.jsonl, or fold1_train.jsonl and so on, with the keys id, audio, label"


def iemocap_folder(root: Path) -> Path | None:
    """``root``, or the folder of the corpus in it; None where neither has a session."""
    places = [root, root / "IEMOCAP_full_release", root / "IEMOCAP"]
    return next((place for place in places if any((place / f"Session{n}").is_dir() for n in SESSIONS)), None)


def read_iemocap(root: Path) -> dict[int, list[Utterance]]:
    """Utterances of the four emotions by session, with ``label``, ``emotion`` (the corpus' own), ``speaker`` and
    ``session``.

    Raises:
        ValueError: a session or its labels are missing.
    """
    folder = iemocap_folder(root)
    if folder is None:
        raise absent(root, "IEMOCAP", SOURCE, TREE, MANIFESTS)
    if lacking := [f"Session{number}" for number in SESSIONS if not (folder / f"Session{number}").is_dir()]:
        raise ValueError(f"{folder} has no {', '.join(lacking)}: the five folds need all five sessions")
    return {number: _read_session(folder / f"Session{number}", number) for number in SESSIONS}


def leave_one_out(
    sessions: Mapping[int, Sequence[Utterance]], fold: int, valid_ratio: float
) -> dict[str, list[Utterance]]:
    """Splits of a fold: its session is test; of the others a share, decided by the hash of the ids, is dev."""
    others = [utterance for number, utterances in sessions.items() if number != fold for utterance in utterances]
    count = int((1 - valid_ratio) * len(others))
    hashed = sorted(others, key=lambda utterance: hashlib.sha1(as_bytes(utterance.id)).digest())
    train = {utterance.id for utterance in hashed[:count]}
    return {
        "train": [utterance for utterance in others if utterance.id in train],
        "dev": [utterance for utterance in others if utterance.id not in train],
        "test": list(sessions[fold]),
    }


def _read_session(folder: Path, number: int) -> list[Utterance]:
    places = folder / "dialog" / "EmoEvaluation", folder / "sentences" / "wav"
    if lacking := [str(place) for place in places if not place.is_dir()]:
        raise ValueError(f"there is no {' and no '.join(lacking)}: is IEMOCAP unpacked as a whole?")
    labels, wavs = places
    files = sorted(path for path in labels.glob("*.txt") if not path.name.startswith("."))
    if not files:
        raise ValueError(f"{labels} holds no .txt with labels: is IEMOCAP unpacked as a whole?")
    utterances = []
    for path in files:
        # The lines that begin with a bracket: [start - end], name, emotion, [valence, activation, dominance].
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            fields = [field for field in line.split("\t") if field]
            if not line.startswith("["):
                continue
            if len(fields) < 3:
                raise ValueError(f"{path}: the line {line!r} has no name and emotion after its times")
            name, emotion = fields[1].strip(), fields[2].strip()
            if emotion not in EMOTIONS:
                continue
            dialogue, _, turn = name.rpartition("_")
            custom = {
                "label": EMOTIONS[emotion],
                "emotion": emotion,
                "speaker": f"{name[:5]}{turn[:1]}",
                "session": number,
            }
            utterances.append(Utterance(name, dialogue, os.path.join(wavs, dialogue, f"{name}.wav"), custom=custom))
    return utterances
