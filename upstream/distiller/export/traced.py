"""A graph as a file: traced, then written for ONNX Runtime or for ``torch.export.load``."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .graph import Graph, trace
from .onnx import to_int8, to_onnx

FORMS = ("onnx", "onnx-int8", "torch-export")


def write(graph: Graph, form: str, path: Path, translations: Mapping[Any, Any] | None = None) -> None:
    """Trace a graph and write it.

    Args:
        form: one of :data:`FORMS`; for "onnx-int8" the graph is one that was made ``for_int8``.
        path: of the file.
        translations: as :func:`~.onnx.to_onnx` takes them.

    Raises:
        ValueError: the packages that ONNX takes are not installed.
    """
    program = trace(graph)
    if form == "torch-export":
        more = {"outputs.json": json.dumps(graph.outputs), "metadata.json": json.dumps(graph.metadata)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.save(program, path, extra_files=more)
        return
    wide = path.with_name("float32.onnx") if form == "onnx-int8" else path
    to_onnx(program, graph.outputs, graph.metadata, wide, translations)
    if form == "onnx-int8":
        to_int8(wide, path)
        wide.unlink()
