"""The s3prl hub: made importable on today's torchaudio, and our upstreams registered in it."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

UPSTREAMS = ("distiller",)


def load_hub() -> types.ModuleType:
    """Import ``s3prl.hub``.

    s3prl 0.4.18 asks torchaudio, while it is imported, for two things that torchaudio 2.9 dropped. What s3prl's
    upstreams need of them is nothing, so stand-ins that fail when called let it import.

    Raises:
        ValueError: torchaudio is built for another torch than the one that is installed.
    """
    try:
        import torchaudio
    except (ImportError, OSError, RuntimeError) as error:
        torch, audio = (importlib.metadata.version(name) for name in ("torch", "torchaudio"))
        raise ValueError(
            f"torchaudio {audio} does not load beside torch {torch}: install two that belong together, "
            "pip install torch==2.11.0 torchaudio==2.11.0"
        ) from error

    if not hasattr(torchaudio, "set_audio_backend"):
        # s3prl calls this at import time, where choosing a backend has no meaning any more.
        torchaudio.set_audio_backend = lambda backend=None: None  # pyright: ignore[reportAttributeAccessIssue]
    name = "torchaudio.sox_effects"
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        stand_in = types.ModuleType(name, "Stands in for what torchaudio 2.9 removed.")
        stand_in.__spec__ = importlib.machinery.ModuleSpec(name, None)
        for function in ("apply_effects_tensor", "apply_effects_file", "effect_names", "init_sox_effects"):
            setattr(stand_in, function, _gone(f"{name}.{function}"))
        sys.modules[name] = stand_in
        torchaudio.sox_effects = stand_in  # pyright: ignore[reportAttributeAccessIssue]
    return importlib.import_module("s3prl.hub")


def register() -> list[str]:
    """Put the entries of our upstreams into ``s3prl.hub``, in the place of s3prl's own where names agree.

    Returns the registered names. Calling it again changes nothing.
    """
    hub = load_hub()
    names = []
    for upstream in UPSTREAMS:
        module = importlib.import_module(f"s3prl_distiller.upstream.{upstream}.hubconf")
        for name, entry in vars(module).items():
            if isinstance(entry, types.FunctionType) and not name.startswith("_"):
                setattr(hub, name, entry)
                names.append(name)
    return names


def _gone(name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"{name} was removed in torchaudio 2.9, and what called it cannot run on today's torchaudio")

    return call
