"""Hidden states computed once: that they are those of the plain way, of these weights and this audio, and survive."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from s3prl_distiller.downstream.core.batches import Waves, make_loader
from s3prl_distiller.downstream.core.config import DataConfig, DownstreamConfig, FeaturesConfig, UpstreamConfig
from s3prl_distiller.downstream.core.draws import Draw, EvalOrder, Stretch, TrainOrder, eval_draw
from s3prl_distiller.downstream.core.expert import _zero_padding
from s3prl_distiller.downstream.core.upstream import Upstream, load_upstream
from s3prl_distiller.downstream.features import filling
from s3prl_distiller.downstream.features.kept import Kept, keep_features
from s3prl_distiller.downstream.features.store import FeatureStore
from torch.nn.utils.rnn import pad_sequence

from s3prl_distiller import audio
from s3prl_distiller.audio import SAMPLE_RATE
from s3prl_distiller.data.utterance import TarMember, Utterance
from s3prl_distiller.engine import distributed
from s3prl_distiller.engine.loop import precision

NANO = Path(__file__).resolve().parents[2] / "s3prl_distiller" / "quickstart" / "hubert_nano"
CPU = torch.device("cpu")
AUTOCAST, _ = precision("float32", CPU)


class Means(torch.nn.Module):
    """An upstream that takes no time: means of 160 samples, as they are and squared; NaN after the end."""

    n_layers, width, downsample_rate, twin = 2, 3, 160, None

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[int] = []
        self.pause, self.scale, self.weights = 0.0, {}, "0"

    def identity(self) -> dict[str, Any]:
        return {"weights": self.weights}

    def forward(self, wave: torch.Tensor, lengths: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        assert not torch.is_grad_enabled()
        time.sleep(self.pause)
        self.heard += lengths.tolist()
        frames = lengths // 160
        most = int(frames.max())
        means = wave[:, : most * 160].unflatten(1, (most, 160)).mean(2)[..., None] * torch.tensor([1.0, 2.0, 3.0])
        means = means * torch.tensor([self.scale.get(int(n), 1.0) for n in lengths])[:, None, None]
        means[torch.arange(most) >= frames[:, None]] = torch.nan
        return [means, means.square()], frames


def means() -> Any:
    return Means()


@pytest.fixture(scope="module")
def nano() -> Upstream:
    return load_upstream(UpstreamConfig(name=str(NANO)))


@pytest.fixture
def speech(speech_files: list[Path], tmp_path: Path) -> list[Utterance]:
    """Parts of real speech, of 0.4 s to 2.2 s, in no order of length; copied so that a test can harm the files."""
    utterances = []
    for number, path in enumerate(speech_files[:5] + speech_files[24:28]):
        copy = shutil.copy(path, tmp_path)
        seconds = min(audio.probe(copy).duration - 0.1, 0.4 + 0.45 * (number * 2 % 5))
        utterances.append(Utterance(f"u{number}", f"u{number}", str(copy), start=0.1, duration=seconds))
    return utterances


@pytest.fixture
def noise(tmp_path: Path) -> list[Utterance]:
    """Twelve files of a tenth of a second and more."""
    utterances = []
    for number in range(12):
        path, samples = tmp_path / f"{number}.wav", 1600 + 160 * (number * 5 % 12)
        wave = np.random.default_rng(number).uniform(-1, 1, samples)
        soundfile.write(path, wave, SAMPLE_RATE, subtype="FLOAT")
        utterances.append(Utterance(f"n{number}", f"n{number}", str(path), duration=samples / SAMPLE_RATE))
    return utterances


def task_of(pooled: bool = False, trained: bool = True, **splits: list[Utterance]) -> Any:
    return SimpleNamespace(
        name="stub",
        pooled=pooled,
        trained=trained,
        all_layers=False,
        splits=splits,
        target=lambda utterance: f"target of {utterance.id}",
    )


def config_of(folder: Path, normalize: bool = False, options: dict[str, Any] | None = None, **data: Any) -> Any:
    return DownstreamConfig(
        upstream=UpstreamConfig(normalize=normalize),
        data=DataConfig(**{"num_workers": 0} | data),
        features=FeaturesConfig(keep=True, folder=str(folder / "store"), **options or {}),
    )


def keep(upstream: Any, task: Any, config: Any, autocast: Any = AUTOCAST, **more: Any) -> Kept:
    found = keep_features(upstream, task, config, Waves(gain=10 ** (config.data.gain_db / 20)), autocast, CPU, **more)
    assert found is not None
    return found


def whole(utterances: list[Utterance]) -> list[Draw]:
    return [eval_draw(utterance, DataConfig()) for utterance in utterances]


@torch.no_grad()
def plainly(upstream: Any, draws: list[Draw]) -> tuple[torch.Tensor, torch.Tensor]:
    """What a run without a store gives to its head, (L, B, T, D), in one batch."""
    waves = [Waves().get(draw) for draw in draws]
    states, frames = upstream(pad_sequence(waves, batch_first=True), torch.tensor([len(wave) for wave in waves]))
    return torch.stack([_zero_padding(state, frames) for state in states])[:, :, : int(frames.max())], frames


def content(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in folder.rglob("*.safetensors"):
        for name, tensor in safetensors.torch.load_file(path).items():
            assert name not in found, "nothing is kept twice"
            found[name] = tensor.clone()  # what is loaded is the file's own pages
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# What is served


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


# What is never served


def test_states_of_other_weights_are_not_served(nano, speech, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(NANO, other)
    weights = safetensors.torch.load_file(other / "model.safetensors")
    name = next(name for name in weights if "fc" in name or "dense" in name)
    weights[name].view(-1)[0] += 0.5
    safetensors.torch.save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    config = config_of(tmp_path)
    one = keep(nano, task_of(dev=speech[:3]), config)
    two = keep(load_upstream(UpstreamConfig(name=str(other))), task_of(dev=speech[:3]), config)
    assert not torch.equal(one.batch(whole(speech[:3]))[0], two.batch(whole(speech[:3]))[0])
    assert len(list((tmp_path / "store").iterdir())) == 2


@pytest.mark.parametrize("change", ["weights", "dtype", "gain", "pooled"])
def test_whatever_decides_the_states_has_a_folder_of_its_own(change, noise, tmp_path):
    keep(means(), task_of(dev=noise), config_of(tmp_path))
    other = means()
    other.weights = "1" if change == "weights" else "0"
    options = {"dtype": "float32"} if change == "dtype" else {}
    config = config_of(tmp_path, options=options, gain_db=-1.0 if change == "gain" else 0.0)
    keep(other, task_of(change == "pooled", dev=noise), config)
    assert len(other.heard) == 12 and len(list((tmp_path / "store").iterdir())) == 2


def test_precision_counts_where_the_upstream_heeds_it(nano, speech, tmp_path):
    half, _ = precision("bfloat16", CPU)
    config = config_of(tmp_path)
    one = keep(nano, task_of(dev=speech[:2]), config)
    two = keep(nano, task_of(dev=speech[:2]), config, half)
    assert not torch.equal(one.batch(whole(speech[:2]))[0], two.batch(whole(speech[:2]))[0])
    for _ in range(2):
        keep(means(), task_of(dev=speech[:2]), config, half)
    assert len(list((tmp_path / "store").iterdir())) == 3


def test_a_folder_that_says_something_else_is_not_used(noise, tmp_path):
    keep(means(), task_of(dev=noise), config_of(tmp_path))
    (folder,) = (tmp_path / "store").iterdir()
    key = folder / "key.json"
    key.write_text(key.read_text().replace('"weights": "0"', '"weights": "1"'))
    before = content(tmp_path)
    found = keep(means(), task_of(dev=noise), config_of(tmp_path))
    assert not found and "names other states" in found.note and str(key) in found.note
    assert same(before, content(tmp_path))


def test_states_of_audio_that_has_changed_are_not_served(noise, tmp_path):
    config = config_of(tmp_path)
    keep(means(), task_of(dev=noise), config)
    wave, _ = soundfile.read(noise[3].audio)
    soundfile.write(noise[3].audio, -wave, SAMPLE_RATE, subtype="FLOAT")  # of the same size
    again = means()
    found = keep(again, task_of(dev=noise), config)
    assert again.heard == [len(wave)]
    assert torch.equal(found.batch(whole(noise))[0], plainly(means(), whole(noise))[0].half())


def test_audio_that_is_gone_is_left_to_the_run_to_say(noise, tmp_path):
    Path(cast(str, noise[2].audio)).unlink()
    noise[4].duration = cast(float, noise[4].duration) + 1  # shorter than it was
    config = config_of(tmp_path, batch_size=12)
    found = keep(means(), task_of(dev=noise), config)
    (batch,) = make_loader(EvalOrder(noise, config.data), None, Waves(), config.data, found)
    assert len(batch.ids) == 10 == cast(Any, batch.states).shape[1] and len(batch.dropped) == 2
    assert torch.equal(cast(Any, batch.states), plainly(means(), whole(list(batch.utterances)))[0].half())


# Whole and parts


def batches(utterances, task, config, found=None, epoch=0, skip=0) -> list[Any]:
    order = TrainOrder(utterances, config.data, None, 7, epoch, skip)
    return list(make_loader(order, task, Waves(), config.data, found))


def check_alike(served: list[Any], plain: list[Any]) -> None:
    """In all but the way that states are come by."""
    assert len(served) == len(plain) > 1
    for one, other in zip(served, plain, strict=True):
        assert one.ids == other.ids and one.targets == other.targets and one.dropped == other.dropped
        assert one.share == other.share and one.seconds == other.seconds
        assert torch.equal(one.lengths, other.lengths) and one.utterances == other.utterances
        if one.states is None:
            assert torch.equal(one.wave, other.wave)
        elif one.ids:
            assert one.wave.shape == (0, 0)
            expected, frames = means()(other.wave, other.lengths)
            expected = torch.stack([_zero_padding(state, frames) for state in expected])
            assert torch.equal(one.states, expected.half()) and torch.equal(one.frames, frames)


@torch.no_grad()
def test_random_parts_are_computed_and_the_rest_is_served(noise, tmp_path):
    """Also in one batch."""
    config = config_of(tmp_path, crop_seconds=0.18, batch_size=5)  # three are longer
    task, upstream = task_of(train=noise), means()
    found = keep(upstream, task, config)
    assert len(content(tmp_path)) == len(upstream.heard) == 9
    assert "random parts of 3 others" in found.note
    for epoch in (0, 1):
        check_alike(batches(noise, task, config, found, epoch), batches(noise, task, config, None, epoch))
    assert upstream.heard[9:] == [round(0.18 * SAMPLE_RATE)] * 6


@torch.no_grad()
def test_nothing_of_train_is_kept_where_most_is_heard_in_parts(noise, tmp_path):
    config = config_of(tmp_path, crop_seconds=0.13, batch_size=5)
    task, upstream = task_of(train=noise, dev=noise[:2]), means()
    found = keep(upstream, task, config)
    assert len(upstream.heard) == 2 and "nothing of train" in found.note
    check_alike(batches(noise, task, config, found), batches(noise, task, config))


@torch.no_grad()
def test_an_utterance_with_a_crop_of_its_own(noise, tmp_path):
    noise[1].custom = {"crop_seconds": 0.05}
    config = config_of(tmp_path, batch_size=4)
    task = task_of(train=noise)
    found = keep(means(), task, config)
    assert eval_draw(noise[1], config.data) not in found and len(content(tmp_path)) == 11
    check_alike(batches(noise, task, config, found), batches(noise, task, config))


def test_the_middle_of_an_evaluation_is_the_same_each_time(noise, tmp_path):
    config = config_of(tmp_path, eval_crop_seconds=0.12, batch_size=12)
    found = keep(means(), task_of(dev=noise), config)
    (served,) = make_loader(EvalOrder(noise, config.data), None, Waves(), config.data, found)
    (plain,) = make_loader(EvalOrder(noise, config.data), None, Waves(), config.data)
    with torch.no_grad():
        states, _ = means()(plain.wave, plain.lengths)
    assert served.ids == plain.ids
    assert torch.equal(cast(Any, served.states)[0], states[0].nan_to_num().half())


@torch.no_grad()
def test_resumed_and_shared_epochs_are_those_of_a_run_without(noise, tmp_path, monkeypatch):
    config = config_of(tmp_path, batch_size=5)
    task = task_of(train=noise)
    found = keep(means(), task, config)
    check_alike(batches(noise, task, config, found, skip=1), batches(noise, task, config, skip=1))
    monkeypatch.setattr(distributed, "world", lambda: 3)
    for rank in range(3):  # the last has no part of the last batch
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        check_alike(batches(noise, task, config, found), batches(noise, task, config))


@torch.no_grad()
def test_nothing_is_drawn_and_nothing_decoded(noise, tmp_path, monkeypatch):
    config = config_of(tmp_path, batch_size=5, num_workers=2)
    task = task_of(train=noise)
    found = keep(means(), task, config)
    for utterance in noise:
        Path(cast(str, utterance.audio)).unlink()
    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", lambda self: pytest.fail("a worker was started"))
    before = torch.get_rng_state()
    assert sum(len(batch.ids) for batch in batches(noise, task, config, found)) == 12
    assert torch.equal(before, torch.get_rng_state())


def test_a_run_that_does_not_ask_and_a_task_without_training(noise, tmp_path):
    config = config_of(tmp_path)
    config.features.keep = False
    assert keep_features(means(), task_of(dev=noise), config, Waves(), AUTOCAST, CPU) is None
    config.features.keep = True
    found = keep(means(), task_of(trained=False, dev=noise), config)
    assert not found and "trains nothing" in found.note and not (tmp_path / "store").exists()


def test_evaluations_alone(noise, tmp_path):
    upstream = means()
    keep(upstream, task_of(train=noise, dev=noise[:2], test=noise[2:5]), config_of(tmp_path), judged=["test"])
    assert len(upstream.heard) == 3


# The disk


def test_what_is_there_is_not_computed_again(noise, tmp_path):
    config = config_of(tmp_path)
    keep(means(), task_of(dev=noise[:7]), config)
    second, third = means(), means()
    keep(second, task_of(train=noise), config)
    found = keep(third, task_of(dev=noise), config)
    assert len(second.heard) == 5 and not third.heard
    assert torch.equal(found.batch(whole(noise))[0], plainly(means(), whole(noise))[0].half())


def small_shards(monkeypatch, seconds: float = 0.3) -> None:
    """Of a batch each, and batches of at most so much audio."""
    monkeypatch.setattr(FeatureStore.flush, "__defaults__", (1,))
    monkeypatch.setattr(filling, "_FILL_SECONDS", seconds)


@pytest.mark.parametrize("damage", ["cut", "empty", "header", "longer", "other"])
def test_a_damaged_shard_is_computed_again(damage, noise, tmp_path, monkeypatch, caplog):
    small_shards(monkeypatch)
    config = config_of(tmp_path)
    keep(means(), task_of(dev=noise), config)
    before = content(tmp_path)
    shards = sorted((tmp_path / "store").rglob("*.safetensors"))
    assert len(shards) > 4
    lost = len(safetensors.torch.load_file(shards[1]))
    data = shards[1].read_bytes()
    if damage == "other":
        safetensors.torch.save_file({"x": torch.zeros(3, dtype=torch.int8)}, shards[1])
    else:
        changed = {"cut": data[:-1], "empty": b"", "header": b"\xff" * 8 + data[8:], "longer": data + b"0"}
        shards[1].write_bytes(changed[damage])
    again = means()
    found = keep(again, task_of(dev=noise), config)
    assert len(again.heard) == lost
    assert f"{shards[1]} is damaged" in caplog.text and not shards[1].exists()
    assert same(content(tmp_path), before)
    assert len([draw for draw in whole(noise) if draw in found]) == 12


def test_a_shard_beside_a_reader_may_be_removed(noise, tmp_path):
    """As the process that fills does with a damaged one: who has it open reads on."""
    found = keep(means(), task_of(dev=noise), config_of(tmp_path))
    shutil.rmtree(tmp_path / "store")
    assert torch.equal(found.batch(whole(noise))[0], plainly(means(), whole(noise))[0].half())


@pytest.mark.parametrize("pooled", [False, True])
def test_a_budget_that_is_too_small(pooled, noise, tmp_path):
    frames = sum(draw.samples // 160 + 1 for draw in whole(noise))
    need = 12 * 2 * 3 * 4 if pooled else frames * 2 * 3 * 2
    task = task_of(pooled, dev=noise)
    upstream = means()
    found = keep(upstream, task, config_of(tmp_path, options={"disk_gb": need * 0.99 / 1e9}))
    assert not found and not upstream.heard and not content(tmp_path)
    assert "computed anew for each batch" in found.note and "features.disk_gb" in found.note
    assert str(tmp_path / "store") in found.note
    config = config_of(tmp_path, batch_size=5)
    for batch in make_loader(EvalOrder(noise, config.data), None, Waves(), config.data, found):
        assert batch.states is None and len(batch.wave)
    # The key and the shard's header are some bytes, too.
    assert keep(upstream, task, config_of(tmp_path, options={"disk_gb": (need + 12 * 256 + 1000) / 1e9}))


def test_other_stores_and_the_disk_count(noise, tmp_path, monkeypatch):
    other = tmp_path / "store" / "other"
    other.mkdir(parents=True)
    (other / "states.safetensors").write_bytes(b"0" * 200_000)
    found = keep(means(), task_of(dev=noise), config_of(tmp_path, options={"disk_gb": 200_000 / 1e9}))
    assert not found and "holds 0.2 MB" in found.note and (other / "states.safetensors").exists()
    assert keep(means(), task_of(dev=noise), config_of(tmp_path, options={"disk_gb": 300_000 / 1e9}))
    shutil.rmtree(tmp_path / "store")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2_000_000_001))
    found = keep(means(), task_of(dev=noise), config_of(tmp_path))
    assert not found and "2.00 GB stay free" in found.note


def test_a_folder_that_cannot_be_made(noise, tmp_path):
    (tmp_path / "store").write_text("a file")
    found = keep(means(), task_of(dev=noise), config_of(tmp_path))
    assert not found and "computed anew" in found.note and str(tmp_path / "store") in found.note


# Other processes

fork = multiprocessing.get_context("fork")


def in_child(upstream: Any, task: Any, config: Any, result: Any, most: int | None = None) -> None:
    if most is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    found = keep(upstream, task, config)
    result.put((len(found._states), upstream.heard, found.note))


def test_a_disk_that_fills_up(noise, tmp_path):
    """A real error of the system's, in the middle of a file."""
    result = fork.Queue()
    child = fork.Process(target=in_child, args=(means(), task_of(dev=noise), config_of(tmp_path), result, 600))
    child.start()
    count, heard, note = result.get(timeout=60)
    child.join()
    assert count == 0 and len(heard) == 12 and "computed anew" in note and "File too large" in note
    (folder,) = (tmp_path / "store").iterdir()
    assert {path.name for path in folder.iterdir()} == {"key.json", "lock"}
    assert keep(means(), task_of(dev=noise), config_of(tmp_path))


def test_killed_while_filling(noise, tmp_path, monkeypatch):
    small_shards(monkeypatch)
    task, config = task_of(dev=noise), config_of(tmp_path)
    keep(means(), task, config_of(tmp_path / "undisturbed"))
    slow = means()
    slow.pause = 0.2
    child = fork.Process(target=in_child, args=(slow, task, config, fork.Queue()))
    child.start()
    until = time.monotonic() + 60
    while len(list((tmp_path / "store").rglob("*.safetensors"))) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(cast(int, child.pid), signal.SIGKILL)
    child.join()
    (folder,) = (tmp_path / "store").iterdir()
    (folder / ".0123.safetensors.abcd.tmp").write_bytes(b"half of a shard")  # what a kill within a write leaves
    there = content(tmp_path / "store")
    assert 0 < len(there) < 12
    again = means()
    keep(again, task, config)
    assert len(again.heard) == 12 - len(there)
    assert same(content(tmp_path / "store"), content(tmp_path / "undisturbed"))
    assert not list(folder.glob(".*"))


def test_an_interrupt_keeps_what_is_done(noise, tmp_path, monkeypatch):
    monkeypatch.setattr(filling, "_FILL_SECONDS", 0.3)
    upstream = means()

    def interrupted(*args: Any) -> Any:
        if len(upstream.heard) > 5:
            raise KeyboardInterrupt
        return Means.forward(upstream, *args)

    upstream.forward = interrupted
    with pytest.raises(KeyboardInterrupt):
        keep(upstream, task_of(dev=noise), config_of(tmp_path))
    assert len(content(tmp_path)) == len(upstream.heard) > 5


def test_two_processes_fill_one_store(noise, tmp_path, monkeypatch):
    small_shards(monkeypatch)
    children, result = [], fork.Queue()
    for part in (noise[:9], noise[3:]):
        slow = means()
        slow.pause = 0.05
        children.append(fork.Process(target=in_child, args=(slow, task_of(dev=part), config_of(tmp_path), result)))
    for child in children:
        child.start()
    found = [result.get(timeout=60) for _ in children]
    for child in children:
        child.join()
    assert [count for count, _, _ in found] == [9, 9]
    assert sorted(len(heard) for _, heard, _ in found) == [3, 9], "what one has computed the other does not"
    assert len(content(tmp_path)) == 12


def one_of_two(rank: int, meeting: Path, *args: Any) -> None:
    torch.distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=2)
    in_child(*args)
    torch.distributed.destroy_process_group()


def test_of_the_processes_of_one_run_the_main_one_fills(noise, tmp_path):
    upstreams, results = [means(), means()], [fork.Queue(), fork.Queue()]
    upstreams[0].pause = 0.2
    children = [
        fork.Process(
            target=one_of_two,
            args=(rank, tmp_path / "meeting", upstreams[rank], task_of(dev=noise), config_of(tmp_path), results[rank]),
        )
        for rank in range(2)
    ]
    for child in children:
        child.start()
    (main, heard, _), (other, nothing, _) = (result.get(timeout=60) for result in results)
    for child in children:
        child.join()
    assert main == other == 12 == len(heard) and not nothing
