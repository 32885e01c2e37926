"""Memory for the list of a large corpus and for the order of an epoch: no audio, made-up durations.

    python benchmarks/data_memory.py --hours 10000

Utterances of 12 s on average lie in tars of 1000 each. Each way to shuffle runs in a process of its own.
"""

from __future__ import annotations

import argparse
import gc
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch

from s3prl_distiller.data import Corpus, DataConfig
from s3prl_distiller.data.utterance import TarMember, Utterance
from s3prl_distiller.machine import device_name, versions

_SECONDS, _PER_TAR, _VALID = 12.0, 1000, 100


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=10_000)
    parser.add_argument("--shuffle", choices=["all", "shards"], help="one way only, in this process")
    args = parser.parse_args()
    if args.shuffle:
        measure(args.hours, args.shuffle)
        return 0
    sys.stdout.write(f"# Memory for {args.hours:,.0f} hours of speech\n")
    for shuffle in ("all", "shards"):
        command = [sys.executable, __file__, "--hours", str(args.hours), "--shuffle", shuffle]
        sys.stdout.write("\n" + subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    found = {**versions(), "lhotse": version("lhotse")}
    sys.stdout.write(
        f"\n`python benchmarks/data_memory.py --hours {args.hours:g}` on {device_name(torch.device('cpu'))}; "
        f"{', '.join(f'{name} {number}' for name, number in found.items())}.\n"
    )
    return 0


def measure(hours: float, shuffle: str) -> None:
    """Write a table of the memory at each stage."""
    rows: list[tuple[str, float, float]] = []

    def note(stage: str) -> None:
        rows.append((stage, resident(), time.perf_counter() - started))

    started = time.perf_counter()
    count = round(hours * 3600 / _SECONDS)
    note("before")
    listed = list(utterances(count))
    gc.collect()
    note(f"list of {count:,} utterances")
    each = (rows[-1][1] - rows[-2][1]) / count
    config = DataConfig(shuffle=shuffle)
    corpus = Corpus(config, listed[_VALID:], listed[:_VALID], 250_000, 0, [], [], Path())
    del listed
    note("corpus with its fingerprint")
    used, mark = 0, 0
    for batch in corpus.train_order(0):
        if mark == 0:
            note("first batch of the epoch")
            mark = 1
        used += len(batch)
        while mark <= 10 and used >= corpus.train_utterances * mark / 10:
            note(f"{10 * mark} % of the epoch")
            mark += 1
    assert used == corpus.train_utterances
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    lines = [f"## data.shuffle={shuffle}", "", "| | memory, MB | seconds since the start |", "|---|---|---|"]
    lines += [f"| {stage} | {size / 1e6:,.0f} | {seconds:,.0f} |" for stage, size, seconds in rows]
    lines += ["", f"{each:.0f} bytes an utterance in the list; {peak / 1e6:,.0f} MB at the highest."]
    sys.stdout.write("\n".join(lines) + "\n")


def utterances(count: int) -> Iterator[Utterance]:
    """As a Shar folder gives them."""
    rng = random.Random(0)
    for low in range(0, count, _PER_TAR):
        path, offset = f"/data/speech/recording.{low // _PER_TAR:06d}.tar", 0
        for index in range(low, min(low + _PER_TAR, count)):
            name, seconds = f"speaker-{index % 9973:04d}-{index:08d}", rng.triangular(2.0, 22.0, _SECONDS)
            size = int(seconds * 18_000)
            yield Utterance(name, name, TarMember(path, f"{name}.flac", offset, size), duration=seconds)
            offset += size + 1536


def resident() -> int:
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    sys.exit(main())
