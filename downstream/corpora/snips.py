"""Audio SNIPS in the layout of s3prl's preprocessing, in SUPERB's splits: speakers differ between them."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

from s3prl_distiller.data.utterance import Utterance

log = logging.getLogger(__name__)

TRANSCRIPTS, SLOTS = "all.iob.snips.txt", "slots.txt"
SPLITS = {
    "train": ("train", ["Ivy", "Joanna", "Joey", "Justin", "Kendra", "Kimberly", "Matthew", "Salli"]),
    "dev": ("valid", ["Aditi", "Amy", "Geraint", "Nicole"]),
    "test": ("test", ["Brian", "Emma", "Raveena", "Russell"]),
}
"""The corpus's name of each split, and the speakers whose recordings are used in it."""
PUBLISHED = {"train": 104_672, "dev": 2_800, "test": 2_800}

EXPECTED = """SNIPS/
  all.iob.snips.txt    a line: Ivy-snips-train-0 BOS PLAY SOME SADE EOS<tab>O O O artist PlayMusic
  slots.txt            O, then a slot type on each line
  train/Ivy-snips-train-0.wav
  valid/...
  test/..."""

_PUNCTUATION = set("?!.,;-")


def read_snips(root: Path) -> tuple[dict[str, list[Utterance]], list[str]]:
    """Utterances by split, with ``text_tagged`` and ``speaker``, and the slot types in the corpus's order.

    Args:
        root: the folder SNIPS, or where it lies.

    Raises:
        ValueError: a file is missing or malformed; the message says what is expected.
    """
    folder = next((place for place in (root, root / "SNIPS") if (place / TRANSCRIPTS).is_file()), root)
    missing = [name for name in (TRANSCRIPTS, SLOTS) if not (folder / name).is_file()]
    missing += [name for name, _ in SPLITS.values() if not (folder / name).is_dir()]
    if missing:
        raise ValueError(
            f"{root} holds no manifests (train.jsonl, dev.jsonl, test.jsonl) and lacks {', '.join(missing)} of Audio "
            "SNIPS: get it as SUPERB prepared it (https://github.com/s3prl/s3prl, downstream/docs/superb.md, section "
            f"SF) and unpack it there. Expected:\n{EXPECTED}"
        )
    slots = [line.strip() for line in (folder / SLOTS).read_text(encoding="utf-8").splitlines()]
    lines = _read_lines(folder / TRANSCRIPTS)
    splits: dict[str, list[Utterance]] = {}
    for split, (name, speakers) in SPLITS.items():
        audio = {path.stem: path for path in (folder / name).rglob("*.wav")}
        if unwritten := len(audio.keys() - lines.keys()):
            log.warning("%s has no line for %d files in %s: they are not used", TRANSCRIPTS, unwritten, name)
        splits[split] = []
        for key in sorted(lines):
            speaker, _, rest = key.partition("-")
            if speaker in speakers and rest.startswith(f"snips-{name}-"):
                # Audio that is not there is found when audio is checked.
                path = audio.get(key, folder / name / f"{key}.wav")
                custom = {"text_tagged": lines[key], "speaker": speaker}
                splits[split].append(Utterance(key, key, str(path), custom=custom))
    return splits, [slot for slot in slots if slot and slot != "O"]


def _read_lines(path: Path) -> dict[str, str]:
    """Texts with tags by utterance."""
    lines = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        key, _, rest = line.strip().partition(" ")
        words, tab, labels = rest.partition("\t")
        # Between BOS and EOS; before the intent.
        spoken, types = words.strip().split(" ")[1:-1], labels.strip().split(" ")[1:-1]
        if not tab or len(spoken) != len(types):
            raise ValueError(
                f"{path}, line {number}: {len(spoken)} words and {len(types)} slot labels. See\n{EXPECTED}"
            )
        lines[key] = tag(spoken, types)
    return lines


def tag(words: list[str], types: list[str]) -> str:
    """``PLAY B-artist NINA SIMONE E-artist`` from words and the slot type of each; "O" for none.

    Words of punctuation only are dropped and ``&`` becomes AND, as in s3prl; there a slot that ends in punctuation has
    no end, here it has.
    """
    parts: list[str] = []
    for name, group in itertools.groupby(zip(words, types, strict=True), key=lambda pair: pair[1]):
        kept = ["AND" if word == "&" else word for word, _ in group if not set(word) <= _PUNCTUATION]
        parts += [f"B-{name}", *kept, f"E-{name}"] if kept and name != "O" else kept
    return " ".join(parts)
