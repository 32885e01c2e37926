"""Distillation behind s3prl's pre-training interface: a student, its teacher and their objective, tied together."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s3prl_distiller import settings
from s3prl_distiller.data import Batch, Corpus, DataConfig, prepare
from s3prl_distiller.engine import Member, OptimizerConfig, RunnerConfig, check_disk, mean_loss, precision

from . import card
from .continued import student_settings as student_settings  # run_pretrain.py asks an upstream for it
from .continued import take_weights
from .derive import derive_student
from .encoder import TransformerEncoder
from .fast.compilers import can_compile
from .fast.replay import ReplayedDistillation, replay_refusal
from .fast.step import PackedDistillation, refusal
from .frontend import frame_lengths, receptive_field, valid_mask
from .initialise import describe, initialise
from .model import DistillerModel
from .model_config import DistillerConfig
from .objective import distillation_loss
from .probe import with_targets
from .student import Student, native_writers, s3prl_states
from .teacher import Teacher, TeacherConfig, load_teacher

log = logging.getLogger(__name__)


@dataclass
class TaskConfig:
    """Section ``task``."""

    sequence_length: int = 250_000  # samples: longer utterances are cropped at random (s3prl's name)
    loss_on_padding: bool = False  # let padded frames carry loss, as s3prl does
    fast: bool = True  # no work on padding, convolutions as products: the plain path's numbers, where they fit
    compile: bool = True  # on a GPU, compile parts of the fast path, which takes about the first minute
    replay: bool = True  # on a GPU, capture the step of each shape of a batch as a CUDA graph, launched as one


@dataclass
class CardConfig:
    """Section ``card``: what the student's README.md says that the other sections do not know."""

    name: str | None = None  # what the student is called
    license: str | None = None  # of its weights, as the Hugging Face hub calls it, such as apache-2.0
    datasets: list[str] = field(default_factory=list)  # what the audio is called there, such as librispeech_asr
    begun_from: str | None = None  # the student whose weights it began with: -e with -n fills it in


@dataclass
class PretrainConfig:
    """A whole run. Sections and keys are those of s3prl's two YAML files; ``data`` takes the place of ``datarc``, and
    ``card`` is ours."""

    distiller: DistillerConfig = field(default_factory=DistillerConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    data: DataConfig = field(default_factory=DataConfig)
    runner: RunnerConfig = field(default_factory=RunnerConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    card: CardConfig = field(default_factory=CardConfig)


def from_s3prl(values: dict[str, Any]) -> dict[str, Any]:
    """Translate what s3prl's ``config_model.yaml`` and ``config_runner.yaml`` say in other words."""
    values = dict(values)
    # s3prl reads audio.target_level and never uses it.
    if not set(_section(values, "audio")) - {"target_level"}:
        values.pop("audio", None)
    expert = _section(values, "pretrain_expert")
    if set(expert) == {"datarc"} and isinstance(expert["datarc"], dict):
        del values["pretrain_expert"]
        names = {"train_batch_size": "batch_size", "libri_root": "path"}
        # s3prl's table of lengths and its upper limit: lengths are measured here, and long utterances are cropped.
        datarc = {names.get(k, k): v for k, v in expert["datarc"].items() if k not in ("file_path", "max_timestep")}
        values["data"] = {**datarc, **_section(values, "data")}
    runner = _section(values, "runner")
    if isinstance(fp16 := runner.get("fp16"), bool):
        values["runner"] = runner = {"precision": "float16" if fp16 else "float32", **runner}
        del runner["fp16"]
    if runner.get("n_epochs") == -1:
        values["runner"] = {key: value for key, value in runner.items() if key != "n_epochs"}
    elif "n_epochs" in runner:
        raise settings.SettingsError("runner.n_epochs is not supported: give runner.total_steps")
    return values


def _section(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = values.get(name)
    return dict(section) if isinstance(section, dict) else {}


def load_config(
    files: Sequence[Path | Mapping[str, Any]], options: Mapping[str, Any], overrides: Sequence[str]
) -> tuple[PretrainConfig, dict[str, Any]]:
    """Read the config of a run.

    Args:
        files: YAML files or what one would hold, the later ones over the earlier.
        options: values by section, over the files.
        overrides: texts of ``-o``, over both.

    Returns:
        The config, and the keys of ``distiller`` that were given rather than left to the teacher.

    Raises:
        ValueError: a key or type is wrong; it is named.
    """
    config, given = settings.load(PretrainConfig, files, options, overrides, from_s3prl)
    config.runner.check()
    config.optimizer.check()
    return config, {key: getattr(config.distiller, key) for key in given.get("distiller", {})}


class UpstreamPretrainExpert(nn.Module):
    """Distils a teacher into a student.

    Args:
        config: the run's config.
        student: what is trained.
        teacher: a frozen teacher.
        corpus: the audio.
    """

    metric, higher_is_better = "loss", False
    keep_best = False  # the last student is the one to hand on: its learning rate has come down to zero

    def __init__(self, config: PretrainConfig, student: DistillerModel, teacher: Teacher, corpus: Corpus):
        super().__init__()
        self.config = config
        self.corpus = corpus
        self.fingerprint = corpus.fingerprint
        self.teacher = teacher
        self.model = student
        if isinstance(student.encoder, TransformerEncoder):
            student.encoder.gradient_checkpointing = config.runner.gradient_checkpointing
        self.model.train()
        self.fast: PackedDistillation | ReplayedDistillation | None = None

    def choose_path(self, device: torch.device) -> None:
        """Take the fast path where student and teacher allow it; the teacher is verified."""
        task, runner = self.config.task, self.config.runner
        twin = self.teacher.twin if self.teacher.runs_twin else None
        reason = "task.fast=false" if not task.fast else refusal(self.model, twin)
        if task.loss_on_padding:
            reason = "task.loss_on_padding needs the padding"
        if reason is not None:
            log.info("Steps take the plain path: %s", reason)
            return
        assert twin is not None
        compiled = task.compile and device.type == "cuda"
        if compiled and not can_compile():
            log.warning("No C compiler is found (gcc, clang or the variable CC): steps take a third longer without one")
            compiled = False
        autocast, _ = precision(runner.precision, device)
        self.fast = PackedDistillation(self.model, twin, autocast, compiled)
        if compiled:
            log.info("The first steps compile parts of both models: about half a minute")
        if device.type == "cuda":
            with autocast():
                dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else torch.float32
            reason = "task.replay=false" if not task.replay else replay_refusal(self.model, twin, dtype)
            if reason is None:
                self.fast = ReplayedDistillation(self.fast)
            else:
                log.info("Steps are launched kernel by kernel: %s", reason)

    def verify_teacher(self, device: torch.device, utterances: int = 2) -> None:
        """Compare the teacher's twin with the hub's own forward on the first utterances of the data."""
        batch = next(batch for batch in self.corpus.train_loader(0, dealt=False) if batch.ids)
        rows = list(zip(batch.wave, batch.lengths.tolist(), strict=True))[:utterances]
        self.teacher.verify([row[:length].to(device) for row, length in rows])

    def get_train_dataloader(self, epoch: int, skip: int) -> Iterable[Batch]:
        """Batches of an epoch without the first ``skip``."""
        return self.corpus.train_loader(epoch, skip=skip)

    @property
    def members(self) -> list[Member]:
        """The student."""
        return [Member(self.model)]

    def validate(self, autocast: Any, device: torch.device) -> list[dict[str, float]]:
        """Loss and its parts on the held-out utterances."""
        return [mean_loss(self, self.corpus.valid_loader(), autocast, device)]

    def weight(self, batch: Batch) -> int:
        """Frames (with loss on padding: samples, padded ones too) that the loss of a batch is a mean over."""
        if self.config.task.loss_on_padding:
            return batch.wave.numel()
        return int(frame_lengths(batch.lengths, self.model.conv_layers).clamp_min(0).sum())

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and its parts by name.

        Args:
            batch: waveforms on the device of the model.
        """
        if self.fast is not None:
            loss = self.fast(batch.wave, batch.lengths)
            return loss.total, loss.parts
        config, task = self.model.config, self.config.task
        out = self.model(batch.wave, batch.lengths)
        assert out.predictions is not None
        targets = self.teacher(batch.wave, batch.lengths, config.targets)
        frames = min(out.predictions.shape[2], targets.shape[2])
        mask = None
        if not task.loss_on_padding:
            valid = frame_lengths(batch.lengths, self.model.conv_layers).clamp_max(frames)
            mask = valid_mask(valid, frames, batch.wave.device)
        loss = distillation_loss(
            out.predictions[:, :, :frames],
            targets[:, :, :frames],
            mask,
            config.targets,
            loss_type=config.loss_type,
            cosine_weight=config.cosine_loss,
            features=out.features[:, :frames],
            feature_penalty=config.feat_pen_loss,
        )
        return loss.total, loss.parts

    def add_state_to_save(self, all_states: dict[str, Any], step: int) -> dict[str, Any]:
        """Add what s3prl's ``distiller_local`` reads."""
        return {**all_states, **s3prl_states(self.model, settings.plain(self.config), step)}

    def native_writers(self, step: int, member: int | None = None) -> dict[str, Any]:
        """Writers of the student in our own form, by file name."""
        return native_writers(self.model, settings.plain(self.config), step)

    def write_card(self, folder: Path, step: int, ckpt: Path, figures: Mapping[str, tuple[float, float]]) -> None:
        """Write the model card of the student as it was saved.

        Args:
            folder: of the run.
            step: optimiser steps taken.
            ckpt: its file.
            figures: of the held-out audio, by name: before and after training.
        """
        student = Student(self.model, settings.plain(self.config), step, "s3prl", ckpt)
        card.save(card.page(student, figures, f"{self.corpus.train_seconds / 3600:.2f} hours"), folder)

    def describe(self) -> dict[str, str]:
        """What was distilled into what, for the summary of the run."""
        info, config = self.teacher.info, self.model.config
        student = sum(parameter.numel() for parameter in self.model.parameters())
        heads = 0 if self.model.output_layer is None else sum(p.numel() for p in self.model.output_layer.parameters())
        lines = {
            "Teacher": f"{info.name}: {info.n_layers} layers, {info.width} wide",
            "Student": f"{config.encoder_layers} layers, {(student - heads) / 1e6:.2f} M parameters without the "
            f"prediction heads ({heads / 1e6:.2f} M), predicts layers {', '.join(map(str, config.targets))}",
            "Data": "; ".join(self.corpus.describe().splitlines()),
        }
        if info.parameters:
            smaller = 100 * (1 - (student - heads) / info.parameters)
            lines["Size"] = f"{smaller:.0f} % smaller than the teacher ({info.parameters / 1e6:.2f} M)"
        return lines


def build(
    config: PretrainConfig,
    given: Mapping[str, Any],
    folder: Path,
    device: torch.device,
    weights: Path | None,
    auto_targets: bool = False,
) -> UpstreamPretrainExpert:
    """Put a run together, cheap checks first.

    Args:
        config: its section ``distiller`` is completed in place.
        given: the keys of ``distiller`` that were given.
        folder: of the run; the report on the data goes there.
        device: where to train.
        weights: a checkpoint whose weights the student takes, if any.
        auto_targets: probe the teacher for the layers to predict, as many as ``given`` has or 3.

    Raises:
        ValueError: teacher, data or checkpoint cannot be used, or do not fit together, or the disk is too small.
    """
    if config.data.path is None:
        raise ValueError("give the audio to distil on: --data FOLDER_OR_MANIFEST (data.path in a config)")
    teacher = load_teacher(config.teacher)
    info = teacher.info
    how = "" if teacher.runs_twin else ", run as the hub gives it"
    log.info("Teacher %s: %d layers, %d wide%s", info.name, info.n_layers, info.width, how)
    if auto_targets:
        given = with_targets(config.distiller, given, teacher, config.data, config.runner.seed, folder, device)
    config.distiller = derive_student(given, info, initialised=weights is None)
    student = _build_student(config.distiller, teacher, weights)
    _check_crop(config.task, student)
    check_disk(student, config.runner, folder)
    corpus = prepare(config.data, crop_samples=config.task.sequence_length, seed=config.runner.seed, report_dir=folder)
    for line in corpus.describe().splitlines():
        log.info("Data: %s", line)
    config.data.language = config.data.language or corpus.languages
    expert = UpstreamPretrainExpert(config, student, teacher, corpus).to(device)
    expert.verify_teacher(device)
    expert.choose_path(device)
    return expert


def _build_student(config: DistillerConfig, teacher: Teacher, weights: Path | None) -> DistillerModel:
    student = DistillerModel(config)
    if weights is not None:
        take_weights(student, weights)
    elif teacher.start is not None:
        copied = initialise(student, teacher.start)
        total = sum(parameter.numel() for parameter in student.parameters())
        how = describe(config, teacher.start.config)
        log.info(
            "%.0f %% of %.2f M parameters of the student start from the teacher%s",
            100 * copied / total,
            total / 1e6,
            f": {how}" if copied and how else "",
        )
    return student


def _check_crop(task: TaskConfig, student: DistillerModel) -> None:
    shortest = receptive_field(student.conv_layers)
    if task.sequence_length < shortest:
        raise ValueError(
            f"task.sequence_length={task.sequence_length} samples is shorter than one frame: give at least {shortest}"
        )
