"""A student made for its teacher: its config from what is given and what the teacher is."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from .frontend import parse_conv_layers
from .initialise import check_initialisation
from .model_config import DistillerConfig, EncoderConfig
from .teacher import TeacherInfo

log = logging.getLogger(__name__)

# What a student takes over from its teacher unless its config says otherwise: shape, norm placement, biases. How many
# layers it has is the recipe's affair.
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


def derive_student(given: Mapping[str, Any], teacher: TeacherInfo, initialised: bool = True) -> DistillerConfig:
    """Complete a student's config from its teacher, and check that the two fit.

    Where neither ``pred_layer_id`` nor ``n_tasks`` is given, what is predicted follows the teacher's depth
    (:func:`_targets`). Where only another width is given, heads keep the teacher's size as far as they can, and the
    feed-forward blocks its proportion.

    Args:
        given: the keys of section ``distiller`` that a file or an override sets.
        teacher: what the teacher was found to be.
        initialised: whether the student starts from the teacher, and not from another student's weights.

    Raises:
        ValueError: the teacher lacks a layer that is to be predicted, or a width or frame rate does not fit.
    """
    values: dict[str, Any] = {"final_dim": teacher.width, "normalize": teacher.normalize}
    if teacher.architecture is not None:
        values |= {key: getattr(teacher.architecture, key) for key in _FROM_TEACHER}
        values |= _in_proportion(given, teacher.architecture)
        if values["always_project"] and _front_end_width(given, teacher.architecture) != _width(given, teacher):
            values["always_project"] = False  # there is a projection anyway, and s3prl knows no such key
    if not (values.get("normalize") or given.get("normalize")):
        values.pop("normalize_eps", None)  # says nothing then
    if "pred_layer_id" in given:
        if not given["pred_layer_id"]:
            raise ValueError("distiller.pred_layer_id is empty: name at least one layer of the teacher")
        values["n_tasks"] = len(given["pred_layer_id"])
    elif "n_tasks" not in given:
        values |= _targets({**values, **given}, teacher)
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
            f"(distiller.extractor_conv_feature_layers), but teacher {teacher.name} one of {teacher.downsample_rate}: "
            "give the student a front end whose strides multiply to that, or take another teacher"
        )
    if initialised:
        check_initialisation(config, teacher)
    if not {"pred_layer_id", "n_tasks"} & given.keys():
        log.info(
            "The student predicts layers %s of the %d of teacher %s, at even distances as DistilHuBERT's 4, 8, 12 of "
            "12: distiller.pred_layer_id names others",
            ", ".join(map(str, config.targets)),
            teacher.n_layers,
            teacher.name,
        )
    return config


def evenly_spaced(n_layers: int, count: int) -> list[int]:
    """``count`` of a teacher's layers at even distances, its last among them; fewer where it has fewer.

    DistilHuBERT (arXiv 2110.01900) predicts layers 4, 8 and 12 of 12: a third, two thirds and all of the depth.
    """
    # Halves are rounded up, and not to even numbers.
    return sorted({max((2 * n_layers * part + count) // (2 * count), min(1, n_layers)) for part in range(1, count + 1)})


def _targets(values: Mapping[str, Any], teacher: TeacherInfo) -> dict[str, Any]:
    """What is predicted where nothing is said of it."""
    kind = values.get("task_emb_type", "expand-last")
    if kind not in ("expand-last", "self-hidden"):
        # These predict layers 1 ... n_tasks, or layer n_tasks: all, or the last.
        return {"n_tasks": teacher.n_layers}
    count = 3 if kind == "expand-last" else values.get("encoder_layers", 1) + 1
    layers = evenly_spaced(teacher.n_layers, count)
    return {"pred_layer_id": layers, "n_tasks": len(layers)}


def _in_proportion(given: Mapping[str, Any], teacher: EncoderConfig) -> dict[str, Any]:
    """Heads and feed-forward units for a width other than the teacher's; what is given comes over them."""
    width, theirs = given.get("encoder_embed_dim", teacher.encoder_embed_dim), teacher.encoder_embed_dim
    if width == theirs or width < 1:
        return {}
    values = {"encoder_ffn_embed_dim": max(1, teacher.encoder_ffn_embed_dim * width // theirs)}
    head = theirs // teacher.encoder_attention_heads
    if width % head == 0:
        values["encoder_attention_heads"] = width // head
    return values


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
