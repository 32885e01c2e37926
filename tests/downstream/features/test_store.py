"""The store of hidden states: damage, a budget, a full disk, a kill, several processes."""

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

import pytest
import safetensors.torch
import torch
from s3prl_distiller.downstream.core.batches import Waves, make_loader
from s3prl_distiller.downstream.core.draws import EvalOrder
from s3prl_distiller.downstream.features import filling
from s3prl_distiller.downstream.features.store import FeatureStore

from .stubs import Means, config_of, content, keep, means, plainly, same, task_of, whole


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
