"""What --data may name, and what is said when it names something else."""

import csv
import gzip
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, MonoCut, Recording, RecordingSet

from s3prl_distiller import audio
from s3prl_distiller.data.sources import read_utterances
from s3prl_distiller.data.utterance import _open_tar


def heard(corpus) -> dict[str, torch.Tensor]:
    """Every utterance's samples by id, from both sides of the split."""
    result = {}
    for loader in (corpus.train_loader(0), corpus.valid_loader()):
        for batch in loader:
            assert not batch.dropped
            for name, wave, length in zip(batch.ids, batch.wave, batch.lengths, strict=True):
                result[name] = wave[:length]
                assert not wave[length:].any()
    return result


def jsonl(path: Path, rows: list[dict]) -> Path:
    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def test_a_folder_of_any_depth_and_any_case(folder, make):
    first = next(folder.glob("*.flac"))
    first.rename(first.with_suffix(".FLAC"))
    (folder / ".hidden.wav").write_text("not speech")
    (folder / "notes.txt").write_text("not speech")
    (folder / "song.m4a").write_text("passed over")
    (folder / "deep" / "loop").symlink_to(folder)
    corpus = make(folder, crop_samples=10**7)
    waves = heard(corpus)
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.suffix.lower() in (".flac", ".ogg")}
    assert len(files) == 16 and waves.keys() == files.keys()
    for name, path in files.items():
        assert torch.equal(waves[name], audio.load(path))
    assert corpus.train_utterances + corpus.valid_utterances == 16
    seconds = sum(audio.probe(path).duration for path in files.values())
    assert corpus.train_seconds + corpus.valid_seconds == pytest.approx(seconds, abs=1e-3)
    assert "1 .m4a" in corpus.describe()


def test_any_file_name_will_do(folder, make, tmp_path):
    """Names that are not UTF-8 exist on old disks; so do commas, blanks and stars."""
    bad = os.fsdecode(b"caf\xe9 *, bad.wav")
    shutil.copy(next(folder.glob("*.flac")), folder / os.fsdecode(b"caf\xe9 *, 1.flac"))
    (folder / bad).write_text("not speech")
    corpus = make(folder, max_bad_share=0.1)
    assert os.fsdecode(b"caf\xe9 *, 1.flac") in heard(corpus)
    assert json.loads((tmp_path / "report" / "data_report.jsonl").read_text())["id"] == bad
    assert make(folder, max_bad_share=0.1).fingerprint == corpus.fingerprint


def test_sets_pick_subfolders(folder, make):
    shutil.copytree(folder / "deep", folder / "other")
    names = heard(make(folder, sets=["other", "deep"]))
    assert len(names) == 16 and all(name.startswith(("other/", "deep/")) for name in names)
    with pytest.raises(ValueError, match=r"data.sets names dev, tset, .*there is deep, other"):
        make(folder, sets=["deep", "dev", "tset"])


def test_manifests_in_jsonl_and_csv(folder, make, tmp_path):
    files = sorted(p for p in folder.rglob("*.*") if p.is_file())
    relative = [p.relative_to(tmp_path).as_posix() for p in files]
    whole = {name: audio.load(path) for name, path in zip(relative, files, strict=True)}
    rows = [{"audio": name, "duration": len(wave) / 16000, "lang": "en"} for name, wave in whole.items()]
    for path in (jsonl(tmp_path / "list.jsonl", rows), jsonl(tmp_path / "list.jsonl.gz", rows)):
        waves = heard(make(path, crop_samples=10**7))
        assert waves.keys() == whole.keys() and all(torch.equal(waves[name], whole[name]) for name in whole)
    utterances, _ = read_utterances(str(tmp_path / "list.jsonl"), [])
    assert utterances[0].custom == {"lang": "en"}

    with (tmp_path / "len_for_bucket.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "file_path", "length", "label"])
        writer.writerows([i, str(p), audio.probe(p).frames, ""] for i, p in enumerate(files))
    assert len(heard(make(tmp_path / "len_for_bucket.csv"))) == 16
    with (tmp_path / "ids.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "audio", "speaker"])
        writer.writerows([f"u{i}", name, "s"] for i, name in enumerate(relative))
    assert heard(make(tmp_path / "ids.csv")).keys() == {f"u{i}" for i in range(16)}


def test_manifest_mistakes_are_named(make, tmp_path):
    good = {"audio": "a.wav"}
    cases = {
        "typo.jsonl": (
            [good, {"duration": 1.0, "audoi": "b.wav"}],
            r"typo.jsonl, line 2: no audio key among 'duration', 'audoi'; .*did you mean 'audio' for 'audoi'",
        ),
        "number.jsonl": ([good, {"audio": 3}], r"number.jsonl, line 2: 'audio' is 3"),
        "list.jsonl": ([good, good, ["a.wav"]], r"list.jsonl, line 3: a JSON list"),
        "seconds.jsonl": ([{"audio": "a.wav", "duration": "long"}], r"seconds.jsonl, line 1: 'duration' is 'long'"),
        "empty.jsonl": ([], r"empty.jsonl lists no utterance"),
    }
    for name, (rows, message) in cases.items():
        with pytest.raises(ValueError, match=message):
            make(jsonl(tmp_path / name, rows))
    (tmp_path / "broken.jsonl").write_text('{"audio": "a.wav"}\n\n{"audio": \n')
    with pytest.raises(ValueError, match=r"broken.jsonl, line 3: not a JSON object"):
        make(tmp_path / "broken.jsonl")
    (tmp_path / "typo.csv").write_text("flie_path,length\na.wav,3\n")
    with pytest.raises(ValueError, match=r"typo.csv, line 2: .*did you mean 'file_path' for 'flie_path'"):
        make(tmp_path / "typo.csv")
    (tmp_path / "latin.csv").write_bytes("audio\ncafé.wav\n".encode("latin-1"))
    (tmp_path / "half.jsonl.gz").write_bytes(gzip.compress(json.dumps(good).encode() * 99)[:-9])
    for name in ("latin.csv", "half.jsonl.gz"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read as a manifest"):
            make(tmp_path / name)
    with pytest.raises(ValueError, match=r"2 of 2 utterances cannot be used \(2 missing\).*nowhere/a.wav"):
        make(jsonl(tmp_path / "absent.jsonl", [{"audio": "nowhere/a.wav"}, {"audio": "nowhere/b.wav"}]))


def test_missing_and_empty_places_say_what_is_accepted(make, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("no speech")
    (tmp_path / "one.wav").write_bytes(b"RIFF")
    (tmp_path / "data.zip").write_bytes(b"PK")
    for path, message in {
        tmp_path / "nowhere": r"nowhere does not exist: it may be a folder of audio \(.wav",
        tmp_path / "empty": r"empty holds no audio, but no file at all: accepted are .wav",
        tmp_path / "texts": r"texts holds no audio, but 1 .txt: accepted are .wav",
        tmp_path / "one.wav": r"one.wav is one audio file: give the folder it is in",
        tmp_path / "data.zip": r"data.zip is of a kind that is not read; accepted: a folder",
        None: r"no data is named: give --data",
    }.items():
        with pytest.raises(ValueError, match=message):
            make(path)
    with pytest.raises(ValueError, match=r"data.sets picks subfolders, but .*one.wav is a file"):
        make(tmp_path / "one.wav", sets=["a"])


@pytest.fixture
def cuts(folder) -> CutSet:
    """Ten cuts, each a second or so into its recording."""
    recordings = [Recording.from_file(p, recording_id=p.stem) for p in sorted(folder.rglob("*.*")) if p.is_file()]
    return CutSet(
        [MonoCut(f"cut-{r.id}", 0.5, min(2.0, r.duration - 0.75), 0, recording=r, custom={"k": 1}) for r in recordings]
    )


def expected(cuts: CutSet) -> dict[str, torch.Tensor]:
    """Each cut's samples, by the door's own arithmetic on the whole file read independently."""
    result = {}
    for cut in cuts:
        wave, rate = soundfile.read(cut.recording.sources[0].source, dtype="float32")
        first = round(cut.start * rate)
        result[cut.id] = torch.from_numpy(wave[first : first + round(cut.duration * rate)])
    return result


def test_lhotse_cuts_and_recordings(cuts, make, tmp_path, monkeypatch):
    whole = expected(cuts)
    cuts.to_file(tmp_path / "cuts.jsonl.gz")
    waves = heard(make(tmp_path / "cuts.jsonl.gz", crop_samples=10**7))
    assert waves.keys() == whole.keys() and all(torch.equal(waves[name], whole[name]) for name in whole)
    RecordingSet.from_recordings(cut.recording for cut in cuts).to_file(tmp_path / "recordings.jsonl")
    assert heard(make(tmp_path / "recordings.jsonl")).keys() == {cut.recording.id for cut in cuts}

    late = CutSet([cuts[0], MonoCut("late", 1.0, 900.0, 0, recording=cuts[1].recording)])
    late.to_file(tmp_path / "late.jsonl")
    with pytest.raises(ValueError, match=r"1 outside.*late \(runs from 1.000 s to 901.000 s"):
        make(tmp_path / "late.jsonl")


def test_cuts_that_only_lhotse_can_read(cuts, make, tmp_path):
    """One channel of two, a mixture and a change of speed: none is a stretch of a plain file."""
    wave, _ = soundfile.read(cuts[0].recording.sources[0].source, dtype="float32")
    soundfile.write(tmp_path / "stereo.wav", np.stack([wave, wave[::-1] / 2], 1), 16000, subtype="FLOAT")
    recording = Recording.from_file(tmp_path / "stereo.wav")
    right = MonoCut("right", 0.0, recording.duration, 1, recording=recording)
    both = recording.to_cut()
    odd = CutSet([right, both, cuts[1].mix(cuts[2], snr=5), cuts[3].perturb_speed(1.1)])
    odd.to_file(tmp_path / "odd.jsonl")
    waves = heard(make(tmp_path / "odd.jsonl", crop_samples=10**7))
    assert len(waves) == 4
    np.testing.assert_allclose(waves["right"], wave[::-1] / 2, atol=1e-6)
    np.testing.assert_allclose(waves[both.id], (wave + wave[::-1] / 2) / 2, atol=1e-6)
    for cut in odd:
        assert abs(len(waves[cut.id]) - cut.num_samples) <= 1
    cropped = heard(make(tmp_path / "odd.jsonl", crop_samples=8000))
    assert {len(wave) for wave in cropped.values()} == {8000}


def test_a_shar_folder_is_read_in_place(cuts, make, tmp_path):
    whole = expected(cuts)
    shar = tmp_path / "shar"
    shar.mkdir()
    cuts.to_shar(shar, {"recording": "wav"}, shard_size=6)
    before = sorted(p.name for p in tmp_path.rglob("*"))
    assert len(list(shar.glob("recording.*.tar"))) == 3
    waves = heard(make(shar, crop_samples=10**7))
    assert waves.keys() == whole.keys()
    for name, wave in whole.items():
        np.testing.assert_allclose(waves[name], wave, atol=1 / 32768)
    _open_tar.cache_clear()
    in_order = heard(make(shar, crop_samples=10**7, shuffle="shards", batch_size=2))
    assert in_order.keys() == waves.keys() and all(torch.equal(in_order[name], waves[name]) for name in waves)
    assert _open_tar.cache_info().misses == 3, "each is opened once, by the check"
    after = sorted(p.name for p in tmp_path.rglob("*") if p.parent.name not in ("cache", "report"))
    assert [name for name in after if name not in ("cache", "report")] == before, "nothing is unpacked"

    (shar / "recording.000001.tar").rename(tmp_path / "lost.tar")
    with pytest.raises(ValueError, match="000001"):
        make(shar)
