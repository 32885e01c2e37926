"""Heads that give the logits of each class at each frame: SUPERB's for ASR and slot filling, and for phones."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


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
            nn.LSTM(project if index == 0 else 2 * hidden, hidden, bidirectional=True, batch_first=True)
            for index in range(layers)
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
            packed = pack_padded_sequence(hidden, lengths, batch_first=True, enforce_sorted=False)
            hidden, _ = pad_packed_sequence(rnn(packed)[0], batch_first=True, total_length=features.shape[1])
            hidden = self.dropout(hidden)
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
