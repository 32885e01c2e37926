"""Seconds of audio a second that the training loader delivers, by format, and what decoding alone would allow.

    python benchmarks/loader.py --data MANIFEST --workers 2 --out results/loader.md

``--data`` is what the command takes. "decoding" is one process that decodes the same crops and does nothing else;
"workers" and "main" are the processor time of the loader's processes, decoding, batching and sending included, and of
the process that receives. Rates by processor time hold on a busy machine too; that by the clock does not.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain, count, islice
from pathlib import Path

import soundfile
import torch

from s3prl_distiller.audio import SAMPLE_RATE
from s3prl_distiller.data.check import judge
from s3prl_distiller.data.config import DataConfig, cores
from s3prl_distiller.data.corpus import windows
from s3prl_distiller.data.loader import Limits, Request, TrainOrder, decode, make_loader
from s3prl_distiller.data.scan import scan
from s3prl_distiller.data.sources import read_utterances
from s3prl_distiller.data.utterance import Utterance
from s3prl_distiller.machine import device_name, versions

_HEADER = "| format | decoding, per CPU s | workers, per CPU s | by the clock | main, CPU ms a batch |"


@dataclass
class Rates:
    """Seconds of audio: per second of processor time or, ``clock``, of the clock. ``main`` is milliseconds a batch."""

    decoding: float
    workers: float
    clock: float
    main: float

    def row(self, name: str) -> str:
        return f"| {name} | {self.decoding:,.0f} | {self.workers:,.0f} | {self.clock:,.0f} | {self.main:.1f} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--workers", type=int, default=cores())
    parser.add_argument("--batches", type=int, default=60, help="of each format")
    parser.add_argument("--crop", type=float, default=15.6, help="seconds")
    parser.add_argument("--min-seconds", type=float, default=10.0, help="shorter utterances are left out")
    parser.add_argument("--title", default="The loader")
    parser.add_argument("--out", type=Path, help="file to add the table to")
    args = parser.parse_args()
    groups = by_format(args.data, args.min_seconds)
    lines = [f"## {args.title}", "", _HEADER, "|---|---|---|---|---|"]
    for name, utterances in groups.items():
        batches = crops(utterances, args.crop, args.batches)
        lines.append(measure(batches, args.workers).row(name))
    found = {**versions(), "soundfile": version("soundfile"), "libsndfile": soundfile.__libsndfile_version__}
    lines += [
        "",
        f"Seconds of audio a second; {args.workers} workers on {cores()} cores of {device_name(torch.device('cpu'))}; "
        f"{', '.join(f'{name} {number}' for name, number in found.items())}.",
        f"`python {' '.join(sys.argv)}`",
    ]
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    if args.out:
        with args.out.open("a") as file:
            file.write("\n" + text)
    return 0


def by_format(data: str, shortest: float) -> dict[str, list[Utterance]]:
    """Utterances by what kind of file they lie in, and ``all`` of them."""
    listed, _ = read_utterances(data, [], labels=False)
    good, _ = judge(listed, scan((u.audio for u in listed), full=False, progress=False), shortest)
    groups: dict[str, list[Utterance]] = defaultdict(list)
    for piece in chain.from_iterable(windows(utterance, DataConfig.split_seconds) for utterance in good):
        groups[Path(piece.place).suffix.lower() or "other"].append(piece)
    return {**groups, "all": [piece for group in groups.values() for piece in group]}


def crops(utterances: list[Utterance], seconds: float, batches: int) -> list[list[Request]]:
    """What training would ask for, epoch after epoch."""
    config = DataConfig()
    limits = Limits(round(seconds * SAMPLE_RATE), config.batch_size, config.batch_seconds, config.num_buckets)
    orders = (TrainOrder(utterances, limits, seed=0, epoch=epoch) for epoch in count())
    return list(islice(chain.from_iterable(orders), batches))


def measure(batches: list[list[Request]], workers: int) -> Rates:
    """Decode the batches here, then let a loader do it."""
    audio = sum(request.samples for batch in batches for request in batch) / SAMPLE_RATE
    started = time.process_time()
    for request in chain.from_iterable(batches):
        decode(request)
    decoding = time.process_time() - started
    before, own, started = children(), time.process_time(), time.perf_counter()
    heard = sum(batch.seconds for batch in make_loader(batches, workers))
    clock = time.perf_counter() - started
    assert heard > 0.99 * audio, "some of the audio cannot be decoded"
    return Rates(
        audio / decoding,
        audio / (children() - before),
        audio / clock,
        1e3 * (time.process_time() - own) / len(batches),
    )


def children() -> float:
    """Processor time of processes that ended, seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(main())
