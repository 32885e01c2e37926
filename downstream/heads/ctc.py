"""Heads that give the logits of each class at each frame: SUPERB's for ASR and slot filling, and for phones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .lstm import LSTM
from .stacked import at_once, is_stacked


class RecurrentHead(nn.Module):
    """Linear, bidirectional LSTMs with dropout after each, Linear.

    Args:
        width: of the features.
        classes: how many, with the blank.
        project: outputs of the first Linear.
        hidden: units of each LSTM in each direction.
        layers: how many LSTMs.
    """

    def __init__(
        self, width: int, classes: int, project: int = 1024, hidden: int = 1024, layers: int = 2, dropout: float = 0.2
    ):
        super().__init__()
        self.projector = nn.Linear(width, project)
        # One by one: an LSTM of several layers has no dropout after its last one, s3prl's head has.
        self.rnns = nn.ModuleList(
            LSTM(project if index == 0 else 2 * hidden, hidden, bidirectional=True) for index in range(layers)
        )
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(2 * hidden if layers else project, classes)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, width) to logits (B, T, classes), which do not depend on what is after an utterance's end.

        Args:
            lengths: (B,) frames of each, on the CPU.
        """
        hidden = self.projector(features)
        for rnn in self.rnns:
            hidden = self.dropout(rnn(hidden, lengths))
        return self.linear(hidden)


class LinearHead(nn.Module):
    """Two Linears with nothing between them: SUPERB's phone recogniser.

    Args:
        width: of the features.
        classes: how many, with the blank.
        project: outputs of the first Linear.
    """

    def __init__(self, width: int, classes: int, project: int = 256):
        super().__init__()
        self.projector = nn.Linear(width, project)
        self.linear = nn.Linear(project, classes)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, width) to logits (B, T, classes); ``lengths`` do not matter."""
        return self.linear(self.projector(features))


def ctc_loss(log_probs: Tensor, lengths: Tensor, targets: Sequence[Tensor], blank: int) -> Tensor:
    """CTC per token of each target, averaged over targets, as torch's "mean"; zero where a target does not fit.

    Args:
        log_probs: (B, T, C).
        lengths: (B,) frames of each, on the CPU.
        targets: (U,) classes of each.
        blank: the class of no token.
    """
    loss = partial(_ctc_loss, lengths, targets, blank)
    return at_once(loss, log_probs) if is_stacked() else loss(log_probs[None])[0]


def _ctc_loss(lengths: Tensor, targets: Sequence[Tensor], blank: int, log_probs: Tensor) -> Tensor:
    """The loss of each of K heads, (K,), from (K, B, T, C): one batch of K * B utterances."""
    heads = len(log_probs)
    sizes = torch.tensor([len(target) for target in targets])
    tokens = torch.cat(list(targets)).to(log_probs.device)
    losses = F.ctc_loss(
        log_probs.flatten(0, 1).transpose(0, 1),
        tokens.repeat(heads),
        lengths.repeat(heads),
        sizes.repeat(heads),
        blank=blank,
        reduction="none",
        zero_infinity=True,
    )
    return (losses.view(heads, -1) / sizes.clamp(min=1).to(losses.device)).mean(1)
