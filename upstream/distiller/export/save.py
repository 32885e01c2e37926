"""Write an export, prove it, and only then put it where it was asked for."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s3prl_distiller import checkpoint

from ..frontend import receptive_field
from ..student import Student, s3prl_states
from . import huggingface, parity, report
from .graph import StudentGraph, describe, trace, two_frames
from .onnx import OPSET, require_onnx, to_int8, to_onnx
from .runners import FILES, is_s3prls, open_runner

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
        predict: whether the prediction heads are part of it, where the form can do without.
        model_type: of transformers, see :func:`~.huggingface.to_huggingface_config`.
        costs: whether speed and memory are measured.
    """

    predict: bool = True
    model_type: str | None = None
    costs: bool = True


def export(student: Student, form: str, folder: Path, speech: Sequence[Tensor], options: Options = Options()) -> str:
    """Export a student into a folder, with the parity report.

    Args:
        student: what is exported.
        form: a key of :data:`FORMS`.
        folder: for the files. Others that it holds stay; those of the same names are replaced.
        speech: waveforms (samples,) at 16 kHz that the export is checked with.
        options: see there.

    Returns:
        The report.

    Raises:
        ValueError: the student cannot be had in that form, or the export does not hold its tolerance: then nothing is
            written.
    """
    check(student, form, options)
    model = student.model.eval()
    tolerance = parity.INT8 if form == "onnx-int8" else parity.FLOAT32
    with beside(folder) as temporary:
        notes = _WRITERS[form](student, temporary, options)
        # Where the statistics of the first layer are over padding as well, an utterance is another in each batch.
        over_padding = model.config.extractor_mode == "default" and form in ("hf", "s3prl")
        if over_padding:
            notes.append(
                "Batches of several lengths are not judged: there the first layer's normalisation is over padding too, "
                "so that an utterance's features depend on the batch. Give such a model one utterance at a time, or "
                "utterances of one length."
            )
        judged = model if options.predict or form in ("hf", "s3prl") else _without_heads(model)
        checks = parity.compare(judged, form, open_runner(form, temporary), speech, judge_padding=not over_padding)
        if (problem := report.broken(checks, tolerance)) is not None:
            raise ValueError(
                f"the export to {form} does not give the student's numbers, and was not written: {problem}"
            )
        costs = parity.costs(student.path, judged, form, temporary) if options.costs else None
        text = report.page(f"{FORMS[form]}, beside the student", checks, tolerance, costs, notes)
        source = {"source": student.path.name, "step": student.step}
        checkpoint.save_json(report.figures(form, checks, tolerance, costs, source), temporary / report.FIGURES)
        checkpoint.save_text(text, temporary / report.PAGE)
    return text


def check(student: Student, form: str, options: Options) -> None:
    """Raises ValueError where the student cannot be had in that form, before any time is spent."""
    if form not in FORMS:
        raise ValueError(f"there is no form {form!r}: --to takes {', '.join(FORMS)}")
    if form == "hf":
        huggingface.to_huggingface_config(student.model.config, options.model_type)
    elif form in ("onnx", "onnx-int8"):
        require_onnx()
    if form in ("onnx", "onnx-int8", "torch-export"):
        StudentGraph(student.model, options.predict)


def check_folder(folder: Path, force: bool) -> None:
    """Raises ValueError where something lies at the target, unless it is to be written over."""
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise ValueError(f"{folder} is not empty: choose another folder (-o), or write over its files with --force")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give a folder (-o)")


@contextmanager
def beside(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files move to ``folder`` once the block has ended well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        yield temporary
        folder.mkdir(exist_ok=True)
        for file in sorted(temporary.iterdir()):
            file.chmod(0o644)
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _without_heads(model: Any) -> Any:
    from dataclasses import replace

    from ..model import DistillerModel

    config = replace(model.config, n_tasks=0, task_emb_type="none", out_layer_type="none", pred_layer_id=[])
    plain = DistillerModel(config)
    plain.load_state_dict({name: weight for name, weight in model.state_dict().items() if huggingface.is_encoder(name)})
    return plain.eval()


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


def _write_onnx(student: Student, folder: Path, options: Options) -> list[str]:
    graph = StudentGraph(student.model, options.predict)
    config = student.model.config
    to_onnx(trace(graph, student.model.conv_layers), graph.outputs, describe(config), folder / FILES["onnx"])
    return [
        f"Opset {OPSET}. Inputs: `waveform` (batch, samples) float32, zero-padded, at 16 kHz; `lengths` (batch) int64. "
        f"Outputs: {', '.join(f'`{name}`' for name in graph.outputs)}.",
        f"Any batch, any length from {receptive_field(config.conv_layers)} samples up.",
    ]


def _write_int8(student: Student, folder: Path, options: Options) -> list[str]:
    notes = _write_onnx(student, folder, options)
    wide = folder / "float32.onnx"
    (folder / FILES["onnx"]).rename(wide)
    to_int8(wide, folder / FILES["onnx-int8"])
    wide.unlink()
    return [
        *notes,
        "Products of matrices are in 8 bits, weights with a scale for each output; convolutions are stored in 8 bits "
        "and computed in float32.",
    ]


def _write_graph(student: Student, folder: Path, options: Options) -> list[str]:
    graph = StudentGraph(student.model, options.predict)
    layers = student.model.conv_layers
    more = {"outputs.json": json.dumps(graph.outputs), "metadata.json": json.dumps(describe(student.model.config))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(trace(graph, layers), folder / FILES["torch-export"], extra_files=more)
    return [
        f"`torch.export.load(FILE).module()(waveform, lengths)` gives {', '.join(f'`{n}`' for n in graph.outputs)}.",
        f"Any batch, any length from {two_frames(layers)} samples (two frames) up.",
    ]


def _write_s3prl(student: Student, folder: Path, options: Options) -> list[str]:
    states = s3prl_states(student.model, student.training, student.step or 0)
    checkpoint.save_torch(states, folder / FILES["s3prl"])
    unknown = is_s3prls(student.model)
    if unknown:
        return [
            f"s3prl 0.4.18 does not know {', '.join(unknown)}: it loads this file once `s3prl_distiller.register()` "
            "was called, not by itself. Compared with that."
        ]
    return ["Loads in s3prl 0.4.18 as `distiller_local`, and was compared in s3prl's own code."]


_WRITERS: dict[str, Callable[[Student, Path, Options], list[str]]] = {
    "hf": _write_huggingface,
    "onnx": _write_onnx,
    "onnx-int8": _write_int8,
    "torch-export": _write_graph,
    "s3prl": _write_s3prl,
}
