"""The real command on real audio beside the bare step on the same batches: what decoding and the loop cost.

    python benchmarks/end_to_end.py --data MANIFEST --out results/end_to_end.md

Runs ``run_pretrain.py -u distiller`` with a teacher of HuBERT base's shape (random weights, made here) and reads the
rate and the share of time spent waiting for data from its log, the first ``--warm-up`` steps left out. Then the first
batches of the same data are held in memory and stepped through without loader, log or checkpoint. List utterances in
the manifest as often as it takes for an epoch to last: this is about long epochs.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from s3prl_distiller.upstream.distiller import pretrain_expert

from s3prl_distiller import machine
from s3prl_distiller.data.config import cores
from s3prl_distiller.engine import Updates, precision, to_device

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "conv_dim": [64] * 7}


def make_teacher(folder: Path, small: bool) -> None:
    """A Hugging Face folder of HuBERT base's shape, its weights random."""
    from transformers import HubertConfig, HubertModel

    HubertModel(HubertConfig(**(SMALL if small else {}))).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": False})
    )


def run_command(teacher: Path, data: Path, folder: Path, steps: int, log_step: int, overrides: list[str]) -> list[Any]:
    """Train, and return the log's lines on training."""
    options = [
        f"runner.total_steps={steps}",
        f"runner.log_step={log_step}",
        f"runner.eval_step={steps}",
        f"runner.save_step={steps}",
        *overrides,
    ]
    command = [sys.executable, str(ROOT / "run_pretrain.py"), "-u", "distiller", "--teacher", str(teacher)]
    command += ["--data", str(data), "-p", str(folder)]
    for option in options:
        command += ["-o", option]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    subprocess.run(command, check=True, env=environment)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"]


def bare_rate(
    teacher: Path, data: Path, overrides: list[str], batches: int, steps: int, profile: Path | None
) -> tuple[float, float]:
    """Steps a second and seconds of audio a second, of batches that are in memory."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options = {"teacher": {"model": str(teacher)}, "data": {"path": str(data)}}
    recipe = [ROOT / "config" / "pretrain" / "distilhubert.yaml"]
    config, given = pretrain_expert.load_config(recipe, options, overrides)
    with tempfile.TemporaryDirectory() as folder:
        expert = pretrain_expert.build(config, given, Path(folder), device, None)
    held = list(itertools.islice(expert.get_train_dataloader(0, 0), batches))
    autocast, scaler = precision(config.runner.precision, device)
    updates = Updates(expert.members, config.optimizer, config.runner.gradient_clipping, scaler)

    def go(count: int) -> float:
        heard = 0.0
        chosen: Iterator[tuple[Any, None]] = ((held[index % len(held)], None) for index in range(count))
        for step, (batch, _) in enumerate(to_device(chosen, device), 1):
            with autocast():
                loss, _ = expert(batch)
            loss.backward()
            updates.make(step, config.optimizer.lr)
            list(updates.norms(newest=False))
            heard += batch.seconds
        if device.type == "cuda":
            torch.cuda.synchronize()
        return heard

    go(len(held))
    started = time.perf_counter()
    heard = go(steps)
    seconds = time.perf_counter() - started
    if profile is not None and device.type == "cuda":
        with torch.profiler.profile() as found:
            go(3)
        profile.write_text(found.key_averages().table(sort_by="self_cuda_time_total", row_limit=60))
    return steps / seconds, heard / seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--warm-up", type=int, default=100)
    parser.add_argument("--log-step", type=int, default=20)
    parser.add_argument("--batches", type=int, default=20, help="held in memory for the bare step")
    parser.add_argument("--small", action="store_true", help="a small teacher, to try the script out")
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("-o", "--override", action="append", default=[])
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        make_teacher(folder / "teacher", args.small)
        lines = run_command(folder / "teacher", args.data, folder / "run", args.steps, args.log_step, args.override)
        rate, audio = bare_rate(
            folder / "teacher", args.data, args.override, args.batches, args.steps - args.warm_up, args.profile
        )
    later = [line for line in lines if line["step"] > args.warm_up and line["step"] < args.steps]
    real = statistics.mean(line["audio_s_per_s"] for line in later)
    waited = statistics.mean(line["data_wait_share"] for line in later)
    found = ", ".join(f"{name} {value}" for name, value in machine.versions().items())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    text = f"""\
# The real command beside the bare step, on the same data

| | audio s/s | of the bare step | waiting for data |
|---|---|---|---|
| bare step, batches in memory ({rate:.2f} steps/s) | {audio:.0f} | 100 % | |
| `run_pretrain.py`, from step {args.warm_up + 1} | {real:.0f} | {100 * real / audio:.0f} % | {waited:.1%} |

{machine.device_name(device)}, {cores()} CPU cores; {found}.
`python {" ".join(sys.argv)}`
"""
    sys.stdout.write(text)
    if args.out:
        args.out.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
