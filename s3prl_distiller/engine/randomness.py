"""Random numbers of a run: seeded, drawn by each process for itself, and gone on with after a resume."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from . import distributed


def seed(number: int) -> None:
    """Seed every generator of random numbers that a run may draw from."""
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)


def part_ways(number: int) -> None:
    """Seed the generators of all processes but the main one anew, so that each drops out something else."""
    if not distributed.is_main():
        seed(random.Random(f"{number}:{distributed.rank()}").getrandbits(63))


def state() -> dict[str, Any]:
    """Of all generators of this process, in types that load with ``weights_only=True``."""
    numpy_state = np.random.get_state(legacy=True)
    assert isinstance(numpy_state, tuple)
    return {
        "python": random.getstate(),
        "numpy": [numpy_state[0], torch.from_numpy(numpy_state[1].astype(np.int64)), *numpy_state[2:]],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore(saved: Mapping[str, Any]) -> None:
    """Put all generators where :func:`state` found them."""
    random.setstate(saved["python"])
    name, keys, *rest = saved["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(saved["torch"])
    if torch.cuda.is_available() and len(saved["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(saved["cuda"])
