"""Mean and standard deviation of frames that do not fit into memory at once."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Running mean and sum of squared deviations of each dimension of each layer (Chan et al. 1979), in float64.

    Attributes:
        count: frames so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean = self._squares = torch.zeros(())

    def add(self, features: Tensor) -> None:
        """Take in the frames of one utterance, (layers, frames, D)."""
        frames = features.shape[1]
        if not frames:
            return
        variance, mean = torch.var_mean(features.float(), dim=1, correction=0)
        self._merge(frames, mean.cpu().double(), variance.cpu().double() * frames)

    def merge(self, other: Moments) -> None:
        """Take in the frames that another has seen."""
        self._merge(other.count, other._mean, other._squares)

    def _merge(self, count: int, mean: Tensor, squares: Tensor) -> None:
        total = self.count + count
        if not self.count:
            self._mean, self._squares = mean, squares
        elif count:
            gap = mean - self._mean
            self._mean = self._mean + gap * (count / total)
            self._squares = self._squares + squares + gap * gap * (self.count * count / total)
        self.count = total

    def of(self, layer: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (of a sample, 1e-9 at least) of a layer's dimensions, in float32."""
        deviation = (self._squares[layer] / max(self.count - 1, 1)).sqrt().clamp(min=1e-9)
        return self._mean[layer].float().to(device), deviation.float().to(device)
