"""Batches on their way to a GPU while it works on the ones before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch


def to_device(batches: Iterable[tuple[Any, Any]], device: torch.device) -> Iterator[tuple[Any, Any]]:
    """Batches on a device, in order. To a GPU the next one is copied beside the work on this one.

    Args:
        batches: each with something that belongs to it. A batch has a method ``to`` that copies without waiting; its
            tensors are in page-locked memory.
    """
    if device.type != "cuda":
        for batch, other in batches:
            yield batch.to(device), other
        return
    copies = torch.cuda.Stream(device)
    before: tuple[Any, Any, Any] | None = None
    for batch, other in batches:
        with torch.cuda.stream(copies):
            following = batch.to(device), other, copies.record_event()
        if before is not None:
            yield _hand_over(*before)
        before = following
    if before is not None:
        yield _hand_over(*before)


def _hand_over(batch: Any, other: Any, copied: Any) -> tuple[Any, Any]:
    stream = torch.cuda.current_stream()
    stream.wait_event(copied)
    for value in vars(batch).values():
        if isinstance(value, torch.Tensor) and value.is_cuda:
            value.record_stream(stream)  # its memory was taken on the other stream, which must not reuse it too early
    return batch, other
