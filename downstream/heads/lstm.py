"""An LSTM of padded sequences without packing, of one head or of several that are trained side by side."""

from __future__ import annotations

import warnings
from functools import cache, partial
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .stacked import at_once, is_stacked

_CUDNN_MULTIPLE = 128


class LSTM(nn.LSTM):
    """As ``nn.LSTM`` of packed sequences, the names of its weights too.

    Packing is slow: cuDNN has its fast kernels for unpacked sequences only, and on a CPU the backward pass of a packed
    sequence takes time that grows with the square of its length.

    Args:
        size: of the inputs.
        hidden: units in each direction.
        layers: one after the other, with nothing between them.
    """

    def __init__(self, size: int, hidden: int, layers: int = 1, bidirectional: bool = False):
        super().__init__(size, hidden, layers, batch_first=True, bidirectional=bidirectional)

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, T, size) to hidden states (B, T, directions * hidden).

        Args:
            lengths: (B,) frames of each, on the CPU: what comes after them has no influence, and gives zeros. None: all
                frames count.
        """
        directions = 2 if self.bidirectional else 1
        layer = partial(lstm_layer, lengths)
        for first in range(0, len(self.all_weights), directions):
            weights = list(chain.from_iterable(self.all_weights[first : first + directions]))
            if is_stacked():
                features = at_once(layer, features, *weights)
            else:
                features = layer(features[None], *(weight[None] for weight in weights))[0]
        return features


def lstm_layer(lengths: Tensor | None, features: Tensor, *weights: Tensor) -> Tensor:
    """One layer of K heads, (K, B, T, I) to (K, B, T, directions * H).

    Each head and each direction is an LSTM of its own, in one direction and over unpacked sequences. cuDNN's kernels
    for these keep the weights on the chip from one frame to the next, where a product a frame, of all heads together
    too, reads them again for each. Padding has no influence: a direction that reads an utterance from its own end meets
    it last, as the other one does.

    Args:
        weights: those of one direction after those of the other, each with a first dimension of heads.
    """
    place = _backwards(lengths, *features.shape[1:3]).to(features.device) if len(weights) > 4 else None
    outputs = _run(features, *weights[:4])
    if place is not None:
        turned = _run(_Turn.apply(features, place), *weights[4:])  # type: ignore[arg-type]
        outputs = torch.cat([outputs, _Turn.apply(turned, place)], -1)  # type: ignore[list-item]
    if lengths is None:
        return outputs
    padding = torch.arange(outputs.shape[2]) >= lengths[:, None]
    return outputs.masked_fill(padding[..., None].to(outputs.device), 0.0)


def _run(features: Tensor, *weights: Tensor) -> Tensor:
    """K LSTMs from the first frame to the last, (K, B, T, I) to (K, B, T, H)."""
    if features.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        half = torch.get_autocast_dtype("cpu")
        if not cpu_has_lstm_of(half):
            with torch.autocast("cpu", enabled=False):
                return _run(*(tensor.float() for tensor in (features, *weights))).to(half)
    inputs = features
    if features.is_cuda and (missing := -features.shape[-1] % _CUDNN_MULTIPLE):
        inputs, weights = F.pad(features, (0, missing)), (F.pad(weights[0], (0, missing)), *weights[1:])
    with warnings.catch_warnings():
        # Of weights that are not in one piece: what was just stacked is copied anyway.
        warnings.filterwarnings("ignore", "RNN module weights")
        return torch.stack([_one(own, *each) for own, *each in zip(inputs, *weights, strict=True)])


def _one(features: Tensor, *weights: Tensor) -> Tensor:
    """(B, T, I) to (B, T, H)."""
    zeros = features.new_zeros(1, len(features), weights[1].shape[-1])
    # With biases, one layer, no dropout, ready for a gradient, one direction, batch first.
    return torch.lstm(features, (zeros, zeros), weights, True, 1, 0.0, True, False, True)[0]


@cache
def cpu_has_lstm_of(half: torch.dtype) -> bool:
    """Whether an LSTM runs, and learns, under autocast to ``half`` on this CPU: oneDNN has one for some only."""
    # Whatever surrounds the call that is the first to ask.
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", half):
        weights = [torch.zeros(4, *inputs, requires_grad=True) for inputs in ((1,), (1,), (), ())]
        try:
            _one(torch.zeros(1, 1, 1), *weights).sum().backward()
        except RuntimeError:
            return False
    return True


def _backwards(lengths: Tensor | None, batch: int, frames: int) -> Tensor:
    """Row of (B * T) rows where each frame is found when its utterance is read from its end; padding stays."""
    time = torch.arange(frames)
    ends = torch.full((batch, 1), frames) if lengths is None else lengths[:, None]
    return (torch.where(time < ends, ends - 1 - time, time) + frames * torch.arange(batch)[:, None]).flatten()


class _Turn(torch.autograd.Function):
    """Rows of (K, B, T, D) in another order that undoes itself: the gradient is no sum over rows, but a look-up too."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        return rows.flatten(1, 2).index_select(1, place).view(rows.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (place,) = ctx.saved_tensors
        return grads[0].flatten(1, 2).index_select(1, place).view(grads[0].shape), None
