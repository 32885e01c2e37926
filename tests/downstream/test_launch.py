"""Commands in a queue: who runs beside whom, what is said of failures, what a signal does. Small shell scripts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from s3prl_distiller.downstream.benchmark import launch, slurm


def job(folder: Path, script: str, expected: float = 1.0) -> launch.Job:
    return launch.Job(folder.name, ["bash", "-c", script], folder, folder / "result", expected)


def test_the_longest_first_and_so_many_at_a_time(tmp_path: Path) -> None:
    """In two slots, each command sees its slot's environment, and never more than two are alive."""
    script = 'echo "$SLOT $(date +%s.%N)" > begun; sleep 0.3; date +%s.%N > ended; touch result; sleep 0.05'
    jobs = [job(tmp_path / f"job{n}", f"cd {tmp_path}/job{n}; {script}", expected=n) for n in range(5)]
    begun: list[str] = []
    ended = launch.Queue([{"SLOT": "a"}, {"SLOT": "b"}], lambda job: begun.append(job.name)).run(jobs)
    assert begun == ["job4", "job3", "job2", "job1", "job0"]
    assert {one.job.name for one in ended if one.reason is None and one.exit == 0} == set(begun)
    spans = []
    for one in jobs:
        slot, start = (one.folder / "begun").read_text().split()
        spans.append((slot, float(start), float((one.folder / "ended").read_text())))
    assert {slot for slot, *_ in spans} == {"a", "b"}
    for slot in "ab":
        own = sorted((start, end) for name, start, end in spans if name == slot)
        assert all(end <= start for (_, end), (start, _) in zip(own, own[1:], strict=False))
    assert all(0.3 <= one.seconds < 20 for one in ended)


@pytest.mark.parametrize(
    ("status", "said", "reason"),
    [
        (2, "12:00:00 INFO x\nerror: the first\nerror: no label in train.jsonl\n", "no label in train.jsonl"),
        (2, " 10%|#  |\rerror: torn bar\n", "torn bar"),
        (1, 'Traceback:\n  File "x"\nKeyError: 3\n', "KeyError: 3"),
        (1, "Traceback:\npkg.mod.OddError: what\nsaid it\n", "pkg.mod.OddError: what"),
        (1, "torch.OutOfMemoryError: CUDA\n", "out of memory: torch.OutOfMemoryError: CUDA"),
        (2, "error: the GPU's memory is full (x)\n", "out of memory: the GPU's memory is full (x)"),
        (-9, "", "it was ended by the signal SIGKILL, as a system does that is out of memory"),
        (-11, "half a line", "it was ended by the signal SIGSEGV"),
        (0, "", "it was stopped before its end"),
        (7, "", "exit status 7"),
    ],
)
def test_why(status: int, said: str, reason: str) -> None:
    assert launch.why(status, said) == reason


def test_a_failure_is_kept_until_the_job_is_done(tmp_path: Path) -> None:
    failing = job(tmp_path / "job", "echo error: no; exit 2")
    (one,) = launch.Queue([{}]).run([failing])
    assert (one.reason, one.exit) == ("no", 2)
    kept = json.loads((tmp_path / "job" / "failed.json").read_text())
    assert kept == {"reason": "no", "command": "bash -c 'echo error: no; exit 2'", "exit": 2}
    # To end well and leave nothing is to fail, too.
    (one,) = launch.Queue([{}]).run([job(tmp_path / "job", "true")])
    assert one.reason == "it was stopped before its end"
    (one,) = launch.Queue([{}]).run([job(tmp_path / "job", f"touch {tmp_path}/job/result")])
    assert one.reason is None and not (tmp_path / "job" / "failed.json").exists()


QUEUE = """
import signal, sys
from pathlib import Path
from s3prl_distiller.downstream.benchmark import launch
folder = Path(sys.argv[1])
jobs = [launch.Job(f"job{n}", ["bash", "-c", sys.argv[2]], folder / f"job{n}", folder / f"job{n}" / "result")
        for n in range(3)]
with launch.alone(folder) as held:
    queue = launch.Queue([{}, {}], held=[held])
    ended = queue.run(jobs)
print(queue.stopped, len(ended))
"""


@pytest.fixture
def queue(tmp_path: Path) -> Any:
    """``queue(script)``: a process that runs three of them, two at a time."""
    root = Path(__file__).resolve().parents[2]
    started: list[subprocess.Popen[str]] = []

    def start(script: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", QUEUE, str(tmp_path), script]
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_for(count: int, folder: Path, name: str) -> None:
    end = time.monotonic() + 60
    while len(list(folder.glob(f"job*/{name}"))) < count:
        assert time.monotonic() < end, f"no {name}"
        time.sleep(0.02)


SAVES = 'cd "$(dirname "$(readlink /proc/$$/fd/1)")"; trap "touch saved; exit 0" TERM; touch begun; '
SAVES += "for i in {1..600}; do sleep 0.1; done"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_runs_may_save(number: signal.Signals, queue: Any, tmp_path: Path) -> None:
    """Those that run are told to stop and are waited for; no other is begun; nothing counts as failed."""
    process = queue(SAVES)
    wait_for(2, tmp_path, "begun")
    process.send_signal(number)
    assert process.communicate(timeout=60)[0] == f"{int(number)} 0\n"
    assert len(list(tmp_path.glob("job*/saved"))) == 2 and len(list(tmp_path.glob("job*/begun"))) == 2
    assert not list(tmp_path.glob("job*/failed.json"))


def test_a_second_ctrl_c_does_not_wait(queue: Any, tmp_path: Path) -> None:
    process = queue(SAVES.replace("touch saved; exit 0", "touch asked"))
    wait_for(2, tmp_path, "begun")
    process.send_signal(signal.SIGINT)
    wait_for(2, tmp_path, "asked")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_one_command_at_a_time(queue: Any, tmp_path: Path) -> None:
    """Also while jobs live whose command was killed: two would write the same files."""
    process = queue(SAVES.replace("{1..600}", "{1..20}"))
    wait_for(2, tmp_path, "begun")
    process.kill()
    process.wait()
    with pytest.raises(ValueError, match="another command works on"), launch.alone(tmp_path):
        pass
    end = time.monotonic() + 60
    while True:
        try:
            with launch.alone(tmp_path):
                break
        except ValueError:
            assert time.monotonic() < end
            time.sleep(0.1)


# -- SLURM


def test_options_of_slurm() -> None:
    assert slurm.options(None, None) == ("slurm", {"timeout_min": 1440, "gpus_per_node": 1, "name": "superb"})
    cluster, found = slurm.options("partition=gpu,time=8:30:00,gpus=2,cpus=8,mem=64GB,account=me,qos=low", 4)
    assert cluster == "slurm" and found == {
        "timeout_min": 510,
        "gpus_per_node": 2,
        "name": "superb",
        "slurm_partition": "gpu",
        "cpus_per_task": 8,
        "mem_gb": 64,
        "slurm_array_parallelism": 4,
        "slurm_additional_parameters": {"account": "me", "qos": "low"},
    }
    for wrong, part in (("gpu", "'gpu'"), ("time=soon", "time=soon"), ("cpus=many", "cpus"), ("time=1:2", "time=1:2")):
        with pytest.raises(ValueError, match=part):
            slurm.options(wrong, None)


def test_without_submitit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match="pip install"):
        slurm.submit([], tmp_path, "slurm", {})


def test_without_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ValueError, match="could not be submitted"):
        slurm.submit([job(tmp_path / "job", "true")], tmp_path / "slurm", "slurm", {"timeout_min": 1})


def test_jobs_of_submitit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Through submitit's own processes on this machine: what is done, and the reason of what is not."""
    pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", "")
    jobs = [job(tmp_path / "good", f"touch {tmp_path}/good/result"), job(tmp_path / "bad", "echo error: no; exit 2")]
    ids = slurm.submit(jobs, tmp_path / "slurm", "local", {"timeout_min": 1})
    assert len(set(ids)) == 2
    end = time.monotonic() + 60
    while not ((tmp_path / "good" / "result").exists() and (tmp_path / "bad" / "failed.json").exists()):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert json.loads((tmp_path / "bad" / "failed.json").read_text())["reason"] == "no"


def test_at_the_end_of_its_time_a_job_saves_and_is_queued_again(tmp_path: Path) -> None:
    """As submitit asks it: by a signal that comes while the job is waited for."""
    submitit = pytest.importorskip("submitit")
    resumable = slurm.Resumable(job(tmp_path / "job", SAVES))
    again: list[Any] = []

    def ask(number: int, frame: Any) -> None:
        again.append(resumable.checkpoint())
        raise SystemExit

    def time_is_up() -> None:
        wait_for(1, tmp_path, "begun")
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, ask)
    thread = threading.Thread(target=time_is_up)
    thread.start()
    try:
        with pytest.raises(SystemExit):
            resumable()
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    assert isinstance(again[0], submitit.helpers.DelayedSubmission) and (tmp_path / "job" / "saved").exists()
    assert again[0].function.job == resumable.job
