"""Int8 products of floating-point rows: one scale for each row, found when it comes, and each column of the weights.

Weights are arranged and converted once. Each class is built from a module of the plain definition and takes its place.
A CPU goes through :mod:`.int8_kernels`, block by block, a thread for each.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model import SplitLinear
from .products import JointAttention
from .threads import in_parallel

LARGEST = 127.0  # of an int8, the same on both sides of zero
_ROUNDING = 1.5 * 2**23
_ROWS = 192
"""Rows of a block on a CPU: few enough for its cache, many enough to be worth a look at all weights."""


class Int8Product(nn.Module):
    """Rows (N, K) times a fixed (K, M).

    One scale for all rows of an utterance would leave nothing of its quiet frames.
    """

    kernel = stride = 1

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        scale = weight.abs().amax(0).clamp_min(1e-12) / LARGEST
        self.scale = scale.float()
        self.bias = torch.zeros_like(self.scale) if bias is None else bias.float()
        self.filled = len(weight)
        # Column by column: the order that a GPU wants. It multiplies multiples of 8 only.
        whole = F.pad((weight / scale).round(), (0, -weight.shape[1] % 8, 0, -weight.shape[0] % 8))
        self.weight = whole.to(torch.int8).t().contiguous().t()

    def forward(self, rows: Tensor) -> Tensor:
        """(N, K) to (N, M), both floating point."""
        return on_cpu([self], rows) if rows.device.type == "cpu" else self.multiply(rows, largest(rows))

    def multiply(self, rows: Tensor, bound: Tensor) -> Tensor:
        """As :meth:`forward`, for rows that may overlap in memory; ``bound`` (N, 1): the largest size in each."""
        # Adding this much to a float32 leaves no place for fractions: the sum is rounded, its low byte is the int8.
        shift = bound.new_full((1, rows.shape[1]), _ROUNDING)
        shifted = torch.addcmul(shift, rows.float(), LARGEST / bound)
        quantised = shifted.view(torch.int32).to(torch.int8)
        count, missing = len(rows), len(self.weight) - rows.shape[1]
        few = max(0, 17 - count)  # a GPU multiplies more than 16 rows only
        if few or missing:
            quantised = F.pad(quantised, (0, missing, 0, few))
        y = torch._int_mm(quantised, self.weight)[:count, : len(self.scale)].float().mul_(bound / LARGEST)
        return torch.addcmul(self.bias, y, self.scale, out=y).type_as(rows)


def largest(x: Tensor) -> Tensor:
    """(N, K) to (N, 1) float32: the largest size in each row, above zero."""
    return torch.maximum(x.amax(1, keepdim=True), -x.amin(1, keepdim=True)).float().clamp_min_(1e-12)


class Int8Linear(Int8Product):
    """A linear layer."""

    def __init__(self, linear: nn.Linear):
        super().__init__(linear.weight.detach().t(), linear.bias if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, -2)).unflatten(0, x.shape[:-1])


class Int8FeedForward(nn.Module):
    """Two linear layers and the GELU between them."""

    def __init__(self, first: nn.Linear, second: nn.Linear):
        super().__init__()
        self.products = [Int8Linear(first), Int8Linear(second)]

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu":
            return on_cpu(self.products, x.flatten(0, -2)).unflatten(0, x.shape[:-1])
        first, second = self.products
        return second(F.gelu(first(x)))


class Int8Attention(JointAttention):
    """Attention in floating point between int8 products."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if query.device.type != "cpu":
            return super().attend(query, key, value)
        out = torch.empty_like(query)

        def block(start: int, stop: int) -> None:
            some = slice(start, stop)
            out[:, some] = F.scaled_dot_product_attention(query[:, some], key[:, some], value[:, some])

        in_parallel(block, self.heads, 1)
        return out


class Int8SplitLinear(nn.Module):
    """Linear layers side by side."""

    def __init__(self, split: SplitLinear):
        super().__init__()
        parts = zip(split.weight.detach(), split.bias.detach()[0, 0], strict=True)
        self.products = [Int8Product(weight, bias) for weight, bias in parts]

    def forward(self, x: Tensor) -> Tensor:
        parts = x.flatten(0, -2).chunk(len(self.products), -1)
        outputs = [product(part) for product, part in zip(self.products, parts, strict=True)]
        return torch.stack(outputs).unflatten(1, x.shape[:-1]).transpose(0, 1)


class Int8RowConv(Int8Product):
    """A convolution of rows (T * stride, C), one product on windows of them, without what makes no whole window."""

    def __init__(self, conv: nn.Conv1d):
        weight = conv.weight.detach().permute(2, 1, 0)
        super().__init__(weight.flatten(0, 1), None if conv.bias is None else conv.bias.detach())
        self.kernel, self.stride = len(weight), conv.stride[0]

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu":
            return on_cpu([self], x)
        width = x.shape[1]
        bound = largest(x)[:, 0].unfold(0, self.kernel, self.stride).amax(1, keepdim=True)
        windows = x.as_strided((len(bound), self.kernel * width), (self.stride * width, 1))
        return self.multiply(windows, bound)


def on_cpu(products: Sequence[Int8Product], x: Tensor) -> Tensor:
    """One product of rows (R, C) float32 after the other, a GELU between any two. Only the first may have windows."""
    from .int8_kernels import rows_of_product, windows_of_rows

    x = x.contiguous()
    first, last = products[0], products[-1]
    count = (len(x) - first.kernel) // first.stride + 1
    out = x.new_empty(count, len(last.scale))
    rows, results = x.numpy(), out.numpy()

    def block(start: int, stop: int) -> None:
        windows, scales = _empty(stop - start, first)
        windows_of_rows(rows[start * first.stride :], first.kernel, first.stride, windows, scales)
        windows, scales = _between(products, [stop - start] * len(products), windows, scales)
        rows_of_product(*_multiplied(last, windows, scales), False, results[start:stop])

    in_parallel(block, count, _ROWS)
    return out


def front_end_on_cpu(weight: Tensor, shift: Tensor, hop: int, convs: Sequence[Int8RowConv], wave: Tensor) -> Tensor:
    """Convolutions of a wave (samples,), the first in float32, each with a GELU: (T, C).

    Args:
        weight: (taps, C) float32 of the first.
        shift: (C,) float32.
        hop: samples from one of its rows to the next.
        convs: the others.
        wave: as many samples as T frames need.
    """
    from .int8_kernels import rows_of_product, windows_of_wave

    counts = [(len(wave) - len(weight)) // hop + 1]
    for conv in convs:
        counts.append((counts[-1] - conv.kernel) // conv.stride + 1)
    first, last = convs[0], convs[-1]
    windows, scales = _empty(counts[1], first)
    windows_of_wave(wave.numpy(), hop, weight.numpy(), shift.numpy(), first.kernel, first.stride, windows, scales)
    windows, scales = _between(convs, counts[1:], windows, scales)
    out = wave.new_empty(counts[-1], len(last.scale))
    rows_of_product(*_multiplied(last, windows, scales), True, out.numpy())
    return out


def _between(
    products: Sequence[Int8Product], counts: Sequence[int], windows: np.ndarray, scales: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """From the windows of the first product to those of the last."""
    from .int8_kernels import windows_of_product

    for product, following, count in zip(products, products[1:], counts[1:], strict=False):
        product_of = _multiplied(product, windows, scales)
        windows, scales = _empty(count, following)
        windows_of_product(*product_of, True, following.kernel, following.stride, windows, scales)
    return windows, scales


def _empty(count: int, product: Int8Product) -> tuple[np.ndarray, np.ndarray]:
    """For windows (count, K) of a product and their scales. What its width is filled up with is zero."""
    make = np.empty if product.filled == len(product.weight) else np.zeros
    return make((count, len(product.weight)), np.int8), np.empty(count, np.float32)


def _multiplied(product: Int8Product, windows: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, ...]:
    """What :func:`~.int8_kernels.rows_of_product` takes."""
    rows, weight = torch.from_numpy(windows), product.weight
    integers = torch._int_mm(rows, weight) if _multiplies_int8() else (rows.float() @ weight.float()).to(torch.int32)
    return integers.numpy(), scales, product.scale.numpy(), product.bias.numpy()


@functools.cache
def _multiplies_int8() -> bool:
    """Whether this CPU does: on x86 without VNNI torch goes number by number, 30 times as long as in float32."""
    found = torch.cpu.get_capabilities()
    return found["architecture"] != "x86_64" or found["avx512_vnni"] or found["avx_vnni"]
