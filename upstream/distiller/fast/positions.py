"""The positional convolution by overlap-add, its Fourier transforms written as matrix products.

A kernel of 128 frames is wide enough that products of spectra cost a small part of sliding it along (overlap-add:
Oppenheim and Schafer, Discrete-Time Signal Processing, section 8.7). As products the transforms of such short blocks
are as fast as an FFT, run in any precision and on any device, and need no layout of their own.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Response:
    """What a filter of ``kernel`` frames over ``groups`` of channels makes of a block of as many frames.

    Attributes:
        analysis: (2 * bins, kernel), the transform of a block: real parts, then imaginary ones.
        along: (bins * groups, D / groups, 2 * D / groups), what real parts become: real and imaginary parts.
        across: of the same shape, what imaginary parts become.
        synthesis: (2 * kernel, 2 * bins), the inverse transform: a block's result is twice as long.
    """

    analysis: Tensor
    along: Tensor
    across: Tensor
    synthesis: Tensor
    groups: int

    @classmethod
    def of(cls, weight: Tensor, groups: int) -> Response:
        """From (D, D / groups, kernel), as of ``torch.nn.Conv1d``."""
        inner = weight.shape[1]
        analysis, synthesis = transforms(weight.shape[-1], weight.device)
        # The filter slides the other way in a convolution.
        response = analysis @ weight.flip(-1).flatten(0, 1).t()
        real, imaginary = response.view(2, -1, groups, inner, inner).transpose(3, 4).flatten(1, 2)
        along, across = torch.cat([real, imaginary], -1), torch.cat([-imaginary, real], -1)
        return cls(analysis, along, across, synthesis, groups)

    def to(self, dtype: torch.dtype) -> Response:
        analysis, along = self.analysis.to(dtype), self.along.to(dtype)
        return Response(analysis, along, self.across.to(dtype), self.synthesis.to(dtype), self.groups)

    def convolve(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """(B, T, D) to (B, T, D), as :func:`overlap_add`."""
        batch, frames, width = x.shape
        kernel, inner = self.analysis.shape[1], self.along.shape[1]
        start = kernel - 1 - kernel // 2
        blocks = -(-(start + frames) // kernel)
        # (B * blocks, 2 * bins, D)
        parts = F.pad(x, (0, 0, 0, blocks * kernel - frames)).reshape(-1, kernel, width)
        spectra = torch.bmm(self.analysis.expand(len(parts), -1, -1), parts)
        real, imaginary = spectra.unflatten(1, (2, -1)).unflatten(-1, (self.groups, inner)).flatten(2, 3).unbind(1)
        product = torch.bmm(real.transpose(0, 1), self.along)
        product = torch.baddbmm(product, imaginary.transpose(0, 1), self.across)
        product = product.view(-1, self.groups, len(real), 2, inner).permute(2, 3, 0, 1, 4)
        product = product.reshape(len(parts), -1, width)
        halves = torch.bmm(self.synthesis.expand(len(parts), -1, -1), product).view(batch, blocks, 2, kernel, width)
        # The second half of each block's result belongs to the next block; beyond the last one nothing is wanted.
        first, second = (half.flatten(1, 2) for half in halves.unbind(2))
        y = (first + F.pad(second[:, :-kernel], (0, 0, kernel, 0)))[:, start : start + frames]
        return y if bias is None else y + bias


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
    return Response.of(weight, groups).convolve(x, bias)


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
