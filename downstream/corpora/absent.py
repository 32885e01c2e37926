"""The message for a corpus that is not where it was looked for."""

from __future__ import annotations

from pathlib import Path


def absent(root: Path, corpus: str, source: str, tree: str, manifests: str) -> ValueError:
    """What to raise.

    Args:
        root: where it was looked for.
        corpus: its name.
        source: where to get it.
        tree: the files expected, a line each.
        manifests: the other form in which data is taken.
    """
    return ValueError(
        f"{root} does not hold {corpus}: get it from {source} and unpack it so that there is\n"
        f"{tree.rstrip()}\nor give your own data as manifests: {manifests}"
    )
