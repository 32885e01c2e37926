"""Hear some utterances with a teacher, and compare its layers: CKA between them, linear probes of each."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from s3prl_distiller import audio
from s3prl_distiller.data.loader import decode

from ..similarity import FEWEST as FEWEST_FRAMES
from ..similarity import cka_matrix
from ..teacher import Teacher
from .linear import Probe, probe_classes, probe_shares
from .sample import CLASSES, SEQUENCES, Drawn, class_of, sequence

log = logging.getLogger(__name__)

FRAMES = 4000
"""About as many frames are compared."""
BLOCKS = 4
"""Parts of the speech that layers are compared on one by one, which shows how far the figures can be relied on."""
_PER_BLOCK = 50  # frames; with fewer there is one block


@dataclass(frozen=True)
class Heard:
    """Hidden states of some utterances, layers 0 to n.

    Attributes:
        blocks: (layers, frames, width) each, of different utterances.
        pooled: (utterances, layers, width), means over the frames of each whole utterance.
        places: which of the drawn utterances ``pooled`` is of.
        utterances, seconds: heard.
        remarks: what was passed over.
    """

    blocks: list[torch.Tensor]
    pooled: np.ndarray
    places: list[int]
    utterances: int
    seconds: float
    remarks: list[str]


def hear(teacher: Teacher, drawn: Drawn, device: torch.device, seed: int, progress: bool = True) -> Heard:
    """Run the teacher, utterance by utterance.

    Args:
        teacher: on ``device``.
        drawn: the utterances.
        seed: draws frames.
        progress: show a bar on stderr.

    Raises:
        ValueError: nothing can be decoded, or a hidden state is not finite.
    """
    layers, rng = range(teacher.info.n_layers + 1), torch.Generator().manual_seed(seed)
    samples = sum(request.samples for request, used in zip(drawn.requests, drawn.compared, strict=True) if used)
    share = min(1.0, FRAMES * teacher.info.downsample_rate / max(samples, 1))
    frames: list[torch.Tensor] = []
    pooled: list[np.ndarray] = []
    places: list[int] = []
    failed: list[str] = []
    seconds = 0.0
    for place, request in enumerate(
        tqdm(drawn.requests, "probing layers", unit="file", mininterval=0.5, disable=not progress)
    ):
        try:
            wave = decode(request).to(device)
        except (audio.AudioError, OSError) as error:
            failed.append(str(error))
            continue
        states = teacher(wave[None], torch.tensor([len(wave)]), layers)[0].float()
        _refuse_nonsense(states, teacher.info.name, request.id)
        seconds += len(wave) / audio.SAMPLE_RATE
        if drawn.compared[place]:
            count = max(1, round(share * states.shape[1]))
            frames.append(states[:, torch.randperm(states.shape[1], generator=rng)[:count].to(device)].cpu())
        if drawn.whole[place]:
            pooled.append(states.mean(1).cpu().numpy())
            places.append(place)
    if not frames:
        raise ValueError(f"none of the speech drawn to probe layers can be decoded: {failed[0]}")
    blocks = [torch.cat(frames[start::BLOCKS], 1) for start in range(min(BLOCKS, len(frames)))]
    if min(block.shape[1] for block in blocks) < _PER_BLOCK:
        blocks = [torch.cat(blocks, 1)]
    if blocks[0].shape[1] < FEWEST_FRAMES:
        raise ValueError(f"there are {seconds:.1f} s of speech to probe layers with, which is too little")
    remarks = [f"{len(failed)} utterances could not be decoded: {failed[0]}"] if failed else []
    stacked = np.stack(pooled) if pooled else np.zeros((0, len(layers), 1), np.float32)
    return Heard(blocks, stacked, places, len(drawn.requests) - len(failed), seconds, drawn.remarks + remarks)


def _refuse_nonsense(states: torch.Tensor, teacher: str, utterance: str) -> None:
    """Raises ValueError where (layers, T, D) are not finite."""
    finite = states.isfinite().flatten(1).all(1)
    if not finite.all():
        layer = int(finite.logical_not().nonzero()[0, 0])
        raise ValueError(
            f"layer {layer} of teacher {teacher} has values that are not finite (NaN or infinite) for utterance "
            f"{utterance}: it cannot be learnt from"
        )


def compare(blocks: Sequence[torch.Tensor]) -> np.ndarray:
    """Debiased linear CKA of all layers with all, on each block: (blocks, layers, layers), NaN where one is constant.

    Debiased, as frames are hardly more than their width: the plain estimate would call any two layers alike.
    """
    return np.stack([cka_matrix(list(block.double()), list(block.double()), debiased=True).numpy() for block in blocks])


def probe(heard: Heard, drawn: Drawn, seed: int) -> tuple[list[Probe], list[str]]:
    """Probe each property that enough utterances have; and why each of the others is left out.

    Text stands in for phones where there are none, or too few to find anything.
    """
    utterances = [drawn.utterances[place] for place in heard.places]
    found: list[Probe] = []
    left_out: list[str] = []

    def attempt(name: str, values: Sequence, measure: Callable[..., Probe]) -> None:
        having = [row for row, value in enumerate(values) if value]
        if not having:
            return
        try:
            found.append(measure(name, heard.pooled[having], [values[row] for row in having], seed))
        except ValueError as error:
            left_out.append(f"{name}: {error}")

    for name in SEQUENCES:
        if name == "text" and any(one.name == "phones" and one.informative for one in found):
            break
        attempt(name, [sequence(utterance, name) for utterance in utterances], probe_shares)
    for name in CLASSES:
        attempt(name, [class_of(utterance, name) for utterance in utterances], probe_classes)
    named = {one.name for one in found} | {reason.partition(":")[0] for reason in left_out}
    silent = [name for name in (*SEQUENCES, *CLASSES) if name not in named]
    if "phones" in named and "text" in silent:
        silent.remove("text")
    if silent:
        left_out.append(f"{', '.join(silent)}: the data does not say")
    return found, left_out
