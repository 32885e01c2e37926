"""ASR: s3prl's classes and targets, LibriSpeech's layout, alphabets."""

import shutil
from pathlib import Path

import pytest
import torch
from s3prl_distiller.downstream import asr
from s3prl_distiller.downstream.core.symbols import UNKNOWN
from s3prl_distiller.downstream.heads.specaugment import SpecAugmentConfig

from s3prl_distiller.data.utterance import Utterance
from s3prl_distiller.hub import load_hub

load_hub()

from s3prl.downstream.asr.dictionary import Dictionary  # noqa: E402

# The characters of train-clean-100 by frequency, as s3prl's char.dict lists them; pip's s3prl lacks the file.
CHAR_DICT = list("|ETAONIHSRDLUMCWFGYPBVK'XJQZ")


def utterance(name: str, text: str | None, duration: float = 3.0) -> Utterance:
    return Utterance(name, name, f"/data/{name}.wav", duration=duration, custom={"text": text})


def task(*texts: str, **values) -> asr.Task:
    made = asr.Task(asr.AsrConfig(project_dim=16, hidden=16, **values))
    made.prepare({"train": [utterance(f"t{i}", text) for i, text in enumerate(texts)]}, 320)
    return made


@pytest.mark.parametrize("text", ["IT'S A QUIZ", "hello  there", "ZOO"])
def test_classes_and_targets_are_those_of_s3prl(text):
    dictionary = Dictionary()
    for character in CHAR_DICT:
        dictionary.add_symbol(character)
    made = task("A")
    assert [name.replace(" ", "|") for name in made.symbols.names] == dictionary.symbols
    assert (made.symbols.blank, made.symbols.end) == (dictionary.bos(), dictionary.eos())
    line = [*"|".join(text.upper().split()), "|"]
    expected = [dictionary.index(token) for token in line] + [dictionary.eos()]
    assert made.target(utterance("u", text)).tolist() == expected


def test_published_head_has_as_many_parameters_as_s3prl():
    """(768 + 1) * 1024, two bidirectional LSTMs of 1024 (weights, recurrent weights, two biases), 2049 * 32."""
    made = asr.Task(asr.AsrConfig())
    made.prepare({"train": [utterance("u", "A")]}, 320)
    lstm = 2 * 4 * 1024
    expected = 769 * 1024 + lstm * (1024 + 1024 + 2) + lstm * (2048 + 1024 + 2) + 2049 * 32
    assert sum(p.numel() for p in made.build_head(768, 320).parameters()) == expected


@pytest.fixture
def librispeech(minisuperb: Path, tmp_path: Path) -> Path:
    """A tree in the official layout of real files: two of train, one of dev and of test."""
    names = {"train-clean-100": ("1034-121119-0000", "1040-133433-0000")}
    names |= {"dev-clean": ("103-1240-0000",), "test-clean": ("1688-142285-0000",)}
    for folder, ids in names.items():
        for name in ids:
            speaker, chapter, _ = name.split("-")
            place = tmp_path / "LibriSpeech" / folder / speaker / chapter
            place.mkdir(parents=True)
            shutil.copy(minisuperb / "librispeech_mini" / "audio" / f"{name}.flac", place)
            (place / f"{speaker}-{chapter}.trans.txt").write_text(
                f"{name} TEXT OF {'IT' if folder[0] == 't' else 'X'}\n"
            )
    return tmp_path / "LibriSpeech"


def test_official_layout(librispeech):
    for root in (librispeech, librispeech.parent):
        splits = asr.Task(asr.AsrConfig()).read(root)
        assert {name: len(utterances) for name, utterances in splits.items()} == {"train": 2, "dev": 1, "test": 1}
    first = splits["train"][0]
    assert (first.id, first.group, first.custom) == (
        "1034-121119-0000",
        "121119",
        {"text": "TEXT OF IT", "speaker": "1034"},
    )
    assert all(Path(str(u.audio)).is_file() for utterances in splits.values() for u in utterances)


def test_missing_set_is_named(librispeech):
    shutil.rmtree(librispeech / "dev-clean")
    with pytest.raises(ValueError, match=r"dev-clean(?s:.*)openslr.org/12") as error:
        asr.Task(asr.AsrConfig()).read(librispeech)
    assert "test-clean of" not in str(error.value)


def test_file_without_transcript_is_named(librispeech):
    (transcripts,) = (librispeech / "dev-clean").rglob("*.trans.txt")
    transcripts.write_text("")
    with pytest.raises(ValueError, match=r"103-1240.trans.txt has no line for 103-1240-0000.flac"):
        asr.Task(asr.AsrConfig()).read(librispeech)


def test_character_outside_of_the_alphabet_in_train_is_named():
    with pytest.raises(ValueError, match=r"t1 \(/data/t1.wav\): character 'É' .*task.alphabet=train"):
        task("A", "CAFÉ")


def test_alphabet_of_another_language_is_that_of_train():
    made = task("olá você", "não sei", alphabet="train")
    assert made.symbols.own == (" ", *sorted(set("olávocênãosei")))
    # One written with a combining accent is the same text.
    target = made.target(utterance("u", "não")).tolist()
    assert made.symbols.decode(target) == ["n", "ã", "o", " "]


def test_character_only_in_test_counts_as_an_error():
    made = asr.Task(asr.AsrConfig(alphabet="train"))
    train, test = utterance("a", "abc"), utterance("b", "abç")
    made.prepare({"train": [train], "test": [test]}, 320)
    assert len(made.splits["test"]) == 1 and "'ç' 1 times" in made.notes[0]
    for said in ("abc ", f"ab{UNKNOWN} "):
        row = made.compare(made.tokens(test), list(said))
        assert (row["reference"], row["char_errors"], row["word_errors"]) == ("abç", 1, 1)
    assert made.symbols.decode(made.target(test).tolist()) == ["a", "b", UNKNOWN, " "]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"alphabet": "klingon"}, "task.alphabet is 'klingon'"),
        ({"lm": "/no/such.arpa"}, "task.lm: there is no file /no/such.arpa"),
        ({"beam": 0}, "task.beam"),
    ],
)
def test_impossible_settings_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        asr.Task(asr.AsrConfig(**values))


def test_spec_augment_is_drawn_anew_for_each_batch():
    made = task("A CAT")
    features, lengths = torch.randn(1, 120, 240), torch.tensor([120])
    assert len({made.augment(features, lengths).sum().item() for _ in range(3)}) == 3
    torch.manual_seed(3)
    one = made.augment(features, lengths)
    torch.manual_seed(3)
    assert torch.equal(one, made.augment(features, lengths))
    assert one.shape == features.shape and not torch.equal(one, features)


def test_spec_augment_can_be_switched_off():
    made = task("A CAT", specaug=SpecAugmentConfig.none())
    features = torch.randn(1, 120, 240)
    assert made.augment(features, torch.tensor([120])) is features
