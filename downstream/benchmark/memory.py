"""Peak memory of a forward pass: the weights, and the most that comes on top of them.

On a GPU torch counts what it allocates. On a CPU the resident memory of a process is read, which holds Python, torch
and s3prl as well, several hundred MB of them; so a fresh process loads the upstream, and only the growth from there to
the peak of one forward pass is taken, plus the bytes of the weights, which are known. What loading takes at its own
peak, when a checkpoint and the model it fills are both in memory, is left out: on a GPU it would not show either.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import torch

from s3prl_distiller import memory
from s3prl_distiller.machine import utterance

from ..core.config import UpstreamConfig
from ..core.upstream import Upstream, load_upstream


def weight_bytes(upstream: Upstream) -> int:
    """Of parameters and buffers."""
    return sum(tensor.nbytes for tensor in [*upstream.parameters(), *upstream.buffers()])


@torch.no_grad()
def peak_on_gpu(upstream: Upstream, seconds: float, device: torch.device) -> int:
    """Bytes that torch has allocated at the peak of a forward pass of one utterance, the weights included.

    Args:
        upstream: on the device, alone there or beside what is not counted.
    """
    wave, lengths = utterance(seconds)
    others = torch.cuda.memory_allocated(device) - weight_bytes(upstream)
    wave = wave.to(device)
    torch.cuda.reset_peak_memory_stats(device)
    upstream(wave, lengths)
    return torch.cuda.max_memory_allocated(device) - max(others, 0)


def peak_on_cpu(config: UpstreamConfig, seconds: float, threads: int) -> int | None:
    """Bytes at the peak of a forward pass of one utterance in a process of its own, the weights included.

    Returns None where it cannot be measured.
    """
    return memory.in_a_child(__name__, {"config": asdict(config), "seconds": seconds, "threads": threads})


@torch.no_grad()
def _measure(config: UpstreamConfig, seconds: float, threads: int) -> int:
    memory.hand_back_what_is_freed()
    torch.set_num_threads(threads)
    upstream = load_upstream(config)
    wave, lengths = utterance(seconds)
    memory.start_peak()
    before = memory.resident()
    upstream(wave, lengths)
    return weight_bytes(upstream) + max(0, memory.peak() - before)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    peak = _measure(UpstreamConfig(**given["config"]), given["seconds"], given["threads"])
    sys.stdout.write(f"\n{peak}\n")
