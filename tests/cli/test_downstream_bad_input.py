"""What ``run_downstream.py`` does about data and commands that cannot be right: one clear error, or a counted skip."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import soundfile
from s3prl_distiller.downstream.core import results

from .conftest import Commands
from .tiny_runs import log_lines, metrics, nothing_was_trained, says, training, wav

Row = dict[str, Any]


@pytest.fixture
def copy(minis: Path, tmp_path: Path) -> Callable[[str], Path]:
    """``copy(name)``: a corpus to spoil, its audio a folder of links."""

    def copy(name: str) -> Path:
        target = tmp_path / name
        if not target.exists():
            target.mkdir()
            for path in (minis / name).iterdir():
                if path.is_file():
                    shutil.copy(path, target)
                else:
                    shutil.copytree(path, target / path.name, copy_function=lambda a, b: Path(b).symlink_to(a))
        return target

    return copy


def rows_of(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def change(path: Path, place: int, **values: Any) -> Row:
    """Give one line of a manifest other values; returns it as it was."""
    rows = rows_of(path)
    before = dict(rows[place])
    rows[place].update(values)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return before


# -- labels


@pytest.mark.parametrize(("split", "text"), [("train", ""), ("test", " "), ("dev", None)])
def test_empty_transcript(
    split: str, text: str | None, commands: Commands, copy: Callable[[str], Path], tmp_path: Path
) -> None:
    corpus = copy("librispeech_mini")
    row = change(corpus / f"{split}.jsonl", 3, text=text)
    done = commands.downstream(tmp_path, *training("asr", corpus))
    says(done, str(row["id"]), "'text'", "null" if text is None else "remove the line")
    nothing_was_trained(tmp_path)


def test_a_label_that_train_does_not_have(commands: Commands, copy: Callable[[str], Path], tmp_path: Path) -> None:
    corpus = copy("keywords_mini")
    rows = [change(corpus / "test.jsonl", place, label="banana") for place in (1, 5)]
    says(
        commands.downstream(tmp_path, *training("ks", corpus)),
        *("test", rows[0]["id"], "'banana'", "task.unseen_labels=skip"),
    )
    nothing_was_trained(tmp_path)
    done = commands.downstream(tmp_path, *training("ks", corpus, "-o", "task.unseen_labels=skip")).success()
    found = metrics(tmp_path)
    assert found["left_out"] == {"label unseen in train": 2} and found["utterances"] == 6
    assert "left out: 2 label unseen in train" in done.out
    predictions = results.read_rows(tmp_path / "result" / "downstream" / "run" / "predictions-test.jsonl")
    assert len(predictions) == 6 and not {row["id"] for row in rows} & {row["id"] for row in predictions}


def test_a_speaker_with_one_utterance(commands: Commands, copy: Callable[[str], Path], tmp_path: Path) -> None:
    corpus = copy("librispeech_mini")
    change(corpus / "sid_train.jsonl", 0, speaker="alone", label="alone")
    done = commands.downstream(tmp_path, *training("sid", corpus, "-o", "task.unseen_labels=skip")).success()
    assert "have one utterance in train, such as alone" in done.err
    assert "alone" in metrics(tmp_path)["state"]["classes"][0][1]


def test_transcript_longer_than_the_frames(commands: Commands, copy: Callable[[str], Path], tmp_path: Path) -> None:
    """Of train it is left out and counted; of test it stays, and is as wrong as it is."""
    corpus = copy("librispeech_mini")
    long = "ABCDEFGHIJKLMNOPQRSTUVWXYZ " * 80
    kept = rows_of(corpus / "test.jsonl")
    for split, place in (("train", 2), ("test", 0)):
        change(corpus / f"{split}.jsonl", place, text=long)
    done = commands.downstream(
        tmp_path, *training("asr", corpus, "-o", "runner.total_steps=8,data.batch_size=4")
    ).success()
    assert "1 label longer than frames" in done.err and "not finite" not in done.err
    losses = [line["loss"] for line in log_lines(tmp_path, "train")]
    assert len(losses) == 8 and all(loss is not None and 0 < loss < 1000 for loss in losses)
    found = metrics(tmp_path)
    assert found["utterances"] == len(kept) and found["metrics"]["wer"]["value"] > 90
    weights = safetensors.torch.load_file(tmp_path / "result/downstream/run/states-8/model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


# -- audio


@pytest.mark.parametrize(
    ("task", "corpus_name", "files"),
    [
        ("ks", "keywords_mini", ("train.jsonl", "test.jsonl")),
        ("asr", "librispeech_mini", ("train.jsonl", "test.jsonl")),
        ("sf", "slu_mini", ("train.jsonl", "test.jsonl")),
        ("sid", "librispeech_mini", ("sid_train.jsonl", "sid_test.jsonl")),
        ("qbe", "keywords_mini", ("qbe_queries.jsonl", "qbe_docs.jsonl")),
    ],
)
def test_shorter_than_one_frame(
    task: str,
    corpus_name: str,
    files: tuple[str, str],
    commands: Commands,
    copy: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """100 samples, where a window has 400: left out and counted. One frame alone has no variance: nothing less than two
    may be let in."""
    corpus = copy(corpus_name)
    soundfile.write(corpus / "audio" / "short.wav", 0.1 * np.random.default_rng(0).standard_normal(100), 16000)
    for file in files:
        change(corpus / file, 2, audio="audio/short.wav", duration=100 / 16000)
    more = ["-o", "data.max_bad_share=0.3,task.unseen_labels=skip"]

    def usual() -> None:
        commands.downstream(tmp_path, *training(task, corpus, *more)).success()
        assert metrics(tmp_path)["left_out"]["too short"] == 1

    def lower() -> None:
        arguments = training(task, corpus, *more, "-o", "data.min_seconds=0.02", name="lower")
        says(commands.downstream(tmp_path, *arguments), "data.min_seconds")

    commands.at_once(usual, lower)


def test_a_wav_with_nan(commands: Commands, copy: Callable[[str], Path], tmp_path: Path) -> None:
    corpus = copy("keywords_mini")
    noise = 0.1 * np.random.default_rng(0).standard_normal(16000)
    noise[5000] = np.nan
    wav(corpus / "audio" / "nan.wav", noise)
    for split in ("train", "test"):
        change(corpus / f"{split}.jsonl", 1, audio="audio/nan.wav", duration=1.0)
    done = commands.downstream(tmp_path, *training("ks", corpus, "-o", "data.max_bad_share=0.1")).success()
    found = metrics(tmp_path)
    assert sum(found["left_out"].values()) == 1 and found["utterances"] == 7, found["left_out"]
    assert "not finite" not in done.err
    assert all(line["loss"] is not None for line in log_lines(tmp_path, "train"))
    # More than the share that is allowed stops the run.
    says(
        commands.downstream(tmp_path, *training("ks", corpus, "-o", "data.max_bad_share=0.01", name="strict")),
        *("2 of 40 utterances", "data.max_bad_share", "data_report.md", "nan.wav"),
    )


# -- diarization and verification


def test_overlapping_turns_of_one_speaker_are_noted(
    commands: Commands, copy: Callable[[str], Path], tmp_path: Path
) -> None:
    corpus = copy("diarization_mini")
    row = rows_of(corpus / "test.jsonl")[0]
    rttm = corpus / row["rttm"]
    text = rttm.read_text()
    fields = next(line for line in text.splitlines() if line.startswith("SPEAKER")).split()
    again = [*fields[:3], str(float(fields[3]) + 0.1), *fields[4:]]
    rttm.unlink()
    rttm.write_text(text + " ".join(again) + "\n")
    done = commands.downstream(tmp_path, *training("sd", corpus)).success()
    notes = [note for note in metrics(tmp_path)["notes"] if "overlap" in note]
    assert len(notes) == 1 and row["rttm"] in notes[0] and notes[0] in done.out


def test_a_turn_out_of_range(commands: Commands, copy: Callable[[str], Path], tmp_path: Path) -> None:
    corpus = copy("diarization_mini")
    row = rows_of(corpus / "train.jsonl")[1]
    rttm = corpus / row["rttm"]
    text = rttm.read_text()
    rttm.unlink()
    rttm.write_text(text + f"SPEAKER {row['id']} 1 {row['duration'] - 1} 60.0 <NA> <NA> late <NA> <NA>\n")
    line = len(text.splitlines()) + 1
    says(commands.downstream(tmp_path, *training("sd", corpus)), f"{row['rttm']}, line {line}", "late", "long")
    nothing_was_trained(tmp_path)


def test_trials_of_missing_files(commands: Commands, copy: Callable[[str], Path], tmp_path: Path) -> None:
    corpus = copy("librispeech_mini")
    with (corpus / "asv_trials.txt").open("a") as file:
        file.write("1 audio/gone.flac audio/lost.flac\n0 audio/gone.flac audio/away.flac\n")
    says(
        commands.downstream(tmp_path, *training("asv", corpus)),
        *("asv_trials.txt", "names 3 files", "audio/gone.flac", "audio/lost.flac"),
    )
    nothing_was_trained(tmp_path)


# -- manifests and corpora


@pytest.mark.parametrize(
    ("task", "name", "file", "key", "typo"),
    [
        ("ks", "keywords_mini", "train.jsonl", "label", "lable"),
        ("asr", "librispeech_mini", "test.jsonl", "text", "txet"),
        ("ic", "slu_mini", "dev.jsonl", "intent", "intnet"),
        ("sd", "diarization_mini", "test.jsonl", "rttm", "rttn"),
        ("ks", "keywords_mini", "train.jsonl", "audio", "adio"),
        ("qbe", "keywords_mini", "qbe_queries.jsonl", "relevant", "relevent"),
    ],
)
def test_a_key_with_a_typo(
    task: str,
    name: str,
    file: str,
    key: str,
    typo: str,
    commands: Commands,
    copy: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    path = copy(name) / file
    rows = rows_of(path)
    rows[2] = {typo if k == key else k: v for k, v in rows[2].items()}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    says(commands.downstream(tmp_path, *training(task, path.parent)), file, repr(key), "did you mean", repr(typo))
    nothing_was_trained(tmp_path)


def test_a_line_that_is_no_json(commands: Commands, copy: Callable[[str], Path], tmp_path: Path) -> None:
    path = copy("keywords_mini") / "dev.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], lines[3][:-4], *lines[4:]]) + "\n")
    says(commands.downstream(tmp_path, *training("ks", path.parent)), "dev.jsonl, line 4", "JSON")


TASKS = {
    "asr": ("openslr.org", "LibriSpeech"),
    "pr": ("openslr.org", "LibriSpeech"),
    "ks": ("speech_commands_v0.01", "train.jsonl"),
    "ic": ("fluent", "train.jsonl"),
    "sf": ("SNIPS", "jsonl"),
    "sid": ("iden_split.txt", "vgg/data/voxceleb"),
    "asv": ("vgg/data/voxceleb", "asv_trials.txt"),
    "sd": ("Libri2Mix", "jsonl"),
    "er": ("IEMOCAP", "jsonl"),
    "qbe": ("QUESST", "qbe_docs.jsonl"),
}


def test_a_folder_that_is_no_corpus(commands: Commands, tmp_path: Path) -> None:
    """What to get, from where, and the tree that is expected."""
    folder = tmp_path / "empty"
    folder.mkdir()
    (folder / "letter.txt").write_text("hello")

    def refuse(task: str) -> None:
        done = commands.downstream(tmp_path, *training(task, folder, name=task))
        assert done.status == 2 and "Traceback" not in done.err, done.err
        (start,) = [place for place, line in enumerate(done.err.splitlines()) if line.startswith("error: ")]
        said = "\n".join(done.err.splitlines()[start:])
        assert all(part.lower() in said.lower() for part in (str(folder), *TASKS[task])), said
        assert "http" in said and len(said.splitlines()) >= 3, said

    commands.at_once(*(lambda task=task: refuse(task) for task in TASKS))
    nothing_was_trained(tmp_path)


def test_commands_that_lack_something(commands: Commands, minis: Path, tmp_path: Path) -> None:
    """Or name what is not there."""
    full = training("ks", minis)

    def without(option: str) -> list[str]:
        place = full.index(option)
        return full[:place] + full[place + 2 :]

    refused: dict[str, tuple[list[str], tuple[str, ...]]] = {
        "no data": (without("--data"), ("--data", "ks")),
        "no such data": ([*without("--data"), "--data", "nowhere"], ("--data", "nowhere")),
        "data is a file": ([*without("--data"), "--data", str(minis / "keywords_mini" / "test.jsonl")], ("--data",)),
        "two corpora": ([*full, "--data", str(minis), str(minis)], ("--data takes one",)),
        "no upstream": (without("-u"), ("-u",)),
        "no such upstream": ([*without("-u"), "-u", "fbnak"], ("fbnak",)),
        "no task": (without("-d"), ("-d", "asr", "qbe")),
        "no such task": ([*full, "-d", "kss"], ("'kss'", "ks")),
        "no name": (without("-n"), ("-n",)),
        "no such feature": ([*full, "-s", "hiden_states"], ("'hiden_states'", "-s", "hidden_states")),
        "no such layer": ([*full, "-l", "7"], ("-l", "7", "fbank")),
        "no such config": ([*full, "-c", "superbb"], ("superbb",)),
        "no such key": ([*full, "-o", "runner.total_step=3"], ("runner.total_step", "total_steps")),
        "no such key of the task": ([*full, "-o", "task.unseen_label=skip"], ("task.unseen_label", "unseen_labels")),
        "no such value": ([*full, "-o", "task.unseen_labels=ignore"], ("task.unseen_labels", "ignore")),
        "no number": ([*full, "-o", "data.batch_size=many"], ("data.batch_size",)),
        "no such device": ([*full, "--device", "gpu9"], ("--device",)),
        "evaluate what": (["-m", "evaluate"], ("-e",)),
        "evaluate nothing": (["-m", "evaluate", "-e", "result/downstream/none"], ("result/downstream/none",)),
        "infer with what": (["-m", "inference", "--data", "a.wav"], ("-e",)),
        "infer from what": (["-m", "inference", "-e", "run"], ("--data",)),
        "go on with nothing": (["-e", "result/downstream/none"], ("result/downstream/none",)),
        "ctc of which config": ([*full, "-d", "ctc"], ("-c", "libriphone", "snips", "asr")),
    }

    def refuse(name: str) -> None:
        arguments, parts = refused[name]
        said = commands.downstream(tmp_path, *arguments).refusal()
        assert all(part in said for part in parts), f"{name}: {said}"

    commands.at_once(*(lambda name=name: refuse(name) for name in refused))
    nothing_was_trained(tmp_path)
