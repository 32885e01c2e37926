"""Matrix products in a precision: what stands in for a model's convolutions, linear layers and positions in inference.

Weights are arranged and converted once. Each class is built from a module of the plain definition and takes its place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoder import PositionalConv, SelfAttention, WeightNormConv
from .packing import Packing, for_product
from .positions import Response


class RowConv(nn.Module):
    """A convolution of rows (T * stride, C) to (T, C'), as if zeros followed: products, added up.

    In float32 there is one for each tap, since short sums round less; in fewer bits one for each ``stride`` taps, since
    what is added up is rounded each time. On a GPU float32 is as exact as torch's own convolutions are there: TF32,
    unless ``torch.backends.cudnn.conv.fp32_precision`` says otherwise.
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
        with _exact_as_convolutions() if x.is_cuda else contextlib.nullcontext():
            y = F.linear(rows[:, : len(first)], first.t(), self.bias)
            for index, taps in enumerate(others, 1):
                ahead, within = divmod(index * self.together, self.stride)
                start = within * width
                y[: len(y) - ahead].addmm_(rows[ahead:, start : start + len(taps)], taps)
        return y


@contextlib.contextmanager
def _exact_as_convolutions() -> Iterator[None]:
    products, kept = torch.backends.cuda.matmul, torch.backends.cuda.matmul.fp32_precision
    products.fp32_precision = cast(Any, torch.backends.cudnn).conv.fp32_precision
    try:
        yield
    finally:
        products.fp32_precision = kept


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
        return self.out_proj(self.attend(*heads).transpose(1, 2).flatten(2))

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, heads, T, width of a head) each, and the result."""
        return F.scaled_dot_product_attention(query, key, value)


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
