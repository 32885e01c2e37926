"""A student as a Hugging Face folder, which transformers loads as any model of its kind.

The encoder is in transformers' own form. It has no place for prediction heads, so these lie in two files beside it that
transformers does not read: with them :func:`~s3prl_distiller.upstream.distiller.student.load_student` gives the whole
student back.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from s3prl_distiller import checkpoint

from ..convert import ACTIVATIONS, to_huggingface_name
from ..model import DistillerModel
from ..model_config import DistillerConfig, EncoderConfig
from ..student import HEADS, HEADS_CONFIG, native_config

MODEL_TYPES = ("hubert", "wav2vec2", "data2vec-audio")


def to_huggingface_config(config: EncoderConfig, model_type: str | None = None) -> dict[str, Any]:
    """The ``config.json`` of an encoder.

    Args:
        config: of the encoder.
        model_type: "hubert" or "wav2vec2", which are the same architecture under two names; "data2vec-audio" is one of
            its own. None: "data2vec-audio" where it is that, "hubert" elsewhere.

    Raises:
        ValueError: transformers has no such architecture; the option that it lacks is named.
    """
    stacked = config.conv_pos_depth > 1
    model_type = model_type or ("data2vec-audio" if stacked else "hubert")
    _check(config, model_type)
    channels, kernels, strides = (list(part) for part in zip(*config.conv_layers, strict=True))
    names = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    large = config.extractor_mode == "layer_norm"
    values: dict[str, Any] = {
        "architectures": [{"hubert": "HubertModel", "wav2vec2": "Wav2Vec2Model"}.get(model_type, "Data2VecAudioModel")],
        "model_type": model_type,
        "hidden_size": config.encoder_embed_dim,
        "intermediate_size": config.encoder_ffn_embed_dim,
        "num_hidden_layers": config.encoder_layers,
        "num_attention_heads": config.encoder_attention_heads,
        "hidden_act": names.get(config.activation_fn, config.activation_fn),
        "conv_dim": channels,
        "conv_kernel": kernels,
        "conv_stride": strides,
        "conv_bias": config.conv_bias,
        "num_feat_extract_layers": len(channels),
        "feat_extract_activation": "gelu",
        "feat_extract_norm": "layer" if large else "group",
        "feat_proj_layer_norm": config.feature_layer_norm,
        "feat_proj_dropout": 0.0,
        "do_stable_layer_norm": config.layer_norm_first,
        "num_conv_pos_embeddings": config.conv_pos,
        "num_conv_pos_embedding_groups": config.conv_pos_groups,
        "hidden_dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "activation_dropout": config.activation_dropout,
        "layerdrop": config.encoder_layerdrop,
        "layer_norm_eps": 1e-5,
        # A student has seen no mask, so that it has no embedding that stands for one.
        "apply_spec_augment": False,
        "mask_time_prob": 0.0,
    }
    if stacked:
        values["num_conv_pos_embeddings"] = config.conv_pos_depth
        values["conv_pos_kernel_size"] = max(3, config.conv_pos // config.conv_pos_depth)
    return values


def _check(config: EncoderConfig, model_type: str) -> None:
    if model_type not in MODEL_TYPES:
        raise ValueError(f"model_type {model_type!r} is not one of {', '.join(MODEL_TYPES)}")
    problem = None
    if config.encoder_layers == 0:
        problem = "encoder_layers=0, and transformers' models have a Transformer"
    elif (config.conv_pos_depth > 1) != (model_type == "data2vec-audio"):
        problem = f"conv_pos_depth={config.conv_pos_depth}: stacked positions are data2vec-audio's, and only there"
    elif model_type == "data2vec-audio" and (config.extractor_mode != "layer_norm" or config.layer_norm_first):
        problem = "a front end or a place of its norms that data2vec-audio has not"
    elif model_type != "hubert" and not config.feature_layer_norm:
        problem = "feature_layer_norm=False, for which transformers has HubertModel only (--model-type hubert)"
    elif isinstance(config, DistillerConfig) and config.task_emb_type in ("add", "concat"):
        problem = f"task_emb_type={config.task_emb_type!r}: its input has a part for the task"
    if problem:
        raise ValueError(f"the student cannot be a {model_type} of transformers: it has {problem}")


def preprocessor_config(config: EncoderConfig) -> dict[str, Any]:
    """The ``preprocessor_config.json``: sampling rate, padding, and whether waveforms are normalised."""
    return {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": 16_000,
        "padding_side": "right",
        "padding_value": 0.0,
        "do_normalize": config.normalize,
        # The student has learnt with padding masked.
        "return_attention_mask": True,
    }


def to_huggingface_weights(state: Mapping[str, Tensor], config: EncoderConfig) -> dict[str, Tensor]:
    """The encoder's part of a state dict in Hugging Face's names."""
    weights = {}
    for name, tensor in state.items():
        if not is_encoder(name):
            continue
        weights[to_huggingface_name(name, config)] = tensor.detach().cpu().contiguous()
    if not any(name.startswith("feature_projection.projection.") for name in weights):
        # Where the front end is as wide as the Transformer, a student may do without; transformers' models may not.
        width = config.encoder_embed_dim
        weights["feature_projection.projection.weight"] = torch.eye(width)
        weights["feature_projection.projection.bias"] = torch.zeros(width)
    return weights


def is_encoder(name: str) -> bool:
    """Whether a student's weight of that name is the encoder's, and not a prediction head's."""
    return not name.startswith(("output_layer.", "task_embedding."))


def writers(
    model: DistillerModel, training: Mapping[str, Any], step: int, model_type: str | None = None
) -> dict[str, Any]:
    """Writers of the folder's files for :func:`s3prl_distiller.checkpoint.save_folder`.

    Raises:
        ValueError: as :func:`to_huggingface_config`.
    """
    config = to_huggingface_config(model.config, model_type)
    state = model.state_dict()
    encoder = to_huggingface_weights(state, model.config)
    heads = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items() if not is_encoder(name)}
    described = native_config(model, training, step)
    files: dict[str, Any] = {
        checkpoint.CONFIG: lambda path: checkpoint.save_json(config, path),
        "preprocessor_config.json": lambda path: checkpoint.save_json(preprocessor_config(model.config), path),
        checkpoint.WEIGHTS: lambda path: _save(encoder, path),
        HEADS_CONFIG: lambda path: checkpoint.save_json(described, path),
    }
    if heads:
        files[HEADS] = lambda path: _save(heads, path)
    return files


def _save(weights: dict[str, Tensor], path: Path) -> None:
    safetensors.torch.save_file(weights, path, metadata={"format": "pt"})
