"""The x-vector of Snyder et al. (2018) as SUPERB has it: linear, five time-delay layers, statistics, two linear."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_LAYERS = ((5, 1), (3, 2), (3, 3), (1, 1), (1, 1))
"""Context in frames and dilation of each time-delay layer; the last is the wide one."""

_CONTEXT = sum((context - 1) * dilation for context, dilation in _LAYERS)

MIN_FRAMES = _CONTEXT + 2
"""What the context of the layers takes away, and two frames for a standard deviation."""


class XVector(nn.Module):
    """From frames of any number to one vector.

    Args:
        width: of the features.
        size: of all layers but the widest, and of the vector.
        pooled: width of the frames that are pooled.
    """

    def __init__(self, width: int, size: int = 512, pooled: int = 1500):
        super().__init__()
        self.projector = nn.Linear(width, size)
        widths = [size] * len(_LAYERS) + [pooled]
        self.tdnn = nn.Sequential(
            *(
                layer
                for (context, dilation), before, after in zip(_LAYERS, widths, widths[1:], strict=False)
                for layer in (nn.Conv1d(before, after, context, dilation=dilation), nn.ReLU())
            )
        )
        self.first = nn.Linear(2 * pooled, size)
        self.second = nn.Linear(size, size)

    def embed(self, features: Tensor, lengths: Tensor | Sequence[int]) -> Tensor:
        """The embedding that trials compare: the first segment-level layer's output, rectified, (B, size).

        Args:
            features: (B, T, width); what lies after an utterance's end has no effect.
            lengths: (B,) frames of each, on the CPU.

        Raises:
            ValueError: an utterance has fewer than ``MIN_FRAMES`` frames.
        """
        # Only frames whose whole context lies within the utterance count: none of them has seen padding.
        if torch.compiler.is_exporting():
            assert isinstance(lengths, Tensor)
            pooled = _pool_by_mask(self._states(features), lengths - _CONTEXT)
        else:
            frames = [int(length) for length in lengths]
            if min(frames) < MIN_FRAMES:
                raise ValueError(f"an x-vector needs {MIN_FRAMES} frames of speech or more, and here are {min(frames)}")
            pooled = _pool(self._states(features), [count - _CONTEXT for count in frames])
        return torch.relu(self.first(pooled))

    def _states(self, features: Tensor) -> Tensor:
        """(B, T, width) to what is pooled (B, pooled, T - _CONTEXT)."""
        return self.tdnn(self.projector(features).transpose(1, 2))

    def forward(self, features: Tensor, lengths: Tensor | Sequence[int]) -> Tensor:
        """What the loss is computed on, (B, size): the embedding through one more layer. Arguments as ``embed``."""
        return torch.relu(self.second(self.embed(features, lengths)))


def _pool(states: Tensor, lengths: Sequence[int]) -> Tensor:
    """Mean and standard deviation of the first ``lengths`` frames of (B, D, T), side by side (B, 2 D)."""
    pooled = [torch.std_mean(state[:, :length], dim=1) for state, length in zip(states, lengths, strict=True)]
    return torch.stack([torch.cat([mean, std]) for std, mean in pooled])


def _pool_by_mask(states: Tensor, lengths: Tensor) -> Tensor:
    """As ``_pool``, of any number of utterances at once and to rounding: a graph has no loops."""
    mask = (torch.arange(states.shape[2], device=states.device) < lengths[:, None])[:, None]
    count = lengths[:, None].to(states.dtype)
    mean = states.masked_fill(~mask, 0).sum(2) / count
    squares = (states - mean[..., None]).masked_fill(~mask, 0).square().sum(2)
    return torch.cat([mean, (squares / (count - 1)).sqrt()], 1)
