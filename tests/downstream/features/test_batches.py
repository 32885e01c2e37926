"""Batches of kept and of computed hidden states are alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from s3prl_distiller.downstream.core.batches import Waves, make_loader
from s3prl_distiller.downstream.core.draws import EvalOrder, TrainOrder, eval_draw
from s3prl_distiller.downstream.core.expert import _zero_padding
from s3prl_distiller.downstream.features.kept import keep_features

from s3prl_distiller.audio import SAMPLE_RATE
from s3prl_distiller.engine import distributed

from .stubs import AUTOCAST, CPU, config_of, content, keep, means, task_of


def batches(utterances, task, config, found=None, epoch=0, skip=0) -> list[Any]:
    order = TrainOrder(utterances, config.data, None, 7, epoch, skip)
    return list(make_loader(order, task, Waves(), config.data, found))


def check_alike(served: list[Any], plain: list[Any]) -> None:
    """In all but the way that states are come by."""
    assert len(served) == len(plain) > 1
    for one, other in zip(served, plain, strict=True):
        assert one.ids == other.ids and one.targets == other.targets and one.dropped == other.dropped
        assert one.seconds == other.seconds
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
