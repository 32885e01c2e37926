"""A small student, for tests of the fast path and of inference."""

from __future__ import annotations

from typing import Any

import torch
from s3prl_distiller.upstream.distiller.model import DistillerModel
from s3prl_distiller.upstream.distiller.model_config import DistillerConfig

SMALL: dict[str, Any] = {
    "encoder_layers": 2,
    "encoder_embed_dim": 48,
    "encoder_ffn_embed_dim": 64,
    "encoder_attention_heads": 4,
    "final_dim": 48,
    "extractor_conv_feature_layers": "[(32,10,5)] + [(32,3,2)] * 4 + [(32,2,2)] * 2",
    "n_tasks": 3,
    "task_emb_type": "expand-last",
    "out_layer_type": "expand-last",
}


def student(**options: Any) -> DistillerModel:
    """With these options over those of :data:`SMALL`; always the same weights for the same options."""
    torch.manual_seed(0)
    model = DistillerModel(DistillerConfig.from_mapping({**SMALL, **options})).eval()
    for parameter in model.parameters():  # biases and scales are born as zeros and ones, which hide mistakes
        parameter.data += 0.02 * torch.randn_like(parameter)
    return model
