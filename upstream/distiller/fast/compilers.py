"""Whether code for a GPU can be made where this runs."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil


@functools.cache
def can_compile() -> bool:
    """Triton, which comes with torch for GPUs, and the C compiler that it calls: ``CC``, gcc or clang."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return importlib.util.find_spec("triton") is not None and bool(compiler)
