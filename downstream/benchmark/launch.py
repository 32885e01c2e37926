"""Processes: commands that wait for a free place on a device, are watched, stopped and begun again."""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from s3prl_distiller import checkpoint

SAID = "stdout.txt"
FAILED = "failed.json"
_POLL = 0.1


@dataclass(frozen=True)
class Job:
    """A command.

    Attributes:
        folder: where what it says is kept.
        result: the file that is there once it is done.
        expected: seconds; the longest is begun first.
    """

    name: str
    command: list[str]
    folder: Path
    result: Path
    expected: float = 0.0


@dataclass
class Ended:
    """How a job ended; ``reason`` says why it failed, None where it did not."""

    job: Job
    seconds: float
    exit: int
    reason: str | None


@dataclass
class Queue:
    """Runs jobs, one in each slot at a time.

    Args:
        slots: what each adds to the environment, such as the GPU that may be seen.
        on_start: called with each job before it starts.
        on_end: called with each that ended by itself.
        held: file descriptors that the jobs hold open as long as they live.

    Attributes:
        stopped: the signal that stopped it.
    """

    slots: Sequence[Mapping[str, str]]
    on_start: Callable[[Job], Any] = lambda job: None
    on_end: Callable[[Ended], Any] = lambda ended: None
    held: Sequence[int] = ()
    stopped: int | None = None
    _running: dict[int, tuple[Job, subprocess.Popen[bytes], float]] = field(default_factory=dict)

    def run(self, jobs: Sequence[Job]) -> list[Ended]:
        """Run jobs until all have ended, or, after SIGINT or SIGTERM, until those that run have stopped."""
        waiting = sorted(jobs, key=lambda job: -job.expected)
        ended: list[Ended] = []
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            while self._running or (waiting and self.stopped is None):
                for place in range(len(self.slots)):
                    if place not in self._running and waiting and self.stopped is None:
                        self._start(place, waiting.pop(0))
                for place, (job, process, started) in list(self._running.items()):
                    if process.poll() is not None:
                        del self._running[place]
                        ended += self._end(job, process.returncode, time.monotonic() - started)
                time.sleep(_POLL if self._running else 0)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._send(signal.SIGKILL)
        return ended

    def _start(self, place: int, job: Job) -> None:
        self.on_start(job)
        process = start(job, {**os.environ, **self.slots[place]}, self.held)
        self._running[place] = (job, process, time.monotonic())
        if self.stopped is not None:  # while it was being started
            self._send(signal.SIGTERM)

    def _end(self, job: Job, status: int, seconds: float) -> list[Ended]:
        if self.stopped is not None and not job.result.is_file():
            return []
        ended = Ended(job, seconds, status, record(job, status))
        self.on_end(ended)
        return [ended]

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Once: let them save. A second Ctrl-C does not wait for that."""
        again = self.stopped is not None and number == signal.SIGINT
        self.stopped = self.stopped or number
        self._send(signal.SIGKILL if again else signal.SIGTERM)

    def _send(self, number: int) -> None:
        for _, process, _ in self._running.values():
            # Only the process itself can save; to kill means all that it has started.
            with suppress(ProcessLookupError):
                if process.returncode is None:
                    (os.killpg if number == signal.SIGKILL else os.kill)(process.pid, number)


def start(job: Job, environment: Mapping[str, str], held: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    """Start a job in a session of its own: the terminal's Ctrl-C is for whoever watches it."""
    job.folder.mkdir(parents=True, exist_ok=True)
    with (job.folder / SAID).open("wb") as said:
        return subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            pass_fds=tuple(held),
            start_new_session=True,
        )


def record(job: Job, status: int) -> str | None:
    """Why a job that has ended failed, also written to its folder; None where it is done."""
    if status == 0 and job.result.is_file():
        (job.folder / FAILED).unlink(missing_ok=True)
        return None
    reason = why(status, (job.folder / SAID).read_text("utf-8", "replace"))
    failure = {"reason": reason, "command": shlex.join(job.command), "exit": status}
    checkpoint.save_json(failure, job.folder / FAILED)
    return reason


def why(status: int, said: str) -> str:
    """One line on why a process failed.

    Args:
        status: its exit status; negative: the signal that ended it.
        said: stdout and stderr.
    """
    lines = [line.strip() for line in re.split(r"[\r\n]+", said) if line.strip()]
    errors = [line.removeprefix("error:").strip() for line in lines if line.startswith("error:")]
    if errors:
        reason = errors[-1]
    elif status < 0:
        name = signal.Signals(-status).name if -status in set(signal.Signals) else str(-status)
        hint = ", as a system does that is out of memory" if -status == signal.SIGKILL else ""
        return f"it was ended by the signal {name}{hint}"
    elif status == 0:
        return "it was stopped before its end"
    else:
        # A traceback ends with the error; what is indented belongs to it.
        last = next((line for line in reversed(lines) if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)), "")
        reason = last or (lines[-1] if lines else f"exit status {status}")
    if re.search(r"OutOfMemory|MemoryError|out of memory|memory is full", reason):
        reason = f"out of memory: {reason}"
    return reason[:500]


@contextmanager
def alone(folder: Path) -> Iterator[int]:
    """Hold a folder as long as the block, and the jobs that are given the descriptor, live.

    Raises:
        ValueError: someone else holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another command works on {folder}, or runs that it began still do: wait for them, or end them"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield file.fileno()
