"""First weights of a student: those of its teacher, or where the student is narrower, an even choice among them.

The choice is weight selection (Xu et al., "Initializing Models with Larger Ones", ICLR 2024, arXiv 2311.18823): layers
one to one, and in each weight elements at even distances, the same ones wherever two weights meet.

- Channels of a convolution, feed-forward units: channel i of k is the teacher's number floor(i n / k) of n.
- Values of the residual stream: likewise within each group of the positional convolution, the same in all layers, in
  their normalisations and in the projection, so that each value keeps its meaning throughout.
- Attention heads: likewise among heads, and within a head among its values where heads are narrower too; the same in
  queries, keys and values. A student of the teacher's head size thus gets whole heads.

Chosen elements are copied as they are. Where nothing is narrower, that is a plain copy.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from .model import DistillerModel, Encoder
from .model_config import DistillerConfig, EncoderConfig
from .teacher import TeacherInfo

# What each dimension of a weight counts, by the end of its name. channels: what a convolution gives, before: what it is
# given; width: the residual stream, inside: of it, in one group; heads: all heads' values; units: feed-forward; all.
_DIMENSIONS = (
    (r"conv_layers\.\d+\.0\.weight", ("channels", "before", "all")),
    (r"conv_layers\.\d+\..*", ("channels",)),
    (r"^layer_norm\..*", ("last channels",)),
    (r"post_extract_proj\.weight", ("width", "last channels")),
    (r"pos_conv\.\d+(\.0)?\.weight(_v)?", ("width", "inside", "all")),
    (r"pos_conv\.\d+\.weight_g", ("all", "all", "all")),
    (r"self_attn\.[qkv]_proj\.weight", ("heads", "width")),
    (r"self_attn\.[qkv]_proj\.bias", ("heads",)),
    (r"self_attn\.out_proj\.weight", ("width", "heads")),
    (r"fc1\.weight", ("units", "width")),
    (r"fc1\.bias", ("units",)),
    (r"fc2\.weight", ("width", "units")),
    (r".*", ("width",)),  # normalisations, and biases of what writes to the residual stream
)


def evenly(of: int, take: int) -> Tensor:
    """(take,) of the positions 0 ... of - 1, at even distances from 0 on."""
    return torch.arange(take) * of // take


class Choice:
    """Which of a teacher's elements a student gets.

    Args:
        student: no wider than the teacher in anything, with its groups and kernels of the positional convolution.
        teacher: the teacher.
    """

    def __init__(self, student: EncoderConfig, teacher: EncoderConfig):
        channels = zip(teacher.conv_layers, student.conv_layers, strict=False)
        self._channels = [evenly(theirs[0], ours[0]) for theirs, ours in channels]
        wide, narrow = teacher.encoder_embed_dim, student.encoder_embed_dim
        groups = teacher.conv_pos_groups if student.conv_pos_groups == teacher.conv_pos_groups else 1
        inside = evenly(wide // groups, narrow // groups)
        each = evenly(wide // teacher.encoder_attention_heads, narrow // student.encoder_attention_heads)
        heads = evenly(teacher.encoder_attention_heads, student.encoder_attention_heads)
        self._chosen = {
            "width": _nested(torch.arange(groups), inside, wide // groups),
            "inside": inside,
            "heads": _nested(heads, each, wide // teacher.encoder_attention_heads),
            "units": evenly(teacher.encoder_ffn_embed_dim, student.encoder_ffn_embed_dim),
            "last channels": self._channels[-1],
        }

    def of(self, name: str, weight: Tensor) -> Tensor:
        """The chosen part of a weight of that name."""
        dimensions = next(dimensions for pattern, dimensions in _DIMENSIONS if re.search(pattern + "$", name))
        layer = re.search(r"conv_layers\.(\d+)\.", name)
        for dimension, counts in enumerate(dimensions):
            if layer is not None and counts == "channels":
                chosen = self._channels[int(layer[1])]
            elif layer is not None and counts == "before" and int(layer[1]) > 0:
                chosen = self._channels[int(layer[1]) - 1]
            else:
                chosen = self._chosen.get(counts)
            if chosen is not None:
                weight = weight.index_select(dimension, chosen)
        return weight


def _nested(outer: Tensor, inner: Tensor, size: int) -> Tensor:
    """Positions of the ``inner`` ones in each of the ``outer`` blocks of ``size``."""
    return (outer[:, None] * size + inner).flatten()


def initialise(student: DistillerModel, teacher: Encoder) -> int:
    """Fill the parts of a student whose config asks for it from its teacher.

    Args:
        student: the student; :func:`check_initialisation` has let its config pass.
        teacher: the teacher's weights in our Encoder.

    Returns:
        How many of the student's parameters were filled.
    """
    config = student.config
    prefixes: list[str] = []
    if config.init_teacher_conv_layers:
        prefixes += ["feature_extractor.", "post_extract_proj.", "layer_norm."]
    if config.init_teacher_encoder_layers:
        prefixes += ["encoder.pos_conv.", "encoder.layers."]
    if config.init_teacher_encoder_norm:
        prefixes += ["encoder.layer_norm."]
    if not prefixes:
        return 0
    theirs, choice = teacher.state_dict(), Choice(config, teacher.config)
    filled: dict[str, Tensor] = {}
    for name in student.state_dict():
        source = _source(name, config)
        if source in theirs and name.startswith(tuple(prefixes)):
            filled[name] = choice.of(source, theirs[source])
    positions = "encoder.pos_conv.0.weight_"
    if positions + "g" in filled and config.encoder_embed_dim < teacher.config.encoder_embed_dim:
        # The direction got shorter; without this each element of the convolution's weight would grow instead.
        lengths = [torch.linalg.vector_norm(d[positions + "v"], dim=(0, 1), keepdim=True) for d in (filled, theirs)]
        filled[positions + "g"] = filled[positions + "g"] * lengths[0] / lengths[1]
    student.load_state_dict(filled, strict=False)
    return sum(tensor.numel() for tensor in filled.values())


def layers_to_start_from(config: DistillerConfig) -> list[int]:
    """For each layer of a student, the teacher's that it starts from; 1 is the first."""
    return list(config.init_layers) or list(range(1, config.encoder_layers + 1))


def _source(name: str, config: DistillerConfig) -> str:
    """The teacher's name of what a weight of the student starts from."""
    found = re.match(r"encoder\.layers\.(\d+)\.", name)
    if found is None:
        return name
    return f"encoder.layers.{layers_to_start_from(config)[int(found[1])] - 1}.{name[found.end() :]}"


# What must be equal, and what may be narrower than the teacher's, for each part that is to start from it.
_EQUAL = {
    "init_teacher_conv_layers": ("extractor_mode", "conv_bias"),
    "init_teacher_encoder_layers": ("conv_pos", "conv_pos_groups", "conv_pos_depth"),
    "init_teacher_encoder_norm": (),
}
_NOT_WIDER = {
    "init_teacher_conv_layers": ("encoder_embed_dim",),  # the projection joins front end and Transformer
    "init_teacher_encoder_layers": ("encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_attention_heads"),
    "init_teacher_encoder_norm": ("encoder_embed_dim",),
}


def check_initialisation(config: DistillerConfig, teacher: TeacherInfo) -> None:
    """Every part that is to start from the teacher must be built as the teacher's, and be no wider.

    Raises:
        ValueError: one is not; the keys are named.
    """
    flags = [flag for flag in _EQUAL if getattr(config, flag)]
    if flags and teacher.architecture is None:
        raise ValueError(
            f"distiller.{flags[0]}=true, but the weights of teacher {teacher.name} are not of an architecture that a "
            f"student can start from: set {', '.join(f'distiller.{flag}=false' for flag in flags)}, and the student "
            "starts from random weights"
        )
    if flags and config.task_emb_type == "concat" and config.init_teacher_conv_layers:
        raise ValueError(
            "distiller.task_emb_type='concat' widens the projection, which then cannot start from the teacher's: "
            "set distiller.init_teacher_conv_layers=false"
        )
    for flag in flags:
        assert teacher.architecture is not None
        _check_shapes(config, teacher.architecture, teacher.name, flag)
    _check_layers(
        config, teacher.n_layers if teacher.architecture is None else teacher.architecture.encoder_layers, teacher.name
    )


def _check_shapes(config: DistillerConfig, teacher: EncoderConfig, name: str, flag: str) -> None:
    way_out = f"leave the key out, or set distiller.{flag}=false"
    for key in _EQUAL[flag]:
        if getattr(config, key) != getattr(teacher, key):
            raise ValueError(
                f"distiller.{key}={getattr(config, key)} does not fit teacher {name}, which has "
                f"{getattr(teacher, key)}: {way_out}"
            )
    for key in _NOT_WIDER[flag]:
        if getattr(config, key) > getattr(teacher, key):
            raise ValueError(
                f"distiller.{key}={getattr(config, key)} is more than the {getattr(teacher, key)} of teacher {name}, "
                f"which cannot fill it: {way_out}"
            )
    if flag == "init_teacher_encoder_layers":
        each = [c.encoder_embed_dim // c.encoder_attention_heads for c in (config, teacher)]
        if each[0] > each[1]:
            raise ValueError(
                f"distiller.encoder_attention_heads={config.encoder_attention_heads} makes heads of {each[0]} values, "
                f"more than the {each[1]} of teacher {name}, which cannot fill them: give more heads, or set "
                f"distiller.{flag}=false"
            )
    if flag == "init_teacher_conv_layers":
        ours, theirs = config.conv_layers, teacher.conv_layers
        same = [layer[1:] for layer in ours] == [layer[1:] for layer in theirs]
        if not same or any(a[0] > b[0] for a, b in zip(ours, theirs, strict=True)):
            raise ValueError(
                f"distiller.extractor_conv_feature_layers={config.extractor_conv_feature_layers} does not fit teacher "
                f"{name}, which has {teacher.extractor_conv_feature_layers}: kernels and strides must be the same, and "
                f"channels no more; {way_out}"
            )


def _check_layers(config: DistillerConfig, n_layers: int, name: str) -> None:
    if not config.init_teacher_encoder_layers:
        if config.init_layers:
            raise ValueError("distiller.init_layers is given, but not distiller.init_teacher_encoder_layers=true")
        return
    if config.init_layers and len(config.init_layers) != config.encoder_layers:
        raise ValueError(
            f"distiller.init_layers={config.init_layers} names {len(config.init_layers)} layers to start from, but the "
            f"student has distiller.encoder_layers={config.encoder_layers}"
        )
    if config.init_layers and not all(1 <= layer <= n_layers for layer in config.init_layers):
        raise ValueError(
            f"distiller.init_layers={config.init_layers} asks for layers that teacher {name} has not: it has 1 "
            f"to {n_layers}"
        )
    if not config.init_layers and config.encoder_layers > n_layers:
        raise ValueError(
            f"distiller.encoder_layers={config.encoder_layers} cannot start from teacher {name}, which has "
            f"{n_layers} layers: give fewer, or say in distiller.init_layers which ones to start from"
        )


def describe(config: DistillerConfig, teacher: EncoderConfig) -> str:
    """In words, what a student's encoder starts from; "" where that is nothing but the teacher's own first layers."""
    said = []
    if config.init_teacher_encoder_layers and config.init_layers:
        said.append(f"layers {', '.join(map(str, config.init_layers))} of the teacher")
    counted = {"encoder_embed_dim": "values"}
    if config.init_teacher_encoder_layers:
        counted |= {"encoder_attention_heads": "heads", "encoder_ffn_embed_dim": "feed-forward units"}
    narrower = [
        f"{getattr(config, key)} of {getattr(teacher, key)} {what}"
        for key, what in counted.items()
        if getattr(config, key) != getattr(teacher, key)
    ]
    channels = [layer[0] for layer in config.conv_layers], [layer[0] for layer in teacher.conv_layers]
    if config.init_teacher_conv_layers and channels[0] != channels[1]:
        narrower.append(f"{sum(channels[0])} of {sum(channels[1])} channels")
    if narrower:
        said.append(f"evenly chosen {', '.join(narrower)} (arXiv 2311.18823)")
    return "; ".join(said)
