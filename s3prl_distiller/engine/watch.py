"""Notices that another process of a run is gone, whatever this one is waiting for."""

from __future__ import annotations

import datetime
import threading
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist

from . import distributed

GRACE = 5.0
"""Seconds that a process which has lost another has to end by itself: it may be failing for the same reason."""
_FOREVER = datetime.timedelta(days=3650)
_DONE, _GONE = 0.0, 1.0


class Watch:
    """While it is open, this process says so and ends where another has died or failed.

    A GPU waits for a dead process for ever, and whatever asks that GPU for anything waits with it. So a thread listens
    to the next process in a ring, on a connection of its own, which breaks when that one dies. What it hears it passes
    on to the one before.
    """

    def __enter__(self) -> Watch:
        self._leaving, self._once = threading.Event(), threading.Lock()
        if distributed.world() > 1:
            self._group: Any = dist.new_group(backend="gloo", timeout=_FOREVER)
            self._thread = threading.Thread(target=self._listen, name="watch", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: Any) -> None:
        self._leaving.set()
        if distributed.world() > 1:
            self._tell(_DONE if error is None else _GONE)
            # The next one leaves too, or hears by way of the others that it must: until then the connection is needed.
            self._thread.join(None if error is None else GRACE)

    def _tell(self, message: float) -> None:
        if not self._once.acquire(blocking=False):
            return  # it was told already, and no longer listens
        with suppress(RuntimeError):  # who is gone need not be told
            dist.send(torch.tensor(message), (distributed.rank() - 1) % distributed.world(), group=self._group)

    def _listen(self) -> None:
        message = torch.tensor(_GONE)
        with suppress(RuntimeError):  # the connection broke
            dist.recv(message, (distributed.rank() + 1) % distributed.world(), group=self._group)
        if message == _GONE:
            self._tell(_GONE)
            if not self._leaving.wait(GRACE):
                distributed.end()
