"""Phones: s3prl's classes, pronunciations from lexicon files or g2p, the manifest's own phones first."""

import json
import shutil
import sys
import types
from pathlib import Path

import pytest
from s3prl_distiller.downstream import pr
from s3prl_distiller.downstream.core.symbols import ARPABET
from s3prl_distiller.downstream.corpora.lexicon import read_lexicon

from s3prl_distiller.data.utterance import Utterance
from s3prl_distiller.hub import load_hub

load_hub()

from s3prl.downstream.ctc.text import WordTextEncoder  # noqa: E402

LEXICON = "A  AH0\nCAT\tK AE1 T\nCAT\tK AH0 T\nSAT S AE1 T\nTHE  DH AH0\nTHE(2)  DH IY0\n"
NAMES = {
    "train-clean-100": "1034-121119-0000",
    "dev-clean": "103-1240-0000",
    "test-clean": "1688-142285-0000",
}


def utterance(name: str, phones, duration: float = 3.0) -> Utterance:
    return Utterance(name, name, f"/data/{name}.wav", duration=duration, custom={"phones": phones})


@pytest.fixture
def lexicon(tmp_path: Path) -> Path:
    (path := tmp_path / "words.txt").write_text(LEXICON)
    return path


@pytest.fixture
def librispeech(minisuperb: Path, tmp_path: Path) -> Path:
    """A tree in the official layout, of real files with short texts."""
    for folder, name in NAMES.items():
        speaker, chapter, _ = name.split("-")
        place = tmp_path / "LibriSpeech" / folder / speaker / chapter
        place.mkdir(parents=True)
        shutil.copy(minisuperb / "librispeech_mini" / "audio" / f"{name}.flac", place)
        (place / f"{speaker}-{chapter}.trans.txt").write_text(f"{name} THE CAT SAT\n")
    return tmp_path / "LibriSpeech"


def prepare(task: pr.Task, root: Path) -> pr.Task:
    splits = task.read(root)
    for utterances in splits.values():
        for u in utterances:
            u.duration = 5.0
    task.prepare(splits, 320)
    return task


def test_lexicon_keeps_first_pronunciation_and_stress(librispeech, lexicon):
    task = prepare(pr.Task(pr.PrConfig(lexicon=str(lexicon))), librispeech)
    (u,) = task.splits["train"]
    assert task.tokens(u) == ["DH", "AH0", "K", "AE1", "T", "S", "AE1", "T"]
    assert task.notes == ["pronunciations from words.txt"]
    assert len(task.symbols) == 74
    theirs = WordTextEncoder(list(ARPABET))
    assert task.target(u).tolist() == theirs.encode(" ".join(task.tokens(u)))
    assert (task.symbols.blank, task.symbols.end, len(task.symbols)) == (
        theirs.pad_idx,
        theirs.eos_idx,
        theirs.vocab_size,
    )
    assert sum(p.numel() for p in task.build_head(768, 320).parameters()) == 769 * 256 + 257 * 74


def test_arpabet_is_as_s3prl_orders_it():
    """Against its phoneme.txt, which pip's s3prl lacks: ends and middle of the list, and that it is sorted."""
    assert ARPABET[:5] == ("SIL", "SPN", "AA0", "AA1", "AA2") and ARPABET[-4:] == ("W", "Y", "Z", "ZH")
    assert len(ARPABET) == 71 and list(ARPABET[2:]) == sorted(set(ARPABET[2:])) and ARPABET[20] == "B"


def test_several_lexicon_files_first_wins(tmp_path):
    (one := tmp_path / "one").write_text("A EY1\n")
    (two := tmp_path / "two").write_text("A AH0\nB B IY1\n")
    assert read_lexicon([one, two]) == {"A": ["EY1"], "B": ["B", "IY1"]}


def test_word_without_pronunciation_is_named(librispeech, lexicon, monkeypatch):
    monkeypatch.setitem(sys.modules, "g2p_en", None)
    lexicon.write_text("THE DH AH0\n")
    with pytest.raises(ValueError, match=r"1034-121119-0000 .*'CAT' is not in words.txt, as 2 words in all"):
        pr.Task(pr.PrConfig(lexicon=str(lexicon))).read(librispeech)


def test_neither_lexicon_nor_g2p(librispeech, monkeypatch):
    monkeypatch.setitem(sys.modules, "g2p_en", None)
    with pytest.raises(ValueError, match=r"no lexicon, and g2p-en is not installed: .*; or give a lexicon, task.lex"):
        pr.Task(pr.PrConfig()).read(librispeech)


def fake_g2p(error: Exception | None = None) -> types.ModuleType:
    class G2p:
        """Says what g2p-en would: phones, and the punctuation and blanks between words."""

        def __init__(self):
            if error:
                raise error

        def __call__(self, word: str) -> list[str]:
            return {"THE": ["DH", "AH0"], "CAT": ["K", "AE1", "T", " "], "SAT": ["S", "AE1", "T"]}.get(word, [" ", "!"])

    module = types.ModuleType("g2p_en")
    module.G2p = G2p
    return module


def test_g2p_where_there_is_no_lexicon_is_said(librispeech, monkeypatch):
    monkeypatch.setitem(sys.modules, "g2p_en", fake_g2p())
    task = prepare(pr.Task(pr.PrConfig()), librispeech)
    assert task.tokens(task.splits["dev"][0]) == ["DH", "AH0", "K", "AE1", "T", "S", "AE1", "T"]
    assert "g2p-en" in task.notes[0]


def test_g2p_for_words_that_the_lexicon_lacks_is_said(librispeech, lexicon, monkeypatch):
    monkeypatch.setitem(sys.modules, "g2p_en", fake_g2p())
    lexicon.write_text("THE DH IY1\n")
    task = prepare(pr.Task(pr.PrConfig(lexicon=[str(lexicon)])), librispeech)
    assert task.tokens(task.splits["dev"][0])[:3] == ["DH", "IY1", "K"]
    assert task.notes == ["pronunciations from words.txt, 2 words by g2p-en"]


def test_g2p_without_its_data_says_what_to_do(librispeech, monkeypatch):
    monkeypatch.setitem(sys.modules, "g2p_en", fake_g2p(LookupError("Resource cmudict not found ...")))
    with pytest.raises(ValueError, match=r"nltk.downloader cmudict"):
        pr.Task(pr.PrConfig()).read(librispeech)


def test_word_that_g2p_does_not_know_is_named(librispeech, monkeypatch):
    monkeypatch.setitem(sys.modules, "g2p_en", fake_g2p())
    (path,) = (librispeech / "dev-clean").rglob("*.trans.txt")
    path.write_text(f"{NAMES['dev-clean']} THE 1984\n")
    with pytest.raises(ValueError, match=r"103-1240-0000 .*no pronunciation of '1984'"):
        pr.Task(pr.PrConfig()).read(librispeech)


def manifests(folder: Path, audio: Path, lines: list[dict]) -> Path:
    for split in ("train", "dev", "test"):
        text = "".join(
            json.dumps({"id": f"{split}{i}", "audio": str(audio), **line}) + "\n" for i, line in enumerate(lines)
        )
        (folder / f"{split}.jsonl").write_text(text)
    return folder


def test_phones_of_the_manifest_win(speech_files, lexicon, tmp_path):
    root = manifests(tmp_path, speech_files[0], [{"text": "THE CAT", "phones": "d ə k æ t"}])
    task = prepare(pr.Task(pr.PrConfig(lexicon=str(lexicon))), root)
    assert task.notes == ["phones from the manifest"]
    assert task.symbols.own == tuple(sorted("dəkæt"))


def test_texts_of_a_manifest_are_pronounced(speech_files, lexicon, tmp_path):
    root = manifests(tmp_path, speech_files[0], [{"text": "the cat"}])
    assert prepare(pr.Task(pr.PrConfig(lexicon=str(lexicon))), root).notes == ["pronunciations from words.txt"]


def test_phones_for_some_lines_only_are_refused(speech_files, lexicon, tmp_path):
    root = manifests(tmp_path, speech_files[0], [{"text": "THE", "phones": "D AH"}, {"text": "CAT"}])
    with pytest.raises(ValueError, match=r"train1 .*write them for all, or for none"):
        pr.Task(pr.PrConfig(lexicon=str(lexicon))).read(root)


def test_phones_of_minisuperb_have_no_stress(minisuperb):
    task = prepare(pr.Task(pr.PrConfig()), minisuperb)
    assert len(task.symbols.own) == 39 and not any(phone[-1].isdigit() for phone in task.symbols.own)


def test_phone_only_in_test_counts_as_an_error():
    task = pr.Task(pr.PrConfig())
    test = utterance("b", ["A", "C"])
    task.prepare({"train": [utterance("a", "A B")], "test": [test]}, 320)
    assert "test has 1 phones that train does not have" in task.notes[0]
    assert task.compare(task.tokens(test), ["A", "B"])["phone_errors"] == 1


@pytest.mark.parametrize("value", ["/no/such/file", ["/no/such/file"]])
def test_missing_lexicon_file_is_named(value):
    with pytest.raises(ValueError, match="task.lexicon: there is no file /no/such/file"):
        pr.Task(pr.PrConfig(lexicon=value))


def test_odd_lexicon_is_named(tmp_path):
    with pytest.raises(ValueError, match="task.lexicon is 5"):
        pr.Task(pr.PrConfig(lexicon=5))
    (path := tmp_path / "words.txt").write_text("A AH0\nB\n")
    with pytest.raises(ValueError, match=r"words.txt, line 2: 'B' has no phones"):
        read_lexicon([path])
