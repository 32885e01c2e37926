"""Two processes on one machine: what they exchange, and that they train as one process does."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
import torch

from s3prl_distiller.engine import distributed

from .processes import ends, start

# Each process runs this with the number of processes around it, and leaves what it saw in a file.
WORKER = """
import json, os, random, signal, sys, threading, time
import numpy as np
import torch
from torch import nn
from s3prl_distiller.engine import distributed, randomness
from s3prl_distiller.engine.loop import _Stop

torch.set_num_threads(1)
cpu = torch.device("cpu")
assert distributed.start(cpu) == cpu and distributed.start(cpu) == cpu
rank, world = distributed.rank(), distributed.world()
seen = {"rank": rank, "world": world, "main": distributed.is_main()}

seen["highest"] = [distributed.highest(number) for number in (rank, -rank, 7, 15 * (rank == 0))]

seen["total"] = distributed.total(10 + rank)

# The first is asked to stop while it waits for the second.
with _Stop() as stop:
    if rank == 0:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
    time.sleep(1.0 * rank)
    seen["stopping"] = [stop.asked(), stop.asked()]

seen["gathered"] = []
for count in range(9):
    items = [{"id": number, "value": [number] * number} for number in range(count)]
    seen["gathered"].append([item["id"] for item in distributed.gather(items[rank::world])])
# Some of a part may be missing, where they could not be read.
seen["uneven"] = distributed.gather(["a", "b", "c"] if rank == 1 else [])

torch.manual_seed(0)
model = nn.ModuleDict({name: nn.Linear(3, 2) for name in ("both", "one", "none", "frozen")})
other = nn.BatchNorm1d(3)
nn.init.constant_(other.weight, 5.0 + rank)
other.running_mean += 7.0 + rank
distributed.share_weights(other)
seen["weights"] = [other.weight.tolist(), other.running_mean.tolist()]
model["frozen"].requires_grad_(False)
model["short"] = nn.Linear(3, 2).to(torch.bfloat16)
model["both"](torch.full((1, 3), 1.0 + rank)).sum().backward()
model["short"](torch.full((1, 3), 1.0 + rank, dtype=torch.bfloat16)).sum().backward()
if rank == 1:
    model["one"](torch.full((1, 3), 4.0)).sum().backward()
distributed.average_gradients(model)
seen["gradients"] = {n: None if p.grad is None else p.grad.tolist() for n, p in model.named_parameters()}
seen["types"] = {n: str(p.grad.dtype) for n, p in model.named_parameters() if p.grad is not None}

# A batch dealt out, each process with the mean loss of its part times its share, as the downstream expert has it.
x, y = torch.randn(7, 3), torch.randn(7, 2)
model.zero_grad(set_to_none=True)
part = slice(rank, None, world)
loss = (model["both"](x[part]) - y[part]).pow(2).mean() * (len(x[part]) * world / len(x))
loss.backward()
distributed.average_gradients(model)
seen["shared"] = model["both"].weight.grad.tolist()

draws = []
for number in (3, 3, 4):
    randomness.seed(number)
    randomness.part_ways(number)
    draws.append([random.random(), float(np.random.rand()), float(torch.rand(()))])

started = time.monotonic()
with distributed.main_first():
    time.sleep(1.0 if rank == 0 else 0.0)
    seen["waited"] = time.monotonic() - started
distributed.wait()
distributed.stop()
seen["after"] = [distributed.rank(), distributed.world(), distributed.gather([1, 2])]
seen["draws"] = draws
with open(sys.argv[1], "w") as file:
    json.dump(seen, file)
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("processes")
    ended = ends(start(WORKER, [str(folder / f"{rank}.json") for rank in range(2)]))
    assert [status for status, _, _ in ended] == [0, 0], "\n".join(errors for *_, errors in ended)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_there_are_two_and_one_of_them_writes(seen: list[dict[str, Any]]) -> None:
    assert [(one["rank"], one["world"], one["main"]) for one in seen] == [(0, 2, True), (1, 2, False)]
    assert [one["after"] for one in seen] == [[0, 1, [1, 2]]] * 2


def test_highest(seen: list[dict[str, Any]]) -> None:
    """Such as the signal that one of them got."""
    assert [one["highest"] for one in seen] == [[1, 0, 7, 15]] * 2


def test_a_signal_during_an_exchange_stops_all_after_the_next(seen: list[dict[str, Any]]) -> None:
    assert [one["stopping"] for one in seen] == [[False, True]] * 2


def test_total(seen: list[dict[str, Any]]) -> None:
    assert [one["total"] for one in seen] == [21, 21]


def test_all_start_from_the_weights_of_the_main_one(seen: list[dict[str, Any]]) -> None:
    assert [one["weights"] for one in seen] == [[[5.0] * 3, [7.0] * 3]] * 2


def test_each_draws_random_numbers_of_its_own(seen: list[dict[str, Any]]) -> None:
    """The main process those of a run of one process; all of them decided by the seed."""
    assert [one["draws"][0] for one in seen] == [one["draws"][1] for one in seen]
    numbers = [number for one in seen for draws in one["draws"][1:] for number in draws]
    assert len(set(numbers)) == len(numbers) == 12
    torch.manual_seed(3)
    assert seen[0]["draws"][0][2] == float(torch.rand(()))


def test_the_main_process_goes_first(seen: list[dict[str, Any]]) -> None:
    assert all(one["waited"] >= 0.9 for one in seen)


def test_gathered_items_are_in_the_order_they_were_dealt_in(seen: list[dict[str, Any]]) -> None:
    assert [one["gathered"] for one in seen] == [[list(range(count)) for count in range(9)]] * 2
    assert [one["uneven"] for one in seen] == [["a", "b", "c"]] * 2


def test_gradients_are_means(seen: list[dict[str, Any]]) -> None:
    """One that a process does not have counts as zero; what is not trained gets none; types stay."""
    assert seen[0]["gradients"] == seen[1]["gradients"] and seen[0]["types"] == seen[1]["types"]
    found = seen[0]["gradients"]
    assert found["both.weight"] == [[1.5] * 3] * 2 and found["both.bias"] == [1.0] * 2
    assert found["short.weight"] == [[1.5] * 3] * 2 and seen[0]["types"]["short.weight"] == "torch.bfloat16"
    assert found["one.weight"] == [[2.0] * 3] * 2 and found["one.bias"] == [0.5] * 2
    assert found["none.weight"] == [[0.0] * 3] * 2
    assert found["frozen.weight"] is None and found["frozen.bias"] is None


def test_a_batch_dealt_out_has_the_gradient_of_the_whole(seen: list[dict[str, Any]]) -> None:
    torch.manual_seed(0)
    layers = {name: torch.nn.Linear(3, 2) for name in ("both", "one", "none", "frozen")}
    torch.nn.Linear(3, 2)
    x, y = torch.randn(7, 3), torch.randn(7, 2)
    (layers["both"](x) - y).pow(2).mean().backward()
    grad = layers["both"].weight.grad
    assert grad is not None
    for one in seen:
        torch.testing.assert_close(torch.tensor(one["shared"]), grad, atol=1e-6, rtol=1e-5)


def test_one_process_needs_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    cpu = torch.device("cpu")
    assert distributed.start(cpu) == cpu
    assert (distributed.rank(), distributed.world(), distributed.is_main()) == (0, 1, True)
    assert distributed.gather([3, 1, 2]) == [3, 1, 2] and distributed.highest(-4) == -4
    model = torch.nn.Linear(2, 1)
    distributed.average_gradients(model)
    assert model.weight.grad is None
    distributed.wait()
    distributed.stop()


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"4 processes or more, and there are 2 GPUs.*--nproc_per_node"):
        distributed.start(torch.device("cuda"))


def test_on_a_gpu_who_misses_another_says_so_and_ends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """To unwind would be to wait for ever: NCCL's kernel never ends."""
    monkeypatch.setattr(distributed.dist, "get_backend_config", lambda: "cpu:gloo,cuda:nccl")
    monkeypatch.setattr(distributed.os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as end, distributed._others():
        raise RuntimeError("Connection closed by peer")
    assert end.value.code == 1 and "another process of this run has ended" in caplog.text and "-a" in caplog.text
