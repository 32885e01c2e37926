"""The parity report: the page and the figures that lie beside every export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch

from s3prl_distiller.machine import device_name, versions

from ..model_config import EncoderConfig
from .parity import SECONDS, Check, Cost, Tolerance

PAGE, FIGURES = "parity.md", "parity.json"


def lets_padding_in(config: EncoderConfig) -> str | None:
    """Why transformers and s3prl make an utterance's features depend on the batch it is in; None where they do not."""
    if config.extractor_mode == "default":
        where = "the first layer's normalisation is over padding too"
    elif config.conv_pos_depth > 1:
        where = "stacked convolutions of the positions reach into padding"
    else:
        return None
    return (
        f"Batches of several lengths are not judged: elsewhere {where}, so that an utterance's features depend on the "
        "batch. There, give such a model one utterance at a time, or utterances of one length."
    )


def figures(
    form: str, checks: Sequence[Check], tolerance: Tolerance, costs: tuple[Cost, Cost] | None, more: dict[str, Any]
) -> dict[str, Any]:
    """What ``parity.json`` holds."""
    return {
        "form": form,
        "tolerance": asdict(tolerance),
        "holds": all(check.holds(tolerance) for check in checks if check.judged),
        "checks": [asdict(check) for check in checks],
        **({"student": asdict(costs[0]), "export": asdict(costs[1])} if costs else {}),
        "threads": torch.get_num_threads(),
        "device": device_name(torch.device("cpu")),
        "versions": versions() | ({"onnxruntime": version("onnxruntime")} if form.startswith("onnx") else {}),
        **more,
    }


def page(
    title: str, checks: Sequence[Check], tolerance: Tolerance, costs: tuple[Cost, Cost] | None, notes: Sequence[str]
) -> str:
    """What ``parity.md`` holds."""
    judged = [check for check in checks if check.judged]
    kept = "It holds." if all(check.holds(tolerance) for check in judged) else "It does not hold."
    lines = [f"# {title}", "", f"Asked: {tolerance}. {kept}", ""]
    if costs:
        threads = torch.get_num_threads()
        where = f"{device_name(torch.device('cpu'))}, {threads} thread{'' if threads == 1 else 's'}"
        lines += [
            f"| {where} | student (float32) | this export | ratio |",
            "|---|---|---|---|",
            _row("weights and files, MB", *(cost.size / 1e6 for cost in costs)),
            _row(f"an utterance of {SECONDS:g} s, ms", *(1000 * cost.seconds for cost in costs)),
        ]
        if costs[0].memory is not None and costs[1].memory is not None:
            lines.append(_row("peak memory, MB", *(cost.memory / 1e6 for cost in costs if cost.memory is not None)))
        lines.append("")
    lines += [*(f"- {note}" for note in notes), *([""] if notes else [])]
    lines += [
        "| batch | hidden state | largest difference | mean difference | lowest cosine of a frame |",
        "|---|---|---|---|---|",
        *(_line(check, tolerance) for check in checks),
        "",
    ]
    return "\n".join(lines)


def _row(name: str, student: float, export: float) -> str:
    return f"| {name} | {student:.1f} | {export:.1f} | {export / student:.2f} |"


def _line(check: Check, tolerance: Tolerance) -> str:
    state = "" if check.holds(tolerance) else (" (does not hold)" if check.judged else " (not judged)")
    return f"| {check.case} | {check.output}{state} | {check.largest:.1e} | {check.mean:.1e} | {check.cosine:.6f} |"


def broken(checks: Sequence[Check], tolerance: Tolerance) -> str | None:
    """The worst of what does not hold, in words; None where all does."""
    failed = [check for check in checks if check.judged and not check.holds(tolerance)]
    if not failed:
        return None
    worst = max(failed, key=lambda check: (-check.cosine, check.largest))
    return (
        f"{len(failed)} of {len(checks)} hidden states are off, the worst {worst.output} of {worst.case}: largest "
        f"difference {worst.largest:.2g}, lowest cosine {worst.cosine:.4f} (asked: {tolerance})"
    )
