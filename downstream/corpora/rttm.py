"""RTTM, NIST's form of who speaks when: ``SPEAKER RECORDING CHANNEL START DURATION <NA> <NA> NAME <NA> <NA>``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from s3prl_distiller.data.utterance import Utterance

from ..metrics.turns import Turn, merged

_OVERHANG = 0.05  # seconds by which a turn may end after its recording, as rounded times do
# Other kinds of lines that the format knows, which say nothing of turns.
_OTHER_TYPES = ("SEGMENT", "NOSCORE", "NO_RT_METADATA", "LEXEME", "NON-LEX", "NON-SPEECH", "FILLER", "EDIT", "IP", "SU")
_OTHER_TYPES += ("CB", "A/P", "SPKR-INFO")


def turns_of(utterances: Iterable[Utterance], remarks: list[str]) -> dict[str, list[Turn]]:
    """Turns of each utterance by its id, from the file that the key ``rttm`` of its manifest names.

    A file that holds nothing says that no one speaks. Turns are checked against the durations that are known.

    Args:
        remarks: what had to be put right in a file is added to these.

    Raises:
        ValueError: a file is missing, is not RTTM, is of other recordings, or has turns outside its recording.
    """
    of_file: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        of_file.setdefault((utterance.custom or {})["rttm"], []).append(utterance)
    turns: dict[str, list[Turn]] = {}
    for path, group in of_file.items():
        if not Path(path).is_file():
            raise ValueError(f"{path}: no such RTTM file, which is to say who speaks in {group[0].id}")
        # Recordings are called by their id or, where a manifest has none, by the name of the file.
        names = {name: utterance for utterance in group for name in (Path(utterance.place).stem, utterance.id)}
        durations = {name: u.duration for name, u in names.items() if u.duration is not None}
        recordings = read_rttm(Path(path), durations, remarks)
        for utterance in group:
            found = utterance.id if utterance.id in recordings else Path(utterance.place).stem
            if recordings and found not in recordings:
                raise ValueError(
                    f"{path} has no turn of {utterance.id}, only of {', '.join(sorted(recordings)[:3])}: if no one "
                    "speaks in it, let its rttm be an empty file"
                )
            turns[utterance.id] = recordings.get(found, [])
    return turns


def read_rttm(
    path: Path, durations: Mapping[str, float] | None = None, remarks: list[str] | None = None
) -> dict[str, list[Turn]]:
    """Turns of each recording that the file names, in order of time.

    Overlapping turns of one speaker are made one, and turns of no length are dropped. A turn that ends a few
    hundredths of a second after its recording is shortened.

    Args:
        durations: seconds of recordings; turns are checked against those that are here.
        remarks: the number of turns that were made one or dropped is added to these, if any were.

    Raises:
        ValueError: no such file, a line that is not RTTM, or a turn outside its recording; file and line are named.
    """
    turns: dict[str, list[Turn]] = {}
    odd: list[int] = []
    for number, line in enumerate(_lines(path), 1):
        parsed = _parse(line, f"{path}, line {number}")
        if parsed is None:
            continue
        recording, turn = parsed
        known = turns.setdefault(recording, [])
        limit = (durations or {}).get(recording, math.inf)
        if turn.end > limit + _OVERHANG:
            raise ValueError(
                f"{path}, line {number}: {turn.speaker} speaks from {turn.start:.3f} s to {turn.end:.3f} s in "
                f"{recording}, which is {limit:.3f} s long: correct the line, or give the recording that it belongs to"
            )
        turn = turn._replace(end=min(turn.end, limit))
        others = (other for other in known if other.speaker == turn.speaker)
        if turn.end <= turn.start or any(turn.start < other.end and other.start < turn.end for other in others):
            odd.append(number)
        if turn.end > turn.start:
            known.append(turn)
    if odd and remarks is not None:
        remarks.append(
            f"{path}: {len(odd)} turns overlap another of the same speaker, and are made one with it, or have no "
            f"length; the first is line {odd[0]}"
        )
    return {recording: merged(own) for recording, own in turns.items()}


def write_rttm(path: Path, recordings: Mapping[str, Iterable[Turn]]) -> None:
    """Write the turns of each recording, to the millisecond. Spaces in names become ``_``, as the format has none."""
    lines = []
    for recording, turns in recordings.items():
        for turn in turns:
            start, end = round(turn.start, 3), round(turn.end, 3)
            if end > start:
                name = f"{_word(recording)} 1 {start:.3f} {end - start:.3f} <NA> <NA> {_word(turn.speaker)}"
                lines.append(f"SPEAKER {name} <NA> <NA>\n")
    path.write_text("".join(lines), encoding="utf-8", errors="surrogateescape")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as RTTM in UTF-8: {error}") from error


def _parse(line: str, where: str) -> tuple[str, Turn] | None:
    fields = line.split()
    if not fields or fields[0].startswith(";;") or fields[0] in _OTHER_TYPES:
        return None
    if fields[0] != "SPEAKER" or not 8 <= len(fields) <= 10:
        raise ValueError(
            f"{where}: not a line of RTTM, which are SPEAKER RECORDING 1 START DURATION <NA> <NA> NAME <NA> <NA>"
        )
    try:
        start, duration = float(fields[3]), float(fields[4])
    except ValueError as error:
        raise ValueError(f"{where}: start {fields[3]!r} and duration {fields[4]!r} must be seconds") from error
    if not (0 <= start < math.inf and 0 <= duration < math.inf):
        raise ValueError(f"{where}: start {fields[3]} and duration {fields[4]} must be finite and not negative")
    return fields[1], Turn(start, start + duration, fields[7])


def _word(text: str) -> str:
    return "_".join(text.split())
