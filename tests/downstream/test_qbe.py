"""Query by example: both forms of data, the layer chosen on dev, figures, one's own files, and bad input."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from s3prl_distiller.downstream.metrics.mtwv import beta
from s3prl_distiller.downstream.qbe import QbeConfig, Task

from s3prl_distiller.data.utterance import Utterance

from .durations import with_durations

torch.set_num_threads(1)
RATE = 320
SCORER = "#!/bin/bash -e\nP_target=0.001\nC_fa=1\nC_miss=10\nEFFPRIOR=`echo`\n"


def prepared(root: Path, **config) -> Task:
    task = Task(QbeConfig(**config))
    task.prepare(with_durations(task.read(root)), RATE)
    return task


@pytest.fixture(scope="module")
def mini(minisuperb) -> Task:
    return prepared(minisuperb)


@pytest.fixture
def quesst(tmp_path, minisuperb) -> Path:
    """QUESST 2014's tree: in English 4 documents and 2 queries for dev and eval each, and some of other languages."""
    root = tmp_path / "quesst14Database"
    clips = sorted((minisuperb / "keywords_mini" / "audio" / "qbe_queries").glob("*.ogg"))
    files = [f"Audio/quesst14_{number:05d}.wav" for number in range(1, 7)]
    lists = {"utterances": [(name, "nnenglish" if number < 4 else "czech") for number, name in enumerate(files)]}
    for part in ("dev", "eval"):
        names = [f"{part}_queries/quesst14_{part}_{number:04d}.wav" for number in range(1, 5)]
        lists[part] = [(name, "nnenglish" if number < 2 else "basque") for number, name in enumerate(names)]
    (root / "scoring").mkdir(parents=True)
    clip = iter(clips)
    for part, entries in lists.items():
        for name, _ in entries:
            (root / name).parent.mkdir(exist_ok=True)
            shutil.copy(next(clip), root / name)
        text = "".join(f"quesst14Database/{name} {language}\n" for name, language in entries)
        (root / "scoring" / f"language_key_{part}.lst").write_text(text)
    for part in ("dev", "eval"):
        folder = root / "scoring" / f"groundtruth_quesst14_{part}"
        folder.mkdir()
        pairs = [("00001", "0001"), ("00002", "0001"), ("00001", "0001"), ("00003", "0002"), ("00005", "0003")]
        lines = [f"LEXEME quesst14_{doc} 1 0.00 1.00 quesst14_{part}_{query} lex <NA> <NA>\n" for doc, query in pairs]
        (folder / f"quesst14_{part}.rttm").write_text("SPKR-INFO quesst14_00001 1 <NA>\n" + "".join(lines))
    (root / "scoring" / "score-TWV-Cnxe.sh").write_text(SCORER)
    return root


class Hears:
    """Stands in for an upstream of several layers: frames are noise, but for a mark of its own that each query has in
    its relevant documents too, in one layer."""

    def __init__(self, task: Task, split: str, layer: int, layers: int = 3):
        self.task, self.layer, self.layers, self.calls = task, layer, layers, []
        self.marks: dict[str, list[int]] = {}
        for number, query in enumerate(u for u in task.splits[split] if u.custom["role"] == "query"):
            for name in (query.id, *query.custom["relevant"]):
                self.marks.setdefault(name, []).append(number)

    def __call__(self, utterances):
        self.calls.append([utterance.id for utterance in utterances])
        for utterance in sorted(utterances, key=lambda u: u.id[::-1]):  # not in the order asked for
            rng = np.random.default_rng(sum(utterance.id.encode()))
            features = rng.normal(size=(1, self.layers, 12 if utterance.custom["role"] == "query" else 60, 8))
            for place, mark in enumerate(self.marks.get(utterance.id, [])):
                start = 0 if features.shape[2] == 12 else 14 * (place % 4)
                features[0, self.layer, start : start + 12] = np.random.default_rng(mark).normal(size=(12, 8)) * 3
            length = torch.tensor([features.shape[2]])
            yield from self.task.predict(
                self.task.build_head(8, RATE), torch.tensor(features).float(), length, [utterance]
            )


def test_manifests(mini, minisuperb):
    roles = {split: [u.custom["role"] for u in utterances] for split, utterances in mini.splits.items()}
    assert {split: names.count("query") for split, names in roles.items()} == {"dev": 30, "test": 30, "all": 60}
    assert {names.count("document") for names in roles.values()} == {200}
    queries = {
        split: [u for u in utterances if u.custom["role"] == "query"] for split, utterances in mini.splits.items()
    }
    ids = {split: {u.id for u in utterances} for split, utterances in queries.items()}
    assert not ids["dev"] & ids["test"] and ids["dev"] | ids["test"] == ids["all"]
    for split in ("dev", "test"):  # five of each keyword
        words = [u.custom["keyword"] for u in queries[split]]
        assert {words.count(word) for word in words} == {5}
    assert any("of 60 queries, 30 that a hash picks" in note for note in mini.notes)
    assert prepared(minisuperb / "keywords_mini").splits.keys() == mini.splits.keys()


def test_manifests_with_queries_for_dev(tmp_path, minisuperb):
    source = minisuperb / "keywords_mini"
    (tmp_path / "audio").symlink_to(source / "audio")
    shutil.copy(source / "qbe_docs.jsonl", tmp_path)
    lines = (source / "qbe_queries.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "qbe_queries.jsonl").write_text("".join(lines[:4]))
    (tmp_path / "qbe_dev_queries.jsonl").write_text("".join(lines[4:9]))
    task = prepared(tmp_path)
    assert {split: len(utterances) - 200 for split, utterances in task.splits.items()} == {"dev": 5, "test": 4}
    assert not task.notes


def test_quesst(quesst):
    task = prepared(quesst.parent)
    assert {split: [u.id for u in utterances] for split, utterances in task.splits.items()} == {
        split: [f"quesst14_{part}_0001", f"quesst14_{part}_0002", *(f"quesst14_{number:05d}" for number in range(1, 5))]
        for split, part in (("dev", "dev"), ("test", "eval"))
    }
    first, second = task.splits["test"][:2]
    assert first.custom["relevant"] == {"quesst14_00001", "quesst14_00002"} and second.custom["relevant"] == {
        "quesst14_00003"
    }
    rows = task.evaluate("test", Hears(task, "test", 1))
    # Three queries have a match in some language and six documents there are: the scorer counts them all.
    assert {(row["corpus_queries"], row["corpus_documents"], row["beta"]) for row in rows} == {
        (3, 6, beta(0.001, 10, 1))
    }
    found = {(row["query"], row["doc"]) for row in rows if row["label"]}
    assert len(rows) == 8 and found == {
        (first.id, "quesst14_00001"),
        (first.id, "quesst14_00002"),
        (second.id, "quesst14_00003"),
    }
    perfect = [{**row, "score": float(row["label"])} for row in rows]
    assert task.score(perfect) == pytest.approx({"mtwv": 100 * 2 / 3, "mtwv_trials": 100})
    # One false alarm costs beta over the documents of the corpus, or of English, that do not hold the query.
    wrong = [
        {**row, "score": 1.0 if row["label"] or row["doc"] == "quesst14_00004" and row["query"] == first.id else 0.0}
        for row in rows
    ]
    weight = beta(0.001, 10, 1)
    assert Task(QbeConfig(beta=0.4)).score(wrong) == pytest.approx(
        {"mtwv": 100 * (2 - 0.4 / 4) / 3, "mtwv_trials": 100 * (2 - 0.4 / 2) / 2}
    )
    assert task.score(wrong)["mtwv"] == 0 and weight > 50


def test_the_layer_is_chosen_on_dev(mini):
    task = mini
    task.layer = None
    hears = Hears(task, "dev", 1)
    dev = task.evaluate("dev", hears)
    assert task.layer == 1 and len(task.layers) == 3 and task.layers[1] == max(task.layers) > 50
    assert task.score(dev)["mtwv"] == pytest.approx(task.layers[1], abs=1e-3)
    assert len(dev) == 30 * 200 and [row["query"] for row in dev[::200]] == [u.id for u in task.splits["dev"][:30]]
    assert [row["doc"] for row in dev[:200]] == [u.id for u in task.splits["dev"][30:]]
    by_query = np.array([row["score"] for row in dev]).reshape(30, 200)
    np.testing.assert_allclose(by_query.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(by_query.std(1), 1, atol=1e-4)
    # Another split uses the layer, and documents that fit into memory are not heard again.
    rows = task.evaluate("test", hears)
    assert len(rows) == 30 * 200 and task.layer == 1
    assert [len(call) for call in hears.calls] == [30, 200, 30]
    # The layer survives saving, and what is done without holding documents is the same.
    other = prepared(Path(task.splits["dev"][0].audio).parents[2], keep_gb=0.0)
    other.load_state(json.loads(json.dumps(task.state())))
    assert other.layer == 1 and other.layers == task.layers
    again = other.evaluate("test", Hears(other, "dev", 1))
    assert [row["score"] for row in again] == pytest.approx([row["score"] for row in rows], abs=1e-4)
    # All queries, half of which chose the layer.
    assert len(task.evaluate("all", hears)) == 60 * 200


def test_a_run_that_starts_with_test_chooses_on_dev_first(mini, minisuperb):
    task = prepared(minisuperb)
    hears = Hears(task, "dev", 2)
    task.evaluate("test", hears)
    assert task.layer == 2
    fixed = prepared(minisuperb, layer=-3)
    fixed.evaluate("dev", Hears(fixed, "dev", 2))
    assert fixed.layer == -3 and fixed.layers == []
    fixed.load_state(task.state())
    assert fixed.layer == -3
    with pytest.raises(ValueError, match="task.layer=7: this upstream has the layers 0 to 2"):
        wrong = prepared(minisuperb, layer=7)
        wrong.evaluate("test", Hears(wrong, "dev", 2))


def test_score_depends_on_rows_alone_and_counts_repeated_queries(mini, tmp_path):
    rng = np.random.default_rng(0)
    blocks = [
        [
            {"query": f"q{q}", "doc": f"d{d}", "label": int(d % 7 == q), "score": float(rng.normal(d % 7 == q))}
            for d in range(40)
        ]
        for q in range(5)
    ]
    fresh = Task(QbeConfig())
    one, two = (
        fresh.score([row for index in drawn for row in blocks[index]])["mtwv"] for drawn in ([0, 1], [0, 0, 1, 1])
    )
    assert one == pytest.approx(two) and 0 < one < 100
    assert math.isnan(fresh.score([])["mtwv"])
    mini.layer, mini.layers = 1, [10.0, 30.0, 20.0]
    rows = [row for block in blocks for row in block]
    assert {path.name for path in mini.figures(rows, tmp_path)} == {"scores.png", "mtwv_layers.png"}
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("scores.png", "mtwv_layers.png"))


def test_one_s_own_files():
    torch.manual_seed(0)
    task = Task(QbeConfig())
    document = torch.randn(3, 60, 8)
    outputs = [
        {"id": "query.wav", "features": document[:, 20:40]},
        {"id": "with.wav", "features": document},
        {"id": "without.wav", "features": torch.randn(3, 50, 8)},
    ]
    rows = task.rows(outputs, None)
    assert [row["doc"] for row in rows] == ["with.wav", "without.wav"]
    assert rows[0]["score"] == pytest.approx(0, abs=1e-4) and rows[1]["score"] < -0.05
    assert task.say(rows[0]).startswith("query.wav in with.wav: ") and "the last layer" in task.say(rows[0])
    task.layer = 2  # of which predict hands out that layer alone
    assert "layer 2" in task.say(task.rows([{**one, "features": one["features"][2:]} for one in outputs], None)[0])
    with pytest.raises(ValueError, match="two files or more: the query, then documents"):
        task.rows(outputs[:1], None)
    with pytest.raises(ValueError, match="query.wav has 4 frames: 5 are needed"):
        task.rows([{**outputs[0], "features": document[:, :4]}, *outputs[1:]], None)


def test_a_split_of_one_s_own_files_keeps_their_order():
    task = Task(QbeConfig())
    task.splits["files"] = [Utterance(name, name, name) for name in ("query", "b", "a")]

    def predict(utterances):
        for utterance in sorted(utterances, key=lambda u: u.id):
            yield from task.predict(task.build_head(4, RATE), torch.randn(1, 2, 9, 4), torch.tensor([9]), [utterance])

    assert [(row["query"], row["doc"]) for row in task.evaluate("files", predict)] == [("query", "b"), ("query", "a")]


def test_what_cannot_be_used_is_left_out(minisuperb):
    """A document whose audio is bad is no longer relevant; a query without any other is left out, counted."""
    task = Task(QbeConfig())
    splits = with_durations(task.read(minisuperb))
    query = splits["test"][0]
    bad = set(query.custom["relevant"])
    splits["test"] = [u for u in splits["test"] if u.id not in bad]
    splits["dev"][-1].duration = 0.01
    task.prepare(splits, RATE)
    assert task.left_out["test"]["no document that holds it can be used"] == 5  # those of its keyword
    assert task.left_out["dev"]["shorter than one frame of the features"] == 1
    assert all(not set(u.custom["relevant"]) & bad for u in task.splits["test"] if u.custom["role"] == "query")


def test_bad_manifests(tmp_path, minisuperb):
    source = minisuperb / "keywords_mini"
    line = json.loads((source / "qbe_queries.jsonl").read_text().splitlines()[0])
    shutil.copy(source / "qbe_docs.jsonl", tmp_path)

    def refuse(message: str, **changes):
        row = {key: value for key, value in {**line, **changes}.items() if value is not ...}
        (tmp_path / "qbe_queries.jsonl").write_text(json.dumps(row) + "\n")
        with pytest.raises(ValueError, match=message):
            Task(QbeConfig()).read(tmp_path)

    with pytest.raises(ValueError, match="has no qbe_queries.jsonl: query by example needs"):
        Task(QbeConfig()).read(tmp_path)
    refuse("'relevant' of q_alexa_01 names d999, which qbe_docs.jsonl does not have", relevant=["d004", "d999"])
    refuse("'relevant' of q_alexa_01 is 'd004', where a list of ids is expected", relevant="d004")
    refuse("q_alexa_01 has no 'relevant'; did you mean 'relevant' for 'relevnat'", relevant=..., relevnat=["d004"])
    (tmp_path / "qbe_queries.jsonl").write_text(json.dumps({**line, "relevant": []}) + "\n")
    (tmp_path / "audio").symlink_to(source / "audio")
    with pytest.raises(ValueError, match="has 0 queries that some document holds, and 200 documents"):
        prepared(tmp_path)


def test_bad_quesst(quesst, tmp_path):
    def refuse(message: str):
        with pytest.raises(ValueError, match=message):
            Task(QbeConfig()).read(quesst)

    scoring = quesst / "scoring"
    listed = (scoring / "language_key_dev.lst").read_text()
    (scoring / "language_key_dev.lst").write_text(listed + "no language\n")
    refuse("language_key_dev.lst, line 5: 'no language', where a path and a language are expected")
    (scoring / "language_key_dev.lst").write_text(listed.replace("nnenglish", "czech"))
    refuse("language_key_dev.lst has no file in nnenglish")
    (scoring / "language_key_dev.lst").unlink()
    refuse(r"language_key_dev.lst is missing: get the whole of https://")
    (scoring / "language_key_dev.lst").write_text(listed)
    rttm = scoring / "groundtruth_quesst14_eval" / "quesst14_eval.rttm"
    text = rttm.read_text()
    rttm.write_text(text + "LEXEME quesst14_00001 1 0 1 quesst14_dev_0001\n")
    refuse("quesst14_eval.rttm, line 7: .* names no document and query of eval")
    rttm.unlink()
    refuse("groundtruth_quesst14_eval has no .rttm")
    rttm.write_text(text)
    (scoring / "score-TWV-Cnxe.sh").write_text("P_target=0.1\n")
    refuse("sets no P_target, C_miss and C_fa")
    (scoring / "score-TWV-Cnxe.sh").unlink()
    task = Task(QbeConfig())
    task.read(quesst)
    assert any("beta is that of QUESST 2015" in note for note in task.notes) and "beta" not in task.scoring.of("dev")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(
        ValueError, match=r"does not hold QUESST 2014: get it from https://[\s\S]*qbe_queries.jsonl with the key"
    ):
        Task(QbeConfig()).read(empty)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"distance": "cosin"}, "task.distance='cosin' is not known: use one of cosine_exp"),
        ({"beta": -1.0}, "task.beta and task.keep_gb must be 0 or more"),
        ({"keep_gb": -1.0}, "task.beta and task.keep_gb"),
    ],
)
def test_bad_config(config, message):
    with pytest.raises(ValueError, match=message):
        Task(QbeConfig(**config))
