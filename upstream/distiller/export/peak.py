"""Peak memory of an export: what loading it and running one utterance add to a process of its own.

The runtime's own memory (Python, torch, ONNX Runtime ...) is there before and not counted, nor is what loading takes at
its own peak, when a file and the model that it fills are both in memory.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import torch

from s3prl_distiller import memory
from s3prl_distiller.machine import utterance

from .runners import open_runner

_RUNTIMES = {"onnx": "onnxruntime", "onnx-int8": "onnxruntime", "hf": "transformers.models.hubert.modeling_hubert"}


def peak_memory(form: str, path: Path, seconds: float, threads: int) -> int | None:
    """Bytes at the peak, None where it cannot be measured.

    Args:
        form, path: as :func:`~.runners.open_runner` takes them.
        seconds: of the utterance.
        threads: of the CPU.
    """
    return memory.in_a_child(__name__, {"form": form, "path": str(path), "seconds": seconds, "threads": threads})


def _measure(form: str, path: Path, seconds: float, threads: int) -> int:
    memory.hand_back_what_is_freed()
    torch.set_num_threads(threads)
    if form in _RUNTIMES:
        importlib.import_module(_RUNTIMES[form])
    wave, lengths = utterance(seconds)
    before = memory.resident()
    run = open_runner(form, path)
    memory.start_peak()
    run(wave, lengths)
    return max(0, memory.peak() - before)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    found = _measure(given["form"], Path(given["path"]), given["seconds"], given["threads"])
    sys.stdout.write(f"\n{found}\n")
