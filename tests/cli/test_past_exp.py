"""``-e``: go on with a run, or start a new one from its weights; and what keeps a run from being lost."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from s3prl_distiller.upstream.distiller.model import DistillerModel
from s3prl_distiller.upstream.distiller.model_config import DistillerConfig
from s3prl_distiller.upstream.distiller.student import load_student, s3prl_states

from s3prl_distiller.checkpoint import save_torch
from s3prl_distiller.settings import QUICKSTART

FIRST = {"task.sequence_length": 8000, "runner.total_steps": 4, "runner.eval_step": 4}
LONGER = {**FIRST, "runner.total_steps": 6}
RESULTS = Path("result") / "pretrain"


@pytest.fixture(scope="module")
def finished(commands: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a finished run ``one`` of 4 steps, checkpoints at 2 and 4."""
    cwd = tmp_path_factory.mktemp("past")
    commands.run(cwd, *commands.training(FIRST), "-n", "one").success()
    return cwd


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished / "result", tmp_path / "result")
    return tmp_path


@pytest.fixture
def untouched(finished: Path, contents: Callable) -> Callable[[], None]:
    """Checks that nothing in the run's folder has changed but its ``run.log``, which may say more."""
    before = contents(finished)

    def check() -> None:
        after = contents(finished)
        log = str(RESULTS / "one" / "run.log")
        assert {k: v for k, v in after.items() if k != log} == {k: v for k, v in before.items() if k != log}

    return check


def small_student(path: Path, teacher: str = "hubert_base") -> Path:
    """A checkpoint in s3prl's form of a student half as wide as the teacher of these tests."""
    config = DistillerConfig(
        encoder_layers=2,
        encoder_embed_dim=96,
        encoder_ffn_embed_dim=192,
        encoder_attention_heads=2,
        final_dim=192,
        n_tasks=3,
        pred_layer_id=[4, 8, 12],
        extractor_conv_feature_layers="[(128,10,5)] + [(128,3,2)] * 4 + [(128,2,2)] * 2",
    )
    save_torch(s3prl_states(DistillerModel(config), {"teacher": {"model": teacher}}, 0), path)
    return path


def test_a_run_folder_or_its_newest_checkpoint_is_gone_on_with(commands: Any, copy: Path, contents: Callable) -> None:
    """To more steps than it was begun with, which is asked for on purpose; the three ways to say so agree."""
    run = RESULTS / "one"
    past = {"folder": run, "native": run / "states-4", "s3prl": run / "states-4.ckpt"}

    def story(name: str) -> None:
        cwd = copy / name
        shutil.copytree(copy / "result", cwd / "result")
        done = commands.run(cwd, "-u", "distiller", "-e", past[name], "-o", "runner.total_steps=6").success()
        assert "states-6.ckpt" in done.out and "Step 0" not in done.err

    commands.at_once(*(partial(story, name) for name in past))
    found = [contents(copy / name / RESULTS / "one" / "states-6")["model.safetensors"] for name in past]
    assert len(set(found)) == 1


def test_another_than_the_newest_is_refused(commands: Any, finished: Path, untouched: Callable) -> None:
    for past in ("states-2", "states-2.ckpt"):
        error = commands.run(finished, "-u", "distiller", "-e", RESULTS / "one" / past).refusal()
        assert "not the newest" in error and "states-4" in error and "-n" in error
    for past in ("nowhere", "nowhere/states-3"):
        assert past in commands.run(finished, "-u", "distiller", "-e", RESULTS / past).refusal()
        assert not (finished / RESULTS / "nowhere").exists()
    untouched()


def test_new_run_from_weights(commands: Any, finished: Path, log_of: Callable, untouched: Callable) -> None:
    """It starts where the other had arrived, also from an earlier checkpoint and from s3prl's form."""
    last = log_of(finished / RESULTS / "one")[-1]
    assert last["kind"] == "valid" and last["step"] == 4

    def story(past: str) -> None:
        name = f"from-{past}"
        command = [*commands.training({**FIRST, "runner.total_steps": 1}), "-n", name]
        done = commands.run(finished, *command, "-e", RESULTS / "one" / past).success()
        assert "weights are those of" in done.err
        first = log_of(finished / RESULTS / name)[0]
        shutil.rmtree(finished / RESULTS / name)
        assert first["kind"] == "valid" and first["step"] == 0
        del first["step"]
        assert (first == {k: v for k, v in last.items() if k != "step"}) == (past != "states-2"), past

    commands.at_once(*(partial(story, past) for past in ("states-4.ckpt", "states-4", ".", "states-2")))
    untouched()


def test_a_student_is_gone_on_with_as_it_is(commands: Any, tmp_path: Path) -> None:
    """Its shape and its teacher are its own, and need not be said again."""
    narrow = small_student(tmp_path / "narrow.ckpt", teacher=str(QUICKSTART / "hubert_nano"))
    ask = ["-u", "distiller", "--data", commands.corpus, "-o", "runner.total_steps=1,data.batch_size=2"]
    done = commands.run(tmp_path, *ask, "-n", "new", "-e", narrow).success()
    assert "hubert_nano: 12 layers" in done.err and "narrow.ckpt" in done.err
    folder = tmp_path / RESULTS / "new"
    student = load_student(folder / "states-1.ckpt")
    assert student.config.encoder_embed_dim == 96 and student.config.final_dim == 192
    card = (folder / "README.md").read_text()
    assert "the student " in card and "narrow.ckpt" in card and str(tmp_path) not in card
    commands.run(tmp_path, "-u", "distiller", "-n", "new", "-a", "-o", "runner.total_steps=2").success()


def test_a_student_without_prediction_heads_gets_new_ones(commands: Any, tmp_path: Path) -> None:
    """Such as a folder of the Hugging Face hub that others made."""
    from transformers import HubertConfig, HubertModel

    size = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 192}
    folder = tmp_path / "published"
    HubertModel(HubertConfig(**size, conv_dim=[64] * 7)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        '{"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": false}'
    )
    bare = load_student(folder)
    assert bare.config.n_tasks == 0
    command = [*commands.training({**FIRST, "runner.total_steps": 1, "optimizer.lr": 1e-12}), "-p", tmp_path / "new"]
    done = commands.run(tmp_path, *command, "-e", folder).success()
    assert "its prediction heads are new" in done.err
    after = load_student(tmp_path / "new" / "states-1.ckpt")
    assert after.config.targets == [4, 8, 12]
    for name, weight in bare.state_dict().items():
        torch.testing.assert_close(after.state_dict()[name], weight, rtol=0, atol=1e-6)


def test_new_run_from_the_weights_of_another_model(commands: Any, finished: Path, tmp_path: Path) -> None:
    command = [*commands.training({**FIRST, "distiller.encoder_embed_dim": 192}), "-p", tmp_path / "new"]
    path = small_student(tmp_path / "narrow.ckpt")
    error = commands.run(tmp_path, *command, "-e", path).refusal()
    assert "narrow.ckpt" in error and "another model" in error and "96" in error
    deeper = [*commands.training({**FIRST, "distiller.encoder_layers": 3}), "-p", tmp_path / "deeper"]
    error = commands.run(tmp_path, *deeper, "-e", finished / RESULTS / "one" / "states-4").refusal()
    assert "lacks" in error and "layers.2" in error
    assert not list(tmp_path.glob("*/states-*"))


def test_nothing_in_a_checkpoint_is_run(commands: Any, tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    states = {"Distiller": {}, "Config": Bomb()}
    torch.save(states, tmp_path / "zip.ckpt")
    torch.save(states, tmp_path / "legacy.ckpt", _use_new_zipfile_serialization=False)
    (tmp_path / "pickle.ckpt").write_bytes(pickle.dumps(states))
    folder = tmp_path / "states-1"  # in our form: config and weights are JSON and safetensors, trainer.pt is not
    folder.mkdir()
    torch.save(states, folder / "model.safetensors")
    (folder / "config.json").write_text('{"format": "s3prl_distiller", "distiller": {}}')
    for name in ("zip.ckpt", "legacy.ckpt", "pickle.ckpt", "states-1"):
        command = [*commands.training(FIRST), "-p", tmp_path / "new"]
        error = commands.run(tmp_path, *command, "-e", tmp_path / name).refusal()
        assert name in error, name
        assert not marker.exists(), name
    pickle.loads((tmp_path / "pickle.ckpt").read_bytes())  # noqa: S301
    assert marker.exists(), "the bomb of this test is none"


def test_a_run_is_not_written_over(commands: Any, finished: Path, contents: Callable) -> None:
    before = contents(finished)
    for name in (["-n", "one"], ["-p", RESULTS / "one"], ["-n", "one", "-e", RESULTS / "one" / "states-4"]):
        error = commands.run(finished, *commands.training(FIRST), *name).refusal()
        assert "result/pretrain/one already holds a run" in error and "-a" in error
    assert contents(finished) == before


def test_resume_with_other_settings_or_data_is_refused(
    commands: Any, finished: Path, tmp_path: Path, untouched: Callable
) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("optimizer: {lr: 0.5}\n")
    ask = ["-u", "distiller", "-n", "one", "-a"]
    error = commands.run(finished, *ask, "-c", other).refusal()
    assert "optimizer.lr" in error and "0.5" in error
    error = commands.run(finished, *ask, "--data", tmp_path).refusal()
    assert "data.path" in error and str(tmp_path) in error
    error = commands.run(finished, *ask, "--seed", "3").refusal()
    assert "runner.seed" in error
    error = commands.run(finished, *ask, "--teacher", "hubert_large_ll60k").refusal()
    assert "teacher.model" in error
    untouched()


def test_resume_after_the_data_changed_is_refused(
    commands: Any, corpus: Path, tmp_path: Path, contents: Callable
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    files = sorted(corpus.iterdir())
    for file in files[:6]:
        shutil.copy(file, data)
    command = [*commands.training(FIRST, data), "-n", "one"]
    commands.run(tmp_path, *command).success()
    shutil.copy(files[6], data)
    before = contents(tmp_path / RESULTS / "one")
    error = commands.run(tmp_path, *command, "-a", "-o", "runner.total_steps=6").refusal()
    assert "the data is not what" in error and "-e" in error
    changed = {name for name, value in contents(tmp_path / RESULTS / "one").items() if before.get(name) != value}
    assert changed <= {"run.log", "data_report.md", "data_report.jsonl"}, changed
