"""What mean-pooled hidden states say linearly of an utterance: who speaks, its label, the make-up of its phones.

Scores are of utterances that the probe was not fitted on (5 folds); its penalty is picked by leave-one-out within
the rest. Everything is ridge regression in closed form, so that no layer depends on how long one trained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FOLDS = 5
FEWEST = 20
"""Utterances that a probe needs."""
PENALTIES = 10.0 ** np.arange(0, 7)
_RARE = 0.05  # share of utterances that a phone must occur in to be predicted


@dataclass(frozen=True)
class Probe:
    """How well each layer says one property.

    Attributes:
        name: of the property.
        what: the measure, in words.
        utterances: probed on.
        scores: (layers,), accuracy or R², 1 at the most.
        errors: (layers,), standard errors of the scores over utterances.
        baseline: what needs no hidden state: the share of the largest class, or 0.
        near: layers from 1 on whose difference to the best of them is within its own standard error, utterance by
            utterance.
        informative: whether the best layer is above the baseline by more than two standard errors.
    """

    name: str
    what: str
    utterances: int
    scores: np.ndarray
    errors: np.ndarray
    baseline: float
    near: frozenset[int]
    informative: bool

    @property
    def best(self) -> int:
        """The best layer from 1 on."""
        return int(self.scores[1:].argmax()) + 1


def probe_classes(name: str, states: np.ndarray, values: Sequence[str], seed: int) -> Probe:
    """Classify utterances, those of a class spread over the folds.

    Args:
        states: (utterances, layers, width), means over frames.
        values: the class of each utterance; those that occur once are left out.

    Raises:
        ValueError: there is nothing to tell apart, in words that go on from the name.
    """
    counts = Counter(values)
    kept = [place for place, value in enumerate(values) if counts[value] > 1]
    if len(counts) == 1:
        raise ValueError(f"all {len(values)} utterances heard have the same")
    if len(kept) < FEWEST or len({values[place] for place in kept}) < 2:
        raise ValueError(f"{len(kept)} utterances heard share theirs with another, {FEWEST} of two kinds are needed")
    from sklearn.linear_model import RidgeClassifierCV

    states, classes = states[kept], np.array([values[place] for place in kept])
    folds = _folds(len(classes), seed, classes)
    right = np.empty((states.shape[1], len(classes)))
    for layer in range(states.shape[1]):
        said = _held_out(states[:, layer], classes, folds, lambda: RidgeClassifierCV(PENALTIES))
        right[layer] = said == classes
    baseline = max(Counter(classes.tolist()).values()) / len(classes)
    what = f"accuracy, {len(set(classes.tolist()))} classes"
    return _probe(name, what, right, baseline)


def probe_shares(name: str, states: np.ndarray, values: Sequence[Sequence[str]], seed: int) -> Probe:
    """Predict which share of an utterance's phones (or characters) each one has.

    Without times this is what a mean can be asked: where each frame says its phone linearly, the mean of the frames
    says the shares, but for how long phones last. R² is the mean over phones.

    Args:
        states: (utterances, layers, width), means over frames.
        values: phones or characters of each utterance.

    Raises:
        ValueError: there is too little to predict, in words that go on from the name.
    """
    if len(values) < FEWEST:
        raise ValueError(f"{len(values)} utterances heard have them, {FEWEST} are needed")
    counts = [Counter(value) for value in values]
    names = sorted({name for count in counts for name in count})
    shares = np.array([[count[name] / count.total() for name in names] for count in counts])
    shares = shares[:, ((shares > 0).mean(0) >= _RARE) & (shares.std(0) > 1e-9)]
    if not shares.shape[1]:
        raise ValueError(f"all {len(values)} utterances heard have the same")
    from sklearn.linear_model import RidgeCV

    wanted = (shares - shares.mean(0)) / shares.std(0)
    folds = _folds(len(wanted), seed)
    gained = np.empty((states.shape[1], len(wanted)))
    for layer in range(states.shape[1]):
        said = _held_out(states[:, layer], wanted, folds, lambda: RidgeCV(PENALTIES))
        # The variance of each share is 1 now, so that the mean over utterances is R².
        gained[layer] = 1 - ((wanted - said) ** 2).mean(1)
    return _probe(name, f"R² of the shares of {wanted.shape[1]} symbols", gained, 0.0)


def _probe(name: str, what: str, scored: np.ndarray, baseline: float) -> Probe:
    """From (layers, utterances)."""
    count = scored.shape[1]
    scores, errors = scored.mean(1), scored.std(1, ddof=1) / count**0.5
    best = int(scores[1:].argmax()) + 1
    behind = scored[best] - scored
    near = behind.mean(1) <= behind.std(1, ddof=1) / count**0.5
    layers = frozenset(int(layer) for layer in np.flatnonzero(near) if layer)
    return Probe(name, what, count, scores, errors, baseline, layers, bool(scores[best] - baseline > 2 * errors[best]))


def _folds(count: int, seed: int, classes: np.ndarray | None = None) -> np.ndarray:
    """The fold of each utterance; those of one class follow each other, so that no fold has all of them."""
    order = np.random.default_rng(seed).permutation(count)
    if classes is not None:
        order = order[np.argsort(classes[order], kind="stable")]
    folds = np.empty(count, int)
    folds[order] = np.arange(count) % FOLDS
    return folds


def _held_out(states: np.ndarray, wanted: np.ndarray, folds: np.ndarray, model) -> np.ndarray:
    """Predictions for each utterance by a model that was fitted on the other folds."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    said = np.empty_like(wanted)
    for fold in range(FOLDS):
        held = folds == fold
        fitted = make_pipeline(StandardScaler(), model()).fit(states[~held], wanted[~held])
        said[held] = fitted.predict(states[held])
    return said
