"""Pure converters between the forms in which models of the wav2vec 2.0 family come.

Hugging Face's ``HubertModel``, ``Wav2Vec2Model``, ``UniSpeechModel``, ``UniSpeechSatModel`` and ``Data2VecAudioModel``
and fairseq's (s3prl's) models hold the same numbers under other names. Each converter takes a config and a state dict
and returns ours; equal outputs are the test.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from .frontend import format_conv_layers
from .model_config import EncoderConfig

HUGGINGFACE_TYPES = ("hubert", "wav2vec2", "unispeech", "unispeech-sat", "data2vec-audio")

ACTIVATIONS = {"gelu_new": "gelu_accurate", "silu": "swish", "relu2": "relu_squared"}
"""Hugging Face's name of an activation, and fairseq's where it is another."""

_RENAMES = [
    # Hugging Face's on the left; {} is a number. The first that matches is taken, in both directions.
    ("feature_extractor.conv_layers.{}.conv.", "feature_extractor.conv_layers.{}.0."),
    ("feature_extractor.conv_layers.{}.layer_norm.", "feature_extractor.conv_layers.{}.2."),
    ("feature_projection.layer_norm.", "layer_norm."),
    ("feature_projection.projection.", "post_extract_proj."),
    ("encoder.pos_conv_embed.layers.{}.conv.", "encoder.pos_conv.{}.0."),
    ("encoder.pos_conv_embed.conv.parametrizations.weight.original0", "encoder.pos_conv.0.weight_g"),
    ("encoder.pos_conv_embed.conv.parametrizations.weight.original1", "encoder.pos_conv.0.weight_v"),
    ("encoder.pos_conv_embed.conv.", "encoder.pos_conv.0."),
    ("encoder.layers.{}.attention.", "encoder.layers.{}.self_attn."),
    ("encoder.layers.{}.layer_norm.", "encoder.layers.{}.self_attn_layer_norm."),
    ("encoder.layers.{}.feed_forward.intermediate_dense.", "encoder.layers.{}.fc1."),
    ("encoder.layers.{}.feed_forward.output_dense.", "encoder.layers.{}.fc2."),
]
# Parts of a pre-training model, or of a fine-tuned one, that its hidden states do not pass through.
_NOT_ENCODER = re.compile(
    r"^(masked_spec_embed|mask_emb|final_proj|label_embs_concat|quantizer|project_q|project_hid|lm_head|adapter|_ema|projector|classifier|layer_weights)\b"
)


def huggingface_config(config: Mapping[str, Any], preprocessor: Mapping[str, Any] | None = None) -> EncoderConfig:
    """The encoder that a Hugging Face ``config.json`` describes.

    Args:
        config: its content.
        preprocessor: content of ``preprocessor_config.json``, which says whether waveforms are normalised.

    Raises:
        ValueError: the architecture is not one of :data:`HUGGINGFACE_TYPES`, or has a part that ours lacks.
    """
    kind = config.get("model_type")
    if kind not in HUGGINGFACE_TYPES:
        raise ValueError(f"model_type {kind!r} is not one of {', '.join(HUGGINGFACE_TYPES)}")
    if config.get("feat_extract_activation", "gelu") != "gelu":
        raise ValueError(f"feat_extract_activation {config['feat_extract_activation']!r} is not supported, only gelu")
    if config.get("layer_norm_eps", 1e-5) != 1e-5:
        raise ValueError(f"layer_norm_eps {config['layer_norm_eps']} is not supported, only 1e-5")
    if config.get("add_adapter") or config.get("conv_pos_batch_norm") or config.get("adapter_attn_dim"):
        raise ValueError("adapters and batch-normalised positional convolutions are not supported")
    depth, kernel = 1, config.get("num_conv_pos_embeddings", 128)
    if kind == "data2vec-audio":
        depth, each = config["num_conv_pos_embeddings"], config.get("conv_pos_kernel_size", 19)
        kernel = depth * each
    # Whatever their configs say, transformers' data2vec-audio models are built in one way.
    layer_norms = kind == "data2vec-audio" or config.get("feat_extract_norm", "group") == "layer"
    activation = str(config.get("hidden_act", "gelu"))
    layers = zip(config["conv_dim"], config["conv_kernel"], config["conv_stride"], strict=True)
    return EncoderConfig(
        extractor_mode="layer_norm" if layer_norms else "default",
        extractor_conv_feature_layers=format_conv_layers(list(layers)),
        conv_bias=bool(config.get("conv_bias", False)),
        feature_layer_norm=bool(config.get("feat_proj_layer_norm", True)),
        always_project=True,
        normalize=bool((preprocessor or {}).get("do_normalize", False)),
        normalize_eps=1e-7,
        conv_pos=kernel,
        conv_pos_groups=config.get("num_conv_pos_embedding_groups", 16),
        conv_pos_depth=depth,
        encoder_layers=config["num_hidden_layers"],
        encoder_embed_dim=config["hidden_size"],
        encoder_ffn_embed_dim=config["intermediate_size"],
        encoder_attention_heads=config["num_attention_heads"],
        activation_fn=ACTIVATIONS.get(activation, activation),
        layer_norm_first=bool(config.get("do_stable_layer_norm", False)) and kind != "data2vec-audio",
        dropout=config.get("hidden_dropout", 0.1),
        attention_dropout=config.get("attention_dropout", 0.1),
        activation_dropout=config.get("activation_dropout", 0.1),
        encoder_layerdrop=config.get("layerdrop", 0.0),
    )


def huggingface_weights(state: Mapping[str, Tensor], config: EncoderConfig) -> dict[str, Tensor]:
    """Rename a Hugging Face state dict to ours, leaving out what hidden states do not pass through."""
    renamed = {}
    for name, tensor in state.items():
        # A model saved with a head on top has the encoder one level down.
        name = re.sub(r"^(hubert|wav2vec2|unispeech|unispeech_sat|data2vec_audio)\.", "", name)
        name = _renamed(name, _RENAMES)
        if config.extractor_mode == "layer_norm":
            name = re.sub(r"^(feature_extractor\.conv_layers\.\d+\.2)\.(weight|bias)$", r"\1.1.\2", name)
        renamed[name] = tensor
    return encoder_weights(renamed)


def _renamed(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    for old, new in pairs:
        found = re.match(re.escape(old).replace(r"\{\}", r"(\d+)"), name)
        if found:
            return new.format(*found.groups()) + name[found.end() :]
    return name


def to_huggingface_name(name: str, config: EncoderConfig) -> str:
    """Our name of an encoder's weight in Hugging Face's words: the reverse of :func:`huggingface_weights`."""
    if config.extractor_mode == "layer_norm":
        name = re.sub(r"^(feature_extractor\.conv_layers\.\d+\.2)\.1\.", r"\1.", name)
    return _renamed(name, ((ours, theirs) for theirs, ours in _RENAMES))


def encoder_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in fairseq's names without what hidden states do not pass through."""
    return {name: tensor for name, tensor in state.items() if not _NOT_ENCODER.match(name)}


def fairseq_config(model: nn.Module, normalize: bool) -> EncoderConfig:
    """The encoder inside s3prl's ``HubertModel``, ``Wav2Vec2Model`` or ``Data2VecAudioModel``, read off its modules.

    The modules are asked rather than a config because ``HubertModel`` keeps none.

    Args:
        model: the model.
        normalize: whether its expert normalises waveforms.

    Raises:
        AttributeError, TypeError: the model is built otherwise (a conformer, say).
    """
    m: Any = model
    blocks = m.feature_extractor.conv_layers
    encoder, first = m.encoder, m.encoder.layers[0]
    positions = encoder.pos_conv
    stacked = isinstance(positions[0], nn.Sequential)
    conv = positions[0][0] if stacked else positions[0]
    depth = len(positions) if stacked else 1
    mode = "layer_norm" if isinstance(blocks[0][2], nn.Sequential) else "default"
    return EncoderConfig(
        extractor_mode=mode,
        extractor_conv_feature_layers=format_conv_layers(
            [(block[0].out_channels, block[0].kernel_size[0], block[0].stride[0]) for block in blocks]
        ),
        conv_bias=blocks[0][0].bias is not None,
        feature_layer_norm=True,
        always_project=m.post_extract_proj is not None,
        normalize=normalize,
        normalize_eps=1e-5,
        conv_pos=conv.kernel_size[0] * depth,
        conv_pos_groups=conv.groups,
        conv_pos_depth=depth,
        encoder_layers=len(encoder.layers),
        encoder_embed_dim=encoder.embedding_dim,
        encoder_ffn_embed_dim=first.fc1.out_features,
        encoder_attention_heads=first.self_attn.num_heads,
        layer_norm_first=bool(encoder.layer_norm_first),
    )
