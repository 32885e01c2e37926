"""From gradients to an update: clipped, and left out where they are not finite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .config import OptimizerConfig
from .members import Member, clip_gradients, drop_gradients
from .optimizer import build_optimizer


class Updates:
    """Updates of some members. A GPU is not waited for where it can leave out an update by itself.

    Args:
        members: what is trained.
        config: of the optimiser.
        clipping: largest norm of a member's gradient.
        scaler: of the loss.
    """

    def __init__(
        self, members: Sequence[Member], config: OptimizerConfig, clipping: float, scaler: torch.amp.GradScaler
    ):
        self.members, self.clipping, self.scaler = members, clipping, scaler
        self.optimizer: Any = build_optimizer(members, config)
        fused = all(group.get("fused") for group in self.optimizer.param_groups)
        self._ahead = fused and len(members) == 1 and not scaler.is_enabled()
        self._known: list[tuple[int, Tensor, Any]] = []  # step, norms on their way here, and when they have arrived

    def make(self, step: int, rate: float) -> None:
        """Clip, update with a learning rate, and forget the gradients. ``step``: its number."""
        self.scaler.unscale_(self.optimizer)
        norms = clip_gradients(self.members, self.clipping)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        if self._ahead:
            # A fused optimiser leaves an update out where the device says so, as it does for a scaler of losses.
            self.optimizer.found_inf = (~norms.isfinite()).float()[0]
        elif not self.scaler.is_enabled():
            drop_gradients(self.members, norms.isfinite().tolist())
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self._remember(step, norms)

    def _remember(self, step: int, norms: Tensor) -> None:
        if not norms.is_cuda:
            self._known.append((step, norms, None))
            return
        here = torch.empty(norms.shape, dtype=norms.dtype, pin_memory=True)
        here.copy_(norms, non_blocking=True)
        self._known.append((step, here, torch.cuda.current_stream().record_event()))

    def norms(self, newest: bool) -> Iterator[tuple[int, list[float]]]:
        """Step and norms of each member's gradient, of updates made since the last call.

        Args:
            newest: with that of the newest update, for which a GPU has to be waited for.
        """
        keep = 1 if self._ahead and not newest else 0
        while len(self._known) > keep:
            step, norms, arrived = self._known.pop(0)
            if arrived is not None:
                arrived.synchronize()
            yield step, norms.tolist()
