"""What a student is trained on: how far its predictions are from the teacher's hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class DistillationLoss(NamedTuple):
    """The loss to minimise, and its parts by name, detached, for the log."""

    total: Tensor
    parts: dict[str, Tensor]


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over utterances and frames of content.

    Args:
        values: (B, ..., T), finite.
        mask: (B, T) bool, True for content; None where nothing is padded.

    Returns:
        values without its first and last dimension.
    """
    if mask is None:
        return values.mean((0, -1))
    content = mask.view(mask.shape[0], *[1] * (values.dim() - 2), mask.shape[1])
    return (values * content).sum((0, -1)) / content.sum()


def distillation_loss(
    predictions: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    layers: Sequence[int],
    *,
    loss_type: str = "l1",
    cosine_weight: float = 1.0,
    features: Tensor | None = None,
    feature_penalty: float = 0.0,
) -> DistillationLoss:
    """Distance of predicted from true hidden states: L1 (or L2) and ``-log sigmoid`` of the cosine similarity.

    Equations 1 and 2 of DistilHuBERT (arXiv 2110.01900), averaged over layers and over frames that hold content.

    Args:
        predictions: (B, N, T, D).
        targets: (B, N, T, D).
        mask: (B, T) bool, True for content; None counts every frame.
        layers: the teacher layer of each of the N predictions, for the names of the parts.
        loss_type: "l1" or "l2".
        cosine_weight: lambda of the paper.
        features: (B, T, C) output of the front end, for the penalty.
        feature_penalty: weight of their mean square.
    """
    predictions, targets = predictions.float(), targets.float()
    if mask is not None:
        # Nothing that stands in padding, not even an overflow, may reach the loss or its gradient.
        padding = ~mask[:, None, :, None]
        predictions, targets = predictions.masked_fill(padding, 0), targets.masked_fill(padding, 0)
    difference = predictions - targets
    distance = difference.abs() if loss_type == "l1" else difference.square()
    reconstruction = masked_mean(distance.mean(-1), mask)
    cosine = F.cosine_similarity(predictions, targets, dim=-1)
    similarity = masked_mean(-F.logsigmoid(cosine), mask)
    total = reconstruction.mean() + cosine_weight * similarity.mean()
    parts = {}
    for index, layer in enumerate(layers):
        parts[f"{loss_type}_layer{layer}"] = reconstruction[index]
        parts[f"cosine_layer{layer}"] = masked_mean(cosine[:, index], mask)
    if features is not None and feature_penalty > 0:
        features = features.float() if mask is None else features.float().masked_fill(~mask[..., None], 0)
        penalty = masked_mean(features.square().mean(-1), mask)
        total = total + feature_penalty * penalty
        parts["feature_penalty"] = penalty
    return DistillationLoss(total, {name: value.detach() for name, value in parts.items()})
