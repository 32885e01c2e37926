"""Processes that wait where nobody can interrupt them, as for a GPU, hear of another's end."""

from __future__ import annotations

import signal
import time

import pytest

from s3prl_distiller.engine.watch import GRACE

from .processes import ends, start

# The argument is what it is to do. A lock that is never free stands for the GPU: neither signals nor messages of other
# processes reach who waits for it.
WORKER = """
import sys, threading, time
import torch
from s3prl_distiller.engine import distributed
from s3prl_distiller.engine.watch import Watch

distributed.start(torch.device("cpu"))
todo = sys.argv[1]
with Watch():
    print("watching", flush=True)
    if todo == "wait":
        lock = threading.Lock()
        lock.acquire()
        while True:
            try:
                lock.acquire()
            except BaseException:
                pass
    if todo == "fail":
        raise ValueError("of its own")
    if todo == "late":
        time.sleep(1.0)
print("left", flush=True)
"""


def test_who_is_killed_is_missed_by_all() -> None:
    """By its neighbour in the ring and by the others, at about the same time."""
    processes = start(WORKER, ["wait", "wait", "wait"])
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "watching\n"
    processes[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    (first, victim, last) = ends(processes)
    assert GRACE - 1 < time.monotonic() - killed < GRACE + 10
    assert victim[0] == -signal.SIGKILL
    for status, out, errors in (first, last):
        assert status == 1 and not out, errors
        assert errors.count("error: another process of this run has ended") == 1 and "-a goes on" in errors


def test_a_failure_is_told_by_who_failed_and_missed_by_who_waits() -> None:
    (waiting, failed) = ends(start(WORKER, ["wait", "fail"]))
    assert failed[0] == 1 and "ValueError: of its own" in failed[2] and "another process" not in failed[2]
    assert waiting[0] == 1 and "another process of this run has ended" in waiting[2]


@pytest.mark.parametrize("todo", [("fail", "fail"), ("leave", "late", "leave"), ("late", "leave")])
def test_who_leaves_by_itself_is_not_missed(todo: tuple[str, ...]) -> None:
    """Neither those that fail for one reason nor those that are done, one later than another."""
    for status, out, errors in ends(start(WORKER, todo)):
        assert "another process" not in errors
        assert (status, "left\n" in out) == ((1, False) if "fail" in todo else (0, True)), errors
