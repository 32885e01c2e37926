"""Typed settings: dataclass defaults, YAML files that hold only differences, overrides from the command line.

An unknown or mistyped key is an error that names the key, where it stands and what was probably meant.
"""

from __future__ import annotations

import difflib
import importlib.resources
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

QUICKSTART = Path(str(importlib.resources.files("s3prl_distiller"))) / "quickstart"
"""The bundled teacher and speech."""

# A comma separates overrides only where another key follows, so that lists may hold commas. s3prl doubles it.
_SEPARATOR = re.compile(r",+\s*(?=[A-Za-z_][\w.]*=)")


class SettingsError(ValueError):
    """A setting that is unknown, mistyped or impossible."""


def bundled(kind: str, name: str) -> Path:
    """The path of ``config/KIND/NAME.yaml`` of this package.

    Raises:
        SettingsError: there is none of that name.
    """
    path = bundled_or_none(kind, name)
    if path is None:
        names = sorted(file.stem for file in _bundle(kind).glob("*.yaml"))
        raise SettingsError(f"there is no file {name} and no bundled config of that name: {_choices(name, names)}")
    return path


def bundled_or_none(kind: str, name: str) -> Path | None:
    """As :func:`bundled`, but None where there is none of that name."""
    path = _bundle(kind) / f"{name}.yaml"
    return path if path.is_file() else None


def _bundle(kind: str) -> Path:
    return Path(str(importlib.resources.files("s3prl_distiller.config").joinpath(kind)))


def find(kind: str, name: str) -> Path:
    """A YAML file by path, or a bundled one by name."""
    path = Path(name).expanduser()
    return path if path.is_file() else bundled(kind, name)


def load(
    schema: type,
    files: Sequence[Path | Mapping[str, Any]],
    options: Mapping[str, Any],
    overrides: Sequence[str],
    translate: Callable[[dict[str, Any]], dict[str, Any]] = lambda values: values,
) -> tuple[Any, dict[str, Any]]:
    """Merge defaults, files, options and overrides, each later one over the earlier.

    Args:
        schema: a dataclass whose fields are sections, dataclasses in turn.
        files: YAML files, or what one would hold.
        options: values by section that other arguments of the command line stand for.
        overrides: texts such as ``runner.total_steps=3,optimizer.lr=1e-3``.
        translate: turns the keys of another program into ours.

    Returns:
        An instance of ``schema``, and the plain nested dictionary of what was given.

    Raises:
        SettingsError: a file cannot be read, or a key or type is wrong.
    """
    given = cast(DictConfig, OmegaConf.create({}))
    for file in files:
        values, where = (dict(file), "the checkpoint") if isinstance(file, Mapping) else (_read(file), str(file))
        given = _merge(schema, given, translate(values), where)
    given = _merge(schema, given, dict(options), "the command line")
    for text in overrides:
        given = _merge(schema, given, translate(parse_overrides(text)), "the override (-o)")
    try:
        merged = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), given))
    except OmegaConfBaseException as error:  # an interpolation, ${...}, that leads nowhere or to another type
        raise SettingsError(f"{error.full_key} cannot be resolved: {str(error).splitlines()[0]}") from None
    return merged, cast(dict[str, Any], OmegaConf.to_container(given))


def parse_overrides(text: str) -> dict[str, Any]:
    """``a.b=1,c=[2,3]`` to nested dictionaries; values are read as YAML and never evaluated.

    s3prl's ``,,`` between overrides and its leading ``config.`` are understood.
    """
    pairs = [pair for pair in _SEPARATOR.split(text.strip().strip(",")) if pair]
    for pair in pairs:
        if not re.match(r"[A-Za-z_][\w.]*=", pair):
            raise SettingsError(f"the override {pair!r} is not of the form section.key=value")
    try:
        values = OmegaConf.from_dotlist([re.sub(r"^config\.", "", pair) for pair in pairs])
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise SettingsError(f"the override {text!r} cannot be read: {' '.join(str(error).split())}") from None
    return cast(dict[str, Any], OmegaConf.to_container(values))


def plain(settings: Any) -> dict[str, Any]:
    """Settings as nested dictionaries of plain types."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(settings)))


def to_yaml(settings: Any) -> str:
    """Settings as the text of a YAML file."""
    return yaml.safe_dump(plain(settings), sort_keys=False, allow_unicode=True)


def differences(one: Any, other: Any) -> list[tuple[str, Any]]:
    """Keys in which two settings of one schema differ, with the value in ``other``."""

    def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        flat: dict[str, Any] = {}
        for key, value in values.items():
            flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        return flat

    before, after = flatten(plain(one)), flatten(plain(other))
    return [(key, value) for key, value in after.items() if before.get(key) != value]


def _read(path: Path) -> dict[str, Any]:
    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from None
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise SettingsError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise SettingsError(f"{path} holds no sections: it should look like the files in config/")
    return cast(dict[str, Any], values)


def _merge(schema: type, given: DictConfig, values: dict[str, Any], source: str) -> DictConfig:
    template = OmegaConf.structured(schema)
    _check_keys(template, values, source, "")
    try:
        OmegaConf.merge(template, values)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "a key"
        raise SettingsError(f"{key} in {source} has the wrong type: {str(error).splitlines()[0]}") from None
    return cast(DictConfig, OmegaConf.merge(given, values))


def _check_keys(template: Any, values: Any, source: str, prefix: str) -> None:
    if not isinstance(template, DictConfig) or not OmegaConf.get_type(template) or OmegaConf.get_type(template) is dict:
        return
    if not isinstance(values, dict):
        raise SettingsError(f"{prefix.rstrip('.')} in {source} is a section: give keys below it, not {values!r}")
    known = [str(key) for key in template]
    for key, value in values.items():
        if key not in known:
            raise SettingsError(f"{prefix}{key} in {source} is not known: {_choices(str(key), known)}")
        _check_keys(template._get_node(key), value, source, f"{prefix}{key}.")


def _choices(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(known)}"
