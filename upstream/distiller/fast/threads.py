"""Work on a CPU shared out by blocks, each of which stays in one core's cache from the first operation to the last."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

_shared = threading.local()


@contextlib.contextmanager
def blocks_alone() -> Iterator[None]:
    """Within it :func:`in_parallel` alone uses several threads: OpenMP's would go on spinning beside its own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    _shared.threads = threads
    try:
        yield
    finally:
        del _shared.threads
        torch.set_num_threads(threads)


def in_parallel(task: Callable[[int, int], None], count: int, size: int) -> None:
    """Call ``task(start, stop)`` for each block of ``size`` up to ``count``, in as many threads as torch uses.

    Inside it torch uses one thread, and gradients are off.
    """
    threads = getattr(_shared, "threads", torch.get_num_threads())
    inference = torch.is_inference_mode_enabled()

    def block(start: int) -> None:
        with torch.inference_mode(inference), torch.no_grad():
            task(start, min(start + size, count))

    starts = range(0, count, size)
    if threads == 1 or len(starts) == 1:
        for start in starts:
            block(start)
    else:
        for _ in _workers(threads, os.getpid()).map(block, starts):
            pass


@functools.lru_cache(maxsize=1)
def _workers(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads of their own for each process: a fork has none of its parent's."""
    together, before = threading.Barrier(threads), torch.get_num_threads()

    def start() -> None:
        torch.get_num_threads()  # a thread's first look takes over the number of the whole process
        torch.set_num_threads(1)
        together.wait()

    workers = ThreadPoolExecutor(threads, "blocks", start)
    for job in [workers.submit(together.wait) for _ in range(threads)]:
        job.result()
    torch.set_num_threads(before)  # what a worker sets also holds for threads that are yet to come
    return workers
