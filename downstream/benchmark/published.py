"""SUPERB figures that others have published (``published.csv``), each with its source."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .figures import TASKS

FBANK = "FBANK (board)"
"""The paper of 2021 has other figures for keywords, speakers, intents and emotions; the board scores by these."""
SOTA = "SOTA row (2021)"
_FILE = Path(__file__).with_suffix(".csv")


@dataclass(frozen=True)
class System:
    """A published row.

    Attributes:
        parameters: of the upstream; None where not published.
        macs: as published, over SUPERB's own set of utterances; None where not published.
        values: by column of the file, such as ``pr_per``; in %, MTWV times 100.
        source: where the row is from.
    """

    name: str
    parameters: float | None
    macs: float | None
    values: dict[str, float]
    source: str


@cache
def systems() -> tuple[System, ...]:
    """All rows in the file's order, the reference rows first."""
    lines = [line for line in _FILE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    columns = [figure.published for task in TASKS.values() for figure in task.figures]
    return tuple(
        System(
            row["model"],
            1e6 * float(row["params_m"]) if row["params_m"] else None,
            1e9 * float(row["macs_g"]) if row["macs_g"] else None,
            {column: float(row[column]) for column in columns},
            row["source"],
        )
        for row in csv.DictReader(lines)
    )


def reference(name: str) -> System:
    """The row of that name: :data:`FBANK` or :data:`SOTA`."""
    return next(system for system in systems() if system.name == name)
