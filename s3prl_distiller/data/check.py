"""Judge what the scan found, and write it down for the user."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from s3prl_distiller.audio import SAMPLE_RATE
from s3prl_distiller.engine import distributed

from .scan import Facts
from .utterance import Utterance

SILENCE = 1e-4  # peak (-80 dB of full scale) below which a file holds no signal
_OVERHANG = 0.05  # seconds by which a cut may end after its recording, as rounded manifests do
LEFT_OUT = "left out"
SILENT = "silent"


@dataclass(frozen=True)
class Finding:
    """One remark on one utterance: why (``reason``, ``detail``) and what was done about it (``action``)."""

    id: str
    path: str
    reason: str
    action: str
    detail: str

    @property
    def bad(self) -> bool:
        """Whether the utterance is not used."""
        return self.action == LEFT_OUT


def judge(
    utterances: list[Utterance], facts: dict[str, Facts], min_seconds: float, silence_is_bad: bool = True
) -> tuple[list[Utterance], list[Finding]]:
    """Part the utterances that can be used, their durations filled in, from findings on any of them.

    Args:
        silence_is_bad: leave out files that hold no signal; in labelled data silence may be what is asked for.
    """
    good: list[Utterance] = []
    findings: list[Finding] = []
    for utterance in utterances:
        found = facts[utterance.place]
        problem = _problem(utterance, found, min_seconds)
        if problem and (problem[0] != SILENT or silence_is_bad):
            findings.append(Finding(utterance.id, utterance.place, problem[0], LEFT_OUT, problem[1]))
            continue
        left = found.duration - utterance.start
        utterance.duration = left if utterance.duration is None else min(utterance.duration, left)
        good.append(utterance)
        for reason, action, detail in _notes(utterance, found):
            findings.append(Finding(utterance.id, utterance.place, reason, action, detail))
    return good, findings


def _problem(utterance: Utterance, found: Facts, min_seconds: float) -> tuple[str, str] | None:
    if found.reason:
        return found.reason, found.detail or found.reason
    end = utterance.start + (utterance.duration or 0.0)
    if utterance.start < 0 or end > found.duration + _OVERHANG or utterance.start > found.duration:
        return "outside", f"runs from {utterance.start:.3f} s to {end:.3f} s of a file of {found.duration:.3f} s"
    seconds = found.duration - utterance.start if utterance.duration is None else utterance.duration
    if seconds < min_seconds or round(seconds * SAMPLE_RATE) < 1:
        return "too short", f"{seconds:.4f} s, less than data.min_seconds = {min_seconds}"
    if found.peak is not None and found.peak < SILENCE:
        return SILENT, f"peak {found.peak:.2g} of full scale, below {SILENCE}"
    return None


def _notes(utterance: Utterance, found: Facts) -> list[tuple[str, str, str]]:
    notes = []
    if found.sample_rate != SAMPLE_RATE:
        notes.append(("sampling rate", f"resampled to {SAMPLE_RATE} Hz", f"{found.sample_rate} Hz"))
    if found.channels > 1:
        notes.append(("channels", "mixed down to their mean", f"{found.channels} channels"))
    if utterance.claimed is not None and abs(utterance.claimed - found.duration) > 0.1 + 0.01 * found.duration:
        detail = f"the manifest says {utterance.claimed} s, the file holds {found.duration:.3f} s"
        notes.append(("duration", "the file's own length is used", detail))
    return notes


def write_report(folder: Path, title: str, utterances: int, findings: list[Finding], remarks: list[str]) -> Path:
    """Write ``data_report.jsonl`` (a line a finding) and ``data_report.md`` (counts); return the latter's path.

    Of several processes, the main one writes.
    """
    report = folder / "data_report.md"
    if not distributed.is_main():
        return report
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "data_report.jsonl").open("w", encoding="utf-8") as file:
        for finding in findings:
            file.write(json.dumps(asdict(finding)) + "\n")
    bad = [finding for finding in findings if finding.bad]
    lines = [f"# Data report: {title}", "", f"{utterances} utterances listed, {len(bad)} of them left out.", ""]
    lines += [f"- {remark}" for remark in remarks]
    if findings:
        lines += ["| finding | action | utterances | example |", "|---|---|---|---|"]
        examples = {(f.reason, f.action): f for f in reversed(findings)}
        for (reason, action), count in Counter((f.reason, f.action) for f in findings).most_common():
            example = examples[reason, action]
            lines.append(f"| {reason} | {action} | {count} | `{example.id}`: {example.detail} |")
        lines += ["", "Every finding is a line of `data_report.jsonl`."]
    report.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace")
    return report


def counts(findings: list[Finding]) -> str:
    """Bad utterances by reason, as ``10 truncated, 2 silent``."""
    return ", ".join(f"{n} {reason}" for reason, n in Counter(f.reason for f in findings if f.bad).most_common())
