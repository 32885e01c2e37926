"""A teacher's twin: its weights in our Encoder, which is faster than the hub's model and padding-exact.

Nothing is taken on trust: a twin is used only after its hidden states were compared with the hub's own. WavLM has no
twin, but all that a student can start from has a place in our Encoder.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from .convert import encoder_weights, fairseq_config, huggingface_config, huggingface_weights
from .model import DistillerModel, Encoder
from .model_config import EncoderConfig

log = logging.getLogger(__name__)

# Relative error of a layer that rounding in float32 stays well under, and any other architecture far above.
TOLERANCE = 1e-3
# WavLM's gated attention bias by relative position, in s3prl's and Hugging Face's names: our Encoder has none.
_RELATIVE_POSITIONS = re.compile(
    r"encoder\.layers\.\d+\.(self_attn|attention)\."
    r"(relative_attention_bias|grep_linear|grep_a|rel_attn_embed|gru_rel_pos_linear|gru_rel_pos_const)\b"
)


def build_twin(expert: nn.Module) -> Encoder | None:
    """Pour the weights of a hub expert of the wav2vec 2.0 family into our Encoder.

    Returns None where the expert holds another architecture; the reason is logged. A student of ours needs none.
    """
    model: Any = getattr(expert, "model", None)
    if not isinstance(model, nn.Module) or any(isinstance(part, Encoder) for part in model.modules()):
        return None
    return _pour(expert, model, model.state_dict())


def build_start(expert: nn.Module) -> tuple[Encoder, int] | None:
    """What a student can start from in a teacher that has no twin.

    - A WavLM (arXiv 2110.13900, section III): front end, projection, positional convolution and layers are those of
      HuBERT but for an attention bias by relative position, gated by the frame. That is left out; a student learns
      without it.
    - A student of ours, as a teacher for another: all but its prediction heads.

    Returns:
        Those weights in our Encoder, and how many parameters of a WavLM were left out; None for any other teacher.
    """
    model: Any = getattr(expert, "model", None)
    if isinstance(model, DistillerModel):
        config = EncoderConfig(**{field.name: getattr(model.config, field.name) for field in fields(EncoderConfig)})
        start = Encoder(_without_dropout(config))
        start.load_state_dict({name: model.state_dict()[name] for name in start.state_dict()})
        return start.eval().requires_grad_(False), 0
    if not isinstance(model, nn.Module):
        return None
    state = model.state_dict()
    left = {name: tensor for name, tensor in state.items() if _RELATIVE_POSITIONS.match(name)}
    if not left:
        return None
    poured = _pour(expert, model, {name: tensor for name, tensor in state.items() if name not in left})
    return None if poured is None else (poured, sum(tensor.numel() for tensor in left.values()))


def _pour(expert: Any, model: Any, state: Mapping[str, Tensor]) -> Encoder | None:
    try:
        config, weights = _read(expert, model, state)
        twin = Encoder(_without_dropout(config))
        twin.load_state_dict(weights)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        # Whatever is built otherwise shows in one of these ways; the hub's own forward then serves.
        log.info("The teacher %s has no twin: %s", type(model).__name__, str(error).split("\n")[0])
        return None
    return twin.eval().requires_grad_(False)


def _read(expert: Any, model: Any, state: Mapping[str, Tensor]) -> tuple[EncoderConfig, dict[str, Tensor]]:
    if hasattr(model, "config") and hasattr(model.config, "to_dict"):
        extractor = getattr(expert, "extracter", None)
        values = model.config.to_dict()
        if values.get("model_type") == "wavlm":
            values["model_type"] = "wav2vec2"  # what it is but for relative positions, whose weights would not fit
        config = huggingface_config(values, {"do_normalize": getattr(extractor, "do_normalize", False)})
        weights = huggingface_weights(state, config)
    else:
        config = fairseq_config(model, hub_normalizes(expert))
        weights = encoder_weights(state)
    return config, {name: tensor.float() for name, tensor in weights.items()}


def hub_normalizes(expert: Any) -> bool:
    """Whether a hub expert brings waveforms to zero mean and unit variance; s3prl keeps the answer in many places."""
    if hasattr(expert, "wav_normalize"):
        return bool(expert.wav_normalize)
    for owner in ("task_cfg", "cfg"):
        if hasattr(getattr(expert, owner, None), "normalize"):
            return bool(getattr(expert, owner).normalize)
    return bool(getattr(getattr(expert, "extracter", None), "do_normalize", False))


def _without_dropout(config: EncoderConfig) -> EncoderConfig:
    config.dropout = config.attention_dropout = config.activation_dropout = config.encoder_layerdrop = 0.0
    return config


@torch.no_grad()
def mismatch(twin: Encoder, expert: nn.Module, wavs: Sequence[Tensor], first: int | None = None) -> str | None:
    """Compare a twin with the hub's own forward, one utterance at a time since the hub's batches feel their padding.

    Args:
        wavs: waveforms (samples,) at 16 kHz on the device of both models.
        first: compare only so many of the hidden states, the first ones.

    Returns:
        What differs, or None where every hidden state of every utterance agrees within :data:`TOLERANCE`.
    """
    # TensorFloat-32 rounds to 10 bits and would hide a real difference among its own.
    with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
        for wav in wavs:
            theirs = expert([wav])["hidden_states"]
            ours = twin(wav[None], torch.tensor([len(wav)])).hidden_states
            if len(ours) != len(theirs):
                return f"{len(ours)} hidden states and not {len(theirs)}"
            for layer, (a, b) in enumerate(zip(ours[:first], theirs[:first], strict=True)):
                if a.shape != b.shape:
                    return f"hidden state {layer} of shape {tuple(a.shape)} and not {tuple(b.shape)}"
                error = float((a - b).norm() / b.norm().clamp_min(1e-12))
                if not error <= TOLERANCE:
                    return f"hidden state {layer} is off by {error:.2g} of its size"
    return None
