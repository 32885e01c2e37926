"""Intent classification: Fluent Speech Commands in its official layout, and slots of manifests."""

import csv
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from s3prl_distiller.downstream import ic
from torch.nn.utils.rnn import pad_sequence

from s3prl_distiller.data.utterance import Utterance
from s3prl_distiller.hub import load_hub

COLUMNS = ["", "path", "speakerId", "transcription", "action", "object", "location"]
INTENTS = [("activate", "lights", "kitchen"), ("increase", "heat", "none"), ("bring", "shoes", "none")]


def make(**config):
    return ic.Task(ic.IntentConfig(**config))


@pytest.fixture
def corpus(tmp_path):
    root = tmp_path / "fluent_speech_commands_dataset"
    (root / "data").mkdir(parents=True)
    for name, count in (("train", 12), ("valid", 5), ("test", 4)):
        with (root / "data" / f"{name}_data.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for number in range(count):
                path = f"wavs/speakers/s{number % 3}/{name}-{number}.wav"
                writer.writerow([number, path, f"s{number % 3}", "Turn it up, please", *INTENTS[number % 3]])
    return root


@pytest.fixture
def theirs(corpus):
    """What s3prl's expert makes of the lists, without opening any audio."""
    load_hub()
    from s3prl.downstream.fluent_commands.expert import DownstreamExpert

    expert = SimpleNamespace(datarc={"file_path": str(corpus)}, forward=DownstreamExpert.forward)
    DownstreamExpert.get_dataset(expert)
    return expert


def test_reads_what_s3prl_reads(corpus, theirs):
    found = make().read(corpus)
    assert make().read(corpus.parent) == found
    for mine, table in zip(found.values(), (theirs.train_df, theirs.valid_df, theirs.test_df), strict=True):
        assert [one.audio for one in mine] == [str(corpus / path) for path in table.path]
        for slot in ("action", "object", "location"):
            assert [one.custom["intent"][slot] for one in mine] == list(table[slot])
        assert [one.custom["speaker"] for one in mine] == list(table.speakerId)


def test_loss_and_predictions_equal_s3prl(corpus, theirs):
    from s3prl.downstream.model import UtteranceLevel

    torch.manual_seed(0)
    task = make()
    found = task.read(corpus)
    for one in [one for utterances in found.values() for one in utterances]:
        one.duration = 1.0
    task.prepare(found, 320)
    head = task.build_head(24, 320)
    # The order of labels is another: sorted here, of first occurrence there.
    order, begin = [], 0
    for slot, labels in task.classes.items():
        order += [begin + labels.index(theirs.Sy_intent[slot][index]) for index in range(len(labels))]
        begin += len(labels)
    assert begin == sum(theirs.values_per_slot) and order != sorted(order)
    theirs.projector, theirs.objective = head.projector, torch.nn.CrossEntropyLoss()
    theirs.model = UtteranceLevel(256, begin)
    theirs.model.post_net.linear.load_state_dict({"weight": head.linear.weight[order], "bias": head.linear.bias[order]})

    utterances = found["train"]
    lengths = torch.arange(3, 3 + len(utterances))
    features = [torch.randn(length, 24) for length in lengths.tolist()]
    padded = pad_sequence(features, batch_first=True)
    labels = [[theirs.Sy_intent[slot][value] for slot, value in one.custom["intent"].items()] for one in utterances]
    records = defaultdict(list)
    wanted = theirs.forward(theirs, "dev", features, labels, [one.id for one in utterances], records)
    loss, figures = task.loss(head, padded, lengths, [task.target(one) for one in utterances])
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-6)
    rows = task.predict(head, padded, lengths, utterances)
    assert [tuple(row["prediction"].values()) for row in rows] == records["predict"]
    assert task.score(rows)["acc"] == pytest.approx(100 * sum(records["acc"]) / len(rows))
    assert figures["acc"].item() == pytest.approx(task.score(rows)["acc"])


def test_slots_may_be_chosen(corpus):
    task = make(slots=["location", "action"])
    found = task.read(corpus)
    for utterances in found.values():
        for one in utterances:
            one.duration = 1.0
    task.prepare(found, 320)
    assert task.classes == {"location": ["kitchen", "none"], "action": ["activate", "bring", "increase"]}
    assert task.units.keys() == {"acc", "acc_location", "acc_action"}


def test_lists_that_are_not_whole_are_named(corpus):
    path = corpus / "data" / "valid_data.csv"
    with pytest.raises(ValueError, match=r"train_data.csv has no column room: it has , path, speakerId"):
        make(slots=["action", "room"]).read(corpus)
    path.write_text(path.read_text() + "9,wavs/x.wav,s1\n")
    with pytest.raises(ValueError, match=r"valid_data.csv, line 7: fewer columns"):
        make().read(corpus)
    path.write_bytes(b"path,action,object,location\n\xff\xfe,a,b,c\n")
    with pytest.raises(ValueError, match=r"valid_data.csv cannot be read as a table in UTF-8"):
        make().read(corpus)
    path.unlink()
    with pytest.raises(ValueError, match=r"there is no .*valid_data.csv"):
        make().read(corpus)


def intents(*values):
    utterances = [
        Utterance(f"u{i}", f"u{i}", f"u{i}.wav", duration=1.0, custom={"intent": value})
        for i, value in enumerate(values)
    ]
    return {"train": utterances, "dev": utterances[:1], "test": utterances[:1]}


def test_names_of_slots():
    task = make()
    task.prepare(intents(["a", "x"], ["b", "x"]), 320)
    assert task.classes == {"slot_1": ["a", "b"], "slot_2": ["x"]}
    task = make(slots=["drink", "sugar"])
    task.prepare(intents(["a", "x"], ["b", "x"]), 320)
    assert task.classes == {"drink": ["a", "b"], "sugar": ["x"]}
    task = make()
    task.prepare(intents({"drink": "a", "sugar": 1}, {"sugar": 2, "drink": "b"}), 320)
    assert task.classes == {"drink": ["a", "b"], "sugar": ["1", "2"]}
    assert [task.target(one) for one in task.splits["train"]] == [[0, 0], [1, 1]]


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (
            {},
            [["a", "x"], ["b"]],
            r"u1 \(u1.wav\) has slots slot_1, where the first utterance of train has slot_1, slot_2",
        ),
        ({"slots": ["drink"]}, [["a", "x"]], r"u0 \(u0.wav\) has an intent of 2 values, where drink are expected"),
        ({"slots": ["size"]}, [{"drink": "a"}], r"u0 \(u0.wav\) has no size in its intent: it has drink"),
        ({}, ["lights"], r"u0 \(u0.wav\) has the intent 'lights', where a list"),
        ({}, [[]], r"u0 \(u0.wav\) has the intent \[\], where a list"),
        ({}, [["a", ""]], r"u0 \(u0.wav\) has an empty 'slot_2'"),
        ({}, [["a", "x"], ["a", "x"]], r"same intent \('a', 'x'\)"),
    ],
)
def test_intents_that_are_none(config, values, message):
    with pytest.raises(ValueError, match=message):
        make(**config).prepare(intents(*values), 320)


def test_score_wants_all_slots_right():
    task = make()
    right = {"a": "1", "b": "2"}
    predictions = [right, {"a": "1", "b": "9"}, {"a": "9", "b": "9"}, right]
    rows = [{"reference": right, "prediction": prediction} for prediction in predictions]
    assert task.score(rows) == {"acc": 50.0, "acc_a": 75.0, "acc_b": 50.0}
