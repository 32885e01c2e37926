"""Steps of distillation recorded once for each shape of a batch, then replayed.

A step is some hundreds of kernels, and a CPU that launches each of them, beside others that decode audio, is slower
than a GPU that computes them. A CUDA graph is launched in one go. It holds the forward pass, the backward pass and the
copy of the gradients to where all graphs leave them; so autograd is told of a loss whose gradients are known already.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from ..encoder import TransformerEncoder
from ..model import DistillerModel, Encoder
from ..objective import DistillationLoss
from .front_end import has_kernel
from .packing import Packing
from .step import PackedDistillation

_MOST = 128
"""Recordings kept at a time: each takes a few megabytes, and all of them together the memory of one step."""


class ReplayedDistillation:
    """The loss of a batch, as of :class:`PackedDistillation`, whose steps are recorded.

    Args:
        step: on a GPU, where :func:`replay_refusal` has nothing against it.
    """

    def __init__(self, step: PackedDistillation):
        self.step = step
        self._recordings: dict[tuple[int, ...], _Recording] = {}
        self._results: _Results | None = None
        self._warm = False

    def __call__(self, wave: Tensor, lengths: Tensor) -> DistillationLoss:
        """wave: (B, samples) zero-padded waveforms at 16 kHz; lengths: (B,) samples of each, on the CPU."""
        if not (torch.is_grad_enabled() and self.step.student.training):
            return self.step(wave, lengths)
        wave, packing = self.step.student.pack(wave, lengths, few_shapes=True)
        if not self._warm:  # what is compiled and tuned at the first call cannot be recorded
            self._warm = True
            return self.step.packed(wave, packing)
        shape = *wave.shape, len(packing.slots)
        recording = self._recordings.pop(shape, None) or self._record(wave, packing)
        self._recordings[shape] = recording  # the last used last
        assert self._results is not None
        return recording.replay(wave, packing, self._results)

    def _record(self, wave: Tensor, packing: Packing) -> _Recording:
        if self._results is None:
            torch.cuda.empty_cache()  # recordings share memory of their own; that of the first step is done with
            self._results = _Results(self.step.student)
        if len(self._recordings) >= _MOST:
            del self._recordings[next(iter(self._recordings))]
        return _Recording(self.step, wave, packing, self._results)


def replay_refusal(student: DistillerModel, teacher: Encoder, dtype: torch.dtype) -> str | None:
    """Why steps on a GPU cannot be recorded; None where they can.

    Args:
        dtype: of products, float32 without autocast.
    """
    if dtype == torch.float16:
        return "float16 scales the loss"
    if isinstance(student.encoder, TransformerEncoder):
        if student.encoder.layerdrop > 0:
            return "encoder_layerdrop leaves out other layers in each step"
        if student.encoder.gradient_checkpointing:
            return "gradient_checkpointing goes forward twice"
    kernels = all(has_kernel(one.feature_extractor.blocks[0], _rows(one)) for one in (student, teacher))
    if not kernels and (dtype != torch.bfloat16 or torch.cuda.get_device_capability() < (9, 0)):
        return "the first layer's products wait for the GPU here"
    return None


def _rows(model: Encoder) -> int:
    """Frames of the first layer for each of the last."""
    return model.config.downsample_rate // model.conv_layers[0][2]


class _Results:
    """Where recordings leave what they computed, and the memory they share while they do."""

    def __init__(self, student: nn.Module):
        self.parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
        self.gradients = [torch.empty_like(parameter) for parameter in self.parameters]
        self.memory = torch.cuda.graph_pool_handle()


class _Recording:
    """A step on batches of one shape."""

    def __init__(self, step: PackedDistillation, wave: Tensor, packing: Packing, results: _Results):
        self._wave, self._packing = wave.clone(), packing
        self._graph = torch.cuda.CUDAGraph()
        torch.clear_autocast_cache()  # of weights before the last update
        # Threads that pin memory must not break a recording, nor a kernel that is loaded only now.
        with torch.cuda.graph(self._graph, results.memory, capture_error_mode="relaxed"):
            loss = step.packed(self._wave, packing)
            found = torch.autograd.grad(loss.total, results.parameters, allow_unused=True)
            self._used = [index for index, gradient in enumerate(found) if gradient is not None]
            torch._foreach_copy_(
                [results.gradients[index] for index in self._used], [cast(Tensor, found[index]) for index in self._used]
            )
            self._values = torch.stack([loss.total.detach(), *loss.parts.values()])
        self._names = list(loss.parts)
        packing.forget()
        torch.clear_autocast_cache()

    def replay(self, wave: Tensor, packing: Packing, results: _Results) -> DistillationLoss:
        self._wave.copy_(wave)
        self._packing.whole.copy_(packing.whole)
        self._graph.replay()
        total, *parts = self._values.clone().unbind()
        parameters = [results.parameters[index] for index in self._used]
        gradients = [results.gradients[index] for index in self._used]
        total = cast(Tensor, _KnownGradients.apply(total, gradients, *parameters))
        return DistillationLoss(total, dict(zip(self._names, parts, strict=True)))


class _KnownGradients(torch.autograd.Function):
    """A number, and its gradients with respect to some parameters."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *torch._foreach_mul(ctx.gradients, grad_outputs[0])
