"""Experts of the s3prl hub by what a user names: an entry, a checkpoint file, a Hugging Face folder or a run."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from s3prl_distiller import checkpoint
from s3prl_distiller.hub import load_hub, register

from .student import newest_of_run, preprocessor_of

_HUGGINGFACE_ENTRIES = {"hubert": "hf_hubert_custom", "wav2vec2": "hf_wav2vec2_custom"}
# What a user writes to name a local one, by role.
_OPTION = {"teacher": "--teacher FILE_OR_FOLDER", "upstream": "-u FILE_OR_FOLDER"}


def load_hub_expert(model: str, ckpt: str | None, role: str) -> tuple[str, Any]:
    """The hub entry's name, and its expert.

    Args:
        model: a name in the s3prl hub, the path of a checkpoint file, of a Hugging Face folder or of a run's.
        ckpt: what a hub name that takes a checkpoint is to load.
        role: "teacher" or "upstream", for messages.

    Raises:
        ValueError: it cannot be found, loaded or downloaded, or hears another sampling rate than 16 kHz.
    """
    register()
    name, arguments = _find(model, ckpt, role)
    expert: Any = _instantiate(name, arguments, role)
    if (rate := getattr(getattr(expert, "extracter", None), "sampling_rate", 16_000)) != 16_000:
        raise ValueError(
            f"{role} {ckpt or model} hears audio at {rate} Hz (sampling_rate in its preprocessor_config.json): only "
            "models for 16000 Hz can be used, which all audio is brought to"
        )
    if hasattr(getattr(getattr(expert, "model", None), "config", None), "to_dict"):
        expert.model.register_forward_hook(_normalise_last)
        expert.model.config.return_dict = True  # a folder may say otherwise, and get tuples without names
        expert.model.config.apply_spec_augment = False  # in train mode it would mask features by itself
    return name, expert


def _normalise_last(_: nn.Module, __: Any, output: Any) -> Any:
    """The last hidden state after the normalisation at a pre-norm encoder's end, as of fairseq and transformers 4:
    transformers 5 leaves it out."""
    states = output.hidden_states
    if states is not None and states[-1].shape == output.last_hidden_state.shape:  # an adapter makes fewer frames
        output.hidden_states = (*states[:-1], output.last_hidden_state)
    return output


def _find(model: str, ckpt: str | None, role: str) -> tuple[str, dict[str, Any]]:
    """The hub entry and its arguments for what a config names."""
    hub = load_hub()
    if model in hub.options():
        return model, {} if ckpt is None else {"ckpt": ckpt}
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / checkpoint.CONFIG).is_file():
            if student := newest_of_run(path):
                return "distiller_local", {"ckpt": str(student)}
            raise checkpoint.CheckpointError(
                f"{role} {path} has neither a config.json, as a Hugging Face folder, nor states-STEP.ckpt, as a run"
            )
        settings = checkpoint.load_json(path / checkpoint.CONFIG)
        if settings.get("format") == "s3prl_distiller":
            return "distiller_local", {"ckpt": str(path)}
        if preprocessor_of(path) is None:
            # s3prl would take another model's.
            raise checkpoint.CheckpointError(
                f"{path} has no preprocessor_config.json, which says whether waveforms are normalised: put one there, "
                'such as {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": false}'
            )
        return _HUGGINGFACE_ENTRIES.get(settings.get("model_type", ""), ""), {"ckpt": str(path)}
    if path.is_file():
        return _entry_for_file(path, role), {"ckpt": str(path)}
    near = difflib.get_close_matches(model, hub.options(), n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise ValueError(
        f"{role} {model!r} is no name in the s3prl hub, no checkpoint file and no Hugging Face folder{hint}"
    )


def _entry_for_file(path: Path, role: str) -> str:
    states = checkpoint.load_torch(path)
    keys = set(states) if isinstance(states, dict) else set()
    if {"Distiller", "Config"} <= keys:
        return "distiller_local"
    if {"cfg", "model"} <= keys:
        return "wavlm_local"
    if not {"task_cfg", "model_cfg", "model_weight"} <= keys:
        raise checkpoint.CheckpointError(
            f"{path} is no {role} that s3prl can load: it has the keys {', '.join(sorted(map(str, keys)))[:100]} and "
            "not task_cfg, model_cfg and model_weight. A fairseq checkpoint is converted by s3prl's "
            "upstream/hubert/convert.py."
        )
    if "dictionaries_symbols" in keys:
        return "hubert_custom"
    return "data2vec_custom" if "average_top_k_layers" in states["model_cfg"] else "wav2vec2_custom"


def _instantiate(name: str, arguments: dict[str, Any], role: str) -> nn.Module:
    if not name:
        return HuggingFaceExpert(arguments["ckpt"], role)
    source = arguments.get("ckpt", f"{name} of the s3prl hub")
    try:
        return getattr(load_hub(), name)(**arguments)
    except (OSError, ConnectionError) as error:
        from s3prl.util.download import get_dir

        reason = str(error).split("\n")[0][:200]
        raise ValueError(
            f"{role} {source} could not be loaded ({type(error).__name__}: {reason}). "
            f"A registered checkpoint is downloaded into {get_dir()}; without a network pass a local one, "
            f"{_OPTION[role]}."
        ) from error
    except (ImportError, *checkpoint.UNREADABLE) as error:
        reason = str(error).split("\n")[0][:300] or type(error).__name__
        raise ValueError(f"{role} {source} could not be loaded as {name}: {reason}") from error


class HuggingFaceExpert(nn.Module):
    """A Hugging Face folder for which the s3prl hub has no entry, such as data2vec-audio, behind the same interface."""

    def __init__(self, ckpt: str, role: str):
        super().__init__()
        from transformers import AutoFeatureExtractor, AutoModel

        try:
            self.extracter: Any = AutoFeatureExtractor.from_pretrained(ckpt)
            self.model: Any = AutoModel.from_pretrained(ckpt)
        except checkpoint.UNREADABLE as error:
            reason = str(error).split("\n")[0][:300] or type(error).__name__
            raise ValueError(f"{role} {ckpt} could not be loaded: {reason}") from error

    def get_downsample_rates(self, key: str = "hidden_states") -> int:
        rate = 1
        for stride in getattr(self.model.config, "conv_stride", [320]):
            rate *= stride
        return rate

    def forward(self, wavs: Sequence[Tensor]) -> dict[str, Any]:
        inputs = self.extracter(
            [wav.cpu().numpy() for wav in wavs],
            sampling_rate=16_000,
            padding=True,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(wavs[0].device)
        return {"hidden_states": self.model(**inputs, output_hidden_states=True).hidden_states}
