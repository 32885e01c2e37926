"""The diarization error rate against pyannote's, against counting on a grid, and where it has to be known."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from s3prl_distiller.downstream.metrics.der import compare, diarization_error
from s3prl_distiller.downstream.metrics.turns import Turn, from_frames, merged, smooth, to_frames, within


def random_turns(rng: np.random.Generator, names: str, most: int = 8, end: int = 20_000) -> list[Turn]:
    """Turns in whole milliseconds; those of one speaker do not overlap, those of several do."""
    turns = []
    for name in names:
        edges = np.unique(rng.integers(0, end, 2 * rng.integers(0, most + 1)))
        turns += [Turn(low / 1000, high / 1000, name) for low, high in zip(edges[::2], edges[1::2], strict=False)]
    return turns


@pytest.mark.parametrize("seed", range(60))
def test_equals_pyannote(seed):
    metric_module = pytest.importorskip("pyannote.metrics.diarization")
    core = pytest.importorskip("pyannote.core")

    def annotation(turns):
        result = core.Annotation()
        for index, turn in enumerate(turns):
            result[core.Segment(turn.start, turn.end), index] = turn.speaker
        return result

    rng = np.random.default_rng(seed)
    reference = random_turns(rng, "ABCD"[: rng.integers(0, 5)])
    hypothesis = random_turns(rng, "12345"[: rng.integers(0, 6)])
    metric = metric_module.DiarizationErrorRate(collar=0.0, skip_overlap=False)
    # Said, as pyannote would otherwise guess it and warn: all that either speaks in.
    whole = core.Timeline([core.Segment(0, 20)])
    expected = metric.compute_components(annotation(reference), annotation(hypothesis), uem=whole)
    error = diarization_error(reference, hypothesis)
    assert error.missed == pytest.approx(expected["missed detection"], abs=1e-9)
    assert error.false_alarm == pytest.approx(expected["false alarm"], abs=1e-9)
    assert error.confusion == pytest.approx(expected["confusion"], abs=1e-9)
    assert error.speech == pytest.approx(expected["total"], abs=1e-9)


@pytest.mark.parametrize("seed", range(30))
def test_equals_counting_milliseconds_under_every_pairing(seed):
    rng = np.random.default_rng(1000 + seed)
    reference = random_turns(rng, "ABC"[: rng.integers(1, 4)], end=400)
    hypothesis = random_turns(rng, "123"[: rng.integers(1, 4)], end=400)
    said, heard = (to_frames(turns, 0, 400, 3, 16).astype(int) for turns in (reference, hypothesis))
    of_reference, of_hypothesis = said.sum(1), heard.sum(1)
    confusion = min(
        (np.minimum(of_reference, of_hypothesis) - (said * heard[:, list(order)]).sum(1)).sum()
        for order in permutations(range(3))
    )
    error = diarization_error(reference, hypothesis)
    assert error.missed == pytest.approx(np.maximum(of_reference - of_hypothesis, 0).sum() / 1000, abs=1e-9)
    assert error.false_alarm == pytest.approx(np.maximum(of_hypothesis - of_reference, 0).sum() / 1000, abs=1e-9)
    assert error.confusion == pytest.approx(confusion / 1000, abs=1e-9)
    assert error.speech == pytest.approx(said.sum() / 1000, abs=1e-9)


def test_parts_by_hand():
    reference = [Turn(0, 4, "ann"), Turn(3, 6, "bob")]  # both from 3 to 4
    hypothesis = [Turn(0, 5, "1"), Turn(5, 8, "2")]
    compared = compare(reference, hypothesis)
    assert compared.names == {"1": "ann", "2": "bob"}
    error = compared.error()
    # From 3 to 4 one of two is missed, from 4 to 5 bob is taken for ann, from 6 to 8 no one speaks.
    assert (error.missed, error.false_alarm, error.confusion, error.speech) == (1, 2, 1, 7)
    assert error.total == 4


def test_nothing_said_and_nothing_heard():
    turns = [Turn(1.0, 3.5, "a")]
    assert diarization_error([], []).total == 0 == diarization_error([], []).speech
    assert diarization_error([], turns).false_alarm == 2.5 and diarization_error([], turns).speech == 0
    assert diarization_error(turns, []).missed == 2.5 == diarization_error(turns, []).speech


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_names_order_and_cuts_do_not_matter(seed):
    rng = np.random.default_rng(seed)
    reference, hypothesis = random_turns(rng, "AB"), random_turns(rng, "123")
    error = diarization_error(reference, hypothesis)
    other = [turn._replace(speaker={"1": "3", "2": "1", "3": "2"}[turn.speaker]) for turn in hypothesis]
    cut = [
        part for t in other for part in (t._replace(end=(t.start + t.end) / 2), t._replace(start=(t.start + t.end) / 2))
    ]
    again = diarization_error(reference, [cut[index] for index in rng.permutation(len(cut))])
    for part in ("missed", "false_alarm", "confusion", "speech"):
        assert getattr(again, part) == pytest.approx(getattr(error, part), abs=1e-9)
    assert diarization_error(reference, reference).total == pytest.approx(0, abs=1e-12)


def test_overlapping_turns_of_one_speaker_count_once():
    turns = [Turn(0, 2, "a"), Turn(1, 3, "a"), Turn(1.2, 1.4, "a"), Turn(4, 5, "a")]
    assert merged(turns) == [Turn(0, 3, "a"), Turn(4, 5, "a")]
    assert diarization_error(turns, [Turn(0, 3, "1")]).missed == 1
    assert diarization_error(turns, [Turn(0, 3, "1")]).speech == 4


# Frames


@given(
    st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=60), st.sampled_from([160, 320, 256])
)
@settings(max_examples=60, deadline=None)
def test_frames_to_turns_and_back(active, shift):
    frames = np.array(active, dtype=bool)
    turns = from_frames(frames, shift)
    assert all(turn.end > turn.start for turn in turns) and turns == merged(turns)
    first = len(frames) // 3
    back = to_frames(turns, first, len(frames) - first, 3, shift).astype(bool)
    # The columns come in the order of appearance.
    assert {tuple(column) for column in back.T if column.any()} == {
        tuple(column) for column in frames[first:].T if column.any()
    }


@pytest.mark.filterwarnings("ignore:kernel_size exceeds")
@pytest.mark.parametrize("length", [1, 3, 11, 51])
def test_smoothing_is_scipys_median_filter(length):
    from scipy.signal import medfilt

    rng = np.random.default_rng(length)
    for frames in (1, 4, 40, 300):
        active = rng.random((frames, 3)) > 0.5
        expected = medfilt(active.astype(float), (length, 1)) if length > 1 else active
        assert (smooth(active, length) == expected.astype(bool)).all()
    assert smooth(np.zeros((0, 2), bool), length).shape == (0, 2)


def test_a_stretch_of_turns():
    turns = [Turn(0, 10, "a"), Turn(2, 3, "b"), Turn(7.5, 9, "c")]
    assert within(turns, 3, 5) == [Turn(0, 5, "a"), Turn(4.5, 5, "c")]
