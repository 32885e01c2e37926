"""Write upstream and head of a run as one model, prove it, and only then put it where it was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from s3prl_distiller import checkpoint
from s3prl_distiller.machine import device_name, versions

from ...upstream.distiller.export import traced
from ...upstream.distiller.export.onnx import OPSET, require_onnx
from ...upstream.distiller.export.parity import FLOAT32, INT8, SECONDS, in_turns
from ...upstream.distiller.export.peak import peak_memory
from ...upstream.distiller.export.report import FIGURES, PAGE
from ...upstream.distiller.export.runners import FILES, Runner, open_runner
from ...upstream.distiller.export.save import beside
from ..core.expert import check_upstream
from ..core.run import Trained, from_saved, restore
from ..heads import folded
from ..heads.folded import FoldedLSTM
from .check import HeadDifference, check_head
from .graph import HeadGraph

_CPU = torch.device("cpu")
_INT32 = 6
"""ONNX's number for the type."""


def head_graph(trained: Trained, source: str | None = None, for_int8: bool = False) -> HeadGraph:
    """Upstream and head of a run as a module to trace.

    Args:
        trained: the checkpoint of the run.
        source: the upstream: a checkpoint, a folder or a name in the s3prl hub; None: the one that the run names.
        for_int8: whether the graph's weights will be brought to 8 bits, which takes a front end that scales its rows.

    Raises:
        ValueError: the head was trained on another upstream than ``source``, or cannot be exported.
    """
    options = {} if source is None else {"upstream": {"name": str(source), "ckpt": None}}
    expert = restore(trained, from_saved(trained, options, []), _CPU, None)
    if source is not None:
        check_upstream(trained.saved, expert.upstream, trained.checkpoint, even_trained=True)
    return HeadGraph(expert, for_int8)


def onnx_translations() -> dict[Any, Any]:
    """ONNX functions for the operations of a head that torch does not know, as ``torch.onnx.export`` takes them."""
    import onnxscript

    op: Any = getattr(onnxscript, f"opset{OPSET}")

    def lstm(features: Any, lengths: Any, inputs: Any, recurrent: Any, biases: Any) -> Any:
        directions, _, hidden = recurrent.shape
        states, _, _ = op.LSTM(
            op.Transpose(features, perm=[1, 0, 2]),
            inputs,
            recurrent,
            biases,
            op.Cast(lengths, to=_INT32),
            direction="bidirectional" if directions == 2 else "forward",
            hidden_size=hidden,
        )
        # (T, directions, B, H) to (B, T, directions * H).
        return op.Reshape(op.Transpose(states, perm=[2, 0, 1, 3]), op.Constant(value_ints=[0, 0, -1]))

    return {torch.ops.s3prl_distiller.lstm.default: lstm}


def export_head(
    trained: Trained, source: str | None, form: str, folder: Path, files: Sequence[Path], costs: bool = True
) -> str:
    """Export upstream and head of a run into a folder, with the report.

    Args:
        trained: the checkpoint of the run.
        source: as of :func:`head_graph`.
        form: "onnx", "onnx-int8" or "torch-export".
        folder: for the files. Others that it holds stay; those of the same names are replaced.
        files: of audio, to check with.
        costs: whether speed and memory are measured.

    Returns:
        The report.

    Raises:
        ValueError: the head cannot be had in that form, or the export does not answer as the run does: then nothing is
            written.
    """
    if form not in traced.FORMS:
        raise ValueError(f"with a head, --to takes {', '.join(traced.FORMS)}, and not {form!r}")
    if form != "torch-export":
        require_onnx()
    graph = head_graph(trained, source, for_int8=form == "onnx-int8")
    with beside(folder) as temporary:
        traced.write(graph, form, temporary / FILES[form], None if form == "torch-export" else onnx_translations())
        run = open_runner(form, temporary)
        rows = check_head(graph, run, trained, files)
        problem = _problem(rows, form)
        if problem is not None:
            raise ValueError(f"the export to {form} does not answer as the run does, and was not written: {problem}")
        cost = _cost(graph, run, form, temporary) if costs else {}
        text = _page(graph, trained, form, rows, cost, len(files))
        figures = {
            "form": form,
            "task": graph.task.name,
            "run": trained.run.name,
            "files": len(files),
            "checks": [asdict(row) for row in rows],
            **cost,
            "threads": torch.get_num_threads(),
            "device": device_name(_CPU),
            "versions": versions(),
        }
        checkpoint.save_json(figures, temporary / FIGURES)
        checkpoint.save_text(text, temporary / PAGE)
    return text


def _asked(form: str) -> str:
    if form == "onnx-int8":
        return f"the cosine of each output, or of each of its frames, with the run's is at least {INT8.cosine:g}"
    largest = FLOAT32.difference
    return f"all answers are the run's, and no number differs by more than {largest:g} (of its RMS, where above 1)"


def _problem(rows: Sequence[HeadDifference], form: str) -> str | None:
    """What does not hold, in words; None where all does."""
    assert INT8.cosine is not None and FLOAT32.difference is not None
    for row in rows:
        agreement = 1.0 if row.agreement is None else row.agreement
        cosine = 1.0 if row.cosine is None else row.cosine
        if form == "onnx-int8":
            holds = cosine >= INT8.cosine
        else:
            holds = agreement == 1 and row.largest <= FLOAT32.difference * max(1.0, row.scale)
        if not holds:
            return (
                f"{row.output}, {row.case}: largest difference {row.largest:.2g}, lowest cosine {cosine:.4f}, "
                f"{100 * agreement:.0f} % of the answers are the same (asked: {_asked(form)})"
            )
    return None


def _cost(graph: HeadGraph, run: Runner, form: str, folder: Path) -> dict[str, Any]:
    """Size, time for one utterance and memory; time and weights of the run's own model beside them."""
    in_torch, seconds = in_turns(graph, run)
    return {
        "weights": sum(parameter.nbytes for parameter in graph.parameters()),
        "size": (folder / FILES[form]).stat().st_size,
        "seconds_in_torch": in_torch,
        "seconds": seconds,
        "peak_memory": peak_memory(form, folder, SECONDS, torch.get_num_threads()),
    }


def _page(
    graph: HeadGraph, trained: Trained, form: str, rows: Sequence[HeadDifference], cost: dict[str, Any], files: int
) -> str:
    lines = [f"# {graph.task.name} of {trained.run.name} as one model ({form})", ""]
    lines += [f"Asked: {_asked(form)}. It holds on {files} files.", ""]
    if cost:
        memory = cost["peak_memory"]
        threads = torch.get_num_threads()
        lines += [
            f"- {cost['size'] / 1e6:.1f} MB; the weights of upstream and head are {cost['weights'] / 1e6:.1f} MB",
            f"- an utterance of {SECONDS:g} s: {1000 * cost['seconds']:.0f} ms, in torch "
            f"{1000 * cost['seconds_in_torch']:.0f} ms ({device_name(_CPU)}, {threads} "
            f"thread{'' if threads == 1 else 's'})",
            f"- peak memory: {'not measured' if memory is None else f'{memory / 1e6:.0f} MB'}",
        ]
    kind = "" if form == "torch-export" else f"Opset {OPSET}. "
    lines += [
        f"- {kind}Inputs: `waveform` (batch, samples) float32, zero-padded, at 16 kHz; `lengths` (batch) int64",
        f"- outputs: {', '.join(f'`{name}`' for name in graph.outputs)}",
        f"- any batch, any length from {graph.shortest} samples up; labels and all else that one must know are in the "
        f"file's metadata: {', '.join(f'`{key}`' for key in graph.metadata)}",
        *_needs(graph, form),
        "",
        "| files | output | largest difference | mean | lowest cosine | frames of the same class | same answers |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {row.case} | {row.output} | {row.largest:.1e} | {row.mean:.1e} | "
            f"{'' if row.cosine is None else f'{row.cosine:.6f}'} | {_share(row.frames)} | {_share(row.agreement)} |"
            for row in rows
        ),
        "",
    ]
    return "\n".join(lines)


def _needs(graph: HeadGraph, form: str) -> list[str]:
    """What whoever loads the file must import."""
    if form != "torch-export" or not any(isinstance(part, FoldedLSTM) for part in graph.modules()):
        return []
    return [
        f"- `import {folded.__name__}` before `torch.export.load`: the recurrent layers are an operation of its own"
    ]


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
