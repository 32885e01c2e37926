"""Entries of the s3prl hub: each name is an upstream. Signatures are s3prl's, so that ours take the place of its four.

``distilhubert``, ``distilhubert_base`` and ``distilxlsr_bp_*`` have a registered checkpoint that is downloaded once;
``ckpt=PATH`` gives a local file or folder instead.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .expert import UpstreamExpert as _UpstreamExpert

_DISTILHUBERT = "https://huggingface.co/leo19941227/distilhubert/resolve/main/distilhubert_ls960_4-8-12.ckpt"


def distiller_local(ckpt: str | os.PathLike, *args: Any, **kwargs: Any) -> _UpstreamExpert:
    """A student from a local checkpoint: s3prl's ``.ckpt``, our folder or a Hugging Face folder.

    Raises:
        ValueError: there is none at ``ckpt``, or it cannot be read.
    """
    if not Path(ckpt).exists():
        raise ValueError(f"there is no checkpoint at {ckpt}")
    kwargs.pop("refresh", None)
    return _UpstreamExpert(ckpt, *args, **kwargs)


def distiller_url(ckpt: str, refresh: bool = False, *args: Any, **kwargs: Any) -> _UpstreamExpert:
    """A student from a URL, downloaded into s3prl's cache once, or again with ``refresh``.

    Raises:
        ValueError: it cannot be downloaded; the message has the address, the cache folder and what to do instead.
    """
    return distiller_local(_download(ckpt, refresh), *args, **kwargs)


def distiller_custom(ckpt: str | os.PathLike, refresh: bool = False, *args: Any, **kwargs: Any) -> _UpstreamExpert:
    """A student from wherever it is: a URL, a local file or folder, or an id on the Hugging Face hub."""
    if str(ckpt).startswith(("http://", "https://")):
        return distiller_url(str(ckpt), refresh, *args, **kwargs)
    return _UpstreamExpert(ckpt, *args, **kwargs)


def distiller(ckpt: str | os.PathLike | None = None, *args: Any, **kwargs: Any) -> _UpstreamExpert:
    """As :func:`distiller_custom`.

    Raises:
        ValueError: no ``ckpt`` is given: this name has no registered checkpoint.
    """
    if ckpt is None:
        raise ValueError("the upstream 'distiller' needs a checkpoint: pass ckpt=PATH (-k PATH on the command line)")
    return distiller_custom(ckpt, *args, **kwargs)


def distilhubert(refresh: bool = False, *args: Any, **kwargs: Any) -> _UpstreamExpert:
    """DistilHuBERT (arXiv 2110.01900): HuBERT base to 2 layers, heads for layers 4, 8 and 12, LibriSpeech 960 h."""
    return distilhubert_base(refresh, *args, **kwargs)


def distilhubert_base(refresh: bool = False, *args: Any, **kwargs: Any) -> _UpstreamExpert:
    """DistilHuBERT (arXiv 2110.01900): HuBERT base to 2 layers, heads for layers 4, 8 and 12, LibriSpeech 960 h."""
    ckpt = kwargs.pop("ckpt", None) or _DISTILHUBERT
    return distiller_custom(ckpt, refresh, *args, **kwargs)


def distilxlsr_bp_4_12(refresh: bool = False, *args: Any, **kwargs: Any) -> _UpstreamExpert:
    """DistilXLSR-53 for Brazilian Portuguese, trained on layers 4 and 12 of XLSR-53."""
    return _distilxlsr_bp("4-12", refresh, *args, **kwargs)


def distilxlsr_bp_8_12(refresh: bool = False, *args: Any, **kwargs: Any) -> _UpstreamExpert:
    """DistilXLSR-53 for Brazilian Portuguese, trained on layers 8 and 12 of XLSR-53."""
    return _distilxlsr_bp("8-12", refresh, *args, **kwargs)


def distilxlsr_bp_12_16(refresh: bool = False, *args: Any, **kwargs: Any) -> _UpstreamExpert:
    """DistilXLSR-53 for Brazilian Portuguese, trained on layers 12 and 16 of XLSR-53."""
    return _distilxlsr_bp("12-16", refresh, *args, **kwargs)


def distilxlsr_bp_16_24(refresh: bool = False, *args: Any, **kwargs: Any) -> _UpstreamExpert:
    """DistilXLSR-53 for Brazilian Portuguese, trained on layers 16 and 24 of XLSR-53."""
    return _distilxlsr_bp("16-24", refresh, *args, **kwargs)


def distilxlsr_bp_4_8_12(refresh: bool = False, *args: Any, **kwargs: Any) -> _UpstreamExpert:
    """DistilXLSR-53 for Brazilian Portuguese, trained on layers 4, 8 and 12 of XLSR-53."""
    return _distilxlsr_bp("4-8-12", refresh, *args, **kwargs)


def distilxlsr_bp_8_12_16(refresh: bool = False, *args: Any, **kwargs: Any) -> _UpstreamExpert:
    """DistilXLSR-53 for Brazilian Portuguese, trained on layers 8, 12 and 16 of XLSR-53."""
    return _distilxlsr_bp("8-12-16", refresh, *args, **kwargs)


def distilxlsr_bp_8_12_24(refresh: bool = False, *args: Any, **kwargs: Any) -> _UpstreamExpert:
    """DistilXLSR-53 for Brazilian Portuguese, trained on layers 8, 12 and 24 of XLSR-53."""
    return _distilxlsr_bp("8-12-24", refresh, *args, **kwargs)


def _distilxlsr_bp(targets: str, refresh: bool, *args: Any, **kwargs: Any) -> _UpstreamExpert:
    """Published by L. Gris in Hugging Face's format (Apache-2.0), without figures and without prediction heads."""
    ckpt = kwargs.pop("ckpt", None) or f"lgris/distilxlsr_bp_{targets}"
    return distiller_custom(ckpt, refresh, *args, **kwargs)


def _download(url: str, refresh: bool) -> str:
    from s3prl.util.download import _urls_to_filepaths, get_dir

    try:
        path = _urls_to_filepaths(url, refresh=refresh)
    except (OSError, KeyError, RuntimeError) as error:
        # What urllib and requests raise derives from OSError; KeyError: a server that does not tell the size.
        target = _urls_to_filepaths(url, refresh=False, download=False)
        raise ValueError(
            f"{url} could not be downloaded into {get_dir()} ({type(error).__name__}). Without a network, fetch it "
            f"elsewhere and pass ckpt=FILE (-k FILE on the command line), or put it at {target}."
        ) from error
    assert isinstance(path, str)
    return path
