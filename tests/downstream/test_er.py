"""Emotion recognition: IEMOCAP in its official layout, and folds."""

import json
import random

import pytest
from s3prl_distiller.downstream import er

from s3prl_distiller.hub import load_hub

EMOTIONS = ["neu", "hap", "exc", "ang", "sad", "fru", "xxx", "sur"]


def make(**config):
    return er.Task(er.EmotionConfig(**config))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Five sessions of three dialogues of twenty turns, with what lies beside labels in the real one."""
    root = tmp_path_factory.mktemp("corpora") / "IEMOCAP_full_release"
    rng = random.Random(0)
    for number in range(1, 6):
        session = root / f"Session{number}"
        labels = session / "dialog" / "EmoEvaluation"
        (labels / "Categorical").mkdir(parents=True)
        (labels / "Categorical" / "Ses_e1.txt").write_text("[1.0 - 2.0]\tnot a label file\tneu\t[1, 1, 1]\n")
        (labels / "._Ses01F_impro01.txt").write_bytes(b"\x00\x05\x16\x07")
        for dialogue in (f"Ses0{number}F_impro01", f"Ses0{number}M_script01_1b", f"Ses0{number}M_impro02"):
            wavs = session / "sentences" / "wav" / dialogue
            wavs.mkdir(parents=True)
            lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
            for turn in range(20):
                name = f"{dialogue}_{'FM'[turn % 2]}{turn:03d}"
                (wavs / f"{name}.wav").touch()
                lines.append(f"[{turn}.0000 - {turn}.9000]\t{name}\t{rng.choice(EMOTIONS)}\t[2.5000, 2.5000, 2.5000]")
                lines += ["C-E1:\tNeutral;\t()", "A-E3:\tval 3; act 2; dom  2;\t()", ""]
            (labels / f"{dialogue}.txt").write_text("\n".join(lines))
    return root


@pytest.mark.parametrize("fold", [1, 4])
def test_equals_s3prl(corpus, tmp_path, monkeypatch, fold):
    """The same utterances and labels in test, and in train and dev together; as many in dev."""
    load_hub()
    from s3prl.downstream.emotion import IEMOCAP_preprocess

    for number in range(1, 6):  # it cannot read the resource forks of the archive
        fork = corpus / f"Session{number}" / "dialog" / "EmoEvaluation" / "._Ses01F_impro01.txt"
        fork.unlink(missing_ok=True)
    others = [f"Session{number}" for number in range(1, 6) if number != fold]
    found = make(fold=fold).read(corpus)
    assert make(fold=fold).read(corpus.parent) == found
    names = {"neu": "neutral", "hap": "happy", "ang": "angry", "sad": "sad"}
    for sessions, splits in (([f"Session{fold}"], ["test"]), (others, ["train", "dev"])):
        IEMOCAP_preprocess.preprocess(str(corpus), sessions, str(tmp_path / "meta.json"))
        theirs = json.loads((tmp_path / "meta.json").read_text())["meta_data"]
        mine = [one for split in splits for one in found[split]]
        assert sorted((one.audio, one.custom["label"]) for one in mine) == sorted(
            (str(corpus / item["path"]), names[item["label"]]) for item in theirs
        )
    count = len(found["train"]) + len(found["dev"])
    assert len(found["train"]) == int((1 - 0.2) * count) > 50
    speakers = {split: {one.custom["speaker"] for one in utterances} for split, utterances in found.items()}
    assert speakers["test"] == {f"Ses0{fold}F", f"Ses0{fold}M"} and not speakers["test"] & speakers["train"]
    assert {one.custom["label"] for one in found["dev"]} == set(names.values())


def test_resource_forks_are_no_labels(corpus):
    before = make(fold=2).read(corpus)
    (corpus / "Session3" / "dialog" / "EmoEvaluation" / "._Ses03F_impro01.txt").write_bytes(b"\x00\x05[\x16\t\xff")
    assert make(fold=2).read(corpus) == before


def test_every_utterance_is_tested_once(corpus):
    found = [make(fold=fold).read(corpus) for fold in make().folds(corpus)]
    tested = [one.id for splits in found for one in splits["test"]]
    assert len(found) == 5 and len(tested) == len(set(tested))
    for splits in found:
        ids = [one.id for utterances in splits.values() for one in utterances]
        assert sorted(ids) == sorted(tested)


def test_published_counts():
    """5531 in all; s3prl's own lists of the five sessions."""
    assert sum(make(fold=fold).published["test"] for fold in range(1, 6)) == 5531
    assert make(fold=1).published == {"train": 3556, "dev": 890, "test": 1085}
    assert make().published == {}


def test_folds_of_manifests(minisuperb):
    assert make().folds(minisuperb) == [1, 2, 3, 4, 5] == make().folds(minisuperb / "emotions_mini")
    tested = [one.id for fold in range(1, 6) for one in make(fold=fold).read(minisuperb)["test"]]
    assert len(tested) == len(set(tested)) == 446
    first = make(fold=1).read(minisuperb / "emotions_mini")
    assert {split: len(utterances) for split, utterances in first.items()} == {"train": 323, "dev": 35, "test": 88}


def test_which_fold_is_never_guessed(minisuperb, corpus):
    with pytest.raises(ValueError, match=r"task.fold is 0, but .* has the folds 1, 2, 3, 4, 5: name one"):
        make().read(minisuperb)
    with pytest.raises(ValueError, match=r"task.fold is 6, but .* has the folds"):
        make(fold=6).read(corpus)
    digits = minisuperb / "digits_mini"
    assert make().folds(digits) == [] and len(make().read(digits)["train"]) == 2417
    with pytest.raises(ValueError, match="not in folds: leave it at 0"):
        make(fold=1).read(digits)
    with pytest.raises(ValueError, match="task.valid_ratio is 1"):
        make(fold=1, valid_ratio=1.0).read(corpus)


def test_what_is_not_whole_is_named(tmp_path):
    (tmp_path / "Session1").mkdir()
    with pytest.raises(ValueError, match="has no Session2, Session3, Session4, Session5"):
        make(fold=1).read(tmp_path)
    for number in range(2, 6):
        (tmp_path / f"Session{number}").mkdir()
    with pytest.raises(ValueError, match=r"there is no .*EmoEvaluation and no .*wav"):
        make(fold=1).read(tmp_path)
    for number in range(1, 6):
        (tmp_path / f"Session{number}" / "dialog" / "EmoEvaluation").mkdir(parents=True)
        (tmp_path / f"Session{number}" / "sentences" / "wav").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"EmoEvaluation holds no .txt"):
        make(fold=1).read(tmp_path)
    (tmp_path / "Session1" / "dialog" / "EmoEvaluation" / "Ses01F_impro01.txt").write_text("[0 - 1]\tSes01F\n")
    with pytest.raises(ValueError, match=r"Ses01F_impro01.txt: the line .* has no name and emotion"):
        make(fold=1).read(tmp_path)
