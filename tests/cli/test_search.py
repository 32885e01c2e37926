"""Learning rates and seeds side by side on features that are computed once: what each would have come to alone."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from .conftest import BUNDLE, Commands
from .tiny_runs import log_lines, metrics, says

RATES = (0.001, 0.01, 0.1)
GRID = ["--learning-rates", ",".join(map(str, RATES))]
STEPS = "runner.total_steps=6,runner.eval_step=2,runner.log_step=1,runner.save_step=3,data.batch_size=4"


def training(task: str, minis: Path, name: str, *more: str) -> list[str]:
    nano = str(BUNDLE / "hubert_nano")
    fixed = ["-u", nano, "-d", task, "-n", name, "--data", str(minis), "-o", f"{STEPS},task.unseen_labels=skip"]
    return [*fixed, *more]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


@pytest.mark.parametrize("task", ["ks", "pr"])
def test_heads_side_by_side_learn_what_they_learn_alone(
    task: str, commands: Commands, minis: Path, tmp_path: Path
) -> None:
    """On kept features; against as many plain runs, which compute them for each batch."""
    kept = ["--features", "-o", f"features.dtype=float32,features.folder={tmp_path / 'features'}"]
    commands.at_once(
        lambda: commands.downstream(tmp_path, *training(task, minis, "grid", *GRID, *kept)).success(),
        *(
            lambda rate=rate: commands.downstream(
                tmp_path, *training(task, minis, f"alone{rate}", "-o", f"optimizer.lr={rate}")
            ).success()
            for rate in RATES
        ),
    )
    result = tmp_path / "result" / "downstream"
    name = metrics(tmp_path, "grid")["metric"]
    grid = log_lines(tmp_path, "valid", "grid")
    losses = log_lines(tmp_path, "train", "grid")
    best = {}
    for rate in RATES:
        alone = log_lines(tmp_path, "valid", f"alone{rate}")
        assert [line[f"{name}/lr-{rate}"] for line in grid] == pytest.approx([line[name] for line in alone], abs=1e-3)
        expected = [line["loss"] for line in log_lines(tmp_path, "train", f"alone{rate}")]
        assert [line[f"loss/lr-{rate}"] for line in losses] == pytest.approx(expected, rel=1e-3)
        figures = [line[name] for line in alone]
        best[rate] = min(figures) if name == "per" else max(figures)
    search = metrics(tmp_path, "grid")["search"]
    assert {member["lr"]: member["best"] for member in search["members"]} == pytest.approx(best, abs=1e-3)
    assert search["chosen"] == min(best, key=lambda rate: (best[rate] if name == "per" else -best[rate], rate))
    # The run is that of the chosen rate alone: its weights, its settings, its figures, and it can be used like one.
    chosen = result / f"alone{search['chosen']}"
    ours, theirs = weights(result / "grid" / "best"), weights(chosen / "best")
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        # Adam turns the rounding of a gradient near zero into a step of its own: single weights may differ.
        assert (tensor - theirs[key]).abs().mean() < 1e-5, key
    saved = json.loads((result / "grid" / "best" / "config.json").read_text())
    assert saved["settings"]["optimizer"]["lr"] == search["chosen"]
    assert not saved["settings"]["search"]["learning_rates"]
    figure = metrics(tmp_path, "grid")["metrics"][name]
    assert figure == pytest.approx(metrics(tmp_path, chosen.name)["metrics"][name], abs=1e-3)
    assert "are kept" in (result / "grid" / "summary.md").read_text()
    assert not [path for path in (result / "grid").glob("lr-*") if path.name != f"lr-{search['chosen']}"]
    again = commands.downstream(tmp_path, "-m", "evaluate", "-e", str(result / "grid"), "-t", "dev").success()
    assert f"# {task} with" in again.out


def test_a_stopped_grid_ends_as_one_in_one_go(
    commands: Commands, minis: Path, tmp_path: Path, contents: Callable[[Path], dict[str, str]]
) -> None:
    more = [*GRID, "--features", "-o", f"features.folder={tmp_path / 'features'},runner.save_step=1000"]
    endless = training("ks", minis, "stopped", *more, "-o", "runner.total_steps=100000,runner.eval_step=1000")
    running = commands.start(tmp_path, *endless, script="run_downstream.py")
    result = tmp_path / "result" / "downstream"
    log = result / "stopped" / "log.jsonl"
    assert running.until(lambda: log.is_file() and log.read_bytes().count(b"\n") > 4)
    # It cannot be used before it has chosen.
    running.send(signal.SIGTERM)
    assert running.wait().status == 0
    (saved,) = (result / "stopped").glob("states-*")
    says(
        commands.downstream(tmp_path, "-m", "evaluate", "-e", str(result / "stopped")),
        "has not chosen among its heads yet",
    )
    steps = f"runner.total_steps={int(saved.name.removeprefix('states-')) + 4},runner.eval_step=1000"
    for name in ("stopped", "whole"):
        commands.downstream(tmp_path, *training("ks", minis, name, *more, "-o", steps, "-a")).success()
    for place in ("best/model.safetensors", "predictions-test.jsonl"):
        assert contents(result / "stopped")[place] == contents(result / "whole")[place], place
    one, other = (metrics(tmp_path, name) for name in ("stopped", "whole"))
    assert one["search"] == other["search"] and one["metrics"] == other["metrics"]


def test_seeds_and_folds(commands: Commands, minis: Path, tmp_path: Path) -> None:
    """Five folds of two rates with two seeds each: figures are means over seeds of means over folds."""
    more = ["--learning-rates", "0.001,0.1", "--seeds", "2", "--features", "-o", "runner.gradient_accumulate_steps=1"]
    more += ["-o", f"features.folder={tmp_path / 'features'},runner.total_steps=2"]
    commands.downstream(tmp_path, *training("er", minis, "er", *more)).success()
    found = metrics(tmp_path, "er")
    assert found["device"] and "torch" in found["versions"]
    assert len(found["search"]["folds"]) == 5 and all(len(fold["members"]) == 4 for fold in found["search"]["folds"])
    figure = found["metrics"]["acc"]
    assert figure["interval"] == "seeds" and len(figure["each"]) == 2
    by_seed: dict[int, list[float]] = {0: [], 1: []}
    for fold in range(1, 6):
        own = metrics(tmp_path, f"er/fold{fold}")
        for place, value in enumerate(own["metrics"]["acc"]["each"]):
            by_seed[place].append(value)
    means = [sum(values) / len(values) for values in by_seed.values()]
    assert figure["each"] == pytest.approx(means, abs=1e-3)
    assert figure["value"] == pytest.approx(sum(means) / 2, abs=1e-3)
    # Of two values Student's t has one degree of freedom: 12.706 at 97.5 %.
    assert figure["high"] - figure["value"] == pytest.approx(12.7062 * abs(means[0] - means[1]) / 2, abs=1e-2)


REFUSED: list[tuple[list[str], list[str]]] = [
    (["--learning-rates", "0.1,0.1"], ["search.learning_rates", "each once"]),
    (["--learning-rates", "0.1,-1"], ["search.learning_rates", "above 0"]),
    (["--seeds", "0"], ["search.seeds"]),
    (["--learning-rates", "0.1,0.2", "-f"], ["frozen upstream", "-f"]),
    (["--features", "-f"], ["frozen upstream", "-f"]),
    (["--features", "-o", "features.dtype=int8"], ["features.dtype"]),
    ([*GRID, "-o", "runner.precision=float16"], ["runner.precision=float16"]),
]


@pytest.mark.parametrize(("more", "parts"), REFUSED)
def test_mistakes(more: list[str], parts: list[str], commands: Commands, minis: Path, tmp_path: Path) -> None:
    says(commands.downstream(tmp_path, *training("ks", minis, "run", *more)), *parts)
    assert not list(tmp_path.glob("result/downstream/run/*"))


def test_a_grid_is_gone_on_with_as_it_was_begun(commands: Commands, minis: Path, tmp_path: Path) -> None:
    done: Any = commands.downstream(tmp_path, *training("ks", minis, "run", *GRID)).success()
    says(
        commands.downstream(tmp_path, *training("ks", minis, "run", "-a", "--learning-rates", "0.5,0.6")), "begun with"
    )
    # The end again: nothing is trained anew, the figures are the same.
    before = metrics(tmp_path, "run")["metrics"]
    done = commands.downstream(tmp_path, *training("ks", minis, "run", "-a", *GRID)).success()
    assert metrics(tmp_path, "run")["metrics"] == before and "did best on dev" in done.err
