"""What an evaluation leaves: figures with confidence intervals, a line for each prediction, pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from s3prl_distiller import checkpoint

from .task import Row, Scorer

Score = Callable[[Sequence[Row]], dict[str, float]]
Figures = dict[str, dict[str, Any]]
"""By name: ``value``, ``low`` and ``high`` (95 % interval), ``unit`` and ``interval``: "bootstrap" over test items, or
"seeds"; over folds or seeds also ``each`` and their standard deviation, ``spread``."""

_DRAWS = 1000


def measure(
    scorer: Callable[[Sequence[Row]], Scorer], groups: Sequence[Sequence[Row]], by: str | None, units: dict[str, str]
) -> Figures:
    """Figures of one evaluation, or their mean over several (folds), with bootstrap intervals over the test items.

    Args:
        scorer: a task's, or like it.
        groups: predictions of each evaluation.
        by: key of a row; rows that share its value are drawn together. None: each row by itself.
        units: by figure.

    The interval is the percentile interval (Efron and Tibshirani 1993) of 1,000 draws with replacement. It says how
    far the figure depends on which utterances happen to be in the test set, not on the seed of the training.
    """
    scores = [scorer(rows) for rows in groups]
    values = [score(np.arange(len(rows))) for score, rows in zip(scores, groups, strict=True)]
    rng = np.random.default_rng(0)
    blocks = [_blocks(rows, by) for rows in groups]
    draws: dict[str, list[float]] = {name: [] for name in values[0]}
    for _ in range(_DRAWS):
        drawn = [np.concatenate([b[i] for i in rng.integers(len(b), size=len(b))]) for b in blocks]
        figures = [score(places) for score, places in zip(scores, drawn, strict=True)]
        for name, kept in draws.items():
            kept.append(float(np.mean([one[name] for one in figures])))
    return {name: _figure([v[name] for v in values], draws[name], units.get(name, "")) for name in values[0]}


def over_seeds(score: Score, seeds: Sequence[Sequence[Sequence[Row]]], units: dict[str, str]) -> Figures:
    """Figures of several trainings that differ in their seed, with the interval of Student's t for their mean.

    Args:
        seeds: of each training, the predictions of each fold, or of the only one.
        units: by figure.
    """
    each = [[score(rows) for rows in folds] for folds in seeds]
    return {
        name: _over_seeds([float(np.mean([fold[name] for fold in folds])) for folds in each], units.get(name, ""))
        for name in each[0][0]
    }


def _over_seeds(values: list[float], unit: str) -> dict[str, Any]:
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * deviation / math.sqrt(len(values))
    return {
        "value": _round(mean),
        "low": _round(mean - half),
        "high": _round(mean + half),
        "unit": unit,
        "interval": "seeds",
        "spread": _round(deviation),
        "each": [_round(value) for value in values],
    }


def _blocks(rows: Sequence[Row], by: str | None) -> list[NDArray[np.int64]]:
    """Places of the rows that are drawn together."""
    if by is None:
        return list(np.arange(len(rows))[:, None])
    blocks: dict[Any, list[int]] = {}
    for place, row in enumerate(rows):
        blocks.setdefault(row.get(by), []).append(place)
    return [np.array(places) for places in blocks.values()]


def _figure(values: list[float], draws: list[float], unit: str) -> dict[str, Any]:
    finite = [draw for draw in draws if math.isfinite(draw)]
    low, high = np.percentile(finite, [2.5, 97.5]) if finite else (math.nan, math.nan)
    figure: dict[str, Any] = {"value": _round(np.mean(values)), "low": _round(low), "high": _round(high)}
    figure |= {"unit": unit, "interval": "bootstrap"}
    if len(values) > 1:
        figure |= {"spread": _round(np.std(values, ddof=1)), "each": [_round(value) for value in values]}
    return figure


def _round(value: Any) -> float | None:
    """JSON has no NaN: null stands for it."""
    return round(float(value), 4) if math.isfinite(value) else None


def in_words(name: str, figure: dict[str, Any]) -> str:
    """Such as ``acc 81.40 % (95 % interval 80.60 to 82.20)``."""
    if figure["value"] is None:
        return f"{name} is undefined here"
    unit = f" {figure['unit']}" if figure["unit"] else ""
    text = f"{name} {figure['value']:.2f}{unit}"
    if figure["low"] is not None:
        text += f" (95 % interval {figure['low']:.2f} to {figure['high']:.2f})"
    if "spread" in figure:
        several = "seeds" if figure.get("interval") == "seeds" else "folds"
        text += f", spread over {len(figure['each'])} {several} {figure['spread']:.2f}"
    return text


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """A line of JSON for each prediction."""
    checkpoint.save_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), path)


def read_rows(path: Path) -> list[Row]:
    with path.open(encoding="utf-8") as file:  # str.splitlines would part texts at U+2028 and its like
        return [json.loads(line) for line in file]
