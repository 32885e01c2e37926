"""Upstream and head of a run as one graph of operations: from waveforms to what the task answers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ...upstream.distiller.encoder import TransformerEncoder
from ...upstream.distiller.expert import features_by_name
from ...upstream.distiller.export.graph import Graph, check_one_batch, describe, for_graph, without_heads
from ...upstream.distiller.frontend import frame_lengths, receptive_field
from ...upstream.distiller.model import DistillerModel, Encoder
from ...upstream.distiller.twin import build_twin, mismatch
from ..core.config import DownstreamConfig
from ..core.expert import DownstreamExpert
from ..core.upstream import Upstream, probe
from ..heads.folded import fold_lstms


class HeadGraph(Graph):
    """Waveforms and lengths in, the task's answer out. All that a run does to a waveform is inside.

    Args:
        expert: of the run; its first model is taken, and copied.
        for_int8: as of :class:`~s3prl_distiller.upstream.distiller.export.graph.StudentGraph`.

    Attributes:
        config: of the run.
        task: with its labels.
        student: the part of the upstream that the head needs, in our encoder.
        outputs: those of the task's ``answer``.

    Raises:
        ValueError: the upstream runs as the s3prl hub gives it, the task has no answer that could be exported, or the
            run's settings ask for what a graph does not do.
    """

    def __init__(self, expert: DownstreamExpert, for_int8: bool = False):
        super().__init__()
        self.config: DownstreamConfig = expert.config
        self.task = expert.task
        upstream, model = expert.upstream, expert.models[0]
        if self.config.data.eval_crop_seconds is not None:
            raise ValueError(
                f"the run hears the middle {self.config.data.eval_crop_seconds:g} s of an utterance "
                "(data.eval_crop_seconds), and an exported model hears all that it is given"
            )
        self.feature, self.layers = self.config.upstream.feature, upstream.layers
        self.gain = 10 ** (self.config.data.gain_db / 20)
        encoder = _trim(copy.deepcopy(_encoder(upstream)), self.feature, max(self.layers))
        self.student = for_graph(encoder, for_int8)
        self.conv_layers = encoder.conv_layers
        self.featurizer = copy.deepcopy(model.featurizer).eval()
        self.head = fold_lstms(copy.deepcopy(model.head)).eval()
        self.requires_grad_(False)
        self.outputs = tuple(self._answer(torch.zeros(1, 16_000), torch.tensor([16_000])))
        config = self.student.config
        self.shortest = receptive_field(self.conv_layers) + (self.task.shortest_frames - 1) * config.downsample_rate
        more = {
            "task": self.task.name,
            "upstream_fingerprint": upstream.fingerprint,
            "shortest_samples": self.shortest,
            "gain_db_applied_inside": self.config.data.gain_db,
        }
        self.metadata = {**describe(config, more), **self.task.legend()}

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """What :attr:`outputs` names.

        Args:
            waveform: (B, samples) float32 at 16 kHz, zero-padded.
            lengths: (B,) samples of each.
        """
        return tuple(self._answer(waveform, lengths).values())

    def _answer(self, waveform: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        features = self.featurizer(self._hidden_states(waveform * self.gain if self.gain != 1 else waveform, lengths))
        return self.task.answer(self.head, features, frame_lengths(lengths, self.conv_layers))

    def _hidden_states(self, waveform: Tensor, lengths: Tensor) -> list[Tensor]:
        """As :meth:`Upstream.forward` hands them out."""
        if isinstance(self.student, DistillerModel):
            out = self.student(waveform, lengths)
            found: Any = features_by_name(out, self.student.config.n_tasks)[self.feature]
        else:
            found = self.student(waveform, lengths).hidden_states
            found = found if self.feature == "hidden_states" else found[-1]
        states = found if isinstance(found, list) else [found]
        return [states[layer].float() for layer in self.layers]


def _encoder(upstream: Upstream) -> Encoder:
    """The model of an upstream, in our encoder."""
    model = getattr(upstream.expert, "model", None)
    if isinstance(model, DistillerModel):
        check_one_batch(model.config)
        return model
    twin = upstream.twin
    if upstream.config.trainable and upstream.config.feature in ("hidden_states", "last_hidden_state"):
        upstream.eval()
        twin = build_twin(upstream.expert)  # of the weights that the run left
        if twin is not None and mismatch(twin, upstream.expert, [probe()]) is not None:
            twin = None
    if twin is None:
        raise ValueError(
            f"{upstream.name} runs as the s3prl hub gives it (upstream.feature={upstream.config.feature}), and cannot "
            "be exported: students can, and models of the wav2vec 2.0 family whose hidden states the head is given"
        )
    return twin


def _trim(model: Encoder, feature: str, last: int) -> Encoder:
    """The model, which may be changed, without what is above the highest hidden state that is asked for."""
    layers = model.config.encoder_layers
    if feature == "paper" and layers:
        last = layers
    elif feature != "hidden_states":
        return model
    if isinstance(model, DistillerModel):
        if last > layers:
            return model
        model = without_heads(model)
    if isinstance(model.encoder, TransformerEncoder):
        for index in range(last, layers):
            model.encoder.layers[index] = _Skipped()
    return model


class _Skipped(nn.Module):
    """In place of a layer whose output nothing needs."""

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return x
