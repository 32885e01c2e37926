"""Hidden states computed once are those of the plain way."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from s3prl_distiller.downstream.core.batches import Waves, make_loader
from s3prl_distiller.downstream.core.config import UpstreamConfig
from s3prl_distiller.downstream.core.draws import Draw, EvalOrder, Stretch, eval_draw
from s3prl_distiller.downstream.core.upstream import load_upstream
from s3prl_distiller.downstream.features import filling
from s3prl_distiller.downstream.features.kept import Kept
from torch.nn.utils.rnn import pad_sequence

from s3prl_distiller import audio
from s3prl_distiller.audio import SAMPLE_RATE
from s3prl_distiller.data.utterance import TarMember, Utterance

from .stubs import AUTOCAST, CPU, NANO, config_of, keep, means, plainly, task_of, whole


@pytest.mark.parametrize("name", [str(NANO), "fbank"])
def test_states_are_the_plain_ones_bit_by_bit_where_batches_are_the_same(name, speech, tmp_path):
    upstream = load_upstream(UpstreamConfig(name=name))
    found = keep(upstream, task_of(dev=speech), config_of(tmp_path))
    draws = sorted(whole(speech), key=lambda draw: (-draw.samples, draw.stretch))  # the batch that fills the store
    expected, frames = plainly(upstream, draws)
    states, counted = found.batch(draws)
    assert states.dtype == torch.float16 and torch.equal(states, expected.half())
    assert torch.equal(counted, frames) and len(set(frames.tolist())) > 3
    for draw in draws:
        assert draw in found


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 1e-3), ("float32", 1e-5)])
def test_states_are_the_plain_ones_in_any_batches(dtype, tolerance, nano, speech, tmp_path):
    config = config_of(tmp_path, options={"dtype": dtype}, batch_size=4)
    found = keep(nano, task_of(dev=speech), config)
    for batch in make_loader(EvalOrder(speech, config.data), None, Waves(), config.data, found):
        assert batch.states is not None and batch.states.dtype == getattr(torch, dtype)
        expected, frames = plainly(nano, whole(list(batch.utterances)))
        assert torch.equal(cast(Any, batch.frames), frames)
        error = (batch.states.float() - expected).norm(dim=(2, 3)) / expected.norm(dim=(2, 3))
        assert error.max() < tolerance


def test_means_over_time(nano, speech, tmp_path):
    found = keep(nano, task_of(True, dev=speech), config_of(tmp_path))
    states, frames = found.batch(whole(speech))
    assert states.shape == (nano.n_layers, len(speech), 1, nano.width) and states.dtype == torch.float32
    assert frames.tolist() == [1] * len(speech)
    for row, draw in enumerate(whole(speech)):
        expected, _ = plainly(nano, [draw])
        torch.testing.assert_close(states[:, row, 0], expected[:, 0].double().mean(1).float(), atol=1e-4, rtol=1e-4)
    assert "means over time" in found.note


def test_means_are_not_kept_where_frames_are_normalised_before(speech, tmp_path):
    found = keep(means(), task_of(True, dev=speech), config_of(tmp_path, normalize=True))
    states, frames = found.batch(whole(speech))
    assert states.shape[2] == frames.max() > 1 and states.dtype == torch.float16


def test_gain_and_start(noise, tmp_path):
    part = Utterance("part", "part", cast(str, noise[0].audio), start=0.05, duration=0.04)
    found = keep(
        means(), task_of(dev=[part, noise[0]]), config_of(tmp_path, gain_db=-6.0, options={"dtype": "float32"})
    )
    states, frames = found.batch(whole([part]))
    wave = audio.load(noise[0].audio)[800:1440] * 10 ** (-6 / 20)
    assert frames.tolist() == [4]
    torch.testing.assert_close(states[0, 0, :, 0], wave.view(4, 160).mean(1))


def test_members_of_a_tar(noise, tmp_path):
    """One after the other in one file, each has states of its own."""
    blob = tmp_path / "all.tar"
    members, offset = [], 0
    for utterance in noise[:3]:
        data = Path(cast(str, utterance.audio)).read_bytes()
        with blob.open("ab") as file:
            file.write(data)
        member = TarMember(str(blob), f"{utterance.id}.wav", offset, len(data))
        members.append(Utterance(utterance.id, utterance.id, member, duration=0.1))
        offset += len(data)
    found = keep(means(), task_of(dev=members), config_of(tmp_path))
    states, _ = found.batch(whole(members))
    assert torch.equal(states, plainly(means(), whole(members))[0].half())
    assert not torch.equal(states[:, 0], states[:, 1])


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.integers(1, 3),
    st.integers(1, 4),
    st.lists(st.booleans(), min_size=6, max_size=6),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_padding(frames, layers, width, wide, resident):
    stored = {
        Stretch(f"{row}", 0, 160): torch.randn(layers, count, width).to(torch.float32 if wide[row] else torch.float16)
        for row, count in enumerate(frames)
    }
    found = Kept("", filling.Ear(means(), AUTOCAST, CPU, False, torch.float16), stored, resident)
    draws = [Draw(Utterance(f"{row}", "", f"{row}"), 0.0, 160) for row in range(len(frames))]
    states, counted = found.batch(draws)
    assert counted.tolist() == frames
    assert states.dtype == (torch.float32 if any(wide[: len(frames)]) else torch.float16)
    expected = pad_sequence([state.transpose(0, 1).float() for state in stored.values()], batch_first=True)
    assert torch.equal(states.float(), expected.permute(2, 0, 1, 3))


def test_values_beyond_half_precision_and_none_at_all(noise, tmp_path):
    large, broken = (int(round(cast(float, utterance.duration) * SAMPLE_RATE)) for utterance in noise[:2])
    upstream = means()
    upstream.scale = {large: 1e6, broken: torch.inf}
    config = config_of(tmp_path, batch_size=12)
    found = keep(upstream, task_of(dev=noise), config)
    of_each = {utterance.id: eval_draw(utterance, config.data) for utterance in noise}
    assert of_each["n1"] not in found and "11 of 12" in found.note
    states, _ = found.batch([of_each["n0"]])
    assert states.dtype == torch.float32 and states.abs().max() > 65504
    assert found.batch([of_each["n2"]])[0].dtype == torch.float16
    (batch,) = make_loader(EvalOrder(noise, config.data), None, Waves(), config.data, found)
    row = batch.ids.index("n1")
    assert not cast(Any, batch.states)[:, row].isfinite().all()
    assert cast(Any, batch.states)[:, [i for i in range(12) if i != row]].isfinite().all()
