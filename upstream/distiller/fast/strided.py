"""A strided convolution over rows of channels as matrix products on views: nothing is copied, shifted or padded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor


def strided_product(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """The convolution of (T * stride, C), as if zeros followed, with a weight of (C', C, kernel): (T, C')."""
    taps = weight.to(x.dtype).permute(2, 1, 0).flatten(0, 1)
    product = cast(Tensor, _StridedProduct.apply(x.view(-1, stride * x.shape[1]), taps))
    return product if bias is None else product + bias.to(x.dtype)


def _blocks(rows: Tensor, taps: Tensor) -> Iterator[tuple[int, slice]]:
    """Which taps (kernel * C, C') fall on a row, and which on those ahead of it: (rows ahead, their range)."""
    width = rows.shape[1]
    for ahead in range(min(-(-len(taps) // width), len(rows))):
        yield ahead, slice(ahead * width, min((ahead + 1) * width, len(taps)))


class _StridedProduct(torch.autograd.Function):
    """Rows (T, stride * C) times taps (kernel * C, C'). Each product adds to what is there, in its own memory, which
    autograd by itself would not do."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, taps: Tensor) -> Tensor:
        ctx.save_for_backward(rows, taps)
        out = rows.new_empty(len(rows), taps.shape[1])
        for ahead, block in _blocks(rows, taps):
            part = rows[ahead:, : block.stop - block.start]
            if ahead == 0:
                torch.mm(part, taps[block], out=out)
            else:
                out[:-ahead].addmm_(part, taps[block])
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None]:
        rows, taps = ctx.saved_tensors
        (grad,) = grad_outputs
        wants_rows, wants_taps = ctx.needs_input_grad
        for_rows = torch.empty_like(rows) if wants_rows else None
        for_taps = torch.zeros_like(taps) if wants_taps else None
        for ahead, block in _blocks(rows, taps):
            width, given = block.stop - block.start, grad[: len(grad) - ahead]
            if for_rows is not None:
                if ahead > 0:
                    for_rows[ahead:, :width].addmm_(given, taps[block].t())
                elif width == rows.shape[1]:
                    torch.mm(given, taps[block].t(), out=for_rows)
                else:
                    for_rows.copy_(F.pad(given @ taps[block].t(), (0, rows.shape[1] - width)))
            if for_taps is not None:
                torch.mm(rows[ahead:, :width].t(), given, out=for_taps[block])
        return for_rows, for_taps
