"""s3prl's names of tasks and keys mean what they mean there; what has no counterpart is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from s3prl_distiller.downstream.core import run
from s3prl_distiller.downstream.core.s3prl_names import CTC_CONFIGS, TASKS, task_name, translate

from s3prl_distiller.settings import SettingsError, differences


def load(task: str, *overrides: str) -> Any:
    return run.load_config(task, [], {}, overrides)


@pytest.mark.parametrize("name", [*TASKS, "asr", "pr", "ks", "ic", "sf", "sid", "asv", "sd", "er", "qbe"])
def test_every_name_is_a_task(name: str) -> None:
    ours, config = task_name(name, "mine.yaml")
    assert run.task_class(ours).name == ours == TASKS.get(name, name) and config == "mine.yaml"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("snips", ("sf", None)),
        ("libriphone", ("pr", None)),
        ("librispeech", ("asr", None)),
        ("downstream/ctc/snips.yaml", ("sf", None)),  # as s3prl documents it
        ("downstream/ctc/libriphone.yaml", ("pr", None)),
        ("/mine/snips.yaml", ("sf", "/mine/snips.yaml")),
        ("mine/libriphone.yaml", ("pr", "mine/libriphone.yaml")),
    ],
)
def test_ctc_is_told_by_its_config(config: str, expected: tuple[str, str | None]) -> None:
    assert task_name("ctc", config) == expected


@pytest.mark.parametrize("config", [None, "", "cv_zh", "superb.yaml"])
def test_ctc_of_no_known_config(config: str | None) -> None:
    with pytest.raises(ValueError, match="-d ctc needs -c .*libriphone.*-d asr, pr or sf"):
        task_name("ctc", config)
    assert set(CTC_CONFIGS.values()) == {"asr", "pr", "sf"}


@pytest.mark.parametrize(
    ("task", "override", "section", "key", "value"),
    [
        ("ks", "config.runner.total_steps=3", "runner", "total_steps", 3),
        ("ks", "config.downstream_expert.datarc.train_batch_size=4", "data", "batch_size", 4),
        ("ks", "config.downstream_expert.datarc.eval_batch_size=7", "data", "eval_batch_size", 7),
        ("sid", "config.downstream_expert.datarc.max_timestep=128000", "data", "crop_seconds", 8.0),
        ("sid", "config.downstream_expert.datarc.max_timestep=null", "data", "crop_seconds", None),
        ("ks", "config.downstream_expert.datarc.num_workers=0", "data", "num_workers", 0),
        ("ks", "config.downstream_expert.datarc.speech_commands_root=/corpus", "data", "path", "/corpus"),
        ("ks", "config.downstream_expert.datarc.speech_commands_test_root=/test", "task", "test_root", "/test"),
        ("er", "config.downstream_expert.datarc.test_fold=fold3", "task", "fold", 3),
        ("sf", "config.downstream_expert.corpus.path=/snips", "data", "path", "/snips"),
        ("asv", "config.downstream_expert.datarc.vad_config.min_sec=16000", "task", "min_seconds", 1.0),
        ("qbe", "config.downstream_expert.dtwrc.dist_method=cosine", "task", "distance", "cosine"),
        ("ks", "config.optimizer.lr=1e-3", "optimizer", "lr", 1e-3),
        ("ks", "config.optimizer.name=TorchOptim,,config.optimizer.torch_optim_name=SGD", "optimizer", "name", "SGD"),
        ("ks", "config.runner.fp16=true", "runner", "precision", "float16"),
        ("ks", "config.runner.fp16=false", "runner", "precision", "float32"),
        ("ks", "config.runner.gradient_accumulate_steps=5", "runner", "gradient_accumulate_steps", 5),
    ],
)
def test_keys(task: str, override: str, section: str, key: str, value: Any) -> None:
    usual, found = load(task), load(task, override)
    assert getattr(getattr(found, section), key) == value
    assert {name for name, _ in differences(usual, found)} <= {f"{section}.{key}"}  # and nothing else


def test_several_with_s3prls_commas() -> None:
    text = "config.runner.total_steps=3,,config.downstream_expert.datarc.train_batch_size=4,,config.optimizer.lr=0.5"
    found = load("ks", text)
    assert (found.runner.total_steps, found.data.batch_size, found.optimizer.lr) == (3, 4, 0.5)
    later = load("ks", text, "data.batch_size=9")
    assert later.data.batch_size == 9


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("downstream_expert.modelrc.projector_dim=64", "downstream_expert.modelrc.projector_dim"),
        ("downstream_expert.modelrc.select=UtteranceLevel", "downstream_expert.modelrc.select"),
        ("downstream_expert.datarc.train_batch_sise=4", "train_batch_sise"),
        ("downstream_expert.seed=4", "downstream_expert.seed"),
        ("downstream_expert=4", "downstream_expert"),
        ("downstream_expert.datarc.max_timestep=long", "max_timestep"),
        ("downstream_expert.datarc.test_fold=foldx", "test_fold"),
        ("downstream_expert.datarc.train_batch_size=many", "data.batch_size"),
        ("runner.n_epochs=3", "runner.n_epochs"),
        ("scheduler.name=linear", "scheduler"),
    ],
)
def test_what_has_no_counterpart_is_named(override: str, named: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load("er", override)
    assert named in str(refused.value) and "\n" not in str(refused.value)


def test_what_is_given_is_left_as_it_was() -> None:
    given = {
        "runner": {"fp16": True, "eval_dataloaders": ["dev", "test"], "n_epochs": -1},
        "optimizer": {"name": "TorchOptim", "torch_optim_name": "Adam"},
        "downstream_expert": {"datarc": {"train_batch_size": 2}},
        "data": {"num_workers": 1},
    }
    before = repr(given)
    assert translate(given) == {
        "runner": {"precision": "float16"},
        "optimizer": {"name": "Adam"},
        "data": {"num_workers": 1, "batch_size": 2},
    }
    assert repr(given) == before
    assert translate({"runner": {"total_steps": 2}}) == {"runner": {"total_steps": 2}}
