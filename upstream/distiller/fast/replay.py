"""Steps of distillation captured as CUDA graphs, once for each shape of a batch, then replayed.

A step is some hundreds of kernels, and a CPU that launches each of them, beside others that decode audio, is slower
than a GPU that computes them. A CUDA graph is launched in one go. It holds the forward pass, the backward pass and the
copy of the gradients to where all graphs leave them; so autograd is told of a loss whose gradients are known already.
"""

from __future__ import annotations

import gc
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
"""Graphs kept at a time: each takes a few megabytes, and all of them together the memory of one step."""
_NO_COMPILING = "fail_on_recompile"


class ReplayedDistillation:
    """The loss of a batch, as of :class:`PackedDistillation`, whose steps are replayed.

    Args:
        step: on a GPU, where :func:`replay_refusal` has nothing against it.
    """

    def __init__(self, step: PackedDistillation):
        self.step = step
        self._graphs: dict[tuple[int, ...], _StepGraph] = {}
        self._shared: _Shared | None = None

    def __call__(self, wave: Tensor, lengths: Tensor) -> DistillationLoss:
        """wave: (B, samples) zero-padded waveforms at 16 kHz; lengths: (B,) samples of each, on the CPU."""
        if not (torch.is_grad_enabled() and self.step.student.training):
            return self.step(wave, lengths)
        wave, packing = self.step.student.pack(wave, lengths, few_shapes=True)
        shape = *wave.shape, len(packing.slots)
        graph = self._graphs.pop(shape, None) or self._capture(wave, packing)
        self._graphs[shape] = graph  # the last used last
        return graph.replay(wave, packing)

    def _capture(self, wave: Tensor, packing: Packing) -> _StepGraph:
        torch.cuda.synchronize()  # none of the graphs that are given up may be under way
        if len(self._graphs) >= _MOST:
            del self._graphs[next(iter(self._graphs))]
        if self._shared is None:
            self._shared = _Shared(self.step.student)
            self._prepare(wave, packing, self._shared)
        if self._shared.outgrown(wave, packing):
            self._graphs.clear()
            self._shared.renew(wave, packing)
        try:
            return _StepGraph(self.step, wave, packing, self._shared)
        except RuntimeError as error:
            if _NO_COMPILING not in str(error):
                raise
        self._prepare(wave, packing, self._shared)  # what was compiled so far does not serve this shape
        return _StepGraph(self.step, wave, packing, self._shared)

    def _prepare(self, wave: Tensor, packing: Packing, shared: _Shared) -> None:
        """A step without consequences: what it compiles and tunes could not be captured."""
        with torch.random.fork_rng([wave.device]):
            torch.autograd.grad(self.step.packed(wave, packing).total, shared.parameters, allow_unused=True)
        packing.forget()
        torch.clear_autocast_cache()
        gc.collect()  # nothing may be left of its autograd graph, nor of its memory: graphs have some of their own
        torch.cuda.empty_cache()


def replay_refusal(student: DistillerModel, teacher: Encoder, dtype: torch.dtype) -> str | None:
    """Why steps on a GPU cannot be captured; None where they can.

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


class _Shared:
    """What graphs share: where waveforms are put and gradients left, and their memory in between."""

    def __init__(self, student: nn.Module):
        self.parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
        self.gradients = [torch.empty_like(parameter) for parameter in self.parameters]
        self._slots, self._wave = 0, torch.empty(0)

    def outgrown(self, wave: Tensor, packing: Packing) -> bool:
        """Whether a batch is larger than all before: its graph would take memory of its own beside that of the others,
        whose pieces are too small for it."""
        return wave.numel() > self._wave.numel() or len(packing.slots) > self._slots

    def renew(self, wave: Tensor, packing: Packing) -> None:
        """Give up the memory, which no graph may use any more, for some that is large enough."""
        self._slots = max(self._slots, len(packing.slots))
        self._wave = wave.new_empty(max(self._wave.numel(), wave.numel()))
        self.memory = torch.cuda.graph_pool_handle()

    def place_for(self, wave: Tensor) -> Tensor:
        """A tensor of the shape of ``wave``; its contents are anything."""
        return self._wave[: wave.numel()].view_as(wave)


class _StepGraph:
    """A step on batches of one shape."""

    def __init__(self, step: PackedDistillation, wave: Tensor, packing: Packing, shared: _Shared):
        self._wave, self._packing = shared.place_for(wave), packing
        self._graph = torch.cuda.CUDAGraph()
        torch.clear_autocast_cache()  # of weights before the last update
        # "relaxed": threads that pin memory must not break a capture, nor a kernel that is loaded only now.
        capture = torch.cuda.graph(self._graph, shared.memory, capture_error_mode="relaxed")
        try:
            with torch.compiler.set_stance(_NO_COMPILING), capture:
                loss = step.packed(self._wave, packing)
                found = torch.autograd.grad(loss.total, shared.parameters, allow_unused=True)
                triples = zip(shared.parameters, shared.gradients, found, strict=True)
                used = [(parameter, place, gradient) for parameter, place, gradient in triples if gradient is not None]
                torch._foreach_copy_([place for _, place, _ in used], [gradient for *_, gradient in used])
                self._values = torch.stack([loss.total.detach(), *loss.parts.values()])
        finally:  # what lies in the graph's memory is for it alone
            packing.forget()
            torch.clear_autocast_cache()
        self._names = list(loss.parts)
        self._known = [(parameter, place) for parameter, place, _ in used]

    def replay(self, wave: Tensor, packing: Packing) -> DistillationLoss:
        self._wave.copy_(wave)
        self._packing.whole.copy_(packing.whole)
        self._graph.replay()
        total, *parts = self._values.clone().unbind()
        total = cast(Tensor, _KnownGradients.apply(total, total.new_zeros((), requires_grad=True), self._known))
        return DistillationLoss(total, dict(zip(self._names, parts, strict=True)))


class _KnownGradients(torch.autograd.Function):
    """A number whose gradients, with respect to parameters, are known: its backward pass adds them to theirs.

    The parameters stay out of autograd's sight: a node for each of them would bind the next capture, which it does
    not belong to, to the stream of this step.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, anchor: Tensor, known: list[tuple[nn.Parameter, Tensor]]) -> Tensor:
        ctx.known = known
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, None, None]:
        gradients = torch._foreach_mul([gradient for _, gradient in ctx.known], grad_outputs[0])
        for (parameter, _), gradient in zip(ctx.known, gradients, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return None, None, None
