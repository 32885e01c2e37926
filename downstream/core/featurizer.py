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


def featurize(featurizers: Sequence[Featurizer], hidden_states: Sequence[Tensor] | Tensor) -> Tensor:
    """The features of several featurizers of the same hidden states, in one product.

    Args:
        hidden_states: (B, T, D) for each layer, in a sequence or one tensor.

    Returns:
        (featurizers, B, T, D).
    """
    weights: list[Tensor] = [featurizer.weights for featurizer in featurizers if featurizer.weights is not None]
    if not weights:
        return hidden_states[0].expand(len(featurizers), *hidden_states[0].shape)
    states = hidden_states if isinstance(hidden_states, Tensor) else torch.stack(list(hidden_states))
    if featurizers[0].normalize:
        states = F.layer_norm(states, states.shape[-1:])
    # In half precision, as autocast would have it, layers that count for little would be lost.
    with torch.autocast(states.device.type, enabled=False):
        shares = torch.stack(weights).softmax(1)
        return (shares @ states.flatten(1)).unflatten(1, states.shape[1:])
