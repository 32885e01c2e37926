"""A student as one graph of operations, for any batch and any length."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..encoder import WeightNormConv, same_length_conv
from ..frontend import ConvLayer, receptive_field
from ..model import DistillerModel, Encoder, SplitLinear
from ..model_config import DistillerConfig, EncoderConfig
from .rows import RowFrontEnd, RowLinear, SplitRowLinear

AnyEncoder = TypeVar("AnyEncoder", bound=Encoder)

INPUTS = ("waveform", "lengths")
"""What every graph takes: (batch, samples) float32, zero-padded, at 16 kHz; (batch,) int64 samples of each."""

_EXAMPLE = (2, 16_000)


class Graph(nn.Module):
    """A module that takes :data:`INPUTS`, and what whoever runs it must know.

    Attributes:
        outputs: names of what it returns.
        metadata: text by key, from :func:`describe`.
        conv_layers: of its front end.
        shortest: samples of the shortest utterance that it takes.
    """

    outputs: tuple[str, ...]
    metadata: dict[str, str]
    conv_layers: list[ConvLayer]
    shortest: int


class StudentGraph(Graph):
    """Waveforms and lengths in; frames of each utterance and the hidden states of s3prl's experts out.

    Args:
        model: the student; it is copied.
        for_int8: whether rows are scaled one by one before they are multiplied, which 8 bits need.

    Raises:
        ValueError: a task embedding multiplies the utterances, which has no place in a graph of one batch.
    """

    def __init__(self, model: DistillerModel, for_int8: bool = False):
        super().__init__()
        check_one_batch(model.config)
        self.outputs = ("frames", *state_names(model.config))
        self.metadata = describe(model.config)
        self.conv_layers = model.conv_layers
        self.shortest = receptive_field(self.conv_layers)
        self.model = for_graph(model, for_int8)

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """Frames (B,), then each hidden state (B, T, D) in float32."""
        out = self.model(waveform, lengths)
        return out.frames, *out.listed


def check_one_batch(config: DistillerConfig) -> None:
    """Raises ValueError for a student that runs each utterance more than once."""
    if config.task_emb_type in ("add", "concat"):
        raise ValueError(
            f"a student with task_emb_type={config.task_emb_type!r} runs each utterance once a task: "
            "it can be exported to s3prl only"
        )


def state_names(config: DistillerConfig) -> list[str]:
    """A name for each of what a student's output lists."""
    layers = [f"layer_{index}" for index in range(1, config.encoder_layers + 1)]
    predictions = [f"prediction_of_layer_{target}" for target in config.targets] if config.n_tasks else []
    if len(set(predictions)) < len(predictions):  # a layer may be predicted twice
        predictions = [f"{name}_{index}" for index, name in enumerate(predictions)]
    return ["projection", *layers, *predictions]


def without_heads(model: DistillerModel) -> DistillerModel:
    """A copy of a student without its prediction heads, which downstream tasks do not use."""
    config = replace(model.config, n_tasks=0, task_emb_type="none", out_layer_type="none", pred_layer_id=[])
    plain = DistillerModel(config)
    known = plain.state_dict().keys()
    plain.load_state_dict({name: weight for name, weight in model.state_dict().items() if name in known})
    return plain.eval()


def trace(graph: Graph) -> torch.export.ExportedProgram:
    """The operations of a graph, for any batch and any length from two frames up.

    torch takes a dimension of size 1 for a special case, whose graph could be another, and refuses to mix them. ONNX
    has no such check, and its graph serves one frame too.

    Args:
        graph: in eval mode, on the CPU.
    """
    batch, samples = _EXAMPLE
    example = (torch.zeros(batch, samples), torch.tensor([samples, samples - 4_000]))
    any_batch = torch.export.Dim("batch", min=1)
    any_samples = torch.export.Dim("samples", min=max(two_frames(graph.conv_layers), graph.shortest))
    shapes = {INPUTS[0]: {0: any_batch, 1: any_samples}, INPUTS[1]: {0: any_batch}}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(graph, example, dynamic_shapes=shapes)
    # While tracing, torch notes of each reshape how it was done for this example and would hold later inputs to it, so
    # that a batch of one is refused. The operations themselves serve all shapes, and ranges of sizes are kept.
    program._guards_code = []
    return program


def two_frames(conv_layers: Sequence[ConvLayer]) -> int:
    """Samples that give two frames: 720 for HuBERT's front end."""
    return receptive_field(conv_layers) + prod(stride for _, _, stride in conv_layers)


def for_graph(model: AnyEncoder, for_int8: bool = False) -> AnyEncoder:
    """A copy of a model, in eval mode, with what runtimes are fast at in the places of its convolutions.

    Args:
        for_int8: see :class:`StudentGraph`.
    """
    made = copy.deepcopy(model).eval()
    parts: Any = made
    parts.feature_extractor = RowFrontEnd(made.feature_extractor, for_int8)
    for parent in list(made.modules()):
        for name, child in parent.named_children():
            if isinstance(child, WeightNormConv):
                setattr(parent, name, _FoldedConv(child))
            elif for_int8 and isinstance(child, nn.Linear):
                setattr(parent, name, RowLinear(child))
            elif for_int8 and isinstance(child, SplitLinear) and child.parts > 1:
                setattr(parent, name, SplitRowLinear(child))
    return made


class _FoldedConv(nn.Module):
    """The positions' convolution with the weight that its length and direction come to."""

    def __init__(self, conv: WeightNormConv):
        super().__init__()
        self.groups = conv.groups
        self.weight = nn.Parameter(conv.weight().detach())
        self.bias = conv.bias

    def forward(self, x: Tensor) -> Tensor:
        return same_length_conv(x, self.weight, self.bias, self.groups)


def describe(config: EncoderConfig, more: Mapping[str, Any] | None = None) -> dict[str, str]:
    """What whoever runs a graph must know, as text by key: ONNX has a place for that."""
    return {
        "sampling_rate": "16000",
        "samples_per_frame": str(config.downsample_rate),
        "shortest_samples": str(receptive_field(config.conv_layers)),
        "waveforms_are_normalized_inside": str(config.normalize).lower(),
        **{key: str(value) for key, value in (more or {}).items()},
    }
