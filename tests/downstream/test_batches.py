"""Which utterances of labelled data go together, which part of each is heard, and what of it reaches a task."""

import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from s3prl_distiller.downstream.core.batches import Waves, load_waves, make_loader
from s3prl_distiller.downstream.core.config import DataConfig
from s3prl_distiller.downstream.core.draws import EvalOrder, TrainOrder

from s3prl_distiller import audio
from s3prl_distiller.audio import SAMPLE_RATE
from s3prl_distiller.data.utterance import Utterance
from s3prl_distiller.engine import distributed

seconds = st.lists(st.integers(800, 40 * SAMPLE_RATE).map(lambda samples: samples / SAMPLE_RATE), max_size=60)
sizes = st.integers(1, 12)


def of_lengths(durations, start=0.0, custom=None) -> list[Utterance]:
    return [
        Utterance(f"u{index}", f"u{index}", f"u{index}.wav", start=start, duration=duration, custom=custom)
        for index, duration in enumerate(durations)
    ]


def order(utterances, classes=None, seed=0, epoch=0, skip=0, **config) -> list[list]:
    return list(TrainOrder(utterances, DataConfig(**config), classes, seed, epoch, skip))


def ids(batches) -> list[list[str]]:
    return [[draw.utterance.id for draw in batch] for batch in batches]


@pytest.fixture
def as_process(monkeypatch):
    """Make this process one of several, as far as batches can see."""

    def become(rank: int, world: int) -> None:
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "world", lambda: world)

    return become


# Training


@given(seconds, sizes, st.booleans(), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_every_utterance_once_an_epoch(durations, size, bucketed, epoch):
    utterances = of_lengths(durations)
    batches = order(utterances, epoch=epoch, batch_size=size, bucketed=bucketed)
    assert sorted(name for batch in ids(batches) for name in batch) == sorted(u.id for u in utterances)
    assert all(0 < len(batch) <= size for batch in batches)
    if not bucketed:
        assert all(len(batch) == size for batch in batches[:-1])


@pytest.mark.parametrize("bucketed", [False, True])
def test_epochs_and_seeds_differ_and_repeat(bucketed):
    utterances = of_lengths([1 + index / 10 for index in range(60)])
    config = {"batch_size": 4, "bucketed": bucketed}
    first = order(utterances, **config)
    assert order(utterances, **config) == first
    assert ids(order(utterances, epoch=1, **config)) != ids(first) != ids(order(utterances, seed=1, **config))


@given(seconds, sizes, st.booleans(), st.booleans(), st.integers(0, 70))
@settings(max_examples=60, deadline=None)
def test_skipping_leaves_out_the_first_batches(durations, size, bucketed, balanced, skip):
    utterances = of_lengths(durations)
    classes = [str(index % 3) for index in range(len(utterances))] if balanced else None
    config = {"batch_size": size, "bucketed": bucketed, "crop_seconds": 1.0}
    whole = order(utterances, classes, **config)
    assert order(utterances, classes, skip=skip, **config) == whole[skip:]


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("bucketed, classes", [(False, False), (True, False), (False, True)])
def test_processes_share_each_batch(as_process, world, bucketed, classes):
    utterances = of_lengths([1 + index % 7 for index in range(40)])
    names = [str(index % 3) for index in range(40)] if classes else None
    config = {"batch_size": 7, "bucketed": bucketed, "crop_seconds": 2.0}  # the last batch has 5
    whole = order(utterances, names, skip=1, **config)
    parts = []
    for rank in range(world):
        as_process(rank, world)
        parts.append(order(utterances, names, skip=1, **config))
    for index, batch in enumerate(whole):
        shares = [part[index] for part in parts]
        assert sorted(draw for share in shares for draw in map(_key, share)) == sorted(map(_key, batch))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def _key(draw) -> tuple[str, float, int]:
    return draw.utterance.id, draw.start, draw.samples


def test_balanced_draws_are_as_likely_for_each_class():
    utterances = of_lengths([1.0] * 1000)
    classes = ["rare" if index < 10 else "usual" if index < 200 else "common" for index in range(1000)]
    drawn: Counter[str] = Counter()
    members: Counter[str] = Counter()
    for epoch in range(9):
        batches = order(utterances, classes, epoch=epoch, batch_size=32)
        assert sum(map(len, batches)) == 1000
        for name in (name for batch in ids(batches) for name in batch):
            drawn[classes[int(name[1:])]] += 1
            members[name] += 1
    # 3000 each are expected; the standard deviation is 45.
    assert drawn.keys() == {"rare", "usual", "common"} and all(abs(count - 3000) < 225 for count in drawn.values())
    rare = [members[f"u{index}"] for index in range(10)]
    assert min(rare) > 200 and max(rare) < 400  # 300 each are expected, the deviation is 16


@given(seconds, st.floats(0.05, 30), st.sampled_from([0.0, 2.5]), st.integers(0, 2))
@settings(max_examples=60, deadline=None)
def test_crops_lie_within(durations, crop, start, epoch):
    for batch in order(of_lengths(durations, start), epoch=epoch, batch_size=5, crop_seconds=crop):
        for utterance, at, samples in batch:
            low, total = round((at - start) * SAMPLE_RATE), round(utterance.duration * SAMPLE_RATE)
            assert samples == min(total, round(crop * SAMPLE_RATE))
            assert 0 <= low <= low + samples <= total


def test_crops_differ_from_epoch_to_epoch_and_reach_both_ends():
    utterances = of_lengths([3.0] * 200)
    starts = [
        {u.id: at for batch in order(utterances, epoch=e, crop_seconds=2.0) for u, at, _ in batch} for e in (0, 1)
    ]
    assert sum(starts[0][name] == starts[1][name] for name in starts[0]) < 5
    assert min(starts[0].values()) < 0.05 and max(starts[0].values()) > 0.95
    assert sum(starts[0].values()) / 200 == pytest.approx(0.5, abs=0.1)


def test_balanced_sampling_crops_one_utterance_in_several_places():
    batches = order(of_lengths([5.0]) * 50, ["a"] * 50, crop_seconds=1.0)
    assert len({at for batch in batches for _, at, _ in batch}) > 40


def test_an_utterance_may_have_a_crop_of_its_own():
    utterances = of_lengths([5.0], custom={"crop_seconds": 1.0}) + of_lengths([5.0, 0.5])[1:]
    samples = {u.id: count for batch in order(utterances) for u, _, count in batch}
    assert samples == {"u0": SAMPLE_RATE, "u1": SAMPLE_RATE // 2}


@given(seconds, sizes)
@settings(max_examples=60, deadline=None)
def test_buckets_are_alike_in_length_and_halved_where_long(durations, size):
    utterances = of_lengths(durations)
    batches = [[u.duration for u, _, _ in batch] for batch in order(utterances, batch_size=size, bucketed=True)]
    half = max(1, size // 2)
    for batch in batches:
        assert len(batch) <= (half if max(batch) > 18.75 else size)
    in_order = sorted(batches, key=lambda batch: (max(batch), min(batch), len(batch)), reverse=True)
    for one, other in zip(in_order, in_order[1:], strict=False):
        assert min(one) >= max(other)
        assert len(one) == (half if max(one) > 18.75 else size)  # only the shortest batch may be smaller


# Evaluation


@given(seconds, sizes, st.integers(0, 12))
@settings(max_examples=60, deadline=None)
def test_an_evaluation_hears_everything_whole_by_length(durations, size, eval_size):
    utterances = of_lengths(durations, start=1.5)
    batches = list(EvalOrder(utterances, DataConfig(batch_size=size, eval_batch_size=eval_size)))
    draws = [draw for batch in batches for draw in batch]
    assert Counter(draw.utterance.id for draw in draws) == Counter(u.id for u in utterances)
    assert [draw.samples for draw in draws] == sorted(round(u.duration * SAMPLE_RATE) for u in utterances)
    assert all(draw.start == 1.5 for draw in draws)
    assert all(len(batch) <= (eval_size or size) for batch in batches)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_an_evaluation(as_process, world):
    utterances = of_lengths([1 + index % 5 for index in range(23)])
    whole = [_key(draw) for batch in EvalOrder(utterances, DataConfig(batch_size=4)) for draw in batch]
    parts = []
    for rank in range(world):
        as_process(rank, world)
        parts.append([_key(draw) for batch in EvalOrder(utterances, DataConfig(batch_size=4)) for draw in batch])
    # Dealt out one by one, which is the order that distributed.gather puts together again.
    assert [part for rank, part in enumerate(parts)] == [whole[rank::world] for rank in range(world)]


def test_an_evaluation_may_hear_the_middle():
    (draws,) = EvalOrder(of_lengths([4.0, 0.5]), DataConfig(eval_crop_seconds=1.0))
    assert [_key(draw) for draw in draws] == [("u1", 0.0, SAMPLE_RATE // 2), ("u0", 1.5, SAMPLE_RATE)]


# Decoding


@pytest.fixture
def speech(speech_files, tmp_path) -> list[Utterance]:
    """Eight FLAC and eight Opus files, copied so that a test can harm them."""
    utterances = []
    for path in speech_files[:8] + speech_files[24:32]:
        copy = shutil.copy(path, tmp_path)
        name = Path(copy).name
        utterances.append(Utterance(name, name, str(copy), duration=audio.probe(copy).duration))
    return utterances


TASK: Any = SimpleNamespace(target=lambda utterance: f"target of {utterance.id}")


def decoded(utterances, task=TASK, waves=None, epoch=0, **options) -> list:
    config = DataConfig(**{"num_workers": 0, "batch_size": 5} | options)
    waves = waves or Waves(gain=10 ** (config.gain_db / 20))
    return list(make_loader(TrainOrder(utterances, config, None, 0, epoch), task, waves, config))


def test_a_batch_is_the_files_samples_with_targets(speech):
    batches = decoded(speech, crop_seconds=1.5)
    drawn = order(speech, batch_size=5, crop_seconds=1.5)
    assert len(batches) == len(drawn) == 4
    for batch, draws in zip(batches, drawn, strict=True):
        assert batch.ids == [draw.utterance.id for draw in draws] == [utterance.id for utterance in batch.utterances]
        assert batch.targets == [f"target of {name}" for name in batch.ids]
        assert batch.wave.dtype == torch.float32 and not batch.dropped
        for wave, length, (utterance, start, samples) in zip(batch.wave, batch.lengths, draws, strict=True):
            low = round(start * SAMPLE_RATE)
            assert length == samples
            assert torch.equal(wave[:length], audio.load(utterance.audio)[low : low + samples])
            assert not wave[length:].any()
    assert decoded(speech, task=None)[0].targets == []


def test_gain(speech):
    plain, quiet = decoded(speech), decoded(speech, gain_db=-3.0)
    for one, other in zip(plain, quiet, strict=True):
        assert one.wave.abs().max() > 0.01
        torch.testing.assert_close(other.wave, one.wave * 10 ** (-3 / 20))


@pytest.mark.parametrize("options", [{"crop_seconds": 1.0}, {"gain_db": -3.0}, {"bucketed": True}])
def test_memory_and_other_processes_change_nothing(speech, options):
    plain = decoded(speech, **options)
    config = DataConfig(**options)
    kept = load_waves(speech, config)
    assert len(kept.kept) == len(speech)
    for other in (decoded(speech, waves=kept, **options), decoded(speech, num_workers=2, **options)):
        assert [batch.ids for batch in other] == [batch.ids for batch in plain]
        for one, two in zip(plain, other, strict=True):
            assert torch.equal(one.wave, two.wave) and torch.equal(one.lengths, two.lengths)
            assert one.targets == two.targets


def test_large_corpora_are_not_kept(speech):
    hours = sum(cast(float, utterance.duration) for utterance in speech) / 3600
    assert not load_waves(speech, DataConfig(memory_hours=0.99 * hours)).kept
    assert load_waves(speech, DataConfig(memory_hours=1.01 * hours)).kept


@pytest.mark.parametrize("keep", [False, True])
def test_what_cannot_be_decoded_any_more_is_left_out_and_named(speech, keep):
    gone, cut = speech[0], speech[1]
    Path(cast(str, gone.audio)).unlink()
    cut.duration = cast(float, cut.duration) + 1  # what was there when it was checked
    waves = load_waves(speech, DataConfig()) if keep else None
    batches = decoded(speech, waves=waves, batch_size=16)
    (batch,) = batches
    assert sorted(batch.ids) == sorted(utterance.id for utterance in speech[2:])
    assert len(batch.dropped) == 2
    reasons = {line.split(": ", 1)[0]: line for line in batch.dropped}
    assert "no such audio file" in reasons[gone.id] and "shorter than when it was checked" in reasons[cut.id]
    assert len(batch.wave) == len(batch.targets) == 14


def test_a_batch_of_which_nothing_can_be_decoded_is_empty(speech):
    for utterance in speech[:2]:
        Path(cast(str, utterance.audio)).unlink()
    (batch,) = decoded(speech[:2])
    assert batch.wave.shape == (0, 0) and not batch.ids and len(batch.dropped) == 2 and not batch.targets
