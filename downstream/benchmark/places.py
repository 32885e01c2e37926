"""Where the corpus of each task is below one root: manifests as they are, official corpora under their usual names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..core import run
from ..core.config import DownstreamConfig
from ..core.s3prl_names import TASKS as NAMES
from ..core.task import Splits, Task
from .tiers import TASKS

_LIBRISPEECH = ("LibriSpeech", "librispeech")
_VOXCELEB = ("VoxCeleb1", "voxceleb1", "VoxCeleb", "voxceleb", "vox1")
USUAL: dict[str, Sequence[str]] = {
    "pr": _LIBRISPEECH,
    "asr": _LIBRISPEECH,
    "ks": ("speech_commands_v0.01", "SpeechCommands", "speech_commands", "SpeechCommandsV1"),
    "qbe": ("quesst14Database", "QUESST14", "quesst14", "QUESST2014", "quesst2014"),
    "sid": _VOXCELEB,
    "asv": _VOXCELEB,
    "sd": ("Libri2Mix/data", "LibriMix/data", "Libri2Mix", "libri2mix", "LibriMix", "diarization"),
    "ic": ("fluent_speech_commands_dataset", "FluentSpeechCommands", "fluent_speech_commands"),
    "sf": ("SNIPS", "audio_slu", "AudioSNIPS", "snips"),
    "er": ("IEMOCAP_full_release", "IEMOCAP", "iemocap"),
}
"""Folders of official corpora, the first that is there being taken; where none is, it is the root itself."""

_MINI = ("librispeech_mini", "keywords_mini", "slu_mini", "emotions_mini", "diarization_mini")


@dataclass
class Places:
    """What ``--data`` said: the folder of each task."""

    root: Path | None
    named: dict[str, Path] = field(default_factory=dict)

    def of(self, task: str) -> Path | None:
        """The folder to give to a task; None where there is neither a root nor one of its own."""
        if task in self.named or self.root is None:
            return self.named.get(task)
        if has_manifests(self.root):
            return self.root
        return next((place for name in USUAL[task] if (place := self.root / name).is_dir()), self.root)


def read_places(texts: Sequence[str]) -> Places:
    """From ``ROOT``, ``TASK=PATH`` or both.

    Raises:
        ValueError: a folder is not there, or there are several roots.
    """
    places = Places(None)
    for text in texts:
        name, equals, path = text.partition("=")
        task = NAMES.get(name, name)
        own = bool(equals) and task in TASKS and not Path(text).exists()
        folder = Path(path if own else text).expanduser().resolve()
        if not folder.is_dir():
            raise ValueError(f"--data {text}: there is no folder {folder}")
        if own:
            places.named[task] = folder
        elif places.root is not None:
            raise ValueError(f"--data takes one root, and {places.root} and {folder} were given: use TASK=PATH")
        else:
            places.root = folder
    return places


def has_manifests(folder: Path) -> bool:
    """Whether a folder holds manifests, or the folders of manifests of several tasks."""
    return any((folder / name).is_dir() for name in _MINI) or any(folder.glob("*.jsonl"))


def usual_tier(places: Sequence[Path]) -> str:
    """The tier that fits to the corpora: "mini" for manifests, "superb" for official ones.

    Raises:
        ValueError: there are both.
    """
    kinds = {has_manifests(place) for place in places}
    if len(kinds) > 1:
        raise ValueError("some of --data are manifests and some official corpora: say --tier mini or --tier superb")
    return "mini" if kinds == {True} else "superb"


@dataclass
class Corpus:
    """What a task found: its utterances by split (no audio is opened), and how many folds it goes through."""

    task: Task
    splits: Splits
    folds: int


def read_corpora(configs: dict[str, DownstreamConfig]) -> dict[str, Corpus]:
    """The corpora of tasks, by task.

    Args:
        configs: of a run of each, with ``data.path``.

    Raises:
        ValueError: some are not there or not whole; all of these are named.
    """
    found: dict[str, Corpus] = {}
    missing: dict[str, str] = {}
    for name, config in configs.items():
        run.task_class(name)(config.task)  # settings that cannot be are another mistake
        try:
            found[name] = _read(name, config)
        except ValueError as error:
            missing[name] = str(error).splitlines()[0].rstrip(":")
    if missing:
        others = f", or leave them out with --tasks {','.join(found)}" if found else ""
        reasons = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
        raise ValueError(
            f"no corpus for {', '.join(missing)}: name the folders with --data {next(iter(missing))}=PATH ...{others}. "
            f"What was looked for ({reasons})"
        )
    return found


def _read(name: str, config: DownstreamConfig) -> Corpus:
    folds = run.folds(name, config)
    if folds:
        config.task.fold = folds[0]  # pyright: ignore[reportAttributeAccessIssue]
    task = run.task_class(name)(config.task)
    splits = task.read(Path(config.data.path or ""))
    if folds:
        config.task.fold = 0  # pyright: ignore[reportAttributeAccessIssue]
    return Corpus(task, splits, max(1, len(folds)))
