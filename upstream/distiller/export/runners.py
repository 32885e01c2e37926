"""An export run by what it is for, from its files alone: what a parity report compares with the student."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..fast.inference import Inference
from ..model import DistillerModel, Encoder
from ..student import read_student
from .graph import INPUTS, state_names
from .onnx import open_session

Runner = Callable[[Tensor, Tensor], dict[str, Tensor]]
"""(B, samples) zero-padded waveforms at 16 kHz and (B,) samples of each in; what the form gives by name out: hidden
states (B, T, D) of a student, the answer of a head, and of a graph also the frames (B,) of each utterance."""

FILES = {
    "onnx": "model.onnx",
    "onnx-int8": "model.onnx",
    "torch-export": "model.pt2",
    "s3prl": "student.ckpt",
    "hf": ".",
}
"""Where in its folder each form is."""


def reference(model: DistillerModel, form: str) -> Runner:
    """The student in its plain definition, with the hidden states that the form hands out.

    s3prl's experts list projection, layers and predictions. transformers lists the first layer's input and each layer,
    the last one as it leaves the encoder.
    """

    @torch.no_grad()
    def run(wave: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        if form == "hf":
            return _named_encoder_states(Encoder.forward(model, wave, lengths).hidden_states)
        return dict(zip(state_names(model.config), model(wave, lengths).listed, strict=True))

    return run


def fast(model: DistillerModel) -> Runner:
    """The student as it is used in this package: what an export's speed is compared with."""
    inference = Inference(model, "float32")

    def run(wave: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        return dict(zip(state_names(model.config), inference(_cut(wave, lengths)).listed, strict=True))

    return run


def open_runner(form: str, path: Path) -> Runner:
    """Load an export (or, as form "student", a student of ours) to be run on the CPU.

    Args:
        form: a key of :data:`FILES`, or "student".
        path: its folder or file; of a student, whatever it is read from.
    """
    opened = {"onnx": _onnx, "onnx-int8": _onnx, "torch-export": _exported, "hf": _huggingface, "s3prl": _s3prl}
    if form == "student":
        return fast(read_student(path).model.eval())
    return opened[form](path / FILES[form] if path.is_dir() else path)


def unknown_to_s3prl(model: DistillerModel) -> list[str]:
    """What of a student's architecture s3prl 0.4.18 does not know; it can load those of which there is nothing."""
    config = model.config
    wide = config.conv_layers[-1][0]
    unknown = {
        "conv_bias": config.conv_bias,
        "feature_layer_norm": config.feature_layer_norm,
        "always_project": model.post_extract_proj is not None and wide == config.encoder_embed_dim,
        "normalize": config.normalize,
        "conv_pos_depth": config.conv_pos_depth > 1,
        "out_layer_type": config.out_layer_type == "linear",
        "n_tasks": config.n_tasks == 0,
    }
    return [f"{name}={getattr(config, name)}" for name, found in unknown.items() if found]


def _cut(wave: Tensor, lengths: Tensor) -> list[Tensor]:
    return [row[:length] for row, length in zip(wave, lengths.tolist(), strict=True)]


def _onnx(path: Path) -> Runner:
    session = open_session(path)
    names = [output.name for output in session.get_outputs()]

    def run(wave: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        given = dict(zip(INPUTS, (wave.numpy(), lengths.numpy()), strict=True))
        return {name: torch.from_numpy(value) for name, value in zip(names, session.run(None, given), strict=True)}

    return run


def _exported(path: Path) -> Runner:
    extra = {"outputs.json": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.export.load(path, extra_files=extra).module()
    names = json.loads(extra["outputs.json"])

    @torch.no_grad()
    def run(wave: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        return dict(zip(names, module(wave, lengths), strict=True))

    return run


def _huggingface(path: Path) -> Runner:
    from transformers import AutoFeatureExtractor, AutoModel

    model = AutoModel.from_pretrained(path).eval()
    extractor = AutoFeatureExtractor.from_pretrained(path)

    @torch.no_grad()
    def run(wave: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        waves = [row.numpy() for row in _cut(wave, lengths)]
        inputs = extractor(waves, sampling_rate=extractor.sampling_rate, padding=True, return_tensors="pt")
        out = model(**inputs, output_hidden_states=True)
        return _named_encoder_states([*out.hidden_states[:-1], out.last_hidden_state])

    return run


def _named_encoder_states(states: Sequence[Tensor]) -> dict[str, Tensor]:
    names = ["first_layer_input", *(f"layer_{index}" for index in range(1, len(states)))]
    return dict(zip(names, states, strict=True))


def _s3prl(path: Path) -> Runner:
    """In s3prl's own code where it knows the architecture, else in its hub with this package registered."""
    from s3prl_distiller.hub import load_hub

    from ..expert import UpstreamExpert

    load_hub()
    student = read_student(path).model
    expert: Any = UpstreamExpert(path)
    if not unknown_to_s3prl(student):
        theirs = importlib.import_module("s3prl.upstream.distiller.expert")
        with contextlib.redirect_stdout(io.StringIO()):
            expert = theirs.UpstreamExpert(str(path))
    expert.eval()
    names = state_names(student.config)

    @torch.no_grad()
    def run(wave: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        return dict(zip(names, expert(_cut(wave, lengths))["hidden_states"], strict=True))

    return run
