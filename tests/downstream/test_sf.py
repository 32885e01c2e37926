"""Slot filling: s3prl's classes and targets, Audio SNIPS' layout, malformed tags."""

from pathlib import Path

import pytest
import soundfile
from s3prl_distiller.downstream import sf
from s3prl_distiller.downstream.corpora.snips import SPLITS, tag

from s3prl_distiller.data.utterance import Utterance
from s3prl_distiller.hub import load_hub

load_hub()

from s3prl.downstream.ctc.text import CharacterTextSlotEncoder  # noqa: E402

SLOTS = ["artist", "city", "timeRange"]
VOCABULARY = [" ", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'"]
LINES = [
    ("PLAY NINA SIMONE", "O artist artist"),
    ("WHAT'S ON IN LISBON TOMORROW MORNING", "O O O city timeRange timeRange"),
    ("LISBON", "city"),
    ("LISBON PORTO", "city artist"),
    ("ROCK & ROLL PLEASE", "artist artist artist O"),
    ("HELLO , LISBON", "O O city"),
]


def utterance(name: str, text: str) -> Utterance:
    return Utterance(name, name, f"/data/{name}.wav", duration=9.0, custom={"text_tagged": text})


def snips_task(*texts: str, **values) -> sf.Task:
    task = sf.Task(sf.SfConfig(**values))
    task._types = SLOTS
    task.prepare({"train": [utterance(f"t{i}", text) for i, text in enumerate(texts)]}, 320)
    return task


@pytest.mark.parametrize(("words", "types"), LINES)
def test_classes_and_targets_are_those_of_s3prl(words, types):
    theirs = CharacterTextSlotEncoder(VOCABULARY, [f"{side}-{slot}" for slot in SLOTS for side in "BE"])
    expected = theirs.encode(f"BOS {words} EOS\tO {types} PlayMusic")
    text = tag(words.split(), types.split())
    task = snips_task(text)
    assert len(task.symbols) == theirs.vocab_size
    target = task.target(utterance("u", text)).tolist()
    assert target == expected
    assert task.compare(None, task.symbols.decode(target))["prediction"] == " ".join(theirs.decode(target).split())


def test_slots_that_end_in_punctuation_have_an_end():
    """s3prl drops the end there, and the utterance's with it."""
    assert tag(["IN", "LISBON", "?"], ["O", "city", "city"]) == "IN B-city LISBON E-city"
    assert tag(["LISBON", ",", "PORTO"], ["city", "O", "city"]) == "B-city LISBON E-city B-city PORTO E-city"
    assert tag(["-", "LISBON"], ["city", "O"]) == "LISBON"


@pytest.fixture
def snips(speech_files: list[Path], tmp_path: Path) -> Path:
    """A tree in s3prl's layout: each speaker says one sentence in each split, real audio beside a half of the lines."""
    root = tmp_path / "SNIPS"
    wave, rate = soundfile.read(speech_files[0], frames=32_000)
    speakers = [speaker for _, names in SPLITS.values() for speaker in names]
    lines = []
    for name, _ in SPLITS.values():
        (root / name).mkdir(parents=True)
        for speaker in speakers:
            key = f"{speaker}-snips-{name}-0"
            lines.append(f"{key} BOS PLAY NINA SIMONE EOS\tO O artist artist PlayMusic")
            soundfile.write(root / name / f"{key}.wav", wave, rate)
    (root / "all.iob.snips.txt").write_text("\n".join(lines) + "\n")
    (root / "slots.txt").write_text("O\ntimeRange\nartist\ncity\n")
    return root


def test_official_layout(snips):
    task = sf.Task(sf.SfConfig())
    for root in (snips, snips.parent):
        splits = task.read(root)
        assert {split: len(utterances) for split, utterances in splits.items()} == {"train": 8, "dev": 4, "test": 4}
    for split, (_, speakers) in SPLITS.items():
        assert [(u.custom or {})["speaker"] for u in splits[split]] == speakers
        assert all(Path(str(u.audio)).is_file() for u in splits[split])
        for u in splits[split]:
            u.duration = 9.0
    task.prepare(splits, 320)
    assert task.symbols.own[-6:-2] == ("B-timeRange", "E-timeRange", "B-artist", "E-artist")
    assert len(task.symbols) == 3 + 28 + 6
    assert (splits["dev"][0].custom or {})["text_tagged"] == "PLAY B-artist NINA SIMONE E-artist"


def test_audio_that_is_not_there_keeps_its_line(snips):
    """So that it is counted when audio is checked."""
    (snips / "test" / "Brian-snips-test-0.wav").unlink()
    splits = sf.Task(sf.SfConfig()).read(snips)
    assert splits["test"][0].audio == str(snips / "test" / "Brian-snips-test-0.wav")


@pytest.mark.parametrize("name", ["slots.txt", "valid"])
def test_missing_part_is_named(snips, name):
    (snips / name).rename(snips / "elsewhere")
    with pytest.raises(ValueError, match=rf"lacks {name} of Audio SNIPS"):
        sf.Task(sf.SfConfig()).read(snips)


@pytest.mark.parametrize(("rest", "words"), [("BOS PLAY EOS\tO artist", 1), ("BOS PLAY EOS O O PlayMusic", 4)])
def test_line_with_other_numbers_of_words_and_labels_is_named(snips, rest, words):
    (snips / "all.iob.snips.txt").write_text(f"Ivy-snips-train-0 {rest}\n")
    with pytest.raises(ValueError, match=f"all.iob.snips.txt, line 1: {words} words and 0"):
        sf.Task(sf.SfConfig()).read(snips)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("PLAY B-artist NINA", "nothing ends B-artist"),
        ("PLAY NINA E-artist", "E-artist ends what nothing begins"),
        ("B-artist NINA E-city", "E-city ends what B-artist begins"),
        ("B-artist NINA B-city X E-city E-artist", "B-city stands within B-artist"),
        ("PLAY B-artist E-artist", "nothing between B-artist and E-artist"),
        ("PLAY B-artist NIÑA E-artist", "'Ñ' .*task.alphabet=train"),
    ],
)
def test_malformed_text_is_named(text, message):
    with pytest.raises(ValueError, match=rf"t0 \(/data/t0.wav\).*{message}"):
        snips_task(text)


def test_tags_keep_their_case_and_text_does_not():
    task = sf.Task(sf.SfConfig())
    task.prepare({"train": [utterance("a", "in B-homeTown lisbon E-homeTown")]}, 320)
    assert task.text(utterance("b", "B-homeTown porto E-homeTown")) == "B-homeTown PORTO E-homeTown"
    assert task.symbols.own[-2:] == ("B-homeTown", "E-homeTown")


def test_alphabet_of_another_language():
    task = sf.Task(sf.SfConfig(alphabet="train"))
    task.prepare({"train": [utterance("a", "para B-cidade são paulo E-cidade")]}, 320)
    assert task.symbols.own == (" ", *sorted(set("parasãopaulo")), "B-cidade", "E-cidade")


def test_training_text_without_any_slot_is_refused():
    with pytest.raises(ValueError, match="no 'text_tagged' of train has a slot"):
        sf.Task(sf.SfConfig()).prepare({"train": [utterance("a", "PLAY")]}, 320)


def test_slot_only_in_test():
    splits = {
        "train": [utterance("a", "B-city X E-city")],
        "test": [utterance("b", "B-date X E-date"), utterance("c", "X")],
    }
    with pytest.raises(ValueError, match=r"b \(/data/b.wav\) of test has the slot 'date'.*task.unseen_labels=skip"):
        sf.Task(sf.SfConfig()).prepare(splits, 320)
    task = sf.Task(sf.SfConfig(unseen_labels="skip"))
    task.prepare(splits, 320)
    assert [u.id for u in task.splits["test"]] == ["c"] and task.left_out["test"] == {"slot unseen in train": 1}
    with pytest.raises(ValueError, match="task.unseen_labels is 'ignore'"):
        sf.Task(sf.SfConfig(unseen_labels="ignore"))


def test_figures_of_a_prediction():
    task = snips_task("A")
    reference = task.tokens(utterance("u", "IN B-city LISBON E-city"))
    said = [*"IN ", "B-city", *"LISBOA", "E-city", " ", "B-artist", *"X", "E-artist"]
    row = task.compare(reference, said)
    assert row["prediction"] == "IN B-city LISBOA E-city B-artist X E-artist"
    assert row["reference_slots"] == [["city", "LISBON"]]
    figures = task.score([row])
    assert figures["slot_f1"] == pytest.approx(200 / 3) and figures["slot_cer"] == pytest.approx(100 / 6)
    assert figures["wer"] == pytest.approx(100) and figures["cer"] == pytest.approx(100 * 3 / 9)
    assert "slots: city = LISBOA; artist = X" in task.say({**row, "confidence": 0.5})
