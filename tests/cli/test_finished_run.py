"""One finished run in a new interpreter, looked at from all sides."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch
import yaml
from s3prl_distiller.upstream.distiller import card
from s3prl_distiller.upstream.distiller.hubconf import distiller_local
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from s3prl_distiller.hub import load_hub

STEPS, LR, WARMUP = 12, 2e-3, 0.25
SETTINGS = {
    "runner.total_steps": STEPS,
    "runner.save_step": 4,
    "runner.eval_step": 6,
    "runner.log_step": 1,
    "runner.max_keep": 2,
    "optimizer.lr": LR,
    "optimizer.warmup_proportion": WARMUP,
}


@pytest.fixture(scope="module")
def home(commands: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the run was started."""
    cwd = tmp_path_factory.mktemp("finished")
    done = commands.run_afresh(cwd, *commands.training(SETTINGS), "-n", "one").success()
    (cwd / "out").write_text(done.out)
    (cwd / "err").write_text(done.err)
    return cwd


@pytest.fixture(scope="module")
def run(home: Path) -> Path:
    return home / "result" / "pretrain" / "one"


@pytest.fixture(scope="module")
def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def wavs(corpus: Path) -> list[torch.Tensor]:
    files = sorted(corpus.iterdir())[:2]
    return [torch.from_numpy(soundfile.read(file, dtype="float32")[0][:24000]) for file in files]


def features(expert: Any, wav: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return expert.eval()([wav])["hidden_states"]


def test_everything_is_there_and_nothing_else(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    events = {name for name in names if name.startswith("events.out.tfevents")}
    assert len(events) == 1
    assert names - events == {
        "README.md",
        "config.yaml",
        "data_report.jsonl",
        "data_report.md",
        "log.jsonl",
        "loss.png",
        "run.log",
        "states-8",
        "states-8.ckpt",
        "states-12",
        "states-12.ckpt",
        "summary.md",
    }
    inside = {"model.safetensors", "config.json", "trainer.pt", "checksums.json"}
    assert {path.name for path in (run / "states-8").iterdir()} == inside
    assert {path.name for path in (run / "states-12").iterdir()} == inside


def test_others_may_read_every_file_that_they_may_read_the_log_of(run: Path) -> None:
    log = stat.S_IMODE((run / "log.jsonl").stat().st_mode)
    modes = {str(p.relative_to(run)): stat.S_IMODE(p.stat().st_mode) for p in run.rglob("*") if p.is_file()}
    assert {name: oct(mode) for name, mode in modes.items() if mode != log} == {}


def test_config_is_complete_and_resolved(run: Path, corpus: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert set(config) == {"distiller", "teacher", "task", "data", "runner", "optimizer", "card"}
    assert config["runner"]["total_steps"] == STEPS and config["runner"]["seed"] == 1337
    assert config["optimizer"]["lr"] == LR and config["optimizer"]["weight_decay"] == 1e-6
    assert config["data"]["path"] == str(corpus) and config["data"]["batch_seconds"] == 32
    # Taken over from the teacher, not from the defaults of the schema.
    assert config["distiller"]["encoder_embed_dim"] == 192 and config["distiller"]["encoder_attention_heads"] == 3
    assert config["distiller"]["pred_layer_id"] == [4, 8, 12]


def test_log_has_every_step_and_every_loss(lines: list[dict[str, Any]]) -> None:
    train = [line for line in lines if line["kind"] == "train"]
    valid = [line for line in lines if line["kind"] == "valid"]
    parts = {f"{name}_layer{layer}" for name in ("l1", "cosine") for layer in (4, 8, 12)}
    assert [line["step"] for line in train] == list(range(1, STEPS + 1))
    assert [line["step"] for line in valid] == [0, 6, 12]
    expected = {"kind", "step", "loss", *parts}
    assert all(set(line) == expected for line in valid)
    assert all(set(line) == expected | {"gradient_norm", "lr", "audio_s_per_s", "data_wait_share"} for line in train)
    for line in train:
        assert line["gradient_norm"] > 0 and line["audio_s_per_s"] > 0 and 0 <= line["data_wait_share"] <= 1
    for line in lines:  # loss = mean over layers of L1 - log sigmoid(cosine), the latter frame by frame: Jensen
        l1 = np.mean([line[f"l1_layer{layer}"] for layer in (4, 8, 12)])
        bound = np.mean([np.log1p(np.exp(-line[f"cosine_layer{layer}"])) for layer in (4, 8, 12)])
        assert l1 + bound - 1e-4 <= line["loss"] <= l1 + bound + 0.1


def test_learning_rate_is_warmed_up_and_decays_to_zero(lines: list[dict[str, Any]]) -> None:
    rates = {line["step"]: line["lr"] for line in lines if line["kind"] == "train"}
    warm = 3  # a quarter of 12 steps; to four digits, however small the rate
    up = [LR * step / warm for step in range(1, warm + 1)]
    down = [LR * (STEPS - step) / (STEPS - warm) for step in range(warm + 1, STEPS + 1)]
    assert [rates[step] for step in range(1, STEPS + 1)] == pytest.approx(up + down, rel=1e-4, abs=1e-12)


def test_the_student_learns(lines: list[dict[str, Any]]) -> None:
    valid = [line for line in lines if line["kind"] == "valid"]
    assert valid[-1]["loss"] < 0.95 * valid[0]["loss"]
    assert all(valid[-1][f"cosine_layer{layer}"] > valid[0][f"cosine_layer{layer}"] for layer in (4, 8, 12))


def test_tensorboard_has_what_the_log_has(run: Path, lines: list[dict[str, Any]]) -> None:
    board = EventAccumulator(str(run))
    board.Reload()
    for kind, name in (("train", "loss"), ("train", "lr"), ("valid", "loss"), ("valid", "cosine_layer12")):
        shown = {event.step: event.value for event in board.Scalars(f"{kind}/{name}")}
        logged = {line["step"]: line[name] for line in lines if line["kind"] == kind}
        assert shown == {step: pytest.approx(value, abs=2e-6) for step, value in logged.items()}


def test_picture_is_a_picture(run: Path) -> None:
    from matplotlib.image import imread

    assert (run / "loss.png").stat().st_size > 1000
    pixels = imread(run / "loss.png")
    assert pixels.shape[1] > pixels.shape[0] > 200 and pixels.std() > 0.01


def test_summary_and_screen_tell_what_was_done(home: Path, run: Path, lines: list[dict[str, Any]]) -> None:
    summary = (run / "summary.md").read_text()
    valid = [line["loss"] for line in lines if line["kind"] == "valid"]
    assert f"{valid[0]:.4f} -> {valid[-1]:.4f}" in summary
    assert "hubert_nano: 12 layers, 192 wide" in summary and "states-12.ckpt" in summary
    assert summary.strip() in (home / "out").read_text()
    err = (home / "err").read_text()
    assert "Results go to result/pretrain/one" in err and "validation loss" in err
    assert "Warning" not in err and "WARNING" not in err
    assert "Results go to" in (run / "run.log").read_text()


def test_the_model_card_is_filled_from_the_run(run: Path, lines: list[dict[str, Any]]) -> None:
    text = (run / "README.md").read_text()
    assert card.read_header(text)["metrics"] == ["l1", "cosine_similarity"]
    valid = [line for line in lines if line["kind"] == "valid"]
    assert f"| cosine_layer12 | {valid[0]['cosine_layer12']:.4f} | {valid[-1]['cosine_layer12']:.4f} |" in text
    assert f"| Steps | {STEPS} of at most" in text and "| Teacher | hubert_nano |" in text
    assert str(run.parents[2]) not in text, "a folder of this machine"


def test_all_three_forms_hold_the_same_weights(run: Path) -> None:
    for step in (8, 12):
        handed_on = torch.load(run / f"states-{step}.ckpt", weights_only=True)
        native = safetensors.torch.load_file(run / f"states-{step}" / "model.safetensors")
        assert handed_on["Step"] == step and set(handed_on["Distiller"]) == set(native)
        assert all(torch.equal(handed_on["Distiller"][name], native[name]) for name in native)
        trainer = torch.load(run / f"states-{step}" / "trainer.pt", weights_only=True)
        assert trainer["position"]["step"] == step


def test_s3prl_and_we_give_the_same_features_from_either_form(run: Path, wavs: list[torch.Tensor]) -> None:
    load_hub()
    from s3prl.upstream.distiller import hubconf as original

    theirs = original.distiller_local(str(run / "states-12.ckpt"))
    ours, native = distiller_local(run / "states-12.ckpt"), distiller_local(run / "states-12")
    earlier = distiller_local(run / "states-8")
    for wav in wavs:
        expected = features(theirs, wav)
        assert len(expected) == 1 + 2 + 3 and expected[0].shape[-1] == 192
        for mine in (features(ours, wav), features(native, wav)):
            assert len(mine) == len(expected)
            for one, other in zip(mine, expected, strict=True):
                # The front end's values reach 400: float32 ends there, in s3prl's features as in ours.
                scale = max(1.0, float(other.abs().max()) / 10)
                torch.testing.assert_close(one, other, atol=1e-5 * scale, rtol=0)
        assert not torch.allclose(features(earlier, wav)[-1], expected[-1], atol=1e-4)
