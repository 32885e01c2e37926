"""SpecAugment (arXiv 1904.08779) on features: time warp, frequency masks, time masks, in s3prl's order and draws."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class SpecAugmentConfig:
    """Names and defaults of the section ``specaug`` in s3prl's recipes for ASR and SNIPS."""

    apply_time_warp: bool = True
    time_warp_window: int = 5
    """the middle of an utterance moves by fewer frames than this"""
    apply_freq_mask: bool = True
    freq_mask_width_range: list[int] = field(default_factory=lambda: [0, 50])
    """least width, and one more than the largest"""
    num_freq_mask: int = 4
    apply_time_mask: bool = True
    time_mask_width_range: list[int] = field(default_factory=lambda: [0, 40])
    num_time_mask: int = 2

    @classmethod
    def none(cls) -> SpecAugmentConfig:
        """Nothing is applied."""
        return cls(apply_time_warp=False, apply_freq_mask=False, apply_time_mask=False)

    @property
    def active(self) -> bool:
        """Whether anything is applied."""
        return self.apply_time_warp or self.apply_freq_mask or self.apply_time_mask

    def check(self) -> None:
        """Raises ValueError, naming the key, for values that make no mask."""
        for key in ("freq_mask_width_range", "time_mask_width_range"):
            widths = getattr(self, key)
            if len(widths) != 2 or not 0 <= widths[0] < widths[1]:
                raise ValueError(f"task.specaug.{key} is {list(widths)}: it must be [LOW, HIGH] with 0 <= LOW < HIGH")
        for key in ("num_freq_mask", "num_time_mask"):
            if getattr(self, key) < 0:
                raise ValueError(f"task.specaug.{key} is {getattr(self, key)}: it must be 0 or more")
        if self.time_warp_window < 1:
            raise ValueError(f"task.specaug.time_warp_window is {self.time_warp_window}: it must be at least 1")


def spec_augment(features: Tensor, lengths: Tensor, config: SpecAugmentConfig) -> Tensor:
    """Features with parts removed; zeros stay after an utterance's end.

    Everything is drawn from torch's generator on the CPU, so that a resumed run draws the same on any device.

    Args:
        features: (..., B, T, D); what is drawn is the same for all leading dimensions.
        lengths: (B,) frames of each, on the CPU.
    """
    batch, frames, width = features.shape[-3:]
    if config.apply_time_warp:
        features = _interpolate(features, *_warp(lengths, frames, config.time_warp_window))
    if config.apply_freq_mask and config.num_freq_mask:
        mask = _mask(batch, width, config.freq_mask_width_range, config.num_freq_mask)
        features = features.masked_fill(mask[:, None, :].to(features.device), 0.0)
    if config.apply_time_mask and config.num_time_mask:
        mask = _mask(batch, int(lengths.max()), config.time_mask_width_range, config.num_time_mask)
        mask = F.pad(mask, (0, frames - mask.shape[1]))
        features = features.masked_fill(mask[:, :, None].to(features.device), 0.0)
    return features


def _warp(lengths: Tensor, frames: int, window: int) -> tuple[Tensor, Tensor]:
    """A random frame of each utterance moves; what is before it and what is from it on is stretched, each by itself.

    Returns:
        The four frames that each frame is made of, (B, T, 4), and their shares: the cubic interpolation that
        ``F.interpolate`` does as "bicubic".
    """
    ends, moved = [], []
    for length in lengths.tolist():
        center = warped = length
        if length - window > window:
            center = int(torch.randint(window, length - window, (1,)))
            warped = int(torch.randint(center - window, center + window, (1,))) + 1
        ends.append([0, center, length, frames])
        moved.append([0, warped, length, frames])
    source, target, time = torch.tensor(ends), torch.tensor(moved), torch.arange(frames)
    part = (time >= target[:, 1:3, None]).sum(1)  # before the frame, from it on, and after the utterance's end
    low, size = source.gather(1, part), source.diff().gather(1, part)
    scale = (size / target.diff().gather(1, part)).float()
    place = _fused(scale, time - target.gather(1, part) + 0.5, -0.5)
    below = place.floor()
    at = below.long()[..., None] + torch.arange(-1, 3)
    return torch.minimum(at.clamp(min=0), size[..., None] - 1) + low[..., None], _cubic(place - below)


def _cubic(past: Tensor) -> Tensor:
    """Keys' kernel with a = -0.75: shares (..., 4) of the frames at -1, 0, 1 and 2 of what lies ``past`` 0."""
    a, near, far = -0.75, torch.stack([past, 1 - past]), torch.stack([past + 1, 1 - past + 1])
    near = _fused(_fused(near, a + 2, -(a + 3)) * near, near, 1)
    far = _fused(_fused(_fused(far, a, -5 * a), far, 8 * a), far, -4 * a)
    return torch.stack([far[0], near[0], near[1], far[1]], -1)


def _fused(value: Tensor, factor: Tensor | float, summand: float) -> Tensor:
    """``value * factor + summand``, rounded once: as a processor does it, and so F.interpolate. It matters: in a
    float32 a place within an utterance has few digits left after the point."""
    return (value.double() * factor + summand).float()


def _interpolate(features: Tensor, at: Tensor, share: Tensor) -> Tensor:
    """Sums of frames of (..., B, T, D): those that ``at`` (B, T, 4) names, each times its ``share`` (B, T, 4)."""
    batch, frames, width = features.shape[-3:]
    rows = features.reshape(-1, width)
    first = torch.arange(0, len(rows), frames, device=rows.device).view(-1, batch, 1, 1)
    at, share = torch.broadcast_tensors(at.to(rows.device) + first, share.to(rows))
    # One kernel forward and few backward, where looking up and adding one of the four after another takes dozens.
    bags = F.embedding_bag(at.flatten(0, 2), rows, mode="sum", per_sample_weights=share.flatten(0, 2))
    return bags.view(features.shape)


def _mask(batch: int, size: int, widths: list[int], count: int) -> Tensor:
    """(B, size), true where one of ``count`` stretches lies; each of them has its own place and width."""
    width = torch.randint(widths[0], widths[1], (batch, count))
    start = torch.randint(0, max(1, size - int(width.max())), (batch, count))
    place = torch.arange(size)
    return ((start[..., None] <= place) & (place < (start + width)[..., None])).any(1)
