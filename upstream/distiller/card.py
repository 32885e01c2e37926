"""The model card: what a student's ``README.md`` tells those whom the student is handed on to.

Model cards: Mitchell et al. 2019 (arXiv 1810.03993); the header is that of the Hugging Face hub. It is filled from the
run, and says so where the run does not know.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from s3prl_distiller import checkpoint, machine
from s3prl_distiller.audio import SAMPLE_RATE

from .frontend import receptive_field
from .student import Student

log = logging.getLogger(__name__)

FILE = "README.md"
MARK = "<!-- Written by s3prl-distiller. Without this line it is yours, and is not written over. -->"
_USE = "## How to use it"
_TAGS = ["speech", "feature-extraction", "self-supervised", "knowledge-distillation", "s3prl", "s3prl-distiller"]
_UNKNOWN = "not said"


def page(student: Student, figures: Mapping[str, tuple[float, float]] | None = None, heard: str | None = None) -> str:
    """A card.

    Args:
        student: what it is about, with the config of its run.
        figures: of the held-out audio, by name: before and after training.
        heard: how much audio it was trained on, in words, by the run that asks; None where it is long over.
    """
    about = _section(student, "card")
    name = about.get("name") or f"{_base(student.teacher) or 'speech model'}, distilled"
    parts = [
        f"---\n{yaml.safe_dump(header(student), sort_keys=False, allow_unicode=True)}---",
        MARK,
        f"# {name}",
        _what(student),
        "## How it was made",
        _table(_made(student, heard)),
        use("s3prl", student.path.name),
        "## Figures",
        _figures(figures),
        "## Limits",
        "\n".join(f"- {limit}" for limit in _limits(student)),
        "## Licence",
        _licence(student),
        "## Source",
        "DistilHuBERT: Chang, Yang and Lee 2022 (arXiv 2110.01900). Cite it, the teacher and the audio.",
    ]
    return "\n\n".join(parts) + "\n"


def header(student: Student) -> dict[str, Any]:
    """What machines read of it; nothing that is not known."""
    data, about, config = _section(student, "data"), _section(student, "card"), student.model.config
    values = {
        "language": data.get("language"),
        "license": about.get("license"),
        "library_name": "s3prl",
        "pipeline_tag": "feature-extraction",
        "tags": _TAGS,
        "datasets": about.get("datasets"),
        "metrics": [config.loss_type, "cosine_similarity"] if config.n_tasks else None,
    }
    return {key: value for key, value in values.items() if value}


def use(form: str, file: str) -> str:
    """The section on how a student is used.

    Args:
        form: "s3prl" (any that :func:`~.student.read_student` reads), "hf", "onnx" or "torch-export".
        file: of the student, as its users see it.
    """
    return f"{_USE}\n\n```python\n{_CODE.get(form, _CODE['s3prl']).format(file=file)}```"


def for_export(student: Student, form: str, file: str) -> str:
    """The card of an export: the one beside the student, if there is one, with how this form is used."""
    text = beside(student.path) or page(student)
    library = {"hf": "transformers", "onnx": "onnx", "onnx-int8": "onnx"}.get(form, "s3prl")
    text = text.replace("library_name: s3prl\n", f"library_name: {library}\n", 1)
    section = use("onnx" if form == "onnx-int8" else form, file)
    before, found, after = text.partition(f"{_USE}\n")
    if not found:
        return f"{text.rstrip()}\n\n{section}\n"
    _, following, rest = after.partition("\n## ")
    return f"{before}{section}\n{following}{rest}"


def beside(path: Path) -> str | None:
    """The card that lies in a student's folder, or beside its file; None where there is none with a header."""
    folders = [path if path.is_dir() else path.parent]
    if path.is_dir() and path.name.startswith("states-"):
        folders.append(path.parent)
    for folder in folders:
        if (folder / FILE).is_file():
            text = (folder / FILE).read_text(encoding="utf-8", errors="replace")
            return text if read_header(text) else None
    return None


def read_header(text: str) -> dict[str, Any]:
    """The YAML header of a card; empty where there is none."""
    parts = text.split("---\n")
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        values = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return {}
    return values if isinstance(values, dict) else {}


def save(text: str, folder: Path) -> None:
    """Write a card, unless there is one that somebody has made their own."""
    path = folder / FILE
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        log.warning("%s is yours, and stays: the student's model card is not written", path)
    else:
        checkpoint.save_text(text, path)


def _what(student: Student) -> str:
    config, model = student.model.config, student.model
    heads = 0 if model.output_layer is None else sum(p.numel() for p in model.output_layer.parameters())
    size = (sum(p.numel() for p in model.parameters()) - heads) / 1e6
    teacher = _base(student.teacher) or "a speech model that its checkpoint does not name"
    return (
        f"A small speech model distilled from {teacher}: {config.encoder_layers} Transformer layers, "
        f"{config.encoder_embed_dim} wide, {size:.2f} M parameters without prediction heads. It makes a vector of "
        f"{config.encoder_embed_dim} numbers of every {config.downsample_rate / 16:g} ms of speech. It is a feature "
        "extractor: a head for a task is trained on top, or the whole is fine-tuned. By itself it transcribes nothing."
    )


def _made(student: Student, heard: str | None) -> dict[str, str]:
    config = student.model.config
    data, task, runner, optimizer = (_section(student, name) for name in ("data", "task", "runner", "optimizer"))
    audio = [Path(data.get("path") or "").name, heard, _languages(student), data.get("license")]
    rows = {
        "Teacher": _base(student.teacher),
        "Predicts": f"the teacher's layers {', '.join(map(str, config.targets))}" if config.n_tasks else None,
        "Starts from": _start(student),
        "Audio": ", ".join(filter(None, audio)),
        "Utterances": f"of at most {task['sequence_length'] / SAMPLE_RATE:.1f} s, longer ones cropped at random"
        if "sequence_length" in task
        else None,
        "Steps": f"{student.step:,} of at most {data['batch_size']} utterances and {data['batch_seconds']:g} s"
        if student.step and "batch_size" in data
        else (f"{student.step:,}" if student.step else None),
        "Optimiser": f"AdamW, learning rate {optimizer['lr']:g}" if "lr" in optimizer else None,
        "Precision": runner.get("precision"),
        "Seed": runner.get("seed"),
        "With": ", ".join(f"{name} {version}" for name, version in machine.versions().items()) if heard else None,
    }
    return {name: str(text) for name, text in rows.items() if text not in (None, "")}


def _start(student: Student) -> str:
    """Which weights it had before it was trained."""
    config, begun = student.model.config, _section(student, "card").get("begun_from")
    if begun:
        return f"the student {'/'.join(Path(begun).parts[-2:])}"
    start = [
        *(["front end"] if config.init_teacher_conv_layers else []),
        *([f"{config.encoder_layers} layers"] if config.init_teacher_encoder_layers else []),
    ]
    return f"the teacher's {' and '.join(start)}" if start else "random weights"


def _figures(figures: Mapping[str, tuple[float, float]] | None) -> str:
    tasks = (
        "What it is worth in a task was not measured by the run that made it: `run_downstream.py -d superb -u CKPT` "
        "does so on SUPERB's ten tasks, beside its teacher."
    )
    if not figures:
        return tasks
    rows = [f"| {name} | {first:.4f} | {last:.4f} |" for name, (first, last) in figures.items()]
    return "\n".join(
        [
            "On recordings held out from the audio that it was trained on: how near it comes to its teacher.",
            "",
            "| | before training | after |",
            "|---|---|---|",
            *rows,
            "",
            tasks,
        ]
    )


def _limits(student: Student) -> list[str]:
    config = student.model.config
    languages = _languages(student)
    shortest = receptive_field(config.conv_layers) / 16
    limits = [
        f"It was distilled on {languages}; how it does on other languages, accents and recordings is not known."
        if languages
        else "Which languages it was distilled on is not said. How it does on others is not known.",
        "What its teacher and the audio were biased towards, it is likely to be too.",
        f"It takes audio of 16 kHz and one channel, {shortest:g} ms at least.",
    ]
    if config.normalize:
        limits.append("Waveforms are to be brought to zero mean and unit variance; this package does so by itself.")
    if config.extractor_mode == "default" and not config.norm_over_padding:
        limits.append(
            "Outside this package an utterance's features depend on the padding of its batch: give one at a time."
        )
    return limits


def _licence(student: Student) -> str:
    said = _section(student, "card").get("license")
    audio = _section(student, "data").get("license")
    return " ".join(
        [
            f"Of these weights: {said}." if said else "Of these weights none is stated (`card.license`).",
            f"Of the audio: {audio}." if audio else "Of the audio none is stated (`data.license`).",
            "That of the teacher may bind them too.",
        ]
    )


def _languages(student: Student) -> str:
    codes: Sequence[str] = _section(student, "data").get("language") or []
    return f"speech in {', '.join(codes)}" if codes else ""


def _section(student: Student, name: str) -> dict[str, Any]:
    section = student.training.get(name)
    return section if isinstance(section, dict) else {}


def _base(name: str | None) -> str | None:
    """A name without the folders of the machine that it was on; an id of the Hugging Face hub stays whole."""
    if not name:
        return name
    path = Path(name).expanduser()
    return path.name if path.is_absolute() or path.exists() else name


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows.items())])


_CODE = {
    "s3prl": """\
import s3prl_distiller, torch
from s3prl import hub

s3prl_distiller.register()
student = hub.distiller_local(ckpt="{file}").eval()
with torch.no_grad():
    features = student([waveform])["hidden_states"]  # waveform: (samples,) float32 at 16 kHz
""",
    "hf": """\
import torch
from transformers import AutoFeatureExtractor, AutoModel

extractor, student = AutoFeatureExtractor.from_pretrained("{file}"), AutoModel.from_pretrained("{file}").eval()
with torch.no_grad():
    inputs = extractor(waveform, sampling_rate=16_000, return_tensors="pt")  # waveform: (samples,) at 16 kHz
    features = student(**inputs, output_hidden_states=True).hidden_states
""",
    "onnx": """\
import numpy, onnxruntime

session = onnxruntime.InferenceSession("{file}")
names = [output.name for output in session.get_outputs()]
lengths = numpy.array([len(waveform)])  # waveform: (samples,) float32 at 16 kHz
features = dict(zip(names, session.run(None, {{"waveform": waveform[None], "lengths": lengths}})))
""",
    "torch-export": """\
import torch

student = torch.export.load("{file}").module()
features = student(waveform[None], torch.tensor([len(waveform)]))  # waveform: (samples,) float32 at 16 kHz
""",
}
