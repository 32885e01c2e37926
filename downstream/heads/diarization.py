"""Who speaks in each frame: a recurrent network with an output for each speaker, and a loss blind to their order."""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .lstm import LSTM

MOST_SPEAKERS = 6
"""All orders of the speakers are tried, and there are 720 of six."""


class DiarizationHead(nn.Module):
    """LSTM and a linear layer; names of weights are s3prl's.

    Args:
        width: of the features.
        layers: of the LSTM; 0: only the linear layer.
    """

    def __init__(self, width: int, speakers: int, hidden_size: int = 512, layers: int = 1):
        super().__init__()
        self.rnn = LSTM(width, hidden_size, layers) if layers else None
        self.linear = nn.Linear(hidden_size if layers else width, speakers)

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, T, D) to logits (B, T, speakers). A frame depends on those before it only."""
        hidden = features.float()
        if self.rnn is not None:
            hidden = self.rnn(hidden)
        return self.linear(hidden).float()


def permutation_invariant_loss(logits: Tensor, labels: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy, mean over all frames and speakers, with each utterance's speakers in their best order.

    Args:
        logits: (B, T, N).
        labels: (B, T, N) of 0 and 1.
        lengths: (B,) frames that count.

    Returns:
        The loss, and the labels in the order that is best for each utterance, (B, T, N).
    """
    count = logits.shape[2]
    orders = torch.tensor(list(permutations(range(count))), device=logits.device)
    lengths = lengths.to(logits.device)
    mask = (torch.arange(logits.shape[1], device=logits.device) < lengths[:, None])[..., None, None]
    # As products and sums, not as a matrix product, which autocast would round to half precision.
    shared = functional.softplus(logits)[..., None] - logits[..., None] * labels[:, :, None]
    pairs = (shared * mask).sum(1)  # of output i with speaker j, (B, N, N)
    losses = pairs[:, torch.arange(count, device=logits.device), orders].mean(2)  # (B, orders)
    least, best = losses.min(1)
    order = orders[best][:, None].expand(-1, labels.shape[1], -1)
    return least.sum() / lengths.sum(), labels.gather(2, order)


def fit_frames(features: Tensor, lengths: Tensor, frames: Tensor) -> Tensor:
    """Each utterance's features cut to a number of frames, or its last one repeated, as s3prl has it.

    Args:
        features: (B, T, D).
        lengths: (B,) frames of each that are there.
        frames: (B,) frames of each that are wanted.

    Returns:
        (B, max of ``frames``, D), arbitrary after each utterance's end.
    """
    place = torch.arange(max(int(frames.max()), 1)).minimum(lengths[:, None] - 1).clamp(min=0).to(features.device)
    return features.gather(1, place[..., None].expand(-1, -1, features.shape[2]))
