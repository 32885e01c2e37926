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
_SLOTS = 16  # slots over which a program of the backward pass adds up


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


# What these kernels take beyond writing the output is the error function's time: formulas for it by Abramowitz and
# Stegun (Handbook of Mathematical Functions, section 7.1), 1/sqrt(2) within their constants, and reciprocals as squares
# of a GPU's fast reciprocal square root.
@triton.jit
def _gelu(x):
    """By formula 7.1.28, off by 3e-7 at most."""
    size = tl.abs(x)
    series = (5.3829750e-6 * size + 4.8890636e-5) * size + 3.8003575e-5
    series = (((series * size + 3.2776263e-3) * size + 2.1141006e-2) * size + 4.9867347e-2) * size + 1.0
    series = series * series
    series = series * series
    root = tl.rsqrt(series * series)
    root = root * root
    return tl.maximum(x, 0.0) - 0.5 * size * root * root


@triton.jit
def _gelu_slope(x):
    """The derivative of GELU, by formula 7.1.26, off by 1.5e-7 at most."""
    root = tl.rsqrt(1.0 + 0.2316418882 * tl.abs(x))
    t = root * root
    series = ((((0.5307027145 * t - 0.7265760135) * t + 0.7107068705) * t - 0.142248368) * t + 0.127414796) * t
    bell = tl.exp2(-0.7213475204444817 * x * x)
    below = series * bell  # the normal distribution below -|x|
    return tl.where(x > 0, 1.0 - below, below) + x * bell * 0.3989422804014327


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
    y = _gelu(x)
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
            slope = _gelu_slope(x)
            given = tl.load(out_grad + row[:, None] * channels + column[None, :], mask=inside, other=0.0)
            grad = (given.to(tl.float32) * slope).to(window.dtype)
            total += tl.dot(tl.trans(window), grad, input_precision="ieee")
    tl.atomic_add(weight_grad + owner * TAPS * channels + place, total, mask=inside)
