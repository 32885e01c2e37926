"""A few utterances of each corpus of real speech, as manifests beside links to the audio: runs of seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

KEPT = {"train": 24, "dev": 8, "test": 8}


def make_minis(source: Path, folder: Path) -> Path:
    """Small manifests of every corpus in ``source``, made in ``folder``."""
    for corpus in sorted(path for path in source.iterdir() if path.is_dir()):
        target = folder / corpus.name
        target.mkdir(parents=True)
        for inner in ("audio", "rttm"):
            if (corpus / inner).is_dir():
                (target / inner).symlink_to(corpus / inner)
        for manifest in sorted(corpus.glob("*.jsonl")):
            split = manifest.stem.rsplit("_", 1)[-1]
            rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
            _write(target / manifest.name, _some(rows, KEPT.get(split, 24)))
    _speakers(source / "librispeech_mini", folder / "librispeech_mini")
    _queries(folder / "keywords_mini")
    return folder


def _some(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Rows of every label in turn, the shorter ones first; where there are no labels, the shortest."""
    rows = [row for row in sorted(rows, key=lambda row: row["duration"]) if row["duration"] < 12]
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(str(row.get("label")), []).append(row)
    turns = [[group[place] for group in groups.values() if place < len(group)] for place in range(count)]
    return [row for turn in turns for row in turn][:count]


def _speakers(source: Path, target: Path) -> None:
    """Trials of the few test utterances that were kept, two of each of four speakers."""
    rows = [json.loads(line) for line in (source / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    by_speaker: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["duration"]):
        by_speaker.setdefault(row["speaker"], []).append(row)
    kept = [row for speaker in list(by_speaker)[:4] for row in by_speaker[speaker][:2]]
    _write(target / "test.jsonl", kept)
    trials = [
        f"{int(one['speaker'] == other['speaker'])} {one['audio']} {other['audio']}"
        for place, one in enumerate(kept)
        for other in kept[place + 1 :]
    ]
    (target / "asv_trials.txt").write_text("\n".join(trials) + "\n", encoding="utf-8")


def _queries(folder: Path) -> None:
    """Queries of two keywords, and documents that hold some of them or none."""
    queries = [json.loads(line) for line in (folder / "qbe_queries.jsonl").read_text(encoding="utf-8").splitlines()]
    documents = [json.loads(line) for line in (folder / "qbe_docs.jsonl").read_text(encoding="utf-8").splitlines()]
    ids = {row["id"] for row in documents}
    for row in queries:
        row["relevant"] = [name for name in row["relevant"] if name in ids]
    _write(folder / "qbe_queries.jsonl", [row for row in queries if row["relevant"]])


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
