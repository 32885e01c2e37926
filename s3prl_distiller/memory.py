"""Resident memory of a process, as Linux counts it: what a piece of work adds to it at its peak."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h


def in_a_child(module: str, argument: Any) -> int | None:
    """The number that ``python -m module JSON`` prints last, in a fresh process without a GPU.

    Returns None, and says why in the log, where it cannot be measured: beyond Linux, or where the process is killed.
    """
    if not (_STATUS.is_file() and os.access(_CLEAR, os.W_OK)):
        log.warning("Peak memory is not measured: it takes Linux's %s", _CLEAR)
        return None
    found_in = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    environment = {**os.environ, "PYTHONPATH": found_in, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-P", "-m", module, json.dumps(argument)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    try:
        return int(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        said = done.stderr.strip().splitlines()[-1:] or ["nothing"]
        log.warning("Peak memory is not measured: its process ended with %d and said %s", done.returncode, said[0])
        return None


def hand_back_what_is_freed() -> None:
    """Otherwise glibc keeps what is freed, and what comes later uses it again without growth."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 65_536)


def start_peak() -> None:
    """The peak starts anew, from here."""
    _CLEAR.write_text("5", encoding="ascii")


def resident() -> int:
    """Bytes now."""
    return _read("VmRSS")


def peak() -> int:
    """Bytes at the peak since :func:`start_peak`."""
    return _read("VmHWM")


def _read(key: str) -> int:
    for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise ValueError(f"{_STATUS} has no {key}")
