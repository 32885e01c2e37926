"""Steps that are replayed on a GPU give the losses, gradients and weights of steps that are not."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
from typing import Any

import numpy as np
import pytest
import torch
from s3prl_distiller.upstream.distiller.fast import replay
from s3prl_distiller.upstream.distiller.fast.packing import room_for
from s3prl_distiller.upstream.distiller.fast.replay import ReplayedDistillation, replay_refusal
from s3prl_distiller.upstream.distiller.fast.step import PackedDistillation
from s3prl_distiller.upstream.distiller.model import DistillerModel, Encoder
from s3prl_distiller.upstream.distiller.model_config import EncoderConfig
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from s3prl_distiller.data.loader import Limits, TrainOrder
from s3prl_distiller.data.utterance import Utterance

from .small import SMALL, student
from .test_fast import XLSR

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
WIDE = {
    "encoder_embed_dim": 128,
    "encoder_attention_heads": 2,
    "final_dim": 128,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
}
KINDS = {"hubert": {}, "xlsr": XLSR}
# Three shapes, each more than once, and weights that change from one to the next.
BATCHES = [
    [[16_000, 12_345, 9_999], [15_900, 12_000, 10_001], [48_000, 30_000], [16_000, 400, 719], [47_999, 30_100]],
    [[16_000, 12_345, 9_999], [40_000], [40_100], [39_000], [48_000, 30_000]],
]


def batch(lengths: list[int]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths))
    waves = [0.1 * torch.randn(n, generator=generator) + 0.02 for n in lengths]
    return pad_sequence(waves, batch_first=True).cuda(), torch.tensor(lengths)


def models(kind: str) -> tuple[DistillerModel, Encoder]:
    torch.manual_seed(0)
    options = {**KINDS[kind], **WIDE}
    teacher = Encoder(EncoderConfig.from_mapping({**SMALL, **options, "encoder_layers": 3, "feature_layer_norm": True}))
    return student(pred_layer_id=[1, 2, 3], **options).cuda().train(), teacher.cuda().eval().requires_grad_(False)


def trained(step: Any, pupil: DistillerModel, batches: list[list[int]], autocast: Any) -> list[dict[str, Tensor]]:
    """Losses, gradients and weights of some updates."""
    optimizer = torch.optim.SGD(pupil.parameters(), lr=0.1)
    found = []
    for lengths in batches:
        for _ in range(2):  # gradients add up
            with autocast():
                loss = step(*batch(lengths))
            (loss.total * 0.5).backward()
        named = {f"gradient of {n}": p.grad.clone() for n, p in pupil.named_parameters() if p.grad is not None}
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        weights = {n: p.detach().clone() for n, p in pupil.named_parameters()}
        found.append({"loss": loss.total.detach().clone(), **loss.parts, **named, **weights})
    return found


@needs_gpu
@pytest.mark.parametrize("batches", BATCHES)
@pytest.mark.parametrize(
    ("kind", "dtype", "compiled"),
    [("hubert", torch.float32, False), ("hubert", torch.bfloat16, True), ("xlsr", torch.bfloat16, False)],
)
def test_replayed_steps_train_as_others(
    kind: str, dtype: torch.dtype, compiled: bool, batches: list[list[int]]
) -> None:
    autocast = functools.partial(torch.autocast, "cuda", dtype=dtype, enabled=dtype != torch.float32)
    pupil, teacher = models(kind)
    other, other_teacher = copy.deepcopy(pupil), copy.deepcopy(teacher)
    assert replay_refusal(pupil, teacher, dtype) is None
    replayed = ReplayedDistillation(PackedDistillation(pupil, teacher, autocast, compiled))
    plain = PackedDistillation(other, other_teacher, autocast, compiled)
    before = torch.backends.cuda.matmul.fp32_precision
    found = trained(replayed, pupil, batches, autocast)
    expected = trained(plain, other, batches, autocast)
    assert before == torch.backends.cuda.matmul.fp32_precision
    bound = 1e-4 if dtype == torch.float32 else 3e-2
    for index, (one, two) in enumerate(zip(found, expected, strict=True)):
        assert one.keys() == two.keys()
        largest = max(float(value.norm()) for name, value in two.items() if name.startswith("gradient"))
        for name, value in two.items():
            size = largest if name.startswith("gradient") else float(value.norm())
            assert float((one[name] - value).norm()) <= bound * size, f"{name} of batch {index}"
    shapes = {(len(b), *room_for(b, max(b), 320)) for b in batches}
    assert 0 < len(replayed._graphs) <= len(shapes) < len(batches)  # those before the largest are given up


@needs_gpu
def test_dropout_is_drawn_anew_each_time() -> None:
    pupil, teacher = models("hubert")
    for module in pupil.encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    step = ReplayedDistillation(PackedDistillation(pupil, teacher, contextlib.nullcontext, False))
    losses = [float(step(*batch([16_000, 9_000])).total) for _ in range(5)]
    assert len(set(losses)) == 5
    state = torch.cuda.get_rng_state()
    one = float(step(*batch([16_000, 9_000])).total)
    torch.cuda.set_rng_state(state)
    assert float(step(*batch([16_000, 9_000])).total) == pytest.approx(one, rel=1e-5) and one not in losses


@needs_gpu
def test_the_oldest_graph_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "_MOST", 2)
    pupil, teacher = models("hubert")
    step = ReplayedDistillation(PackedDistillation(pupil, teacher, contextlib.nullcontext, False))
    for count in (1, 1, 2, 1, 3, 4, 1):
        step(*batch([16_000] * count))
        kept = [shape[0] for shape in step._graphs]
        assert len(kept) <= 2
    assert kept == [4, 1]


@needs_gpu
def test_memory_is_that_of_the_largest_batch() -> None:
    taken = []
    for counts in ([64], [8, 16, 24, 32, 40, 48, 56, 64, 40]):
        pupil, teacher = models("hubert")
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        step = ReplayedDistillation(PackedDistillation(pupil, teacher, contextlib.nullcontext, False))
        for count in counts:
            step(*batch([48_000] * count)).total.backward()
        torch.cuda.empty_cache()
        taken.append(torch.cuda.memory_reserved() - before)
        del step
    assert taken[1] < 1.3 * taken[0], f"{taken} bytes"


@needs_gpu
def test_judging_is_not_captured() -> None:
    pupil, teacher = models("hubert")
    step = ReplayedDistillation(PackedDistillation(pupil, teacher, contextlib.nullcontext, False))
    pupil.eval()
    with torch.no_grad():
        losses = [step(*batch([16_000, 9_000])).total for _ in range(3)]
    assert not step._graphs and losses[0] == losses[2]


def test_batches_of_an_epoch_have_few_shapes() -> None:
    """Of durations as in read speech, in the paper's batches: no more than are kept, and little larger."""
    durations = np.random.default_rng(0).lognormal(1.5, 0.5, 20_000).clip(0.6, 30)
    utterances = [Utterance(str(n), str(n), str(n), duration=float(d)) for n, d in enumerate(durations)]
    shapes, filled, rooms = set(), 0, 0
    for batch in TrainOrder(utterances, Limits(250_000, 24, 375.0, 20), 1, 0):
        samples = [request.samples for request in batch]
        slots, room = room_for(samples, max(samples), 320)
        shapes.add((len(samples), slots, room))
        filled, rooms = filled + sum(-(-n // 320) for n in samples), rooms + room
    assert 20 < len(shapes) < replay._MOST and filled < rooms < 1.02 * filled


def test_graphs_of_smaller_batches_lie_in_the_memory_of_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A larger one than all before begins anew. What a GPU would capture is left out here."""
    memories: list[int] = []

    class Graph:
        def __init__(self, step: Any, wave: Tensor, packing: Any, shared: Any):
            assert shared.place_for(wave).shape == wave.shape
            self.memory = shared.memory

        def replay(self, wave: Tensor, packing: Any) -> int:
            return self.memory

    monkeypatch.setattr(replay, "_StepGraph", Graph)
    monkeypatch.setattr(ReplayedDistillation, "_prepare", lambda *_: memories.append(0))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: memories.append(len(memories)) or memories[-1])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    teacher = Encoder(EncoderConfig.from_mapping(SMALL))
    step: Any = ReplayedDistillation(PackedDistillation(student().train(), teacher, contextlib.nullcontext, False))

    def used(*seconds: float) -> int:
        lengths = torch.tensor([int(16_000 * s) for s in sorted(seconds, reverse=True)])
        return step(torch.zeros(len(seconds), int(lengths.max())), lengths)

    assert [used(2, 2), used(2, 1), used(2, 2)] == [1, 1, 1] and len(step._graphs) == 2
    assert [used(4, 4), used(2, 2), used(4, 1)] == [2, 2, 2] and len(step._graphs) == 3  # longer, and more in all
    assert [used(*[2] * 4), used(4, 4), used(*[1] * 5)] == [2, 2, 2]  # other shapes, no larger
    assert used(*[2] * 9) == 3 and len(step._graphs) == 1
    assert memories == [0, 1, 2, 3]  # a first step once


@pytest.mark.parametrize(
    ("options", "dtype", "reason"),
    [
        ({}, torch.float16, "float16 scales the loss"),
        ({"encoder_layerdrop": 0.1}, torch.bfloat16, "encoder_layerdrop"),
        ({"gradient_checkpointing": True}, torch.bfloat16, "gradient_checkpointing"),
        (XLSR, torch.float32, "the first layer's products"),
    ],
)
def test_what_cannot_be_captured(options: dict[str, Any], dtype: torch.dtype, reason: str) -> None:
    options = dict(options)
    checkpointing = options.pop("gradient_checkpointing", False)
    pupil = student(**options)
    pupil.encoder.gradient_checkpointing = checkpointing  # pyright: ignore[reportAttributeAccessIssue]
    assert reason in str(replay_refusal(pupil, Encoder(EncoderConfig.from_mapping(SMALL)), dtype))
