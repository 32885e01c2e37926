"""``s3prl-distiller info``: what a student is made of, what it costs and where it comes from."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from .common import run_command

_SECONDS = 10.0  # the length at which arithmetic is counted: attention's share grows with it
_UNSAID = "not said in the checkpoint"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="s3prl-distiller info",
        description="What a student is made of, what it costs and where it comes from.",
    )
    p.add_argument("student", metavar="CKPT", help="a states-STEP.ckpt, the folder of a run, or any other student")
    p.add_argument("--json", action="store_true", help="the same for programs")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0; 2 where the student cannot be read."""
    args = parser().parse_args(arguments)
    return run_command(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    student = _module("upstream.distiller.student").read_student(args.student)
    facts = gather(student)
    sys.stdout.write(json.dumps(facts, indent=2, ensure_ascii=False) + "\n" if args.json else _table(facts))
    return 0


def gather(student: Any) -> dict[str, Any]:
    """The facts of a student, of JSON's types.

    Args:
        student: of ``read_student``.
    """
    cost, runners = _module("downstream.benchmark.cost"), _module("upstream.distiller.export.runners")
    card = _module("upstream.distiller.card")
    frontend, model = _module("upstream.distiller.frontend"), student.model
    config = model.config
    files = [student.path] if student.path.is_file() else [file for file in student.path.rglob("*") if file.is_file()]
    macs, of_heads = cost.count_model_macs(model, _SECONDS)
    teacher, data = student.training.get("teacher", {}), student.training.get("data", {})
    return {
        "file": str(student.path),
        "form": student.form,
        "bytes": sum(file.stat().st_size for file in files),
        "layers": config.encoder_layers,
        "width": config.encoder_embed_dim,
        "ffn_width": config.encoder_ffn_embed_dim,
        "attention_heads": config.encoder_attention_heads,
        "norm": "before each block" if config.layer_norm_first else "after each block",
        "front_end": f"{len(config.conv_layers)} convolutions, "
        + ("layer norm after each" if config.extractor_mode == "layer_norm" else "group norm after the first"),
        "waveforms_normalized": config.normalize,
        "milliseconds_per_frame": config.downsample_rate / 16,
        "shortest_milliseconds": frontend.receptive_field(config.conv_layers) / 16,
        "predicts_layers": list(config.targets) if config.n_tasks else [],
        "parameters": cost.count_parameters(model),
        "parameters_without_heads": cost.count_parameters(model) - cost.count_parameters(model.output_layer),
        "macs_per_second": macs / _SECONDS,
        "macs_per_second_without_heads": (macs - of_heads) / _SECONDS,
        "teacher": _name(teacher, "model", "ckpt"),
        "data": _name(data, "path", "sets"),
        "steps": student.step,
        "license": card.read_header(card.beside(student.path) or "").get("license"),
        "license_of_data": data.get("license"),
        "unknown_to_s3prl": runners.unknown_to_s3prl(model),
    }


def _name(section: Mapping[str, Any], key: str, more: str) -> str | None:
    if not section.get(key):
        return None
    return f"{section[key]} ({section[more]})" if section.get(more) else str(section[key])


def _licences(facts: Mapping[str, Any]) -> str:
    said = [facts["license"], facts["license_of_data"] and f"its audio {facts['license_of_data']}"]
    return ", ".join(filter(None, said)) or f"{_UNSAID} (data.license), nor in a README.md beside it"


def _table(facts: Mapping[str, Any]) -> str:
    million, giga = 1e6, 1e9
    plain = facts["parameters_without_heads"] / million
    predicts = ", ".join(map(str, facts["predicts_layers"]))
    rows = {
        "File": f"{facts['file']} ({facts['form']}, {facts['bytes'] / million:.1f} MB)",
        "Transformer": f"{facts['layers']} layers, {facts['width']} wide, {facts['ffn_width']} inside, "
        f"{facts['attention_heads']} attention heads, layer norm {facts['norm']}",
        "Front end": f"{facts['front_end']}; a frame every {facts['milliseconds_per_frame']:g} ms, the first of "
        f"{facts['shortest_milliseconds']:g} ms",
        "Waveforms": "brought to zero mean and unit variance" if facts["waveforms_normalized"] else "taken as they are",
        "Predicts": f"layers {predicts} of its teacher" if predicts else "nothing: it has no prediction heads",
        "Parameters": f"{facts['parameters'] / million:.2f} M ({plain:.2f} M without prediction heads)",
        "Arithmetic": f"{facts['macs_per_second'] / giga:.2f} GMAC for a second of audio "
        f"({facts['macs_per_second_without_heads'] / giga:.2f} without prediction heads)",
        "Teacher": facts["teacher"] or _UNSAID,
        "Data": facts["data"] or _UNSAID,
        "Steps": _UNSAID if facts["steps"] is None else f"{facts['steps']:,}",
        "Licence": _licences(facts),
        "In s3prl": f"with this package only: {', '.join(facts['unknown_to_s3prl'])}"
        if facts["unknown_to_s3prl"]
        else "loads as distiller_local, without this package too",
    }
    return "".join(f"{name:<13}{words}\n" for name, words in rows.items())


def _module(name: str) -> Any:
    """A module of upstream/ or downstream/, by name: a type checker finds the folders only where they lie."""
    return importlib.import_module(f"s3prl_distiller.{name}")
