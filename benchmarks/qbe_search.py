"""How fast query by example searches: 60 queries in 200 documents of 10 s, one layer, on a CPU.

    python benchmarks/qbe_search.py --threads 2 --out results/qbe_search.md

The peer is ``librosa.sequence.dtw`` (compiled with numba) with the same step pattern, pair by pair, on a sample of the
pairs, as a loop over s3prl's 12,000 pairs would call it. Costs of the sampled pairs are compared before times are.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from s3prl_distiller.downstream.heads.dtw import costs

QUERIES, DOCUMENTS, WIDTH = 60, 200, 768
QUERY_FRAMES, DOCUMENT_FRAMES = (30, 80), (450, 550)  # at 50 frames a second: about 1 s and 10 s


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sample", type=int, default=200, help="pairs that the peer is timed on")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(0)
    queries = [utterance(rng, QUERY_FRAMES) for _ in range(QUERIES)]
    documents = [utterance(rng, DOCUMENT_FRAMES) for _ in range(DOCUMENTS)]
    pairs = [(int(q), int(d)) for q, d in rng.integers((QUERIES, DOCUMENTS), size=(args.sample, 2))]
    peer(queries[0], documents[0])  # compiles
    ours, theirs = [], []
    for _ in range(args.repeats):
        started = time.perf_counter()
        found = costs(queries, documents)
        ours.append(time.perf_counter() - started)
        started = time.perf_counter()
        expected = [peer(queries[q], documents[d]) for q, d in pairs]
        theirs.append((time.perf_counter() - started) * QUERIES * DOCUMENTS / args.sample)
    difference = max(abs(float(found[q, d]) - cost) for (q, d), cost in zip(pairs, expected, strict=True))
    text = report(args, sorted(ours), sorted(theirs), difference)
    sys.stdout.write(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    return 0 if difference < 1e-4 else 1


def utterance(rng: np.random.Generator, frames: tuple[int, int]) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal((rng.integers(*frames), WIDTH)).astype(np.float32))


def peer(query: torch.Tensor, document: torch.Tensor) -> float:
    """Cost of one pair: the same distances, then librosa's subsequence alignment."""
    import librosa

    one, other = torch.nn.functional.normalize(query, dim=-1), torch.nn.functional.normalize(document, dim=-1)
    distances = torch.exp(1 - one @ other.T).numpy() - 1
    low, high = distances.min(1, keepdims=True), distances.max(1, keepdims=True)
    distances = (distances - low) / (high - low)
    # The first frame may lie anywhere; each later one moves on by 0, 1 or 2 frames of the document.
    steps = np.array([[1, 0], [1, 1], [1, 2]])
    total = librosa.sequence.dtw(
        C=distances,
        subseq=True,
        step_sizes_sigma=steps,
        weights_mul=np.ones(3),
        weights_add=np.zeros(3),
        backtrack=False,
    )
    return float(total[-1].min() / len(query))


def report(args: argparse.Namespace, ours: list[float], theirs: list[float], difference: float) -> str:
    mine, other = ours[len(ours) // 2], theirs[len(theirs) // 2]
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "librosa", "numba", "numpy"))
    return "\n".join(
        [
            f"# Query by example: {QUERIES} queries x {DOCUMENTS} documents of 10 s, {WIDTH} wide, one layer",
            "",
            "| | seconds: median (lowest to highest) |",
            "|---|---|",
            f"| `downstream/heads/dtw.py` | {mine:.1f} ({ours[0]:.1f} to {ours[-1]:.1f}) |",
            f"| librosa.sequence.dtw, pair by pair, from {args.sample} pairs | "
            f"{other:.1f} ({theirs[0]:.1f} to {theirs[-1]:.1f}) |",
            "",
            f"{other / mine:.1f} times as fast; costs of the sampled pairs differ by {difference:.1e} at most.",
            f"{args.repeats} repeats, {args.threads} threads, {platform.processor() or platform.machine()}; Python "
            f"{platform.python_version()}, {versions}.",
            f"`python benchmarks/qbe_search.py --threads {args.threads} --sample {args.sample} "
            f"--repeats {args.repeats}`",
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
