"""What a figure was computed on and with: it goes beside every figure that is kept."""

from __future__ import annotations

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


def utterance(seconds: float) -> tuple[torch.Tensor, torch.Tensor]:
    """What costs are measured on: noise at the level of speech, (1, samples) at 16 kHz, and its length (1,)."""
    wave = torch.randn(1, round(seconds * 16_000), generator=torch.Generator().manual_seed(0)) * 0.1
    return wave, torch.tensor([wave.shape[1]])


def versions() -> dict[str, str]:
    """Of this package, Python and the libraries that compute."""
    libraries = {name: version(name) for name in ("torch", "transformers", "s3prl")}
    return {"s3prl_distiller": __version__, "python": platform.python_version(), **libraries}
