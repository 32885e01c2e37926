"""A language with half an hour of speech: what is a student worth there that was distilled on it, or on English?

    python benchmarks/low_resource.py --data minisuperb --teacher hubert_small --out result/low_resource \\
        --table results/low_resource.md

The same teacher, recipe and number of steps on English ("en"), English and Portuguese ("en+pt"), Portuguese ("pt"),
and English for half of the steps, then Portuguese from there ("en, then pt"); several seeds each. Students, teacher and
a student that was not trained are judged on Portuguese that none was distilled on: same or different of the words of
test, paired with those of all splits, and the character error rate of a small CTC head on the sentences with text. What
was done is not done again, so that the script goes on where it was stopped.

Intervals are over test items: the same are drawn for two students of one seed, and their difference is taken; means
over the seeds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from s3prl_distiller.downstream.core.results import read_rows
from s3prl_distiller.downstream.core.run import task_class

from s3prl_distiller import machine
from s3prl_distiller.data.config import cores

ROOT = Path(__file__).resolve().parents[1]
LANGUAGES = {"en": ["en"], "en+pt": ["en", "pt-BR", "pt-PT"], "pt": ["pt-BR", "pt-PT"]}
THEN = "en, then pt"
FIGURES = {"same_different": "ap", "asr": "cer"}
TASKS = {
    "same_different": "task.against=all",
    "asr": "task.alphabet=train,task.project_dim=256,task.hidden=256,task.specaug.apply_time_mask=false,"
    "runner.total_steps={steps},runner.eval_step={every},runner.save_step={every},runner.log_step=50,"
    "optimizer.lr=1e-3,data.batch_size=16,data.long_seconds=0",
}
DRAWS = 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", required=True, type=Path, help="minisuperb")
    add("--teacher", required=True, type=Path)
    add("--out", required=True, type=Path)
    add("--table", required=True, type=Path)
    add("--seeds", type=int, default=3)
    add("--steps", type=int, default=2000, help="of each distillation")
    add("--head-steps", type=int, default=600, help="of each CTC head")
    add("--jobs", type=int, default=3, help="runs at a time")
    args = parser.parse_args()
    write_manifests(args.data, args.out)
    seeds = range(1, args.seeds + 1)
    with ThreadPoolExecutor(args.jobs) as pool:
        first = [(name, seed) for name in LANGUAGES for seed in seeds]
        list(pool.map(lambda job: distil(args, *job), first))
        list(pool.map(partial(go_on, args), seeds))
        judged = [(name, seed, task) for name in (*LANGUAGES, THEN, "untrained") for seed in seeds for task in TASKS]
        judged += [("teacher", 1, task) for task in TASKS]
        list(pool.map(lambda job: judge(args, *job), judged))
    text = table(args, seeds)
    sys.stdout.write(text)
    args.table.write_text(text, encoding="utf-8")
    return 0


def write_manifests(data: Path, out: Path) -> None:
    """What each student hears, without labels, and the sentences that a head learns from and is judged on."""
    rows = [json.loads(line) for line in (data / "pretrain.jsonl").read_text(encoding="utf-8").splitlines()]
    for name, languages in LANGUAGES.items():
        lines = [{**row, "audio": str((data / row["audio"]).resolve())} for row in rows if row["lang"] in languages]
        _write(out / "data" / f"{name}.jsonl", lines)
    folder = data / "portuguese_mini"
    for split in ("train", "dev", "test"):
        rows = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        sentences = [{**row, "audio": str((folder / row["audio"]).resolve())} for row in rows if row["text"]]
        _write(
            out / "data" / "sentences" / f"{split}.jsonl", [{**row, "text": plain(row["text"])} for row in sentences]
        )


def plain(text: str) -> str:
    """In lower case, without punctuation."""
    return " ".join("".join(c if c.isalpha() or c.isspace() else " " for c in text.lower()).split())


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def folder_of(args: argparse.Namespace, name: str, seed: int) -> Path:
    return args.out / "students" / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"


def distil(args: argparse.Namespace, name: str, seed: int) -> None:
    _pretrain(args, name, seed, args.steps)
    if name == "en":
        # Half of the steps, for those that go on with Portuguese, and one update of size 0: no training at all.
        _pretrain(args, "en, half", seed, args.steps // 2, "en")
        _pretrain(args, "untrained", seed, 1, "en", "optimizer.lr=1e-12")


def go_on(args: argparse.Namespace, seed: int) -> None:
    before = folder_of(args, "en, half", seed) / f"states-{args.steps // 2}.ckpt"
    _pretrain(args, THEN, seed, args.steps - args.steps // 2, "pt", "", ["-e", str(before)])


def _pretrain(
    args: argparse.Namespace,
    name: str,
    seed: int,
    steps: int,
    heard: str | None = None,
    override: str = "",
    more: Sequence[str] = (),
) -> None:
    folder = folder_of(args, name, seed)
    if (folder / "summary.md").is_file():
        return
    options = f"runner.total_steps={steps},runner.eval_step={max(1, steps // 4)},runner.save_step={steps},"
    options += f"runner.log_step=50,runner.seed={seed},data.num_workers={max(1, cores() // args.jobs - 1)}"
    options += f",{override}" if override else ""
    data = args.out / "data" / f"{heard or name}.jsonl"
    command = ["run_pretrain.py", "-u", "distiller", "--teacher", str(args.teacher), "--data", str(data)]
    if (folder / "config.yaml").is_file():
        more = ["-a"]  # it was stopped
    _run([*command, "-p", str(folder), "-o", options, *more], folder)


def judge(args: argparse.Namespace, name: str, seed: int, task: str) -> None:
    folder = args.out / "judged" / f"{folder_of(args, name, seed).name}-{task}"
    if (folder / "metrics-test.json").is_file():
        return
    student = folder_of(args, name, seed)
    upstream = args.teacher if name == "teacher" else max(student.glob("states-*.ckpt"), key=lambda p: int(p.stem[7:]))
    data = args.out / "data" / "sentences" if task == "asr" else args.data / "portuguese_mini"
    every = max(1, args.head_steps // 4)
    options = TASKS[task].format(steps=args.head_steps, every=every)
    command = ["run_downstream.py", "-u", str(upstream), "-d", task, "--data", str(data), "-p", str(folder), "-a"]
    # A student's last layer, as DistilHuBERT's authors; of a teacher's many, the best on dev, or a weighted sum.
    if task == "same_different":
        options += "" if name == "teacher" else ",task.layer=2"
    else:
        command += ["-s", "hidden_states" if name == "teacher" else "paper"]
    _run([*command, "-o", f"{options},runner.seed={seed}"], folder)


def _run(command: list[str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "output.txt").open("w") as output:
        done = subprocess.run([sys.executable, str(ROOT / command[0]), *command[1:]], stdout=output, stderr=output)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: see {folder / 'output.txt'}")
    sys.stderr.write(f"{folder.name} is done\n")


def rows_of(args: argparse.Namespace, name: str, seed: int, task: str) -> list[dict[str, Any]]:
    return read_rows(args.out / "judged" / f"{folder_of(args, name, seed).name}-{task}" / "predictions-test.jsonl")


def table(args: argparse.Namespace, seeds: Sequence[int]) -> str:
    lines = ["# Portuguese: students distilled on it, on English, or on both", ""]
    lines += ["| distilled on | same or different, AP % | CER % of a CTC head |", "|---|---|---|"]
    names = [*LANGUAGES, THEN, "untrained"]
    for name in names:
        cells = [_figures([_score(task, rows_of(args, name, seed, task)) for seed in seeds]) for task in FIGURES]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    cells = [f"{_score(task, rows_of(args, 'teacher', 1, task)):.2f}" for task in FIGURES]
    lines += [f"| the teacher | {' | '.join(cells)} |", ""]
    lines += [
        "Mean over seeds (each seed). The difference to English alone, with its 95 % interval over test items:",
        "",
    ]
    lines += ["| distilled on | AP | CER |", "|---|---|---|"]
    for name in names[1:]:
        cells = [_difference(args, name, "en", seeds, task) for task in FIGURES]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    found = ", ".join(f"{key} {value}" for key, value in machine.versions().items())
    device = machine.device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    chance = _score("same_different", rows_of(args, "en", seeds[0], "same_different"), "chance")
    lines += ["", f"Chance of AP is {chance:.2f} %. {device}; {found}.", f"`python {' '.join(sys.argv)}`", ""]
    return "\n".join(lines)


def _figures(values: list[float]) -> str:
    return f"{np.mean(values):.2f} ({', '.join(f'{value:.2f}' for value in values)})"


def _score(task: str, rows: Sequence[dict[str, Any]], figure: str | None = None) -> float:
    kind = task_class(task)
    return kind(kind.config_class()).score(rows)[figure or FIGURES[task]]


def _difference(args: argparse.Namespace, name: str, other: str, seeds: Sequence[int], task: str) -> str:
    """Of two kinds of student: each draw takes the same test items of both, for every seed."""
    both = [[_by_item(rows_of(args, kind, seed, task), task) for kind in (name, other)] for seed in seeds]
    items = sorted(set.intersection(*(set(places) for pair in both for _, places in pair)))

    def mean(chosen: Sequence[str]) -> float:
        scores = [[score(np.concatenate([places[item] for item in chosen])) for score, places in pair] for pair in both]
        return float(np.mean([one - two for one, two in scores]))

    drawn = np.random.default_rng(0)
    means = [mean([items[index] for index in drawn.integers(0, len(items), len(items))]) for _ in range(DRAWS)]
    low, high = np.nanpercentile(means, [2.5, 97.5])
    return f"{mean(items):+.2f} [{low:+.2f}, {high:+.2f}]"


def _by_item(rows: Sequence[dict[str, Any]], task: str) -> tuple[Callable[[Any], float], dict[str, list[int]]]:
    """The figure of a draw of rows, and the places of the rows of each test item."""
    kind = task_class(task)
    score = kind(kind.config_class()).scorer(rows)
    places: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(str(row[kind.resample_by or "id"]), []).append(place)
    return lambda drawn: score(drawn)[FIGURES[task]], places


if __name__ == "__main__":
    sys.exit(main())
