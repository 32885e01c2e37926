"""Parts found by name: those of this package by their folder or file, third parties' by an entry point.

A third party adds an upstream with an entry point in the group ``s3prl_distiller.upstream`` (a downstream task in
``s3prl_distiller.downstream``) that names a module with the functions of ours.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from importlib.metadata import entry_points
from types import ModuleType


def find(kind: str, name: str, part: str | None = None) -> ModuleType:
    """The module of the upstream or task ``name``.

    Args:
        kind: "upstream" or "downstream".
        name: as on the command line.
        part: the module in the folder of that name, such as "pretrain_expert"; None where a file is the whole.

    Raises:
        ValueError: there is none of that name; the known ones are listed.
    """
    group = f"s3prl_distiller.{kind}"
    added = {entry.name: entry for entry in entry_points(group=group)}
    if name in added:
        return added[name].load()
    folder = importlib.import_module(group)
    own = [module.name for module in pkgutil.iter_modules(folder.__path__) if module.ispkg == (part is not None)]
    if name in own:
        return importlib.import_module(".".join([group, name, *([part] if part else [])]))
    known = sorted([*own, *added])
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}"
    raise ValueError(f"there is no {kind} {name!r}: {hint}")
