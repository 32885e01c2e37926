"""What s3prl calls things: its names of the ten tasks, and the keys of its downstream configs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from s3prl_distiller.audio import SAMPLE_RATE
from s3prl_distiller.settings import SettingsError

TASKS = {
    "speech_commands": "ks",
    "fluent_commands": "ic",
    "voxceleb1": "sid",
    "sv_voxceleb1": "asv",
    "diarization": "sd",
    "emotion": "er",
    "quesst14_dtw": "qbe",
}
# s3prl's task "ctc" is told by its config which of three it is.
CTC_CONFIGS = {"libriphone": "pr", "snips": "sf", "librispeech": "asr"}

_DATA = {
    "train_batch_size": "batch_size",
    "batch_size": "batch_size",
    "eval_batch_size": "eval_batch_size",
    "num_workers": "num_workers",
    "path": "path",
    "file_path": "path",
    "root": "path",
    "libri_root": "path",
    "speech_commands_root": "path",
    "dataset_root": "path",
    "bucketing": "bucketed",
}
_TASK = {
    "dist_method": "distance",
    "minmax_norm": "minmax",
    "feature_normalization": "standardize",
    "speech_commands_test_root": "test_root",
    "test_meta_data": "trials",
}


def task_name(name: str, config: str | None) -> tuple[str, str | None]:
    """Our name of a task and the config file that is still to be read, if any.

    Raises:
        ValueError: "ctc" without the config that says which task it is.
    """
    if name != "ctc":
        return TASKS.get(name, name), config
    stem = Path(config or "").stem
    if stem not in CTC_CONFIGS:
        choices = ", ".join(CTC_CONFIGS)
        raise ValueError(f"-d ctc needs -c with one of s3prl's configs for it ({choices}); or use -d asr, pr or sf")
    # As s3prl's own documentation has it, the file being in its checkout.
    return CTC_CONFIGS[stem], None if config in (stem, f"downstream/ctc/{stem}.yaml") else config


def translate(values: dict[str, Any]) -> dict[str, Any]:
    """Turn the keys of s3prl's downstream configs into ours.

    Raises:
        SettingsError: a key that changes what s3prl trains and has no counterpart here; it is named.
    """
    values = dict(values)
    runner = values.get("runner")
    if isinstance(runner, dict):
        values["runner"] = runner = dict(runner)
        runner.pop("eval_dataloaders", None)  # here dev picks the checkpoint, and test is judged once
        if runner.get("n_epochs") == -1:
            del runner["n_epochs"]
        if isinstance(runner.get("fp16"), bool):
            runner.setdefault("precision", "float16" if runner.pop("fp16") else "float32")
    optimizer = values.get("optimizer")
    if isinstance(optimizer, dict):
        values["optimizer"] = optimizer = dict(optimizer)
        if optimizer.get("name") == "TorchOptim":
            optimizer["name"] = optimizer.pop("torch_optim_name", "Adam")
        elif "torch_optim_name" in optimizer:
            optimizer["name"] = optimizer.pop("torch_optim_name")
    expert = values.pop("downstream_expert", None)
    if isinstance(expert, dict):
        for section, keys in expert.items():
            if not isinstance(keys, dict):
                raise SettingsError(f"downstream_expert.{section} has no counterpart here: see config/downstream")
            for key, value in keys.items():
                _place(values, section, key, value)
    elif expert is not None:
        raise SettingsError(f"downstream_expert is {expert!r}, where a section is expected")
    return values


def _place(values: dict[str, Any], section: str, key: str, value: Any) -> None:
    target: tuple[str, str]
    if section in ("datarc", "loaderrc", "corpus") and key in _DATA:
        target = ("data", _DATA[key])
    elif key in ("train_batchsize", "eval_batchsize"):
        target = ("data", "batch_size" if key.startswith("train") else "eval_batch_size")
    elif key == "max_timestep":
        target, value = ("data", "crop_seconds"), None if value is None else _number(key, value) / SAMPLE_RATE
    elif key == "test_fold":
        target, value = ("task", "fold"), int(_number(key, str(value).removeprefix("fold")))
    elif key in _TASK:
        target = ("task", _TASK[key])
    elif key == "vad_config" and isinstance(value, dict) and set(value) == {"min_sec"}:
        target, value = ("task", "min_seconds"), _number("min_sec", value["min_sec"]) / SAMPLE_RATE
    elif key == "max_workers":
        return  # decoding processes are data.num_workers
    else:
        raise SettingsError(
            f"downstream_expert.{section}.{key} is not known: the heads are SUPERB's, and data is set by the sections "
            "data and task (see config/downstream and downstream/core/config.py)"
        )
    place, name = target
    values[place] = {**(values.get(place) or {}), name: value}


def _number(key: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise SettingsError(f"downstream_expert: {key} is {value!r}, where a number is expected") from None
