"""The front end as matrix products over rows of channels.

A convolution of stride s over (T, C) is a sum of products on views of the rows, one for each s of its taps. Utterances
lie end to end, each from a slot of its own on: a frame of content never reaches into the next utterance. The first
layer's normalisation needs no pass over its output, since mean and variance of a linear filter's output follow from
mean and covariance of what it filters.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..frontend import ChannelLayerNorm, ConvBlock, ConvFrontEnd, GroupNormOverTime, frame_lengths
from .compilers import can_compile
from .packing import Packing, for_product
from .strided import strided_product


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
    x = first_layer(first, wave, packing, front_end.norm_over_padding, dtype)
    for block in others:
        x = finish(block, convolve(block, x))
    return packing.frames.take(x)[None]


def first_layer(
    block: ConvBlock, wave: Tensor, packing: Packing, over_padding: bool, dtype: torch.dtype | None
) -> Tensor:
    """The first convolution with what follows it: (B, samples) to (rows, C) of the filled slots."""
    conv, norm = block.conv, block.norm
    (kernel,), (stride,) = conv.kernel_size, conv.stride
    padded = F.pad(wave, (0, kernel - stride)).unfold(1, kernel, stride)
    weight, shift = conv.weight[:, 0].t().expand(len(wave), -1, -1), conv.bias
    if isinstance(norm, GroupNormOverTime):
        frames = _frames(conv, packing.samples, over_padding)
        mean, covariance = packing.once("statistics", wave, lambda: window_statistics(padded, frames))
        scale, shift = scale_and_shift(norm, conv, mean, covariance)
        weight = weight * scale[:, None]
    # The shift is one more tap, on a constant 1. Zeros up to what a GPU multiplies fast.
    shifted = shift is not None
    zeros = max(16, 1 << (kernel - 1 + shifted).bit_length()) - kernel - shifted
    if shift is not None:
        weight = torch.cat([weight, shift.expand(len(wave), -1)[:, None]], 1)
    weight = for_product(F.pad(weight, (0, 0, 0, zeros)))

    def filled() -> Tensor:
        windows = for_product(padded).reshape(packing.padded_slots, -1).index_select(0, packing.slots)
        return F.pad(F.pad(windows.view(-1, kernel), (0, shifted), value=1.0), (0, zeros))

    windows = packing.once(f"windows with {int(shifted)} and {zeros}", wave, filled)
    rows = len(windows) // len(packing.slots)
    if windows.is_cuda and has_kernel(block, rows):
        from .first_layer import windows_gelu

        return windows_gelu(windows, weight, packing.slot_owners, rows, dtype or windows.dtype)
    x = F.grouped_mm(windows, weight, offs=packing.slot_ends * rows)
    return finish(block, x if dtype is None else x.to(dtype))


def has_kernel(block: ConvBlock, rows: int) -> bool:
    """Whether a first convolution, of so many rows for each slot, and its GELU run as one kernel on a GPU."""
    powers = rows >= 16 and rows & (rows - 1) == 0
    plain = not isinstance(block.norm, ChannelLayerNorm) and (block.dropout.p == 0 or not block.training)
    return powers and plain and can_compile()


def _frames(conv: nn.Conv1d, samples: Tensor, over_padding: bool) -> Tensor:
    """How many of the first layer's frames count for its normalisation, (B,) of (B,) samples."""
    heard = samples.max().expand_as(samples) if over_padding else samples
    return frame_lengths(heard, [(conv.out_channels, conv.kernel_size[0], conv.stride[0])])


def window_statistics(windows: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (B, 1, kernel) and covariance (B, kernel, kernel) of each utterance's windows, in float64.

    Args:
        windows: (B, T, kernel).
        frames: (B,) how many of T count.
    """
    content = (torch.arange(windows.shape[1], device=windows.device)[None] < frames[:, None])[..., None]
    count = frames[:, None, None]
    mean = torch.where(content, windows, 0).sum(1, keepdim=True, dtype=torch.float64) / count
    centred = torch.where(content, windows - mean.float(), 0).double()
    return mean.float().double(), gram(centred) / count


def gram(x: Tensor) -> Tensor:
    """``x.T @ x`` of (..., T, kernel): (..., kernel, kernel)."""
    if not x.is_cuda:
        return x.transpose(-1, -2) @ x
    # A GPU would leave a sum over so many rows to one of its processors.
    rest = -x.shape[-2] % 64
    parts = (F.pad(x, (0, 0, 0, rest)) if rest else x).unflatten(-2, (64, -1))
    return (parts.transpose(-1, -2) @ parts).sum(-3)


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


def finish(block: ConvBlock, x: Tensor) -> Tensor:
    """What comes after a convolution, on (T, C): dropout, a normalisation over channels if there is one, GELU."""
    x = block.dropout(x)
    if isinstance(block.norm, ChannelLayerNorm):
        norm = cast(nn.LayerNorm, block.norm[1])
        x = norm(x.to(norm.weight.dtype)).type_as(x)
    return F.gelu(x)
