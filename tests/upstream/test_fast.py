"""The fast path gives the numbers and gradients of the plain definition."""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from s3prl_distiller.upstream.distiller.encoder import same_length_conv
from s3prl_distiller.upstream.distiller.fast.packing import room_for
from s3prl_distiller.upstream.distiller.fast.positions import overlap_add
from s3prl_distiller.upstream.distiller.fast.step import PackedDistillation, refusal
from s3prl_distiller.upstream.distiller.fast.strided import strided_product
from s3prl_distiller.upstream.distiller.model import DistillerModel, DistillerOutput, Encoder
from s3prl_distiller.upstream.distiller.model_config import EncoderConfig
from s3prl_distiller.upstream.distiller.objective import distillation_loss
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from .small import SMALL, student

XLSR = {
    "extractor_mode": "layer_norm",
    "conv_bias": True,
    "layer_norm_first": True,
    "normalize": True,
    "feature_layer_norm": True,
    "feature_grad_mult": 0.1,
}
KINDS: dict[str, dict[str, Any]] = {
    "hubert": {},
    "xlsr": XLSR,
    "data2vec": {"conv_pos": 95, "conv_pos_depth": 5, "extractor_mode": "layer_norm"},
    "heads of other kinds": {"task_emb_type": "concat-last", "task_emb_size": 8, "out_layer_type": "linear"},
    "an odd front end": {
        "extractor_conv_feature_layers": "[(16,7,4), (24,5,3), (32,3,3), (32,1,2)]",
        "conv_bias": True,
    },
}
LENGTHS = [16_000, 400, 12_345, 719, 720, 9_999]


def batch(lengths: list[int]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    waves = [0.1 * torch.randn(n, generator=generator) + 0.02 for n in lengths]
    return pad_sequence(waves, batch_first=True), torch.tensor(lengths)


def content(x: Tensor, frames: Tensor) -> Tensor:
    """(V, ...) frames of all utterances end to end from (B, T, ...)."""
    return torch.cat([row[:count] for row, count in zip(x, frames.tolist(), strict=True)])


def both(model: DistillerModel, lengths: list[int]) -> tuple[DistillerOutput, DistillerOutput]:
    wave, counts = batch(lengths)
    padded, packing = model.pack(wave, counts)
    return model(wave, counts), model(padded, counts, packing=packing)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_frames_are_those_of_the_plain_path(kind: str) -> None:
    model = student(**KINDS[kind])
    # The normalised convolutions of data2vec's positions amplify rounding: either path is 1.3e-5 off float64 on AVX2.
    tolerance = 4e-5 if kind == "data2vec" else 1e-5
    with torch.no_grad():
        plain, fast = both(model, LENGTHS)
    assert plain.predictions is not None and fast.predictions is not None
    pairs = [(plain.features, fast.features), (plain.projected, fast.projected), (plain.output, fast.output)]
    pairs += list(zip(plain.hidden_states, fast.hidden_states, strict=True))
    pairs += list(zip(plain.predictions.unbind(1), fast.predictions.unbind(1), strict=True))
    for one, other in pairs:
        torch.testing.assert_close(content(one, plain.frames), other[0], atol=tolerance, rtol=1e-5)
    assert torch.equal(plain.frames, fast.frames)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_plain_path(kind: str) -> None:
    model = student(**KINDS[kind])
    plain, fast = both(model, LENGTHS)
    assert plain.predictions is not None and fast.predictions is not None
    found: list[dict[str, Tensor]] = []
    for predicted in (content(plain.predictions.transpose(1, 2), plain.frames), fast.predictions.transpose(1, 2)[0]):
        model.zero_grad()
        (predicted.square().mean() + predicted.mean()).backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    # A bias that the normalisation takes away again has no gradient there, and zeros in the plain path.
    assert set(found[0]) - set(found[1]) <= {"feature_extractor.conv_layers.0.0.bias"} and len(found[1]) > 20
    # A key's bias has no influence on attention: its gradient is rounding, in any path.
    largest = max(float(gradient.abs().max()) for gradient in found[0].values())
    for name, gradient in found[0].items():
        other = found[1].get(name, torch.zeros_like(gradient))
        torch.testing.assert_close(other, gradient, atol=1e-5 * largest, rtol=1e-3, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_room_changes_neither_frames_nor_gradients(kind: str) -> None:
    """Batches of about the same size are given the same shapes; what fills them counts for nothing."""
    model = student(**KINDS[kind])
    hop = model.config.downsample_rate
    found: list[tuple[Tensor, dict[str, Tensor]]] = []
    for few_shapes in (False, True):
        model.zero_grad()
        padded, packing = model.pack(*batch(LENGTHS), few_shapes=few_shapes)
        out = model(padded, packing.samples, packing=packing)
        frames = out.predictions[:, :, : sum(out.frames.tolist())]
        assert packing.counted is None or packing.counted.sum() == frames.shape[2]
        (frames.square().mean() + frames.mean()).backward()
        found.append((frames, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    assert padded.shape[1] % (64 * hop) == 0 and len(packing.slots) % 64 == 0 == packing.bounds[-1] % 64
    assert int(packing.bounds.diff().max()) <= packing.longest
    torch.testing.assert_close(found[1][0], found[0][0], atol=1e-5, rtol=1e-5)
    assert found[1][1].keys() == found[0][1].keys()
    largest = max(float(gradient.abs().max()) for gradient in found[0][1].values())
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, atol=1e-5 * largest, rtol=1e-3, msg=name)


def test_a_step_with_room_is_that_without() -> None:
    step, _, wave, counts = distillation()
    for feature_penalty in (0.0, 1.0):
        step.student.config.feat_pen_loss = feature_penalty
        one, other = step(wave, counts), step.packed(*step.student.pack(wave, counts, few_shapes=True))
        torch.testing.assert_close(other.total, one.total, atol=1e-6, rtol=1e-5)
        assert one.parts.keys() == other.parts.keys() and len(one.parts) == 6 + (feature_penalty > 0)
        for name, value in one.parts.items():
            torch.testing.assert_close(other.parts[name], value, atol=1e-6, rtol=1e-4)


@settings(max_examples=60, deadline=None)
@given(samples=st.lists(st.integers(400, 60_000), min_size=1, max_size=30))
@example([719] * 1000)  # three slots for one frame
def test_few_shapes_are_little_larger(samples: list[int]) -> None:
    model = Encoder(EncoderConfig.from_mapping(SMALL))
    padded, room = room_for(samples, max(samples), 320)
    wave, packing = model.pack(torch.zeros(len(samples), max(samples)), torch.tensor(samples), few_shapes=True)
    slots = sum(-(-n // 320) for n in samples)
    assert slots <= room == len(packing.slots) == len(packing.padded.there) < slots + max(64, slots / 32)
    assert wave.shape[1] == padded * 320 < max(samples) + 65 * 320
    assert packing.frames.back.max() + 1 == packing.bounds[len(samples)] == packing.counted.sum()
    assert packing.bounds[-1] == room and packing.bounds.diff().min() >= 0
    assert packing.bounds.diff().max() <= packing.longest == padded
    assert packing.slot_owners.bincount().cumsum(0).tolist() == packing.slot_ends.tolist()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_attention_on_a_gpu_is_that_within_each_utterance(dtype: torch.dtype) -> None:
    """Its kernel knows the bounds of utterances; gradients too."""
    wave, counts = batch(LENGTHS)
    _, packing = student().cuda().pack(wave.cuda(), counts)
    frames = int(packing.bounds[-1])
    generator = torch.Generator("cuda").manual_seed(0)
    parts = torch.randn(4, frames, 4, 64, device="cuda", generator=generator).to(dtype)
    inputs = [part.requires_grad_() for part in parts[:3].unbind()]
    found = packing.attend(*inputs, 0.0)
    gradients = torch.autograd.grad(found, inputs, parts[3])
    exact = [part.detach().float().requires_grad_() for part in inputs]
    heads = [[one.transpose(0, 1)[None] for one in part.split(packing.bounds.diff().tolist())] for part in exact]
    expected = torch.cat([F.scaled_dot_product_attention(*one)[0].transpose(0, 1) for one in zip(*heads, strict=True)])
    expected_gradients = torch.autograd.grad(expected, exact, parts[3].float())
    for one, other in zip((found, *gradients), (expected, *expected_gradients), strict=True):
        assert (one.float() - other).norm() < 0.01 * other.norm()


def test_kernel_of_the_first_layer_is_the_convolution_and_its_gelu() -> None:
    pytest.importorskip("triton", reason="Triton comes with torch for GPUs")
    script = Path(__file__).with_name("first_layer_by_interpreter.py")
    environment = {**os.environ, "PYTHONPATH": str(script.parents[2])}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, timeout=200)
    assert done.stdout == "equal\n", done.stderr


def distillation() -> tuple[PackedDistillation, PackedDistillation, Tensor, Tensor]:
    """A step on the fast path as it is and compiled, of the same weights, and a batch."""
    teacher = Encoder(EncoderConfig.from_mapping({**SMALL, "encoder_layers": 3, "feature_layer_norm": True})).eval()
    models = student(pred_layer_id=[1, 2, 3]), student(pred_layer_id=[1, 2, 3])
    teachers = teacher.requires_grad_(False), copy.deepcopy(teacher)
    steps = [
        PackedDistillation(model, one, contextlib.nullcontext, compiled)
        for model, one, compiled in zip(models, teachers, (False, True), strict=True)
    ]
    return steps[0], steps[1], *batch(LENGTHS)


def test_a_step_is_that_of_the_plain_path() -> None:
    step, _, wave, counts = distillation()
    loss = step(wave, counts)
    with torch.no_grad():
        targets = step.teacher(wave, counts).hidden_states
        out = step.student(wave, counts)
    assert out.predictions is not None
    mask = torch.arange(out.predictions.shape[2])[None] < out.frames[:, None]
    stacked = torch.stack([targets[layer] for layer in (1, 2, 3)], 1)
    expected = distillation_loss(out.predictions, stacked, mask, [1, 2, 3], cosine_weight=0.0)
    torch.testing.assert_close(loss.total, expected.total, atol=1e-6, rtol=1e-5)
    assert loss.parts.keys() == expected.parts.keys()
    for name, value in expected.parts.items():
        torch.testing.assert_close(loss.parts[name], value, atol=1e-6, rtol=1e-4)


def test_compiled_parts_give_the_same_and_serve_batches_of_any_shape() -> None:
    with pytest.MonkeyPatch.context() as patch:
        # Tracing is what a change of shape would set off again; code for a CPU would take minutes to make.
        patch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
        patch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend="aot_eager"))
        torch._dynamo.reset()
        step, compiled, wave, counts = distillation()
        for size, shortest in ((6, 400), (5, 9_000), (2, 700)):
            some = counts.clamp_min(shortest)[:size]
            graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
            losses = [one(wave[:size, : int(some.max())], some).total for one in (step, compiled)]
            torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=1e-5)
            for loss in losses:
                loss.backward()
            made = torch._dynamo.utils.counters["stats"]["unique_graphs"] - graphs
            assert (made > 0) == (size == 6), f"{made} graphs for a batch of {size}"
        for one, other in zip(step.student.parameters(), compiled.student.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-3)
        torch._dynamo.reset()


def test_numbers_of_the_loss_are_constants_of_what_is_compiled() -> None:
    """As variables they would be tensors on the CPU, and the code for them takes most of a minute to compile."""
    inputs: list[list[Any]] = []

    def recorded(graph: Any, arguments: list[Any]) -> Any:
        inputs.append(arguments)
        return graph.forward

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", functools.partial(torch.compile, backend=recorded))
        patch.setattr(nn.Module, "compile", lambda *_, **__: None)
        torch._dynamo.reset()
        _, step, wave, counts = distillation()
        for size in (6, 5):
            step(wave[:size], counts[:size])
        torch._dynamo.reset()
    assert len(inputs) == 1, "compiled again for another number of frames"
    assert all(x.dim() > 1 for x in inputs[0] if isinstance(x, Tensor))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"task_emb_type": "add", "out_layer_type": "linear"}, "task_emb_type=add"),
        ({"norm_over_padding": True}, "norm_over_padding"),
        ({"extractor_conv_feature_layers": "[(32,10,5), (32,3,4)]"}, "front ends"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], reason: str) -> None:
    teacher = Encoder(EncoderConfig.from_mapping(SMALL))
    assert refusal(student(), teacher) is None
    assert reason in str(refusal(student(**options), teacher))
    assert "twin" in str(refusal(student(), None))


def test_what_a_packing_cannot_do_is_the_shortest_utterance_too_short() -> None:
    wave, counts = batch([16_000, 399])
    with pytest.raises(ValueError, match="an utterance of 399 samples is shorter than one frame"):
        student().pack(wave, counts)


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.integers(1, 12),
    frames=st.integers(1, 40),
    groups=st.sampled_from([1, 2, 4]),
    utterances=st.integers(1, 3),
)
def test_overlap_add_is_the_convolution(kernel: int, frames: int, groups: int, utterances: int) -> None:
    generator = torch.Generator().manual_seed(kernel * frames)
    x = torch.randn(utterances, frames, 8, generator=generator)
    weight = torch.randn(8, 8 // groups, kernel, generator=generator)
    bias = torch.randn(8, generator=generator)
    expected = same_length_conv(x.transpose(1, 2), weight, bias, groups).transpose(1, 2)
    torch.testing.assert_close(overlap_add(x, weight, bias, groups), expected, atol=1e-5, rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(kernel=st.integers(1, 9), stride=st.integers(1, 6), frames=st.integers(1, 20), channels=st.integers(1, 5))
def test_strided_product_is_the_convolution(kernel: int, stride: int, frames: int, channels: int) -> None:
    generator = torch.Generator().manual_seed(kernel * stride)
    x = torch.randn(frames * stride, channels, generator=generator, requires_grad=True)
    weight = torch.randn(7, channels, kernel, generator=generator, requires_grad=True)
    bias = torch.randn(7, generator=generator, requires_grad=True)
    padded = F.pad(x, (0, 0, 0, max(0, kernel - stride)))
    expected = F.conv1d(padded.t()[None], weight, bias, stride)[0].t()[:frames]
    found = strided_product(x, weight, bias, stride)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    direction = torch.randn(found.shape, generator=generator)
    gradients = [torch.autograd.grad((y * direction).sum(), (x, weight, bias)) for y in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)
