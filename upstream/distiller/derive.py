"""A student made for its teacher: its config from what is given and what the teacher is, its first weights from it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .frontend import parse_conv_layers
from .model import DistillerModel, Encoder
from .model_config import DistillerConfig, EncoderConfig
from .teacher import TeacherInfo

log = logging.getLogger(__name__)

# What a student takes over from its teacher unless its config says otherwise: shape, norm placement, biases. How many
# layers it has, and what it predicts, is the recipe's affair.
_FROM_TEACHER = (
    "extractor_mode",
    "extractor_conv_feature_layers",
    "conv_bias",
    "always_project",
    "normalize",
    "normalize_eps",
    "conv_pos",
    "conv_pos_groups",
    "conv_pos_depth",
    "encoder_embed_dim",
    "encoder_ffn_embed_dim",
    "encoder_attention_heads",
    "activation_fn",
    "layer_norm_first",
)


def derive_student(given: Mapping[str, Any], teacher: TeacherInfo) -> DistillerConfig:
    """Complete a student's config from its teacher, and check that the two fit.

    Args:
        given: the keys of section ``distiller`` that a file or an override sets.
        teacher: what the teacher was found to be.

    Raises:
        ValueError: the teacher lacks a layer that is to be predicted, or a width or frame rate does not fit.
    """
    values: dict[str, Any] = {"final_dim": teacher.width, "normalize": teacher.normalize}
    if teacher.architecture is not None:
        values |= {key: getattr(teacher.architecture, key) for key in _FROM_TEACHER}
        if values["always_project"] and _front_end_width(given, teacher.architecture) != _width(given, teacher):
            values["always_project"] = False  # there is a projection anyway, and s3prl knows no such key
    if not (values.get("normalize") or given.get("normalize")):
        values.pop("normalize_eps", None)  # says nothing then
    if "pred_layer_id" in given:
        if not given["pred_layer_id"]:
            raise ValueError("distiller.pred_layer_id is empty: name at least one layer of the teacher")
        values["n_tasks"] = len(given["pred_layer_id"])
    config = DistillerConfig(**{**values, **given})
    try:
        config.check()
    except ValueError as error:
        raise ValueError(f"{error} (what is not given follows teacher {teacher.name})") from None
    if config.normalize != teacher.normalize:
        log.warning(
            "distiller.normalize=%s, but teacher %s has %s: the two hear different waveforms",
            config.normalize,
            teacher.name,
            teacher.normalize,
        )
    missing = [layer for layer in config.targets if not 0 <= layer <= teacher.n_layers]
    if missing:
        raise ValueError(
            f"distiller.pred_layer_id asks for layer {', '.join(map(str, missing))} of teacher {teacher.name}, "
            f"which has {teacher.n_layers} layers"
        )
    predicted = _prediction_width(config)
    if predicted != teacher.width:
        raise ValueError(
            f"the student predicts {predicted} values a frame (distiller.final_dim={config.final_dim}, "
            f"distiller.out_layer_type={config.out_layer_type}), but teacher {teacher.name} is {teacher.width} wide"
        )
    if config.downsample_rate != teacher.downsample_rate:
        raise ValueError(
            f"the student makes a frame of {config.downsample_rate} samples "
            f"(distiller.extractor_conv_feature_layers), but teacher {teacher.name} one of {teacher.downsample_rate}"
        )
    _check_initialisation(config, teacher)
    return config


def initialise(student: DistillerModel, twin: Encoder) -> int:
    """Copy the teacher's weights into the parts of a student whose config asks for it.

    Args:
        student: the student.
        twin: the teacher's weights in our Encoder.

    Returns:
        How many parameters were copied.
    """
    config = student.config
    prefixes: list[str] = []
    if config.init_teacher_conv_layers:
        prefixes += ["feature_extractor.", "post_extract_proj.", "layer_norm."]
    if config.init_teacher_encoder_layers:
        prefixes += ["encoder.pos_conv.", *(f"encoder.layers.{index}." for index in range(config.encoder_layers))]
    if config.init_teacher_encoder_norm:
        prefixes += ["encoder.layer_norm."]
    own: dict[str, Tensor] = student.state_dict()
    theirs = twin.state_dict()
    chosen = {name: theirs[name] for name in own if name in theirs and name.startswith(tuple(prefixes))}
    student.load_state_dict(chosen, strict=False)
    return sum(tensor.numel() for tensor in chosen.values())


def _width(given: Mapping[str, Any], teacher: TeacherInfo) -> int:
    return given.get("encoder_embed_dim", teacher.width)


def _front_end_width(given: Mapping[str, Any], architecture: EncoderConfig) -> int:
    layers = given.get("extractor_conv_feature_layers", architecture.extractor_conv_feature_layers)
    return parse_conv_layers(layers)[-1][0]


def _prediction_width(config: DistillerConfig) -> int:
    if config.out_layer_type in ("expand-last", "linear"):
        return config.final_dim
    extra = config.task_emb_size if config.task_emb_type == "concat-last" else 0
    return config.encoder_embed_dim + extra


def _check_initialisation(config: DistillerConfig, teacher: TeacherInfo) -> None:
    """Every part that is to start from the teacher must have the teacher's shape."""
    flags = {
        "init_teacher_conv_layers": ("extractor_mode", "extractor_conv_feature_layers", "conv_bias"),
        "init_teacher_encoder_layers": (
            "encoder_embed_dim",
            "encoder_ffn_embed_dim",
            "encoder_attention_heads",
            "conv_pos",
            "conv_pos_groups",
            "conv_pos_depth",
        ),
        "init_teacher_encoder_norm": ("encoder_embed_dim",),
    }
    for flag, keys in flags.items():
        if not getattr(config, flag):
            continue
        if teacher.architecture is None:
            raise ValueError(
                f"distiller.{flag}=true, but the weights of teacher {teacher.name} are not of an architecture that a "
                f"student can start from: set distiller.{flag}=false"
            )
        if flag == "init_teacher_conv_layers" and config.task_emb_type == "concat":
            raise ValueError(
                "distiller.task_emb_type='concat' widens the projection, which then cannot start from the teacher's: "
                "set distiller.init_teacher_conv_layers=false"
            )
        if flag == "init_teacher_conv_layers":
            # The projection is copied with the front end, and joins it to the Transformer.
            keys = (*keys, "encoder_embed_dim")
        for key in keys:
            ours, theirs = _comparable(config, key), _comparable(teacher.architecture, key)
            if ours != theirs:
                raise ValueError(
                    f"distiller.{key}={getattr(config, key)} does not fit teacher {teacher.name}, which has "
                    f"{getattr(teacher.architecture, key)}: leave the key out, or set distiller.{flag}=false"
                )
    if config.init_teacher_encoder_layers and config.encoder_layers > teacher.n_layers:
        raise ValueError(
            f"distiller.encoder_layers={config.encoder_layers} cannot start from teacher {teacher.name}, which has "
            f"{teacher.n_layers} layers"
        )


def _comparable(config: EncoderConfig, key: str) -> Any:
    return config.conv_layers if key == "extractor_conv_feature_layers" else getattr(config, key)
