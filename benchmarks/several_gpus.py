"""Distillation on several GPUs of one machine: rate, losses, and a process that is killed.

    python benchmarks/several_gpus.py --data MANIFEST --teacher TEACHER --gpus 1 2 --work result/several_gpus \\
        --out results/several_gpus.md

Everything is the real command on real audio, under torchrun where there is more than one GPU.

- Rate: a teacher of HuBERT base's shape, random weights, 24 utterances for each GPU, and as many cores for each GPU.
- Losses: ``--teacher``, one batch of 24 for all GPUs together, on one GPU and on several; on one also from another
  seed, for how much chance does.
- A killed process: the same run on several GPUs, one of whose processes is killed half-way; then one GPU goes on.

A run that is done in ``--work`` is not done again. List utterances in the manifest as often as it takes for an epoch to
last: this is about long epochs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from end_to_end import ROOT, make_teacher

from s3prl_distiller import machine
from s3prl_distiller.data.config import cores

ONE, OTHER_SEED, SEVERAL, KILLED = "one", "other-seed", "several", "killed"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="JSON lines")
    add("--teacher", type=Path, help="of the losses; without one only the rate is measured")
    add("--gpus", type=int, nargs="+", default=[1, 2], help="1 first; losses are those of the second number")
    add("--work", type=Path, required=True, help="a folder for the runs")
    add("--steps", type=int, default=400, help="of the rate")
    add("--warm-up", type=int, default=150)
    add("--loss-steps", type=int, default=600)
    add("--small", action="store_true", help="a small teacher and processes on the CPU, to try the script out")
    add("--out", type=Path)
    add("-o", "--override", action="append", default=[])
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    text = rates(args)
    if args.teacher is not None:
        text += losses(args)
    device = torch.device("cpu" if args.small else "cuda")
    found = ", ".join(f"{name} {value}" for name, value in machine.versions().items())
    text += f"\n{max(args.gpus)} x {machine.device_name(device)}, {cores()} CPU cores; {found}.\n"
    text += f"`python {' '.join(sys.argv)}`\n"
    sys.stdout.write(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    return 0


# -- how fast


def rates(args: argparse.Namespace) -> str:
    teacher = args.work / "teacher"
    if not teacher.is_dir():
        make_teacher(teacher, args.small)
    rows = []
    for gpus in args.gpus:
        folder = args.work / f"rate-{gpus}"
        options = [f"runner.total_steps={args.steps}", f"runner.eval_step={args.steps}", "runner.log_step=10"]
        options += [f"runner.save_step={args.steps}", f"data.batch_size={24 * gpus},data.batch_seconds={375 * gpus}"]
        if not done(folder):
            finish(start(args, folder, gpus, 0, teacher, options), folder)
        later = [line for line in lines(folder, "train") if args.warm_up < line["step"] < args.steps]
        rows.append([statistics.mean(line[key] for line in later) for key in ("audio_s_per_s", "data_wait_share")])
    text = "# Distillation on several GPUs\n\n## Rate\nHuBERT base's shape to 2 layers, 24 utterances for each GPU, "
    text += f"from step {args.warm_up + 1} of {args.steps}; {cores() // max(args.gpus)} cores for each GPU.\n\n"
    text += "| GPUs | audio s/s | times the first row | waiting for data |\n|---|---|---|---|\n"
    for gpus, (rate, waited) in zip(args.gpus, rows, strict=True):
        text += f"| {gpus} | {rate:,.0f} | {rate / rows[0][0]:.2f} | {waited:.1%} |\n"
    return text


# -- what is learnt


def losses(args: argparse.Namespace) -> str:
    several, half = args.gpus[1], args.loss_steps // 2
    every = args.loss_steps // 6
    options = [f"runner.total_steps={args.loss_steps},runner.eval_step={every},runner.save_step={every}"]
    options += ["runner.log_step=10,runner.max_keep=9"]
    plans = {ONE: (1, []), OTHER_SEED: (1, ["runner.seed=1"]), SEVERAL: (several, [])}
    waiting = {name: plan for name, plan in plans.items() if not done(args.work / name)}
    while waiting:  # as many at a time as there are GPUs for
        running, taken = {}, 0
        for name, (gpus, more) in list(waiting.items()):
            if taken + gpus <= max(args.gpus):
                running[name] = start(args, args.work / name, gpus, taken, args.teacher, [*options, *more])
                taken += gpus
                del waiting[name]
        for name, process in running.items():
            finish(process, args.work / name)
    killed = kill_one(args, several, half, options)
    curves = {name: {x["step"]: x["loss"] for x in lines(args.work / name, "valid")} for name in (*plans, KILLED)}
    titles = {
        ONE: "1 GPU",
        OTHER_SEED: "1 GPU, another seed",
        SEVERAL: f"{several} GPUs",
        KILLED: f"{several} GPUs, one killed after step {killed['step']}, then 1 GPU",
    }
    steps = sorted(curves[ONE])
    text = "\n## Losses\n"
    text += f"Held-out loss by step, {args.teacher.name} to 2 layers, 24 utterances for all GPUs together.\n"
    text += f"\n| step | {' | '.join(map(str, steps))} |\n|{'---|' * (len(steps) + 1)}\n"
    for name, curve in curves.items():
        text += f"| {titles[name]} | {' | '.join(f'{curve[step]:.4f}' for step in steps)} |\n"
    train = {name: [line["loss"] for line in lines(args.work / name, "train")] for name in curves}
    apart = {name: max(abs(a / b - 1) for a, b in zip(train[name], train[ONE], strict=True)) for name in train}
    text += "\nTraining loss, means of 10 steps, at most so far from that of 1 GPU: "
    text += f"{several} GPUs {apart[SEVERAL]:.1%}, with one killed {apart[KILLED]:.1%}, "
    text += f"another seed {apart[OTHER_SEED]:.1%}.\n"
    text += f"\n## A process that is killed\n`kill -9` of one of {several}: the command ended after "
    text += f"{killed['seconds']:.1f} s with exit status {killed['status']}; the others said:\n"
    text += f"> {killed['said'] or 'nothing'}\n\n"
    text += f"The same command with `-a` and 1 GPU went on after step {killed['from']}.\n"
    return text


def kill_one(args: argparse.Namespace, gpus: int, half: int, options: list[str]) -> dict[str, Any]:
    """Kill a process half-way, take the time, go on with one GPU; what was seen."""
    folder = args.work / KILLED
    note = folder / "killed.json"
    if not note.is_file():
        process = start(args, folder, gpus, 0, args.teacher, options)
        while max((line["step"] for line in lines(folder, "train")), default=0) <= half:
            if process.poll() is not None:
                raise SystemExit(f"ended before it was killed: see {folder / 'output.txt'}")
            time.sleep(0.01)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(next(int(child) for child in children if rank_of(child) == gpus - 1), signal.SIGKILL)
        started = time.monotonic()
        status = process.wait(timeout=120)
        seconds = time.monotonic() - started
        said = re.search(r"another process of this run has ended.*", (folder / "output.txt").read_text())
        saved = max(int(path.name.removeprefix("states-")) for path in folder.glob("states-*") if path.is_dir())
        step = max(line["step"] for line in lines(folder, "train"))
        found = {"step": step, "from": saved, "seconds": seconds, "status": status, "said": said and said[0]}
        note.write_text(json.dumps(found))
    if not done(folder):
        finish(start(args, folder, 1, 0, args.teacher, options, ["-a"]), folder)
    return json.loads(note.read_text())


def rank_of(pid: str) -> int | None:
    found = re.search(rb"(?:^|\0)RANK=(\d+)", Path(f"/proc/{pid}/environ").read_bytes())
    return int(found[1]) if found else None


# -- runs


def start(
    args: argparse.Namespace,
    folder: Path,
    gpus: int,
    first: int,
    teacher: Path,
    options: list[str],
    more: list[str] | None = None,
) -> subprocess.Popen[bytes]:
    """Begin a run on so many GPUs from a first one on, with their share of the cores."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [str(ROOT / "run_pretrain.py"), "-u", "distiller", "--teacher", str(teacher), "--data", str(args.data)]
    command += ["-p", str(folder), *itertools.chain.from_iterable(("-o", o) for o in [*options, *args.override])]
    command += [*(more or []), *(["--device", "cpu"] if args.small else [])]
    if gpus > 1:
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={gpus}", *command]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment["CUDA_VISIBLE_DEVICES"] = ",".join(machine.visible_gpus(torch.device("cuda"))[first : first + gpus])
    whole = os.sched_getaffinity(0)
    share = len(whole) // max(args.gpus)
    os.sched_setaffinity(0, sorted(whole)[first * share : (first + gpus) * share] or whole)
    try:
        with (folder / "output.txt").open("a") as output:
            return subprocess.Popen([sys.executable, *command], env=environment, stdout=output, stderr=output)
    finally:
        os.sched_setaffinity(0, whole)


def finish(process: subprocess.Popen[bytes], folder: Path) -> None:
    if process.wait():
        raise SystemExit(f"a run failed: see {folder / 'output.txt'}")
    sys.stderr.write(f"{folder.name} is done\n")


def done(folder: Path) -> bool:
    return (folder / "summary.md").is_file()


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Of a run's log; a last one may not be whole yet."""
    path = folder / "log.jsonl"
    text = path.read_text() if path.exists() else ""
    found = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return [line for line in found if line["kind"] == kind]


if __name__ == "__main__":
    sys.exit(main())
