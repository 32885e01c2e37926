"""Several heads of one task that learn from the same batches, each as if it were alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ..heads.stacked import stacked
from .task import Task

log = logging.getLogger(__name__)

Losses = tuple[Tensor, dict[str, Tensor]]


class SideBySide:
    """Losses of K heads of one task on one batch, each as if it were alone.

    The heads stay modules of their own, whose parameters are what is learnt. For each batch they are stacked, and the
    task's ``loss`` runs once for all of them under ``torch.func.vmap``. A loss that cannot run so runs for one head
    after the other from then on; the log says so.

    Args:
        task: whose loss it is.
        heads: of equal shape, each from its ``build_head``.
    """

    def __init__(self, task: Task, heads: Sequence[nn.Module]):
        self.task, self.heads = task, list(heads)
        self._loss = _Loss(task, self.heads[0])
        self._parameters = [dict(head.named_parameters(prefix="head")) for head in self.heads]
        # What a module writes into its own buffers under vmap would be lost.
        self._stacks = len(self.heads) > 1 and not any(True for _ in self.heads[0].buffers())

    def losses(self, features: Tensor, lengths: Tensor, targets: Sequence[Any]) -> Losses:
        """The loss of each head, (K,), and figures to log, (K,) each.

        The gradient of the losses' sum is every head's own.

        Args:
            features: (K, B, T, D), those of each head, with zeros after each utterance's end.
            lengths: (B,) frames of each, on the CPU.
            targets: of each utterance, from the task's ``target``.
        """
        if self._stacks and _pays(features.device):
            try:
                return self._together(features, lengths, targets)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # what vmap raises for what it cannot do; any other comes up again below
                reason = str(error).strip().partition("\n")[0]
                log.info("The heads of %s run one after the other, not stacked: %s", self.task.name, reason)
                self._stacks = False
        return self._in_turn(features, lengths, targets)

    def _together(self, features: Tensor, lengths: Tensor, targets: Sequence[Any]) -> Losses:
        parameters = {name: torch.stack([own[name] for own in self._parameters]) for name in self._parameters[0]}

        def loss(parameters: dict[str, Tensor], features: Tensor) -> Losses:
            return functional_call(self._loss, parameters, (features, lengths, targets))

        with stacked():
            return vmap(loss, randomness="different")(parameters, features)

    def _in_turn(self, features: Tensor, lengths: Tensor, targets: Sequence[Any]) -> Losses:
        each = [self.task.loss(head, own, lengths, targets) for head, own in zip(self.heads, features, strict=True)]
        figures = {name: torch.stack([own[name] for _, own in each]) for name in each[0][1]}
        return torch.stack([loss for loss, _ in each]), figures


class _Loss(nn.Module):
    """A task's loss as a module, so that the parameters of its head can be put in place by name."""

    def __init__(self, task: Task, head: nn.Module):
        super().__init__()
        self.task, self.head = task, head

    def forward(self, features: Tensor, lengths: Tensor, targets: Sequence[Any]) -> Losses:
        return self.task.loss(self.head, features, lengths, targets)


def _pays(device: torch.device) -> bool:
    """Whether stacked heads are faster than one after the other: on a CPU none are, which even one keeps busy."""
    return device.type != "cpu"
