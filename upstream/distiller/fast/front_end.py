"""The front end as matrix products over rows of channels.

A convolution of stride s over (T, C) is a sum of products on views of the rows, one for each s of its taps. Utterances
lie end to end, each from a slot of its own on: a frame of content never reaches into the next utterance. The first
layer's normalisation needs no pass over its output, since mean and variance of a linear filter's output follow from
mean and covariance of what it filters.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..frontend import ChannelLayerNorm, ConvBlock, ConvFrontEnd, GroupNormOverTime, frame_lengths
from .packing import Packing


def packed_features(
    front_end: ConvFrontEnd, wave: Tensor, packing: Packing, dtype: torch.dtype | None = None
) -> Tensor:
    """Features of the V frames of content, (1, V, C).

    Args:
        front_end: whose convolutions they are.
        wave: (B, samples) waveforms, zero-padded to a multiple of the frame shift.
        packing: of these utterances.
        dtype: of what passes between the layers, by default what the first one gives.
    """
    first, *others = front_end.blocks
    rows = math.prod(stride for _, _, stride in front_end.specs[1:])  # of the first layer in each slot
    lengths = packing.samples
    if front_end.norm_over_padding:
        lengths = lengths.max().expand_as(lengths)
    x = first_product(first, wave, lengths)
    # Out of the padded batch here, before the first layer's output is touched.
    x = packing.slots.take(x.reshape(-1, rows * x.shape[-1])).view(-1, x.shape[-1])
    x = finish(first, x if dtype is None else x.to(dtype))
    for block in others:
        x = finish(block, convolve(block, x))
    return packing.frames.take(x)[None]


def first_product(block: ConvBlock, wave: Tensor, lengths: Tensor) -> Tensor:
    """The first convolution, normalised over each utterance if it is: (B, samples) to (B, samples / stride, C)."""
    conv, norm = block.conv, block.norm
    (kernel,), (stride,) = conv.kernel_size, conv.stride
    windows = F.pad(wave, (0, kernel - stride)).unfold(1, kernel, stride)
    weight, shift = conv.weight[:, 0].t().expand(len(wave), -1, -1), conv.bias
    if isinstance(norm, GroupNormOverTime):
        scale, shift = normalisation(norm, conv, windows, lengths)
        weight = weight * scale[:, None]
    # The shift is one more tap, on a constant 1. A GPU is fast with rows of a multiple of 16 bytes only.
    taps = kernel if shift is None else kernel + 1
    constant = windows.new_ones(1).expand(*windows.shape[:2], taps - kernel)
    windows = F.pad(torch.cat([windows, constant], -1), (0, -taps % 8))
    if shift is not None:
        weight = torch.cat([weight, shift.expand(len(wave), -1)[:, None]], 1)
    return windows @ F.pad(weight, (0, 0, 0, -taps % 8))


def normalisation(norm: GroupNormOverTime, conv: nn.Conv1d, windows: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift (B, C) that normalise the filters' output over time, from (B, T, kernel) windows of the wave."""
    frames = frame_lengths(lengths, [(conv.out_channels, conv.kernel_size[0], conv.stride[0])])
    content = (torch.arange(windows.shape[1], device=windows.device)[None] < frames[:, None])[..., None]
    with torch.autocast(windows.device.type, enabled=False):
        wide, count = windows.double(), frames[:, None, None].double()
        mean = (wide * content).sum(1, keepdim=True) / count
        centred = (wide - mean) * content
        return scale_and_shift(norm, conv, mean, centred.transpose(1, 2) @ centred / count)


def scale_and_shift(
    norm: GroupNormOverTime, conv: nn.Conv1d, mean: Tensor, covariance: Tensor
) -> tuple[Tensor, Tensor]:
    """Scale and shift (B, C) from float64 mean (B, 1, kernel) and covariance (B, kernel, kernel) of the windows.

    A filter that cancels most of the wave leaves little of the covariance's digits: hence float64.
    """
    filters = conv.weight[:, 0].double()
    variance = ((filters @ covariance) * filters).sum(-1)
    scale = torch.rsqrt(variance + norm.eps) * norm.weight
    shift = norm.bias - (mean @ filters.t())[:, 0] * scale
    return scale.float(), shift.float()


def convolve(block: ConvBlock, x: Tensor) -> Tensor:
    """A block's convolution of rows (T * stride, C): (T, C')."""
    conv = block.conv
    return strided_product(x, conv.weight, conv.bias, conv.stride[0]) if isinstance(conv, nn.Conv1d) else conv(x)


def strided_product(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """The convolution of (T * stride, C) with (C', C, kernel): (T, C'), as if zeros followed."""
    kernel = weight.shape[2]
    taps = weight.permute(2, 1, 0)
    rows = x.view(-1, stride * x.shape[1])
    total = bias
    for ahead, first in enumerate(range(0, kernel, stride)):
        used = taps[first : first + stride].flatten(0, 1)
        product = rows[:, : len(used)] @ used
        if ahead:
            product = F.pad(product, (0, 0, 0, ahead))[ahead:]
        total = product if total is None else total + product
    assert total is not None
    return total


def finish(block: ConvBlock, x: Tensor) -> Tensor:
    """What comes after a convolution, on (T, C): dropout, a normalisation over channels if there is one, GELU."""
    x = block.dropout(x)
    if isinstance(block.norm, ChannelLayerNorm):
        norm = cast(nn.LayerNorm, block.norm[1])
        x = norm(x.to(norm.weight.dtype)).type_as(x)
    return F.gelu(x)
