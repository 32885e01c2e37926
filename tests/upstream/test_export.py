"""Exports give the student's numbers where they are run, or are not written."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from s3prl_distiller.upstream.distiller.export import parity
from s3prl_distiller.upstream.distiller.export.forms import FORMS, Options, check
from s3prl_distiller.upstream.distiller.export.graph import StudentGraph, state_names, without_heads
from s3prl_distiller.upstream.distiller.export.onnx import MISSING, open_session, require_onnx
from s3prl_distiller.upstream.distiller.export.save import export
from s3prl_distiller.upstream.distiller.frontend import frame_lengths
from s3prl_distiller.upstream.distiller.model import Encoder
from s3prl_distiller.upstream.distiller.student import Student, read_student, s3prl_states

from s3prl_distiller import audio
from s3prl_distiller.cli.speech import speech

from .small import student

BUNDLED = Path(__file__).resolve().parents[2] / "s3prl_distiller" / "quickstart" / "hubert_nano"
QUICK = Options(costs=False)
XLSR = {
    "extractor_mode": "layer_norm",
    "conv_bias": True,
    "feature_layer_norm": True,
    "always_project": True,
    "normalize": True,
    "normalize_eps": 1e-7,
    "layer_norm_first": True,
}
KINDS = {
    "distilhubert": {},
    "distilxlsr": XLSR,
    "as-wide": {"encoder_embed_dim": 32, "final_dim": 32},  # no projection
    "data2vec": {**XLSR, "layer_norm_first": False, "conv_pos_depth": 3, "conv_pos": 21, "conv_pos_groups": 4},
    "activation": {"activation_fn": "swish", "task_emb_type": "self-hidden", "out_layer_type": "none"},
}


def of(kind, tmp_path, **changes):
    """A student of that kind as if it had been read from a file."""
    training = {"teacher": {"model": "hubert_base"}, "data": {"path": "somewhere"}}
    return Student(student(**{**KINDS[kind], **changes}), training, 7, "s3prl", tmp_path / "student.ckpt")


@pytest.fixture(scope="module")
def waves():
    return speech()[:2]


@pytest.fixture(scope="module")
def hubert_nano_student(tmp_path_factory):
    """As distillation begins it: front end and first two layers of the bundled teacher, heads untrained."""
    from s3prl_distiller.upstream.distiller.derive import derive_student
    from s3prl_distiller.upstream.distiller.initialise import initialise
    from s3prl_distiller.upstream.distiller.model import DistillerModel
    from s3prl_distiller.upstream.distiller.teacher import TeacherConfig, load_teacher

    teacher = load_teacher(TeacherConfig(model=str(BUNDLED)))
    torch.manual_seed(0)
    model = DistillerModel(derive_student({"pred_layer_id": [4, 8, 12]}, teacher.info)).eval()
    initialise(model, teacher.twin)
    return Student(model, {}, 0, "s3prl", tmp_path_factory.mktemp("nano") / "student.ckpt")


@pytest.fixture(scope="module")
def exported(tmp_path_factory, waves):
    """A student of a kind and the folder of its export, made once."""
    made = {}

    def get(kind, form):
        if (kind, form) not in made:
            folder = tmp_path_factory.mktemp(kind)
            given = of(kind, folder)
            export(given, form, folder / "out", waves, QUICK)
            made[kind, form] = given, folder / "out"
        return made[kind, form]

    return get


def padded(seed, lengths):
    generator = torch.Generator().manual_seed(seed)
    wave = torch.zeros(len(lengths), max(lengths))
    for row, length in zip(wave, lengths, strict=True):
        row[:length] = 0.1 * torch.randn(length, generator=generator)
    return wave, torch.tensor(lengths)


def expected(model, wave, lengths):
    with torch.no_grad():
        out = model(wave, lengths)
    content = torch.arange(out.projected.shape[1]) < out.frames[:, None]
    return out.listed, content


@pytest.mark.parametrize(
    ("kind", "form"),
    [(kind, "onnx") for kind in ("distilhubert", "distilxlsr", "data2vec")]
    + [(kind, "torch-export") for kind in ("distilhubert", "distilxlsr")],
)
def test_graphs_serve_any_batch_and_length(kind, form, exported):
    given, folder = exported(kind, form)
    if form == "onnx":
        session = open_session(folder / "model.onnx")
        names = [output.name for output in session.get_outputs()]
        assert names == ["frames", *state_names(given.model.config)]
        assert session.get_modelmeta().custom_metadata_map["shortest_samples"] == "400"

        def run(wave, lengths):
            found = session.run(None, {"waveform": wave.numpy(), "lengths": lengths.numpy()})
            return [torch.from_numpy(value) for value in found]
    else:
        run = torch.export.load(folder / "model.pt2").module()
    shortest = 400 if form == "onnx" else 720
    for seed, batch in enumerate([[16_000], [shortest], [8_000, 8_000], [9_001, shortest, 4_000, 9_001, 1_234]]):
        wave, lengths = padded(seed, batch)
        states, content = expected(given.model, wave, lengths)
        with torch.no_grad():
            frames, *found = run(wave, lengths)
        assert frames.tolist() == frame_lengths(lengths, given.model.conv_layers).tolist()
        for right, state in zip(states, found, strict=True):
            torch.testing.assert_close(state[content], right[content], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", ["onnx", "torch-export"])
def test_less_than_the_shortest_utterance_is_an_error(form, exported):
    _, folder = exported("distilhubert", form)
    wave, lengths = padded(0, [399])
    if form == "onnx":
        session = open_session(folder / "model.onnx")
        with pytest.raises(Exception, match="an_utterance_is_shorter_than_400_samples"):
            session.run(None, {"waveform": wave.numpy(), "lengths": lengths.numpy()})
        wave, lengths = padded(0, [8_000, 399])
        with pytest.raises(Exception, match="an_utterance_is_shorter_than_400_samples"):
            session.run(None, {"waveform": wave.numpy(), "lengths": lengths.numpy()})
    else:
        run = torch.export.load(folder / "model.pt2").module()
        with pytest.raises(AssertionError, match="720"):
            run(wave, lengths)


def test_int8_on_real_speech(tmp_path, waves, speech_files, hubert_nano_student):
    """The lowest cosine of a frame with float32 is .99 in each hidden state, on speech that it was not checked with."""
    given = hubert_nano_student
    export(given, "onnx-int8", tmp_path / "out", waves, QUICK)
    wide = sum(parameter.nbytes for parameter in given.model.parameters())
    assert (tmp_path / "out" / "model.onnx").stat().st_size < 0.45 * wide
    session = open_session(tmp_path / "out" / "model.onnx")
    for path in [speech_files[0], speech_files[30]]:
        wave = audio.load(path)[None, : 6 * 16_000]
        lengths = torch.tensor([wave.shape[1]])
        found = session.run(None, {"waveform": wave.numpy(), "lengths": lengths.numpy()})[1:]
        states, _ = expected(given.model, wave, lengths)
        for right, state in zip(states, found, strict=True):
            assert torch.cosine_similarity(torch.from_numpy(state), right, -1).min() >= 0.99


def test_int8_of_a_front_end_with_biases(tmp_path, waves):
    """The first layer's weights are then constants, which a product in 8 bits would not take."""
    export(of("distilxlsr", tmp_path), "onnx-int8", tmp_path / "out", waves, QUICK)
    assert json.loads((tmp_path / "out" / "parity.json").read_text())["holds"]


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_what_was_exported(kind, tmp_path, waves):
    import transformers

    given = of(kind, tmp_path)
    export(given, "hf", tmp_path / "out", waves, QUICK)
    model, problems = transformers.AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(problems.values()), problems
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "out")
    assert extractor.do_normalize == given.model.config.normalize and extractor.sampling_rate == 16_000
    wave = 0.3 * torch.randn(1, 20_001, generator=torch.Generator().manual_seed(0)) + 0.05
    inputs = extractor(wave[0].numpy(), sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        found = model.eval()(**inputs, output_hidden_states=True)
        right = Encoder.forward(given.model, wave, torch.tensor([20_001])).hidden_states
    torch.testing.assert_close(found.last_hidden_state, right[-1], atol=1e-4, rtol=1e-4)
    for theirs, ours in zip(found.hidden_states[:-1], right[:-1], strict=True):
        torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("head", ["AutoModelForCTC", "AutoModelForAudioClassification"])
@pytest.mark.parametrize("model_type", ["hubert", "wav2vec2"])
def test_the_folder_takes_a_head_of_transformers_and_learns(head, model_type, tmp_path, waves):
    import transformers

    given = of("distilxlsr", tmp_path)
    export(given, "hf", tmp_path / "out", waves, Options(costs=False, model_type=model_type))
    model, problems = getattr(transformers, head).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert model.config.model_type == model_type
    new = {name.split(".")[0] for name in problems["missing_keys"]}
    assert new <= {"lm_head", "projector", "classifier"} and not problems["unexpected_keys"]
    wave, _ = padded(0, [16_000, 16_000])
    labels = torch.tensor([[3, 4], [5, 6]]) if head == "AutoModelForCTC" else torch.tensor([0, 1])
    loss = model.train()(wave, labels=labels).loss
    loss.backward()
    grown = model.base_model.encoder.layers[0].attention.q_proj.weight.grad
    assert torch.isfinite(loss) and grown is not None and grown.abs().sum() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_hugging_face_folder_gives_the_whole_student_back(kind, tmp_path, waves):
    given = of(kind, tmp_path)
    export(given, "hf", tmp_path / "out", waves, QUICK)
    back = read_student(tmp_path / "out")
    assert back.model.config == given.model.config
    assert (back.training, back.step, back.form) == (given.training, given.step, "huggingface")
    weights = back.model.state_dict()
    assert weights.keys() == given.model.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in given.model.state_dict().items())


@pytest.mark.parametrize(("kind", "by_itself"), [("distilhubert", True), ("distilxlsr", False)])
def test_s3prl_reads_what_it_knows(kind, by_itself, tmp_path, waves, s3prl_expert):
    given = of(kind, tmp_path)
    text = export(given, "s3prl", tmp_path / "out", waves, QUICK)
    assert ("compared in s3prl's own code" in text) == by_itself
    assert ("does not know conv_bias=True" in text) != by_itself
    wave, lengths = padded(0, [12_345])
    if by_itself:
        found = s3prl_expert(tmp_path / "out" / "student.ckpt")([wave[0]])["hidden_states"]
        for right, state in zip(expected(given.model, wave, lengths)[0], found, strict=True):
            torch.testing.assert_close(state, right, atol=1e-5, rtol=1e-5)


def test_without_heads(tmp_path, waves):
    given = of("distilhubert", tmp_path)
    assert StudentGraph(without_heads(given.model)).outputs == ("frames", "projection", "layer_1", "layer_2")
    export(given, "hf", tmp_path / "out", waves, Options(predict=False, costs=False))
    assert not (tmp_path / "out" / "prediction_heads.safetensors").exists()
    back = read_student(tmp_path / "out").model.eval()
    wave, lengths = padded(0, [8_000])
    with torch.no_grad():
        plain, whole = back(wave, lengths), given.model(wave, lengths)
    assert plain.predictions is None and torch.equal(plain.output, whole.output)


# What does not hold is not written


def test_an_export_with_other_numbers_is_refused(tmp_path, waves, monkeypatch):
    """The file on the disk is what is judged: a weight that changes on its way there is found out."""
    from s3prl_distiller.upstream.distiller.export import forms

    def spoiled(student, folder, options):
        student.model.encoder.layers[1].fc1.weight.data[0, 0] += 1
        notes = forms._write_huggingface(student, folder, options)
        student.model.encoder.layers[1].fc1.weight.data[0, 0] -= 1
        return notes

    monkeypatch.setitem(forms.WRITERS, "hf", spoiled)
    with pytest.raises(ValueError, match=r"was not written: .* the worst layer_2 of .*: largest difference"):
        export(of("distilhubert", tmp_path), "hf", tmp_path / "out", waves, QUICK)
    assert not list(tmp_path.iterdir())


def test_nan_is_no_agreement(tmp_path, waves):
    given = of("distilhubert", tmp_path)
    given.model.encoder.layers[1].fc2.weight.data[3, 3] = float("nan")
    with pytest.raises(ValueError, match="largest difference inf"):
        export(given, "s3prl", tmp_path / "out", waves, QUICK)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("form", "changes", "words"),
    [
        ("hf", {"encoder_layers": 0}, "encoder_layers=0"),
        ("hf", {"task_emb_type": "add", "out_layer_type": "linear"}, "task_emb_type='add'"),
        ("onnx", {"task_emb_type": "concat", "task_emb_size": 8, "out_layer_type": "none"}, "to s3prl only"),
        ("tflite", {}, "--to takes hf, onnx"),
    ],
)
def test_what_a_form_cannot_hold_is_said_before_anything_is_done(form, changes, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        check(of("distilhubert", tmp_path, **changes), form, QUICK)


def test_a_model_type_that_cannot_be(tmp_path):
    with pytest.raises(ValueError, match=r"feature_layer_norm=False, .*--model-type hubert"):
        check(of("distilhubert", tmp_path), "hf", Options(model_type="wav2vec2"))
    with pytest.raises(ValueError, match="not one of hubert, wav2vec2"):
        check(of("distilhubert", tmp_path), "hf", Options(model_type="bert"))


def test_packages_that_are_missing_are_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError) as error:
        require_onnx()
    assert str(error.value) == MISSING and "pip install" in MISSING


# The report


def test_the_report_has_the_figures_of_the_check(tmp_path, waves):
    given = of("distilhubert", tmp_path)
    torch.save(s3prl_states(given.model, given.training, 7), given.path)
    text = export(given, "s3prl", tmp_path / "out", waves, Options())
    figures = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert (tmp_path / "out" / "parity.md").read_text() == text
    assert figures["holds"] and figures["form"] == "s3prl"
    assert len(figures["checks"]) == len(state_names(given.model.config)) * len(parity._BATCHES)
    assert {check["judged"] for check in figures["checks"] if " + " not in check["case"]} == {True}
    weights = sum(parameter.nbytes for parameter in given.model.parameters())
    assert figures["student"]["size"] == weights
    assert figures["export"]["size"] == (tmp_path / "out" / "student.ckpt").stat().st_size
    assert figures["student"]["seconds"] > 0 and figures["export"]["seconds"] > 0
    for memory in (figures["student"]["memory"], figures["export"]["memory"]):
        assert memory is None or memory > weights


def test_differences_are_measured_over_content_only(waves):
    model = student()
    for kept in (0.0, 5.0):

        def run(wave, lengths, kept=kept):
            found = parity.reference(model, "onnx")(wave, lengths)
            content = torch.arange(found["layer_1"].shape[1]) < frame_lengths(lengths, model.conv_layers)[:, None]
            moved = torch.where(content[..., None], found["layer_1"], torch.full((), 1e3))
            moved[0, 0, 0] += kept
            return {**found, "layer_1": moved}

        checks = parity.compare(model, "onnx", run, waves)
        largest = {c.output: max(d.largest for d in checks if d.output == c.output) for c in checks}
        assert largest.pop("layer_1") == pytest.approx(kept, abs=1e-5)
        assert set(largest.values()) == {0.0}


def test_forms_are_all_there():
    assert list(FORMS) == ["hf", "onnx", "onnx-int8", "torch-export", "s3prl"]


def test_batches_are_cut_from_speech_with_zeros_after(waves):
    shapes = set()
    for _, wave, lengths in parity.batches(waves, 720):
        shapes.add(tuple(wave.shape))
        for row, length in zip(wave, lengths.tolist(), strict=True):
            assert not row[length:].any() and np.isfinite(row.numpy()).all() and row[:length].abs().sum() > 0
    assert (1, 720) in shapes and (4, 48_000) in shapes and (1, 240_000) in shapes
