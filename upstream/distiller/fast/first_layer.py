"""The first convolution and its GELU in one kernel: its output, the largest tensor of the model, is written once.

A tenth of a step would go by while a GPU writes what the convolution gives, reads it for the GELU and, in the backward
pass, reads it again and writes its gradient. Ten samples a window are quicker multiplied anew.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import triton
import triton.language as tl
from torch import Tensor

_COLUMNS = 128  # channels a program computes
_SLOTS = 8  # slots over which a program of the backward pass adds up


def windows_gelu(windows: Tensor, weight: Tensor, owners: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """``gelu(windows @ weight)``, each slot's windows with the weight of its utterance.

    Args:
        windows: (slots * rows, K), without gradient.
        weight: (B, K, C) of the same dtype; K and ``rows`` are powers of two from 16 up.
        owners: (slots,) int32, the utterance of each slot, in order.
        rows: windows a slot.
        dtype: of the result.

    Returns:
        (slots * rows, C).
    """
    return cast(Tensor, _WindowsGelu.apply(windows, weight, owners, rows, dtype))


class _WindowsGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, windows: Tensor, weight: Tensor, owners: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
        windows, weight = windows.contiguous(), weight.contiguous()
        ctx.save_for_backward(windows, weight, owners)
        ctx.rows = rows
        taps, channels = weight.shape[1:]
        out = windows.new_empty(len(windows), channels, dtype=dtype)
        grid = len(owners), triton.cdiv(channels, _COLUMNS)
        cast(Any, _forward_kernel)[grid](windows, weight, owners, out, channels, taps, rows, _COLUMNS)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, Tensor, None, None, None]:
        windows, weight, owners = ctx.saved_tensors
        taps, channels = weight.shape[1:]
        grad = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        grid = triton.cdiv(len(owners), _SLOTS), triton.cdiv(channels, _COLUMNS)
        out_grad = grad_outputs[0].contiguous()
        arguments = windows, weight, owners, out_grad, grad, len(owners), channels
        cast(Any, _backward_kernel)[grid](*arguments, taps, ctx.rows, _COLUMNS, _SLOTS)
        return None, grad.to(weight.dtype), None, None, None


@triton.jit
def _gelu_and_slope(x):
    """GELU and its derivative, of which both need exp(-x * x / 2). The error function by Abramowitz and Stegun's
    formula 7.1.26, off by 1.5e-7 at most."""
    size = tl.abs(x) * 0.7071067811865476
    t = 1.0 / (1.0 + 0.3275911 * size)
    series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t
    bell = tl.exp(-0.5 * x * x)
    below = 0.5 * series * bell  # the normal distribution below -|x|
    share = tl.where(x > 0, 1.0 - below, below)
    return x * share, share + x * bell * 0.3989422804014327


@triton.jit
def _forward_kernel(
    windows, weight, owners, out, channels, TAPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    slot = tl.program_id(0).to(tl.int64)
    row, tap = slot * ROWS + tl.arange(0, ROWS), tl.arange(0, TAPS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (column < channels)[None, :]
    window = tl.load(windows + row[:, None] * TAPS + tap[None, :])
    filters = weight + (tl.load(owners + slot) * TAPS + tap)[:, None] * channels + column[None, :]
    x = tl.dot(window, tl.load(filters, mask=inside, other=0.0), input_precision="ieee")
    y, _ = _gelu_and_slope(x)  # pyright: ignore[reportGeneralTypeIssues]
    tl.store(out + row[:, None] * channels + column[None, :], y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _backward_kernel(
    windows,
    weight,
    owners,
    out_grad,
    weight_grad,
    slots,
    channels,
    TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SLOTS: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * SLOTS
    tap = tl.arange(0, TAPS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (column < channels)[None, :]
    place = tap[:, None] * channels + column[None, :]
    owner = tl.load(owners + first)
    total = tl.zeros((TAPS, COLUMNS), dtype=tl.float32)
    for index in range(SLOTS):
        slot = first + index
        if slot < slots:
            following = tl.load(owners + slot)
            if following != owner:
                tl.atomic_add(weight_grad + owner * TAPS * channels + place, total, mask=inside)
                total = tl.zeros((TAPS, COLUMNS), dtype=tl.float32)
                owner = following
            row = slot * ROWS + tl.arange(0, ROWS)
            window = tl.load(windows + row[:, None] * TAPS + tap[None, :])
            filters = tl.load(weight + owner * TAPS * channels + place, mask=inside, other=0.0)
            x = tl.dot(window, filters, input_precision="ieee")
            _, slope = _gelu_and_slope(x)  # pyright: ignore[reportGeneralTypeIssues]
            given = tl.load(out_grad + row[:, None] * channels + column[None, :], mask=inside, other=0.0)
            grad = (given.to(tl.float32) * slope).to(window.dtype)
            total += tl.dot(tl.trans(window), grad, input_precision="ieee")
    tl.atomic_add(weight_grad + owner * TAPS * channels + place, total, mask=inside)
