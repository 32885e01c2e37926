"""Which heads a run trains, and which learning rate it goes by."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from s3prl_distiller.downstream.core import results
from s3prl_distiller.downstream.core.config import DownstreamConfig, SearchConfig
from s3prl_distiller.downstream.core.featurizer import Featurizer, featurize
from s3prl_distiller.downstream.core.search import choose, variants
from scipy import stats

from s3prl_distiller.engine import Progress


def config(rates: list[float], seeds: int) -> DownstreamConfig:
    made = DownstreamConfig(search=SearchConfig(rates, seeds))
    made.validate()
    return made


def test_one_head_has_no_name():
    (only,) = variants(config([], 1))
    assert (only.lr, only.seed, only.name) == (1e-4, 1337, "")
    (only,) = variants(config([0.5], 1))
    assert (only.lr, only.name) == (0.5, "")


@given(st.lists(st.floats(1e-7, 1), unique=True, max_size=5), st.integers(1, 4))
def test_a_head_for_each_rate_and_seed(rates: list[float], seeds: int):
    found = variants(config(rates, seeds))
    assert len(found) == max(1, len(rates)) * seeds
    assert {(head.lr, head.seed) for head in found} == {
        (rate, 1337 + number) for rate in (rates or [1e-4]) for number in range(seeds)
    }
    alone = found[-1].config(config(rates, seeds))
    assert not alone.search.active and (alone.optimizer.lr, alone.runner.seed) == (found[-1].lr, found[-1].seed)


figures = st.one_of(st.none(), st.floats(0, 100))


@given(st.lists(st.tuples(figures, figures), min_size=1, max_size=6), st.booleans())
def test_the_best_mean_on_dev_is_chosen(bests: list[tuple[float | None, float | None]], higher: bool):
    rates = [10.0**-place for place in range(len(bests))]
    asked = config(rates, 2)
    progress = [Progress(best=best, step=3) for pair in bests for best in pair]
    means = {rate: (a + b) / 2 for rate, (a, b) in zip(rates, bests, strict=True) if a is not None and b is not None}
    if not means:
        with pytest.raises(ValueError, match="no learning rate of"):
            choose(variants(asked), progress, "acc", higher, asked.search)
        return
    choice = choose(variants(asked), progress, "acc", higher, asked.search)
    best = max(means.values()) if higher else min(means.values())
    assert means[choice.lr] == best and choice.lr == min(rate for rate, mean in means.items() if mean == best)
    heads = variants(asked)
    assert [heads[place].lr for place in choice.members] == [choice.lr] * 2
    assert [member["best"] for member in choice.record["members"]] == [p.best for p in progress]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("layers", [1, 4])
def test_featurizers_together_give_what_each_gives(layers: int, normalize: bool):
    torch.manual_seed(0)
    each = [Featurizer(layers, normalize) for _ in range(3)]
    for featurizer in each:
        if featurizer.weights is not None:
            torch.nn.init.normal_(featurizer.weights)
    states = torch.randn(layers, 2, 7, 5)
    for given_states in (states, list(states)):
        together = featurize(each, given_states)
        assert together.shape == (3, 2, 7, 5)
        for feature, featurizer in zip(together, each, strict=True):
            torch.testing.assert_close(feature, featurizer(list(states)), atol=1e-6, rtol=1e-5)
    if layers > 1:
        wanted = torch.autograd.grad(sum(f(list(states)).pow(3).sum() for f in each), [f.weights for f in each])
        found = torch.autograd.grad(featurize(each, states).pow(3).sum(), [f.weights for f in each])
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8))
def test_intervals_over_seeds_are_students(values: list[float]):
    rows = [[[{"value": value}]] for value in values]
    figure = results.over_seeds(lambda rows: {"mean": rows[0]["value"]}, rows, {"mean": "%"})["mean"]
    mean, error = sum(values) / len(values), stats.sem(values)
    low, high = (mean, mean) if error == 0 else stats.t.interval(0.95, len(values) - 1, mean, error)
    assert figure["value"] == pytest.approx(mean, abs=1e-3)
    assert (figure["low"], figure["high"]) == (pytest.approx(low, abs=2e-3), pytest.approx(high, abs=2e-3))
    assert figure["interval"] == "seeds" and len(figure["each"]) == len(values)
    assert math.isfinite(figure["spread"]) and "seeds" in results.in_words("mean", figure)
