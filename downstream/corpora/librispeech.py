"""LibriSpeech as openslr.org/12 has it, in SUPERB's splits."""

from __future__ import annotations

from pathlib import Path

from s3prl_distiller.data.utterance import Utterance

SETS = {"train": "train-clean-100", "dev": "dev-clean", "test": "test-clean"}
PUBLISHED = {"train": 28_539, "dev": 2_703, "test": 2_620}

EXPECTED = """LibriSpeech/
  train-clean-100/103/1240/103-1240-0000.flac
  train-clean-100/103/1240/103-1240.trans.txt
  dev-clean/...
  test-clean/..."""


def read_librispeech(root: Path) -> dict[str, list[Utterance]]:
    """Utterances by split, with ``text`` and ``speaker``.

    Args:
        root: the folder LibriSpeech, or where it lies.

    Raises:
        ValueError: a set is missing, or a file has no transcript; the message says what is expected.
    """
    folder = next((place for place in (root, root / "LibriSpeech") if (place / SETS["train"]).is_dir()), root)
    missing = [name for name in SETS.values() if not any((folder / name).glob("*/*/*.trans.txt"))]
    if missing:
        raise ValueError(
            f"{root} holds no manifests (train.jsonl, dev.jsonl, test.jsonl) and no transcripts of LibriSpeech's "
            f"{', '.join(missing)}: get {', '.join(SETS.values())} from https://www.openslr.org/12 and unpack them "
            f"there. Expected:\n{EXPECTED}"
        )
    return {split: _read_set(folder / name) for split, name in SETS.items()}


def _read_set(folder: Path) -> list[Utterance]:
    utterances = []
    for file in sorted(folder.glob("*/*/*.trans.txt")):
        chapter, speaker = file.parent, file.parent.parent.name
        texts = {}
        for line in file.read_text(encoding="utf-8").splitlines():
            name, _, text = line.strip().partition(" ")
            if name:
                texts[name] = text
        unwritten = sorted(path.name for path in chapter.glob("*.flac") if path.stem not in texts)
        if unwritten:
            raise ValueError(f"{file} has no line for {unwritten[0]}: take the file from openslr.org/12 again")
        # Audio that a line names and that is not there is found when audio is checked.
        for name, text in texts.items():
            custom = {"text": text, "speaker": speaker}
            utterances.append(Utterance(name, chapter.name, str(chapter / f"{name}.flac"), custom=custom))
    return utterances
