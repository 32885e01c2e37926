"""Upstream and head as one model, against what the run itself says of real speech."""

from __future__ import annotations

import json
import subprocess
import sys
import wave
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from s3prl_distiller.downstream.core import run
from s3prl_distiller.downstream.export.check import HeadDifference, check_head
from s3prl_distiller.downstream.export.graph import HeadGraph
from s3prl_distiller.downstream.export.save import export_head, head_graph, onnx_translations
from s3prl_distiller.upstream.distiller.export import traced
from s3prl_distiller.upstream.distiller.export.graph import trace
from s3prl_distiller.upstream.distiller.export.onnx import open_session, to_int8, to_onnx
from s3prl_distiller.upstream.distiller.export.runners import Runner
from s3prl_distiller.upstream.distiller.model import DistillerModel
from s3prl_distiller.upstream.distiller.model_config import DistillerConfig
from s3prl_distiller.upstream.distiller.student import s3prl_states

from s3prl_distiller import audio, checkpoint
from s3prl_distiller.cli.main import main
from s3prl_distiller.data.utterance import Utterance
from s3prl_distiller.engine.randomness import seed

ROOT = Path(__file__).resolve().parents[2]
NANO = str(ROOT / "s3prl_distiller" / "quickstart" / "hubert_nano")
CPU = torch.device("cpu")
TINY = [
    "runner.total_steps=3,runner.eval_step=3,runner.log_step=3,runner.save_step=3,data.batch_size=4",
    # Weights that have moved: mistakes do not show in those that are born alike.
    "optimizer.lr=0.05,data.num_workers=0,task.unseen_labels=skip",
]
OF_TASK = {
    "asr": ["task.project_dim=12,task.hidden=10,optimizer.lr=1e-3"],
    "sf": ["task.project_dim=12,task.hidden=10"],
    "er": ["task.fold=2"],
    "asv": ["task.min_seconds=1,optimizer.lr=1e-3"],
}
STUDENTS: dict[str, dict[str, Any]] = {
    "student": {},
    "pre-norm": {"normalize": True, "layer_norm_first": True, "encoder_layers": 2, "n_tasks": 2},
    "without heads": {"n_tasks": 0, "task_emb_type": "none", "out_layer_type": "none"},
    "of its own states": {"n_tasks": 2, "task_emb_type": "self-hidden", "out_layer_type": "none"},
}


def student(options: dict[str, Any]) -> DistillerModel:
    torch.manual_seed(0)
    width = dict.fromkeys(("encoder_embed_dim", "encoder_ffn_embed_dim", "final_dim"), 32)
    common = {"encoder_layers": 1, "encoder_attention_heads": 2, "n_tasks": 1, "task_emb_type": "expand-last"}
    front_end = {"extractor_conv_feature_layers": "[(16,10,5),(16,8,8),(16,8,8)]"}
    config = {**width, **common, **front_end, "out_layer_type": "expand-last", **options}
    return DistillerModel(DistillerConfig.from_mapping(config))


class Exported(NamedTuple):
    trained: run.Trained
    graph: HeadGraph
    path: Path


def write(graph: HeadGraph, path: Path) -> None:
    to_onnx(trace(graph), graph.outputs, graph.metadata, path, onnx_translations())


@pytest.fixture(scope="module")
def students(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("students")
    paths = {name: str(folder / f"{index}.ckpt") for index, name in enumerate(STUDENTS)} | {"nano": NANO}
    for name, options in STUDENTS.items():
        checkpoint.save_torch(s3prl_states(student(options), {}, 0), Path(paths[name]))
    return paths


@pytest.fixture(scope="module")
def train(minis, students, tmp_path_factory) -> Callable[..., run.Trained]:
    """``train(task, student, "KEY=VALUE,...", feature=...)``: a head of a few steps, and settings of its upstream."""
    folder = tmp_path_factory.mktemp("runs")

    def train(task: str, name: str, *overrides: str, **upstream: Any) -> run.Trained:
        options = {"upstream": {"name": students.get(name, name), **upstream}, "data": {"path": str(minis)}}
        own = [*TINY, f"data.cache_dir={folder / 'cache'}", *OF_TASK.get(task, []), *overrides]
        if upstream.get("trainable"):
            own.append("optimizer.lr=1e-3")
        config = run.load_config(task, [], options, own)
        place = folder / f"run{len(list(folder.glob('run*')))}"
        seed(config.runner.seed)
        run.fit(run.build(task, config, place, CPU), place, CPU, None)
        return run.find_trained(place)

    return train


@pytest.fixture(scope="module")
def export_task(train, tmp_path_factory) -> Callable[[str], Exported]:
    folder = tmp_path_factory.mktemp("exported")

    @cache
    def export_task(task: str) -> Exported:
        trained = train(task, "student")
        graph, path = head_graph(trained, trained.saved["settings"]["upstream"]["name"]), folder / f"{task}.onnx"
        write(graph, path)
        return Exported(trained, graph, path)

    return export_task


@pytest.fixture(scope="module")
def files(speech_files) -> list[Path]:
    """Real speech of LibriSpeech and other corpora, 2 s and more."""
    return [*speech_files[:2], *speech_files[24:28]]


def by_onnx(path: Path, outputs: tuple[str, ...]) -> Runner:
    session = open_session(path)
    assert [output.name for output in session.get_outputs()] == list(outputs)

    def run(wave: torch.Tensor, lengths: torch.Tensor) -> dict[str, torch.Tensor]:
        answer = session.run(None, {"waveform": wave.numpy(), "lengths": lengths.numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(outputs, answer, strict=True)}

    return run


def by_torch(graph: HeadGraph) -> Runner:
    @torch.no_grad()
    def run(wave: torch.Tensor, lengths: torch.Tensor) -> dict[str, torch.Tensor]:
        return dict(zip(graph.outputs, graph(wave, lengths), strict=True))

    return run


def check(found: list[HeadDifference], outputs: tuple[str, ...]) -> None:
    assert [row.output for row in found] == [*outputs] * 2 and len({row.case for row in found}) == 2
    for row in found:
        assert row.largest < 1e-4 * max(1, row.scale) and row.mean <= row.largest, row
        assert row.cosine is None or row.cosine > 0.99999, row
        assert row.agreement in (1, None) and row.frames in (None, 1) or row.frames > 0.99, row


ANSWERS = {
    "ks": ("logits", "probabilities"),
    "sid": ("logits", "probabilities"),
    "er": ("logits", "probabilities"),
    "ic": ("logits", "probabilities_slot_1", "probabilities_slot_2", "probabilities_slot_3"),
    "asr": ("frames", "logits"),
    "asv": ("embedding",),
}


@pytest.mark.parametrize("task", ANSWERS)
def test_onnx_says_what_the_run_says(task, export_task, files):
    trained, graph, path = export_task(task)
    assert graph.outputs == ANSWERS[task] and graph.task.name == task
    check(check_head(graph, by_onnx(path, graph.outputs), trained, files), graph.outputs)


@pytest.mark.parametrize("task", ["pr", "sf"])
def test_other_sequences(task, train, files):
    trained = train(task, "student")
    graph = head_graph(trained)
    check(check_head(graph, by_torch(graph), trained, files), ("frames", "logits"))


@pytest.mark.parametrize(
    ("name", "upstream"),
    [
        ("student", {"layer": 0}),
        ("pre-norm", {"layer": 1}),
        ("pre-norm", {"normalize": True}),
        ("pre-norm", {"feature": "paper"}),
        ("pre-norm", {"feature": "last_hidden_state"}),
        ("without heads", {"feature": "last_hidden_state"}),
        ("of its own states", {}),
        ("pre-norm", {"trainable": True}),
        ("nano", {}),
        ("nano", {"layer": 3}),
        ("nano", {"feature": "last_hidden_state"}),
        ("nano", {"trainable": True, "layer": 2}),
    ],
)
def test_settings_of_the_upstream(name, upstream, train, files):
    trained = train("ks", name, **upstream)
    graph = head_graph(trained)
    check(check_head(graph, by_torch(graph), trained, files[2:]), graph.outputs)


def test_what_the_head_does_not_need_is_left_out(train, students):
    sizes = {}
    for layer in (0, 1, 3):
        graph = head_graph(train("ks", "pre-norm", layer=layer))
        sizes[layer] = sum(parameter.numel() for parameter in graph.student.parameters())
    assert sizes[0] < sizes[1] < sizes[3]


@pytest.mark.parametrize("task", ["ks", "asr"])
def test_int8(task, export_task, files, tmp_path):
    import onnx

    trained = export_task(task).trained
    graph, wide, small = head_graph(trained, for_int8=True), tmp_path / "wide.onnx", tmp_path / "small.onnx"
    write(graph, wide)
    to_int8(wide, small)
    for row in check_head(graph, by_onnx(small, graph.outputs), trained, files):
        assert row.output == "frames" or (row.cosine > 0.99 and row.largest > 1e-6), row
    quantised = onnx.load(small).graph
    operators = {node.op_type for node in quantised.node}
    assert "MatMulInteger" in operators and not operators & {"LSTM", "Gemm"}
    assert ("DynamicQuantizeLSTM" in operators) == (task == "asr")
    kinds = {tensor.name: tensor.data_type for tensor in quantised.initializer}
    products = [node for node in quantised.node if node.op_type in ("MatMulInteger", "DynamicQuantizeLSTM")]
    weights = [name for node in products for name in node.input[1:3] if name in kinds]
    # Those with a sign overflow on processors without VNNI only, which the tests may never see.
    assert weights and {kinds[name] for name in weights} == {onnx.TensorProto.UINT8}


def test_the_file_says_how_to_read_it(export_task):
    def metadata(task: str) -> dict[str, str]:
        return open_session(export_task(task).path).get_modelmeta().custom_metadata_map

    of = {task: metadata(task) for task in ("ks", "ic", "asr", "asv")}
    for task, values in of.items():
        saved = export_task(task).trained.saved
        assert values["task"] == task and values["sampling_rate"] == "16000" and values["samples_per_frame"] == "320"
        assert values["upstream_fingerprint"] == saved["upstream"]["fingerprint"]
    state = {task: export_task(task).trained.saved["state"] for task in of}
    for task in ("ks", "ic"):
        assert list(json.loads(of[task]["labels"]).items()) == [(slot, names) for slot, names in state[task]["classes"]]
    assert json.loads(of["asr"]["symbols"]) == state["asr"]["symbols"]["names"]
    assert (of["asr"]["blank"], of["asr"]["end"]) == ("0", "2")
    assert float(of["asv"]["threshold"]) == state["asv"]["threshold"]
    graph = export_task("asv").graph
    assert int(of["asv"]["shortest_samples"]) == graph.shortest == int(of["ks"]["shortest_samples"]) + 15 * 320
    assert float(of["ks"]["gain_db_applied_inside"]) == -3.0


def test_the_shortest_utterance(export_task):
    """Alone, and beside a longer one."""
    for task in ("ks", "asr", "asv"):
        graph = export_task(task).graph
        answer = by_onnx(export_task(task).path, graph.outputs)
        wave = torch.zeros(2, 20_000)
        wave[0, : graph.shortest] = 0.1 * torch.randn(graph.shortest, generator=torch.Generator().manual_seed(0))
        together = answer(wave, torch.tensor([graph.shortest, 20_000]))
        alone = answer(wave[:1, : graph.shortest], torch.tensor([graph.shortest]))
        for name in graph.outputs:
            one, other = alone[name][0], together[name][0]
            assert np.isfinite(one).all()
            np.testing.assert_allclose(other[: len(one)] if one.ndim > 1 else other, one, rtol=1e-5, atol=1e-5)


def test_another_upstream_is_refused(train, students):
    trained = train("ks", "student")
    with pytest.raises(ValueError, match="was trained on .*0.ckpt .* is not what .*1.ckpt is now .* others"):
        head_graph(trained, students["pre-norm"])
    assert head_graph(trained, students["student"]).task.name == "ks"


def test_another_upstream_is_refused_though_the_run_has_weights_of_its_own(train, students, tmp_path):
    trained = train("ks", "student", trainable=True)
    other = str(tmp_path / "other.ckpt")
    states = s3prl_states(student({}), {}, 0)
    states["Distiller"]["post_extract_proj.bias"] = states["Distiller"]["post_extract_proj.bias"] + 1
    checkpoint.save_torch(states, Path(other))
    with pytest.raises(ValueError, match="was trained on .*0.ckpt .* is not what .*other.ckpt is now"):
        head_graph(trained, other)
    assert head_graph(trained, students["student"]).task.name == "ks"


def test_what_cannot_be_exported(train):
    with pytest.raises(ValueError, match="fbank runs as the s3prl hub gives it .* cannot be exported"):
        head_graph(train("ks", "fbank"))
    with pytest.raises(ValueError, match="hears the middle 1.5 s of an utterance"):
        head_graph(train("ks", "student", "data.eval_crop_seconds=1.5"))
    with pytest.raises(ValueError, match="a head of sd cannot be exported"):
        head_graph(train("sd", "student", "task.hidden_size=8"))


def example(name: str, model: Path, recording: Path) -> str:
    """The words of an example that finds onnxruntime and numpy, and nothing of this package or of torch."""
    start = (
        "import runpy, sys; sys.modules |= dict.fromkeys(('torch', 's3prl_distiller', 'soundfile', 'librosa')); "
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", start, str(ROOT / "examples" / name), str(model), str(recording)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.fixture(scope="module")
def recording(files, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recording") / "speech.wav"
    samples = (audio.load(files[2]).numpy() * 32767).astype(np.int16)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, len(samples), "NONE", ""))
        file.writeframes(samples.tobytes())
    return path


def said(trained: run.Trained, recording: Path) -> str:
    """What ``-m inference`` says."""
    expert = run.restore(trained, run.from_saved(trained, {}, []), CPU, None)
    (words,) = run.infer(expert, [recording], CPU)
    return words.removeprefix(f"{recording}: ")


def test_example_of_labels(export_task, recording):
    trained, _, path = export_task("ks")
    assert example("onnx_label.py", path, recording).startswith(f"label: {said(trained, recording).split(';')[0]}")
    trained, _, path = export_task("ic")
    lines = example("onnx_label.py", path, recording).splitlines()
    words = said(trained, recording)
    assert [line.split(":")[0] for line in lines] == ["slot_1", "slot_2", "slot_3"]
    assert all(line.removesuffix(")") in words for line in lines), (lines, words)


@pytest.mark.parametrize("task", ["asr", "pr", "sf"])
def test_what_the_classes_write_makes_the_prediction(task, train):
    known = train(task, "student")
    judge = run.task_class(task)(run.from_saved(known, {}, []).task)
    judge.load_state(known.saved["state"])
    writes = json.loads(judge.legend()["writes"])
    path = torch.randint(len(writes), (400,), generator=torch.Generator().manual_seed(0))
    kept = path.unique_consecutive().tolist()
    logits = torch.nn.functional.one_hot(path, len(writes))[None].float()
    [row] = judge.interpret({"frames": torch.tensor([400]), "logits": logits}, [Utterance("u", "u", "u.wav")])
    assert " ".join("".join(writes[index] for index in kept).split()) == row["prediction"]
    assert len(row["prediction"]) > 200 and {writes[0], writes[judge.symbols.end]} == {""}


def test_example_of_transcripts(export_task, recording):
    trained, _, path = export_task("asr")
    words = said(trained, recording).rsplit(" (confidence", 1)[0]
    assert words and example("onnx_transcript.py", path, recording).strip() == words


def test_the_whole_export_through_the_command(train, students, files, tmp_path, capsys):
    trained = train("ks", "student")
    audio_files = [*map(str, files[:4])]
    command = ["export", "--with-head", str(trained.run), "--speech", *audio_files]
    assert main([*command, "--to", "onnx", "-o", str(tmp_path / "ks")]) == 0
    text = capsys.readouterr().out
    assert "It holds on 4 files" in text and "peak memory" in text and (tmp_path / "ks" / "parity.md").is_file()
    figures = json.loads((tmp_path / "ks" / "parity.json").read_text())
    assert figures["task"] == "ks" and {check["agreement"] for check in figures["checks"]} == {1.0}
    assert figures["size"] == (tmp_path / "ks" / "model.onnx").stat().st_size and figures["seconds"] > 0
    assert main([*command, "--to", "torch-export", "-o", str(tmp_path / "pt2"), "--no-costs"]) == 0
    capsys.readouterr()
    for more, words in (
        (["--to", "hf", "-o", str(tmp_path / "hf")], "with a head, --to takes onnx, onnx-int8, torch-export"),
        (["--to", "onnx", "-o", str(tmp_path / "ks")], "is not empty"),
        (["--to", "onnx", "-o", str(tmp_path / "x"), "--model-type", "hubert"], "are for a student alone"),
    ):
        assert main([*command, *more]) == 2 and words in capsys.readouterr().err
    other = ["export", students["pre-norm"], *command[1:], "--to", "onnx", "-o", str(tmp_path / "x")]
    assert main(other) == 2 and "its weights are others" in capsys.readouterr().err
    assert main(["export", "--to", "onnx", "-o", str(tmp_path / "x")]) == 2
    assert "name the student" in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_an_export_that_answers_otherwise_is_not_written(train, files, tmp_path, monkeypatch):
    trained = train("ks", "student")
    honest = traced.write

    def spoiled(graph, *arguments):
        graph.head.linear.bias.data[0] += 0.01
        honest(graph, *arguments)

    monkeypatch.setattr(traced, "write", spoiled)
    with pytest.raises(ValueError, match="does not answer as the run does, and was not written: logits, alone"):
        export_head(trained, None, "torch-export", tmp_path / "out", files[:2], costs=False)
    assert not list(tmp_path.iterdir())
