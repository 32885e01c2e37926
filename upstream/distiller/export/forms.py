"""The forms of an export: what each can hold, how it is written, and what its users must know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from s3prl_distiller import checkpoint

from ..student import Student, s3prl_states
from . import huggingface, traced
from .graph import StudentGraph, two_frames
from .onnx import OPSET, require_onnx
from .runners import FILES, unknown_to_s3prl

FORMS = {
    "hf": "a Hugging Face folder for transformers",
    "onnx": "an ONNX file for ONNX Runtime",
    "onnx-int8": "the same with its weights in 8 bits",
    "torch-export": "a graph for torch.export.load",
    "s3prl": "a .ckpt for s3prl",
}


@dataclass(frozen=True)
class Options:
    """What an export may be asked for beside its form.

    Attributes:
        predict: whether the prediction heads are part of it.
        model_type: of transformers, see :func:`~.huggingface.to_huggingface_config`.
        costs: whether speed and memory are measured.
    """

    predict: bool = True
    model_type: str | None = None
    costs: bool = True


def check(student: Student, form: str, options: Options) -> None:
    """Raises ValueError where the student cannot be had in that form, before any time is spent."""
    if form not in FORMS:
        raise ValueError(f"there is no form {form!r}: --to takes {', '.join(FORMS)}")
    if form == "hf":
        huggingface.to_huggingface_config(student.model.config, options.model_type)
    elif form in ("onnx", "onnx-int8"):
        require_onnx()
    if form in traced.FORMS:
        StudentGraph(student.model)


def _write_huggingface(student: Student, folder: Path, options: Options) -> list[str]:
    model = student.model
    for name, write in huggingface.writers(model, student.training, student.step or 0, options.model_type).items():
        write(folder / name)
    notes = ["`AutoModel.from_pretrained(FOLDER)` and `AutoFeatureExtractor.from_pretrained(FOLDER)` load it."]
    if model.output_layer is not None:
        notes.append(
            f"transformers has no place for the prediction heads: they lie in {huggingface.HEADS}, which it does not "
            "read and this package does."
        )
    if model.config.normalize and model.config.normalize_eps != 1e-7:
        notes.append(
            f"transformers adds 1e-7 to a waveform's variance where the student adds {model.config.normalize_eps:g}."
        )
    return notes


def _write_onnx(student: Student, folder: Path, options: Options, form: str = "onnx") -> list[str]:
    graph = StudentGraph(student.model, for_int8=form == "onnx-int8")
    traced.write(graph, form, folder / FILES[form])
    return [
        f"Opset {OPSET}. Inputs: `waveform` (batch, samples) float32, zero-padded, at 16 kHz; `lengths` (batch) int64. "
        f"Outputs: {', '.join(f'`{name}`' for name in graph.outputs)}.",
        f"Any batch, any length from {graph.shortest} samples up.",
    ]


def _write_int8(student: Student, folder: Path, options: Options) -> list[str]:
    return [
        *_write_onnx(student, folder, options, "onnx-int8"),
        "Products of matrices are in 8 bits, those of the front end's convolutions (but the first) too; weights have a "
        "scale for each output. The positions' convolution is stored in 8 bits and computed in float32.",
    ]


def _write_graph(student: Student, folder: Path, options: Options) -> list[str]:
    graph = StudentGraph(student.model)
    traced.write(graph, "torch-export", folder / FILES["torch-export"])
    return [
        f"`torch.export.load(FILE).module()(waveform, lengths)` gives {', '.join(f'`{n}`' for n in graph.outputs)}.",
        f"Any batch, any length from {two_frames(graph.conv_layers)} samples (two frames) up.",
    ]


def _write_s3prl(student: Student, folder: Path, options: Options) -> list[str]:
    states = s3prl_states(student.model, student.training, student.step or 0)
    checkpoint.save_torch(states, folder / FILES["s3prl"])
    unknown = unknown_to_s3prl(student.model)
    if unknown:
        return [
            f"s3prl 0.4.18 does not know {', '.join(unknown)}: it loads this file once `s3prl_distiller.register()` "
            "was called, not by itself. Compared with that."
        ]
    return ["Loads in s3prl 0.4.18 as `distiller_local`, and was compared in s3prl's own code."]


WRITERS: dict[str, Callable[[Student, Path, Options], list[str]]] = {
    "hf": _write_huggingface,
    "onnx": _write_onnx,
    "onnx-int8": _write_int8,
    "torch-export": _write_graph,
    "s3prl": _write_s3prl,
}
"""Each writes a form's files to a folder and returns notes for the report."""
