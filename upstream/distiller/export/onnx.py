"""A traced graph as an ONNX file, in float32 or with its weights in 8 bits."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .graph import INPUTS

OPSET = 20
"""The first with GELU as one operation; ONNX Runtime 1.17 and later run it."""

MISSING = "ONNX export needs onnx, onnxscript and onnxruntime: pip install 's3prl-distiller[export]'"

_WIDEST = 127
_FEWEST = 16
"""Terms of a product that is brought to 8 bits."""


def to_onnx(
    program: torch.export.ExportedProgram,
    outputs: Sequence[str],
    metadata: Mapping[str, str],
    path: Path,
    translations: Mapping[Any, Any] | None = None,
) -> None:
    """Write a graph that takes :data:`~.graph.INPUTS` as an ONNX file of opset :data:`OPSET`.

    Args:
        program: from :func:`~.graph.trace`.
        outputs: names of what it returns.
        metadata: kept in the file; ONNX Runtime hands it out again. Less than its ``shortest_samples`` is an error.
        path: of the file.
        translations: ONNX functions for custom operations, as ``torch.onnx.export`` takes them.

    Raises:
        ValueError: the packages that it takes are not installed.
    """
    require_onnx()
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            written = torch.onnx.export(
                program,
                (),
                None,
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=list(INPUTS),
                output_names=list(outputs),
                custom_translation_table=dict(translations or {}),
            )
    finally:
        exporter.setLevel(level)
    assert written is not None
    written.save(str(path))
    _finish(path, outputs, metadata)


def _finish(path: Path, outputs: Sequence[str], metadata: Mapping[str, str]) -> None:
    """Names for people in place of the exporter's, and the metadata."""
    import onnx

    model = onnx.load(path)
    frames = {"frames": ("batch",)}
    for value, names in zip(model.graph.input, (("batch", "samples"), ("batch",)), strict=True):
        _name_dimensions(value, names)
    for value, name in zip(model.graph.output, outputs, strict=True):
        _name_dimensions(value, frames.get(name, ("batch", "frames")))
    del model.graph.value_info[:]
    _refuse_short(model.graph, int(metadata["shortest_samples"]))
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _refuse_short(graph: Any, shortest: int) -> None:
    """Let the runtime fail on utterances without a frame.

    ONNX has no operation for that. An index out of bounds is an error everywhere, and the name of the operation that
    fails is part of its message.
    """
    from onnx import TensorProto, helper, numpy_helper

    given, checked = INPUTS[1], f"{INPUTS[1]}_checked"
    for node in graph.node:
        node.input[:] = [checked if name == given else name for name in node.input]
    constants = {"shortest": np.array(shortest, np.int64), "nothing": np.zeros(1, np.int64)}
    graph.initializer.extend(numpy_helper.from_array(value, f"check_{name}") for name, value in constants.items())
    nodes = [
        helper.make_node("ReduceMin", [given], ["check_least"], keepdims=0),
        helper.make_node("Less", ["check_least", "check_shortest"], ["check_fails"]),
        helper.make_node("Cast", ["check_fails"], ["check_index"], to=TensorProto.INT64),
        helper.make_node(
            "Gather",
            ["check_nothing", "check_index"],
            ["check_zero"],
            name=f"an_utterance_is_shorter_than_{shortest}_samples",
        ),
        helper.make_node("Add", [given, "check_zero"], [checked]),
    ]
    for node in reversed(nodes):
        graph.node.insert(0, node)


def _name_dimensions(value: Any, names: Sequence[str]) -> None:
    dimensions = value.type.tensor_type.shape.dim
    for dimension, name in zip(dimensions, names, strict=False):
        if not dimension.HasField("dim_value"):
            dimension.dim_param = name


def to_int8(source: Path, path: Path) -> None:
    """Bring the weights of an ONNX file to 8 bits.

    Products of matrices take 8-bit weights, with a scale for each output, and 8-bit inputs, with a scale that is found
    as they come (ONNX Runtime's dynamic quantisation). So do LSTMs, which become an operator of ONNX Runtime's own.
    Convolutions keep float32 inputs; their weights are stored in 8 bits, with a scale for each output channel.

    Raises:
        ValueError: the packages that it takes are not installed.
    """
    require_onnx()
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    wide = onnx.load(source)
    logging.getLogger().disabled, before = True, logging.getLogger().disabled
    try:
        quantize_dynamic(
            source,
            path,
            op_types_to_quantize=["MatMul", "LSTM"],
            nodes_to_exclude=_short_products(wide.graph),
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
    finally:
        logging.getLogger().disabled = before
    model = onnx.load(path)
    _without_sign(model.graph)
    _store_convolutions(model.graph)
    onnx.helper.set_model_props(model, {**{prop.key: prop.value for prop in wide.metadata_props}, "weights": "int8"})
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _short_products(graph: Any) -> list[str]:
    """Products that stay in float32: the first layer's, of ten samples each, lose much in 8 bits and gain nothing."""
    terms = {tensor.name: tensor.dims[-2] for tensor in graph.initializer if len(tensor.dims) > 1}
    products = (node for node in graph.node if node.op_type == "MatMul")
    return [node.name for node in products if terms.get(node.input[1], _FEWEST) < _FEWEST]


def _without_sign(graph: Any) -> None:
    """Shift 8-bit weights and their zero points by 128, which leaves the products the same.

    Inputs have no sign. Where one factor has a sign and the other has not, ONNX Runtime adds pairs of products in 16
    bits on x86 processors without VNNI, and two large ones silently overflow; where neither has, it adds in 32 bits.
    """
    from onnx import TensorProto, numpy_helper

    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.INT8:
            shifted = numpy_helper.to_array(tensor).astype(np.int16) + 128
            tensor.CopyFrom(numpy_helper.from_array(shifted.astype(np.uint8), tensor.name))


def _store_convolutions(graph: Any) -> None:
    """Weights of convolutions as 8-bit integers and scales, which the runtime multiplies as it loads them."""
    from onnx import helper, numpy_helper

    weights = {tensor.name: tensor for tensor in graph.initializer}
    added = []
    for node in graph.node:
        if node.op_type != "Conv" or node.input[1] not in weights:
            continue
        name = node.input[1]
        tensor = weights.pop(name)
        values = numpy_helper.to_array(tensor)
        scales = np.abs(values).reshape(len(values), -1).max(1).clip(min=1e-12) / _WIDEST
        rounded = np.rint(values / scales.reshape(-1, *[1] * (values.ndim - 1))).astype(np.int8)
        graph.initializer.remove(tensor)
        graph.initializer.extend(
            [
                numpy_helper.from_array(rounded, f"{name}_int8"),
                numpy_helper.from_array(scales.astype(np.float32), f"{name}_scale"),
            ]
        )
        added.append(helper.make_node("DequantizeLinear", [f"{name}_int8", f"{name}_scale"], [name], axis=0))
    for node in reversed(added):
        graph.node.insert(0, node)


def open_session(path: Path, threads: int | None = None) -> Any:
    """An ONNX Runtime session on the CPU.

    Args:
        path: of the file.
        threads: of the runtime; None: as many as torch takes.
    """
    require_onnx()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def require_onnx() -> None:
    """Raises ValueError, with what to install, where the packages of the extra are missing."""
    from importlib.util import find_spec

    if any(find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")):
        raise ValueError(MISSING)
