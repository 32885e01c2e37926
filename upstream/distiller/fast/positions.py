"""The positional convolution by overlap-add, its Fourier transforms written as matrix products.

A kernel of 128 frames is wide enough that products of spectra cost a small part of sliding it along (overlap-add:
Oppenheim and Schafer, Discrete-Time Signal Processing, section 8.7). As products the transforms of such short blocks
are as fast as an FFT, run in any precision and on any device, and need no layout of their own.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor


def overlap_add(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """A grouped convolution over time that keeps the number of frames.

    Args:
        x: (B, T, D), zeros where padded.
        weight: (D, D / groups, kernel), as of ``torch.nn.Conv1d``.
        bias: (D,).
        groups: of channels.

    Returns:
        (B, T, D), as from a convolution padded by half the kernel of which, where the kernel is even, the last frame
        is dropped.
    """
    batch, frames, width = x.shape
    kernel = weight.shape[-1]
    blocks = -(-frames // kernel)
    analysis, synthesis = transforms(kernel, x.device)
    inner = width // groups
    # A block's spectrum, real parts above imaginary ones: (B * blocks, 2 * bins, D).
    parts = F.pad(x, (0, 0, 0, blocks * kernel - frames)).reshape(-1, kernel, width)
    spectra = torch.bmm(analysis.expand(len(parts), -1, -1), parts)
    real, imaginary = spectra.unflatten(1, (2, -1)).unflatten(-1, (groups, inner)).flatten(2, 3).unbind(1)
    # (bins * groups, channels in, channels out) of the filter, which slides the other way in a convolution.
    response = analysis @ weight.flip(-1).flatten(0, 1).t()
    response = response.view(2, -1, groups, inner, inner).transpose(3, 4).flatten(1, 2)
    along = torch.cat([response[0], response[1]], -1)
    across = torch.cat([-response[1], response[0]], -1)
    product = torch.bmm(real.transpose(0, 1), along) + torch.bmm(imaginary.transpose(0, 1), across)
    product = product.view(-1, groups, len(real), 2, inner).permute(2, 3, 0, 1, 4).reshape(len(real), -1, width)
    # Each block's result is twice as long: its second half belongs to the next block.
    halves = torch.bmm(synthesis.expand(len(parts), -1, -1), product).view(batch, blocks, 2, kernel, width)
    first, second = halves[:, :, 0].flatten(1, 2), halves[:, :, 1].flatten(1, 2)
    whole = F.pad(first, (0, 0, 0, kernel)) + F.pad(second, (0, 0, kernel, 0))
    start = kernel - 1 - kernel // 2
    y = whole[:, start : start + frames]
    return y if bias is None else y + bias


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)
@torch.no_grad()
def transforms(kernel: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The Fourier transform of ``kernel`` samples padded to twice as many, (2 * bins, kernel), and the inverse."""
    size = 2 * kernel
    bins = torch.arange(kernel + 1, device=device)
    phase = torch.outer(bins, torch.arange(size, device=device)) % size * (2 * math.pi / size)
    cosine, sine = phase.cos(), phase.sin()
    analysis = torch.cat([cosine, -sine])[:, :kernel]
    weight = torch.where((bins == 0) | (bins == kernel), 1.0, 2.0)[:, None] / size
    synthesis = torch.cat([cosine * weight, -sine * weight]).t()
    return analysis, synthesis
