"""Error rates and slot figures against jiwer, s3prl and the definition."""

import importlib
import sys
import types

import jiwer
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from s3prl_distiller.downstream.metrics import slots as slot_metrics
from s3prl_distiller.downstream.metrics import text as metrics

from s3prl_distiller.hub import load_hub

TEXTS = st.text(alphabet="AB'É ", max_size=14)
TYPES = ("city", "date", "drink")


def levenshtein(one, other) -> int:
    """From the definition, by dynamic programming over prefixes."""
    costs = list(range(len(other) + 1))
    for row, a in enumerate(one, 1):
        before, costs[0] = costs[0], row
        for column, b in enumerate(other, 1):
            before, costs[column] = (
                costs[column],
                min(before + (a != b), costs[column] + 1, costs[column - 1] + 1),
            )
    return costs[-1]


@given(st.lists(st.sampled_from(["AH0", "AH1", "S", "T"])), st.lists(st.sampled_from(["AH0", "AH1", "S", "T"])))
def test_distance_is_that_of_the_definition(one, other):
    assert metrics.distance(one, other) == levenshtein(one, other)
    assert sum(metrics.edits(one, other).values()) == levenshtein(one, other)


@given(TEXTS, TEXTS)
def test_text_errors_are_those_of_jiwer(reference, hypothesis):
    assume(reference.strip())
    counts = metrics.text_errors(reference, hypothesis)
    reference, hypothesis = " ".join(reference.split()), " ".join(hypothesis.split())
    words, chars = jiwer.process_words(reference, hypothesis), jiwer.process_characters(reference, hypothesis)
    assert counts["word_errors"] == words.substitutions + words.deletions + words.insertions
    assert counts["words"] == len(reference.split())
    assert counts["char_errors"] == chars.substitutions + chars.deletions + chars.insertions
    assert counts["chars"] == len(reference)


@given(st.lists(st.tuples(TEXTS.filter(str.strip), TEXTS), min_size=1, max_size=5))
def test_rates_pool_errors_over_utterances(pairs):
    rows = [metrics.text_errors(reference, hypothesis) for reference, hypothesis in pairs]
    references, hypotheses = ([" ".join(text.split()) for text in side] for side in zip(*pairs, strict=True))
    assert metrics.rate(rows, "word_errors", "words") == pytest.approx(100 * jiwer.wer(references, hypotheses))
    assert metrics.rate(rows, "char_errors", "chars") == pytest.approx(100 * jiwer.cer(references, hypotheses))


def test_rate_without_any_reference_is_no_number():
    assert metrics.rate([], "word_errors", "words") != metrics.rate([], "word_errors", "words")


def test_edits_say_what_was_said_in_whose_place():
    assert metrics.edits("CAT", "CUTS") == {("A", "U"): 1, (None, "S"): 1}
    assert metrics.edits(["A", "B"], []) == {("A", None): 1, ("B", None): 1}


@pytest.fixture(scope="module")
def s3prl_slots():
    """s3prl's own figures; the edit distance package that it imports is the definition's here."""
    load_hub()
    if "editdistance" not in sys.modules:
        module = types.ModuleType("editdistance")
        module.eval = levenshtein
        sys.modules["editdistance"] = module
    return importlib.import_module("s3prl.metric.slot_filling")


def tagged(parts: list[tuple[str | None, str]]) -> str:
    return " ".join(text if kind is None else f"B-{kind} {text} E-{kind}" for kind, text in parts)


WORDS = st.lists(st.text(alphabet="AB", min_size=1, max_size=3), min_size=1, max_size=2).map(" ".join)
REFERENCES = st.lists(st.tuples(st.sampled_from([None, *TYPES]), WORDS), min_size=1, max_size=4).map(tagged)
TOKENS = st.sampled_from(["A", "BA", "B", *(f"{side}-{kind}" for side in "BE" for kind in TYPES)])
MALFORMED = st.lists(TOKENS, max_size=9).map(" ".join)


@settings(max_examples=300, deadline=None)
@given(pairs=st.lists(st.tuples(REFERENCES, REFERENCES | MALFORMED), min_size=1, max_size=4))
def test_slot_figures_are_those_of_s3prl(s3prl_slots, pairs):
    slots = [tuple(slot_metrics.parse_slots(text) for text in pair) for pair in pairs]
    assume(any(reference for reference, _ in slots))  # s3prl divides by zero
    references, hypotheses = zip(*pairs, strict=True)
    f1 = [slot_metrics.type_f1(*pair) for pair in slots]
    assert sum(f1) / len(f1) == pytest.approx(s3prl_slots.slot_type_f1(hypotheses, references))
    counts = [slot_metrics.value_errors(*pair) for pair in slots]
    cer = sum(errors for errors, _ in counts) / sum(chars for _, chars in counts)
    assert cer == pytest.approx(s3prl_slots.slot_value_cer(hypotheses, references))


def test_slots_of_a_text():
    text = "PLAY B-artist NINA SIMONE E-artist IN B-city B-date PARIS E-date E-city"
    assert slot_metrics.parse_slots(text) == [("artist", "NINA SIMONE"), ("city", "PARIS")]


def test_f1_by_type():
    pairs = [([("city", "A")], [("city", "B"), ("date", "C")]), ([("city", "A")], [])]
    assert slot_metrics.f1_by_type(pairs) == {"city": pytest.approx(2 / 3), "date": 0.0}
