"""How much sooner a grid of learning rates over the ten tasks is done: features kept, heads side by side.

    git worktree add ../before 79d06b9   # a checkout from before: its loop is the peer
    python benchmarks/superb_grid.py --data minisuperb --upstream hubert_small --before ../before --jobs 4 \\
        --out result/superb_grid --table results/superb_grid.md

First ``run_downstream.py -d superb`` with all rates of the tier, as anyone would start it. Then the plain loop of the
checkout from before, one task after the other: one of the rates, the one that was chosen, so that its figure on test
can be compared; it takes the same time at any other, and is counted once for each (query by example, which trains
nothing, once; of emotions one fold is run and counted five times). Both hear the same data with the same steps. Last,
and not timed, each task at its chosen rate with seeds of its own: how far figures move from one training to the next.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from s3prl_distiller.downstream.benchmark import figures, tiers

ROOT = Path(__file__).resolve().parents[1]
FOLDS = 5
SEEDS = 3
NEW_SECTIONS = ("features.", "search.")  # that the checkout from before does not know


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--upstream", required=True, type=Path)
    parser.add_argument("--before", required=True, type=Path, help="a checkout whose loop is the peer")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--table", required=True, type=Path)
    parser.add_argument("--tier", default="mini")
    parser.add_argument("--tasks", default=",".join(tiers.TASKS))
    parser.add_argument("--jobs", type=int, default=4, help="runs of the grid at a time on the GPU")
    args = parser.parse_args()
    tier, tasks = tiers.load_tier(args.tier), args.tasks.split(",")
    times = args.out / "times.json"
    taken: dict[str, float] = json.loads(times.read_text()) if times.is_file() else {}
    grid = [str(ROOT / "run_downstream.py"), "-d", "superb", "-u", f"{args.upstream.name}={args.upstream}"]
    grid += ["--tier", args.tier, "--tasks", args.tasks, "--data", str(args.data), "-p", str(args.out / "grid")]
    grid += ["--jobs", str(args.jobs), "-o", f"features.folder={args.out / 'features'}"]
    if "grid" not in taken:
        # What an upstream costs is no part of either.
        if not (grid_folder(args) / "cost.json").is_file():
            timed([*grid[:1], "-m", "measure", "-u", str(args.upstream), "-p", str(grid_folder(args))])
        taken["grid"] = timed(grid)
        times.write_text(json.dumps(taken), encoding="utf-8")
    for task in tasks:
        if task not in taken:
            taken[task] = timed(plain(args, tier, task))
            times.write_text(json.dumps(taken), encoding="utf-8")
        args.table.write_text(table(args, tier, [t for t in tasks if t in taken], taken), encoding="utf-8")
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(timed, [command for task in tasks if (command := several_seeds(args, tier, task))]))
    args.table.write_text(table(args, tier, tasks, taken), encoding="utf-8")
    sys.stdout.write(args.table.read_text(encoding="utf-8"))
    return 0


def timed(command: list[str]) -> float:
    started = time.monotonic()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    return round(time.monotonic() - started, 1)


def plain(args: argparse.Namespace, tier: tiers.Tier, task: str) -> list[str]:
    """The command of one run of a task in the checkout from before."""
    values = {key: value for key, value in tier.of(task).items() if not key.startswith(NEW_SECTIONS)}
    if task == "er":
        values["task.fold"] = 1
    if (rate := chosen(args, task)) is not None:
        values["optimizer.lr"] = rate
    command = [str(args.before / "run_downstream.py"), "-d", task, "-u", str(args.upstream), "--data", str(args.data)]
    return [*command, "-a", "-p", str(args.out / "plain" / task), "-o", tiers.as_override(values)]


def several_seeds(args: argparse.Namespace, tier: tiers.Tier, task: str) -> list[str] | None:
    """The command of seeds side by side; None where nothing is trained, or it is done."""
    folder, rate = args.out / "seeds" / task, chosen(args, task)
    if rate is None or (folder / "metrics-test.json").is_file():
        return None
    values = tier.of(task) | {"search.learning_rates": [rate], "search.seeds": SEEDS, "runner.seed": 1}
    values |= {"features.folder": str(args.out / "features")} | ({"task.fold": 1} if task == "er" else {})
    command = [str(ROOT / "run_downstream.py"), "-d", task, "-u", str(args.upstream), "--data", str(args.data)]
    return [*command, "-a", "-p", str(folder), "-o", tiers.as_override(values)]


def grid_folder(args: argparse.Namespace) -> Path:
    return args.out / "grid" / args.upstream.name


def of_task(args: argparse.Namespace, task: str) -> Path:
    """What the grid has to set beside a plain run."""
    folder = grid_folder(args) / task
    return folder / "fold1" if task == "er" else folder


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics-test.json").read_text(encoding="utf-8"))


def chosen(args: argparse.Namespace, task: str) -> float | None:
    search = result(of_task(args, task)).get("search")
    return None if search is None else search["chosen"]


def table(args: argparse.Namespace, tier: tiers.Tier, tasks: list[str], taken: dict[str, float]) -> str:
    """Markdown: seconds of both ways, and the figures at the chosen rate."""
    rates = len(tier.learning_rates)
    lines, total, made = [], 0.0, {}
    for task in tasks:
        counted = (1 if task == "qbe" else rates) * (FOLDS if task == "er" else 1)
        total += taken[task] * counted
        grid, before = result(of_task(args, task)), result(args.out / "plain" / task)
        seconds = result(grid_folder(args) / task).get("seconds")
        within = f"{seconds:.0f}" if seconds is not None else ""
        rate, made = chosen(args, task), grid
        for place, figure in enumerate(figures.TASKS[task].figures):
            name = figure.name
            unit = grid["metrics"][name]["unit"]
            row = [f"{task} {name}{f' ({unit})' if unit else ''}", "-" if rate is None else f"{rate:g}"]
            row += [f"{taken[task]:.0f}", f"{taken[task] * counted:.0f}", within] if place == 0 else ["", "", ""]
            row += [shown(before, name), shown(grid, name), *of_seeds(args, task, name, before, grid)]
            lines.append(f"| {' | '.join(row)} |")
    ratio = total / taken["grid"]
    return "\n".join(
        [
            f"# {rates} learning rates, {len(tasks)} tasks, {args.upstream.name}: kept and side by side against plain",
            "",
            f"**{taken['grid']:.0f} s** for the grid, all tasks, {args.jobs} runs at a time on one GPU; **{total:.0f} "
            f"s** for as many plain runs one after the other: **{ratio:.1f} times** as long.",
            "",
            "| task | rate chosen | plain, one rate (s) | plain, all (s) | side by side, own time beside others (s) "
            f"| test, plain at that rate | test, side by side | {SEEDS} other seeds, side by side | difference |",
            "|---|---|---|---|---|---|---|---|---|",
            *lines,
            "",
            "In brackets 95 % intervals over test items. Plain: the loop of commit 79d06b9, the upstream computed in "
            "every step. Emotions: the figure of fold 1, seconds of all five (plain: of one, times five). Difference: "
            "of side by side and plain, in standard deviations of the other seeds (two trainings are 1.4 apart in the "
            "mean square).",
            "",
            "```",
            f"python benchmarks/superb_grid.py --data {args.data.name} --upstream {args.upstream.name} "
            f"--before BEFORE --jobs {args.jobs} --out OUT --table {args.table.name}",
            "```",
            f"{made['device']}, {', '.join(f'{name} {version}' for name, version in made['versions'].items())}",
            "",
        ]
    )


def of_seeds(args: argparse.Namespace, task: str, name: str, before: dict[str, Any], grid: dict[str, Any]) -> list[str]:
    """The figure of each seed, and how far both ways are apart, in standard deviations of these."""
    folder = args.out / "seeds" / task
    if not (folder / "metrics-test.json").is_file():
        return ["-", "-"]
    found = result(folder)["metrics"][name]
    apart = grid["metrics"][name]["value"] - before["metrics"][name]["value"]
    told = f"{apart / found['spread']:+.1f}" if found["spread"] and apart else "0" if not apart else "-"
    return [", ".join(f"{value:.2f}" for value in found["each"]), told]


def shown(summary: dict[str, Any], name: str) -> str:
    figure = summary["metrics"][name]
    if figure["value"] is None:
        return "-"
    return f"{figure['value']:.2f} [{figure['low']:.1f}, {figure['high']:.1f}]"


if __name__ == "__main__":
    sys.exit(main())
