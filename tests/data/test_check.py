"""Bad audio is found before training, written down, left out, and remembered."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from s3prl_distiller import audio
from s3prl_distiller.data import scan


def spoil(folder: Path) -> dict[str, str]:
    """Add one file for each fault; return its reason by name."""
    wave, _ = soundfile.read(next(folder.glob("*.flac")), dtype="float32")
    (folder / "text.wav").write_text("this is a text file\n" * 99)
    soundfile.write(folder / "cut.flac", wave, 16000)
    (folder / "cut.flac").write_bytes((folder / "cut.flac").read_bytes()[:40_000])
    nan = wave.copy()
    nan[len(nan) // 2] = np.inf
    soundfile.write(folder / "nan.wav", nan, 16000, subtype="FLOAT")
    soundfile.write(folder / "zeros.wav", np.zeros(16000), 16000)
    soundfile.write(folder / "faint.wav", wave * 1e-5, 16000, subtype="FLOAT")
    soundfile.write(folder / "click.wav", wave[:700], 16000)
    return {
        "text.wav": "unreadable",
        "cut.flac": "truncated",
        "nan.wav": "non-finite",
        "zeros.wav": "silent",
        "faint.wav": "silent",
        "click.wav": "too short",
    }


def findings(tmp_path: Path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "report" / "data_report.jsonl").read_text().splitlines()]


def test_bad_files_are_left_out_and_written_down(folder, make, tmp_path):
    clean = make(folder)
    reasons = spoil(folder)
    corpus = make(folder, max_bad_share=0.3)
    assert corpus.fingerprint == clean.fingerprint
    rows = findings(tmp_path)
    assert {row["id"]: row["reason"] for row in rows} == reasons
    assert {row["action"] for row in rows} == {"left out"}
    assert all(row["path"] == str(folder / row["id"]) for row in rows)
    report = (tmp_path / "report" / "data_report.md").read_text()
    assert "22 utterances listed, 6 of them left out" in report and "| silent | left out | 2 |" in report
    assert "2 silent" in corpus.describe() and str(tmp_path / "report") in corpus.describe()
    ids = {name for batch in corpus.train_loader(0) for name in batch.ids}
    assert len(ids) == corpus.train_utterances and not ids & reasons.keys()


def test_too_many_bad_files_stop_before_training(folder, make, tmp_path):
    spoil(folder)
    with pytest.raises(ValueError, match=r"6 of 22 utterances cannot be used \(2 silent") as caught:
        make(folder)
    for part in ("1 truncated", "data.max_bad_share allows 5.0%", str(tmp_path / "report" / "data_report.jsonl")):
        assert part in str(caught.value)
    assert len(findings(tmp_path)) == 6


def test_headers_only_lets_bad_files_drop_while_training(folder, make):
    reasons = spoil(folder)
    corpus = make(folder, check="header", max_bad_share=0.3, valid_share=0.0)
    batches = [*corpus.train_loader(0), *corpus.valid_loader()]
    dropped = [line for batch in batches for line in batch.dropped]
    assert {line.split(":")[0] for line in dropped} == {"cut.flac", "nan.wav"}
    names = {name for batch in batches for name in batch.ids}
    assert names == {p.relative_to(folder).as_posix() for p in folder.rglob("*.*")} - reasons.keys() | {
        "zeros.wav",
        "faint.wav",
    }


def test_a_batch_whose_files_all_fail_is_empty(folder, make):
    corpus = make(folder, batch_size=1)
    for path in folder.rglob("*.*"):
        path.write_bytes(b"overwritten after the check")
    batches = list(corpus.train_loader(0))
    assert len(batches) == corpus.train_utterances
    for batch in batches:
        assert batch.wave.shape == (0, 0) and batch.lengths.shape == (0,) and batch.ids == []
        assert len(batch.dropped) == 1


def test_other_rates_and_channels_are_used_and_noted(folder, make, tmp_path):
    wave = audio.load(next(folder.glob("*.flac"))).numpy()
    soundfile.write(folder / "low.wav", wave[::2], 8000, subtype="FLOAT")
    soundfile.write(folder / "stereo.wav", np.stack([wave, wave / 2], 1), 16000, subtype="FLOAT")
    corpus = make(folder, crop_samples=10**7)
    assert {(row["id"], row["reason"], row["action"]) for row in findings(tmp_path)} == {
        ("low.wav", "sampling rate", "resampled to 16000 Hz"),
        ("stereo.wav", "channels", "mixed down to their mean"),
    }
    batches = [*corpus.train_loader(0), *corpus.valid_loader()]
    waves = {n: w[:k] for b in batches for n, w, k in zip(b.ids, b.wave, b.lengths, strict=True)}
    np.testing.assert_allclose(waves["stereo.wav"], wave * 0.75, atol=1e-6)
    np.testing.assert_array_equal(waves["low.wav"], audio.load(folder / "low.wav"))
    assert len(waves["low.wav"]) == 2 * len(wave[::2])


def test_a_wrong_length_in_the_manifest_is_noted(folder, make, tmp_path):
    files = sorted(folder.glob("*.flac"))
    rows = [{"audio": str(p), "duration": audio.probe(p).duration + (3 if p == files[0] else 0.01)} for p in files]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = make(tmp_path / "list.jsonl")
    assert [(row["id"], row["reason"]) for row in findings(tmp_path)] == [(str(files[0]), "duration")]
    seconds = sum(audio.probe(p).duration for p in files)
    assert corpus.train_seconds + corpus.valid_seconds == pytest.approx(seconds, abs=1e-3)


def test_the_cache_saves_decoding_until_a_file_changes(folder, make, tmp_path, monkeypatch):
    decoded: list[str] = []
    examine = scan.examine

    def counting(source, full):
        decoded.append(os.path.basename(source))
        return examine(source, full)

    monkeypatch.setattr(scan, "examine", counting)
    first = make(folder)
    assert len(decoded) == 16
    assert make(folder).fingerprint == make(folder, check="header").fingerprint == first.fingerprint
    assert len(decoded) == 16

    changed = next(folder.glob("*.flac"))
    soundfile.write(changed, audio.load(changed).numpy()[:-1600], 16000)
    assert make(folder).fingerprint != first.fingerprint
    assert decoded[16:] == [changed.name]

    cache = next((tmp_path / "cache").iterdir())
    for damage in (b"", b"not gzip", cache.read_bytes()[:-20]):
        cache.write_bytes(damage)
        decoded.clear()
        make(folder)
        assert len(decoded) == 16, "a damaged cache is rebuilt"
    decoded.clear()
    make(folder)
    assert decoded == []


def test_facts_from_headers_do_not_pass_for_a_full_check(folder, make):
    spoil(folder)
    make(folder, check="header", max_bad_share=0.3)
    with pytest.raises(ValueError, match="1 non-finite"):
        make(folder)


def test_an_interrupted_check_keeps_what_was_done(folder, make, monkeypatch):
    done: list[str] = []
    examine = scan.examine

    def interrupted(source, full):
        if len(done) == 10:
            raise KeyboardInterrupt
        done.append(source)
        return examine(source, full)

    monkeypatch.setattr(scan, "cores", lambda: 1)
    monkeypatch.setattr(scan, "examine", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(folder)
    assert len(done) == 10
    again: list[str] = []
    monkeypatch.setattr(scan, "examine", lambda source, full: (again.append(source), examine(source, full))[1])
    make(folder)
    assert len(again) == 6 and not set(again) & set(done)


def test_an_unwritable_cache_is_no_obstacle(folder, make, tmp_path, caplog):
    (tmp_path / "file").write_text("where the cache folder should be")
    assert make(folder, cache_dir=str(tmp_path / "file")).train_utterances
    assert "could not be kept" in caplog.text
