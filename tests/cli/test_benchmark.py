"""``run_downstream.py -d superb`` on a few utterances of real speech: done, gone on with, half done, handed on."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from s3prl_distiller import machine
from s3prl_distiller.cli import benchmark as command

from .conftest import BUNDLE, Commands, Finished
from .tiny_runs import says

FEW = "runner.total_steps=4,runner.eval_step=2,runner.log_step=1,data.batch_size=4,task.unseen_labels=skip"
SMALL = "asr.task.project_dim=16,asr.task.hidden=16"


def benchmark(data: Path | str, *more: str | Path, tasks: str = "ks,qbe") -> list[str]:
    fixed = ["-d", "superb", "-n", "mine", "--tasks", tasks, "--learning-rates", "1e-3,1e-2", "-o", f"{FEW},{SMALL}"]
    return [*fixed, "--data", str(data), *map(str, more)]


def folder(cwd: Path) -> Path:
    return cwd / "result" / "superb" / "mine"


def load(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def first(commands: Commands, minis: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    """Two tasks on a copy of the bundled teacher, and what the command said."""
    cwd = tmp_path_factory.mktemp("benchmark")
    shutil.copytree(BUNDLE / "hubert_nano", cwd / "teacher")
    return cwd, commands.downstream(cwd, *benchmark(minis, "-u", "teacher", "--jobs", "2")).success()


@pytest.fixture
def again(first: tuple[Path, Finished], tmp_path: Path) -> Path:
    """A copy of its results. Its upstream stays where it is."""
    shutil.copytree(first[0] / "result", tmp_path / "result")
    return tmp_path


@pytest.fixture
def teacher(first: tuple[Path, Finished]) -> list[str]:
    return ["-u", str(first[0] / "teacher")]


def test_from_checkpoint_to_table(first: tuple[Path, Finished], minis: Path) -> None:
    cwd, done = first
    about = load(folder(cwd) / "benchmark.json")
    assert about["upstreams"] == [{"label": "teacher", "name": str(cwd / "teacher"), "ckpt": None}]
    assert (about["tasks"], about["tier"], about["data"]) == (["ks", "qbe"], "mini", str(minis))
    runs = folder(cwd) / "teacher"
    assert load(runs / "cost.json")["parameters"] > 0
    ks, qbe = load(runs / "ks" / "metrics-test.json"), load(runs / "qbe" / "metrics-test.json")
    assert ks["search"]["learning_rates"] == [1e-3, 1e-2] and "search" not in qbe
    # The plan comes first, the table last, and both are about these runs.
    plan, table = done.out.index("2 of 2 runs to do"), done.out.index("| teacher ")
    assert plan < table and "Estimate" in done.out
    for row in (ks, qbe):
        value = row["metrics"][row["metric"]]["value"]
        assert f"{value:.2f}" in done.out[table:] and f"{row['metric']} {value:.2f}" in done.err
    assert "2 of 2: " in done.err and str(folder(cwd) / "report.html") in done.out
    assert (folder(cwd) / "report.html").is_file() and (folder(cwd) / "report.md").is_file()
    assert "error" not in (runs / "ks" / "stdout.txt").read_text().lower()


def test_what_is_done_is_skipped(
    commands: Commands, again: Path, minis: Path, teacher: list[str], contents: Callable[[Path], dict[str, str]]
) -> None:
    before = contents(folder(again) / "teacher")
    done = commands.downstream(again, *benchmark(minis, *teacher)).success()
    assert "0 of 2 runs to do" in done.out and "begins" not in done.err and "| teacher " in done.out
    assert contents(folder(again) / "teacher") == before
    # The report alone, too, from nothing but the folder.
    (folder(again) / "report.md").unlink()
    alone = commands.downstream(again, "-d", "superb", "-n", "mine", "--report").success()
    assert "| teacher " in alone.out and (folder(again) / "report.md").is_file()
    assert contents(folder(again) / "teacher") == before


def test_a_task_that_fails_leaves_a_hole(commands: Commands, again: Path, minis: Path, teacher: list[str]) -> None:
    """The others are as they were; mended, the same command fills it."""
    broken = again / "broken"
    broken.mkdir()
    (broken / "audio").symlink_to((minis / "librispeech_mini" / "audio").resolve())
    for split in ("train", "dev", "test"):
        shutil.copy(minis / "librispeech_mini" / f"{split}.jsonl", broken)
    whole = (broken / "train.jsonl").read_text()
    rows = [json.loads(line) for line in whole.splitlines()]
    (broken / "train.jsonl").write_text("".join(json.dumps(row | {"text": ""}) + "\n" for row in rows))
    arguments = benchmark(f"asr={broken}", minis, *teacher, tasks="ks,asr")
    done = commands.downstream(again, *arguments)
    assert done.status == 1 and "Traceback" not in done.err
    run = folder(again) / "teacher" / "asr"
    failed = load(run / "failed.json")
    assert failed["exit"] == 2 and "'text'" in failed["reason"] and "-d asr" in failed["command"]
    assert f"teacher asr failed: {failed['reason']}" in done.err.splitlines()[-1]
    row = next(line for line in done.out.splitlines() if line.startswith("| teacher "))
    assert "failed" in row and row.count("[") >= 1
    (broken / "train.jsonl").write_text(whole)
    mended = commands.downstream(again, *arguments).success()
    assert "failed before: try again" in mended.out and "1 of 2 runs to do" in mended.out
    assert not (run / "failed.json").exists() and load(run / "metrics-test.json")["task"] == "asr"
    assert "failed" not in mended.out[mended.out.index("| teacher ") :]


def test_a_stopped_benchmark_goes_on(commands: Commands, again: Path, minis: Path, teacher: list[str]) -> None:
    arguments = benchmark(minis, *teacher, "-o", "runner.total_steps=1500,runner.eval_step=1500", tasks="ic")
    running = commands.start(again, *arguments, script="run_downstream.py")
    run = folder(again) / "teacher" / "ic"
    log = run / "log.jsonl"
    assert running.until(lambda: log.is_file() and log.read_bytes().count(b'"train"') > 3)
    running.send(signal.SIGTERM)
    done = running.wait()
    assert done.status == 130 and "Traceback" not in done.err, done.err
    (saved,) = run.glob("states-*")
    step = int(saved.name.removeprefix("states-"))
    assert 0 < step < 1500 and not (run / "metrics-test.json").exists() and not (run / "failed.json").exists()
    after = commands.downstream(again, *arguments).success()
    assert "go on" in after.out and load(run / "metrics-test.json")["step"] in (0, 1500)
    steps = [line["step"] for line in map(json.loads, log.read_text().splitlines()) if line["kind"] == "train"]
    assert steps == sorted(set(steps)) and steps[-1] == 1500, "each step is taken once"


def test_commands_for_elsewhere(
    commands: Commands, again: Path, minis: Path, teacher: list[str], tmp_path: Path
) -> None:
    """They are all there is on stdout, run where they are pasted, and what they leave is reported on."""
    arguments = benchmark(minis, *teacher, "--launch", "print", "-o", "ic.task.slots=[a,b c,d]", tasks="ks,ic")
    done = commands.downstream(again, *arguments).success()
    command, report = done.out.splitlines()
    assert report.startswith("# ") and "1 of 2 runs to do" in done.err
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run(command, shell=True, cwd=elsewhere, env=commands.environment, check=True, capture_output=True)
    run = folder(again) / "teacher" / "ic"
    assert "acc_b c" in load(run / "metrics-test.json")["metrics"] and not list(elsewhere.iterdir())
    shown = commands.downstream(elsewhere, *shlex.split(report.split(": ", 1)[1])[2:]).success()
    figure = load(run / "metrics-test.json")["metrics"]["acc"]["value"]
    assert f"{figure:.2f}" in next(line for line in shown.out.splitlines() if line.startswith("| teacher "))
    assert commands.downstream(again, *arguments).success().out.splitlines() == [report]


def test_nothing_of_another_benchmark_is_touched(
    commands: Commands, again: Path, minis: Path, teacher: list[str], contents: Callable[[Path], dict[str, str]]
) -> None:
    before = contents(again)
    upstream = Path(teacher[1]) / "model.safetensors"
    for more, parts in (
        (["-o", "runner.total_steps=5"], ("runner.total_steps of ks is 4 there and 5", "-n")),
        (["--seeds", "2"], ("search.seeds of ks", "-n")),
        (["--tier", "superb"], ("the tier is mini there and superb", "-n")),
        (["-l", "1"], ("upstream.layer of ks", "-n")),
        (["--teacher", "someone"], ("--teacher someone", "teacher")),
    ):
        says(commands.downstream(again, *benchmark(minis, *teacher, *more)), *parts)
    says(commands.downstream(again, *benchmark(minis, "-u", "teacher=fbank")), "the upstream of teacher is", "fbank")
    # The upstream has been trained further, say: its old figures are not its own any more.
    kept = upstream.read_bytes()
    weights = safetensors.torch.load_file(upstream)
    name = next(name for name in sorted(weights) if name.endswith("weight"))
    safetensors.torch.save_file(weights | {name: weights[name] * 1.01}, upstream, metadata={"format": "pt"})
    try:
        says(commands.downstream(again, *benchmark(minis, *teacher)), "other weights", "-n")
    finally:
        upstream.write_bytes(kept)
    assert contents(again) == before


def test_places_for_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every GPU that may be seen, by the name that CUDA_VISIBLE_DEVICES has for it; cores are shared out."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(command, "cores", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    for seen, names in (("", ["0", "1"]), ("5,MIG-1a", ["5", "MIG-1a"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
        assert machine.visible_gpus(cuda) == names
    slots = command._slots(cuda, ["5", "MIG-1a"], 2)
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["5", "MIG-1a", "5", "MIG-1a"]
    assert {slot["OMP_NUM_THREADS"] for slot in slots} == {"4"}
    # --device cuda:1 is passed on as it is: the number counts among those that are seen.
    assert machine.visible_gpus(torch.device("cuda:1")) == ["MIG-1a"]
    assert command._slots(torch.device("cuda:1"), ["MIG-1a"], 1) == [{}]
    assert machine.visible_gpus(cpu) == [] and command._slots(cpu, [], 1) == [{}]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert command._slots(cpu, [], 2) == [{}, {}]


def test_a_dry_run_leaves_nothing(commands: Commands, minis: Path, tmp_path: Path) -> None:
    arguments = benchmark(minis, "-u", "fbank", "-u", "cmvn=fbank_no_cmvn", "--dry-run", tasks="asr,er,sd,asv")
    done = commands.downstream(tmp_path, *arguments).success()
    rows = [line.split() for line in done.out.splitlines()]
    assert [row[:3] for row in rows[1:9]] == [
        [label, task, "new"] for label in ("fbank", "cmvn") for task in ("asr", "asv", "sd", "er")
    ]
    assert all(float(row[-3]) > 0 and row[-1] == "GB" for row in rows[1:9])
    assert "8 of 8 runs to do" in done.out and not list(tmp_path.iterdir())


def test_what_cannot_be(commands: Commands, minis: Path, tmp_path: Path) -> None:
    """One line each, before any time is spent, and nothing is left."""
    fbank = ["-u", "fbank"]
    wrong: list[tuple[list[str], tuple[str, ...]]] = [
        (benchmark(minis), ("-u NAME",)),
        (benchmark(minis, "-u", "fbnak", "-u", "nowhere.ckpt"), ("fbnak, nowhere.ckpt", "fbank")),
        (benchmark(minis, *fbank, *fbank), ("given twice",)),
        (benchmark(minis, "-u", "a=fbank", "-u", "a=mfcc"), ("label a",)),
        (benchmark(minis, *fbank, "-u", "mfcc", "-k", "x"), ("-k goes with one",)),
        (benchmark(minis, *fbank, tasks="ks,kws"), ("kws", "choose from")),
        (benchmark(minis / "slu_mini", *fbank, tasks="ic,sd,qbe"), ("no corpus for qbe, sd", "--tasks ic")),
        (benchmark("nowhere", *fbank), ("nowhere",)),
        (benchmark(f"ks={minis}", *fbank), ("no corpus for qbe", "qbe=PATH")),
        (benchmark(minis, *fbank, "--tier", "small"), ("small", "mini, superb")),
        (benchmark(minis, *fbank, "-o", "runner.total_step=3"), ("runner.total_step", "total_steps")),
        (benchmark(minis, *fbank, "--learning-rates", "1e-3,-1"), ("search.learning_rates",)),
        (benchmark(minis, *fbank, "--jobs", "0"), ("--jobs is 0",)),
        (benchmark(minis, *fbank, "-f"), ("-f", "frozen")),
        (benchmark(minis, *fbank, "-e", "run"), ("-e",)),
        (benchmark(minis, *fbank, "-m", "evaluate"), ("-m evaluate",)),
        (benchmark(minis, *fbank, "--slurm", "gpus=1"), ("--launch slurm",)),
        (["-d", "superb", *fbank, "--data", str(minis)], ("-n NAME",)),
        (["-d", "superb", "-n", "mine", "--report"], ("no benchmark",)),
        (["-d", "ks", *fbank, "-u", "mfcc", "-n", "x", "--data", str(minis)], ("-u takes one", "-d superb")),
        (["-d", "ks", *fbank, "-n", "x", "--data", str(minis), "--tasks", "ks"], ("--tasks", "-d superb")),
    ]

    def refuse(arguments: list[str], parts: tuple[str, ...]) -> None:
        says(commands.downstream(tmp_path, *arguments), *parts)

    commands.at_once(*(lambda case=case: refuse(*case) for case in wrong))
    assert not list(tmp_path.iterdir())
