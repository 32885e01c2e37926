"""LSTMs as one operation of a graph, in the layout of ONNX's own operator."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from .lstm import LSTM, lstm_layer

_TO_ONNX = (0, 3, 1, 2)
"""Gates of ONNX (input, output, forget, cell) among those of torch (input, forget, cell, output)."""
_TO_TORCH = (0, 2, 3, 1)


def fold_lstms(head: nn.Module) -> nn.Module:
    """Replace, in place, each LSTM below ``head`` by layers that ``torch.export`` takes for one operation each.

    torch would write an LSTM out frame by frame, as many as the example has.
    """
    for parent in list(head.modules()):
        for name, child in parent.named_children():
            if isinstance(child, LSTM):
                setattr(parent, name, FoldedLSTM(child))
    return head


@torch.library.custom_op("s3prl_distiller::lstm", mutates_args=())
def padded_lstm(features: Tensor, lengths: Tensor, inputs: Tensor, recurrent: Tensor, biases: Tensor) -> Tensor:
    """One layer, in one direction or both, over padded sequences.

    Args:
        features: (B, T, I).
        lengths: (B,) frames of each; what comes after them has no influence, and gives zeros.
        inputs: ``W`` of ONNX's operator, (directions, 4 H, I).
        recurrent: ``R``, (directions, 4 H, H).
        biases: ``B``, (directions, 8 H), those of inputs before the recurrent ones.

    Returns:
        (B, T, directions * H).
    """
    weights = []
    for w, r, b in zip(inputs, recurrent, biases, strict=True):
        weights += [_gates(each, _TO_TORCH)[None] for each in (w, r, *b.chunk(2))]
    return lstm_layer(lengths.cpu(), features[None], *weights)[0]


@padded_lstm.register_fake
def _(features: Tensor, lengths: Tensor, inputs: Tensor, recurrent: Tensor, biases: Tensor) -> Tensor:
    return features.new_empty(*features.shape[:2], len(recurrent) * recurrent.shape[2])


class FoldedLSTM(nn.Module):
    """An LSTM's layers, their weights in the layout of ONNX."""

    def __init__(self, lstm: LSTM):
        super().__init__()
        directions = 2 if lstm.bidirectional else 1
        self.layers = nn.ModuleList()
        for first in range(0, len(lstm.all_weights), directions):
            names = ("inputs", "recurrent", "of_inputs", "of_recurrent")
            both = zip(*lstm.all_weights[first : first + directions], strict=True)
            each = {
                name: torch.stack([_gates(weight.detach(), _TO_ONNX) for weight in weights])
                for name, weights in zip(names, both, strict=True)
            }
            each["biases"] = torch.cat([each.pop("of_inputs"), each.pop("of_recurrent")], 1)
            self.layers.append(nn.ParameterDict({name: nn.Parameter(weight) for name, weight in each.items()}))

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, I) to (B, T, directions * H); lengths: (B,)."""
        for layer in self.layers:
            weights = cast(nn.ParameterDict, layer)
            features = padded_lstm(features, lengths, weights["inputs"], weights["recurrent"], weights["biases"])
        return features


def _gates(weight: Tensor, order: tuple[int, ...]) -> Tensor:
    """Rows of (4 H, ...), gate by gate, in another order."""
    gates = weight.chunk(4)
    return torch.cat([gates[place] for place in order])
