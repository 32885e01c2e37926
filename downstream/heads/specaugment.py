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
    """(B, T, D) features with parts removed; zeros stay after an utterance's end.

    Everything is drawn from torch's generator on the CPU, so that a resumed run draws the same on any device.

    Args:
        features: (B, T, D).
        lengths: (B,) frames of each, on the CPU.
    """
    if config.apply_time_warp:
        features = torch.stack(
            [
                _warp(row, length, config.time_warp_window)
                for row, length in zip(features, lengths.tolist(), strict=True)
            ]
        )
    if config.apply_freq_mask and config.num_freq_mask:
        mask = _mask(len(features), features.shape[2], config.freq_mask_width_range, config.num_freq_mask)
        features = features.masked_fill(mask[:, None, :].to(features.device), 0.0)
    if config.apply_time_mask and config.num_time_mask:
        mask = _mask(len(features), int(lengths.max()), config.time_mask_width_range, config.num_time_mask)
        mask = F.pad(mask, (0, features.shape[1] - mask.shape[1]))
        features = features.masked_fill(mask[:, :, None].to(features.device), 0.0)
    return features


def _warp(row: Tensor, length: int, window: int) -> Tensor:
    """(T, D): a random frame moves, what is before and after it is stretched."""
    if length - window <= window:
        return row
    center = int(torch.randint(window, length - window, (1,)))
    warped = int(torch.randint(center - window, center + window, (1,))) + 1
    left = _stretch(row[:center], warped)
    right = _stretch(row[center:length], length - warped)
    return torch.cat([left, right, row[length:]])


def _stretch(part: Tensor, frames: int) -> Tensor:
    size = (frames, part.shape[1])
    return F.interpolate(part[None, None], size, mode="bicubic", align_corners=False)[0, 0]


def _mask(batch: int, size: int, widths: list[int], count: int) -> Tensor:
    """(B, size), true where one of ``count`` stretches lies; each of them has its own place and width."""
    width = torch.randint(widths[0], widths[1], (batch, count))
    start = torch.randint(0, max(1, size - int(width.max())), (batch, count))
    place = torch.arange(size)
    return ((start[..., None] <= place) & (place < (start + width)[..., None])).any(1)
