"""The front end as matrix products over rows of channels.

A convolution of stride s over (T, C) is a sum of products on views of the rows, one for each s of its taps. Utterances
lie end to end, each from a slot of its own on: a frame of content never reaches into the next utterance. The first
layer's normalisation needs no pass over its output, since mean and variance of a linear filter's output follow from
mean and covariance of what it filters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..frontend import ChannelLayerNorm, ConvBlock, ConvFrontEnd, GroupNormOverTime, frame_lengths
from .packing import Packing
from .strided import strided_product


def packed_features(front_end: ConvFrontEnd, wave: Tensor, packing: Packing) -> Tensor:
    """Features of the V frames of content, (1, V, C).

    Args:
        front_end: whose convolutions they are.
        wave: (B, samples) waveforms, zero-padded to a multiple of the frame shift.
        packing: of these utterances.
    """
    first, *others = front_end.blocks
    x = finish(first, first_product(first, wave, packing))
    for block in others:
        x = finish(block, strided_product(x, block.conv.weight, block.conv.bias, block.conv.stride[0]))
    return packing.frames.take(x)[None]


def first_product(block: ConvBlock, wave: Tensor, packing: Packing) -> Tensor:
    """The first convolution, normalised over each utterance if it is: (B, samples) to (rows, C) of the filled slots."""
    conv, norm = block.conv, block.norm
    (kernel,), (stride,) = conv.kernel_size, conv.stride
    windows = F.pad(wave, (0, kernel - stride)).unfold(1, kernel, stride)
    weight, shift = conv.weight[:, 0].t().expand(len(wave), -1, -1), conv.bias
    if isinstance(norm, GroupNormOverTime):
        mean, covariance = packing.once(wave, lambda: window_statistics(block.conv, windows, packing))
        scale, shift = normalisation(norm, conv, mean, covariance)
        weight = weight * scale[:, None]
    padded_slots = packing.padded_slots
    rows = windows.reshape(padded_slots, -1)[packing.slots].view(-1, kernel)
    # The shift is one more tap, on a constant 1. A GPU is fast with rows of a multiple of 16 bytes only.
    taps = kernel if shift is None else kernel + 1
    rows = F.pad(F.pad(rows, (0, taps - kernel), value=1.0), (0, -taps % 8))
    if shift is not None:
        weight = torch.cat([weight, shift.expand(len(wave), -1)[:, None]], 1)
    weight = F.pad(weight, (0, 0, 0, -taps % 8))
    ends = packing.slot_ends * (windows.shape[1] * len(wave) // padded_slots)
    kind = torch.get_autocast_dtype(wave.device.type) if torch.is_autocast_enabled(wave.device.type) else wave.dtype
    return F.grouped_mm(rows.to(kind), weight.to(kind), offs=ends)


def window_statistics(conv: nn.Conv1d, windows: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
    """Mean (B, 1, kernel) and covariance (B, kernel, kernel) of each utterance's windows (B, T, kernel).

    In float64: a filter that cancels most of the wave leaves little of the covariance's digits.
    """
    frames = frame_lengths(packing.samples, [(conv.out_channels, conv.kernel_size[0], conv.stride[0])])
    content = (torch.arange(windows.shape[1], device=windows.device)[None] < frames[:, None])[..., None]
    wide, count = windows.double(), frames[:, None, None].double()
    mean = (wide * content).sum(1, keepdim=True) / count
    centred = (wide - mean) * content
    return mean, centred.transpose(1, 2) @ centred / count


def normalisation(norm: GroupNormOverTime, conv: nn.Conv1d, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift (B, C) that normalise the filters' output over time, from mean and covariance of the windows."""
    with torch.autocast(mean.device.type, enabled=False):
        filters = conv.weight[:, 0].double()
        variance = ((filters @ covariance) * filters).sum(-1)
        scale = torch.rsqrt(variance + norm.eps) * norm.weight
        shift = norm.bias - (mean @ filters.t())[:, 0] * scale
    return scale.float(), shift.float()


def finish(block: ConvBlock, x: Tensor) -> Tensor:
    """What comes after a convolution, on (T, C): dropout, a normalisation over channels if there is one, GELU."""
    x = block.dropout(x)
    if isinstance(block.norm, ChannelLayerNorm):
        x = block.norm[1](x.float()).type_as(x)
    return F.gelu(x)
