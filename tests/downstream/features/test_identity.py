"""Hidden states of other weights or other audio are never served."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import safetensors.torch
import soundfile
import torch
from s3prl_distiller.downstream.core.batches import Waves, make_loader
from s3prl_distiller.downstream.core.config import UpstreamConfig
from s3prl_distiller.downstream.core.draws import EvalOrder
from s3prl_distiller.downstream.core.upstream import load_upstream

from s3prl_distiller.audio import SAMPLE_RATE
from s3prl_distiller.engine.loop import precision

from .stubs import CPU, NANO, config_of, content, keep, means, plainly, same, task_of, whole


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
