"""Additive-margin softmax (arXiv 1801.05599): classes told apart by angle, the right one handicapped by a margin."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AMSoftmax(nn.Module):
    """
    Args:
        size: of the vectors.
        classes: how many there are.
        scale: of the cosines before the softmax.
        margin: taken off the cosine of the right class.
    """

    def __init__(self, size: int, classes: int, scale: float = 30.0, margin: float = 0.4):
        super().__init__()
        self.scale, self.margin = scale, margin
        self.weight = nn.Parameter(torch.empty(size, classes))
        nn.init.xavier_normal_(self.weight)

    def forward(self, vectors: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss over (B, size) vectors of the classes ``labels`` (B,), and the cosines (B, classes)."""
        cosines = F.normalize(vectors, dim=1) @ F.normalize(self.weight, dim=0)
        handicap = F.one_hot(labels, cosines.shape[1]) * self.margin
        return F.cross_entropy(self.scale * (cosines - handicap), labels), cosines
