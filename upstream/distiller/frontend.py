"""Convolutional front end: waveform in, frames out, with nothing leaking in from padding.

The architecture is that of wav2vec 2.0 (Baevski et al., 2020, arXiv 2006.11477), shared by HuBERT, XLSR and data2vec.
Parameter names are fairseq's, which s3prl uses too.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ConvLayer = tuple[int, int, int]
"""Output channels, kernel width and stride of one convolution, both in samples of its input."""

Length = TypeVar("Length", int, Tensor)

HUBERT_CONV_LAYERS = "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"
_MOST_LAYERS = 1000  # a checkpoint that repeats a layer more often than that is out to fill the memory


def parse_conv_layers(text: str) -> list[ConvLayer]:
    """Read fairseq's description of the front end, such as ``[(512,10,5)] + [(512,3,2)] * 4``, without evaluating it.

    Lists of (channels, kernel, stride), ``+`` between lists and ``*`` by a whole number are understood.

    Raises:
        ValueError: the text is anything else, or a number in it is not positive.
    """

    def build(node: ast.expr) -> Any:
        match node:
            case ast.List(elts=elements) | ast.Tuple(elts=elements):
                return [build(element) for element in elements]
            case ast.Constant(value=int() as number) if not isinstance(number, bool):
                return number
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return build(left) + build(right)
            case ast.BinOp(left=left, op=ast.Mult(), right=right):
                part, times = build(left), build(right)
                if isinstance(part, int):
                    part, times = times, part
                if len(part) * times <= _MOST_LAYERS:
                    return part * times
        raise TypeError(ast.unparse(node))

    try:
        layers: list[Any] = [tuple(layer) for layer in build(ast.parse(text.strip(), mode="eval").body)]
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(
            f"extractor_conv_feature_layers={text!r} is not a list of (channels, kernel, stride) such as "
            f"{HUBERT_CONV_LAYERS!r}: {error}"
        ) from None
    if not layers or any(len(layer) != 3 or any(not isinstance(n, int) or n < 1 for n in layer) for layer in layers):
        raise ValueError(
            f"extractor_conv_feature_layers={text!r} needs (channels, kernel, stride), whole numbers above 0, a layer"
        )
    return layers


def format_conv_layers(layers: Sequence[Sequence[int]]) -> str:
    """The text that :func:`parse_conv_layers` reads back, as s3prl's checkpoints carry it."""
    return "[" + ", ".join(f"({c},{k},{s})" for c, k, s in layers) + "]"


def frame_lengths(lengths: Length, conv_layers: Sequence[ConvLayer]) -> Length:
    """Frames that the front end makes of ``lengths`` samples; 400 samples make the first one in HuBERT's front end."""
    for _, kernel, stride in conv_layers:
        lengths = (lengths - kernel) // stride + 1
    return lengths


def receptive_field(conv_layers: Sequence[ConvLayer]) -> int:
    """Samples that the first frame sees: 400 for HuBERT's front end."""
    samples = 1
    for _, kernel, stride in reversed(conv_layers):
        samples = (samples - 1) * stride + kernel
    return samples


def valid_mask(lengths: Tensor, size: int, device: torch.device) -> Tensor | None:
    """(B, size) bool, True where an utterance has content; None where nothing is padded, which is the faster case.

    Lengths on a GPU are not asked, since the answer would be waited for: they always give a mask.
    """
    if lengths.device.type == "cpu" and not torch.compiler.is_compiling() and bool((lengths >= size).all()):
        return None
    return torch.arange(size, device=device)[None] < lengths.to(device)[:, None]


def normalize_wave(wave: Tensor, lengths: Tensor, eps: float) -> Tensor:
    """Zero mean and unit variance over each utterance's own samples, padding zero again.

    Args:
        wave: (B, samples) zero-padded waveforms.
        lengths: (B,) samples of each.
        eps: added to the variance: 1e-5 in fairseq and s3prl, 1e-7 in transformers.
    """
    mask = valid_mask(lengths, wave.shape[1], wave.device)
    if mask is None:
        return F.layer_norm(wave, wave.shape[-1:], eps=eps)
    count = lengths.to(wave.device)[:, None]
    mean = wave.masked_fill(~mask, 0).sum(1, keepdim=True) / count
    centred = (wave - mean).masked_fill(~mask, 0)
    return centred * torch.rsqrt(centred.square().sum(1, keepdim=True) / count + eps)


class GroupNormOverTime(nn.Module):
    """Group normalisation with one group a channel, over the valid frames of each utterance.

    ``torch.nn.GroupNorm`` takes its statistics over the padding too, so that an utterance's features change with the
    batch it is in. Alone, the two agree.
    """

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x: (B, C, T); mask: (B, T) bool or None. Statistics are taken in float32."""
        if mask is None:
            return F.group_norm(x.float(), x.shape[1], self.weight, self.bias, self.eps).type_as(x)
        content = mask[:, None].float()
        count = content.sum(2, keepdim=True)
        wide = x.float()
        mean = (wide * content).sum(2, keepdim=True) / count
        variance = ((wide - mean).square() * content).sum(2, keepdim=True) / count
        scale = torch.rsqrt(variance + self.eps) * self.weight[:, None]
        return ((wide - mean) * scale + self.bias[:, None]).type_as(x)


class ChannelLayerNorm(nn.Sequential):
    """Layer normalisation over the channels of (B, C, T), nested so that its weights are named as in fairseq."""

    def __init__(self, channels: int):
        super().__init__(nn.Identity(), nn.LayerNorm(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self[1](x.transpose(1, 2).float()).transpose(1, 2).type_as(x)


class ConvBlock(nn.Sequential):
    """Convolution, dropout, normalisation where the mode has one, GELU."""

    def __init__(self, channels_in: int, layer: ConvLayer, norm: nn.Module | None, bias: bool, dropout: float):
        channels, kernel, stride = layer
        conv = nn.Conv1d(channels_in, channels, kernel, stride, bias=bias)
        nn.init.kaiming_normal_(conv.weight)
        super().__init__(conv, nn.Dropout(dropout), *([norm] if norm else []), nn.GELU())

    @property
    def conv(self) -> nn.Conv1d:
        return cast(nn.Conv1d, self[0])

    @property
    def dropout(self) -> nn.Dropout:
        return cast(nn.Dropout, self[1])

    @property
    def norm(self) -> nn.Module | None:
        return self[2] if len(self) > 3 else None

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        for module in self:
            x = module(x, mask) if isinstance(module, GroupNormOverTime) else module(x)
        return x


class ConvFrontEnd(nn.Module):
    """Waveform (B, samples) to features (B, T, channels).

    Args:
        conv_layers: (channels, kernel, stride) a layer.
        mode: "default": one group normalisation after the first convolution (HuBERT base); "layer_norm": a layer
            normalisation after each (large models, XLSR).
        bias: whether the convolutions have one.
        dropout: probability, after each convolution.
        norm_over_padding: take the group normalisation's statistics over padding as well, as s3prl does.
    """

    def __init__(
        self,
        conv_layers: Sequence[ConvLayer],
        mode: str = "default",
        bias: bool = False,
        dropout: float = 0.0,
        norm_over_padding: bool = False,
    ):
        super().__init__()
        self.specs = list(conv_layers)
        self.norm_over_padding = norm_over_padding
        self.conv_layers = nn.ModuleList()
        channels_in = 1
        for index, layer in enumerate(self.specs):
            norm = None
            if mode == "layer_norm":
                norm = ChannelLayerNorm(layer[0])
            elif index == 0:
                norm = GroupNormOverTime(layer[0])
            self.conv_layers.append(ConvBlock(channels_in, layer, norm, bias, dropout))
            channels_in = layer[0]

    @property
    def blocks(self) -> list[ConvBlock]:
        return cast(list[ConvBlock], list(self.conv_layers))

    def forward(self, wave: Tensor, lengths: Tensor) -> Tensor:
        """wave: (B, samples); lengths: (B,) samples. Returns (B, T, C); only frames of content mean anything."""
        first = self.specs[:1]
        frames = frame_lengths(wave.shape[1], first)
        mask = None
        if not self.norm_over_padding:
            mask = valid_mask(frame_lengths(lengths, first), frames, wave.device)
        x = wave[:, None]
        for block in self.blocks:
            x = block(x, mask)
        return x.transpose(1, 2)
