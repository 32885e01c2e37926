"""A language with half an hour of speech: what is a student worth there that was distilled on it, or on English?

    python benchmarks/low_resource.py --data minisuperb --teacher hubert_small --out result/low_resource \\
        --table results/low_resource.md

The same teacher, recipe and number of steps on English ("en"), English and Portuguese ("en+pt"), Portuguese ("pt"),
and English for half of the steps, then Portuguese from there ("en, then pt"); several seeds each. Students, teacher and
a student that was not trained are judged on Portuguese that none was distilled on: same or different of the words of
test, paired with those of all splits, and the character error rate of a small CTC head on the sentences with text. What
was done is not done again, so that the script goes on where it was stopped.

Intervals are over test items, of the mean over seeds: each draw takes the same items for all, so that differences have
intervals too. A picture is written beside the table.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from s3prl_distiller.downstream.core.results import read_rows
from s3prl_distiller.downstream.core.run import task_class

from s3prl_distiller import machine
from s3prl_distiller.data.config import cores

ROOT = Path(__file__).resolve().parents[1]
LANGUAGES = {"en": ["en"], "en+pt": ["en", "pt-BR", "pt-PT"], "pt": ["pt-BR", "pt-PT"]}
THEN, UNTRAINED, TEACHER = "en, then pt", "untrained", "teacher"
NAMES = [*LANGUAGES, THEN, UNTRAINED, TEACHER]
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
    add("--table", type=Path, help="without one, only the runs are made")
    add("--seeds", type=int, default=3)
    add("--steps", type=int, default=2000, help="of each distillation")
    add("--head-steps", type=int, default=600, help="of each CTC head")
    add("--jobs", type=int, default=3, help="runs at a time, on each GPU if there are some")
    args = parser.parse_args()
    places = machine.visible_gpus(torch.device("cuda")) or [""]
    args.places = queue.Queue()
    for place in places * args.jobs:
        args.places.put(place)
    args.jobs *= len(places)
    write_manifests(args.data, args.out)
    note_machine(args.out / "made_on.txt")
    seeds = range(1, args.seeds + 1)
    students = [(name, seed) for name in (THEN, *LANGUAGES, UNTRAINED) for seed in seeds]  # the longest first
    judged = [(name, seed, task) for task in reversed(TASKS) for name, seed in [*students, (TEACHER, 1)]]
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda job: distil(args, *job), students))
        list(pool.map(lambda job: judge(args, *job), judged))
    if args.table is None:
        return 0
    figures = {(name, task): Figures.of(args, name, task, seeds) for name in NAMES for task in FIGURES}
    text = table(args, figures)
    sys.stdout.write(text)
    args.table.write_text(text, encoding="utf-8")
    draw(figures, args.table.with_suffix(".png"))
    return 0


def write_manifests(data: Path, out: Path) -> None:
    """What each student hears, without labels, and the sentences that a head learns from and is judged on."""
    rows = read_rows(data / "pretrain.jsonl")
    heard = [row for row in rows if row["lang"] in {language for each in LANGUAGES.values() for language in each}]
    waves = decoded(data, [row["audio"] for row in heard], out / "wav")
    for name, languages in LANGUAGES.items():
        lines = [
            {**row, "audio": str(wave)} for row, wave in zip(heard, waves, strict=True) if row["lang"] in languages
        ]
        _write(out / "data" / f"{name}.jsonl", lines)
    folder = data / "portuguese_mini"
    for split in ("train", "dev", "test"):
        rows = [row for row in read_rows(folder / f"{split}.jsonl") if row["text"]]
        waves = decoded(folder, [row["audio"] for row in rows], out / "wav" / folder.name)
        sentences = [
            {**row, "audio": str(wave), "text": plain(row["text"])} for row, wave in zip(rows, waves, strict=True)
        ]
        _write(out / "data" / "sentences" / f"{split}.jsonl", sentences)


def decoded(data: Path, files: Sequence[str], out: Path) -> list[Path]:
    """Each file as WAV of the same samples: many runs read them many times, and Opus is slow to decode."""

    def decode(file: str) -> Path:
        wave = (out / file).with_suffix(".wav").resolve()
        if not wave.is_file():
            wave.parent.mkdir(parents=True, exist_ok=True)
            samples, rate = soundfile.read(data / file, dtype="float32")
            soundfile.write(wave, samples, rate, subtype="FLOAT")
        return wave

    with ThreadPoolExecutor(cores()) as pool:
        return list(pool.map(decode, files))


def note_machine(path: Path) -> None:
    """Where students are made: the table may be written elsewhere."""
    device = machine.device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    found = ", ".join(f"{key} {value}" for key, value in machine.versions().items())
    if not path.is_file():
        path.write_text(f"{device}; {found}.", encoding="utf-8")


def plain(text: str) -> str:
    """In lower case, without punctuation."""
    return " ".join("".join(c if c.isalpha() or c.isspace() else " " for c in text.lower()).split())


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def folder_of(args: argparse.Namespace, name: str, seed: int) -> Path:
    return args.out / "students" / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"


def distil(args: argparse.Namespace, name: str, seed: int) -> None:
    if name == THEN:
        half = folder_of(args, "en, half", seed)
        _pretrain(args, half, "en", seed, args.steps // 2)
        more = ["-e", str(half / f"states-{args.steps // 2}.ckpt")]
        _pretrain(args, folder_of(args, name, seed), "pt", seed, args.steps - args.steps // 2, more=more)
    elif name == UNTRAINED:  # one update of size 0
        _pretrain(args, folder_of(args, name, seed), "pt", seed, 1, ",optimizer.lr=1e-12")
    else:
        _pretrain(args, folder_of(args, name, seed), name, seed, args.steps)


def _pretrain(
    args: argparse.Namespace,
    folder: Path,
    heard: str,
    seed: int,
    steps: int,
    options: str = "",
    more: Sequence[str] = (),
) -> None:
    if (folder / "summary.md").is_file():
        return
    options = f"runner.total_steps={steps},runner.eval_step={max(1, steps // 4)},runner.save_step={steps}{options}"
    options += f",runner.log_step=50,runner.seed={seed},data.num_workers={workers(args)}"
    data = args.out / "data" / f"{heard}.jsonl"
    command = ["run_pretrain.py", "-u", "distiller", "--teacher", str(args.teacher), "--data", str(data)]
    if (folder / "config.yaml").is_file():
        more = ["-a"]  # it was stopped
    _run(args, [*command, "-p", str(folder), "-o", options, *more], folder)


def judge(args: argparse.Namespace, name: str, seed: int, task: str) -> None:
    folder = args.out / "judged" / f"{folder_of(args, name, seed).name}-{task}"
    if (folder / "metrics-test.json").is_file():
        return
    student = folder_of(args, name, seed)
    upstream = args.teacher if name == TEACHER else max(student.glob("states-*.ckpt"), key=lambda p: int(p.stem[7:]))
    data = args.out / "data" / "sentences" if task == "asr" else args.data / "portuguese_mini"
    every = max(1, args.head_steps // 4)
    options = TASKS[task].format(steps=args.head_steps, every=every)
    command = ["run_downstream.py", "-u", str(upstream), "-d", task, "--data", str(data), "-p", str(folder), "-a"]
    # A student's last layer, as DistilHuBERT's authors; of a teacher's many, the best on dev, or a weighted sum.
    if task == "same_different":
        options += "" if name == TEACHER else ",task.layer=2"
    else:
        command += ["-s", "hidden_states" if name == TEACHER else "paper"]
    _run(args, [*command, "-o", f"{options},runner.seed={seed},data.num_workers={workers(args)}"], folder)


def workers(args: argparse.Namespace) -> int:
    """Decoding processes of each of the runs that share the cores."""
    return max(1, cores() // args.jobs - 1)


def _run(args: argparse.Namespace, command: list[str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / command[0]), *command[1:]]
    place = args.places.get()
    with (folder / "output.txt").open("w") as output:
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": place}
        done = subprocess.run(command, stdout=output, stderr=output, env=environment)
    args.places.put(place)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: see {folder / 'output.txt'}")
    sys.stderr.write(f"{folder.name} is done\n")


@dataclass
class Figures:
    """How one kind of student did in a task.

    Attributes:
        seeds: of each seed, %.
        drawn: (:data:`DRAWS`,) means over the seeds, of draws of test items. Each kind has the same draws.
    """

    seeds: list[float]
    drawn: np.ndarray

    @classmethod
    def of(cls, args: argparse.Namespace, name: str, task: str, seeds: Sequence[int]) -> Figures:
        rows = [rows_of(args, name, seed, task) for seed in (seeds if name != TEACHER else [1])]
        return cls([_score(task, each) for each in rows], np.mean([_drawn(task, each) for each in rows], 0))

    @property
    def mean(self) -> float:
        return float(np.mean(self.seeds))


def rows_of(args: argparse.Namespace, name: str, seed: int, task: str) -> list[dict[str, Any]]:
    return read_rows(args.out / "judged" / f"{folder_of(args, name, seed).name}-{task}" / "predictions-test.jsonl")


def _score(task: str, rows: Sequence[dict[str, Any]], figure: str | None = None) -> float:
    kind = task_class(task)
    return kind(kind.config_class()).score(rows)[figure or FIGURES[task]]


def _drawn(task: str, rows: Sequence[dict[str, Any]]) -> list[float]:
    """The figure of draws of test items; NaN where a draw has none."""
    kind = task_class(task)
    score = kind(kind.config_class()).scorer(rows)
    places: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(str(row[kind.resample_by or "id"]), []).append(place)
    items = [np.array(places[item]) for item in sorted(places)]
    draws = np.random.default_rng(0).integers(0, len(items), (DRAWS, len(items)))
    return [score(np.concatenate([items[index] for index in draw]))[FIGURES[task]] for draw in draws]


def table(args: argparse.Namespace, figures: dict[tuple[str, str], Figures]) -> str:
    lines = ["# Portuguese: students distilled on it, on English, or on both", ""]
    lines += ["| distilled on | same or different, AP % | CER % of a CTC head |", "|---|---|---|"]
    for name in NAMES:
        cells = [figures[name, task] for task in FIGURES]
        lines.append(f"| {name} | {' | '.join(_with_seeds(each) for each in cells)} |")
    lines += ["", "Mean over seeds (each seed) [95 % interval over test items]. The difference to English alone:", ""]
    lines += ["| distilled on | AP | CER |", "|---|---|---|"]
    for name in NAMES[1:]:
        cells = [_difference(figures[name, task], figures["en", task]) for task in FIGURES]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    chance = _score("same_different", rows_of(args, "en", 1, "same_different"), "chance")
    made_on = (args.out / "made_on.txt").read_text(encoding="utf-8")
    lines += ["", f"Chance of AP is {chance:.2f} %. {made_on}", f"`python {' '.join(sys.argv)}`", ""]
    return "\n".join(lines)


def _with_seeds(figures: Figures) -> str:
    each = f" ({', '.join(f'{value:.2f}' for value in figures.seeds)})" if len(figures.seeds) > 1 else ""
    return f"{figures.mean:.2f}{each} [{_interval(figures.drawn, '.2f')}]"


def _difference(one: Figures, two: Figures) -> str:
    return f"{one.mean - two.mean:+.2f} [{_interval(one.drawn - two.drawn, '+.2f')}]"


def _interval(drawn: np.ndarray, form: str) -> str:
    return ", ".join(format(value, form) for value in np.nanpercentile(drawn, [2.5, 97.5]))


def draw(figures: dict[tuple[str, str], Figures], path: Path) -> None:
    """Seeds as dots, their mean with its interval over test items."""
    from matplotlib import pyplot

    picture, panels = pyplot.subplots(1, 2, figsize=(10, 3.2), sharey=True, layout="constrained")
    for panel, task, title in zip(panels, FIGURES, ("same or different, AP %", "CER % of a CTC head"), strict=True):
        for place, name in enumerate(NAMES):
            found = figures[name, task]
            low, high = np.nanpercentile(found.drawn, [2.5, 97.5])
            panel.plot([low, high], [place, place], color="tab:blue", linewidth=2)
            panel.plot(found.mean, place, "|", color="tab:blue", markersize=14, markeredgewidth=2)
            panel.plot(found.seeds, [place] * len(found.seeds), "o", color="black", markersize=3)
        panel.set_title(title)
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(NAMES)), NAMES)
    panels[0].invert_yaxis()
    picture.suptitle(
        "Portuguese, by what the student was distilled on: mean with 95 % interval, each seed", fontsize=10
    )
    picture.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
