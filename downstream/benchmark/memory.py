"""Peak memory of a forward pass: the weights, and the most that comes on top of them.

On a GPU torch counts what it allocates. On a CPU the resident memory of a process is read, which holds Python, torch
and s3prl as well, several hundred MB of them; so a fresh process loads the upstream, and only the growth from there to
the peak of one forward pass is taken, plus the bytes of the weights, which are known. What loading takes at its own
peak, when a checkpoint and the model it fills are both in memory, is left out: on a GPU it would not show either.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from ..core.config import UpstreamConfig
from ..core.upstream import Upstream, load_upstream

log = logging.getLogger(__name__)

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h


def utterance(seconds: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise at the level of speech: (1, samples) at 16 kHz, and its length (1,)."""
    wave = torch.randn(1, round(seconds * 16_000), generator=torch.Generator().manual_seed(0)) * 0.1
    return wave, torch.tensor([wave.shape[1]])


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

    Returns None, and says why in the log, where it cannot be measured: beyond Linux, or where the process is killed.
    """
    if not (_STATUS.is_file() and os.access(_CLEAR, os.W_OK)):
        log.warning("Peak memory is not measured: it takes Linux's %s", _CLEAR)
        return None
    argument = json.dumps({"config": asdict(config), "seconds": seconds, "threads": threads})
    found_in = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    environment = {**os.environ, "PYTHONPATH": found_in, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-P", "-m", __name__, argument]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    try:
        return int(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        said = done.stderr.strip().splitlines()[-1:] or ["nothing"]
        log.warning("Peak memory is not measured: its process ended with %d and said %s", done.returncode, said[0])
        return None


@torch.no_grad()
def _measure(config: UpstreamConfig, seconds: float, threads: int) -> int:
    # Otherwise glibc keeps what is freed while loading, and the forward pass would use it again without growth.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 65_536)
    torch.set_num_threads(threads)
    upstream = load_upstream(config)
    wave, lengths = utterance(seconds)
    _CLEAR.write_text("5", encoding="ascii")  # the peak starts anew, from here
    before = _resident("VmRSS")
    upstream(wave, lengths)
    return weight_bytes(upstream) + max(0, _resident("VmHWM") - before)


def _resident(key: str) -> int:
    """Bytes of this process: "VmRSS" now, "VmHWM" at the peak."""
    for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise ValueError(f"{_STATUS} has no {key}")


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    peak = _measure(UpstreamConfig(**given["config"]), given["seconds"], given["threads"])
    sys.stdout.write(f"\n{peak}\n")
