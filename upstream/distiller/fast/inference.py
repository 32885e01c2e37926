"""Inference of a student, without gradients: the plain definition's numbers in float32, or nearly so in less.

A copy of the student has faster parts in the places of its own: products in the precision that was asked for, query,
key and value from one of them, the positional filter's spectrum computed once.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..encoder import ACTIVATIONS, PositionalConv, SelfAttention, TransformerLayer
from ..frontend import GroupNormOverTime, normalize_wave
from ..model import DistillerModel, DistillerOutput, SplitLinear
from .blocks import BlockFrontEnd, Moments
from .front_end import packed_features
from .int8 import Int8Attention, Int8FeedForward, Int8Linear, Int8RowConv, Int8SplitLinear
from .packing import Packing
from .products import JointAttention, OverlapAdd, RowConv
from .threads import blocks_alone

log = logging.getLogger(__name__)

PRECISIONS = ("float32", "bfloat16", "int8")


def check_precision(precision: str) -> str:
    """Raises ValueError where there is no such precision."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} is none of {', '.join(PRECISIONS)}")
    return precision


class Inference:
    """Runs a student in one precision.

    On a CPU each utterance of a batch runs by itself, so that no time goes into padding; on a GPU their frames lie end
    to end.

    Args:
        model: whose weights may go on changing: they are converted anew when they have, except through ``.data``,
            which leaves no trace.
        precision: "float32"; "bfloat16" (products and what passes between them; statistics stay wider); "int8"
            (products of all convolutions but the first, and of all linear layers, with a scale for each frame and each
            output channel).
    """

    def __init__(self, model: DistillerModel, precision: str):
        self.source = model
        self.precision = check_precision(precision)
        self._made: tuple[Any, DistillerModel] | None = None

    @property
    def model(self) -> DistillerModel:
        """The copy that runs, of the weights as they are."""
        weights = [(id(weight), weight.data_ptr(), _version(weight)) for weight in self.source.parameters()]
        if self._made is None or self._made[0] != weights:
            self._made = weights, prepared(self.source, self.precision)
        return self._made[1]

    def refuse_gradients(self) -> None:
        """Raises ValueError where the precision has none."""
        if self.precision != "float32":
            raise ValueError(
                f'precision="{self.precision}" is for inference: call eval() and run under torch.no_grad(), or take '
                'precision="float32"'
            )

    @torch.no_grad()
    def __call__(self, waves: Sequence[Tensor], predict: bool = True) -> DistillerOutput:
        """As the plain model on these waveforms (samples,) at 16 kHz, padded; float32; frames of padding are zero.

        Raises:
            ValueError: an utterance is shorter than the receptive field of one frame.
        """
        model, device = self.model, waves[0].device
        lengths = torch.tensor([len(wave) for wave in waves])
        if model.config.norm_over_padding and self.precision == "float32":
            # s3prl's very numbers, of padded frames too.
            return self.source(pad_sequence(list(waves), batch_first=True), lengths, predict)
        model.check_lengths(lengths)
        with torch.autocast(device.type, enabled=False):  # the precision is chosen already
            packs = device.type == "cuda" and model.config.task_emb_type not in ("add", "concat")
            if packs and len(waves) > 1:
                return self._packed(model, waves, lengths, predict)
            heard = int(lengths.max()) if model.config.norm_over_padding else 0
            alone = [self._alone(model, wave, heard, predict) for wave in waves]
        return alone[0] if len(alone) == 1 else _apply(_padded, alone)

    def _alone(self, model: DistillerModel, wave: Tensor, heard: int, predict: bool) -> DistillerOutput:
        moments = Moments(model.config, wave.device)
        moments.add(wave)
        if heard > len(wave):
            moments.add(wave.new_zeros(heard - len(wave)))
        return self.encode(self.front_end(moments)(wave)[None], predict)

    def front_end(self, moments: Moments) -> BlockFrontEnd:
        """The front end for an utterance of which these are the statistics."""
        config = self.model.config
        eps = config.normalize_eps if config.normalize else None
        return BlockFrontEnd(self.model.feature_extractor, moments, eps, activations(self.source, self.precision))

    @torch.no_grad()
    def encode(self, features: Tensor, predict: bool) -> DistillerOutput:
        """What comes after the front end, for one utterance: (1, T, C)."""
        blocks = self.precision == "int8" and features.device.type == "cpu"
        with blocks_alone() if blocks else contextlib.nullcontext():
            out = self.model.encode(features, torch.tensor([features.shape[1]]), None, predict)
        return _apply(lambda parts: parts[0].float(), [out])

    def _packed(
        self, model: DistillerModel, waves: Sequence[Tensor], lengths: Tensor, predict: bool
    ) -> DistillerOutput:
        wave, packing = model.pack(pad_sequence(list(waves), batch_first=True), lengths)
        if model.config.normalize:
            wave = normalize_wave(wave, packing.samples, model.config.normalize_eps)
        features = packed_features(model.feature_extractor, wave, packing, activations(self.source, self.precision))
        out = model.encode(features, packing.bounds.diff(), packing, predict)
        return _apply(lambda parts: _unpacked(parts[0], packing).float(), [out])


def prepared(model: DistillerModel, precision: str) -> DistillerModel:
    """A copy for inference, its parts replaced. What stays as it is shares the model's weights in float32."""
    dtype = activations(model, precision)
    on_cpu = not next(model.parameters()).is_cuda
    if precision == "bfloat16" and on_cpu and not torch.cpu.get_capabilities().get("avx512_f", True):
        log.warning("precision=bfloat16 is many times slower than float32 on this processor, which has no AVX-512")
    weights = list(model.parameters()) if dtype == torch.float32 else []
    fast = copy.deepcopy(model, cast(dict[int, Any], {id(weight): weight for weight in weights})).eval()
    plain, (first, *others) = model.feature_extractor.blocks[0], fast.feature_extractor.blocks
    for block in others:
        block[0] = Int8RowConv(block.conv) if precision == "int8" else RowConv(block.conv, dtype)
    _replace(fast, precision, dtype)
    if dtype != torch.float32:
        fast.to(dtype)
        first[0] = plain.conv
        if isinstance(plain.norm, GroupNormOverTime):
            first[2] = plain.norm
    return fast


def activations(model: DistillerModel, precision: str) -> torch.dtype:
    """Type of what passes between the layers. Around int8 products a GPU is the faster the narrower it is."""
    narrow = precision == "bfloat16" or (precision == "int8" and next(model.parameters()).is_cuda)
    return torch.bfloat16 if narrow else torch.float32


def _replace(module: nn.Module, precision: str, dtype: torch.dtype) -> None:
    for name, child in module.named_children():
        if isinstance(child, SelfAttention):
            child = Int8Attention(child) if precision == "int8" else JointAttention(child)
        elif isinstance(child, PositionalConv) and len(child) == 1:
            child = OverlapAdd(child, dtype)
        elif isinstance(child, TransformerLayer) and child.activation is F.gelu and precision == "int8":
            layer = cast(Any, child)
            layer.fc1, layer.activation, layer.fc2 = (
                Int8FeedForward(child.fc1, child.fc2),
                ACTIVATIONS["linear"],
                nn.Identity(),
            )
        elif isinstance(child, nn.Linear) and precision == "int8":
            child = Int8Linear(child)
        elif isinstance(child, SplitLinear) and child.parts > 1 and precision == "int8":
            child = Int8SplitLinear(child)
        setattr(module, name, child)
        _replace(child, precision, dtype)


def _version(weight: Tensor) -> int:
    return 0 if weight.is_inference() else weight._version


def _apply(function: Callable[[list[Tensor]], Tensor], outs: Sequence[DistillerOutput]) -> DistillerOutput:
    """One output of several, part by part; ``frames`` are put end to end."""
    layers = zip(*(out.hidden_states for out in outs), strict=True)
    predictions = [out.predictions for out in outs if out.predictions is not None]
    return DistillerOutput(
        function([out.features for out in outs]),
        function([out.projected for out in outs]),
        [function(list(layer)) for layer in layers],
        function([out.output for out in outs]),
        function(predictions) if predictions else None,
        torch.cat([out.frames for out in outs]),
    )


def _unpacked(x: Tensor, packing: Packing) -> Tensor:
    """(1, ..., V, D) to (B, ..., T, D)."""
    if x.dim() == 3:
        return packing.unpack(x)
    return torch.stack([packing.unpack(layer) for layer in x.unbind(1)], 1)


def _padded(parts: list[Tensor]) -> Tensor:
    """(b, ..., T, D) of each utterance to (B, ..., longest T, D), zeros where padded."""
    longest = max(part.shape[-2] for part in parts)
    whole = parts[0].new_zeros(sum(map(len, parts)), *parts[0].shape[1:-2], longest, parts[0].shape[-1])
    start = 0
    for part in parts:
        whole[start : start + len(part), ..., : part.shape[-2], :] = part
        start += len(part)
    return whole
