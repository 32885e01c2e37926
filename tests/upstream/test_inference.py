"""Inference: the plain definition's numbers in float32, near them in less; recordings of any length in chunks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from s3prl_distiller.upstream.distiller.fast.inference import PRECISIONS, Inference
from s3prl_distiller.upstream.distiller.fast.int8 import Int8Product
from s3prl_distiller.upstream.distiller.hubconf import distiller_local
from s3prl_distiller.upstream.distiller.model import DistillerModel, DistillerOutput
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from s3prl_distiller import audio

from . import small

LARGE = {"extractor_mode": "layer_norm", "conv_bias": True, "layer_norm_first": True, "feature_layer_norm": True}
KINDS: dict[str, dict[str, Any]] = {
    "hubert": {},
    "xlsr": {**LARGE, "normalize": True},
    "wav2vec2 base": {"normalize": True},
    "data2vec": {**LARGE, "conv_pos": 95, "conv_pos_depth": 5},
    "tasks added": {"task_emb_type": "add", "out_layer_type": "none"},
    "one head": {"n_tasks": 1},
    "no layers": {"encoder_layers": 0},
    "an odd front end": {
        "extractor_conv_feature_layers": "[(16,7,4), (24,5,3), (32,3,3), (32,1,2)]",
        "conv_bias": True,
    },
}
# What rounding does to a frame evens out over its channels.
WIDE: dict[str, Any] = {
    "encoder_embed_dim": 384,
    "encoder_ffn_embed_dim": 384,
    "final_dim": 384,
    "extractor_conv_feature_layers": "[(256,10,5)] + [(256,3,2)] * 4 + [(256,2,2)] * 2",
}
LENGTHS = [16_000, 400, 45_678, 719, 720, 9_999]


def student(**options: Any) -> DistillerModel:
    return small.student(**{"conv_pos": 16, "conv_pos_groups": 4, **options})


def noise(lengths: list[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [0.1 * torch.randn(length, generator=generator) + 0.02 for length in lengths]


def parts(out: DistillerOutput) -> list[Tensor]:
    predictions = [] if out.predictions is None else list(out.predictions.unbind(1))
    return [out.features, out.projected, *out.hidden_states, out.output, *predictions]


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [LENGTHS, [30_000]], ids=["batch", "one"])
def test_float32_gives_the_numbers_of_the_plain_definition(kind: str, lengths: list[int]) -> None:
    model, waves = student(**KINDS[kind]), noise(lengths)
    plain = model(pad_sequence(waves, batch_first=True), torch.tensor(lengths))
    fast = Inference(model, "float32")(waves)
    assert torch.equal(plain.frames, fast.frames)
    for one, other in zip(parts(plain), parts(fast), strict=True):
        assert one.shape == other.shape
        copies = len(one) // len(lengths)
        for index, frames in enumerate(plain.frames.repeat_interleave(copies).tolist()):
            torch.testing.assert_close(other[index, :frames], one[index, :frames], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("precision", "least"), [("bfloat16", 0.999), ("int8", 0.99)])
@pytest.mark.parametrize("kind", ["hubert", "xlsr"])
def test_fewer_bits_stay_near(kind: str, precision: str, least: float, speech: list[Tensor]) -> None:
    model = student(**KINDS[kind], **WIDE)
    exact, fast = Inference(model, "float32")(speech), Inference(model, precision)(speech)
    for one, other in zip(parts(exact), parts(fast), strict=True):
        assert other.dtype == torch.float32
        for index, frames in enumerate(exact.frames.tolist()):
            cosine = F.cosine_similarity(one[index, :frames], other[index, :frames], dim=-1)
            assert least < float(cosine.min()) < 1 - 1e-7  # it has fewer bits indeed


@torch.no_grad()
def test_an_int8_product_rounds_to_nearest_and_keeps_quiet_rows() -> None:
    weight = torch.eye(8) * torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8])
    rows = torch.linspace(-1, 1, 8).repeat(20, 1) * torch.logspace(0, -6, 20)[:, None]
    product = Int8Product(weight, torch.zeros(8))(rows)
    torch.testing.assert_close(product, rows @ weight, atol=0, rtol=0.5 / 127 * 7.1)
    assert Int8Product(weight, None)(torch.zeros(3, 8)).abs().max() == 0


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_hub_entry_takes_a_precision(precision: str, student_file, waves) -> None:
    path = student_file()
    expert = distiller_local(path, precision=precision).eval()
    with torch.no_grad():
        found, expected = expert(waves), distiller_local(path).eval()(waves)
    for a, b in zip(found["hidden_states"], expected["hidden_states"], strict=True):
        assert a.dtype == torch.float32 and a.shape == b.shape
    assert torch.equal(found["pad_mask"], expected["pad_mask"])
    if precision == "float32":
        expert(waves)["paper"].sum().backward()
        assert expert.model.post_extract_proj.weight.grad is not None
    else:
        for call in (lambda: expert(waves), lambda: torch.no_grad()(expert.train())(waves)):
            with pytest.raises(ValueError, match=f'precision="{precision}" is for inference'):
                call()


def test_no_such_precision(student_file) -> None:
    with pytest.raises(ValueError, match="precision='float16' is none of float32, bfloat16, int8"):
        distiller_local(student_file(), precision="float16")


@torch.no_grad()
@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_that_change_are_heeded(precision: str) -> None:
    model, waves = student(), noise([8000])
    inference = Inference(model, precision)
    before = inference(waves).output
    assert torch.equal(inference(waves).output, before)
    model.load_state_dict({name: 1.5 * weight for name, weight in model.state_dict().items()})
    assert torch.equal(inference(waves).output, Inference(model, precision)(waves).output)
    assert not torch.equal(inference(waves).output, before)


@torch.no_grad()
def test_too_short() -> None:
    with pytest.raises(ValueError, match="an utterance of 399 samples is shorter than one frame"):
        Inference(student(), "float32")(noise([16_000, 399]))


# Recordings


def joined(expert: Any, source: Any, **options: Any) -> list[Tensor]:
    """Hidden states of all chunks, end to end; their starts must be in order."""
    chunks, position = [], 0
    for start, features in expert.extract(source, **options):
        assert start == position
        position += features["pad_mask"].shape[1]
        chunks.append(features["hidden_states"])
    return [torch.cat(states, 1) for states in zip(*chunks, strict=True)]


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"extractor_mode": "layer_norm"}], ids=["group norm", "layer norm"])
def test_chunks_are_the_whole_but_for_attention(options: dict[str, Any], student_file) -> None:
    (wave,) = noise([50_000])
    wave = wave * torch.linspace(0, 3, len(wave))  # statistics of a chunk are not those of the whole
    expert = distiller_local(student_file(**options)).eval()
    whole = joined(expert, wave)
    for one, other in zip(whole, expert([wave])["hidden_states"], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    chunked = joined(expert, wave, chunk=0.5, context=0.2)
    torch.testing.assert_close(chunked[0], whole[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(chunked[2], whole[2], atol=1e-3)
    for one, other in zip(joined(expert, wave, chunk=1, context=4), whole, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    # Attention is all that a chunk lacks: the positions hear 16 frames to either side, which the context holds.
    for layer in expert.model.encoder.layers:
        layer.self_attn.out_proj.weight.zero_()
    for one, other in zip(joined(expert, wave, chunk=0.5, context=0.4), joined(expert, wave), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "rate", "channels"), [("a.wav", 16_000, 1), ("a.flac", 44_100, 2), ("a.ogg", 8000, 1)]
)
def test_a_file_is_its_waveform(name: str, rate: int, channels: int, student_file, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(audio, "_BLOCK", 10_007)  # so that it comes in pieces
    samples = 0.1 * np.random.default_rng(0).standard_normal((3 * rate, channels))
    soundfile.write(tmp_path / name, samples, rate)
    expert, wave = distiller_local(student_file()).eval(), audio.load(tmp_path / name)
    pieces = list(audio.stream(tmp_path / name))
    torch.testing.assert_close(torch.cat(pieces), wave, atol=1e-6, rtol=0)
    assert len(pieces) > 2 and not any(piece.requires_grad for piece in pieces)
    for one, other in zip(joined(expert, tmp_path / name, chunk=1), joined(expert, wave, chunk=1), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_what_cannot_be_extracted(student_file, tmp_path) -> None:
    expert = distiller_local(student_file()).eval()
    with pytest.raises(ValueError, match=r"chunk=0 and context=1 are seconds: one frame is 0\.02 s"):
        expert.extract(torch.zeros(16_000), chunk=0, context=1)
    with pytest.raises(ValueError, match="no such audio file"):
        next(expert.extract(tmp_path / "none.wav"))
    with pytest.raises(ValueError, match="shorter than one frame"):
        next(expert.extract(torch.zeros(300)))


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="memory is read from Linux's /proc")
def test_an_hour_in_constant_memory(student_file, tmp_path) -> None:
    minute = (3000 * np.random.default_rng(0).standard_normal(60 * 16_000)).astype(np.int16)
    with soundfile.SoundFile(tmp_path / "hour.wav", "w", 16_000, 1, "PCM_16") as file:
        for _ in range(60):
            file.write(minute)
    layers = "[(4,10,5)] + [(4,3,2)] * 4 + [(4,2,2)] * 2"
    expert = distiller_local(student_file(extractor_conv_feature_layers=layers, encoder_layers=1)).eval()
    taken, frames = [], 0
    for _, features in expert.extract(tmp_path / "hour.wav", chunk=10, context=2, no_pred=True):
        frames += features["pad_mask"].shape[1]
        taken.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)
    assert frames == (3600 * 16_000 - 400) // 320 + 1
    # As float32 the waveform alone takes 220 MB.
    assert max(taken) - max(taken[:30]) < 60
