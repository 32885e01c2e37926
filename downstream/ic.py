"""Intent classification: what a spoken command wants, as one value for each of several slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from s3prl_distiller.data.utterance import Utterance

from .core.classification import Classification, ClassificationConfig, as_label, labelled, pairs, read_labelled
from .core.task import Row, Splits, custom
from .corpora.fluent_commands import SLOTS, read_fluent_commands
from .metrics.classification import accuracy


@dataclass
class IntentConfig(ClassificationConfig):
    slots: list[str] = field(default_factory=list)
    """names of the slots; none: action, object, location in Fluent Speech Commands, slot_1 and so on in manifests"""


class Task(Classification):
    """Fluent Speech Commands, or manifests whose ``intent`` is a list of values, or values by slot."""

    name = "ic"
    config_class = IntentConfig
    published: ClassVar[dict[str, int]] = {"train": 23_132, "dev": 3_118, "test": 3_793}
    key = "intent"

    @property
    def units(self) -> dict[str, str]:  # pyright: ignore[reportIncompatibleVariableOverride]  it depends on the slots
        return {"acc": "%"} | {f"acc_{slot}": "%" for slot in self.classes}

    def read(self, root: Path) -> Splits:
        manifests = read_labelled(root, "slu_mini", self.key)
        return read_fluent_commands(root, self.config.slots or SLOTS) if manifests is None else manifests

    def labels(self, utterance: Utterance) -> dict[str, str]:
        intent = custom(utterance, self.key)
        where = f"{utterance.id} ({utterance.place})"
        names = list(self.classes) or self.config.slots
        if isinstance(intent, list) and intent:
            names = names or [f"slot_{number}" for number in range(1, len(intent) + 1)]
            if len(names) != len(intent):
                raise ValueError(
                    f"{where} has an intent of {len(intent)} values, where {', '.join(names)} are expected"
                )
            intent = dict(zip(names, intent, strict=True))
        if not isinstance(intent, dict) or not intent:
            raise ValueError(f"{where} has the intent {intent!r}, where a list of slot values is expected")
        if lacking := [name for name in names if name not in intent]:
            raise ValueError(f"{where} has no {', '.join(lacking)} in its intent: it has {', '.join(intent)}")
        return {name: as_label(intent[name], name, utterance) for name in names or intent}

    def score(self, rows: Sequence[Row]) -> dict[str, float]:
        """``acc``: all slots right; and the accuracy of each slot by itself."""
        rows = labelled(rows)
        by_slot = {f"acc_{slot}": accuracy(pairs(rows, slot)) for slot in (rows[0]["reference"] if rows else [])}
        return super().score(rows) | by_slot
