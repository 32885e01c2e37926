"""What subnormal numbers cost a CPU in the backward pass of recurrent heads: a run's own heads, on its own batches.

    python benchmarks/subnormal_gradients.py result/downstream/RUN --batches 3

RUN was trained by ``run_downstream.py`` and has a checkpoint (``states-STEP``). The peer is torch as it comes; the
commands of this project flush subnormal numbers to zero.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import torch
from s3prl_distiller.downstream.core import run as core
from s3prl_distiller.downstream.core.batches import LabelledBatch
from s3prl_distiller.downstream.core.expert import DownstreamExpert

from s3prl_distiller import checkpoint
from s3prl_distiller.engine import newest_checkpoint


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    states = newest_checkpoint(args.run)
    if states is None:
        parser.error(f"{args.run} has no checkpoint")
    saved = checkpoint.load_json(states / checkpoint.CONFIG)
    config = core.load_config(saved["task"], [args.run / "config.yaml"], {}, ["features.keep=false"])
    with tempfile.TemporaryDirectory() as folder:
        expert = core.build(saved["task"], config, Path(folder), torch.device("cpu"))
    expert.load(states)
    batches = list(islice(expert.get_train_dataloader(0, 0), args.batches))
    found = {}
    for flushed in (False, True):
        torch.set_flush_denormal(flushed)
        backward(expert, batches[0])
        found[flushed] = sum(backward(expert, batch) for batch in batches) / len(batches)
    what = (
        f"{len(expert.models)} heads of {saved['task']}, {states.name}, {len(batches)} batches, threads: {args.threads}"
    )
    sys.stdout.write(
        f"Backward pass of {what}: {found[False]:.2f} s as torch comes, {found[True]:.2f} s with subnormal numbers "
        f"flushed to zero, {found[False] / found[True]:.1f} times as fast.\n"
        f"{platform.machine()}; torch {version('torch')}\n"
    )
    return 0


def backward(expert: DownstreamExpert, batch: LabelledBatch) -> float:
    """Seconds of the backward pass of all heads."""
    loss, _ = expert(batch)
    started = time.perf_counter()
    loss.sum().backward()
    seconds = time.perf_counter() - started
    expert.model.zero_grad(set_to_none=True)
    return seconds


if __name__ == "__main__":
    sys.exit(main())
