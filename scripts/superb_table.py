"""Run SUPERB's tasks for several upstreams, a few runs at a time, and make one table of what they leave.

    python scripts/superb_table.py --data minisuperb --out results/superb_mini \\
        --upstream fbank=fbank --upstream hubert_small=PATH --upstream student=PATH --settings schedule.yaml --jobs 6

``schedule.yaml`` holds overrides for each run: ``task: [key=value, ...]``. A run that has its figures already is passed
over, so that the same command goes on after an interruption. The table is made from the runs' ``metrics-test.json``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
HEADLINE = {
    "pr": ["per"],
    "asr": ["wer"],
    "ks": ["acc"],
    "qbe": ["mtwv"],
    "sid": ["acc"],
    "sid_1s": ["acc"],
    "asv": ["eer"],
    "sd": ["der"],
    "ic": ["acc"],
    "sf": ["slot_f1", "slot_cer"],
    "er": ["acc"],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="root of the corpora")
    parser.add_argument(
        "--out", required=True, type=Path, help="runs go to OUT/UPSTREAM/TASK, the table to OUT/table.md"
    )
    parser.add_argument(
        "--upstream", action="append", default=[], metavar="NAME=WHAT", help="as -u of run_downstream.py"
    )
    parser.add_argument("--settings", type=Path, help="YAML: overrides by task")
    parser.add_argument("--tasks", default=",".join(HEADLINE))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="only make the table")
    args = parser.parse_args()
    settings = yaml.safe_load(args.settings.read_text()) if args.settings else {}
    upstreams = dict(pair.split("=", 1) for pair in args.upstream)
    tasks = args.tasks.split(",")
    failed = 0
    if not args.table:
        # The longest first: no job is left alone at the end.
        order = [task for task in ("asr", "sf", "er", "sd", *tasks) if task in tasks]
        jobs = [(name, what, task) for task in dict.fromkeys(order) for name, what in upstreams.items()]
        with ThreadPoolExecutor(args.jobs) as pool:
            failed = sum(pool.map(lambda job: run(job[0], job[1], job[2], settings, args), jobs))
    (args.out / "table.md").write_text(table(args.out, list(upstreams)), encoding="utf-8")
    sys.stdout.write((args.out / "table.md").read_text(encoding="utf-8"))
    return 1 if failed else 0


def run(name: str, what: str, task: str, settings: dict[str, list[str]], args: argparse.Namespace) -> bool:
    """Start one run and wait for it; whether it failed."""
    folder = args.out / name / task
    if (folder / "metrics-test.json").is_file():
        return False
    overrides = [*settings.get("all", []), *settings.get(task, [])]
    command = [sys.executable, str(ROOT / "run_downstream.py"), "-u", what, "-d", task.removesuffix("_1s"), "-a"]
    command += ["-p", str(folder), "--data", args.data, *(["-o", ",".join(overrides)] if overrides else [])]
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "stdout.txt").open("w") as out:
        status = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, check=False).returncode
    sys.stderr.write(f"{name} {task}: exit {status}, {time.monotonic() - started:.0f} s\n")
    return status != 0


def table(folder: Path, upstreams: list[str]) -> str:
    """Markdown: a row for each figure, a column for each upstream, 95 % intervals in brackets."""
    lines = [f"| task | figure | {' | '.join(upstreams)} |", f"|---|---|{'---|' * len(upstreams)}"]
    for task, names in HEADLINE.items():
        found = {name: read(folder / name / task / "metrics-test.json") for name in upstreams}
        if not any(found.values()):
            continue
        for figure in names:
            cells = [cell(found[name], figure) for name in upstreams]
            lines.append(f"| {task} | {figure} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))["metrics"] if path.is_file() else {}


def cell(metrics: dict, figure: str) -> str:
    if figure not in metrics or metrics[figure]["value"] is None:
        return "-"
    found = metrics[figure]
    interval = f" [{found['low']:.1f}, {found['high']:.1f}]" if found["low"] is not None else ""
    return f"{found['value']:.2f}{interval}"


if __name__ == "__main__":
    sys.exit(main())
