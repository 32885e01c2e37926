"""One step of distillation on the fast path, teacher first, so that little of it is in memory with the student."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..encoder import PositionalConv, TransformerEncoder
from ..model import DistillerModel, Encoder
from ..objective import DistillationLoss, distillation_loss
from .packing import Packing
from .products import OverlapAdd


class PackedDistillation:
    """The loss of a batch, over frames of content only.

    Args:
        student: with prediction heads, on the teacher's frames (see :func:`refusal`).
        teacher: without gradient.
        autocast: of the run. The teacher is settled for it, and for this path.
        compiled: whether parts of teacher and student are compiled, for batches of any shape at once.
    """

    def __init__(self, student: DistillerModel, teacher: Encoder, autocast: Callable[[], Any], compiled: bool):
        self.student, self.teacher = student, teacher
        with autocast():
            device = next(teacher.parameters()).device.type
            if torch.is_autocast_enabled(device):
                _settle(teacher, torch.get_autocast_dtype(device))
        self._loss = distillation_loss
        if compiled:
            student.compile_fast_path()
            teacher.compile_fast_path()
            self._loss = _compiled(distillation_loss)

    def __call__(self, wave: Tensor, lengths: Tensor) -> DistillationLoss:
        """wave: (B, samples) zero-padded waveforms at 16 kHz; lengths: (B,) samples of each, on the CPU."""
        return self.packed(*self.student.pack(wave, lengths))

    def packed(self, wave: Tensor, packing: Packing) -> DistillationLoss:
        """wave: (B, samples) zero-padded to whole frame shifts; packing: of its utterances."""
        targets = self._teach(wave, packing)
        config = self.student.config
        out = self.student(wave, packing.samples, packing=packing)
        assert out.predictions is not None
        return self._loss(
            out.predictions,
            targets,
            packing.counted,
            config.targets,
            loss_type=config.loss_type,
            cosine_weight=config.cosine_loss,
            features=out.features if config.feat_pen_loss > 0 else None,
            feature_penalty=config.feat_pen_loss,
        )

    @torch.no_grad()
    def _teach(self, wave: Tensor, packing: Packing) -> Tensor:
        """(1, N, V, D) hidden states of the layers that the student predicts."""
        layers = self.student.config.targets
        states = self.teacher(wave, packing.samples, last_layer=max(layers), packing=packing).hidden_states
        return torch.stack([states[layer] for layer in layers], 1)


def _compiled(loss: Callable[..., DistillationLoss]) -> Callable[..., DistillationLoss]:
    """Compiled for any number of frames. Numbers among the arguments stay constants: as variables they would be
    computed with on the CPU, by a kernel that takes longer to compile than all the others."""
    compiled = torch.compile(loss)

    def call(predictions: Tensor, targets: Tensor, counted: Tensor | None, *args: Any, **options: Any) -> Any:
        for frames, x in ((2, predictions), (2, targets), (1, counted), (1, options["features"])):
            if x is not None:
                torch._dynamo.maybe_mark_dynamic(x, frames)
        return compiled(predictions, targets, counted, *args, **options)

    return call


def _settle(teacher: Encoder, dtype: torch.dtype) -> None:
    """Convert and compute once what would be so in every step, of a teacher that does not change."""
    for block in teacher.feature_extractor.blocks[1:]:  # the first is folded into its normalisation, in float64
        block.conv.to(dtype)
    if isinstance(teacher.encoder, TransformerEncoder):
        positions = teacher.encoder.pos_conv
        if isinstance(positions, PositionalConv) and len(positions) == 1:
            teacher.encoder.pos_conv = OverlapAdd(positions, dtype)
    for module in teacher.modules():
        if isinstance(module, nn.Linear):
            module.to(dtype)


def refusal(student: DistillerModel, teacher: Encoder | None) -> str | None:
    """Why a student and the twin of its teacher cannot take the fast path; None where they can."""
    config = student.config
    if teacher is None:
        return "the teacher has no twin"
    if [layer[1:] for layer in student.conv_layers] != [layer[1:] for layer in teacher.conv_layers]:
        return "the front ends of student and teacher make different frames"
    if config.norm_over_padding or teacher.config.norm_over_padding:
        return "norm_over_padding needs the padding"
    if config.task_emb_type in ("add", "concat"):
        return f"task_emb_type={config.task_emb_type} makes several utterances of each"
    return None
