"""The classes of a CTC head: special symbols first, then letters, phones or slot tags."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

UNKNOWN = "\N{REPLACEMENT CHARACTER}"
"""How the class for whatever is in no class is written."""

FAIRSEQ = ("<s>", "<pad>", "</s>", "<unk>")
"""Special symbols where s3prl has fairseq's dictionary (ASR). The first is the blank, the last two are the end of an
utterance, which every target has, and the class for whatever is in no class."""
PLAIN = ("<pad>", "<eos>", "<unk>")
"""Special symbols of s3prl's other CTC tasks, in the same roles."""

# By how often they are in train-clean-100: s3prl's order of the classes, which its checkpoints and decoders expect.
ENGLISH = " ETAONIHSRDLUMCWFGYPBVK'XJQZ"
LETTERS = " ABCDEFGHIJKLMNOPQRSTUVWXYZ'"
"""The same in the order of s3prl's slot filling."""
ALPHABETS = ("english", "train")

_VOWELS = ("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW")
_CONSONANTS = ("CH", "DH", "HH", "JH", "NG", "SH", "TH", "ZH", *"BDFGKLMNPRSTVWYZ")
# Alphabetical, with silence and spoken noise before, as in s3prl.
ARPABET = ("SIL", "SPN", *sorted([vowel + stress for vowel in _VOWELS for stress in "012"] + list(_CONSONANTS)))
"""71 phones: with the special symbols 74 classes."""


@dataclass(frozen=True)
class Symbols:
    """Classes by index.

    Attributes:
        names: special symbols, then all others.
        special: how many of them are special.
    """

    names: tuple[str, ...]
    special: int

    def __post_init__(self) -> None:
        assert len(set(self.names)) == len(self.names), "classes must differ"

    @classmethod
    def make(cls, special: Sequence[str], names: Iterable[str]) -> Symbols:
        return cls((*special, *names), len(special))

    @property
    def blank(self) -> int:
        return 0

    @property
    def end(self) -> int:
        return self.special - 2

    @property
    def own(self) -> tuple[str, ...]:
        """All that are not special."""
        return self.names[self.special :]

    def __len__(self) -> int:
        return len(self.names)

    def encode(self, tokens: Iterable[str]) -> list[int]:
        """Indices of tokens and of the end; what is in no class gets the class for that."""
        places = {name: index for index, name in enumerate(self.names)}
        return [places.get(token, self.special - 1) for token in tokens] + [self.end]

    def decode(self, indices: Iterable[int]) -> list[str]:
        """Tokens of indices, without blank, padding and end."""
        unknown = self.special - 1
        return [UNKNOWN if i == unknown else self.names[i] for i in indices if i >= unknown]

    def state(self) -> dict[str, Any]:
        return {"names": list(self.names), "special": self.special}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Symbols:
        return cls(tuple(state["names"]), state["special"])


def normalise(text: str, alphabet: str) -> str:
    """Text as it is learnt: composed characters, single spaces; upper case where the alphabet is English.

    Args:
        alphabet: "english" or "train".
    """
    text = " ".join(unicodedata.normalize("NFC", text).split())
    return text.upper() if alphabet == "english" else text
