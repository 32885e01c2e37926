"""What a figure was computed on and with: it goes beside every figure that is kept."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

from . import __version__


def device_name(device: torch.device) -> str:
    """What a GPU or the CPU calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or "CPU"


def visible_gpus(device: torch.device) -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls the GPUs that may be used; none on a CPU."""
    if device.type != "cuda":
        return []
    count = torch.cuda.device_count()
    seen = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    names = seen[:count] or [str(number) for number in range(count)]
    return names if device.index is None else names[device.index : device.index + 1]


def utterance(seconds: float) -> tuple[torch.Tensor, torch.Tensor]:
    """What costs are measured on: noise at the level of speech, (1, samples) at 16 kHz, and its length (1,)."""
    wave = torch.randn(1, round(seconds * 16_000), generator=torch.Generator().manual_seed(0)) * 0.1
    return wave, torch.tensor([wave.shape[1]])


def versions() -> dict[str, str]:
    """Of this package, Python and the libraries that compute."""
    libraries = {name: version(name) for name in ("torch", "transformers", "s3prl")}
    return {"s3prl_distiller": __version__, "python": platform.python_version(), **libraries}
