"""Data of speaker diarization: both forms, labels as s3prl makes them, and bad input."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from s3prl_distiller.downstream.core.config import DownstreamConfig
from s3prl_distiller.downstream.core.protocol import protocol
from s3prl_distiller.downstream.corpora.rttm import read_rttm
from s3prl_distiller.downstream.metrics.turns import Turn
from s3prl_distiller.downstream.sd import DiarizationConfig, Task

from s3prl_distiller import audio
from s3prl_distiller.data.utterance import Utterance
from s3prl_distiller.hub import load_hub

from .diarization import RATE, prepared, rows_of
from .durations import with_durations


@pytest.fixture(scope="module")
def mini(minisuperb) -> Task:
    return prepared(minisuperb)


@pytest.fixture
def kaldi(minisuperb, tmp_path) -> Path:
    """Two-speaker mixtures laid out as the preparation of Libri2Mix lays it out: 3 in train, 2 in dev and in test."""
    root, source = tmp_path / "kaldi", minisuperb / "diarization_mini"
    for split, count in (("train", 3), ("dev", 2), ("test", 2)):
        folder = root / split
        folder.mkdir(parents=True)
        names = sorted(path.stem for path in (source / "audio").glob(f"mix_{split}_*.ogg"))[:count]
        segments, owners, rttm = [], [], []
        for name in names:
            for start, end, who in read_rttm(source / "rttm" / f"{name}.rttm")[name]:
                key = f"{name}_{round(1000 * start):06d}_{round(1000 * end):06d}_{who}"
                # The end as RTTM says it: many are half a frame, where the last bit decides how they are rounded.
                segments.append(f"{key} {name} {start} {start + (end - start)}")
                owners.append(f"{key} {who}")
                rttm.append(f"SPEAKER\t{name}\t1\t{start}\t{end - start}\t<NA>\t<NA>\t{who}\t<NA>")
        files = {name: source / "audio" / f"{name}.ogg" for name in names}
        table = {
            "wav.scp": [f"{name} {path}" for name, path in files.items()],
            "reco2dur": [f"{name} {audio.probe(path).duration}" for name, path in files.items()],
            "segments": segments,
            "utt2spk": owners,
            "rttm": rttm,
        }
        for name, lines in table.items():
            (folder / name).write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def manifests(minisuperb, tmp_path) -> Callable[..., Path]:
    """A folder of manifests: two recordings in train and one each in dev and test, each line as ``change`` has it."""

    def make(change: Callable[[dict], None] = lambda row: None) -> Path:
        root = tmp_path / "own"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        for split, count in (("train", 2), ("dev", 1), ("test", 1)):
            rows = (minisuperb / "diarization_mini" / f"{split}.jsonl").read_text().splitlines()[-count:]
            with (root / f"{split}.jsonl").open("w") as file:
                for row in map(json.loads, rows):
                    row["audio"] = str(minisuperb / "diarization_mini" / row["audio"])
                    shutil.copy(minisuperb / "diarization_mini" / row["rttm"], root)
                    row["rttm"] = Path(row["rttm"]).name
                    change(row)
                    file.write(json.dumps(row) + "\n")
        return root

    return make


# Data


def test_minisuperb(mini, minisuperb):
    assert {split: len(utterances) for split, utterances in mini.splits.items()} == {"train": 50, "dev": 12, "test": 12}
    assert mini.num_speakers == 4 and not mini.left_out  # the README: 1 to 4 speakers
    assert Task(DiarizationConfig()).read(minisuperb / "diarization_mini").keys() == {"train", "dev", "test"}
    # The README's share of overlap: train 22.5 %, dev 20.6 %, test 33.4 % of speech.
    for split, share in (("train", 22.5), ("dev", 20.6), ("test", 33.4)):
        active = np.concatenate([mini.target(utterance).numpy().sum(1) for utterance in mini.splits[split]])
        assert 100 * (active > 1).sum() / (active > 0).sum() == pytest.approx(share, abs=0.3)


@pytest.mark.parametrize("rate", [320, 160])
def test_labels_are_s3prls(kaldi, rate):
    load_hub()
    from s3prl.downstream.diarization.dataset import DiarizationDataset

    task = prepared(kaldi, rate, chunk_frames=500)
    assert task.num_speakers == 2
    theirs = DiarizationDataset("train", str(kaldi / "train"), chunk_size=500, frame_shift=rate, num_speakers=2)
    assert len(theirs.chunk_indices) == len(task.splits["train"]) > 3
    equal = 0
    for utterance, (recording, low, high) in zip(task.splits["train"], theirs.chunk_indices, strict=True):
        assert utterance.group == recording
        assert round(utterance.start * 16000) == low * rate and len(task.target(utterance)) == high - low
        assert utterance.duration is not None and round(utterance.duration * 16000) == (high - low) * rate
        _, label = theirs._get_labeled_speech(recording, low, high, 2)
        # s3prl keeps a column for who does not speak in this chunk, and forgets who speaks from before until after it.
        kept = {tuple(column) for column in label.T if column.any()}
        ours = {tuple(column) for column in task.target(utterance).int().numpy().T if column.any()}
        assert kept <= ours and all(all(column) for column in ours - kept)
        equal += len(kept)
    assert equal > 5


def test_a_speaker_through_a_whole_chunk_is_labelled():
    task = Task(DiarizationConfig(chunk_frames=100))
    task.downsample_rate, task.num_speakers = RATE, 2
    turns = [Turn(0.5, 5.5, "a"), Turn(2.5, 3.0, "b")]
    windows = task._windows(Utterance("r", "r", "r.wav", duration=6.0, custom={"turns": turns}))
    assert [window.id for window in windows] == ["r#1", "r#2", "r#3"]
    assert task.target(windows[1]).sum(0).tolist() == [100, 25]
    assert task.target(windows[2])[:, 0].tolist() == [1.0] * 75 + [0.0] * 25


def test_chunks_of_another_length_are_of_the_same_data(minisuperb):
    """fbank has twice as many frames a second, so that its chunks are half as long."""
    config = DownstreamConfig(task=DiarizationConfig(chunk_frames=500))
    tasks = [prepared(minisuperb, rate, chunk_frames=500) for rate in (160, 320)]
    assert len(tasks[0].splits["train"]) > 1.5 * len(tasks[1].splits["train"])
    one, other = (protocol(config, task) for task in tasks)
    assert one == other
    del tasks[1]._whole[0]
    assert protocol(config, tasks[1])["data"]["train"] != one["data"]["train"]


def test_libri2mix_as_prepared(kaldi, tmp_path):
    task = Task(DiarizationConfig())
    splits = task.read(kaldi)
    assert {split: len(utterances) for split, utterances in splits.items()} == {"train": 3, "dev": 2, "test": 2}
    assert splits["train"][0].claimed == pytest.approx(audio.probe(splits["train"][0].audio).duration)
    (kaldi / "dev" / "rttm").unlink()
    with pytest.raises(ValueError, match="prepare_diarization.py") as error:
        task.read(kaldi)
    assert str(kaldi / "dev" / "rttm") in str(error.value)
    with pytest.raises(ValueError, match="github.com/s3prl/LibriMix"):
        task.read(tmp_path)


@pytest.mark.parametrize(
    "name, line, what",
    [
        ("wav.scp", "mix_train_99", "line 4: mix_train_99 has no value"),
        ("wav.scp", "mix_train_00 /other.wav", "line 4: mix_train_00 is there twice"),
        ("wav.scp", "more flac -c more.flac |", "more is a command"),
        ("wav.scp", "more /other.wav", "no turn of more"),
        ("rttm", "SPEAKER mix_train_00 1 400.0 1.0 <NA> <NA> a <NA>", "mix_train_00, which is"),
    ],
)
def test_a_bad_line_of_libri2mix(kaldi, name, line, what):
    with (kaldi / "train" / name).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=what) as error:
        prepared(kaldi)
    assert str(kaldi / "train" / "rttm") in str(error.value) or str(kaldi / "train" / name) in str(error.value)


@pytest.mark.parametrize(
    "rttm, what",
    [
        (None, "no such RTTM file"),
        ("SPEAKER {id} 1 0.0 99.0 <NA> <NA> a <NA> <NA>", "line 1: a speaks from 0.000 s to 99.000 s"),
        ("SPEAKER {id} 1 -1.0 2.0 <NA> <NA> a <NA> <NA>", "line 1: start -1.0"),
        ("SPEAKER other 1 0.0 1.0 <NA> <NA> a <NA> <NA>", "only of other"),
        ("SPEAKER {id} 1 0.0", "line 1: not a line of RTTM"),
        ("", "no one speaks in any recording of train"),
    ],
)
def test_a_bad_rttm_file(manifests, rttm, what):
    root = manifests()
    for row in map(json.loads, (root / "train.jsonl").read_text().splitlines()):
        path = root / row["rttm"]
        path.unlink() if rttm is None else path.write_text(rttm.format(id=row["id"]))
    with pytest.raises(ValueError, match=what) as error:
        prepared(root)
    assert str(root) in str(error.value)


def test_a_manifest_with_a_typo(manifests):
    def misspell(row):
        row["rtm"] = row.pop("rttm")

    with pytest.raises(ValueError, match="did you mean 'rttm' for 'rtm'"):
        prepared(manifests(misspell))
    with pytest.raises(ValueError, match="where the path of a file is expected"):
        prepared(manifests(lambda row: row.update(rttm=["a"])))


def test_overlapping_turns_of_a_speaker_are_said(manifests, caplog):
    root = manifests()
    for path in sorted(root.glob("mix_train*.rttm")):
        first = path.read_text().splitlines()[0]
        path.write_text(path.read_text() + first + "\n")
    task = prepared(root)
    assert "overlap another of the same speaker" in caplog.text and "(and 1 files more)" in caplog.text
    assert task.target(task.splits["train"][0]).max() == 1


def test_a_recording_where_no_one_speaks(manifests):
    root = manifests()
    silent = json.loads((root / "train.jsonl").read_text().splitlines()[0])
    (root / silent["rttm"]).write_text("")
    task = prepared(root)
    assert task.target(task.splits["train"][0]).sum() == 0
    row = rows_of(task, [Turn(0, 1, "1")], [])
    assert row["speech"] == 0 and row["false_alarm"] == 1
    spoken = rows_of(task, [Turn(0, 1, "1")], [Turn(0, 2, "a")])
    assert task.score([row, spoken])["der"] == 100  # 1 s too much and 1 s missed of 2 s
    assert np.isnan(task.score([row])["der"])


def test_shorter_than_a_frame(minisuperb, tmp_path):
    (tmp_path / "empty.rttm").touch()
    task = Task(DiarizationConfig())
    splits = with_durations(task.read(minisuperb))
    for split in ("train", "test"):
        splits[split][-1].duration = 0.019
        splits[split][-1].custom["rttm"] = str(tmp_path / "empty.rttm")
    task.prepare(splits, RATE)
    assert task.left_out == {"train": {"shorter than one frame": 1}, "test": {"shorter than one frame": 1}}
    assert len(task.splits["train"]) == 49 and len(task.splits["test"]) == 11


def test_more_speakers_than_the_head(minisuperb, caplog):
    task = prepared(minisuperb, num_speakers=2)
    assert task.left_out == {"train": {"more speakers than the head": 8}}  # 4 of three and 4 of four
    assert len(task.splits["train"]) == 42 and len(task.splits["test"]) == 12
    (note,) = task.notes
    assert note in caplog.text and note.startswith("2 of the 12 recordings of test, tst00 first, have more speakers")


@pytest.mark.parametrize(
    "config",
    [
        {"num_speakers": 7},
        {"num_speakers": -1},
        {"chunk_frames": 0},
        {"thresholds": []},
        {"thresholds": [1.5]},
        {"medians": [10]},
        {"medians": []},
        {"rnn_layers": -1},
    ],
)
def test_settings_that_cannot_work(config):
    with pytest.raises(ValueError, match=f"task.{next(iter(config))}"):
        Task(DiarizationConfig(**config))


# Learning
