"""Settings: what is unknown or mistyped is named, nothing is evaluated, and s3prl's own files are understood."""

import os
from dataclasses import dataclass, field

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from s3prl_distiller.upstream.distiller.pretrain_expert import PretrainConfig, load_config

from s3prl_distiller import settings
from s3prl_distiller.settings import SettingsError, parse_overrides


@dataclass
class Inner:
    lr: float = 0.1
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    name: str = "adam"


@dataclass
class Runner:
    total_steps: int = 100
    fast: bool = False
    path: str | None = None


@dataclass
class Schema:
    optimizer: Inner = field(default_factory=Inner)
    runner: Runner = field(default_factory=Runner)


@pytest.fixture
def write(tmp_path):
    def write(text, name="my.yaml"):
        path = tmp_path / name
        path.write_text(text if isinstance(text, str) else yaml.safe_dump(text), encoding="utf-8")
        return path

    return write


def load(*files, options=None, overrides=()):
    return settings.load(Schema, files, options or {}, overrides)


def test_later_ones_win(write):
    first = write({"optimizer": {"lr": 0.2, "name": "a"}, "runner": {"total_steps": 1}}, "first.yaml")
    second = write({"optimizer": {"lr": 0.3}}, "second.yaml")
    loaded, given_keys = load(
        first, second, options={"runner": {"fast": True}}, overrides=["runner.total_steps=7", "optimizer.name=b"]
    )
    assert loaded == Schema(Inner(lr=0.3, name="b"), Runner(total_steps=7, fast=True))
    assert given_keys == {"optimizer": {"lr": 0.3, "name": "b"}, "runner": {"total_steps": 7, "fast": True}}


def test_nothing_given_gives_the_defaults(write):
    assert load() == (Schema(), {})
    assert load(write("")) == (Schema(), {})
    assert load(write("# only a remark\n")) == (Schema(), {})


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"optimizer": {"lrr": 1}}, ["optimizer.lrr", "did you mean lr?"]),
        ({"runner": {"total_step": 1}}, ["runner.total_step ", "did you mean total_steps?"]),
        ({"runner": {"zzz": 1}}, ["runner.zzz", "choose from total_steps, fast, path"]),
        ({"optimiser": {"lr": 1}}, ["optimiser ", "did you mean optimizer?"]),
        ({"lr": 1}, ["lr ", "choose from optimizer, runner"]),
        ({"runner": {"total_steps": "many"}}, ["runner.total_steps", "many"]),
        ({"runner": {"total_steps": 1.5}}, ["runner.total_steps"]),
        ({"runner": {"total_steps": [1]}}, ["runner.total_steps"]),
        ({"runner": {"fast": "maybe"}}, ["runner.fast"]),
        ({"optimizer": {"betas": "many"}}, ["optimizer.betas"]),
        ({"optimizer": {"betas": ["a", 1]}}, ["optimizer.betas"]),
        ({"optimizer": {"lr": {"value": 1}}}, ["optimizer.lr"]),
        ({"optimizer": 3}, ["optimizer", "section"]),
        ({"optimizer": [1]}, ["optimizer", "section"]),
        ({"optimizer": None}, ["optimizer", "section"]),
        ({3: 1}, ["3"]),
        ({"runner": {3: 1}}, ["runner.3"]),
        ([1, 2], ["holds no sections"]),
        ("just a text", ["my.yaml"]),
        ("a: [1, 2", ["not valid YAML"]),
        ("a: b: c", ["not valid YAML"]),
        ("runner:\n\ttotal_steps: 1", ["not valid YAML"]),
        ("runner: {total_steps: 1}\nrunner: {total_steps: 2}", ["my.yaml"]),
        ("runner: {path: !!python/object/apply:os.getpid []}", ["my.yaml"]),
    ],
)
def test_what_is_wrong_is_named_with_its_file(write, content, parts):
    with pytest.raises(SettingsError) as raised:
        load(write(content))
    message = str(raised.value)
    assert "my.yaml" in message
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(SettingsError, match=r"none\.yaml cannot be read"):
        load(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(SettingsError, match=r"binary\.yaml"):
        load(tmp_path / "binary.yaml")
    with pytest.raises(SettingsError, match="cannot be read"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("runner.total_steps=3", {"runner": {"total_steps": 3}}),
        ("optimizer.lr=1e-3", {"optimizer": {"lr": 1e-3}}),
        ("a.b=1,c.d=x", {"a": {"b": 1}, "c": {"d": "x"}}),
        ("a.b=1,,c.d=x", {"a": {"b": 1}, "c": {"d": "x"}}),
        ("a.b=1,, c.d=x,,", {"a": {"b": 1}, "c": {"d": "x"}}),
        ("config.a.b=1,,config.c=2", {"a": {"b": 1}, "c": 2}),
        (
            "optimizer.betas=[0.9,0.95],runner.fast=true",
            {"optimizer": {"betas": [0.9, 0.95]}, "runner": {"fast": True}},
        ),
        ("distiller.pred_layer_id=[4, 8, 12]", {"distiller": {"pred_layer_id": [4, 8, 12]}}),
        ("a.b=null,a.c=", {"a": {"b": None, "c": None}}),
        ("a.b=x=y", {"a": {"b": "x=y"}}),
        ("data.path=/a/b c/ü.jsonl", {"data": {"path": "/a/b c/ü.jsonl"}}),
        (
            "d.extractor_conv_feature_layers='[(512,10,5)] + [(512,3,2)] * 4'",
            {"d": {"extractor_conv_feature_layers": "[(512,10,5)] + [(512,3,2)] * 4"}},
        ),
        ("", {}),
        (",,", {}),
    ],
)
def test_overrides(text, expected):
    assert parse_overrides(text) == expected


@pytest.mark.parametrize(
    "text", ["runner", "=3", "a b=3", "runner.total_steps:3", "1a=2", "--x=3", "a.b=[1,2", "a.b={x"]
)
def test_overrides_that_are_none(text):
    with pytest.raises(SettingsError) as raised:
        parse_overrides(text)
    assert text.split("=")[0] in str(raised.value)
    assert "\n" not in str(raised.value)


def test_overrides_are_never_evaluated(monkeypatch):
    def called():
        raise AssertionError("the override was evaluated")

    monkeypatch.setattr(os, "getpid", called)
    with pytest.raises(SettingsError, match=r"runner\.total_steps .* wrong type"):
        load(overrides=["runner.total_steps=__import__('os').getpid()"])
    assert load(overrides=["runner.path=__import__('os').getpid()"])[0].runner.path == "__import__('os').getpid()"


@pytest.mark.parametrize(
    "value", ["${optimizer.lr}", "${nothing}", "${optimizer.nothing}", "${oc.env:NO_SUCH_VARIABLE}", "${no_such:1}"]
)
def test_interpolations_that_lead_nowhere_are_named(write, value):
    """OmegaConf's own ``${...}`` may refer to another key or the environment, and to nothing else."""
    for arguments in ({"overrides": [f"runner.total_steps={value}"]}, {"options": {"runner": {"total_steps": value}}}):
        with pytest.raises(SettingsError, match=r"runner\.total_steps") as raised:
            load(**arguments)
        assert "\n" not in str(raised.value)
    assert load(overrides=["optimizer.name=x,runner.path=${optimizer.name}"])[0].runner.path == "x"


def test_an_unknown_override_is_named():
    with pytest.raises(SettingsError, match=r"runner\.total_step in the override \(-o\) .*did you mean total_steps"):
        load(overrides=["runner.total_step=3"])


KEYS = st.from_regex(r"[a-z_][a-z0-9_]{0,5}", fullmatch=True)
VALUES = st.integers(-(10**6), 10**6) | st.booleans() | st.lists(st.integers(0, 99), max_size=3) | st.just("a b")


@given(st.dictionaries(st.tuples(KEYS, KEYS), VALUES, max_size=4), st.sampled_from([",", ",,", ", "]))
def test_overrides_round_trip(values, separator):
    expected: dict[str, dict] = {}
    for (section, key), value in values.items():
        expected.setdefault(section, {})[key] = value
    texts = [f"{section}.{key}={str(value).lower()}" for (section, key), value in values.items()]
    assert parse_overrides(separator.join(texts)) == expected


def test_bundled_configs_load():
    folder = settings.bundled("pretrain", "distilhubert").parent
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    assert {"distilhubert", "distilhubert_s3prl", "quickstart"} <= set(names)
    for name in names:
        # As the command line has them: over DistilHuBERT's.
        config, distiller = load_config([settings.bundled("pretrain", "distilhubert"), folder / f"{name}.yaml"], {}, [])
        assert isinstance(config, PretrainConfig)
        assert distiller["encoder_layers"] == 2
    with pytest.raises(SettingsError, match="no file distilhubrt .*did you mean distilhubert"):
        settings.find("pretrain", "distilhubrt")


def test_saved_settings_load_again(tmp_path):
    config, _ = load_config([settings.find("pretrain", "distilhubert")], {}, ["optimizer.lr=1e-5"])
    path = tmp_path / "config.yaml"
    path.write_text(settings.to_yaml(config), encoding="utf-8")
    again, _ = load_config([path], {}, [])
    assert again == config
    assert settings.differences(config, again) == []


def test_differences():
    one, other = Schema(), Schema(Inner(lr=0.2, betas=[0.9]), Runner(path="x"))
    assert settings.differences(one, other) == [("optimizer.lr", 0.2), ("optimizer.betas", [0.9]), ("runner.path", "x")]


# Keys and values as s3prl's two files for the distiller have them.
S3PRL_MODEL = """
distiller:
  extractor_mode: default
  extractor_conv_feature_layers: '[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2'
  feature_grad_mult: 0.1
  conv_pos: 128
  conv_pos_groups: 16
  encoder_layers: 2
  encoder_embed_dim: 768
  encoder_ffn_embed_dim: 3072
  encoder_attention_heads: 12
  activation_fn: gelu
  layer_norm_first: false
  attention_type: original
  dropout: 0.1
  attention_dropout: 0.1
  activation_dropout: 0.1
  encoder_layerdrop: 0.0
  final_dim: 768
  out_layer_type: expand-last
  out_layer_inter_dim: -1
  n_tasks: 2
  task_emb_type: expand-last
  task_emb_size: 0
  layer_emb_size: 0
  loss_type: l1
  feat_pen_loss: 0.0
  cosine_loss: 1.0
  pred_layer_id: [4, 12]
  init_teacher_conv_layers: true
  init_teacher_encoder_layers: true
teacher:
  model: hubert_base
  n_layers: 12
task:
  sequence_length: 250000
audio:
  target_level: -25
"""
S3PRL_RUNNER = """
runner:
  n_epochs: -1
  total_steps: 200000
  gradient_clipping: 5.0
  gradient_accumulate_steps: 4
  log_step: 1000
  save_step: 10000
  max_keep: 10
  fp16: true
optimizer:
  name: AdamW_with_schedule
  lr: 2.e-4
  warmup_proportion: 0.07
  betas: [0.9, 0.98]
  eps: 1.e-6
  weight_decay: 1.e-6
pretrain_expert:
  datarc:
    num_workers: 6
    train_batch_size: 6
    max_timestep: -400
    libri_root: /data/LibriSpeech
    file_path: data/len_for_bucket
    sets: [train-clean-100, train-clean-360, train-other-500]
"""


def test_s3prl_s_own_files(write):
    files = [write(S3PRL_MODEL, "config_model.yaml"), write(S3PRL_RUNNER, "config_runner.yaml")]
    config, distiller = load_config(files, {}, [])
    assert distiller == yaml.safe_load(S3PRL_MODEL)["distiller"]
    for key, value in distiller.items():
        assert getattr(config.distiller, key) == value
    assert (config.teacher.model, config.teacher.n_layers) == ("hubert_base", 12)
    assert config.task.sequence_length == 250_000
    data = config.data
    assert (data.num_workers, data.batch_size, data.path) == (6, 6, "/data/LibriSpeech")
    assert data.sets == ["train-clean-100", "train-clean-360", "train-other-500"]
    runner = config.runner
    assert (runner.total_steps, runner.gradient_accumulate_steps, runner.precision) == (200_000, 4, "float16")
    assert (runner.gradient_clipping, runner.log_step, runner.save_step, runner.max_keep) == (5.0, 1000, 10_000, 10)
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.warmup_proportion) == ("AdamW_with_schedule", 2e-4, 0.07)
    assert (optimizer.betas, optimizer.eps, optimizer.weight_decay) == ([0.9, 0.98], 1e-6, 1e-6)


def test_s3prl_s_files_under_overrides(write):
    files = [write(S3PRL_MODEL, "config_model.yaml"), write(S3PRL_RUNNER, "config_runner.yaml")]
    text = "config.runner.total_steps=10,,config.runner.fp16=false,,config.pretrain_expert.datarc.train_batch_size=2"
    config, _ = load_config(files, {}, [text])
    assert (config.runner.total_steps, config.runner.precision, config.data.batch_size) == (10, "float32", 2)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("n_epochs: -1", "n_epochs: 3", "runner.n_epochs"),
        ("log_step: 1000", "log_stp: 1000", "runner.log_stp"),
        ("libri_root: /data", "libriroot: /data", "libriroot"),
        ("    num_workers: 6", "    num_workers: six", "num_workers"),
        ("total_steps: 200000", "total_steps: 0", "runner.total_steps=0"),
        ("gradient_clipping: 5.0", "gradient_clipping: 0", "runner.gradient_clipping"),
        ("lr: 2.e-4", "lr: -1", "optimizer.lr"),
        ("name: AdamW_with_schedule", "name: Lamb", "optimizer.name='Lamb'"),
        ("fp16: true", "fp16: maybe", "fp16"),
    ],
)
def test_mistakes_in_s3prl_s_runner_file(write, old, new, named):
    assert old in S3PRL_RUNNER
    with pytest.raises(ValueError) as raised:
        load_config([write(S3PRL_RUNNER.replace(old, new))], {}, [])
    assert named in str(raised.value)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("  target_level: -25", "  target_level: -25\n  sample_rate: 8000", "audio"),
        ("n_layers: 12", "nlayers: 12", "teacher.nlayers"),
        ("conv_pos: 128", "conv_poss: 128", "distiller.conv_poss"),
        ("pred_layer_id: [4, 12]", "pred_layer_id: all", "distiller.pred_layer_id"),
    ],
)
def test_mistakes_in_s3prl_s_model_file(write, old, new, named):
    assert old in S3PRL_MODEL
    with pytest.raises(ValueError) as raised:
        load_config([write(S3PRL_MODEL.replace(old, new))], {}, [])
    assert named in str(raised.value)


def test_given_keys_of_the_student_have_the_types_of_the_schema(write):
    """What is handed on to make the student is converted as the config is."""
    section = {"encoder_layers": "2", "cosine_loss": 1, "init_teacher_conv_layers": "yes"}
    file = write({"distiller": {**section, "final_dim": "${.encoder_layers}"}})
    config, distiller = load_config([file], {}, ["distiller.pred_layer_id=['4','12']"])
    expected = {
        "encoder_layers": 2,
        "cosine_loss": 1.0,
        "init_teacher_conv_layers": True,
        "final_dim": 2,
        "pred_layer_id": [4, 12],
    }
    assert distiller == expected
    for key, value in expected.items():
        assert type(distiller[key]) is type(value)
        assert getattr(config.distiller, key) == value


def test_numbers_that_yaml_takes_for_texts(write):
    """YAML 1.1 reads 1e-4 without a point as a text; OmegaConf does not."""
    assert load(write("optimizer: {lr: 1e-4}"))[0].optimizer.lr == 1e-4
