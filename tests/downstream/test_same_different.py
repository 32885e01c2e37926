"""Same or different: alignment against librosa, average precision against scikit-learn, and the task on real words."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from s3prl_distiller.downstream.heads.alignment import alignment_costs
from s3prl_distiller.downstream.same_different import SameDifferentConfig, Task
from scipy.spatial.distance import cdist
from sklearn.metrics import average_precision_score

from s3prl_distiller.cli import downstream as cli
from s3prl_distiller.data.utterance import Utterance
from s3prl_distiller.settings import QUICKSTART

torch.set_num_threads(1)


def of_librosa(left: np.ndarray, right: np.ndarray) -> float:
    distances = cdist(left, right, "cosine")
    total = librosa.sequence.dtw(
        C=distances,
        step_sizes_sigma=np.array([[1, 1], [0, 1], [1, 0]], dtype=np.uint32),
        weights_mul=np.array([2.0, 1.0, 1.0]),
        weights_add=np.zeros(3),
        backtrack=False,
    )
    # librosa counts the first cell once; it is a step of both.
    return float(total[-1, -1] + distances[0, 0]) / (len(left) + len(right))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 6))
def test_alignment_is_librosa_s(seed: int, count: int, others: int) -> None:
    rng = np.random.default_rng(seed)
    left, right = ([rng.normal(size=(rng.integers(1, 12), 4)) for _ in range(n)] for n in (count, others))
    found = alignment_costs(*([torch.tensor(one, dtype=torch.float32) for one in some] for some in (left, right)))
    expected = [[of_librosa(a, b) for b in right] for a in left]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_alignment_does_not_feel_the_tempo() -> None:
    one = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    slow = one.repeat_interleave(torch.tensor([1, 3, 1, 2, 1, 1, 4, 1, 2]), 0)
    costs = alignment_costs([one, slow], [one, slow, -one])
    assert costs[:, :2].abs().max() < 1e-6 and costs[0, 2] > 0.5


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 60))
def test_average_precision_is_scikit_learn_s(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    labels, distances = rng.integers(0, 2, count), rng.permutation(count) / count
    labels[0] = 1
    rows = [{"label": int(label), "distance": float(d)} for label, d in zip(labels, distances, strict=True)]
    figures = Task(SameDifferentConfig()).score(rows)
    assert figures["ap"] == pytest.approx(100 * average_precision_score(labels, -distances))
    assert figures["chance"] == pytest.approx(100 * labels.mean())
    # What a confidence interval draws, at once and as rows of their own.
    drawn = rng.integers(count, size=count)
    at_once = Task(SameDifferentConfig()).scorer(rows)(drawn)
    assert at_once == pytest.approx(Task(SameDifferentConfig()).score([rows[place] for place in drawn]), nan_ok=True)


def clips(words: str, split: str) -> list[Utterance]:
    return [
        Utterance(f"{split}{index}", f"{split}{index}", "nowhere", duration=1.0, custom={"label": word})
        for index, word in enumerate(words)
    ]


def planted(layer: int) -> Any:
    """An upstream of which one layer knows the word, and the others nothing."""

    def predict(utterances: Sequence[Utterance]) -> Iterator[dict[str, Any]]:
        for utterance in utterances:
            word = (utterance.custom or {})["label"]
            noise = torch.Generator().manual_seed(int.from_bytes(utterance.id.encode(), "big") % 2**31)
            features = torch.randn(3, 8, 6, generator=noise)
            said = torch.randn(8, 6, generator=torch.Generator().manual_seed(ord(word)))
            features[layer] = said + 0.01 * features[layer]
            yield {"id": utterance.id, "word": word, "features": features}

    return predict


@pytest.mark.parametrize("compare", ["frames", "mean"])
def test_the_layer_that_knows_the_words_is_chosen(compare: str) -> None:
    task = Task(SameDifferentConfig(compare=compare))
    task.prepare({"dev": clips("aabbcd", "dev"), "test": clips("xxyyz", "test")}, 320)
    rows = task.evaluate("test", planted(1))
    assert task.layer == 1 and task.layers[1] == 100.0
    assert task.score(rows) == {"ap": 100.0, "chance": pytest.approx(100 * 4 / 20)}
    again = Task(SameDifferentConfig(compare=compare))
    again.load_state(task.state())
    assert again.layer == 1


def test_clips_may_be_paired_with_those_of_other_splits() -> None:
    splits = {"train": clips("xyab", "train"), "test": clips("xy", "test")}
    with pytest.raises(ValueError, match=r"no two clips of test have the same 'label': task.against=all"):
        Task(SameDifferentConfig()).prepare(splits, 320)
    task = Task(SameDifferentConfig(against="all", layer=1))
    task.prepare(splits, 320)
    rows = task.evaluate("test", planted(1))
    assert len(rows) == 2 * 5 and sum(row["label"] for row in rows) == 2


@pytest.mark.parametrize(("key", "value"), [("compare", "best"), ("against", "none")])
def test_unknown_choices(key: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"task.{key} is '{value}': use one of"):
        Task(SameDifferentConfig(**{key: value}))


def words_of(minisuperb: Path, folder: Path, count: int) -> Path:
    """Real Portuguese words that are there more than once, in the manifests of dev and test."""
    source = minisuperb / "portuguese_mini"
    rows = [json.loads(line) for line in (source / "train.jsonl").read_text().splitlines()]
    by_label: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["label"]:
            by_label.setdefault(row["label"], []).append(row)
    pairs = [some[:2] for _, some in sorted(by_label.items()) if len(some) > 1][: 2 * count]
    folder.mkdir()
    for split, chosen in (("dev", pairs[:count]), ("test", pairs[count:])):
        lines = [{**row, "audio": os.fspath(source / row["audio"])} for pair in chosen for row in pair]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_on_real_words(minisuperb: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("S3PRL_DISTILLER_CACHE", str(tmp_path / "cache"))
    data = words_of(minisuperb, tmp_path / "words", 6)
    run = tmp_path / "run"
    arguments = ["-u", str(QUICKSTART / "hubert_nano"), "-d", "same_different", "--data", str(data)]
    assert cli.main([*arguments, "-p", str(run)]) == 0
    said = capsys.readouterr().out
    figures = json.loads((run / "metrics-test.json").read_text())["metrics"]
    ap, chance = figures["ap"], figures["chance"]
    assert ap["low"] <= ap["value"] <= ap["high"] and ap["value"] > chance["value"] > 0
    assert f"ap {ap['value']:.2f}" in said and not math.isnan(ap["high"])
    assert {path.name for path in run.glob("*.png")} == {"scores.png", "ap_layers.png"}
    rows = [json.loads(line) for line in (run / "predictions-test.jsonl").read_text().splitlines()]
    assert len(rows) == 12 * 11 and sum(row["label"] for row in rows) == 12
    files = [str(path) for path in sorted((minisuperb / "portuguese_mini" / "audio").iterdir())[:3]]
    assert cli.main(["-m", "inference", *arguments[:-1], *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].startswith(f"{files[0]} and {files[1]}: ")


def test_no_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["-u", "fbank", "-d", "same_different", "--data", str(tmp_path), "-p", str(tmp_path / "run")]
    assert cli.main(arguments) == 2
    assert "has no test.jsonl: same or different needs a manifest" in capsys.readouterr().err
