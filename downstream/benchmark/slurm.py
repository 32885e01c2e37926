"""Jobs for a cluster: one array of them, submitted by submitit."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import s3prl_distiller

from .launch import Job, record, start


@dataclass
class Resumable:
    """A job as submitit runs it: a failure is written down, and at the end of its time it saves and is queued again."""

    job: Job

    def __call__(self) -> int:
        self.process = start(self.job, os.environ)
        status = self.process.wait()
        reason = record(self.job, status)
        if reason is not None:
            raise RuntimeError(f"{self.job.name}: {reason}")
        return status

    def checkpoint(self) -> Any:
        from submitit.helpers import DelayedSubmission  # pyright: ignore[reportMissingImports]

        # Called by a signal that interrupts __call__ in its wait, whose lock a wait here would never get.
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.process.pid, signal.SIGTERM)
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Resumable(self.job))


_SLURM = {"partition": "slurm_partition", "gpus": "gpus_per_node", "cpus": "cpus_per_task", "mem": "mem_gb"}


def options(text: str | None, at_once: int | None) -> tuple[str, dict[str, Any]]:
    """Of ``partition=gpu,time=8:00:00,gpus=1``: submitit's cluster, and its parameters.

    Args:
        at_once: how many jobs of the array may run at a time; None: all.

    Raises:
        ValueError: a value is malformed.
    """
    found: dict[str, Any] = {"timeout_min": 24 * 60, "gpus_per_node": 1, "name": "superb"}
    further: dict[str, str] = {}
    cluster = "slurm"
    for part in filter(None, (text or "").split(",")):
        key, equals, value = part.partition("=")
        if not equals or not value:
            raise ValueError(f"--slurm {part!r} is not of the form key=value, such as partition=gpu,time=8:00:00")
        if key == "cluster":
            cluster = value
        elif key == "time":
            found["timeout_min"] = _minutes(value)
        elif key in _SLURM:
            try:
                found[_SLURM[key]] = value if key == "partition" else int(value.lower().removesuffix("gb"))
            except ValueError:
                raise ValueError(f"--slurm {part}: {key} is a whole number") from None
        else:
            further[key] = value
    if at_once is not None:
        found["slurm_array_parallelism"] = at_once
    if further:
        found["slurm_additional_parameters"] = further
    return cluster, found


def _minutes(text: str) -> int:
    """Of minutes, or of HOURS:MINUTES:SECONDS."""
    try:
        parts = [int(part) for part in text.split(":")]
    except ValueError:
        parts = []
    if len(parts) not in (1, 3) or min(parts) < 0:
        raise ValueError(f"--slurm time={text}: give minutes, or HOURS:MINUTES:SECONDS")
    return max(1, parts[0] if len(parts) == 1 else 60 * parts[0] + parts[1] + (parts[2] > 0))


def check() -> None:
    """Raises ValueError where there is no submitit."""
    if "submitit" in sys.modules and sys.modules["submitit"] is None or importlib.util.find_spec("submitit") is None:
        raise ValueError('--launch slurm needs submitit: pip install "submitit>=1.5" (the extra slurm has it)')


def _find_in_checkout() -> None:
    """Jobs import this module, from a checkout too, where they find it only by the environment that they inherit."""
    root = str(Path(s3prl_distiller.__file__).resolve().parents[1])
    others = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if root not in others:
        os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, others)])


def submit(jobs: Sequence[Job], folder: Path, cluster: str, options: Mapping[str, Any]) -> list[str]:
    """Submit jobs as one array; their ids.

    Raises:
        ValueError: there is no submitit, no SLURM, or it does not take the options.
    """
    check()
    import submitit  # pyright: ignore[reportMissingImports]

    _find_in_checkout()
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(**options)
        with executor.batch():
            submitted = [executor.submit(Resumable(job)) for job in jobs]
    except (RuntimeError, OSError, NameError, TypeError, ValueError, subprocess.CalledProcessError) as error:
        raise ValueError(f"the jobs could not be submitted: {' '.join(str(error).split())[:300]}") from None
    return [str(job.job_id) for job in submitted]
