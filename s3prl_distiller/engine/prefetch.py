"""Batches on their way to a GPU while it works on the ones before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch


def to_device(batches: Iterable[Any], device: torch.device) -> Iterator[Any]:
    """Batches on a device, in order. To a GPU the next one is copied beside the work on this one.

    Args:
        batches: with a method ``to`` that copies without waiting, and tensors in page-locked memory.
    """
    if device.type != "cuda":
        for batch in batches:
            yield batch.to(device)
        return
    copies = torch.cuda.Stream(device)
    before: tuple[Any, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(copies):
            moved, ready = batch.to(device), copies.record_event()
        if before is not None:
            yield _hand_over(*before)
        before = moved, ready
    if before is not None:
        yield _hand_over(*before)


def _hand_over(batch: Any, ready: torch.cuda.Event) -> Any:
    stream = torch.cuda.current_stream()
    stream.wait_event(ready)
    for value in vars(batch).values():
        if isinstance(value, torch.Tensor) and value.is_cuda:
            value.record_stream(stream)  # its memory was taken on the other stream: not to be reused before this one
    return batch
