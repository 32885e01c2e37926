"""``run_pretrain.py --targets``: layers by hand, or those that a probe of the teacher proposes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import Commands
from .test_torchrun_pretrain import two

TWO = {"runner.total_steps": 2, "runner.save_step": 1, "runner.eval_step": 2, "runner.log_step": 1}


def config(cwd: Path) -> dict[str, Any]:
    return yaml.safe_load((cwd / "result" / "pretrain" / "one" / "config.yaml").read_text())


def page(cwd: Path, name: str = "targets.json") -> Any:
    path = cwd / "result" / "pretrain" / "one" / name
    return json.loads(path.read_text()) if path.suffix == ".json" else path


@pytest.fixture(scope="module")
def digits(minisuperb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 spoken digits with label, speaker and text, real speech."""
    rows = [json.loads(line) for line in (minisuperb / "digits_mini" / "train.jsonl").read_text().splitlines()]
    manifest = tmp_path_factory.mktemp("digits") / "digits.jsonl"
    with manifest.open("w") as file:
        for row in rows[:: len(rows) // 60][:60]:
            file.write(json.dumps({**row, "audio": str(minisuperb / "digits_mini" / row["audio"])}) + "\n")
    return manifest


@pytest.fixture(scope="module")
def probed(commands: Commands, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step whose targets were proposed."""
    cwd = tmp_path_factory.mktemp("probed")
    settings = {**TWO, "runner.total_steps": 2}
    done = commands.run(cwd, *commands.training(settings, digits), "-n", "one", "--targets", "auto").success()
    assert done.err.count("Targets: layers ") == 1
    return cwd


def test_a_probe_of_real_speech_proposes_what_is_trained_on(probed: Path) -> None:
    found = page(probed)
    targets = found["targets"]
    assert len(set(targets)) == 3 and set(targets) <= set(range(1, 13))
    assert config(probed)["distiller"]["pred_layer_id"] == targets
    log = [json.loads(line) for line in page(probed, "log.jsonl").read_text().splitlines()]
    assert {f"cosine_layer{layer}" for layer in targets} <= log[-1].keys()
    probes = {one["name"]: one for one in found["probes"]}
    assert probes.keys() == {"text", "speaker", "label"}
    # A trained teacher tells six speakers apart from a word of theirs.
    assert max(probes["speaker"]["scores"]) > 0.6 > probes["speaker"]["baseline"]
    assert all(found["cka"][layer][layer] == pytest.approx(1, abs=1e-4) for layer in range(13))
    assert found["cka"][1][2] > found["cka"][1][12]
    text = page(probed, "targets.md").read_text()
    assert f"layers {', '.join(map(str, targets))} of" in text and "phones: the data does not say" in text
    assert page(probed, "targets.png").read_bytes().startswith(b"\x89PNG")


def test_a_resumed_run_does_not_probe_again(commands: Commands, probed: Path, digits: Path) -> None:
    before, written = config(probed), page(probed, "targets.md").stat().st_mtime_ns
    more = commands.training({**TWO, "runner.total_steps": 3}, digits)
    done = commands.run(probed, *more, "-n", "one", "-a", "--targets", "auto").success()
    assert "Probing" not in done.err and page(probed, "targets.md").stat().st_mtime_ns == written
    assert config(probed)["distiller"] == before["distiller"]
    other = ",".join(str(layer) for layer in range(1, 4) if before["distiller"]["pred_layer_id"] != [1, 2, 3])
    refused = commands.run(probed, *more, "-n", "one", "-a", "--targets", other or "4,5,6").refusal()
    assert "distiller.pred_layer_id" in refused


def test_a_dry_run_prints_the_proposal_and_trains_nothing(commands: Commands, corpus: Path, tmp_path: Path) -> None:
    """A folder of audio says nothing but itself: CKA only."""
    done = commands.run(tmp_path, *commands.training(TWO), "-n", "one", "--targets", "auto", "--dry-run").success()
    assert "# Targets: layers " in done.out and "rests on CKA alone" in done.out and "a step:" in done.out
    assert "phones, text, speaker, label: the data does not say" in done.out
    assert not list(tmp_path.rglob("states-*"))


def test_layers_by_hand(commands: Commands, tmp_path: Path) -> None:
    commands.run(tmp_path, *commands.training(TWO), "-n", "one", "--targets", "3,7").success()
    assert config(tmp_path)["distiller"]["pred_layer_id"] == [3, 7]
    assert not page(tmp_path, "targets.md").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--targets", "auto", "-o", "distiller.pred_layer_id=[1,2]"], "-o distiller.pred_layer_id both say"),
        (["--targets", "4,8", "-o", "distiller.pred_layer_id=[4,8]"], "-o distiller.pred_layer_id both say"),
        (["--targets", "four"], "'four' is neither auto nor layers"),
        (["--targets", "4,99"], "asks for layer 99"),
        (["--targets", "auto", "-o", f"distiller.pred_layer_id={[*range(1, 4)]}"], "give one"),
        (["--targets", "auto", "-o", "distiller.n_tasks=13"], "13 layers are to be predicted"),
    ],
)
def test_what_cannot_be_is_one_error(commands: Commands, tmp_path: Path, options: list[str], words: str) -> None:
    assert words in commands.run(tmp_path, *commands.training(TWO), "-n", "one", *options).refusal()
    assert not list(tmp_path.rglob("states-*")) and not list(tmp_path.rglob("targets.*"))


def test_of_two_processes_one_probes_and_both_train_on_its_choice(commands: Commands, tmp_path: Path) -> None:
    done = two(commands, tmp_path, *commands.training(TWO), "-n", "one", "--targets", "auto").success()
    assert done.err.count("Targets: layers ") == 1
    assert config(tmp_path)["distiller"]["pred_layer_id"] == page(tmp_path)["targets"]
