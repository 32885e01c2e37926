"""Real command lines on seconds of speech: how they are started, watched, killed and read afterwards."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "s3prl_distiller" / "quickstart"
TINY = {
    "task.sequence_length": 16000,
    "data.batch_size": 2,
    "data.num_workers": 1,
    "data.valid_seconds": 8,
    "runner.total_steps": 6,
    "runner.save_step": 2,
    "runner.log_step": 2,
    "runner.eval_step": 3,
}


@dataclass
class Finished:
    """What a command left: its exit status (negative: the signal that ended it), stdout and stderr."""

    status: int
    out: str
    err: str

    def refusal(self) -> str:
        """The one line that says what the user can mend; fails where the command did anything else."""
        errors = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert self.status == 2, f"exit status {self.status}\n{self.out}\n{self.err}"
        assert len(errors) == 1, self.err
        assert self.err.rstrip().splitlines()[-1] == errors[0], self.err
        assert "Traceback" not in self.err, self.err
        return errors[0]

    def success(self) -> Finished:
        assert self.status == 0, f"exit status {self.status}\n{self.out}\n{self.err}"
        assert "Traceback" not in self.err, self.err
        return self


@dataclass
class Running:
    """A command that has been started."""

    pid: int
    files: Path

    @property
    def err(self) -> str:
        return self.files.with_suffix(".err").read_text("utf-8", "replace")

    @property
    def alive(self) -> bool:
        return not self.files.with_suffix(".status").exists()

    def wait(self, seconds: float = 120) -> Finished:
        self.until(lambda: False, seconds)
        status = int(self.files.with_suffix(".status").read_text())
        return Finished(status, self.files.with_suffix(".out").read_text("utf-8", "replace"), self.err)

    def until(self, event: Callable[[], bool], seconds: float = 120) -> bool:
        """Wait for an event; returns whether it came before the command ended."""
        end = time.monotonic() + seconds
        while self.alive:
            if event():
                return True
            if time.monotonic() > end:
                self.send(signal.SIGKILL, group=True)
                pytest.fail(f"the command still runs after {seconds} s\n{self.err}")
            time.sleep(0.001)
        return event()

    def send(self, number: int, *, group: bool = False) -> None:
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)


@dataclass
class Commands:
    """Starts ``run_pretrain.py`` or another script of the checkout."""

    server: subprocess.Popen[str]
    folder: Path
    corpus: Path
    environment: dict[str, str]
    started: list[Running] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def start(
        self, cwd: Path, *arguments: str | Path, file_limit: int | None = None, script: str = "run_pretrain.py"
    ) -> Running:
        """Start it by forking a process that has torch imported: the same script from its first line, sooner."""
        with self.lock:
            return self._start(cwd, arguments, file_limit, script)

    def _start(self, cwd: Path, arguments: Sequence[str | Path], file_limit: int | None, script: str) -> Running:
        files = self.folder / f"command{len(self.started)}"
        request = {
            "script": script,
            "argv": list(map(str, arguments)),
            "cwd": str(cwd),
            "file_limit": file_limit,
            **{name: str(files.with_suffix(f".{name}")) for name in ("out", "err", "status")},
        }
        assert self.server.stdin is not None and self.server.stdout is not None
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        running = Running(int(self.server.stdout.readline()), files)
        self.started.append(running)
        return running

    def run(
        self, cwd: Path, *arguments: str | Path, file_limit: int | None = None, script: str = "run_pretrain.py"
    ) -> Finished:
        return self.start(cwd, *arguments, file_limit=file_limit, script=script).wait()

    def downstream(self, cwd: Path, *arguments: str | Path) -> Finished:
        """Run ``run_downstream.py``."""
        return self.run(cwd, *arguments, script="run_downstream.py")

    def run_afresh(self, cwd: Path, *arguments: str | Path) -> Finished:
        """Run it in a new interpreter, with another hash seed and nothing imported."""
        command = [sys.executable, str(ROOT / "run_pretrain.py"), *map(str, arguments)]
        done = subprocess.run(command, cwd=cwd, env=self.environment, capture_output=True, text=True, timeout=240)
        return Finished(done.returncode, done.stdout, done.stderr)

    @staticmethod
    def at_once(*stories: Callable[[], Any]) -> None:
        """Run functions that mostly wait for commands, two at a time; the first failure is raised."""
        with ThreadPoolExecutor(2) as pool:
            for future in [pool.submit(story) for story in stories]:
                future.result()

    def training(self, settings: Mapping[str, Any] | None = None, data: Path | None = None) -> list[str]:
        """Arguments of a tiny run of the bundled teacher, apart from its name."""
        values = {**TINY, **(settings or {})}
        override = ",".join(f"{key}={value}" for key, value in values.items())
        fixed = ["-u", "distiller", "-c", "quickstart", "--teacher", str(BUNDLE / "hubert_nano")]
        return [*fixed, "--data", str(data or self.corpus), "-o", override]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 sentences of the bundled synthetic speech, three languages, 2 to 7 s each."""
    folder = tmp_path_factory.mktemp("corpus") / "speech"
    folder.mkdir()
    for path in sorted((BUNDLE / "corpus" / "audio").glob("*_s0[0-9].opus"))[::12][:24]:
        shutil.copy(path, folder)
    assert len(list(folder.iterdir())) == 24
    return folder


@pytest.fixture(scope="session")
def commands(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    folder = tmp_path_factory.mktemp("commands")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "S3PRL_DISTILLER_CACHE": str(folder / "cache")}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("forks.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as server:
        result = Commands(server, folder, corpus, environment)
        yield result
        for running in result.started:
            if running.alive:
                running.send(signal.SIGKILL, group=True)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, str]]:
    """``contents(folder)``: the SHA-256 of every file below it, by name."""

    def contents(folder: Path) -> dict[str, str]:
        return {str(p.relative_to(folder)): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}

    return contents


@pytest.fixture(scope="session")
def log_of() -> Callable[[Path], list[dict[str, Any]]]:
    """``log_of(run)``: the lines of its log, without what depends on the machine's speed."""

    def log_of(run: Path) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        return [{k: v for k, v in line.items() if k not in ("audio_s_per_s", "data_wait_share")} for line in lines]

    return log_of
