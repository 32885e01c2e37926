"""Whether an exported model answers as its run does."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s3prl_distiller import audio

from ...upstream.distiller.export.runners import Runner
from ..core.expert import DownstreamExpert
from ..core.run import Trained, restore, user_utterance
from .graph import HeadGraph

_CPU = torch.device("cpu")
_TOGETHER = 4
"""Utterances in a padded batch of the check."""


@dataclass(frozen=True)
class HeadDifference:
    """How one output of an exported model differs from the run's own, over some utterances.

    Attributes:
        case: how the utterances were given.
        output: name of the output.
        largest: absolute difference.
        mean: absolute difference.
        scale: root mean square of what is right.
        cosine: the lowest of an utterance, or of a frame; None where there are no vectors.
        frames: share of frames whose best class is the same; None where the output has no frames.
        agreement: share of answers (labels, texts, decisions about two speakers) that are the same; None where the run
            has no answers to compare, as without a threshold for speakers.
    """

    case: str
    output: str
    largest: float
    mean: float
    scale: float
    cosine: float | None
    frames: float | None
    agreement: float | None


def check_head(graph: HeadGraph, run: Runner, trained: Trained, files: Sequence[Path]) -> list[HeadDifference]:
    """Compare an exported model with what the run itself says of some files, each alone and in padded batches.

    Args:
        graph: what was exported.
        run: the exported model.
        trained: the checkpoint of the run.
        files: of audio.

    Raises:
        ValueError: a file cannot be read or is too short.
    """
    config = copy.deepcopy(graph.config)
    # Alone: what the hub itself runs feels the padding of a batch.
    config.data.eval_batch_size, config.data.num_workers = 1, 0
    expert = restore(trained, config, _CPU, None)
    utterances = [user_utterance(path, config.data.min_seconds) for path in files]
    waves = [audio.load(path) for path in files]
    decided = _decisions(expert, list(expert.predict(utterances, nullcontext, _CPU)))
    expected = [_own_answer(expert, wave * expert.waves.gain) for wave in waves]
    differences = []
    for case, size in (("alone", 1), (f"padded batches of {_TOGETHER}", _TOGETHER)):
        answers = [
            answer
            for low in range(0, len(waves), size)
            for answer in _exported_answers(run, graph.outputs, waves[low : low + size])
        ]
        outputs = [
            output
            for answer, utterance in zip(answers, utterances, strict=True)
            for output in expert.task.interpret(answer, [utterance])
        ]
        agreement = _agreement(decided, _decisions(expert, outputs))
        for name in graph.outputs:
            pairs = [(one[name], other[name]) for one, other in zip(answers, expected, strict=True)]
            differences.append(_difference(case, name, pairs, agreement))
    return differences


@torch.no_grad()
def _own_answer(expert: DownstreamExpert, wave: Tensor) -> dict[str, Tensor]:
    """The run's own answer for one utterance, as tensors with a batch of one."""
    model = expert.models[0].eval()
    hidden_states, frames = expert.upstream(wave[None], torch.tensor([len(wave)]))
    return expert.task.answer(model.head, model.featurizer(hidden_states), frames)


def _exported_answers(run: Runner, names: Sequence[str], waves: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    """The exported model's answer for each utterance of a batch, without what stands after its last frame."""
    lengths = torch.tensor([len(wave) for wave in waves])
    answer = run(nn.utils.rnn.pad_sequence(list(waves), batch_first=True), lengths)
    return [
        {
            name: value[row : row + 1, : int(answer["frames"][row])] if value.dim() == 3 else value[row : row + 1]
            for name, value in ((name, answer[name]) for name in names)
        }
        for row in range(len(waves))
    ]


def _decisions(expert: DownstreamExpert, outputs: Sequence[dict[str, Any]]) -> list[Any]:
    return [expert.task.decision(row) for row in expert.task.rows(outputs, None)]


def _agreement(one: Sequence[Any], other: Sequence[Any]) -> float | None:
    same = [a == b for a, b in zip(one, other, strict=True) if a is not None]
    return sum(same) / len(same) if same else None


def _difference(
    case: str, output: str, pairs: Sequence[tuple[Tensor, Tensor]], agreement: float | None
) -> HeadDifference:
    # NaN anywhere must show, and not be passed over by a maximum.
    gaps = torch.cat([(one - other).abs().flatten().double() for one, other in pairs]).nan_to_num(float("inf"))
    dimensions = pairs[0][0].dim()
    cosine = frames = None
    if dimensions > 1:
        cosines = [F.cosine_similarity(one.double(), other.double(), dim=-1).flatten() for one, other in pairs]
        cosine = float(torch.cat(cosines).nan_to_num(-1.0).min())
    if dimensions > 2:
        same = torch.cat([(one.argmax(-1) == other.argmax(-1)).flatten() for one, other in pairs])
        frames = float(same.double().mean())
    scale = torch.cat([right.flatten().double() for _, right in pairs]).square().mean().sqrt()
    return HeadDifference(case, output, float(gaps.max()), float(gaps.mean()), float(scale), cosine, frames, agreement)
