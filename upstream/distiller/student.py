"""A student on disk: the forms it is read from and the two it is written in."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from s3prl_distiller import checkpoint
from s3prl_distiller.checkpoint import CheckpointError

from .convert import huggingface_config, huggingface_weights
from .model import DistillerModel
from .model_config import DistillerConfig

log = logging.getLogger(__name__)

FORMAT = "s3prl_distiller"
HEADS, HEADS_CONFIG = "prediction_heads.safetensors", "distiller.json"
"""Files beside an exported Hugging Face model with what that form has no place for."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass
class Student:
    """A student and what its file says of it.

    Attributes:
        model: rebuilt from the config saved with its weights.
        training: the other sections of that config (``teacher``, ``data`` ...), as far as they were kept.
        step: optimiser steps that were taken, None where it is not said.
        form: "s3prl", "native" or "huggingface".
        path: the file or folder that it was read from.
    """

    model: DistillerModel
    training: dict[str, Any]
    step: int | None
    form: str
    path: Path

    @property
    def teacher(self) -> str | None:
        """What it was distilled from, as its run named it; None: it does not say."""
        name = self.training.get("teacher", {}).get("model")
        return name if isinstance(name, str) else None


def load_student(source: str | os.PathLike) -> DistillerModel:
    """The model of :func:`read_student`."""
    return read_student(source).model


def read_student(source: str | os.PathLike) -> Student:
    """Rebuild a student from the config saved with its weights.

    Args:
        source: a ``.ckpt`` in s3prl's form; a folder in ours (``model.safetensors`` and ``config.json``); the folder of
            a run, whose newest checkpoint it is; a Hugging Face folder, or the id of one on its hub.

    Raises:
        ValueError: there is nothing at ``source``, or it is damaged or of another model.
    """
    path = Path(source)
    if path.is_file():
        return _from_s3prl(path)
    if not path.is_dir():
        if not _HUB_ID.fullmatch(str(source)):
            raise CheckpointError(f"there is no checkpoint at {source}")
        path = download_huggingface(str(source))
    if not (path / checkpoint.CONFIG).is_file() and (newest := newest_of_run(path)):
        return _from_s3prl(newest)
    config = checkpoint.load_json(path / checkpoint.CONFIG)
    if config.get("format") == FORMAT:
        model = _fill(
            _build(config.get("distiller"), path), checkpoint.load_safetensors(path / checkpoint.WEIGHTS), path
        )
        return Student(model, _sections(config), _step(config.get("step")), "native", path)
    return _from_huggingface(path, config)


def newest_of_run(run: Path) -> Path | None:
    """The newest ``states-STEP.ckpt`` in the folder of a run; None where there is none."""
    found = [path for path in run.glob("states-*.ckpt") if path.stem[7:].isdigit()]
    return max(found, key=lambda path: int(path.stem[7:]), default=None)


def _sections(config: Mapping[str, Any]) -> dict[str, Any]:
    return {str(key): value for key, value in config.items() if isinstance(value, dict) and key != "distiller"}


def _step(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def s3prl_states(model: DistillerModel, training: Mapping[str, Any], step: int) -> dict[str, Any]:
    """What s3prl's ``distiller_local`` reads, in plain types so that it loads with ``weights_only=True``.

    Args:
        model: the student.
        training: the resolved config of the run, by section; ``distiller`` is replaced by the model's own.
        step: optimiser steps taken.
    """
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    return {"Distiller": weights, "Config": {**training, "distiller": dict(vars(model.config))}, "Step": step}


def native_config(model: DistillerModel, training: Mapping[str, Any], step: int) -> dict[str, Any]:
    """What our own form says of a student beside its weights; arguments as of :func:`s3prl_states`."""
    return {"format": FORMAT, "step": step, **training, "distiller": dict(vars(model.config))}


def native_writers(model: DistillerModel, training: Mapping[str, Any], step: int) -> dict[str, Any]:
    """Writers of our own form for :func:`s3prl_distiller.checkpoint.save_folder`."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    config = native_config(model, training, step)
    return {
        checkpoint.WEIGHTS: lambda path: safetensors.torch.save_file(weights, path, metadata={"format": "pt"}),
        checkpoint.CONFIG: lambda path: checkpoint.save_json(config, path),
    }


def download_huggingface(repository: str) -> Path:
    """Fetch a student's files from the Hugging Face hub into its cache.

    Raises:
        ValueError: it cannot be had; the message says from where, where it would be kept, and what to do instead.
    """
    from huggingface_hub import constants, snapshot_download

    try:
        patterns = [
            "config.json",
            "preprocessor_config.json",
            "processor_config.json",
            "model.safetensors",
            "pytorch_model.bin",
            HEADS,
            HEADS_CONFIG,
        ]
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except (OSError, ValueError, RuntimeError) as error:
        # huggingface_hub's own errors, and those of the network below it, derive from these.
        raise CheckpointError(
            f"{repository} could not be downloaded from {constants.ENDPOINT}/{repository} into "
            f"{constants.HF_HUB_CACHE} ({type(error).__name__}). Without a network, copy its config.json and "
            f"model.safetensors (or pytorch_model.bin) into a folder and pass ckpt=FOLDER."
        ) from error


def _from_s3prl(path: Path) -> Student:
    states = checkpoint.load_torch(path)
    if not isinstance(states, dict) or "Distiller" not in states or "Config" not in states:
        found = ", ".join(map(str, states))[:100] if isinstance(states, dict) else type(states).__name__
        raise CheckpointError(f"{path} is no distiller checkpoint: it has {found} instead of Distiller and Config")
    config = states["Config"]
    if not isinstance(config, dict) or not isinstance(config.get("distiller"), dict):
        raise CheckpointError(f"{path} does not say what its student is made of: Config has no section 'distiller'")
    model = _fill(_build(config["distiller"], path), states["Distiller"], path)
    return Student(model, _sections(config), _step(states.get("Step")), "s3prl", path)


def _from_huggingface(path: Path, config: Mapping[str, Any]) -> Student:
    described = preprocessor_of(path)
    if described is None:
        log.warning("%s has no preprocessor_config.json: its waveforms are taken as not normalised", path)
    try:
        encoder = huggingface_config(config, described)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path / checkpoint.CONFIG} describes no student that can be read: {error}") from None
    weights_file = path / checkpoint.WEIGHTS
    if weights_file.is_file():
        weights = checkpoint.load_safetensors(weights_file)
    else:
        weights = checkpoint.load_torch(path / "pytorch_model.bin")
    weights = {name: tensor.float() for name, tensor in huggingface_weights(weights, encoder).items()}
    if (path / HEADS_CONFIG).is_file():
        return _with_heads(path, weights)
    # Hugging Face's form has no place for prediction heads: a student without any.
    model = _build({**vars(encoder), "n_tasks": 0, "task_emb_type": "none", "out_layer_type": "none"}, path)
    return Student(_fill(model, weights, path), {}, None, "huggingface", path)


def preprocessor_of(path: Path) -> dict[str, Any] | None:
    """What says in a Hugging Face folder whether waveforms are normalised; None: nothing does.

    A file of its own, or where transformers 5 saved a processor, a section of that.
    """
    if (path / "preprocessor_config.json").is_file():
        return checkpoint.load_json(path / "preprocessor_config.json")
    if (path / "processor_config.json").is_file():
        section = checkpoint.load_json(path / "processor_config.json").get("feature_extractor")
        return section if isinstance(section, dict) else None
    return None


def _with_heads(path: Path, encoder: dict[str, Tensor]) -> Student:
    """A student that was exported with what Hugging Face's form has no place for."""
    described = checkpoint.load_json(path / HEADS_CONFIG)
    model = _build(described.get("distiller"), path)
    if model.post_extract_proj is None:
        encoder = {name: tensor for name, tensor in encoder.items() if not name.startswith("post_extract_proj.")}
    heads = checkpoint.load_safetensors(path / HEADS) if (path / HEADS).is_file() else {}
    _fill(model, {**encoder, **heads}, path)
    return Student(model, _sections(described), _step(described.get("step")), "huggingface", path)


def _build(config: Any, source: Path) -> DistillerModel:
    try:
        return DistillerModel(DistillerConfig.from_mapping(config))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{source} describes a student that cannot be built: {error}") from None


def _fill(model: DistillerModel, weights: Any, source: Path) -> DistillerModel:
    checkpoint.check_weights(weights, model, source)
    model.load_state_dict(weights)
    return model
