"""The description of the front end, read but never evaluated, and the arithmetic of frames."""

import os
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from s3prl_distiller.upstream.distiller.frontend import (
    HUBERT_CONV_LAYERS,
    ConvFrontEnd,
    format_conv_layers,
    frame_lengths,
    normalize_wave,
    parse_conv_layers,
    receptive_field,
    valid_mask,
)

HUBERT = [(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2
LAYERS = st.lists(st.tuples(st.integers(1, 2048), st.integers(1, 64), st.integers(1, 64)), min_size=1, max_size=12)


@given(LAYERS)
def test_round_trip(layers):
    assert parse_conv_layers(format_conv_layers(layers)) == layers
    assert parse_conv_layers(str(layers)) == layers
    assert parse_conv_layers(str([list(layer) for layer in layers])) == layers


@given(LAYERS, st.integers(1, 5), st.booleans())
def test_sums_and_repetitions_are_python_s(layers, times, swapped):
    part = str(layers)
    text = f"{times} * {part} + [(1, 2, 3)]" if swapped else f"[(1, 2, 3)] + {part} * {times}"
    expected = layers * times + [(1, 2, 3)] if swapped else [(1, 2, 3)] + layers * times
    assert parse_conv_layers(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        HUBERT_CONV_LAYERS,
        "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2",
        "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]",
        "  [(512,10,5)]+[(512,3,2)]*4+[(512,2,2)]*2\n",
    ],
)
def test_expressions_of_s3prl_and_fairseq(text):
    assert parse_conv_layers(text) == HUBERT


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('x')",
        "[(512,10,5)] + [(__import__('os').getpid(),3,2)]",
        "os",
        "layers",
        "[(c,10,5) for c in (512,)]",
        "list([(512,10,5)])",
        "[(512,10,5)][0:1]",
        "(lambda: [(512,10,5)])()",
        "[(-512,10,5)]",
        "[(512,10,0)]",
        "[(512,10,5)] - [(512,3,2)]",
        "[(512,10,5)] * -1",
        "[(512,10,5)] * 0",
        "[(512,10,5)] * 2.0",
        "[(512,10,5)] * [(512,3,2)]",
        "[(512,10,5)] ** 2",
        "[(512,10,5)] + 3",
        "[(512.0,10,5)]",
        "[(True,10,5)]",
        "[('512',10,5)]",
        "['abc']",
        "[(512,10)]",
        "[(512,10,5,1)]",
        "[[[512],10,5]]",
        "[((512,10,5),)]",
        "(512,10,5)",
        "512",
        "[]",
        "",
        "   ",
        "[(512,10,5)",
        "[(512,10,5)]; import os",
        "f'{1}'",
        "None",
        "...",
        "[(512,10,5)]\x00",
        "é",
    ],
)
def test_anything_else_is_refused(text, monkeypatch):
    def called(*args):
        raise AssertionError("the text was evaluated")

    monkeypatch.setattr(os, "system", called)
    monkeypatch.setattr(os, "getpid", called)
    with pytest.raises(ValueError):
        parse_conv_layers(text)


@pytest.mark.parametrize(
    "text",
    [
        "[(512,10,5)] * 1000000000",
        "1000000000 * [(512,10,5)]",
        "[[(512,10,5)] * 30000] * 30000",
        "[(512,10,5)] * 100000 * 100000",
        "[(512,10,5)] * 10**9",
        "[(512,9" + "9" * 5000 + ",5)]",
        "9" + " * 99999999" * 2000,
        "(" * 300 + "[(512,10,5)]" + ")" * 300,
        "[" * 3000 + "]" * 3000,
        "[(512,10,5)]" + " + [(512,10,5)]" * 3000,
        "-" * 100_000 + "1",
    ],
    ids=lambda text: text[:30],
)
def test_a_text_that_would_fill_the_memory_is_refused_at_once(text):
    start = time.perf_counter()
    with pytest.raises(ValueError):
        parse_conv_layers(text)
    assert time.perf_counter() - start < 2


@settings(max_examples=200)
@given(st.text(alphabet="[](),+*- 0123456789ax.'\n", max_size=40))
def test_garbage_is_refused_or_read(text):
    try:
        layers = parse_conv_layers(text)
    except ValueError:
        return
    assert layers
    assert all(len(layer) == 3 and all(type(n) is int and n > 0 for n in layer) for layer in layers)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 12), st.integers(1, 5)), min_size=1, max_size=4),
    st.integers(0, 400),
)
def test_frames_are_those_that_the_convolutions_make(layers, extra):
    samples = receptive_field(layers) + extra
    # A group normalisation needs two frames, in PyTorch's own as well.
    features = ConvFrontEnd(layers, mode="layer_norm")(torch.zeros(1, samples), torch.tensor([samples]))
    assert features.shape[1] == int(frame_lengths(torch.tensor(samples), layers))
    assert int(frame_lengths(torch.tensor(receptive_field(layers)), layers)) == 1
    assert int(frame_lengths(torch.tensor(receptive_field(layers) - 1), layers)) < 1


@pytest.mark.parametrize(
    ("samples", "frames"), [(250_000, 781), (240_000, 749), (48_000, 149), (16_000, 49), (400, 1), (399, 0)]
)
def test_frames_of_hubert(samples, frames):
    assert int(frame_lengths(torch.tensor(samples), HUBERT)) == frames
    assert receptive_field(HUBERT) == 400


def test_mask_is_none_where_nothing_is_padded():
    assert valid_mask(torch.tensor([4, 4]), 4, torch.device("cpu")) is None
    mask = valid_mask(torch.tensor([1, 3]), 3, torch.device("cpu"))
    assert mask is not None
    assert mask.tolist() == [[True, False, False], [True, True, True]]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(2, 500), min_size=1, max_size=4), st.sampled_from([1e-5, 1e-7]), st.integers(0, 1000))
def test_normalised_waveforms_are_those_of_layer_norm(lengths, eps, seed):
    generator = torch.Generator().manual_seed(seed)
    wavs = [3 * torch.randn(length, generator=generator) + 1 for length in lengths]
    batch = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
    normalised = normalize_wave(batch, torch.tensor(lengths), eps)
    for row, wav in zip(normalised, wavs, strict=True):
        expected = torch.nn.functional.layer_norm(wav, wav.shape, eps=eps)
        torch.testing.assert_close(row[: len(wav)], expected, rtol=1e-4, atol=1e-5)
        assert not row[len(wav) :].any()


def test_silence_stays_silent_when_normalised():
    assert torch.isfinite(normalize_wave(torch.zeros(2, 800), torch.tensor([800, 500]), 1e-7)).all()
