"""Batches: their limits, their order, their crops and their independence of how they are made."""

import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from s3prl_distiller import audio
from s3prl_distiller.data import Batch, DataConfig
from s3prl_distiller.data.config import worker_count
from s3prl_distiller.data.loader import ALL, Limits, Part, TrainOrder, ValidOrder, bucket_edges, make_loader, tar_shards
from s3prl_distiller.data.utterance import TarMember, Utterance


def utterances(lengths: list[int]) -> list[Utterance]:
    return [Utterance(f"u{i}", f"u{i}", f"u{i}.wav", duration=n / 16000) for i, n in enumerate(lengths)]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(800, 640_000) | st.sampled_from([16_000, 250_000]), min_size=1, max_size=300),
    crop=st.integers(800, 250_000),
    batch_size=st.integers(1, 32),
    batch_seconds=st.floats(15.625, 400),
    num_buckets=st.integers(1, 30),
    epoch=st.integers(0, 5),
)
@example([16_000] * 50, 250_000, 8, 20.0, 20, 0)
@example([800, 250_000], 250_000, 2, 15.625, 1, 0)
def test_batches_keep_their_limits_and_hold_each_utterance_once(
    lengths, crop, batch_size, batch_seconds, num_buckets, epoch
):
    limits = Limits(crop, batch_size, batch_seconds, num_buckets)
    listed = utterances(lengths)
    for order in (TrainOrder(listed, limits, 7, epoch), ValidOrder(listed, limits)):
        batches = list(order)
        requests = [request for batch in batches for request in batch]
        assert sorted(r.id for r in requests) == sorted(u.id for u in listed)
        for batch in batches:
            assert 1 <= len(batch) <= batch_size
            assert len(batch) * max(r.samples for r in batch) <= batch_seconds * 16000
        for request in requests:
            total = lengths[int(request.id[1:])]
            assert request.samples == min(total, crop)
            assert 0 <= round(request.start * 16000) <= total - request.samples
    assert all(round(r.start * 16000) == 0 for r in requests), "validation takes beginnings"
    assert [r.samples for r in requests] == sorted(r.samples for r in requests)


def test_lengths_stay_mixed_and_padding_small():
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.gamma(4.0, 50_000, 20_000).astype(int) + 8000, 250_000).tolist()
    limits = Limits(250_000, 24, 375.0, 20)
    edges = bucket_edges(lengths, limits)
    assert len(edges) == 20 and edges == sorted(edges) and edges[-1] == max(lengths)
    batches = list(TrainOrder(utterances(lengths), limits, 0, 0))
    padded = sum(len(b) * max(r.samples for r in b) for b in batches)
    assert sum(lengths) / padded > 0.95
    # Lengths are as mixed at the end of an epoch as at its beginning.
    thirds = [np.mean([b[0].samples for b in part]) for part in np.array_split(np.array(batches, dtype=object), 3)]
    assert max(thirds) / min(thirds) < 1.15


def test_order_is_decided_by_seed_and_epoch_alone():
    lengths = np.random.default_rng(1).integers(8000, 400_000, 400).tolist()
    limits = Limits(250_000, 24, 375.0, 20)

    def order(seed: int, epoch: int, skip: int = 0) -> list:
        return list(TrainOrder(utterances(lengths), limits, seed, epoch, skip))

    first = order(0, 0)
    random.seed(5)
    torch.manual_seed(5)
    assert order(0, 0) == first
    epochs = [order(0, 1), order(1, 0), order(0, 2)]
    assert all(other != first for other in epochs) and epochs[0] != epochs[1]
    starts = [{r.id: r.start for b in batches for r in b} for batches in (first, epochs[0])]
    moved = [starts[0][u.id] != starts[1][u.id] for u in utterances(lengths) if u.duration * 16000 > 260_000]
    assert len(moved) > 50 and all(moved), "crops differ from epoch to epoch"
    for skip in (0, 1, len(first) // 2, len(first), len(first) + 3):
        assert order(0, 0, skip) == first[skip:]


@pytest.mark.parametrize("world", [2, 3, 40])
def test_processes_have_parts_of_the_same_batches(world):
    """About as much of each as the others, or with too few utterances nothing at all."""
    lengths = np.random.default_rng(1).integers(8000, 400_000, 400).tolist()
    listed, limits = utterances(lengths), Limits(250_000, 24, 375.0, 4)
    whole = list(TrainOrder(listed, limits, 0, 1))
    parts = [list(TrainOrder(listed, limits, 0, 1, 2, Part(rank, world))) for rank in range(world)]
    for batch, *shares in zip(whole[2:], *parts, strict=True):
        assert sorted(request for share in shares for request in share) == sorted(batch)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        audio_of = [sum(request.samples for request in share) for share in shares]
        assert max(audio_of) - min(audio_of) <= max(request.samples for request in batch)
    valid = list(ValidOrder(listed, limits))
    dealt = [list(ValidOrder(listed, limits, Part(rank, world))) for rank in range(world)]
    assert dealt == [valid[rank::world] for rank in range(world)]


def in_tars(count: int, per_tar: int) -> list[Utterance]:
    lengths = np.random.default_rng(2).integers(16_000, 250_000, count).tolist()
    return [
        Utterance(f"u{i}", f"u{i}", TarMember(f"{i // per_tar}.tar", f"u{i}.wav", 0, 0), duration=n / 16000)
        for i, n in enumerate(lengths)
    ]


def test_shards_are_opened_one_after_the_other(monkeypatch):
    """In an order of their own each epoch; each utterance is used once, about when its tar is."""
    monkeypatch.setattr("s3prl_distiller.data.loader._POOL", 500)
    listed, limits = in_tars(6000, 100), Limits(250_000, 8, 375.0, 5)
    shards = tar_shards(listed)
    assert shards == [range(low, low + 100) for low in range(0, 6000, 100)]

    def order(epoch: int, skip: int = 0, part: Part = ALL) -> list[list[int]]:
        batches = TrainOrder(listed, limits, 3, epoch, skip, part, shards)
        return [[int(request.id[1:]) for request in batch] for batch in batches]

    first = order(0)
    used = [index for batch in first for index in batch]
    assert sorted(used) == list(range(6000)) and order(0) == first and order(0, 30) == first[30:]
    for rank in range(2):
        assert order(0, 0, Part(rank, 2)) == [batch[rank::2] for batch in first]
    tars = list(dict.fromkeys(index // 100 for index in used))
    again = list(dict.fromkeys(index // 100 for batch in order(1) for index in batch))
    assert tars != sorted(tars) and again != tars
    # Drawn from a pool of five tars: never ahead of it, and most of them soon.
    places = {tar: place for place, tar in enumerate(tars)}
    late = [place // 100 - places[index // 100] for place, index in enumerate(used)]
    assert min(late) >= -6 and abs(np.mean(late)) < 2 and np.quantile(late, 0.99) < 25
    shuffled = [int(request.id[1:]) for batch in TrainOrder(listed, limits, 3, 0) for request in batch]
    assert len({index // 100 for index in shuffled[:500]}) == 60, "without shards, all are opened at once"


def test_processes_of_a_machine_share_its_cores(monkeypatch):
    monkeypatch.setattr("s3prl_distiller.data.config.cores", lambda: 16)
    found = []
    for processes in (1, 2, 4, 16, 64):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        found.append(worker_count(-1))
    assert found == [15, 7, 3, 0, 0] and worker_count(5) == 5


def test_crops_cover_an_utterance_evenly():
    long, limits = utterances([480_000]), Limits(160_000, 1, 100.0, 1)
    starts = [next(iter(TrainOrder(long, limits, 0, epoch)))[0].start for epoch in range(200)]
    assert 0 <= min(starts) < 1 and 19 < max(starts) <= 20 and abs(np.mean(starts) - 10) < 1.5


def test_many_utterances_are_ordered_quickly():
    """A sixth of LibriSpeech: the order of an epoch costs little, so resuming does too."""
    lengths = np.random.default_rng(0).integers(16_000, 560_000, 47_000).tolist()
    listed = utterances(lengths)
    begun = time.process_time()
    batches = list(TrainOrder(listed, Limits(250_000, 24, 375.0, 20), 0, 0))
    assert time.process_time() - begun < 20
    assert sum(map(len, batches)) == 47_000


def same(one: Batch, other: Batch) -> bool:
    return (
        torch.equal(one.wave, other.wave)
        and torch.equal(one.lengths, other.lengths)
        and (one.ids, one.dropped) == (other.ids, other.dropped)
    )


def test_skipping_and_workers_change_nothing(folder, make):
    runs = {n: make(folder, num_workers=n, batch_size=3, crop_samples=48_000) for n in (0, 2)}
    whole = list(runs[0].train_loader(3))
    assert len(whole) > 4 and runs[0].fingerprint == runs[2].fingerprint
    for workers, corpus in runs.items():
        for skip in (0, 1, 3, len(whole)) if workers == 0 else (0, 2):
            tail = list(corpus.train_loader(3, skip=skip))
            assert len(tail) == len(whole) - skip
            assert all(map(same, tail, whole[skip:])), (workers, skip)
    valid = [list(corpus.valid_loader()) for corpus in runs.values()]
    assert all(map(same, *valid)) and len(valid[0]) == len(valid[1])
    assert not all(map(same, runs[0].train_loader(4), whole))


def test_a_worker_writes_batches_where_the_training_process_reads_them(folder, make):
    """The zeros after an utterance, and rows that a file which fails leaves over, are as in this process."""
    corpus = make(folder, num_workers=2, batch_size=4)
    victim = next(iter(corpus.train_order(0)))[1]
    os.truncate(victim.audio, 300)
    for order in (corpus.train_order(0), [[victim]], [[]]):
        here, there = list(make_loader(order, 0)), list(make_loader(order, 1))
        for one, other in zip(here, there, strict=True):
            assert same(one, other) and one.dropped == other.dropped
            assert other.wave.is_contiguous() and (other.wave.is_shared() or not other.wave.numel())
            for wave, length in zip(other.wave, other.lengths, strict=True):
                assert not wave[length:].any()
    assert here[0].wave.shape == (0, 0)


def test_skipped_batches_are_not_decoded(folder, make):
    corpus = make(folder, batch_size=2)
    order = [batch.ids for batch in corpus.train_loader(0)]
    for name in {name for batch in order[:3] for name in batch}:
        (folder / name).unlink()
    assert [b.dropped for b in corpus.train_loader(0, skip=3)] == [[]] * (len(order) - 3)


def test_a_batch_holds_what_the_files_hold(folder, make):
    crop = 40_000
    for batch in make(folder, batch_size=5, crop_samples=crop).train_loader(0):
        assert batch.wave.dtype == torch.float32 and batch.lengths.dtype == torch.int64
        assert batch.wave.shape == (len(batch.ids), int(batch.lengths.max()))
        for name, wave, length in zip(batch.ids, batch.wave, batch.lengths, strict=True):
            whole = audio.load(folder / name)
            assert length == min(len(whole), crop) and not wave[length:].any()
            places = np.flatnonzero((whole[: len(whole) - length + 1] == wave[0]).numpy())
            assert any(torch.equal(whole[at : at + length], wave[:length]) for at in places), "an unbroken stretch"
        moved = batch.to("cpu")
        assert same(moved, batch)


def test_global_random_state_is_left_alone(folder, make):
    corpus = make(folder, num_workers=2, batch_size=4)
    for workers in (0, 2):
        corpus._config.num_workers = workers
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        threads = torch.get_num_threads()
        for loader in (corpus.train_loader(0), corpus.valid_loader()):
            assert sum(len(batch.ids) for batch in loader)
        after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
        assert torch.get_num_threads() == threads


def test_it_works_under_spawn(folder):
    files = sorted(folder.glob("*.flac"))
    listed = [Utterance(p.name, p.name, str(p), duration=audio.probe(p).duration) for p in files]
    order = TrainOrder(listed, Limits(32_000, 2, 100.0, 4), 0, 0)
    assert list(pickle.loads(pickle.dumps(order))) == list(order)  # noqa: S301
    spawned = make_loader(order, 1)
    spawned.multiprocessing_context = "spawn"
    assert all(map(same, spawned, make_loader(order, 0)))


SCRIPT = """
import signal, sys, time
from pathlib import Path
from s3prl_distiller.data import DataConfig, prepare
if __name__ == "__main__":
    config = DataConfig(path=sys.argv[1], num_workers=2, batch_size=1, cache_dir=sys.argv[2])
    corpus = prepare(config, crop_samples=32000, seed=0, report_dir=Path(sys.argv[2]), progress=False)
    stops = []
    for batch in corpus.train_loader(0):
        signal.signal(signal.SIGINT, lambda *_: stops.append(1))
        print("batch", flush=True)
        time.sleep(0.1)
    sys.exit(7 if stops else 1)
"""


def test_an_interrupt_is_left_to_the_training_process(folder, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(tmp_path / "script.py"), str(folder), str(tmp_path / "cache")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    assert process.stdout is not None and process.stdout.readline() == "batch\n"
    os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C in a terminal does
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (7, ""), "the workers went on and left no traceback"
    assert output.count("batch") > 10


def test_the_config_is_an_omegaconf_section(folder, make):
    config = OmegaConf.structured(DataConfig)
    merged = OmegaConf.merge(config, {"batch_size": 3, "sets": ["deep"], "num_workers": 0})
    options = {key: merged[key] for key in merged if key not in ("path", "cache_dir")}
    corpus = make(folder, **options)
    assert max(len(batch.ids) for batch in corpus.train_loader(0)) == 3
    for key, value in {"batch_size": 0, "batch_seconds": 0.0, "valid_share": 1.5, "check": "some"}.items():
        with pytest.raises(ValueError, match=f"data.{key} is "):
            make(folder, **{key: value})
    with pytest.raises(ValueError, match=r"data.shuffle is 'none': it is 'all' or 'shards'"):
        make(folder, shuffle="none")
    with pytest.raises(ValueError, match=r"data.shuffle is 'shards', but .* lies in no tar of a Shar folder"):
        make(folder, shuffle="shards")
    with pytest.raises(ValueError, match=r"data.num_workers is -2"):
        make(folder, num_workers=-2)
    with pytest.raises(ValueError, match=r"data.min_seconds is 50"):
        make(folder, min_seconds=50.0)
    with pytest.raises(ValueError, match=r"data.batch_seconds is 1.0, less than one utterance of 4.000 s"):
        make(folder, batch_seconds=1.0)
    with pytest.raises(ValueError, match="crop is 0"):
        make(folder, crop_samples=0)


def test_a_file_cut_short_after_the_check_is_dropped(folder, make):
    corpus = make(folder, crop_samples=10**7, batch_size=1)
    victim = next(iter(corpus.train_loader(0))).ids[0]
    wave = audio.load(folder / victim)[:8000].numpy()
    soundfile.write(folder / victim, wave, 16000, format="FLAC")
    first = next(iter(corpus.train_loader(0)))
    assert first.ids == [] and "shorter than when it was checked" in first.dropped[0]
