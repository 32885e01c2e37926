"""Entries for ``torch.hub.load(PATH_OF_THIS_FOLDER, NAME, source="local")``; the names are those of the s3prl hub."""

import sys as _sys
from pathlib import Path as _Path

dependencies = ["torch", "torchaudio", "s3prl", "omegaconf", "safetensors", "transformers"]

# A checkout that is not installed: torch.hub puts it on the path only while this file is read.
_root = str(_Path(__file__).resolve().parent)
if _root not in _sys.path:
    _sys.path.append(_root)

from s3prl_distiller.hub import load_hub as _load_hub  # noqa: E402

_load_hub()

from s3prl_distiller.upstream.distiller.hubconf import (  # noqa: E402  # pyright: ignore[reportMissingImports]
    distilhubert,
    distilhubert_base,
    distiller,
    distiller_custom,
    distiller_local,
    distiller_url,
    distilxlsr_bp_4_8_12,
    distilxlsr_bp_4_12,
    distilxlsr_bp_8_12,
    distilxlsr_bp_8_12_16,
    distilxlsr_bp_8_12_24,
    distilxlsr_bp_12_16,
    distilxlsr_bp_16_24,
)

__all__ = [
    "distilhubert",
    "distilhubert_base",
    "distiller",
    "distiller_custom",
    "distiller_local",
    "distiller_url",
    "distilxlsr_bp_12_16",
    "distilxlsr_bp_16_24",
    "distilxlsr_bp_4_12",
    "distilxlsr_bp_4_8_12",
    "distilxlsr_bp_8_12",
    "distilxlsr_bp_8_12_16",
    "distilxlsr_bp_8_12_24",
]
