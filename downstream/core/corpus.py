"""The data of a downstream run: read by its task, every file checked, bad ones left out and counted."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from pathlib import Path

from s3prl_distiller.data.check import judge, write_report
from s3prl_distiller.data.config import DataConfig as CacheConfig
from s3prl_distiller.data.config import cache_folder
from s3prl_distiller.data.scan import cache_file, scan
from s3prl_distiller.data.utterance import Utterance, as_bytes

from .config import DataConfig
from .task import Splits, Task

log = logging.getLogger(__name__)


def read(task: Task, config: DataConfig) -> Splits:
    """What the corpus lists, by split; no audio is opened.

    Raises:
        ValueError: it is not there or not whole.
    """
    if not config.path:
        raise ValueError(f"give the corpus of {task.name}: --data FOLDER (data.path in a config)")
    root = Path(config.path).expanduser()
    if not root.is_dir():
        raise ValueError(
            f"--data {root} is no folder: give the corpus of {task.name}, or manifests (docs/downstream.md says how)"
        )
    return task.read(root)


def prepare(task: Task, splits: Splits, config: DataConfig, downsample_rate: int, folder: Path) -> None:
    """Fill ``task.splits``.

    Args:
        splits: what :func:`read` gave.
        downsample_rate: samples at 16 kHz for each frame of the features.
        folder: of the run; the report on the data goes there.

    Raises:
        ValueError: the corpus is bad beyond ``config.max_bad_share``, or its labels do not fit together.
    """
    task.prepare(check_audio(task, splits, config, folder), downsample_rate)
    empty = [split for split, utterances in task.splits.items() if not utterances]
    if empty:
        raise ValueError(
            f"no utterance of {' and '.join(empty)} in {config.path} can be used: see {folder / 'data_report.md'}"
        )


def check_audio(task: Task, splits: Splits, config: DataConfig, folder: Path) -> Splits:
    """The utterances whose audio can be used, with their durations.

    Raises:
        ValueError: too much of it cannot be; the report is named.
    """
    everything = [utterance for utterances in splits.values() for utterance in utterances]
    cache = cache_file(cache_folder(CacheConfig(cache_dir=config.cache_dir)), f"{config.path}:{task.name}")
    facts = scan((u.audio for u in everything), full=config.check == "full", cache=cache)
    kept: Splits = {}
    findings = []
    for split, utterances in splits.items():
        kept[split], found = judge(utterances, facts, config.min_seconds, silence_is_bad=False)
        findings += found
        if bad := Counter(finding.reason for finding in found if finding.bad):
            task.left_out[split] = task.left_out.get(split, Counter()) + bad
    report = write_report(folder, str(config.path), len(everything), findings, [])
    bad = [finding for finding in findings if finding.bad]
    if len(bad) > config.max_bad_share * len(everything):
        raise ValueError(
            f"{len(bad)} of {len(everything)} utterances cannot be used, more than data.max_bad_share = "
            f"{config.max_bad_share}; the first is {bad[0].path}: {bad[0].detail}. All are in {report}"
        )
    return kept


def counts(task: Task, compare: bool = False) -> list[str]:
    """A line for each split: how many utterances, how much audio, what was left out.

    Args:
        compare: also say how many SUPERB has.
    """
    lines = []
    for split, utterances in task.splits.items():
        seconds = sum(utterance.duration or 0.0 for utterance in utterances)
        length = f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"
        line = f"{split}: {len(utterances)} utterances, {length}"
        if task.left_out.get(split):
            line += ", left out: " + ", ".join(f"{n} {reason}" for reason, n in task.left_out[split].most_common())
        if compare and split in task.published:
            same = "the same" if task.published[split] == len(utterances) else str(task.published[split])
            line += f" (SUPERB's own corpus: {same})"
        lines.append(line)
    return lines


def fingerprint(utterances: list[Utterance]) -> str:
    """Changes when the utterances or their lengths change."""
    lines = sorted(f"{u.id}\t{u.start:.4f}\t{u.duration:.4f}\n" for u in utterances)
    return hashlib.sha256(as_bytes("".join(lines))).hexdigest()[:16]
