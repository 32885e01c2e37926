"""The front end on one utterance, a block of frames at a time.

What passes between convolutions is then small enough for a CPU's cache, and an utterance may come in pieces. The first
layer's normalisation is over the whole utterance all the same: its statistics follow from those of the wave.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..frontend import ChannelLayerNorm, ConvFrontEnd, GroupNormOverTime, receptive_field
from ..model_config import EncoderConfig
from .front_end import convolve, finish, gram, scale_and_shift
from .int8 import Int8RowConv, front_end_on_cpu
from .threads import in_parallel

FRAMES = 64
"""Frames of a block on a CPU: the first layer's output, 64 rows for each, then takes 8 MB in float32."""


class Moments:
    """Mean and covariance of a wave, where it is to be normalised, and of its windows, where their filters' output is.

    The wave may come in pieces.
    """

    def __init__(self, config: EncoderConfig, device: torch.device):
        _, self.kernel, self.stride = config.conv_layers[0]
        self.needs_wave, self.needs_windows = config.normalize, config.extractor_mode == "default"
        self.samples = self.windows = 0
        wide = {"dtype": torch.float64, "device": device}
        self.wave = self.energy = torch.zeros((), **wide)
        self.first, self.second = torch.zeros(self.kernel, **wide), torch.zeros(self.kernel, self.kernel, **wide)
        self.left = torch.zeros(0, device=device)

    def add(self, piece: Tensor) -> None:
        """piece: (samples,), what comes next."""
        self.samples += len(piece)
        if self.needs_wave:
            wide = piece.double()
            self.wave = self.wave + wide.sum()
            self.energy = self.energy + wide @ wide
        if self.needs_windows:
            self._add_windows(torch.cat([self.left, piece]))

    def _add_windows(self, wave: Tensor) -> None:
        count = max(0, (len(wave) - self.kernel) // self.stride + 1)
        if count:
            windows = wave.unfold(0, self.kernel, self.stride).double()
            self.first += windows.sum(0)
            self.second += gram(windows)
            self.windows += count
        self.left = wave[count * self.stride :]

    def of_windows(self) -> tuple[Tensor, Tensor]:
        """Mean (1, 1, kernel) and covariance (1, kernel, kernel)."""
        mean = self.first / self.windows
        return mean[None, None], (self.second / self.windows - torch.outer(mean, mean))[None]

    def of_wave(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of the samples."""
        mean = self.wave / self.samples
        return mean, (self.energy / self.samples - mean.square()).clamp_min(0)


class BlockFrontEnd:
    """A front end with what one utterance's statistics make of its first layer.

    Args:
        front_end: its first convolution and normalisation in float32; the others of any precision.
        moments: of the whole utterance.
        normalize_eps: what to add to the variance where the waveform is to be normalised, else None.
        dtype: of what passes between the layers.
    """

    def __init__(self, front_end: ConvFrontEnd, moments: Moments, normalize_eps: float | None, dtype: torch.dtype):
        self.front_end, self.dtype = front_end, dtype
        first = front_end.blocks[0]
        self.normal: tuple[Tensor, Tensor] | None = None
        if normalize_eps is not None:
            mean, variance = moments.of_wave()
            self.normal = mean, torch.rsqrt(variance + normalize_eps)
        weight, shift = first.conv.weight[:, 0].t(), first.conv.bias
        if isinstance(first.norm, GroupNormOverTime):
            centre, covariance = moments.of_windows()
            if self.normal is not None:
                mean, scale = self.normal
                centre, covariance = (centre - mean) * scale, covariance * scale.square()
            factor, offset = scale_and_shift(first.norm, first.conv, centre, covariance)
            weight, shift = weight * factor[0], offset[0]
        self.weight, self.shift = weight.t(), shift
        convs = [block.conv for block in front_end.blocks[1:]] if moments.wave.device.type == "cpu" else []
        self.int8 = [conv for conv in convs if isinstance(conv, Int8RowConv)]
        self.fused = bool(self.int8) and not isinstance(first.norm, ChannelLayerNorm)
        if self.fused:
            self.taps = weight.detach().contiguous()
            self.offset = torch.zeros(weight.shape[1]) if shift is None else shift.detach()
        self.hop = math.prod(stride for _, _, stride in front_end.specs)
        self.field = receptive_field(front_end.specs)

    def frames_of(self, samples: int) -> int:
        """Frames that so many samples make; 0 where they are too few for one."""
        return max(0, (samples - self.field) // self.hop + 1)

    def __call__(self, wave: Tensor) -> Tensor:
        """(samples,) to (T, C): all frames that these samples are enough for."""
        frames = self.frames_of(len(wave))
        if wave.device.type != "cpu":
            return self._block(wave, frames)
        features = wave.new_empty(frames, self.front_end.specs[-1][0], dtype=self.dtype)

        def block(start: int, stop: int) -> None:
            make = self._int8_block if self.fused else self._block
            features[start:stop] = make(wave[start * self.hop :], stop - start)

        if self.int8:
            in_parallel(block, frames, FRAMES)
            return features
        for start in range(0, frames, FRAMES):
            block(start, min(start + FRAMES, frames))
        return features

    def _normalized(self, wave: Tensor) -> Tensor:
        if self.normal is None:
            return wave
        mean, scale = self.normal
        return (wave - mean.float()) * scale.float()

    def _int8_block(self, wave: Tensor, frames: int) -> Tensor:
        wave = self._normalized(wave[: (frames - 1) * self.hop + self.field])
        return front_end_on_cpu(self.taps, self.offset, self.front_end.specs[0][2], self.int8, wave)

    def _block(self, wave: Tensor, frames: int) -> Tensor:
        # A slot is as many samples as there are from one frame to the next; the last frame reaches beyond its own.
        slots = frames - 1 + -(-self.field // self.hop)
        first, *others = self.front_end.blocks
        (kernel,), (stride,) = first.conv.kernel_size, first.conv.stride
        samples = slots * self.hop + max(0, kernel - stride)
        wave = self._normalized(wave[:samples])
        windows = F.pad(wave, (0, samples - len(wave))).unfold(0, kernel, stride)[: slots * self.hop // stride]
        # In fewer bits a smooth wave would drown in the rounding of what such filters leave of it.
        x = finish(first, F.linear(windows, self.weight, self.shift).to(self.dtype))
        for block in others:
            x = finish(block, convolve(block, x))
        return x[:frames]
