"""Speaker identification: VoxCeleb1 in its official layout, and whom manifests call the speaker."""

import json
import logging
import time

import pytest
from s3prl_distiller.downstream import sid

from s3prl_distiller.hub import load_hub

CLIPS = [
    (speaker, f"video{video}", f"{clip:05d}.wav")
    for speaker in ("id10001", "id10002", "id10270")
    for video in (1, 2)
    for clip in (1, 2, 3)
]


def make(**config):
    return sid.Task(sid.SpeakerConfig(**config))


@pytest.fixture
def corpus(tmp_path):
    """Two speakers in dev and one in test, as the archives have them. The audio is not looked at."""
    root = tmp_path / "VoxCeleb1"
    lines = []
    for number, (speaker, video, clip) in enumerate(CLIPS):
        folder = root / ("test" if speaker == "id10270" else "dev") / "wav" / speaker / video
        folder.mkdir(parents=True, exist_ok=True)
        (folder / clip).touch()
        lines.append(f"{(1, 1, 1, 2, 3, 1)[number % 6]} {speaker}/{video}/{clip}\n")
    (root / "iden_split.txt").write_text("".join(lines))
    return root


def test_equals_s3prl(corpus):
    load_hub()
    from s3prl.dataio.corpus.voxceleb1sid import VoxCeleb1SID

    theirs = VoxCeleb1SID(str(corpus), n_jobs=1, cache_root=str(corpus))
    found = make().read(corpus)
    for mine, yours in zip(found.values(), theirs.data_split_ids, strict=True):
        assert [one.id.replace("/", "-") for one in mine] == yours
        assert [one.audio for one in mine] == [str(theirs.all_data[name]["wav_path"]) for name in yours]
    assert [len(utterances) for utterances in found.values()] == [12, 3, 3]
    assert found["test"][2].custom["label"] == "id10270"


def test_the_list_may_lie_elsewhere(corpus, tmp_path):
    expected = make().read(corpus)
    elsewhere = tmp_path / "lists" / "split.txt"
    elsewhere.parent.mkdir()
    (corpus / "iden_split.txt").rename(elsewhere)
    with pytest.raises(ValueError, match=r"there is no .*VoxCeleb1/iden_split.txt: get meta/iden_split.txt from http"):
        make().read(corpus)
    assert make(split_file=str(elsewhere)).read(corpus) == expected
    with pytest.raises(ValueError, match=r"there is no .*nowhere.txt"):
        make(split_file=str(tmp_path / "nowhere.txt")).read(corpus)


def test_what_is_not_whole_is_named(corpus):
    (corpus / "test").rename(corpus.parent / "away")
    with pytest.raises(ValueError, match=r"lacks 1 of the 3 speakers in .*iden_split.txt, such as id10270"):
        make().read(corpus)
    (corpus / "iden_split.txt").write_text("1 id10001/video1/00001.wav\n4 id10001/video1/00002.wav\n")
    with pytest.raises(ValueError, match=r"iden_split.txt, line 2: '4 id10001"):
        make().read(corpus)


def test_listing_the_whole_corpus_takes_seconds(tmp_path):
    """As many lines and speakers as VoxCeleb1 has; nothing is opened but the list."""
    root = tmp_path / "VoxCeleb1"
    speakers = [f"id{10001 + number}" for number in range(1251)]
    for speaker in speakers:
        (root / "dev" / "wav" / speaker).mkdir(parents=True)
    lines = [f"{1 + number % 3} {speakers[number % 1251]}/video/{number:05d}.wav" for number in range(153_516)]
    (root / "iden_split.txt").write_text("\n".join(lines))
    begin = time.monotonic()
    found = make().read(root)
    assert sum(map(len, found.values())) == 153_516
    assert time.monotonic() - begin < 10


def manifests(folder, rows):
    for split in ("train", "dev", "test"):
        lines = [json.dumps({"id": f"{split}{i}", "audio": f"{i}.wav"} | row) for i, row in enumerate(rows)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))


def test_the_speaker_goes_before_the_label(minisuperb, tmp_path):
    task = make()
    found = task.read(minisuperb / "digits_mini")  # whose label is the digit
    task.prepare(found, 320)
    assert task.classes["label"] == ["george", "jackson", "lucas", "nicolas", "theo", "yweweler"]
    assert make().read(minisuperb / "librispeech_mini") == make().read(minisuperb)
    manifests(tmp_path, [{"label": "a"}, {"label": "b"}])
    assert [one.custom["label"] for one in make().read(tmp_path)["train"]] == ["a", "b"]
    manifests(tmp_path, [{"label": "a", "speaker": "x"}, {"label": "b"}])
    with pytest.raises(ValueError, match="train1 has no 'speaker'"):
        make().read(tmp_path)
    with pytest.raises(ValueError, match="alexa_0 has no 'speaker'"):
        make().read(minisuperb / "keywords_mini")


def test_a_speaker_with_one_utterance_is_warned_of(tmp_path, caplog):
    manifests(tmp_path, [{"speaker": "x"}, {"speaker": "x"}, {"speaker": "y"}])
    task = make()
    found = task.read(tmp_path)
    found["test"] = found["test"][:2]
    with caplog.at_level(logging.WARNING):
        task.prepare(found, 320)
    assert "1 of 2 speakers have one utterance in train, such as y" in caplog.text
    found["train"] = found["train"][:2]
    with pytest.raises(ValueError, match="same label"):
        make().prepare(found, 320)
