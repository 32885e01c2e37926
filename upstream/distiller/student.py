"""A student on disk: the forms it is read from and the two it is written in."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch

from s3prl_distiller import checkpoint
from s3prl_distiller.checkpoint import CheckpointError

from .convert import huggingface_config, huggingface_weights
from .model import DistillerModel
from .model_config import DistillerConfig

log = logging.getLogger(__name__)

FORMAT = "s3prl_distiller"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load_student(source: str | os.PathLike) -> DistillerModel:
    """Rebuild a student from the config saved with its weights.

    Args:
        source: a ``.ckpt`` in s3prl's form; a folder in ours (``model.safetensors`` and ``config.json``); a Hugging
            Face folder, or the id of one on its hub.

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
    config = checkpoint.load_json(path / checkpoint.CONFIG)
    if config.get("format") == FORMAT:
        model = _build(config.get("distiller"), path)
        return _fill(model, checkpoint.load_safetensors(path / checkpoint.WEIGHTS), path)
    return _from_huggingface(path, config)


def saved_teacher(source: str | os.PathLike) -> str | None:
    """The teacher that a checkpoint says its student was distilled from, as its run named it; None: it does not say.

    Args:
        source: as for :func:`load_student`; what is not on the disk says nothing.

    Raises:
        ValueError: the checkpoint is damaged.
    """
    path, config = Path(source), {}
    if path.is_file():
        states = checkpoint.load_torch(path)
        config = states.get("Config") if isinstance(states, dict) else None
    elif path.is_dir():
        config = checkpoint.load_json(path / checkpoint.CONFIG)
    teacher = config.get("teacher") if isinstance(config, dict) else None
    name = teacher.get("model") if isinstance(teacher, dict) else None
    return name if isinstance(name, str) else None


def s3prl_states(model: DistillerModel, training: Mapping[str, Any], step: int) -> dict[str, Any]:
    """What s3prl's ``distiller_local`` reads, in plain types so that it loads with ``weights_only=True``.

    Args:
        model: the student.
        training: the resolved config of the run, by section; ``distiller`` is replaced by the model's own.
        step: optimiser steps taken.
    """
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    return {"Distiller": weights, "Config": {**training, "distiller": dict(vars(model.config))}, "Step": step}


def native_writers(model: DistillerModel, training: Mapping[str, Any], step: int) -> dict[str, Any]:
    """Writers of our own form for :func:`s3prl_distiller.checkpoint.save_folder`."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    config = {"format": FORMAT, "step": step, **training, "distiller": dict(vars(model.config))}
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
        patterns = ["config.json", "preprocessor_config.json", "model.safetensors", "pytorch_model.bin"]
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except (OSError, ValueError, RuntimeError) as error:
        # huggingface_hub's own errors, and those of the network below it, derive from these.
        raise CheckpointError(
            f"{repository} could not be downloaded from {constants.ENDPOINT}/{repository} into "
            f"{constants.HF_HUB_CACHE} ({type(error).__name__}). Without a network, copy its config.json and "
            f"model.safetensors (or pytorch_model.bin) into a folder and pass ckpt=FOLDER."
        ) from error


def _from_s3prl(path: Path) -> DistillerModel:
    states = checkpoint.load_torch(path)
    if not isinstance(states, dict) or "Distiller" not in states or "Config" not in states:
        found = ", ".join(map(str, states))[:100] if isinstance(states, dict) else type(states).__name__
        raise CheckpointError(f"{path} is no distiller checkpoint: it has {found} instead of Distiller and Config")
    config = states["Config"]
    if not isinstance(config, dict) or not isinstance(config.get("distiller"), dict):
        raise CheckpointError(f"{path} does not say what its student is made of: Config has no section 'distiller'")
    return _fill(_build(config["distiller"], path), states["Distiller"], path)


def _from_huggingface(path: Path, config: Mapping[str, Any]) -> DistillerModel:
    preprocessor = path / "preprocessor_config.json"
    if not preprocessor.is_file():
        log.warning("%s has no preprocessor_config.json: its waveforms are taken as not normalised", path)
    try:
        encoder = huggingface_config(config, checkpoint.load_json(preprocessor) if preprocessor.is_file() else None)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path / checkpoint.CONFIG} describes no student that can be read: {error}") from None
    weights_file = path / checkpoint.WEIGHTS
    if weights_file.is_file():
        weights = checkpoint.load_safetensors(weights_file)
    else:
        weights = checkpoint.load_torch(path / "pytorch_model.bin")
    # Hugging Face's form has no place for prediction heads: a student without any.
    model = _build({**vars(encoder), "n_tasks": 0, "task_emb_type": "none", "out_layer_type": "none"}, path)
    weights = {name: tensor.float() for name, tensor in huggingface_weights(weights, encoder).items()}
    return _fill(model, weights, path)


def _build(config: Any, source: Path) -> DistillerModel:
    try:
        return DistillerModel(DistillerConfig.from_mapping(config))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{source} describes a student that cannot be built: {error}") from None


def _fill(model: DistillerModel, weights: Any, source: Path) -> DistillerModel:
    checkpoint.check_weights(weights, model, source)
    model.load_state_dict(weights)
    return model
