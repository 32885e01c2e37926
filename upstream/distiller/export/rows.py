"""The front end as matrix products over rows of channels, in operations that every runtime has.

Runtimes are fast at products, and can do them in 8 bits; at convolutions over time with few channels they are not. The
first layer's normalisation needs no pass over its output: mean and variance of a linear filter's output follow from
mean and covariance of what it filters.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..fast.front_end import finish, scale_and_shift, window_statistics
from ..frontend import ConvBlock, ConvFrontEnd, GroupNormOverTime, frame_lengths
from ..model import SplitLinear


class RowFrontEnd(nn.Module):
    """Stands in for a :class:`~..frontend.ConvFrontEnd`, without gradients.

    Args:
        front_end: whose weights it takes.
        scaled: see :func:`products`. In 8 bits with one scale for all rows, those of quiet frames would be lost.
    """

    def __init__(self, front_end: ConvFrontEnd, scaled: bool = False):
        super().__init__()
        first, *others = front_end.blocks
        self.specs = front_end.specs
        self.hop = prod(stride for _, _, stride in self.specs)
        self.first = FirstLayer(first, front_end.norm_over_padding)
        self.others = nn.ModuleList(RowLayer(block, scaled) for block in others)

    def forward(self, wave: Tensor, lengths: Tensor) -> Tensor:
        """(B, samples) and (B,) samples to (B, T, C); only frames of content mean anything."""
        samples = wave.shape[1]
        # With whole frame shifts each layer has a multiple of its stride: what comes after the end is never looked at.
        whole = (samples + self.hop - 1) // self.hop * self.hop
        valid = frame_lengths(lengths, self.specs[:1])
        if self.first.over_padding:
            valid = torch.zeros_like(valid) + frame_lengths(samples, self.specs[:1])
        x = self.first(F.pad(wave, (0, whole - samples)), valid)
        for layer in self.others:
            x = layer(x)
        # By index: a graph cannot prove of a range that it lies within.
        return x[:, torch.arange(frame_lengths(samples, self.specs), device=x.device)]


class FirstLayer(nn.Module):
    """The first convolution, its normalisation within its weights, and GELU: (B, T * stride) to (B, T, C)."""

    def __init__(self, block: ConvBlock, over_padding: bool):
        super().__init__()
        self.block, self.over_padding = block, over_padding

    def forward(self, wave: Tensor, frames: Tensor) -> Tensor:
        """frames: (B,) how many of T count for the normalisation."""
        conv, norm = self.block.conv, self.block.norm
        (kernel,), (stride,) = conv.kernel_size, conv.stride
        steps = wave.reshape(wave.shape[0], -1, stride)
        windows = torch.cat(list(_ahead(steps, kernel, stride, 1)), -1)
        weight, bias = conv.weight[:, 0].t()[None], conv.bias
        if isinstance(norm, GroupNormOverTime):
            scale, shift = scale_and_shift(norm, conv, *window_statistics(windows, frames))
            weight, bias = weight * scale[:, None], shift
        if bias is not None:  # one more tap, on a constant 1, costs no pass over the output
            weight = torch.cat([weight, bias.expand(weight.shape[0], -1)[:, None]], 1)
            windows = F.pad(windows, (0, 1), value=1.0)
        return finish(self.block, windows @ weight)


def _ahead(rows: Tensor, kernel: int, stride: int, channels: int) -> Iterator[Tensor]:
    """What a window of ``kernel`` steps finds in its own row (B, T, stride * channels), and in those ahead of it."""
    for ahead in range(-(-kernel // stride)):
        width = min(stride, kernel - ahead * stride)
        part = rows if width == stride else rows[..., : width * channels]
        yield F.pad(part, (0, 0, -ahead, ahead)) if ahead else part


class RowLayer(nn.Module):
    """A convolution after the first, with what follows it: (B, T * stride, C) to (B, T, C')."""

    def __init__(self, block: ConvBlock, scaled: bool):
        super().__init__()
        conv = block.conv
        self.scaled, self.bias = scaled, conv.bias
        self.kernel, self.stride = conv.kernel_size[0], conv.stride[0]
        self.block = copy.deepcopy(block)
        self.block[0] = nn.Identity()  # its weights are the products'
        taps = conv.weight.detach().permute(2, 1, 0)
        parts = (part.flatten(0, 1) for part in taps.split(self.stride))
        # Of their own memory: what is a view is saved with all that it is a view of.
        self.products = nn.ParameterList(
            nn.Parameter(part.clone(memory_format=torch.contiguous_format)) for part in parts
        )

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[2]
        rows = x.reshape(x.shape[0], -1, self.stride * channels)
        parts = list(_ahead(rows, self.kernel, self.stride, channels))
        return finish(self.block, products(parts, self.products, self.bias, self.scaled))


class RowLinear(nn.Module):
    """A linear layer whose rows are scaled one by one: (B, T, I) to (B, T, O)."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight, self.bias = nn.Parameter(linear.weight.detach().t()), linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return products([x], [self.weight], self.bias, scaled=True)


class SplitRowLinear(nn.Module):
    """Stands in for a :class:`~..model.SplitLinear` of several parts, with a product for each."""

    def __init__(self, split: SplitLinear):
        super().__init__()
        self.parts = nn.ParameterList(nn.Parameter(weight) for weight in split.weight.detach())
        self.bias = split.bias

    def forward(self, x: Tensor) -> Tensor:
        each = x.unflatten(-1, (len(self.parts), -1)).unbind(2)
        made = [products([part], [weight], None, scaled=True) for part, weight in zip(each, self.parts, strict=True)]
        return torch.stack(made, 1) + self.bias[:, 0, :, None]


def products(parts: Sequence[Tensor], weights: Iterable[Tensor], bias: Tensor | None, scaled: bool) -> Tensor:
    """The sum of parts (B, T, I) times weights (I, O).

    Args:
        scaled: whether each row, of all parts, is brought to a largest value of 1 before, and the sum back after.
    """
    scale = _largest(parts) if scaled else None
    total = sum((part if scale is None else part / scale) @ each for part, each in zip(parts, weights, strict=True))
    assert isinstance(total, Tensor)
    total = total if scale is None else total * scale
    return total if bias is None else total + bias


def _largest(parts: Sequence[Tensor]) -> Tensor:
    """The largest absolute value (B, T, 1) of what a window finds in these parts, and a little more than 0."""
    ends = [end for part in parts for end in (part.amax(-1, keepdim=True), -part.amin(-1, keepdim=True))]
    return torch.stack(ends).amax(0).clamp_min(1e-6)
