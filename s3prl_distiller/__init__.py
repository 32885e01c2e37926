"""Distil speech self-supervised teachers into small students, as an s3prl plugin.

In a checkout the folders ``upstream/``, ``downstream/`` and ``config/`` lie beside this package; once installed they
are its sub-packages. Adding the checkout's root to ``__path__`` gives both the same import names.
"""

from pathlib import Path as _Path

__version__ = "0.1.0"

_root = _Path(__file__).resolve().parent.parent
if (_root / "setup.cfg").is_file() and (_root / "upstream").is_dir():
    __path__.append(str(_root))


def register() -> list[str]:
    """Put this package's entries into ``s3prl.hub`` and make s3prl importable on today's torchaudio.

    Returns the names that were registered. Calling it again changes nothing.
    """
    from .hub import register as _register

    return _register()
