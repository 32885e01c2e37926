"""SF: characters and slot tags by CTC; Audio SNIPS in SUPERB."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3prl_distiller.data.utterance import Utterance

from .core import ctc
from .core.symbols import LETTERS, PLAIN, Symbols
from .core.task import Row, Splits
from .corpora.manifest import manifest_folder, read_manifests
from .corpora.snips import PUBLISHED, read_snips
from .metrics.slots import f1_by_type, parse_slots, type_f1, value_errors
from .metrics.text import rate, text_errors
from .pictures.edits import draw_slots

FILES = {split: f"{split}.jsonl" for split in ("train", "dev", "test")}


@dataclass
class SfConfig(ctc.CharacterConfig):
    pass


class Task(ctc.CharacterTask):
    """WER and CER are of the words without tags."""

    name = "sf"
    config_class = SfConfig
    key = "text_tagged"
    token_name = "character or slot tag"
    metric = "slot_f1"
    higher_is_better = True
    units = {"slot_f1": "%", "slot_cer": "%", "wer": "%", "cer": "%"}
    published = PUBLISHED

    def __init__(self, config: SfConfig):
        super().__init__(config)
        self._types: list[str] = []
        if config.unseen_labels not in ("error", "skip"):
            raise ValueError(f"task.unseen_labels is {config.unseen_labels!r}: it is 'error' or 'skip'")

    # Data

    def read(self, root: Path) -> Splits:
        if folder := manifest_folder(root, "slu_mini", list(FILES.values())):
            return read_manifests(folder, FILES, [self.key])
        splits, self._types = read_snips(root)
        return splits

    def text(self, utterance: Utterance) -> str:
        """The reference; tags keep their case."""
        plain = super().text(utterance).split()
        kept = str((utterance.custom or {})[self.key]).split()
        return " ".join(k if _is_tag(k) else p for k, p in zip(kept, plain, strict=True))

    def tokens(self, utterance: Utterance) -> list[str]:
        tokens: list[str] = []
        opened = None
        for word in self.text(utterance).split():
            ends = word.startswith("E-")
            wrong = None
            if _is_tag(word) and not ends and opened:
                wrong = f"{word} stands within {opened}"
            elif ends and (opened is None or word[2:] != opened[2:]):
                wrong = f"{word} ends what {opened or 'nothing'} begins"
            elif ends and tokens[-1] == opened:
                wrong = f"there is nothing between {opened} and {word}"
            if wrong:
                raise ValueError(f"{utterance.id} ({utterance.place}): in its {self.key!r} {wrong}")
            # No space between a tag and its slot's value.
            if tokens and not ends and tokens[-1] != opened:
                tokens.append(" ")
            tokens += [word] if _is_tag(word) else word
            if _is_tag(word):
                opened = None if ends else word
        if opened:
            raise ValueError(f"{utterance.id} ({utterance.place}): in its {self.key!r} nothing ends {opened}")
        return tokens

    def classes(self, train: Sequence[Utterance]) -> Symbols:
        tokens = [self.tokens(utterance) for utterance in train]
        types = self._types or sorted({token[2:] for some in tokens for token in some if _is_tag(token)})
        if not types:
            raise ValueError(f"no {self.key!r} of train has a slot, such as B-city LISBON E-city")
        tags = [f"{side}-{name}" for name in types for side in "BE"]
        return Symbols.make(PLAIN, [*self.letters(tokens, LETTERS), *tags])

    def unseen(self, split: str, utterance: Utterance, tokens: Sequence[str]) -> bool:
        types = sorted({token[2:] for token in tokens if _is_tag(token)})
        if types and self.config.unseen_labels == "error":
            raise ValueError(
                f"{utterance.id} ({utterance.place}) of {split} has the slot {types[0]!r}, which train does not have: "
                "leave such utterances out with task.unseen_labels=skip"
            )
        if types:
            self.leave_out(split, utterance, "slot unseen in train", ", ".join(types))
        return not types

    # Judging

    def written(self, token: str) -> str:
        return _written(token)

    def compare(self, reference: list[str] | None, hypothesis: list[str]) -> dict[str, Any]:
        said = _tagged(hypothesis)
        found = parse_slots(said)
        row: dict[str, Any] = {"reference": None, "prediction": said, "predicted_slots": [list(slot) for slot in found]}
        if reference is None:
            return row
        text = _tagged(reference)
        wanted = parse_slots(text)
        errors, chars = value_errors(wanted, found)
        return {
            **row,
            "reference": text,
            "reference_slots": [list(slot) for slot in wanted],
            "slot_f1": type_f1(wanted, found),
            "slot_char_errors": errors,
            "slot_chars": chars,
            **text_errors(_untagged(reference), _untagged(hypothesis)),
        }

    def score(self, rows: Sequence[Row]) -> dict[str, float]:
        return {
            "slot_f1": 100 * sum(row["slot_f1"] for row in rows) / len(rows),
            "slot_cer": rate(rows, "slot_char_errors", "slot_chars"),
            "wer": rate(rows, "word_errors", "words"),
            "cer": rate(rows, "char_errors", "chars"),
        }

    def figures(self, rows: Sequence[Row], folder: Path) -> Iterable[Path]:
        known = [row for row in rows if row["reference"] is not None]
        pairs = [(row["reference_slots"], row["predicted_slots"]) for row in known]
        return [draw_slots(f1_by_type(pairs), pairs, folder / "slots.png")]

    def say(self, row: Mapping[str, Any]) -> str:
        slots = "; ".join(f"{name} = {value}" for name, value in row["predicted_slots"])
        return f"{super().say(row)}\n  slots: {slots or 'none'}"


def _is_tag(token: str) -> bool:
    return len(token) > 2 and token[:2] in ("B-", "E-")


def _written(token: str) -> str:
    return f" {token} " if _is_tag(token) else token


def _tagged(tokens: Iterable[str]) -> str:
    """Text of tokens: tags are words of their own."""
    return " ".join("".join(map(_written, tokens)).split())


def _untagged(tokens: Iterable[str]) -> str:
    return "".join(" " if _is_tag(token) else token for token in tokens)
