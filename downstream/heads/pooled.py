"""The head of utterance classification: a projection, the mean over an utterance's frames, one score a class."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PooledClassifier(nn.Module):
    """Linear, mean over time, linear: SUPERB's head for KS, IC, SID and ER.

    Args:
        width: of the features, D.
        classes: how many scores to give, C.
        hidden: width between the two.
    """

    def __init__(self, width: int, classes: int, hidden: int = 256):
        super().__init__()
        self.projector = nn.Linear(width, hidden)
        self.linear = nn.Linear(hidden, classes)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Scores before the softmax.

        Args:
            features: (B, T, D).
            lengths: (B,) frames of each; what comes after them has no influence.

        Returns:
            (B, C), in the weights' own precision also under autocast: bfloat16 would give close classes equal scores.
        """
        with torch.autocast(features.device.type, enabled=False):
            # The mean commutes with the projection; taken first, the projection costs one frame an utterance.
            pooled = mean_over_time(features.to(self.projector.weight.dtype), lengths)
            return self.linear(self.projector(pooled))


def mean_over_time(features: Tensor, lengths: Tensor) -> Tensor:
    """Mean of the first ``lengths`` frames.

    Args:
        features: (B, T, D).
        lengths: (B,), each at least 1.

    Returns:
        (B, D).
    """
    lengths = lengths.to(features.device)
    padding = torch.arange(features.shape[1], device=features.device) >= lengths[:, None]
    return features.masked_fill(padding[..., None], 0).sum(1) / lengths[:, None]
