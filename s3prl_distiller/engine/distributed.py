"""Several processes training one model: started by torchrun, each has every batch's share and the same weights."""

from __future__ import annotations

import atexit
import datetime
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import nn

log = logging.getLogger(__name__)

# One process may evaluate or write for long while the others wait; torchrun ends all of them when one dies.
_PATIENCE = datetime.timedelta(days=1)
_ENDED = (
    "another process of this run has ended, so this one cannot go on. If it left no message it was killed, for want of "
    "memory say. The same command with -a goes on from the newest checkpoint."
)


def start(device: torch.device) -> torch.device:
    """Join the other processes where torchrun started several; the device of this one. They part at exit.

    Raises:
        ValueError: there are more processes than GPUs on this machine.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return device
    if device.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"torchrun starts {local + 1} processes or more, and there are {torch.cuda.device_count()} GPUs here: "
                "lower --nproc_per_node"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    # What the CPUs tell one another goes past the GPUs: nobody waits for queued work, and a dead process is noticed.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    # Not before an error is printed: NCCL may wait for the others, who end only because they hear of this one's.
    atexit.register(stop)
    return device


def stop() -> None:
    """Leave the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def end() -> NoReturn:
    """Say that another process is gone, and end at once: to unwind would be to wait for a GPU that never answers."""
    log.error("error: %s", _ENDED)
    os._exit(1)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is the one that logs and writes."""
    return rank() == 0


def wait() -> None:
    """Until all processes are here."""
    if world() > 1:
        with _others():
            dist.barrier()


@contextmanager
def main_first() -> Iterator[None]:
    """The main process first, so that the others find what it leaves, such as checked files in a cache."""
    if not is_main():
        wait()
    yield
    if is_main():
        wait()


@contextmanager
def _others() -> Iterator[None]:
    """Raises ConnectionError where another process is no longer there; on a GPU this process ends at once."""
    try:
        yield
    except RuntimeError as error:
        if "nccl" in str(dist.get_backend_config()):
            end()
        raise ConnectionError(_ENDED) from error


def share_weights(model: nn.Module) -> None:
    """Give every process the weights and buffers of the main one."""
    if world() > 1:
        with _others(), torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor, 0)


def average_gradients(model: nn.Module) -> None:
    """Replace each gradient by its mean over the processes, in one message; one without a gradient counts as zero."""
    if world() == 1:
        return
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten().float() for gradient in gradients])
    with _others():
        dist.all_reduce(flat)
    flat /= world()
    means = flat.split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [mean.view_as(g) for mean, g in zip(means, gradients, strict=True)])


def highest(value: int) -> int:
    """The highest of a number over the processes."""
    return _reduce(value, dist.ReduceOp.MAX)


def total(value: int) -> int:
    """The sum of a number over the processes."""
    return _reduce(value, dist.ReduceOp.SUM)


def _reduce(value: int, how: Any) -> int:
    if world() == 1:
        return value
    tensor = torch.tensor(value)
    with _others():
        dist.all_reduce(tensor, how)
    return int(tensor)


def gather(items: Sequence[Any]) -> list[Any]:
    """The items of all processes, in the order of a list that was dealt out one by one, on each of them."""
    if world() == 1:
        return list(items)
    parts: list[Any] = [None] * world()
    with _others():
        dist.all_gather_object(parts, list(items))
    most = max(map(len, parts))
    return [part[place] for place in range(most) for part in parts if place < len(part)]
