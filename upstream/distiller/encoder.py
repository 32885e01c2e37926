"""Transformer encoder with a convolutional positional embedding, post- or pre-norm.

Parameter names are fairseq's (``encoder.layers.0.self_attn.k_proj.weight`` ...), which s3prl uses too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .fast.packing import Packing, for_product
from .fast.positions import overlap_add

Where = Tensor | Packing | None
"""Which frames of (B, T, D) are content: a (B, T) bool mask, True for content; None: all of them, of each utterance by
itself; a packing: all of them, of several utterances end to end (B is 1)."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_accurate": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_fast": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu_squared": lambda x: F.relu(x).square(),
    "tanh": torch.tanh,
    "linear": lambda x: x,
    "swish": F.silu,
}


def same_length_conv(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """Convolution over (B, D, T) that keeps T: padded by half the kernel, a frame dropped where the kernel is even."""
    kernel = weight.shape[-1]
    return F.conv1d(x, weight, bias, padding=kernel // 2, groups=groups)[..., : x.shape[-1]]


class WeightNormConv(nn.Module):
    """The convolution of the positional embedding, its weight split into a length for each tap and a direction.

    Weight normalisation (Salimans and Kingma, 2016, arXiv 1602.07868) over dimension 2, in the parameter names of the
    checkpoints: ``weight_g`` (1, 1, kernel) and ``weight_v`` (D, D / groups, kernel).
    """

    def __init__(self, width: int, kernel: int, groups: int):
        super().__init__()
        self.groups = groups
        direction = torch.empty(width, width // groups, kernel).normal_(0.0, math.sqrt(4.0 / (kernel * width)))
        self.weight_v = nn.Parameter(direction)
        self.weight_g = nn.Parameter(self.tap_lengths(direction))
        self.bias = nn.Parameter(torch.zeros(width))

    @staticmethod
    def tap_lengths(direction: Tensor) -> Tensor:
        return torch.linalg.vector_norm(direction, dim=(0, 1), keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        return same_length_conv(x, self.weight(), self.bias, self.groups)

    def weight(self) -> Tensor:
        """(D, D / groups, kernel)."""
        return self.weight_v * (self.weight_g / self.tap_lengths(self.weight_v))


class PlainConv(nn.Module):
    """One of data2vec's stacked positional convolutions, followed by a layer normalisation without parameters."""

    def __init__(self, width: int, kernel: int, groups: int):
        super().__init__()
        self.groups = groups
        conv = nn.Conv1d(width, width, kernel, groups=groups)
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: Tensor) -> Tensor:
        x = same_length_conv(x, self.weight, self.bias, self.groups).transpose(1, 2)
        return F.layer_norm(x, x.shape[-1:]).transpose(1, 2)


class PositionalConv(nn.Sequential):
    """Relative positions from a wide convolution over time: (B, T, D) to (B, T, D).

    Args:
        width: D.
        kernel: frames that one convolution sees, all of them together where depth > 1.
        groups: groups of channels.
        depth: 1 for wav2vec 2.0 and HuBERT; data2vec-audio stacks several narrower ones.
    """

    def __init__(self, width: int, kernel: int, groups: int, depth: int = 1):
        if depth == 1:
            super().__init__(WeightNormConv(width, kernel, groups))
        else:
            each = max(3, kernel // depth)
            super().__init__(*(nn.Sequential(PlainConv(width, each, groups)) for _ in range(depth)))

    def forward(self, x: Tensor, mask: Where) -> Tensor:
        if isinstance(mask, Packing):
            return mask.pack(self._fast(mask.unpack(for_product(x)), mask))
        x = x.transpose(1, 2)
        for index, block in enumerate(self):
            if index > 0 and mask is not None:
                # The next convolution must find zeros beyond the end, as it does for an utterance alone.
                x = x.masked_fill(~mask[:, None], 0)
            x = F.gelu(block(x))
        return x.transpose(1, 2)

    def _fast(self, x: Tensor, packing: Packing) -> Tensor:
        if len(self) > 1:
            return self.forward(x, packing.content)
        block = cast(WeightNormConv, self[0])
        return F.gelu(overlap_add(x, block.weight(), block.bias, block.groups))


class SelfAttention(nn.Module):
    """Multi-head self-attention over (B, T, D)."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Where) -> Tensor:
        p = self.dropout if self.training else 0.0
        if isinstance(mask, Packing):
            query, key, value = self._project(x[0])
            return self.out_proj(mask.attend(query, key, value, p).flatten(1))[None]
        query, key, value = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        keys = None if mask is None else mask[:, None, None]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=keys, dropout_p=p)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Query, key and value (V, heads, width of a head) from (V, D), in one product."""
        projections = self.q_proj, self.k_proj, self.v_proj
        weight, bias = (torch.cat([getattr(p, name) for p in projections]) for name in ("weight", "bias"))
        return F.linear(x, weight, bias).view(len(x), 3, self.heads, -1).unbind(1)


class TransformerLayer(nn.Module):
    """Self-attention and feed-forward block, normalised after each (HuBERT base) or before each (XLSR)."""

    def __init__(
        self,
        width: int,
        ffn: int,
        heads: int,
        dropout: float,
        attention_dropout: float,
        activation_dropout: float,
        activation: str,
        norm_first: bool,
    ):
        super().__init__()
        self.norm_first = norm_first
        self.activation = ACTIVATIONS[activation]
        self.self_attn = SelfAttention(width, heads, attention_dropout)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, ffn)
        self.fc2 = nn.Linear(ffn, width)
        self.final_layer_norm = nn.LayerNorm(width)
        self.dropout1 = nn.Dropout(dropout)
        self.dropout2 = nn.Dropout(activation_dropout)
        self.dropout3 = nn.Dropout(dropout)

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.dropout3(self.fc2(self.dropout2(self.activation(self.fc1(x)))))

    def forward(self, x: Tensor, mask: Where) -> Tensor:
        if self.norm_first:
            x = x + self.dropout1(self.self_attn(self.self_attn_layer_norm(x), mask))
            return x + self.feed_forward(self.final_layer_norm(x))
        x = self.self_attn_layer_norm(x + self.dropout1(self.self_attn(x, mask)))
        return self.final_layer_norm(x + self.feed_forward(x))


class TransformerEncoder(nn.Module):
    """Positions added, then the layers.

    Args:
        pos_conv: the positional embedding.
        layers: one or more layers.
        width: D.
        norm_first: whether the layers are pre-norm; the encoder's own normalisation then comes after them.
        dropout: probability, on the input of the first layer.
        layerdrop: probability of skipping a layer in training (LayerDrop, arXiv 1909.11556).
    """

    def __init__(
        self,
        pos_conv: PositionalConv,
        layers: list[TransformerLayer],
        width: int,
        norm_first: bool,
        dropout: float,
        layerdrop: float,
    ):
        super().__init__()
        self.pos_conv: nn.Module = pos_conv
        self.layers = nn.ModuleList(layers)
        self.layer_norm = nn.LayerNorm(width)
        self.norm_first = norm_first
        self.dropout = dropout
        self.layerdrop = layerdrop
        self.gradient_checkpointing = False
        self.apply(self._initialise)

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        """BERT's initialisation of linear layers (arXiv 1810.04805)."""
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.02)
            nn.init.zeros_(module.bias)

    def _run(self, layer: nn.Module, x: Tensor, mask: Where) -> Tensor:
        if self.gradient_checkpointing and self.training:
            return cast(Tensor, checkpoint(layer, x, mask, use_reentrant=False))
        return layer(x, mask)

    def forward(self, x: Tensor, mask: Where, last_layer: int | None = None) -> tuple[Tensor, list[Tensor]]:
        """Run the first ``last_layer`` layers, all of them by default.

        Args:
            x: (B, T, D), zero where padded.
            mask: which frames are content.

        Returns:
            The output (B, T, D), normalised in a pre-norm encoder that was run to its end, and the hidden states: the
            first layer's input, then each layer's output before that normalisation.
        """
        x = x + self.pos_conv(x, mask)
        if not self.norm_first:
            x = self.layer_norm(x)
        x = F.dropout(x, self.dropout, self.training)
        hidden_states = [x]
        for layer in self.layers[:last_layer]:
            # A skipped layer repeats its input, so that the hidden states stay as many as the layers.
            if not (self.training and self.layerdrop > 0 and torch.rand(()) < self.layerdrop):
                x = self._run(layer, x, mask)
            hidden_states.append(x)
        if self.norm_first and last_layer in (None, len(self.layers)):
            x = self.layer_norm(x)
        return x, hidden_states
