"""Several processes training one model: started by torchrun, each has every batch's share and the same weights."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

# One process may evaluate or write for long while the others wait; torchrun ends all of them when one dies.
_PATIENCE = datetime.timedelta(days=1)


def start(device: torch.device) -> torch.device:
    """Join the other processes where torchrun started several; the device of this one.

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
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    return device


def stop() -> None:
    """Leave the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is the one that logs and writes."""
    return rank() == 0


def wait() -> None:
    if world() > 1:
        dist.barrier()


def average_gradients(model: nn.Module) -> None:
    """Replace each gradient by its mean over the processes, in one message; one without a gradient counts as zero."""
    if world() == 1:
        return
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([parameter.grad.flatten().float() for parameter in parameters if parameter.grad is not None])
    dist.all_reduce(flat)
    flat /= world()
    for parameter, mean in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        assert parameter.grad is not None
        parameter.grad.copy_(mean.view_as(parameter.grad))


def highest(value: int, device: torch.device) -> int:
    """The highest of a number over the processes."""
    if world() == 1:
        return value
    tensor = torch.tensor(value, device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)


def mean(values: dict[str, float]) -> dict[str, float]:
    """The mean of each figure over the processes that have it."""
    everyone = gather([values])
    names = dict.fromkeys(name for one in everyone for name in one)
    found = {name: [one[name] for one in everyone if name in one] for name in names}
    return {name: sum(numbers) / len(numbers) for name, numbers in found.items()}


def gather(items: Sequence[Any]) -> list[Any]:
    """The items of all processes, in the order of a list that was dealt out one by one, on each of them."""
    if world() == 1:
        return list(items)
    parts: list[Any] = [None] * world()
    dist.all_gather_object(parts, list(items))
    most = max(map(len, parts))
    return [part[place] for place in range(most) for part in parts if place < len(part)]
