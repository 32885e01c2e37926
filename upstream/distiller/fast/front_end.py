"""The front end as matrix products over rows of channels.

A convolution of stride s over (T, C) is a sum of products on views of the rows, one for each s of its taps. Utterances
lie end to end, each from a slot of its own on: a frame of content never reaches into the next utterance. The first
layer's normalisation needs no pass over its output, since mean and variance of a linear filter's output follow from
mean and covariance of what it filters.
"""

from __future__ import annotations

import importlib.util

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
    x = first_layer(first, wave, packing)
    for block in others:
        x = finish(block, strided_product(x, block.conv.weight, block.conv.bias, block.conv.stride[0]))
    return packing.frames.take(x)[None]


def first_layer(block: ConvBlock, wave: Tensor, packing: Packing) -> Tensor:
    """The first convolution with what follows it: (B, samples) to (rows, C) of the filled slots."""
    conv, norm = block.conv, block.norm
    (kernel,), (stride,) = conv.kernel_size, conv.stride
    padded = F.pad(wave, (0, kernel - stride)).unfold(1, kernel, stride)
    weight, shift = conv.weight[:, 0].t().expand(len(wave), -1, -1), conv.bias
    if isinstance(norm, GroupNormOverTime):
        mean, covariance = packing.once(wave, lambda: window_statistics(conv, padded, packing))
        scale, shift = normalisation(norm, conv, mean, covariance)
        weight = weight * scale[:, None]
    windows = padded.reshape(packing.padded_slots, -1)[packing.slots].view(-1, kernel)
    # The shift is one more tap, on a constant 1. Zeros up to what a GPU multiplies fast.
    taps = kernel if shift is None else kernel + 1
    zeros = max(16, 1 << (taps - 1).bit_length()) - taps
    windows = F.pad(F.pad(windows, (0, taps - kernel), value=1.0), (0, zeros))
    if shift is not None:
        weight = torch.cat([weight, shift.expand(len(wave), -1)[:, None]], 1)
    weight = F.pad(weight, (0, 0, 0, zeros))
    kind = torch.get_autocast_dtype(wave.device.type) if torch.is_autocast_enabled(wave.device.type) else wave.dtype
    windows, weight = windows.to(kind), weight.to(kind)
    rows = len(windows) // len(packing.slots)
    if _has_kernel(block, windows, rows):
        from .first_layer import windows_gelu

        return windows_gelu(windows, weight, packing.slot_owners, rows)
    return finish(block, F.grouped_mm(windows, weight, offs=packing.slot_ends * rows))


def _has_kernel(block: ConvBlock, windows: Tensor, rows: int) -> bool:
    """Whether a convolution and its GELU run as one kernel."""
    powers = rows >= 16 and rows & (rows - 1) == 0
    plain = not isinstance(block.norm, ChannelLayerNorm) and (block.dropout.p == 0 or not block.training)
    half = windows.dtype in (torch.float16, torch.bfloat16)
    return windows.is_cuda and half and powers and plain and importlib.util.find_spec("triton") is not None


def window_statistics(conv: nn.Conv1d, windows: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
    """Mean (B, 1, kernel) and covariance (B, kernel, kernel) of each utterance's windows (B, T, kernel).

    In float64: a filter that cancels most of the wave leaves little of the covariance's digits.
    """
    frames = frame_lengths(packing.samples, [(conv.out_channels, conv.kernel_size[0], conv.stride[0])])
    content = (torch.arange(windows.shape[1], device=windows.device)[None] < frames[:, None])[..., None]
    count = frames[:, None, None]
    mean = torch.where(content, windows, 0).sum(1, keepdim=True, dtype=torch.float64) / count
    centred = torch.where(content, windows - mean.float(), 0).double()
    return mean.float().double(), centred.transpose(1, 2) @ centred / count


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
