"""One clip of speech through student, teacher and trained heads: figures and words, no web page."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import soundfile
import torch
from torch import Tensor, nn

from s3prl_distiller import audio
from s3prl_distiller.audio import SAMPLE_RATE
from s3prl_distiller.data.check import SILENCE
from s3prl_distiller.data.sources import SUFFIXES

from ...upstream.distiller.expert import UpstreamExpert
from ...upstream.distiller.similarity import cka_matrix, frame_cosine
from ...upstream.distiller.teacher import Teacher
from ..core.expert import DownstreamExpert
from ..core.run import hear

SHORTEST = 0.2
"""Seconds; in less there are too few frames to compare layers by."""

T = TypeVar("T")


class Cost(NamedTuple):
    """What a model took for a clip. ``parameters`` are those that its hidden states pass through."""

    parameters: int
    seconds: float


class Head(NamedTuple):
    """A trained task: its run's name, and the upstream that it was trained on with it."""

    run: str
    expert: DownstreamExpert


class Said(NamedTuple):
    """What a head says of a clip, or why it says nothing."""

    task: str
    run: str
    upstream: str
    words: str
    refused: bool = False


@dataclass(frozen=True)
class Likeness:
    """How alike student and teacher hear a clip of T frames.

    Attributes:
        rows: what the student's states are called: its projection, layers and predictions.
        cka: (len(rows), layers of the teacher), debiased; NaN where a state does not vary.
        targets: by place in ``rows``, the teacher's layer that a prediction was trained on.
        cosines: (T,) of each prediction with its target layer, in the same order; empty where the teacher's layers are
            of another width or fewer than predicted, so that it is not the one that was distilled.
        frame: seconds from a frame to the next.
    """

    rows: list[str]
    cka: Tensor
    targets: dict[int, int]
    cosines: list[Tensor]
    frame: float


@dataclass(frozen=True)
class Heard:
    """What was made of a clip: its samples at 16 kHz, the seconds of the whole recording, and the rest."""

    wave: Tensor
    recorded: float
    student: Cost
    teacher: Cost | None
    likeness: Likeness | None
    said: list[Said]

    @property
    def seconds(self) -> float:
        """How much of the recording was heard."""
        return len(self.wave) / SAMPLE_RATE


class Listener:
    """Student, teacher and heads, loaded once and then asked about any number of clips.

    Args:
        name: of the student, for people.
        student: in eval mode.
        teacher: if there is one.
        heads: trained tasks, each with the upstream it was trained on.
        device: all of them are on.
        limit: seconds of a recording that are heard, from its beginning.

    Raises:
        ValueError: the teacher's frames come at another rate than the student's.
    """

    def __init__(
        self,
        name: str,
        student: UpstreamExpert,
        teacher: Teacher | None,
        heads: Sequence[Head],
        device: torch.device,
        limit: float,
    ):
        rate = student.get_downsample_rates()
        if teacher is not None and teacher.info.downsample_rate != rate:
            raise ValueError(
                f"a frame of the student is {rate} samples and one of teacher {teacher.info.name} "
                f"{teacher.info.downsample_rate}: they cannot be compared"
            )
        self.name, self.student, self.teacher, self.heads = name, student, teacher, list(heads)
        self.device, self.limit = device, limit
        # What is prepared by the first pass is no part of the time that a clip takes.
        self._states(torch.zeros(SAMPLE_RATE, device=device))

    def listen(self, path: Path) -> Heard:
        """Hear the first ``limit`` seconds of a file of any format, rate and channels that the audio door takes.

        Raises:
            ValueError: it cannot be read, is too short, or silent; the message is for whoever recorded it.
        """
        wave, recorded = _load(path, self.limit)
        (states, student), (layers, teacher) = self._states(wave.to(self.device))
        return Heard(
            wave=wave,
            recorded=recorded,
            student=Cost(_parameters(self.student.model), student),
            teacher=None if self.teacher is None else Cost(_parameters_of(self.teacher), teacher),
            likeness=None if self.teacher is None else self._compare(states, layers),
            said=self._ask(wave),
        )

    @torch.no_grad()
    def _states(self, wave: Tensor) -> tuple[tuple[list[Tensor], float], tuple[list[Tensor], float]]:
        """Hidden states (T, D) of student and teacher, and the seconds that each took."""
        teacher = self.teacher
        # With task embeddings before the Transformer there is a pass for each task: the first one's layers are shown.
        ours = _timed(lambda: [state[0] for state in self.student([wave])["hidden_states"]], self.device)
        if teacher is None:
            return ours, ([], 0.0)
        lengths, places = torch.tensor([len(wave)]), range(teacher.info.n_layers + 1)
        return ours, _timed(lambda: list(teacher(wave[None], lengths, places)[0]), self.device)

    def _compare(self, states: list[Tensor], layers: list[Tensor]) -> Likeness:
        config = self.student.model.config
        targets = config.targets if config.n_tasks else []
        first = len(states) - len(targets)
        # Front ends of other kernels may give a frame more or less at the end.
        frames = min(len(states[0]), len(layers[0]))
        states, layers = ([state[:frames].float() for state in some] for some in (states, layers))
        same = all(target < len(layers) for target in targets) and config.final_dim == layers[0].shape[-1]
        pairs = zip(states[first:], targets, strict=True) if same else []
        return Likeness(
            rows=["projection", *(f"layer {n}" for n in range(1, first)), *(f"prediction of {n}" for n in targets)],
            cka=cka_matrix(states, layers, debiased=True).cpu(),
            targets=dict(enumerate(targets, first)) if same else {},
            cosines=[frame_cosine(state, layers[target]).cpu() for state, target in pairs],
            frame=config.downsample_rate / SAMPLE_RATE,
        )

    def _ask(self, wave: Tensor) -> list[Said]:
        """Heads hear a file, as they do in ``run_downstream.py -m inference``: the part that is heard here."""
        with tempfile.TemporaryDirectory() as folder:
            clip = Path(folder) / "clip.wav"
            soundfile.write(clip, wave.numpy(), SAMPLE_RATE, subtype="FLOAT")
            return [_answer(head, clip, self.device) for head in self.heads]


def _answer(head: Head, clip: Path, device: torch.device) -> Said:
    name, upstream = head.expert.task.name, Path(head.expert.upstream.name).name
    try:
        words = "\n".join(words for _, words in hear(head.expert, [clip], device))
    except ValueError as error:
        return Said(name, head.run, upstream, str(error).replace(str(clip), "this clip"), refused=True)
    return Said(name, head.run, upstream, words)


def _load(path: Path, limit: float) -> tuple[Tensor, float]:
    """The samples that are heard, and the seconds of the whole recording."""
    try:
        recorded = audio.probe(path).duration
        wave = audio.load(path, duration=limit)
    except audio.AudioError as error:
        known = f": use one of {', '.join(SUFFIXES)}" if error.reason == "unreadable" else ""
        raise ValueError(str(error).replace(str(path), path.name) + known) from error
    seconds = len(wave) / SAMPLE_RATE
    if not len(wave):
        raise ValueError(f"{path.name}: holds no sound, not a single sample")
    if seconds < SHORTEST:
        raise ValueError(f"{path.name}: {seconds:.3f} s is too short, at least {SHORTEST} s are needed")
    peak = float(wave.abs().max())
    if peak < SILENCE:
        raise ValueError(
            f"{path.name}: silence (its loudest sample is {peak:.1g} of full scale): is the microphone muted?"
        )
    return wave, recorded


def _timed(work: Callable[[], T], device: torch.device) -> tuple[T, float]:
    wait: Callable[[], Any] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    begun = time.perf_counter()
    result = work()
    wait()
    return result, time.perf_counter() - begun


def _parameters_of(teacher: Teacher) -> int:
    model = teacher.twin if teacher.runs_twin else teacher.expert
    assert model is not None
    return teacher.info.parameters or _parameters(model)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
