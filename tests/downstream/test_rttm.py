"""RTTM files: what is read, what is written, and what is refused by file and line."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from s3prl_distiller.downstream.corpora.rttm import read_rttm, turns_of, write_rttm
from s3prl_distiller.downstream.metrics.turns import Turn, merged

from s3prl_distiller.data.utterance import Utterance


@pytest.fixture
def write(tmp_path):
    def write(*lines: str, name: str = "a.rttm") -> Path:
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return tmp_path / name

    return write


def line(start, duration, speaker="ann", recording="rec") -> str:
    return f"SPEAKER {recording} 1 {start} {duration} <NA> <NA> {speaker} <NA> <NA>"


def test_both_lengths_of_line_comments_and_other_kinds(write):
    path = write(
        ";; made by hand",
        "SPKR-INFO rec 1 <NA> <NA> <NA> unknown ann <NA> <NA>",
        line(2.5, 1.25),
        "",
        "SPEAKER\trec\t1\t0.5\t1.0\t<NA>\t<NA>\tbob\t<NA>",  # as the preparation of Libri2Mix writes them
        line(1, 1, recording="other"),
    )
    assert read_rttm(path) == {
        "rec": [Turn(0.5, 1.5, "bob"), Turn(2.5, 3.75, "ann")],
        "other": [Turn(1.0, 2.0, "ann")],
    }


names = st.text("abcdefgh0123-é", min_size=1, max_size=5)
times = st.integers(0, 60_000)


@given(st.dictionaries(names, st.lists(st.tuples(times, times, names), min_size=1, max_size=8), max_size=3))
@settings(max_examples=40, deadline=None)
def test_what_is_written_is_read(tmp_path_factory, recordings):
    turns = {
        recording: merged(Turn(min(a, b) / 1000, (max(a, b) + 1) / 1000, who) for a, b, who in own)
        for recording, own in recordings.items()
    }
    path = tmp_path_factory.mktemp("rttm") / "a.rttm"
    write_rttm(path, turns)
    read = read_rttm(path)
    assert read.keys() == turns.keys()
    for recording, own in turns.items():
        assert [turn.speaker for turn in read[recording]] == [turn.speaker for turn in own]
        for one, other in zip(read[recording], own, strict=True):
            assert one[:2] == pytest.approx(other[:2], abs=1e-9)


def test_names_with_spaces_stay_one_word_and_too_short_turns_go(tmp_path):
    write_rttm(tmp_path / "a.rttm", {"my file": [Turn(0, 1, "Ann B"), Turn(2, 2.0001, "Ann B")]})
    assert read_rttm(tmp_path / "a.rttm") == {"my_file": [Turn(0, 1, "Ann_B")]}


def test_pyannote_reads_what_is_written(tmp_path):
    util = pytest.importorskip("pyannote.database.util")
    write_rttm(tmp_path / "a.rttm", {"rec": [Turn(0.02, 1.5, "1"), Turn(1.0, 2.0, "2")]})
    annotation = util.load_rttm(tmp_path / "a.rttm")["rec"]
    assert [(round(s.start, 6), round(s.end, 6), label) for s, _, label in annotation.itertracks(yield_label=True)] == [
        (0.02, 1.5, "1"),
        (1.0, 2.0, "2"),
    ]


@pytest.mark.parametrize(
    "bad, what",
    [
        ("SPEAKER rec 1 0.5 1.0 ann", "not a line of RTTM"),
        ("SPEKER rec 1 0.5 1.0 <NA> <NA> ann <NA> <NA>", "not a line of RTTM"),
        ("0.5 1.0 ann", "not a line of RTTM"),
        (line("start", 1), "must be seconds"),
        (line("0,5", 1), "must be seconds"),
        (line(-0.5, 1), "not negative"),
        (line(0.5, -1), "not negative"),
        (line("nan", 1), "finite"),
        (line(1, "inf"), "finite"),
        (line(9, 1.2), "10.000 s long"),
        (line(30, 1), "10.000 s long"),
    ],
)
def test_a_bad_line_is_named(write, bad, what):
    path = write(line(0, 1), line(2, 1), bad)
    with pytest.raises(ValueError, match="line 3") as error:
        read_rttm(path, {"rec": 10.0})
    assert str(path) in str(error.value) and what in str(error.value)


def test_a_rounded_end_is_cut_to_the_recording(write):
    assert read_rttm(write(line(9, 1.04)), {"rec": 10.0}) == {"rec": [Turn(9.0, 10.0, "ann")]}
    assert read_rttm(write(line(30, 1)), {"other": 10.0}) == {"rec": [Turn(30.0, 31.0, "ann")]}  # not asked about


def test_overlapping_turns_of_one_speaker_are_one_and_said(write):
    remarks: list[str] = []
    path = write(line(0, 2), line(1, 1, "bob"), line(1.5, 2), line(5, 0), line(6, 1))
    turns = read_rttm(path, remarks=remarks)
    assert turns == {"rec": [Turn(0, 3.5, "ann"), Turn(1, 2, "bob"), Turn(6, 7, "ann")]}
    assert len(remarks) == 1 and f"{path}: 2 turns" in remarks[0] and "line 3" in remarks[0]


def test_not_text(tmp_path):
    (tmp_path / "a.rttm").write_bytes(b"SPEAKER \xff\xfe\x00")
    with pytest.raises(ValueError, match="UTF-8"):
        read_rttm(tmp_path / "a.rttm")


# Of utterances


def utterance(path: Path, name="rec", audio="/corpus/rec.wav", duration: float | None = 10.0) -> Utterance:
    return Utterance(name, name, audio, duration=duration, custom={"rttm": str(path)})


def test_one_file_for_several_and_names_of_files(write):
    path = write(line(0, 1), line(2, 1, recording="b"))
    found = turns_of([utterance(path), utterance(path, "sub/b.wav", "/corpus/sub/b.wav")], [])
    assert found == {"rec": [Turn(0, 1, "ann")], "sub/b.wav": [Turn(2, 3, "ann")]}


def test_an_empty_file_says_that_no_one_speaks(write):
    assert turns_of([utterance(write(""))], []) == {"rec": []}


def test_a_file_of_another_recording(write):
    path = write(line(0, 1, recording="b"))
    with pytest.raises(ValueError, match="has no turn of rec, only of b") as error:
        turns_of([utterance(path)], [])
    assert str(path) in str(error.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match="no such RTTM file, which is to say who speaks in rec") as error:
        turns_of([utterance(tmp_path / "gone.rttm")], [])
    assert "gone.rttm" in str(error.value)


def test_out_of_range_only_where_the_length_is_known(write):
    path = write(line(9, 3))
    assert turns_of([utterance(path, duration=None)], []) == {"rec": [Turn(9, 12, "ann")]}
    with pytest.raises(ValueError, match="line 1"):
        turns_of([utterance(path)], [])
