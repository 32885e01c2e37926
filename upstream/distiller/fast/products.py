"""Matrix products in a precision: what stands in for a model's convolutions, linear layers and positions in inference.

Weights are arranged and converted once. Each class is built from a module of the plain definition and takes its place.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoder import PositionalConv, SelfAttention, WeightNormConv
from ..model import SplitLinear
from .packing import Packing, for_product
from .positions import Response

LARGEST = 127.0  # of an int8, the same on both sides of zero
_ROUNDING = 1.5 * 2**23


class Int8Product(nn.Module):
    """Rows (N, K) times a fixed (K, M), in int8: one scale for each row, found when it comes, and each column.

    One scale for all rows of an utterance would leave nothing of its quiet frames.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        scale = weight.abs().amax(0).clamp_min(1e-12) / LARGEST
        self.scale, self.bias = scale.float(), bias if bias is None else bias.float()
        # Column by column: the order that a GPU wants. It multiplies multiples of 8 only.
        whole = F.pad((weight / scale).round(), (0, -weight.shape[1] % 8, 0, -weight.shape[0] % 8))
        self.weight = whole.to(torch.int8).t().contiguous().t()

    def forward(self, rows: Tensor) -> Tensor:
        """(N, K) to (N, M), both floating point."""
        return self.multiply(rows, largest(rows))

    def multiply(self, rows: Tensor, bound: Tensor) -> Tensor:
        """As :meth:`forward`, for rows that may overlap in memory; ``bound`` (N, 1): the largest size in each."""
        # Adding this much to a float32 leaves no place for fractions: the sum is rounded, its low byte is the int8.
        shift = bound.new_full((1, rows.shape[1]), _ROUNDING)
        shifted = torch.addcmul(shift, rows.float(), LARGEST / bound)
        quantised = shifted.view(torch.int32).to(torch.int8)
        count, missing = len(rows), len(self.weight) - rows.shape[1]
        few = max(0, 17 - count) if rows.is_cuda else 0  # a GPU multiplies more than 16 rows only
        if few or missing:
            quantised = F.pad(quantised, (0, missing, 0, few))
        y = torch._int_mm(quantised, self.weight)[:count, : len(self.scale)].float().mul_(bound / LARGEST)
        y = y.mul_(self.scale) if self.bias is None else torch.addcmul(self.bias, y, self.scale, out=y)
        return y.type_as(rows)


def largest(x: Tensor) -> Tensor:
    """(N, K) to (N, 1) float32: the largest size in each row, above zero."""
    return torch.maximum(x.amax(1, keepdim=True), -x.amin(1, keepdim=True)).float().clamp_min_(1e-12)


class Int8Linear(Int8Product):
    """A linear layer."""

    def __init__(self, linear: nn.Linear):
        super().__init__(linear.weight.detach().t(), linear.bias if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, -2)).unflatten(0, x.shape[:-1])


class Int8SplitLinear(nn.Module):
    """Linear layers side by side."""

    def __init__(self, split: SplitLinear):
        super().__init__()
        parts = zip(split.weight.detach(), split.bias.detach()[0, 0], strict=True)
        self.products = [Int8Product(weight, bias) for weight, bias in parts]

    def forward(self, x: Tensor) -> Tensor:
        parts = x.flatten(0, -2).chunk(len(self.products), -1)
        outputs = [product(part) for product, part in zip(self.products, parts, strict=True)]
        return torch.cat(outputs, -1).unflatten(0, x.shape[:-1])


class RowConv(nn.Module):
    """A convolution of rows (T * stride, C) to (T, C'), as if zeros followed: products, added up.

    In float32 there is one for each tap, since short sums round less; in fewer bits one for each ``stride`` taps, since
    what is added up is rounded each time.
    """

    def __init__(self, conv: nn.Conv1d, dtype: torch.dtype):
        super().__init__()
        self.stride = conv.stride[0]
        self.together = 1 if dtype == torch.float32 else self.stride
        taps = conv.weight.detach().to(dtype).permute(2, 1, 0)
        self.products = [part.flatten(0, 1).contiguous() for part in taps.split(self.together)]
        self.bias = None if conv.bias is None else conv.bias.detach().to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[1]
        rows = x.view(-1, self.stride * width)
        first, *others = self.products
        y = F.linear(rows[:, : len(first)], first.t(), self.bias)
        for index, taps in enumerate(others, 1):
            ahead, within = divmod(index * self.together, self.stride)
            start = within * width
            y[: len(y) - ahead].addmm_(rows[ahead:, start : start + len(taps)], taps)
        return y


class Int8RowConv(Int8Product):
    """The same in int8, one product on windows of rows. What no whole window is left for is left out."""

    def __init__(self, conv: nn.Conv1d):
        weight = conv.weight.detach().permute(2, 1, 0)
        super().__init__(weight.flatten(0, 1), None if conv.bias is None else conv.bias.detach())
        self.kernel, self.stride = len(weight), conv.stride[0]

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[1]
        bound = largest(x)[:, 0].unfold(0, self.kernel, self.stride).amax(1, keepdim=True)
        windows = x.as_strided((len(bound), self.kernel * width), (self.stride * width, 1))
        return self.multiply(windows, bound)


class JointAttention(nn.Module):
    """Self-attention whose query, key and value come from one product."""

    def __init__(self, attention: SelfAttention):
        super().__init__()
        self.heads = attention.heads
        parts = attention.q_proj, attention.k_proj, attention.v_proj
        self.joint = nn.Linear(parts[0].in_features, sum(part.out_features for part in parts))
        self.joint.weight = nn.Parameter(torch.cat([part.weight.detach() for part in parts]))
        self.joint.bias = nn.Parameter(torch.cat([part.bias.detach() for part in parts]))
        self.out_proj = attention.out_proj

    def forward(self, x: Tensor, where: Tensor | Packing | None) -> Tensor:
        query, key, value = self.joint(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        if isinstance(where, Packing):
            return self.out_proj(where.attend(query[0], key[0], value[0], 0.0).flatten(1))[None]
        assert where is None, "utterances one by one, or packed"
        heads = (part.transpose(1, 2) for part in (query, key, value))
        return self.out_proj(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


class OverlapAdd(nn.Module):
    """The positional embedding, its filter's spectrum computed once."""

    def __init__(self, positions: PositionalConv, dtype: torch.dtype):
        super().__init__()
        conv = cast(WeightNormConv, positions[0])
        self.response = Response.of(conv.weight().detach(), conv.groups).to(dtype)
        self.bias = conv.bias.detach().to(dtype)

    def forward(self, x: Tensor, where: Tensor | Packing | None) -> Tensor:
        padded = where.unpack(for_product(x)) if isinstance(where, Packing) else x
        y = F.gelu(self.response.convolve(padded, self.bias))
        return where.pack(y) if isinstance(where, Packing) else y
