"""What KS, IC, SID and ER share: labels, loss, predictions, figures, pictures, and what is wrong with a user's data."""

import json
import logging
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from s3prl_distiller.downstream import er, ic, ks, sid
from s3prl_distiller.downstream.core.config import schema
from s3prl_distiller.downstream.metrics.classification import accuracy, confusion, most_confused
from s3prl_distiller.downstream.pictures.confusion import READABLE, draw_confusion

from s3prl_distiller import audio
from s3prl_distiller import settings as yaml_settings
from s3prl_distiller.data.utterance import Utterance

torch.set_num_threads(1)
TASKS = {"ks": ks, "ic": ic, "sid": sid, "er": er}
RATE = 320  # samples a frame


def make(name, **config):
    task = TASKS[name].Task
    return task(task.config_class(**config))


def utterance(name, duration=1.0, **custom):
    return Utterance(name, name, f"{name}.wav", duration=duration, custom=custom)


def splits(train, dev=None, test=None):
    """One utterance for each label."""
    given = {"train": train, "dev": dev or train[:1], "test": test or train[:1]}
    return {
        split: [utterance(f"{split}{i}", label=label) for i, label in enumerate(labels)]
        for split, labels in given.items()
    }


def features_of(utterances, width=16):
    """Noise around a place of its own for each label, so that it can be learnt; the second value is lengths."""
    generator = torch.Generator().manual_seed(len(utterances))
    lengths = torch.randint(2, 9, (len(utterances),), generator=generator)
    features = torch.zeros(len(utterances), int(lengths.max()), width)
    for row, one, length in zip(features, utterances, lengths.tolist(), strict=True):
        place = torch.randn(width, generator=torch.Generator().manual_seed(hash_of(one)))
        row[:length] = place + 0.3 * torch.randn(length, width, generator=generator)
    return features, lengths


def hash_of(one):
    return (
        sum(ord(c) * 31**i for i, c in enumerate(json.dumps(one.custom.get("intent", one.custom.get("label"))))) % 2**31
    )


def read(task, root):
    """Read manifests and fill in durations as a run does."""
    found = task.read(root)
    for utterances in found.values():
        for one in utterances:
            one.duration = one.claimed
    task.prepare(found, RATE)
    return task


# Real speech: minisuperb

COUNTS = {
    "ks": (1261, 151, 527, [8]),
    "ic": (442, 60, 117, [10, 4, 19]),
    "sid": (70, 10, 20, [10]),
}


@pytest.mark.parametrize("name", COUNTS)
def test_minisuperb_has_the_counts_of_its_readme(minisuperb, name):
    task = read(make(name), minisuperb)
    train, dev, test, classes = COUNTS[name]
    assert {split: len(found) for split, found in task.splits.items()} == {"train": train, "dev": dev, "test": test}
    assert [len(labels) for labels in task.classes.values()] == classes
    assert not task.left_out
    assert all(Path(one.place).is_file() for one in task.splits["test"])


@pytest.mark.parametrize("name", TASKS)
def test_learns_predicts_and_comes_back(minisuperb, tmp_path, name):
    """A few steps by hand lower the loss; predictions depend neither on padding nor on the process that made them."""
    task = read(make(name, **({"fold": 2} if name == "er" else {})), minisuperb)
    torch.manual_seed(0)
    head = task.build_head(16, RATE)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    batch = random.Random(0).sample(task.splits["train"], 48)
    features, lengths = features_of(batch)
    targets = [task.target(one) for one in batch]
    losses = []
    for _ in range(60):
        loss, figures = task.loss(head, features, lengths, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    chance = sum(math.log(len(labels)) for labels in task.classes.values())
    assert losses[0] == pytest.approx(chance, rel=0.5) and losses[-1] < 0.2 * losses[0]
    assert figures["acc"] > 90

    utterances = task.splits["test"]
    features, lengths = features_of(utterances)
    rows = task.rows(task.predict(head, features, lengths, utterances), "test")
    assert task.score(rows).keys() == task.units.keys()
    again = make(name)
    again.load_state(json.loads(json.dumps(task.state(), sort_keys=True)))
    copied = again.build_head(16, RATE)
    copied.load_state_dict(head.state_dict())
    for row, one, feature, length in list(zip(rows, utterances, features, lengths, strict=True))[:20]:
        own = replace(one, custom=None)  # as a user's own file
        [alone] = again.rows(again.predict(copied, feature[None, :length], length[None], [own]), None)
        assert alone["prediction"] == row["prediction"] and alone["reference"] is None
        assert scores_of(alone) == pytest.approx(scores_of(row), abs=2e-6)
        assert again.say(alone)
    assert json.loads(json.dumps(rows)) == rows
    pictures = list(task.figures(rows, tmp_path))
    assert len(pictures) == len(task.classes)
    for path in pictures:
        assert Image.open(path).size[0] > 300


def scores_of(row):
    return list(row["score"].values()) if isinstance(row["score"], dict) else [row["score"]]


# Loss and predictions


def test_loss_is_the_sum_of_cross_entropies():
    """After its definition: minus the log of the share of the right label's exponential, slot by slot."""
    task = make("ic", slots=["a", "b"])
    intents = [["x", "p"], ["y", "q"], ["z", "p"]]
    found = {
        s: [utterance(f"{s}{i}", intent=intent) for i, intent in enumerate(intents)] for s in ("train", "dev", "test")
    }
    task.prepare(found, RATE)
    scores = np.array([[1.0, 2.0, 0.5, 0.2, -1.0], [0.0, 0.0, 3.0, 1.0, 1.5], [2.0, -2.0, 0.1, 0.0, 0.3]])
    targets = [task.target(one) for one in found["train"]]
    assert targets == [[0, 0], [1, 1], [2, 0]]

    def head(features, lengths):
        return torch.tensor(scores)

    loss, figures = task.loss(head, torch.zeros(3, 4, 2), torch.tensor([4, 4, 4]), targets)
    wanted = 0.0
    for row, (first, second) in zip(scores, targets, strict=True):
        wanted -= math.log(math.exp(row[first]) / sum(map(math.exp, row[:3])))
        wanted -= math.log(math.exp(row[3 + second]) / sum(map(math.exp, row[3:])))
    assert loss.item() == pytest.approx(wanted / 3, rel=1e-6)
    assert figures["acc"].item() == 0
    rows = task.predict(head, torch.zeros(3, 4, 2), torch.tensor([4, 4, 4]), found["train"])
    assert [row["prediction"] for row in rows] == [{"a": "y", "b": "p"}, {"a": "z", "b": "q"}, {"a": "x", "b": "q"}]
    assert task.score(rows) == pytest.approx({"acc": 0, "acc_a": 0, "acc_b": 200 / 3})


def test_scores_are_probabilities_best_first():
    task = make("ks")
    task.prepare(splits(["b", "a", "c"]), RATE)
    scores = torch.tensor([[1.0, 3.0, 2.0]]).repeat(1, 1)
    [row] = task.predict(lambda f, n: scores, torch.zeros(1, 2, 3), torch.tensor([2]), [utterance("u", label="a")])
    total = sum(map(math.exp, (1, 2, 3)))
    assert (row["reference"], row["prediction"], row["runner_up"]) == ("a", "b", "c")
    assert row["score"] == pytest.approx(math.exp(3) / total, abs=1e-6)
    assert row["runner_up_score"] == pytest.approx(math.exp(2) / total, abs=1e-6)
    assert task.say(row) == "b (66.5 %; next c, 24.5 %)"


@pytest.mark.parametrize("name", TASKS)
def test_config_is_the_protocol(name):
    """Batch, accumulation, steps and rate of s3prl 0.4.18's config of the task."""
    task = TASKS[name].Task
    config, _ = yaml_settings.load(schema(task), [yaml_settings.bundled("downstream", name)], {}, [])
    config.validate()
    table = {"ks": (200_000, 32, 1), "ic": (200_000, 32, 1), "sid": (200_000, 8, 4), "er": (30_000, 4, 8)}
    found = config.runner.total_steps, config.data.batch_size, config.runner.gradient_accumulate_steps
    assert found == table[name]
    assert (config.optimizer.name, config.optimizer.lr, config.runner.gradient_clipping) == ("Adam", 1e-4, 1.0)
    assert config.data.balanced == (name == "ks") and config.data.gain_db == (-3.0 if name == "ks" else 0.0)
    assert config.data.crop_seconds == (8.0 if name == "sid" else None)
    assert config.task.projector_dim == 256


# Metrics and pictures

LABELS = st.sampled_from(["a", "b", "c", "d"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(LABELS, LABELS, st.floats(0.1, 5)), min_size=1, max_size=40))
def test_metrics_equal_scikit_learn(triples):
    references, predictions, weights = zip(*triples, strict=True)
    pairs = list(zip(references, predictions, strict=True))
    assert accuracy(pairs) == pytest.approx(100 * sklearn.metrics.accuracy_score(references, predictions))
    weighted = sklearn.metrics.accuracy_score(references, predictions, sample_weight=weights)
    assert accuracy(pairs, weights) == pytest.approx(100 * weighted)
    theirs = sklearn.metrics.confusion_matrix(references, predictions, labels=list("abcd"))
    assert (confusion(pairs, list("abcd")) == theirs).all()


def test_accuracy_of_nothing_is_no_number():
    assert math.isnan(accuracy([]))
    assert math.isnan(make("ks").score([{"reference": None, "prediction": "a"}])["acc"])


def test_most_confused():
    counts = np.diag([9] * 6)
    counts[1, 4], counts[4, 1], counts[0, 2] = 2, 3, 4
    assert most_confused(counts, 2) == [1, 4]
    assert most_confused(counts, 5) == [0, 1, 2, 4]
    assert most_confused(np.diag([3, 3, 3]), 2) == [0, 1]


@pytest.mark.parametrize("classes", [2, READABLE, 200])
def test_pictures_are_readable_at_any_number_of_classes(tmp_path, classes):
    labels = [f"$speaker {i:03d}" + "g" * (i % 40) for i in range(classes)]
    rng = random.Random(0)
    pairs = [(label, label if rng.random() < 0.7 else rng.choice(labels)) for label in labels * 3]
    path = draw_confusion(pairs, labels, tmp_path / "picture.png", "title")
    pixels = np.asarray(Image.open(path).convert("L"))
    assert max(pixels.shape) < 2200
    assert (pixels < 128).mean() > 0.01


# What is wrong with a user's data


def test_a_label_that_train_does_not_have_is_named():
    with pytest.raises(ValueError, match=r"test: test1 \(test1.wav\) has the label 'c'.*task.unseen_labels=skip"):
        make("ks").prepare(splits(["a", "b"], test=["a", "c"]), RATE)
    with pytest.raises(ValueError, match="task.unseen_labels is 'ignore'"):
        make("ks", unseen_labels="ignore").prepare(splits(["a", "b"]), RATE)


def test_skipped_labels_are_counted(caplog):
    task = make("ks", unseen_labels="skip")
    with caplog.at_level(logging.WARNING):
        task.prepare(splits(["a", "b"], dev=["c", "a"], test=["a", "c", "d", "b"]), RATE)
    assert [one.custom["label"] for one in task.splits["test"]] == ["a", "b"]
    assert task.left_out["test"] == {"label unseen in train": 2} and task.left_out["dev"] == {
        "label unseen in train": 1
    }
    assert "'c'" in caplog.text


def test_a_trained_head_keeps_its_labels():
    """Judged on another corpus, the order of labels is that of training."""
    task = make("ks")
    task.prepare(splits(["b", "c"]), RATE)
    again = make("ks")
    again.load_state(task.state())
    with pytest.raises(ValueError, match="'a', which the trained head does not have"):
        again.prepare(splits(["a", "b", "c"]), RATE)
    again.prepare(splits(["c", "c"]), RATE)
    assert again.target(utterance("u", label="c")) == [1]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("", "empty 'label'"),
        ("  ", "empty 'label'"),
        (["x"], "text is expected"),
        (True, "text is expected"),
        (1.5, "1.5"),
    ],
)
def test_labels_that_are_none(label, message):
    found = splits(["a", "b"])
    found["dev"].append(utterance("odd", label=label))
    with pytest.raises(ValueError, match=rf"odd \(odd.wav\).*{message}"):
        make("ks").prepare(found, RATE)


def test_labels_are_text_without_spaces_around():
    task = make("ks")
    task.prepare(splits([1, "yes ", "yes"]), RATE)
    assert task.classes == {"label": ["1", "yes"]}


def test_nothing_to_tell_apart():
    with pytest.raises(ValueError, match=r"same label \('a'\)"):
        make("er").prepare(splits(["a", "a"]), RATE)
    with pytest.raises(ValueError, match="no utterance of train"):
        make("er").prepare({"train": [], "dev": [], "test": []}, RATE)


def test_utterances_shorter_than_a_frame_are_left_out():
    found = splits(["a", "b"])
    found["train"].append(utterance("short", duration=0.019, label="only here"))
    task = make("er")
    task.prepare(found, RATE)
    assert task.left_out == {"train": {"shorter than one frame": 1}} and task.classes == {"label": ["a", "b"]}


def test_a_typo_in_a_key_is_named(minisuperb, tmp_path):
    lines = (minisuperb / "keywords_mini" / "train.jsonl").read_text().splitlines()[:3]
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines).replace('"label"', '"lable"') + "\n")
    with pytest.raises(ValueError, match=r"train.jsonl: alexa_0 has no 'label'; did you mean 'label' for 'lable'"):
        make("ks").read(tmp_path)
    (tmp_path / "dev.jsonl").unlink()
    with pytest.raises(ValueError, match=r"has no dev.jsonl"):
        make("ks").read(tmp_path)


@pytest.mark.parametrize("name", TASKS)
def test_a_missing_corpus_says_what_to_get(tmp_path, name):
    with pytest.raises(ValueError) as raised:
        make(name).read(tmp_path)
    message = str(raised.value)
    assert str(tmp_path) in message and "http" in message and "train.jsonl" in message
    assert len(message.splitlines()) >= 4


def test_speech_is_the_same_after_windows(minisuperb):
    """What a window hears is that part of the recording."""
    one = next(u for u in read(make("ks"), minisuperb).splits["test"] if u.duration > 3)
    windows = list(ks.windows(replace(one, custom={"label": "x", "crop_seconds": 1.0})))
    assert len(windows) == int(one.duration) and len({window.id for window in windows}) == len(windows)
    whole = audio.load(one.audio)
    heard = torch.cat([audio.load(w.audio, start=w.start, duration=w.duration) for w in windows])
    assert torch.equal(heard, whole[: len(heard)])
    assert list(ks.windows(one)) == [one]
