"""Subsequence DTW and the search for queries, against a plain dynamic program, librosa and scipy."""

import math

import librosa
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from s3prl_distiller.downstream.heads import dtw
from s3prl_distiller.downstream.heads.moments import Moments
from s3prl_distiller.downstream.heads.search import Held, Search
from scipy.spatial.distance import cdist

torch.set_num_threads(1)


def plain(distances: np.ndarray) -> float:
    """The definition, cell by cell: each row once, 0, 1 or 2 columns on, any first and last column; per row."""
    rows, columns = distances.shape
    best = distances[0].copy()
    for row in range(1, rows):
        best = np.array([distances[row, j] + min(best[k] for k in (j, j - 1, j - 2) if k >= 0) for j in range(columns)])
    return float(best.min() / rows)


def of_librosa(distances: np.ndarray) -> float:
    steps = np.array([[1, 0], [1, 1], [1, 2]], dtype=np.uint32)
    ones, zeros = np.ones(3), np.zeros(3)
    total = librosa.sequence.dtw(
        C=distances, step_sizes_sigma=steps, weights_mul=ones, weights_add=zeros, subseq=True, backtrack=False
    )
    return float(total[-1].min() / len(distances))


def between(query: np.ndarray, document: np.ndarray, distance: str, minmax: bool) -> np.ndarray:
    """As s3prl's quesst14_dtw has them, in float64."""
    if distance.startswith("cosine"):
        values = cdist(query, document, "cosine")
        values = np.exp(values) - 1 if distance == "cosine_exp" else values
    else:
        values = cdist(query, document, distance)
    if minmax:
        low, high = values.min(1, keepdims=True), values.max(1, keepdims=True)
        values = (values - low) / np.clip(high - low, 1e-9, None)
    return values


def some(rng: np.random.Generator, count: int, low: int, high: int, width: int = 5) -> list[np.ndarray]:
    return [rng.normal(size=(rng.integers(low, high + 1), width)) for _ in range(count)]


def tensors(items: list[np.ndarray]) -> list[torch.Tensor]:
    return [torch.tensor(item, dtype=torch.float32) for item in items]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(dtw.DISTANCES), st.booleans(), st.integers(1, 3000))
def test_equals_the_plain_program(seed, distance, minmax, cells):
    """Whatever is taken together: ``cells`` bounds what is held at a time."""
    rng = np.random.default_rng(seed)
    queries, documents = some(rng, rng.integers(1, 5), 1, 9), some(rng, rng.integers(1, 6), 1, 25)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(dtw._CELLS, "cpu", cells)
        found = dtw.costs(tensors(queries), tensors(documents), distance, minmax)
    expected = [[plain(between(q, d, distance, minmax)) for d in documents] for q in queries]
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("seed", range(10))
def test_equals_librosa(seed):
    rng = np.random.default_rng(seed)
    (query,), (document,) = some(rng, 1, 2, 30, 8), some(rng, 1, 40, 80, 8)
    expected = of_librosa(between(query, document, "cosine_exp", True))
    assert plain(between(query, document, "cosine_exp", True)) == pytest.approx(expected, abs=1e-12)
    assert float(dtw.costs(tensors([query]), tensors([document]))) == pytest.approx(expected, abs=1e-5)


def test_a_query_within_a_document_costs_nothing():
    rng = np.random.default_rng(3)
    (document,) = tensors(some(rng, 1, 60, 60))
    slower = document[20:40].repeat_interleave(2, dim=0)  # two frames for each of the document's
    faster = document[20:41:2]
    assert dtw.costs([document[20:40], slower, faster], [document]).abs().max() < 1e-5
    assert float(dtw.costs([document[20:40].flip(0)], [document])) > 0.01


def test_unknown_distance():
    with pytest.raises(ValueError, match="'cosin' is not a distance between frames: use one of cosine_exp"):
        dtw.costs([torch.randn(3, 2)], [torch.randn(3, 2)], "cosin")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=6), st.integers(0, 6), st.integers(0, 1000))
def test_moments_equal_those_of_all_frames_together(lengths, cut, seed):
    torch.manual_seed(seed)
    parts = [torch.randn(2, length, 3) * 3 + 100 for length in lengths]
    together = torch.cat(parts, dim=1)
    if together.shape[1] < 2:
        return
    moments, other = Moments(), Moments()
    for number, part in enumerate(parts):
        (moments if number < cut else other).add(part)
    moments.merge(other)
    assert moments.count == together.shape[1]
    for layer in range(2):
        mean, deviation = moments.of(layer, torch.device("cpu"))
        torch.testing.assert_close(mean, together[layer].mean(0), atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(deviation, together[layer].std(0), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("gigabytes", [0.0, 1.0])
def test_search_equals_s3prl_s_steps(gigabytes):
    """Standardised over queries and documents, distances, DTW, sign, z-normalised; short queries score 0."""
    rng = np.random.default_rng(5)
    queries = [rng.normal(2, 3, size=(2, n, 6)) for n in (9, 4, 15, 5)]
    documents = [rng.normal(2, 3, size=(2, n, 6)) for n in rng.integers(10, 40, size=70)]
    runs = []

    def stream():
        runs.append(1)
        yield from ({"id": f"d{n}", "features": torch.tensor(d).float()} for n, d in enumerate(documents))

    asked = [{"id": f"q{n}", "features": torch.tensor(q).float()} for n, q in enumerate(queries)]
    names, found, scores = Search()(asked, Held(stream, gigabytes))
    assert names == ["q0", "q1", "q2", "q3"] and found == [f"d{n}" for n in range(70)]
    assert len(runs) == (1 if gigabytes else 2)
    for layer in range(2):
        frames = np.concatenate([one[layer] for one in [*queries, *documents]])
        mean, deviation = frames.mean(0), frames.std(0, ddof=1)
        raw = np.zeros((4, 70))
        for i, query in enumerate(queries):
            if query.shape[1] >= 5:
                for j, document in enumerate(documents):
                    pair = ((one[layer] - mean) / deviation for one in (query, document))
                    raw[i, j] = -plain(between(*pair, "cosine_exp", True))
        expected = (raw - raw.mean(1, keepdims=True)) / np.clip(raw.std(1, keepdims=True), 1e-9, math.inf)
        np.testing.assert_allclose(scores[layer], expected, atol=2e-3)
        assert not scores[layer, 1].any()


def test_a_stream_that_fits_is_run_once():
    runs = []

    def stream():
        runs.append(1)
        yield from ({"id": str(n), "features": torch.zeros(1, 10, 25)} for n in range(4))  # 1000 bytes each

    fits, does_not = Held(stream, 4e-6), Held(stream, 3.9e-6)
    for held, expected in ((fits, 1), (does_not, 2)):
        runs.clear()
        assert [output["id"] for output in held()] == [output["id"] for output in held()] == ["0", "1", "2", "3"]
        assert len(runs) == expected
