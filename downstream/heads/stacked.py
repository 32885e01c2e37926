"""For parts of a head that are better computed for all heads together than through ``torch.func.vmap``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

_STACKED: ContextVar[bool] = ContextVar("stacked", default=False)


@contextmanager
def stacked() -> Iterator[None]:
    """Within, heads run under ``torch.func.vmap``, one level of it, over a first dimension of heads."""
    token = _STACKED.set(True)
    try:
        yield
    finally:
        _STACKED.reset(token)


def is_stacked() -> bool:
    """Whether this runs within ``stacked``."""
    return _STACKED.get()


def at_once(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Within ``stacked``: one head's part of what a function gives for all heads.

    Args:
        function: differentiable, of tensors that have a first dimension of heads, (K, ...), to one such tensor.
        tensors: its arguments as one head sees them, without that dimension.
    """
    return _AtOnce.apply(function, *tensors)  # type: ignore[return-value]


class _AtOnce(torch.autograd.Function):
    """It never has a gradient of its own: ``vmap`` computes with ordinary tensors, which autograd follows."""

    @staticmethod
    def forward(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        return function(*(tensor[None] for tensor in tensors))[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def vmap(info: Any, in_dims: Any, function: Callable[..., Tensor], *tensors: Tensor) -> tuple[Tensor, int]:
        heads = [
            tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            for tensor, dim in zip(tensors, in_dims[1:], strict=True)
        ]
        return function(*heads), 0
