"""The plan of a benchmark: labels, tiers, corpora, what belongs together. No process is started."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from s3prl_distiller.downstream.benchmark import estimate, places, plan, record, tiers, upstreams
from s3prl_distiller.downstream.core import run as core

from s3prl_distiller import checkpoint, settings
from s3prl_distiller.cli import downstream as command_line
from s3prl_distiller.data.utterance import Utterance

# -- upstreams

# An argument of a command holds no NUL.
_ARGUMENTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)


@given(st.lists(_ARGUMENTS, min_size=1, max_size=6, unique=True))
def test_labels_name_folders(names: list[str]) -> None:
    """Whatever upstreams are called: one label each, none twice (case aside), none that leaves the folder."""
    try:
        found = upstreams.read_upstreams(names, None)
    except ValueError as error:
        assert any("=" in name for name in names) or "twice" in str(error)
        return
    assert len({one.label.lower() for one in found}) == len(names)
    for one in found:
        assert re.fullmatch(r"\w[\w.+-]*", one.label) and Path("x", one.label).name == one.label


def test_labels_by_what_a_path_is_called(tmp_path: Path) -> None:
    for name in ("student/best", "student/states-300", "other/best", "a=b"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "distilhubert.ckpt").touch()
    paths = [str(tmp_path / name) for name in ("student/best", "student/states-300", "distilhubert.ckpt", "a=b")]
    found = upstreams.read_upstreams([*paths, f"mine={tmp_path / 'other/best'}", "fbank", "org/model-1.5"], None)
    assert [one.label for one in found] == [
        *("student-best", "student-states-300", "distilhubert", "a_b", "mine", "fbank", "model-1.5")
    ]
    # A label stays with its upstream, whatever comes before it the next time.
    again = upstreams.read_upstreams(["x/fbank", "fbank"], None, known=found)
    assert [one.label for one in again] == ["fbank-2", "fbank"]


@pytest.mark.parametrize(
    ("texts", "ckpt", "part"),
    [
        ([], None, "-u NAME"),
        (["a=fbank", "A=mfcc"], None, "label A was given twice"),
        (["fbank", "fbank"], None, "given twice"),
        (["../up=fbank"], None, "'../up'"),
        (["a="], None, "LABEL=NAME"),
        (["slurm=fbank"], None, "'slurm'"),
        (["fbank", "mfcc"], "x.pt", "-k goes with one upstream"),
    ],
)
def test_upstreams_that_cannot_be(texts: list[str], ckpt: str | None, part: str) -> None:
    with pytest.raises(ValueError, match=re.escape(part)):
        upstreams.read_upstreams(texts, ckpt)


def test_all_unknown_upstreams_are_named() -> None:
    named = [upstreams.Upstream(name, name) for name in ("fbank", "hubert_bas", "nowhere/x.ckpt")]
    with pytest.raises(ValueError, match=r"hubert_bas, nowhere/x.ckpt.*did you mean hubert_base"):
        upstreams.check_upstreams(named)


# -- tiers and settings

_VALUES = st.one_of(
    st.booleans(),
    st.none(),
    st.integers(-(10**9), 10**9),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(codec="ascii", exclude_categories=["Cc"], exclude_characters="=,$"), max_size=12),
)


@given(
    st.dictionaries(st.sampled_from(["a.b", "a.c", "runner.x", "task.y_z"]), _VALUES | st.lists(_VALUES, max_size=4))
)
def test_settings_survive_the_command_line(values: dict[str, Any]) -> None:
    assert tiers.flatten(settings.parse_overrides(tiers.as_override(values))) == values


def test_the_official_tier_is_superbs_protocol() -> None:
    """It searches the learning rate and says what is kept; nothing else differs from config/downstream."""
    tier = tiers.load_tier("superb")
    assert tier.learning_rates == pytest.approx([10.0**-power for power in range(1, 7)])
    for task in tiers.TASKS:
        values = tier.of(task)
        assert values.pop("search.learning_rates", tier.learning_rates) == tier.learning_rates
        assert values == {"features.keep": True, "runner.max_keep": 1}


def test_every_tier_names_every_trained_task() -> None:
    mini = tiers.load_tier("mini")
    for task in tiers.TASKS:
        assert "runner.total_steps" in mini.of(task) or not core.task_class(task).trained


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"asr": {"runner": {"total_step": 3}}}, ("own.yaml", "asr", "runner.total_step", "total_steps")),
        ({"asrr": {}}, ("own.yaml", "asrr", "asr")),
        ({"learning_rates": [0.1, -1]}, ("own.yaml", "search.learning_rates")),
        ({"ks": {"runner": {"total_steps": 0}}}, ("own.yaml", "ks", "runner.total_steps")),
        ([1, 2], ("own.yaml",)),
    ],
)
def test_a_tier_that_cannot_be(content: Any, parts: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError) as raised:
        tier = tiers.load_tier(str(path))
        for task in ("asr", "ks"):
            tiers.load_config(task, tier, tier.of(task), tmp_path)
    assert all(part in str(raised.value) for part in parts), raised.value
    with pytest.raises(ValueError, match="mini, superb"):
        tiers.load_tier("huge")


def test_who_has_the_last_word(minisuperb: Path, tmp_path: Path) -> None:
    """The tier over the task's own settings, options over the tier, -o over options, that of one task over all."""
    tier = tiers.load_tier("mini")
    values = plan.values_of(
        tier,
        ["asr", "ks", "qbe"],
        {"search.seeds": 3, "runner.seed": 5},
        ["runner.total_steps=7,asr.runner.total_steps=9", "config.runner.fp16=false", "asr.task.lm=x.arpa"],
    )
    assert (values["asr"]["runner.total_steps"], values["ks"]["runner.total_steps"]) == (9, 7)
    assert values["ks"]["runner.precision"] == "float32" and values["ks"]["runner.seed"] == 5
    assert values["asr"]["task.hidden"] == tier.of("asr")["task.hidden"] != 1024 and values["asr"]["search.seeds"] == 3
    assert values["asr"]["task.lm"] == str(Path("x.arpa").absolute())
    # Nothing is searched where nothing is trained.
    assert not any(key.startswith("search.") for key in values["qbe"])
    with pytest.raises(ValueError, match=r"settings of ks.*task.hidden"):
        _prepare(minisuperb, tmp_path / "out", tasks="ks", overrides=["task.hidden=3"])


# -- corpora


def test_official_corpora_are_found_by_their_usual_names(tmp_path: Path) -> None:
    for name in ("LibriSpeech", "VoxCeleb1", "Libri2Mix/data", "fluent_speech_commands_dataset", "SNIPS"):
        (tmp_path / name).mkdir(parents=True)
    found = places.read_places([str(tmp_path), f"speech_commands={tmp_path / 'SNIPS'}"])
    names = {"asr": "LibriSpeech", "asv": "VoxCeleb1", "sd": "Libri2Mix/data", "ks": "SNIPS", "er": "."}
    for task, name in names.items():
        assert found.of(task) == tmp_path / name, task
    assert places.usual_tier([tmp_path]) == "superb"
    (tmp_path / "LibriSpeech" / "train.jsonl").touch()
    assert places.usual_tier([tmp_path / "LibriSpeech"]) == "mini"
    with pytest.raises(ValueError, match="--tier"):
        places.usual_tier([tmp_path, tmp_path / "LibriSpeech"])
    for wrong, part in ((["nowhere"], "nowhere"), ([str(tmp_path), str(tmp_path / "SNIPS")], "TASK=PATH")):
        with pytest.raises(ValueError, match=part):
            places.read_places(wrong)


def test_all_missing_corpora_are_named_at_once(minisuperb: Path, tmp_path: Path) -> None:
    (tmp_path / "slu_mini").symlink_to(minisuperb / "slu_mini")
    with pytest.raises(ValueError) as raised:
        _prepare(tmp_path, tmp_path / "out", tasks="asr,ic,sd,sf,qbe")
    said = str(raised.value)
    assert "no corpus for asr, qbe, sd:" in said and "--tasks ic,sf" in said and "\n" not in said


# -- what belongs together


def _prepare(root: Path, folder: Path, **changed: Any) -> plan.Benchmark:
    asked: dict[str, Any] = {
        "upstreams": ["fbank"],
        "ckpt": None,
        "data": [str(root)],
        "tasks": "ks,er,qbe",
        "tier": None,
        "options": {},
        "overrides": [],
        "teacher": None,
    }
    return plan.prepare(folder, **{**asked, **changed})


def _begin(benchmark: plan.Benchmark) -> None:
    benchmark.folder.mkdir(parents=True, exist_ok=True)
    (benchmark.folder / record.FILE).write_text(json.dumps(benchmark.description))


def test_the_command_of_a_run_has_its_settings(minisuperb: Path, tmp_path: Path) -> None:
    """What the ordinary command makes of it is the config that the plan was made with."""
    overrides = ["data.num_workers=0,ks.task.fillers=[unknown]"]
    benchmark = _prepare(minisuperb, tmp_path / "out", overrides=overrides, options={"upstream.layer": -1})
    assert [run.task for run in benchmark.runs] == ["ks", "qbe", "er"] and benchmark.description["tier"] == "mini"
    assert [run.heads for run in benchmark.runs] == [6, 0, 6] and benchmark.corpora["er"].folds == 5
    for run in benchmark.runs:
        args = command_line.parser().parse_args(run.arguments())
        args.upstream = args.upstream[0]
        config = core.load_config(args.downstream, [], command_line._options(args), args.override)
        assert settings.differences(config, run.config) == []
        assert args.expdir == tmp_path / "out" / "fbank" / run.task and args.auto_resume


def test_statuses(minisuperb: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (folder / "fbank" / "ks").mkdir(parents=True)
    (folder / "fbank" / "ks" / "failed.json").write_text('{"reason": "x"}')
    (folder / "fbank" / "er" / "fold1").mkdir(parents=True)
    (folder / "fbank" / "qbe").mkdir(parents=True)
    (folder / "fbank" / "qbe" / "metrics-test.json").write_text("{}")
    benchmark = _prepare(minisuperb, folder)
    assert {run.task: run.status for run in benchmark.runs} == {"ks": plan.AGAIN, "qbe": plan.DONE, "er": plan.BEGUN}
    assert [run.task for run in benchmark.pending] == ["ks", "er"]
    table = benchmark.table({run.name: plan.Cost(90, 10**9) for run in benchmark.pending}, 2, "2 GPUs")
    steps = tiers.load_tier("mini").of("er")["runner.total_steps"]
    assert (
        f"5 x {steps}" in table and "3.0 minutes of runs" in table and "90 s on 2 GPUs" in table and "2 of 3" in table
    )
    # Done, but otherwise.
    config = settings.plain(next(run for run in benchmark.runs if run.task == "qbe").config)
    config["data"]["num_workers"] = 3
    (folder / "fbank" / "qbe" / "config.yaml").write_text(yaml.safe_dump(config))
    _prepare(minisuperb, folder)
    config["task"]["minmax"] = False
    (folder / "fbank" / "qbe" / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=r"qbe was made with task.minmax=False.*-n"):
        _prepare(minisuperb, folder)


def test_what_may_be_added_and_what_may_not(minisuperb: Path, minisuperb_copy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    _begin(_prepare(minisuperb, folder, options={"search.seeds": 2}))
    same = {"options": {"search.seeds": 2}}
    more = _prepare(minisuperb, folder, upstreams=["mfcc", "b=fbank_no_cmvn"], tasks="ic", teacher="b", **same)
    assert [one["label"] for one in more.description["upstreams"]] == ["fbank", "mfcc", "b"]
    assert more.description["tasks"] == ["ks", "qbe", "ic", "er"]
    assert (more.description["baseline"], more.description["teacher"]) == ("fbank", "b")
    assert set(more.description["settings"]) == set(more.description["places"]) == {"ks", "qbe", "ic", "er"}
    _begin(more)
    assert _prepare(minisuperb, folder, **same).description["teacher"] == "b"
    _prepare(minisuperb, folder, **same, overrides=["data.num_workers=0,features.disk_gb=1"])
    for changed, part in (
        ({"tier": "superb", **same}, "the tier is mini there and superb"),
        ({"options": {}}, "search.seeds of ks is 2 there and the task's own"),
        ({**same, "overrides": ["runner.total_steps=3"]}, r"runner.total_steps of ks is \d+ there and 3"),
        ({**same, "data": [str(minisuperb_copy)]}, "the data of ks"),
        ({**same, "upstreams": ["b=mfcc"]}, "the upstream of b is fbank_no_cmvn there and mfcc"),
        ({**same, "teacher": "c"}, "--teacher c is none of the labels fbank, mfcc, b"),
        ({**same, "tasks": "ks,kws"}, "kws"),
    ):
        with pytest.raises(ValueError, match=part):
            _prepare(minisuperb, folder, **changed)


@pytest.fixture
def minisuperb_copy(minisuperb: Path, tmp_path: Path) -> Path:
    """Equal, elsewhere."""
    for name in ("keywords_mini", "emotions_mini"):
        (tmp_path / "copy" / name).mkdir(parents=True)
        for path in (minisuperb / name).iterdir():
            (tmp_path / "copy" / name / path.name).symlink_to(path)
    return tmp_path / "copy"


def test_whose_weights_were_benchmarked(tmp_path: Path) -> None:
    """A finished run, one that was begun, one of several folds, and a measurement all say it; nothing says None."""
    for name, path, content in (
        ("done", "metrics-test.json", {"upstream": {"fingerprint": "a"}}),
        ("folds", "fold2/metrics-test.json", {"upstream": {"fingerprint": "b"}}),
        ("measured", "cost.json", {"fingerprint": "c"}),
    ):
        (tmp_path / name / path).parent.mkdir(parents=True)
        (tmp_path / name / path).write_text(json.dumps(content))
    begun = tmp_path / "begun" / "states-3"
    checkpoint.save_folder(
        begun, {"config.json": lambda path: checkpoint.save_json({"upstream": {"fingerprint": "d"}}, path)}
    )
    names = ("done", "folds", "measured", "begun", "nothing")
    assert [plan.fingerprint_of(tmp_path / name) for name in names] == ["a", "b", "c", "d", None]


# -- estimates


@given(st.lists(st.floats(0.1, 1000), min_size=1, max_size=20), st.integers(1, 8))
def test_wall_time(seconds: list[float], slots: int) -> None:
    """Between what no order can beat and a third more (Graham 1969), which longest first keeps to."""
    best = max(max(seconds), sum(seconds) / slots)
    wall = plan.wall_time(seconds, slots)
    assert best <= wall * (1 + 1e-9)
    assert wall <= sum(seconds) / slots + max(seconds)
    if slots == 1:
        assert wall == pytest.approx(sum(seconds))


def test_lengths_that_a_corpus_does_not_say(speech_files: list[Path]) -> None:
    import soundfile

    said = [Utterance(str(path), str(path), str(path), claimed=2.5) for path in speech_files[:3]]
    unsaid = [Utterance(str(path), str(path), str(path)) for path in speech_files[:8]]
    mean = sum(soundfile.info(path).duration for path in speech_files[:8]) / 8
    assert estimate.lengths([*said, *unsaid]) == pytest.approx([2.5] * 3 + [mean] * 8)
