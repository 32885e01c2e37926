"""How far an export's numbers are from the student's, and what it costs beside it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from s3prl_distiller import audio
from s3prl_distiller.machine import utterance

from ..frontend import frame_lengths
from ..model import DistillerModel
from .graph import two_frames
from .peak import peak_memory
from .runners import Runner, fast, open_runner, reference

SECONDS = 15.0
"""Of the utterance that speed and memory are measured on."""

_BATCHES = ((0.045,), (1.0,), (3.7,), (SECONDS,), (3.0, 3.0, 3.0, 3.0), (0.5, 1.3, 5.0, 10.0))
_RUNS = 5


@dataclass(frozen=True)
class Tolerance:
    """What an export must hold.

    Attributes:
        difference: largest of a number, over the root mean square of its hidden state where that is above 1.
        cosine: lowest of a frame of at least two in a hidden state.
    """

    difference: float | None = None
    cosine: float | None = None

    def __str__(self) -> str:
        if self.difference is not None:
            return f"no number differs by more than {self.difference:g} (of the state's RMS, where that is above 1)"
        return f"the cosine of each frame with the student's is at least {self.cosine:g}"


FLOAT32 = Tolerance(difference=1e-4)
INT8 = Tolerance(cosine=0.99)


@dataclass(frozen=True)
class Check:
    """One output in one case.

    Attributes:
        case: lengths of the batch.
        output: name of the hidden state.
        largest: difference of a number.
        mean: difference.
        scale: root mean square of what is right.
        cosine: lowest of a frame with the student's.
        judged: whether the tolerance is asked of it.
    """

    case: str
    output: str
    largest: float
    mean: float
    scale: float
    cosine: float
    judged: bool = True

    def holds(self, tolerance: Tolerance) -> bool:
        if tolerance.difference is not None:
            return self.largest <= tolerance.difference * max(1.0, self.scale)
        assert tolerance.cosine is not None
        return self.cosine >= tolerance.cosine


@dataclass(frozen=True)
class Cost:
    """Of one form: bytes of its files, median seconds for an utterance of :data:`SECONDS`, bytes at the peak."""

    size: int
    seconds: float
    memory: int | None


def batches(waves: Sequence[Tensor], shortest: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Utterances of several lengths, alone and together, cut from speech.

    Args:
        waves: speech (samples,) at 16 kHz; it is strung together and repeated as needed.
        shortest: samples of the shortest utterance.

    Yields:
        What to call the case, (B, samples) zero-padded waveforms, (B,) samples of each.
    """
    speech = torch.cat(list(waves))
    speech = speech.repeat(1 + int(25 * audio.SAMPLE_RATE / len(speech)))
    for lengths in _BATCHES:
        samples = [max(shortest, round(seconds * audio.SAMPLE_RATE)) for seconds in lengths]
        ends = torch.tensor(samples).cumsum(0).tolist()
        cut = [speech[end - count : end] for end, count in zip(ends, samples, strict=True)]
        name = " + ".join(f"{count / audio.SAMPLE_RATE:.3g}" for count in samples) + " s"
        yield name, pad_sequence(cut, batch_first=True), torch.tensor(samples)


def compare(
    model: DistillerModel, form: str, run: Runner, waves: Sequence[Tensor], judge_padding: bool = True
) -> list[Check]:
    """Check all hidden states of an export in all cases.

    Args:
        judge_padding: whether batches of several lengths must agree; False where what runs the form lets padding in.

    Raises:
        ValueError: an output is missing or has another shape.
    """
    right = reference(model, form)
    checks = []
    for name, wave, lengths in batches(waves, two_frames(model.conv_layers)):
        judged = judge_padding or len(set(lengths.tolist())) == 1
        expected, found = right(wave, lengths), run(wave, lengths)
        found.pop("frames", None)
        if expected.keys() != found.keys():
            raise ValueError(f"the export gives {', '.join(found)} and not {', '.join(expected)}")
        frames = frame_lengths(lengths, model.conv_layers)
        for output, state in expected.items():
            content = torch.arange(state.shape[1]) < frames[:, None]
            other = found[output][:, : state.shape[1]]
            if other.shape != state.shape:
                raise ValueError(f"{output} of the export is {tuple(other.shape)} and not {tuple(state.shape)}")
            checks.append(_check(name, output, state[content], other[content].float(), judged))
    return checks


def _check(case: str, output: str, right: Tensor, found: Tensor, judged: bool) -> Check:
    """Of frames (N, D)."""
    difference = (right - found).abs()
    # NaN anywhere must show as a difference, and not be passed over by a maximum.
    difference = difference.nan_to_num(float("inf"))
    return Check(
        case,
        output,
        float(difference.max()),
        float(difference.mean()),
        float(right.square().mean().sqrt()),
        float(F.cosine_similarity(right, found, dim=-1).nan_to_num(-1.0).min()),
        judged,
    )


def costs(source: Path, model: DistillerModel, form: str, folder: Path) -> tuple[Cost, Cost]:
    """Of the student as it is used in this package, and of an export, measured in turns on this machine."""
    seconds = in_turns(fast(model), open_runner(form, folder))
    weights = sum(parameter.nbytes for parameter in model.parameters())
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    threads = torch.get_num_threads()
    peaks = [peak_memory(*what, SECONDS, threads) for what in (("student", source), (form, folder))]
    return Cost(weights, seconds[0], peaks[0]), Cost(size, seconds[1], peaks[1])


@torch.no_grad()
def in_turns(*runs: Callable[[Tensor, Tensor], Any]) -> list[float]:
    """Median seconds that each takes for an utterance of :data:`SECONDS`; the first turn is not counted."""
    wave, lengths = utterance(SECONDS)
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(_RUNS + 1):
        for run, kept in zip(runs, times, strict=True):
            begun = time.perf_counter()
            run(wave, lengths)
            kept.append(time.perf_counter() - begun)
    return [statistics.median(kept[1:]) for kept in times]
