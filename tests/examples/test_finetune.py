"""The examples of fine-tuning, as a newcomer runs them, on a handful of real clips; and what they refuse."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from s3prl_distiller.upstream.distiller.export.huggingface import writers
from s3prl_distiller.upstream.distiller.model import DistillerModel, Encoder
from s3prl_distiller.upstream.distiller.model_config import DistillerConfig
from s3prl_distiller.upstream.distiller.student import read_student
from transformers import AutoModelForCTC, AutoProcessor, pipeline

from s3prl_distiller import audio

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SMALL = {
    "encoder_layers": 2,
    "encoder_embed_dim": 48,
    "encoder_ffn_embed_dim": 96,
    "encoder_attention_heads": 4,
    "final_dim": 48,
    "extractor_conv_feature_layers": "[(32,10,5)] + [(32,3,2)] * 4 + [(32,2,2)] * 2",
    "conv_pos": 32,
    "conv_pos_groups": 4,
}


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def splits(manifest: Path) -> list[str | Path]:
    return [word for name in ("--train", "--dev", "--test") for word in (name, manifest)]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in json.loads((folder / "figures.json").read_text())["log"] if "loss" in line]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``export(model_type, **options)``: the folder of a small student of random weights."""

    def write_student(model_type: str, **options: Any) -> Path:
        torch.manual_seed(0)
        model = DistillerModel(DistillerConfig.from_mapping({**SMALL, **options}))
        folder = tmp_path_factory.mktemp(model_type)
        for name, write in writers(model, {}, 0, model_type).items():
            write(folder / name)
        return folder

    return write_student


@pytest.fixture(scope="module")
def student(export) -> Path:
    return export("hubert")


@pytest.fixture(scope="module")
def write_manifest(minisuperb: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``write_manifest(corpus, keep, count)``: the shortest training clips of a corpus that are to be kept."""

    def write(corpus: str, keep: Callable[[dict[str, Any]], bool], count: int) -> Path:
        source = minisuperb / corpus
        rows = [json.loads(line) for line in (source / "train.jsonl").read_text(encoding="utf-8").splitlines()]
        rows = sorted(filter(keep, rows), key=lambda row: row["duration"])[:count]
        path = tmp_path_factory.mktemp(corpus) / "clips.jsonl"
        lines = [json.dumps({**row, "audio": str(source / row["audio"])}) for row in rows]
        path.write_text("\n".join(lines), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="module")
def sentences(write_manifest) -> Path:
    """Five sentences in Portuguese, with letters that ASCII has not, 2 to 3 s each."""
    return write_manifest("portuguese_mini", lambda row: row["text"] and not row["text"].isascii(), 5)


@pytest.fixture(scope="module")
def recogniser(student: Path, sentences: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What fine-tuning on five sentences leaves."""
    folder = tmp_path_factory.mktemp("tuned") / "asr"
    settings = ["--steps", "32", "--eval-steps", "16", "--batch-size", "5", "--lr", "3e-3", "--keep-front-end"]
    done = run("finetune_ctc", "--student", student, *splits(sentences), "--output", folder, *settings)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("test: WER ")
    return folder


def test_ctc_learns(recogniser: Path):
    seen = losses(recogniser)
    assert all(map(math.isfinite, seen))
    assert seen[-1] < 0.6 * seen[0]


def test_the_vocabulary_is_the_text_s(recogniser: Path, sentences: Path):
    vocabulary = AutoProcessor.from_pretrained(recogniser).tokenizer.get_vocab()
    texts = [json.loads(line)["text"].lower() for line in sentences.read_text(encoding="utf-8").splitlines()]
    letters = {c for text in texts for c in text if c.isalpha()}
    assert not all(c.isascii() for c in letters)
    assert set(vocabulary) == letters | {"[PAD]", "[UNK]", "|"} | ({"'"} & set("".join(texts)))
    assert vocabulary["[PAD]"] == AutoModelForCTC.from_pretrained(recogniser).config.pad_token_id == 0


def test_the_saved_model_gives_the_judged_transcripts(recogniser: Path):
    """Loaded afresh, with its whole front end, by the Auto classes and by the pipeline."""
    model, processor = AutoModelForCTC.from_pretrained(recogniser), AutoProcessor.from_pretrained(recogniser)
    recognise = pipeline("automatic-speech-recognition", model=str(recogniser))
    for line in (recogniser / "predictions-test.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        wave = audio.load(row["audio"]).numpy()
        inputs = processor(wave, sampling_rate=16000, return_tensors="pt")
        with torch.no_grad():
            said = [processor.batch_decode(model(**inputs).logits.argmax(-1))[0] for _ in range(2)]
        assert said[0] == said[1] == row["hypothesis"]
        assert recognise({"raw": wave, "sampling_rate": 16000})["text"] == row["hypothesis"]


def test_the_tuned_encoder_is_a_student_again(recogniser: Path, caplog: pytest.LogCaptureFixture):
    """Nothing is missed, the normalisation of waveforms included."""
    model = read_student(str(recogniser)).model.eval()
    wave = torch.randn(1, 8000)
    with torch.no_grad():
        expected = AutoModelForCTC.from_pretrained(recogniser).base_model.eval()(wave).last_hidden_state
        actual = Encoder.forward(model, wave, torch.tensor([8000])).hidden_states[-1]
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)
    assert not caplog.records


def test_a_kept_front_end_gives_the_same_numbers(student: Path, sentences: Path, tmp_path: Path):
    ctc = example("finetune_ctc")
    rows = ctc.read_manifest(sentences)
    processor = ctc.build_processor(student, [text for _, text, _ in rows], tmp_path)
    model = ctc.build_model(student, processor, from_scratch=False).eval()
    front_end = model.base_model.feature_extractor
    with torch.no_grad():
        alone = [model(**ctc.collate([item])) for item in ctc.Clips(rows, processor)]
        model.base_model.feature_extractor = torch.nn.Identity()
        together = model(**ctc.collate(list(ctc.Clips(rows, processor, front_end))))
    for one, logits in zip(alone, together.logits, strict=True):
        torch.testing.assert_close(logits[: one.logits.shape[1]], one.logits[0], rtol=0, atol=1e-4)
    assert float(together.loss) == pytest.approx(sum(float(one.loss) for one in alone) / len(alone), rel=1e-4)


def test_a_classifier_learns_its_clips(export, write_manifest, tmp_path: Path):
    student = export("wav2vec2", extractor_mode="layer_norm", feature_layer_norm=True, normalize=True)
    chosen = {f"{digit}_george_{number}" for digit in (6, 9) for number in range(10, 18)}
    digits = write_manifest("digits_mini", lambda row: row["id"] in chosen, 16)
    labels = [json.loads(line)["label"] for line in digits.read_text().splitlines()]
    folder = tmp_path / "digits"
    settings = ["--steps", "40", "--eval-steps", "40", "--batch-size", "8", "--lr", "3e-3"]
    done = run("finetune_classification", "--student", student, *splits(digits), "--output", folder, *settings)
    assert done.returncode == 0, done.stderr
    figures = json.loads((folder / "figures.json").read_text())
    chance = 100 * max(map(labels.count, labels)) / len(labels)
    assert figures["test"]["test_accuracy"] > chance + 20
    classify = pipeline("audio-classification", model=str(folder))
    wave = audio.load(json.loads(digits.read_text().splitlines()[0])["audio"]).numpy()
    assert {answer["label"] for answer in classify({"raw": wave, "sampling_rate": 16000})} == set(labels)


@pytest.mark.parametrize(
    ("text", "normal"),
    [("THERE'S IRON, they say!", "there's iron they say"), ("Não — é “só” 2|3", "não é só 2 3"), ("हिन्दी", "हिन्दी")],
)
def test_texts_are_normalised(text: str, normal: str):
    assert example("finetune_ctc").normalise(text) == normal


def manifest(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "clips.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("name", ["finetune_ctc", "finetune_classification"])
def test_bad_manifests_are_named(name: str, tmp_path: Path):
    read = example(name).read_manifest
    with pytest.raises(ValueError, match="does not exist"):
        read(tmp_path / "absent.jsonl")
    with pytest.raises(ValueError, match=r"clips.jsonl lists no utterance"):
        read(manifest(tmp_path))
    with pytest.raises(ValueError, match=r"clips.jsonl: one.wav has no .*'(text|label)'; it has words"):
        read(manifest(tmp_path, {"audio": "one.wav", "words": "yes"}))
    with pytest.raises(ValueError, match=r"one.wav: no such audio file"):
        read(manifest(tmp_path, {"audio": "one.wav", "text": "yes", "label": "yes"}))
    with pytest.raises(ValueError, match=r"of its 1 lines has a text|has no 'label'"):
        read(manifest(tmp_path, {"audio": "one.wav", "text": None, "label": None}))


def test_labels_that_train_lacks_are_named():
    check = example("finetune_classification").check_labels
    with pytest.raises(ValueError, match="test has labels that train has not: maybe"):
        check({"dev": [], "test": [("a.wav", "maybe")]}, ["no", "yes"])
    with pytest.raises(ValueError, match="one label only, 'yes'"):
        check({"dev": [], "test": []}, ["yes"])


def test_a_folder_that_is_no_student_is_one_line(tmp_path: Path):
    done = run("finetune_ctc", "--student", tmp_path, *splits(tmp_path / "x.jsonl"), "--output", tmp_path / "asr")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path} is not an exported student, it has no config.json")
    assert not (tmp_path / "asr").exists()
