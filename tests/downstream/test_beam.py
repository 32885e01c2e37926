"""Beam search with a language model against every path that there is."""

import gzip
import itertools
import sys
from pathlib import Path

import pytest
import torch
from s3prl_distiller.downstream import asr
from s3prl_distiller.downstream.core.beam import BeamSearch, words_of_arpa, words_of_lexicon
from s3prl_distiller.downstream.core.symbols import FAIRSEQ, Symbols

from s3prl_distiller.data.utterance import Utterance

UNIGRAMS = {"AB": -0.6, "B": -0.4, "BA": -0.9, "</s>": -0.7}
BIGRAMS = {("<s>", "BA"): -0.1, ("BA", "B"): -0.3, ("B", "</s>"): -0.2}
BACKOFF = {"<s>": -0.2, "AB": -0.1, "B": -0.3, "BA": -0.5}
SYMBOLS = Symbols.make(FAIRSEQ, [" ", "A", "B"])


@pytest.fixture
def arpa(tmp_path: Path) -> Path:
    lines = ["\\data\\", f"ngram 1={len(UNIGRAMS) + 2}", f"ngram 2={len(BIGRAMS)}", "", "\\1-grams:", "-9\t<unk>\t0"]
    lines += [f"-99\t<s>\t{BACKOFF['<s>']}"]
    lines += [f"{score}\t{word}\t{BACKOFF.get(word, 0)}" for word, score in UNIGRAMS.items()]
    lines += ["", "\\2-grams:", *(f"{score}\t{' '.join(pair)}" for pair, score in BIGRAMS.items()), "", "\\end\\", ""]
    path = tmp_path / "tiny.arpa"
    path.write_text("\n".join(lines))
    return path


def search(lm: Path, words=("AB", "B", "BA"), **values) -> BeamSearch:
    pytest.importorskip("flashlight.lib.text.decoder", reason="flashlight-text is not installed")
    options = {"beam": 5000, "threshold": 1e4, "lm_weight": 2.0, "word_score": -1.0} | values
    return BeamSearch(SYMBOLS, lm, words, str.upper, **options)


def words_of_path(path: tuple[int, ...]) -> tuple[str, ...] | None:
    """Words that a class for each frame writes; None where they are not in the lexicon or the last one has no end."""
    merged = [index for index, _ in itertools.groupby(path)]
    text = "".join(SYMBOLS.names[index] for index in merged if index)
    words = tuple(text.split())
    return words if set(words) <= {"AB", "B", "BA"} and text.endswith(" ") or not text else None


def lm_score(words: tuple[str, ...]) -> float:
    total = 0.0
    for pair in itertools.pairwise(("<s>", *words, "</s>")):
        total += BIGRAMS[pair] if pair in BIGRAMS else BACKOFF[pair[0]] + UNIGRAMS[pair[1]]
    return total


@pytest.mark.parametrize("seed", range(8))
def test_finds_the_best_of_all_paths(arpa, seed):
    log_probs = (2 * torch.randn(1, 7, len(SYMBOLS), generator=torch.Generator().manual_seed(seed))).log_softmax(-1)
    best, wanted = -float("inf"), ()
    for path in itertools.product((0, *map(SYMBOLS.names.index, " AB")), repeat=7):
        words = words_of_path(path)
        if words is not None:
            score = sum(log_probs[0, frame, index].item() for frame, index in enumerate(path))
            score += 2 * lm_score(words) - len(words)
            best, wanted = max((best, wanted), (score, words))
    assert search(arpa)(log_probs, torch.tensor([7])) == [" ".join(wanted)]


def test_each_utterance_ends_where_it_ends(arpa):
    log_probs = torch.randn(2, 9, len(SYMBOLS), generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    decode = search(arpa, beam=5, threshold=25.0)
    together = decode(log_probs, torch.tensor([9, 5]))
    assert together[1] == decode(log_probs[1:, :5], torch.tensor([5]))[0]


@pytest.mark.parametrize("zipped", [False, True])
def test_words_are_those_of_the_arpa_file(arpa, zipped):
    if zipped:
        (packed := arpa.with_suffix(".gz")).write_bytes(gzip.compress(arpa.read_bytes()))
        arpa = packed
    assert words_of_arpa(arpa) == ["AB", "B", "BA"]


def test_words_of_a_binary_are_not_known(tmp_path):
    (path := tmp_path / "lm.bin").write_bytes(b"mmap lm http://kheafield.com/code\x00\x01\x02")
    assert words_of_arpa(path) is None


def test_words_are_the_first_column_of_a_lexicon(tmp_path):
    (path := tmp_path / "words.lst").write_text("AB\tA B |\nB\tB |\n\nB\tB B |\n")
    assert words_of_lexicon(path) == ["AB", "B"]
    path.write_text("\n")
    with pytest.raises(ValueError, match=r"words.lst is empty"):
        words_of_lexicon(path)


def test_file_that_is_no_language_model_is_named(tmp_path):
    (path := tmp_path / "notes.txt").write_text("buy milk\n")
    with pytest.raises(ValueError, match=r"notes.txt cannot be read"):
        search(path)


def test_words_that_cannot_be_written_are_named(arpa):
    with pytest.raises(ValueError, match="no word of the lexicon"):
        search(arpa, words=["XYZ"])


def test_missing_package_is_named(arpa, monkeypatch):
    for name in ("torchaudio.models.decoder", "torchaudio.models.decoder._ctc_decoder"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "flashlight.lib.text.decoder", None)
    with pytest.raises(ValueError, match=r"pip install 's3prl-distiller\[lm\]'"):
        BeamSearch(SYMBOLS, arpa, ["AB"], str.upper, 5, 25.0, 2.0, -1.0)


@torch.no_grad()
def test_task_decodes_with_the_language_model(arpa):
    """Greedy hears A, which is no word; with a language model the B that was nearly heard makes one."""
    pytest.importorskip("flashlight.lib.text.decoder", reason="flashlight-text is not installed")
    u = Utterance("u", "u", "/data/u.wav", duration=3.0, custom={"text": "AB"})
    task = asr.Task(asr.AsrConfig(lm=str(arpa), project_dim=8, hidden=8))
    task.prepare({"train": [u]}, 320)
    task.build_head(8, 320)
    assert "words: the language model, 3" in task.notes[0]
    logits = torch.full((1, 6, 32), -10.0)
    for frame, (index, score) in enumerate([(7, 5.0), (24, 1.0), (0, 5.0), (4, 5.0), (0, 5.0), (2, 5.0)]):
        logits[0, frame, index] = score
    logits[0, 1, 0] = 1.5  # a blank is likelier than the B
    greedy = asr.Task(asr.AsrConfig())
    greedy.load_state(task.state())
    rows = [t.predict(lambda x, lengths: x, logits, torch.tensor([6]), [u])[0] for t in (greedy, task)]
    assert [row["prediction"] for row in rows] == ["A", "AB"] and [row["word_errors"] for row in rows] == [1, 0]
