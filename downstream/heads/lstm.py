"""An LSTM that is nn.LSTM when its head is alone, and one recurrence of all heads when several are trained together.

cuDNN runs one LSTM at a time, and a step of one is far too small for a GPU. The LSTMs of K heads, and the directions of
each, are therefore groups of one batched product a step, with one fused kernel for all their cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .stacked import at_once, is_stacked


class LSTM(nn.LSTM):
    """As ``nn.LSTM``, the names of its weights too, with padding where that needs packing.

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
        if is_stacked():
            return self._stacked(features, lengths)
        if lengths is None:
            return super().forward(features)[0]
        packed = pack_padded_sequence(features, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(super().forward(packed)[0], batch_first=True, total_length=features.shape[1])[0]

    def _stacked(self, features: Tensor, lengths: Tensor | None) -> Tensor:
        directions = 2 if self.bidirectional else 1
        weights = self.all_weights
        for first in range(0, len(weights), directions):
            layer = chain.from_iterable(weights[first : first + directions])
            features = at_once(partial(_layer, lengths), features, *layer)
        return features


def _layer(lengths: Tensor | None, features: Tensor, *weights: Tensor) -> Tensor:
    """(K, B, T, I) to (K, B, T, directions * H).

    Args:
        weights: those of one direction after those of the other, each with a first dimension of heads.
    """
    device = features.device
    lowered = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if lowered else features.dtype
    with torch.autocast(device.type, enabled=False):
        # Groups are the heads forward, then the heads backward; time comes first, then the batch.
        ours, recurrent, bias, other = (torch.cat(weights[kind::4]) for kind in range(4))
        inputs = features.to(dtype).permute(2, 1, 0, 3)
        place = _turned(lengths, inputs).to(device) if len(weights) > 4 else None
        if place is not None:
            inputs = torch.cat([inputs, _Turn.apply(inputs, place)], 2)  # type: ignore[list-item]
        hidden: Tensor = _Recurrence.apply(  # type: ignore[assignment]
            inputs.contiguous(), ours.to(dtype), recurrent.to(dtype), (bias + other).to(dtype)
        )
        if place is not None:
            forward, backward = hidden.chunk(2, 2)
            hidden = torch.cat([forward, _Turn.apply(backward, place)], 3)  # type: ignore[list-item]
        if lengths is not None:
            padding = torch.arange(len(hidden))[:, None] >= lengths
            hidden = hidden.masked_fill(padding.to(device)[..., None, None], 0.0)
        return hidden.permute(2, 1, 0, 3)


def _turned(lengths: Tensor | None, inputs: Tensor) -> Tensor:
    """Row of (T * B) rows where each utterance's frame is found when it is read from its end; padding stays."""
    frames, batch = inputs.shape[:2]
    time = torch.arange(frames)[:, None]
    ends = torch.full((batch,), frames) if lengths is None else lengths
    return (torch.where(time < ends, ends - 1 - time, time) * batch + torch.arange(batch)).flatten()


class _Turn(torch.autograd.Function):
    """Rows of (T, B, ...) in another order that undoes itself: the gradient is no sum over rows, but a look-up too."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        return rows.flatten(0, 1).index_select(0, place).view(rows.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (place,) = ctx.saved_tensors
        return grads[0].flatten(0, 1).index_select(0, place).view(grads[0].shape), None


class _Recurrence(torch.autograd.Function):
    """G LSTMs forward in time, from zeros.

    Everything is laid out as (T, B, G, ...): a frame of all groups is one matrix for the cells, and all frames of one
    group are one matrix for the products, so that nothing is copied for either. Cells are float32 at least.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, ours: Tensor, recurrent: Tensor, bias: Tensor) -> Tensor:
        """Args: inputs (T, B, G, I); weights (G, 4H, I), (G, 4H, H) and (G, 4H). Returns (T, B, G, H)."""
        frames, batch, groups = inputs.shape[:3]
        units = recurrent.shape[2]
        wide = torch.promote_types(inputs.dtype, torch.float32)
        gates = inputs.new_empty(frames, batch, groups, 4 * units, dtype=wide)
        _multiply(_by_group(inputs), ours.transpose(1, 2), _by_group(gates))
        gates += bias
        hidden = inputs.new_empty(frames, batch, groups, units)
        product = gates.new_zeros(batch * groups, 4 * units)
        by_group = product.view(batch, groups, 4 * units).transpose(0, 1)
        weight = recurrent.transpose(1, 2)
        cell = gates.new_zeros(batch * groups, units)
        step = torch.ops.aten._thnn_fused_lstm_cell if gates.is_cuda else _cell
        cells, activated = [cell], []
        state = None
        for gate, output, next_state in zip(
            gates.flatten(1, 2).unbind(), hidden.flatten(1, 2).unbind(), hidden.transpose(1, 2).unbind(), strict=True
        ):
            if state is not None:
                _multiply(state, weight, by_group)
            new, cell, work = step(gate, product, cell)
            output.copy_(new)
            cells.append(cell)
            activated.append(work)
            state = next_state
        ctx.save_for_backward(inputs, ours, recurrent, hidden, *cells, *activated)
        return hidden

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
        inputs, ours, recurrent, hidden, *steps = ctx.saved_tensors
        frames, batch, groups, units = hidden.shape
        cells, activated = steps[: frames + 1], steps[frames + 1 :]
        # A step adds to this in place what comes from the frame after it.
        grad = grads[0].to(activated[0].dtype, copy=True, memory_format=torch.contiguous_format)
        of_gates = hidden.new_empty(frames, batch, groups, 4 * units)
        of_cell = torch.zeros_like(cells[0])
        step = torch.ops.aten._thnn_fused_lstm_cell_backward_impl if hidden.is_cuda else _cell_backward
        own, by_group = grad.flatten(1, 2).unbind(), grad.transpose(1, 2).unbind()
        kept, kept_by_group = of_gates.flatten(1, 2).unbind(), of_gates.transpose(1, 2).unbind()
        for t in range(frames - 1, -1, -1):
            if t + 1 < frames:
                _add_product(kept_by_group[t + 1], recurrent, by_group[t])
            of_gate, of_cell, _ = step(own[t], of_cell, cells[t], cells[t + 1], activated[t], False)
            kept[t].copy_(of_gate)
        by_group = _by_group(of_gates)
        of_inputs = None
        if ctx.needs_input_grad[0]:
            of_inputs = torch.empty_like(inputs)
            torch.bmm(by_group, ours, out=_by_group(of_inputs))
        of_ours = torch.bmm(by_group.transpose(1, 2), _by_group(inputs))
        of_recurrent = torch.bmm(_by_group(of_gates[1:]).transpose(1, 2), _by_group(hidden[:-1]))
        return of_inputs, of_ours, of_recurrent, of_gates.sum((0, 1))


def _by_group(tensor: Tensor) -> Tensor:
    """(T, B, G, X) as (G, T * B, X), not copied."""
    return tensor.flatten(0, 1).transpose(0, 1)


def _multiply(left: Tensor, right: Tensor, out: Tensor) -> None:
    if left.dtype == out.dtype:
        torch.bmm(left, right, out=out)
    elif left.is_cuda:
        torch.bmm(left, right, out_dtype=out.dtype, out=out)
    else:
        out.copy_(torch.bmm(left, right))


def _add_product(left: Tensor, right: Tensor, out: Tensor) -> None:
    if left.dtype == out.dtype:
        torch.baddbmm(out, left, right, out=out)
    elif left.is_cuda:
        torch.baddbmm(out, left, right, out_dtype=out.dtype, out=out)
    else:
        out += torch.bmm(left, right)


def _cell(gates: Tensor, more: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the fused kernel does: hidden state, cell, and what the backward step needs of the gates."""
    let_in, forget, new, let_out = (gates + more).chunk(4, 1)
    let_in, forget, new, let_out = let_in.sigmoid(), forget.sigmoid(), new.tanh(), let_out.sigmoid()
    cell = forget * cell + let_in * new
    return let_out * cell.tanh(), cell, torch.cat([let_in, forget, new, let_out], 1)


def _cell_backward(
    grad: Tensor, of_cell: Tensor, before: Tensor, cell: Tensor, activated: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor, None]:
    """What the fused kernel does: gradient of the gates, and of the cell before."""
    let_in, forget, new, let_out = activated.chunk(4, 1)
    squashed = cell.tanh()
    of_cell = of_cell + grad * let_out * (1 - squashed * squashed)
    parts: Sequence[Tensor] = (
        of_cell * new * let_in * (1 - let_in),
        of_cell * before * forget * (1 - forget),
        of_cell * let_in * (1 - new * new),
        grad * squashed * let_out * (1 - let_out),
    )
    return torch.cat(list(parts), 1), of_cell * forget, None
