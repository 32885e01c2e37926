"""What a resume rests on: random state, checkpoints and the log, each put back exactly."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from s3prl_distiller.checkpoint import load_torch, save_torch
from s3prl_distiller.engine import OptimizerConfig, newest_checkpoint
from s3prl_distiller.engine.log import RunLog, read_log
from s3prl_distiller.engine.loop import precision
from s3prl_distiller.engine.members import Member
from s3prl_distiller.engine.optimizer import build_optimizer
from s3prl_distiller.engine.state import Position, Progress, restore, save_checkpoint, trainer_state

CPU = torch.device("cpu")


def draw() -> list[Any]:
    """A number of every kind from each of the three generators."""
    return [
        random.random(),
        random.gauss(0, 1),
        np.random.rand(3).tolist(),
        np.random.randn(),
        torch.randn(3).tolist(),
        torch.rand(3).tolist(),
    ]


def trained(seed: int) -> tuple[nn.Module, torch.optim.AdamW]:
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    optimizer = build_optimizer([Member(model)], OptimizerConfig())
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 3)).pow(2).mean().backward()
        optimizer.step()
    return model, optimizer


def test_everything_random_goes_on_where_it_was(tmp_path: Path) -> None:
    """Also in the middle of a pair of normal numbers, of which Python and numpy keep the second."""
    model, optimizer = trained(0)
    _, scaler = precision("float16", CPU)
    scaler.scale(torch.ones(()))  # makes the scale
    random.seed(3)
    np.random.seed(4)
    torch.manual_seed(5)
    draw()
    random.gauss(0, 1)
    np.random.randn()
    position = Position(7, 1, 2, {"loss": 1.25, "count": 3.0}, [Progress(0.5, 3, 1, 2), Progress()])
    save_torch(trainer_state(position, optimizer, scaler, "data"), tmp_path / "trainer.pt")
    expected = draw()

    other, fresh = trained(1)
    _, other_scaler = precision("float16", CPU)
    state = load_torch(tmp_path / "trainer.pt")
    assert restore(state, fresh, other_scaler, "data", tmp_path) == position
    assert draw() == expected
    assert other_scaler.state_dict() == scaler.state_dict()
    other.load_state_dict(model.state_dict())
    for one, its in ((model, optimizer), (other, fresh)):
        its.zero_grad()
        one(torch.ones(1, 3)).sum().backward()
        its.step()
    assert torch.equal(model.weight, other.weight)


def test_other_data_is_refused_and_nothing_is_touched(tmp_path: Path) -> None:
    _, optimizer = trained(0)
    _, scaler = precision("float32", CPU)
    state = trainer_state(Position(7), optimizer, scaler, "one")
    random.seed(1)
    before = random.getstate()
    with pytest.raises(ValueError, match="the data is not what .* -e .* -n"):
        restore(state, optimizer, scaler, "other", tmp_path / "states-7")
    assert random.getstate() == before


def test_a_state_of_another_version_is_refused(tmp_path: Path) -> None:
    _, optimizer = trained(0)
    _, scaler = precision("float32", CPU)
    state = trainer_state(Position(7), optimizer, scaler, "one")
    for position in ({"step": 7, "best": 0.5, "worse": 0}, {**state["position"], "members": [{"better": 1}]}):
        with pytest.raises(ValueError, match="states-7 was written by another version"):
            restore({**state, "position": position}, optimizer, scaler, "one", tmp_path / "states-7")


# -- checkpoints


def test_the_oldest_are_dropped_by_number_and_others_are_left(tmp_path: Path, fit: Any) -> None:
    task = fit()
    for name in ("states-best", "states-1x", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "states-8.ckpt.txt").write_text("mine")
    for step in (8, 9, 10, 100):
        path = save_checkpoint(tmp_path, task, {"step": step}, step, max_keep=2)
        assert path == tmp_path / f"states-{step}" and load_torch(path / "trainer.pt") == {"step": step}
    assert {path.name for path in tmp_path.iterdir()} == {
        *("states-10", "states-10.ckpt", "states-100", "states-100.ckpt"),
        *("states-best", "states-1x", "other", "states-8.ckpt.txt"),
    }
    assert newest_checkpoint(tmp_path) == tmp_path / "states-100"


def test_saving_a_step_again_replaces_it(tmp_path: Path, fit: Any) -> None:
    save_checkpoint(tmp_path, fit(), {"round": 1}, 4, max_keep=2)
    save_checkpoint(tmp_path, fit(), {"round": 2}, 4, max_keep=2)
    assert load_torch(tmp_path / "states-4" / "trainer.pt") == {"round": 2}
    assert {path.name for path in tmp_path.iterdir()} == {"states-4", "states-4.ckpt"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to(tmp_path: Path, fit: Any) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="the checkpoint of step 4 could not be written"):
        save_checkpoint(tmp_path, fit(), {}, 4, max_keep=2)


def test_a_write_that_fails_leaves_the_earlier_ones(tmp_path: Path, fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, fit(), {"step": 4}, 4, max_keep=1)
    task = fit()

    def full(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(task, "native_writers", lambda step: {"weights.pt": full})
    with pytest.raises(ValueError, match="step 6 .*No space left on device.*-a"):
        save_checkpoint(tmp_path, task, {}, 6, max_keep=1)
    assert newest_checkpoint(tmp_path) == tmp_path / "states-4"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", ["weights.pt", "trainer.pt", "checksums.json"])
def test_damage_is_seen(name: str, tmp_path: Path, fit: Any, caplog: pytest.LogCaptureFixture) -> None:
    for step in (2, 4):
        save_checkpoint(tmp_path, fit(), {}, step, max_keep=5)
    file = tmp_path / "states-4" / name
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    assert newest_checkpoint(tmp_path) == tmp_path / "states-2"
    assert "states-4 is damaged" in caplog.text
    file.write_bytes(data)
    assert newest_checkpoint(tmp_path) == tmp_path / "states-4"


def test_no_checkpoint_yet_or_none_that_is_whole(tmp_path: Path, fit: Any) -> None:
    assert newest_checkpoint(tmp_path / "nowhere") is None
    save_checkpoint(tmp_path, fit(), {}, 2, max_keep=5)
    (tmp_path / "states-2" / "trainer.pt").unlink()
    with pytest.raises(ValueError, match="every checkpoint .* is damaged"):
        newest_checkpoint(tmp_path)


# -- the log


def written(folder: Path, steps: list[int]) -> Path:
    log = RunLog(folder, 0, 10)
    for step in steps:
        log.write("train", step, {"loss": step / 3})
    log.close()
    return folder / "log.jsonl"


def test_log_cut_off_in_its_last_line_reads_without_it(tmp_path: Path) -> None:
    path = written(tmp_path, [1, 2, 3])
    whole = path.read_bytes()
    lines = read_log(path)
    assert [line["step"] for line in lines] == [1, 2, 3] and lines[0]["loss"] == pytest.approx(1 / 3, rel=1e-6)
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        assert read_log(path) in (lines[:1], lines[:2], lines, [])
        assert len(read_log(path)) >= whole[:end].count(b"\n")


def test_log_of_a_resumed_run_drops_what_comes_after(tmp_path: Path) -> None:
    path = written(tmp_path, [2, 4, 6])
    with path.open("a") as file:
        file.write('{"kind": "train", "st')
    log = RunLog(tmp_path, 4, 10)
    log.write("valid", 5, {"loss": 0.5})
    log.close()
    assert [(line["kind"], line["step"]) for line in map(json.loads, path.read_text().splitlines())] == [
        ("train", 2),
        ("train", 4),
        ("valid", 5),
    ]
    log = RunLog(tmp_path, 0, 10)
    log.close()
    assert path.read_text() == ""
