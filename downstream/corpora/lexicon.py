"""How words are pronounced: from lexicon files, from g2p where there is none."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from s3prl_distiller.data.utterance import Utterance

GIVE = (
    "give a lexicon, task.lexicon=FILE with lines such as HELLO HH AH0 L OW1 (https://www.openslr.org/11 has "
    "librispeech-lexicon.txt)"
)


def read_lexicon(paths: Sequence[Path]) -> dict[str, list[str]]:
    """The first pronunciation of each word in files of LibriSpeech's form: a word and its phones on each line.

    Raises:
        ValueError: a file is missing, or a line has a word without phones.
    """
    words: dict[str, list[str]] = {}
    for path in paths:
        if not path.is_file():
            raise ValueError(f"task.lexicon: there is no file {path}")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            word, *phones = line.split()
            if not phones:
                raise ValueError(f"task.lexicon: {path}, line {number}: {word!r} has no phones")
            words.setdefault(word, phones)
    return words


def load_g2p() -> Callable[[str], list[str]]:
    """Phones of a word: from CMUdict, else predicted (g2p-en, Apache-2.0).

    Raises:
        ValueError: the package or the data it needs is not there.
    """
    try:
        from g2p_en import G2p  # pyright: ignore[reportMissingImports]

        model = G2p()
    except ImportError as error:
        raise ValueError("g2p-en is not installed: pip install 's3prl-distiller[g2p]'") from error
    except LookupError as error:  # nltk's own message is a screenful
        raise ValueError(
            "g2p-en lacks its data: with network, run once  "
            "python -m nltk.downloader cmudict averaged_perceptron_tagger averaged_perceptron_tagger_eng"
        ) from error

    @cache
    def pronounce(word: str) -> list[str]:
        return [phone for phone in model(word) if re.fullmatch(r"[A-Z]+\d?", phone)]

    return pronounce


def add_phones(utterances: Sequence[Utterance], lexicon: Sequence[Path]) -> str:
    """Put ``phones``, by the ``text`` of each, beside it.

    Args:
        lexicon: files; empty: all by g2p. Words that are in no file are pronounced by g2p too.

    Returns:
        Where the pronunciations are from.

    Raises:
        ValueError: a word has no pronunciation; utterance and word are named.
    """
    words = read_lexicon(lexicon)
    names = ", ".join(path.name for path in lexicon)
    texts = [str((utterance.custom or {})["text"]).upper().split() for utterance in utterances]
    lacking: dict[str, Utterance] = {}
    for utterance, text in zip(utterances, texts, strict=True):
        lacking.update({word: utterance for word in text if word not in words and word not in lacking})
    if lacking:
        try:
            g2p = load_g2p()
        except ValueError as error:
            word, first = next(iter(lacking.items()))
            where = f"{first.id} ({first.place}): {word!r} is not in {names}, as {len(lacking)} words in all are not"
            raise ValueError(f"{where if lexicon else 'there is no lexicon'}, and {error}; or {GIVE}") from error
        for word, utterance in lacking.items():
            if not (phones := g2p(word)):
                raise ValueError(f"{utterance.id} ({utterance.place}): g2p knows no pronunciation of {word!r}")
            words[word] = phones
    for utterance, text in zip(utterances, texts, strict=True):
        utterance.custom = {**(utterance.custom or {}), "phones": " ".join(p for word in text for p in words[word])}
    if not lexicon:
        return "pronunciations by g2p-en: figures do not compare with those of a lexicon"
    return f"pronunciations from {names}" + (f", {len(lacking)} words by g2p-en" if lacking else "")
