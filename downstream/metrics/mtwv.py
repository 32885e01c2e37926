"""Maximum term-weighted value: how well scores find the documents that hold a query, each query counting the same.

Term-weighted value is NIST's (Spoken Term Detection 2006 Evaluation Plan). QUESST 2014 judges documents as a whole, so
that a trial is a query and a document. At a threshold t, over the queries q that some document holds::

    TWV(t) = mean over q of 1 - P_miss(q, t) - beta * P_fa(q, t)
    beta = C_fa / C_miss * (1 / P_target - 1)

P_miss is the share of the documents with q that score below t, P_fa the share of those without q that do not. The
maximum is over all t, infinity among them, so that it is never below 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

P_TARGET, C_MISS, C_FA = 0.0008, 100.0, 1.0
"""As in ``score-TWV-Cnxe.sh``, which comes with the QUESST corpora (the values of the edition of 2015)."""


def beta(p_target: float = P_TARGET, c_miss: float = C_MISS, c_fa: float = C_FA) -> float:
    """What a false alarm rate of 1 costs, where a miss rate of 1 costs 1: 12.49 for QUESST."""
    return c_fa / c_miss * (1 / p_target - 1)


class Mtwv(NamedTuple):
    """The maximum of the term-weighted value (1: perfect, 0: nothing is found), and the threshold it is reached at."""

    value: float
    threshold: float


def mtwv(
    queries: ArrayLike,
    documents: int,
    labels: ArrayLike,
    scores: ArrayLike,
    weight: float,
    all_queries: int = 0,
    all_documents: int = 0,
) -> Mtwv:
    """MTWV of a complete set of trials: every query against the same documents.

    Args:
        queries: of each trial, which query (0, 1, ...). One with a multiple of ``documents`` trials, as in a bootstrap
            sample, counts as often.
        documents: how many each query has been scored against.
        labels: of each trial, 1 where the document holds the query.
        scores: of each trial.
        weight: beta.
        all_queries: how many queries with a match the corpus has, where those given are only some of them: the others
            count as found nowhere, as its scorer has it. 0: those given.
        all_documents: how many documents the corpus has, where those given are only some: the others count as rightly
            rejected. 0: those given.

    NaN where no query has a match.

    Raises:
        ValueError: the trials are not complete, or a score is no number.
    """
    query, label = np.asarray(queries, dtype=np.int64), np.asarray(labels, dtype=bool)
    score = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(score).all():
        raise ValueError("a term-weighted value needs a finite score for each query and document")
    trials = np.bincount(query)
    if (trials % documents).any():
        raise ValueError(f"a term-weighted value needs every query scored against the same {documents} documents")
    times = trials / documents
    matches = np.bincount(query, weights=label, minlength=len(times)) / np.maximum(times, 1)
    used = times * (matches > 0)
    count = used.sum() if all_queries == 0 else all_queries
    if not used.any():
        return Mtwv(float("nan"), float("nan"))
    others = (all_documents or documents) - matches
    # What one accepted trial adds to the term-weighted value; a query that is there twice has each trial twice.
    gain = (matches > 0) / np.maximum(matches, 1) / count
    loss = (matches > 0) * weight / np.maximum(others, 1) / count
    order = np.argsort(-score)
    score = score[order]
    value = np.cumsum(np.where(label, gain[query], -loss[query])[order])
    last = np.append(np.flatnonzero(np.diff(score)), len(score) - 1)
    best = last[np.argmax(value[last])]
    return Mtwv(float(value[best]), float(score[best])) if value[best] > 0 else Mtwv(0.0, float("inf"))
