"""Keyword spotting: Speech Commands in its official layout, silence, and what counts on dev."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from s3prl_distiller.downstream import ks
from s3prl_distiller.downstream.core.config import DataConfig
from s3prl_distiller.downstream.core.draws import TrainOrder
from s3prl_distiller.downstream.corpora.speech_commands import NOISE, SILENCE, UNKNOWN, WORDS, split_of
from sklearn.metrics import balanced_accuracy_score

from s3prl_distiller import audio
from s3prl_distiller.hub import load_hub

torch.set_num_threads(1)


def make(**config):
    return ks.Task(ks.KeywordConfig(**config))


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> Path:
    """Both archives: 12 clips of each of 12 words, three noises of 3.5 s, 1 s and 2 s, and 2 test clips a class."""
    root = tmp_path_factory.mktemp("speech_commands")
    train, test = root / "speech_commands_v0.01", root / "speech_commands_test_set_v0.01"
    rng = np.random.default_rng(0)
    clip = root / "clip.wav"
    soundfile.write(clip, 0.1 * rng.standard_normal(16_000), 16_000)
    for word in (*WORDS, "bed", "cat"):
        (train / word).mkdir(parents=True)
        for number in range(12):
            shutil.copy(clip, train / word / f"{rng.integers(2**32):08x}_nohash_{number % 3}.wav")
    (train / NOISE).mkdir()
    for name, seconds in (("a", 3.5), ("b", 1.0), ("c", 2.0)):
        soundfile.write(train / NOISE / f"{name}.wav", 0.1 * rng.standard_normal(int(16_000 * seconds)), 16_000)
    (train / NOISE / "README.md").write_text("about the noise")
    (train / "validation_list.txt").write_text("")
    for word in (*WORDS, UNKNOWN, SILENCE):
        (test / word).mkdir(parents=True)
        for number in range(2):
            shutil.copy(clip, test / word / f"{word.strip('_')}_{number}.wav")
    clip.unlink()
    return root


def prepared(archives, **config):
    task = make(**config)
    found = task.read(archives)
    for utterances in found.values():
        for one in utterances:
            one.duration = audio.probe(one.audio).duration
    task.prepare(found, 320)
    return task


def test_equals_s3prl(archives):
    """The same files in the same splits under the same labels."""
    load_hub()
    from s3prl.dataio.corpus.speech_commands import SpeechCommandsV1

    train, test = archives / "speech_commands_v0.01", archives / "speech_commands_test_set_v0.01"
    theirs = SpeechCommandsV1(str(train), str(test)).data_split
    for (split, mine), yours in zip(make().read(archives).items(), theirs, strict=True):
        found = sorted((one.audio, one.custom["label"]) for one in mine)
        assert found == sorted((str(item["wav_path"]), item["class_name"]) for item in yours.values()), split
    counts = Counter(one.custom["label"] for one in make().read(archives)["train"])
    assert set(counts) == {*WORDS, UNKNOWN, SILENCE} and counts[SILENCE] == 3 and counts[UNKNOWN] > counts["yes"]


def test_speakers_are_in_one_split_in_the_known_shares():
    names = [f"{number:08x}" for number in range(20_000)]
    assert all(split_of(f"{name}_nohash_0.wav") == split_of(f"{name}_nohash_7.wav") for name in names[:200])
    shares = Counter(split_of(f"{name}_nohash_0.wav") for name in names)
    assert shares["dev"] == pytest.approx(2000, abs=150) and shares["test"] == pytest.approx(2000, abs=150)


def test_places(archives, tmp_path):
    """--data may be the folder of both archives, or that of the training archive."""
    train = archives / "speech_commands_v0.01"
    both = make().read(archives)
    assert make().read(train) == both
    moved = tmp_path / "elsewhere"
    shutil.copytree(archives / "speech_commands_test_set_v0.01", moved / "any name")
    alone = tmp_path / "alone"
    alone.symlink_to(train)
    with pytest.raises(ValueError, match=r"test archive.*has none in it.*task.test_root"):
        make().read(alone)
    found = make(test_root=str(moved / "any name")).read(alone)
    assert {split: [one.id for one in found[split]] for split in found} == {
        split: [one.id for one in both[split]] for split in both
    }


def test_what_is_not_whole_is_named(archives, tmp_path):
    root = tmp_path / "all"
    shutil.copytree(archives, root)
    shutil.rmtree(root / "speech_commands_v0.01" / "stop")
    with pytest.raises(ValueError, match=r"speech_commands_v0.01 has no folder stop"):
        make().read(root)
    (root / "speech_commands_v0.01" / "stop").mkdir()
    with pytest.raises(ValueError, match=r"stop holds no .wav"):
        make().read(root)
    shutil.copytree(archives / "speech_commands_v0.01", root / "speech_commands_v0.02")
    with pytest.raises(ValueError, match=r"several training archives \(speech_commands_v0.01, speech_commands_v0.02\)"):
        make().read(root)
    with pytest.raises(ValueError, match="speech_commands_test_set_v0.01 has no folder _silence_"):
        shutil.rmtree(root / "speech_commands_test_set_v0.01" / SILENCE)
        shutil.rmtree(root / "speech_commands_v0.01")
        make(test_root=str(root / "speech_commands_test_set_v0.01")).read(root)
    with pytest.raises(ValueError, match="task.silence_seconds is 0"):
        make(silence_seconds=0).read(archives)


def test_training_hears_classes_equally_and_random_seconds_of_noise(archives):
    task = prepared(archives)
    utterances = task.splits["train"]
    classes = [task.balance_by(one) for one in utterances]
    config = DataConfig(batch_size=16, balanced=True)
    draws = []
    for epoch in range(40):
        draws += [draw for batch in TrainOrder(utterances, config, classes, 0, epoch) for draw in batch]
    counts = Counter(draw.utterance.custom["label"] for draw in draws)
    assert max(counts.values()) < 1.3 * min(counts.values())
    assert {draw.samples for draw in draws} == {16_000}
    starts = {draw.start for draw in draws if draw.utterance.id.endswith("/a")}
    assert len(starts) > 20 and min(starts) >= 0 and max(starts) <= 2.5


def test_dev_hears_all_seconds_of_noise_and_counts_classes_equally(archives):
    task = prepared(archives)
    heard = []

    def predict(utterances):
        heard.extend(utterances)
        for index, one in enumerate(utterances):
            right = one.custom["label"]
            yield {"id": one.id, "reference": right, "prediction": right if index % 3 else "yes"}

    rows = task.evaluate("dev", predict)
    windows = [one for one in heard if one.custom["label"] == SILENCE]
    assert [(one.id, one.start, one.duration) for one in windows] == [
        ("_background_noise_/a@0", 0.0, 1.0),
        ("_background_noise_/a@1", 1.0, 1.0),
        ("_background_noise_/a@2", 2.0, 1.0),
        ("_background_noise_/b@0", 0.0, 1.0),
        ("_background_noise_/c@0", 0.0, 1.0),
        ("_background_noise_/c@1", 1.0, 1.0),
    ]
    assert len(task.splits["dev"]) == len(heard) - 3  # s3prl's count: a recording is one
    references, predictions = [[row[key] for row in rows] for key in ("reference", "prediction")]
    assert task.score(rows)["acc"] == pytest.approx(100 * balanced_accuracy_score(references, predictions))
    plain = prepared(archives, balanced_dev=False).evaluate("dev", predict)
    assert task.score(plain)["acc"] == pytest.approx(100 * np.mean(np.equal(references, predictions)))
    # On test every utterance counts the same.
    rows = task.evaluate("test", predict)
    assert len(rows) == 24 and not any("weight" in row for row in rows)


def test_words_are_scored_apart_from_the_rest():
    pairs = [("yes", "yes"), ("yes", "no"), ("no", "no"), (UNKNOWN, UNKNOWN), (SILENCE, "no"), ("silence", "yes")]
    rows = [{"reference": reference, "prediction": prediction} for reference, prediction in pairs]
    assert make().score(rows) == pytest.approx({"acc": 50, "acc_words": 200 / 3})
    assert make(fillers=["yes"]).score(rows)["acc_words"] == 50


def test_digits(minisuperb):
    task = make()
    found = task.read(minisuperb / "digits_mini")
    assert {split: len(utterances) for split, utterances in found.items()} == {"train": 2417, "dev": 283, "test": 300}
    task.prepare(found, 320)
    assert task.classes["label"] == list("0123456789")
