"""From an upstream's hidden states to one feature: a learned weighted sum over the layers (arXiv 2105.01051)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Featurizer(nn.Module):
    """Weighted sum with weights that add up to one.

    Args:
        n_layers: how many hidden states there are; a single one is passed through.
        normalize: bring each frame of each layer to zero mean and unit variance before.
    """

    def __init__(self, n_layers: int, normalize: bool = False):
        super().__init__()
        self.normalize = normalize
        self.weights = nn.Parameter(torch.zeros(n_layers)) if n_layers > 1 else None

    def forward(self, hidden_states: Sequence[Tensor]) -> Tensor:
        """(B, T, D) for each layer to (B, T, D)."""
        if self.weights is None:
            return hidden_states[0]
        # Layer by layer: stacked they would be copied, and they are most of the memory of a batch.
        shares = self.weights.softmax(0)
        total = torch.zeros((), device=shares.device)
        for share, state in zip(shares, hidden_states, strict=True):
            total = total + share * (F.layer_norm(state, state.shape[-1:]) if self.normalize else state)
        return total

    def shares(self) -> list[float]:
        """What each layer counts for; they add up to one."""
        return [1.0] if self.weights is None else self.weights.detach().float().softmax(0).tolist()
