"""Learning rates and seeds side by side: which heads a run trains, and which of them it goes by."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from s3prl_distiller.engine import Progress

from .config import DownstreamConfig, SearchConfig


@dataclass(frozen=True)
class Variant:
    """One of the heads of a run.

    Attributes:
        name: of its folder and of its figures in the log; empty for the only one.
    """

    lr: float
    seed: int
    name: str = ""

    def config(self, config: DownstreamConfig) -> DownstreamConfig:
        """The config of an ordinary run of this head alone."""
        single = copy.deepcopy(config)
        single.search = SearchConfig()
        single.optimizer.lr, single.runner.seed = self.lr, self.seed
        return single


@dataclass(frozen=True)
class Choice:
    """What a run goes by.

    Attributes:
        lr: the learning rate that did best on dev, in the mean over seeds.
        members: places of its heads, one for each seed.
        record: the whole grid, of JSON's types.
    """

    lr: float
    members: list[int]
    record: dict[str, Any]


def variants(config: DownstreamConfig) -> list[Variant]:
    """The heads that a config asks for, rate by rate."""
    search, seed = config.search, config.runner.seed
    rates = list(search.learning_rates) or [config.optimizer.lr]
    if len(rates) * search.seeds == 1:
        return [Variant(rates[0], seed)]
    found = []
    for rate in rates:
        for number in range(seed, seed + search.seeds):
            parts = [f"lr-{rate:g}"] if len(rates) > 1 else []
            parts += [f"seed-{number}"] if search.seeds > 1 else []
            found.append(Variant(rate, number, "-".join(parts)))
    return found


def choose(
    heads: Sequence[Variant], progress: Sequence[Progress], metric: str, higher_is_better: bool, asked: SearchConfig
) -> Choice:
    """The learning rate with the best mean of its heads' best figures on dev; the smallest of equals.

    Args:
        progress: how each head did on dev.
        metric: what its figure is called.

    Raises:
        ValueError: no head has a figure.
    """
    by_rate: dict[float, list[int]] = {}
    for place, head in enumerate(heads):
        by_rate.setdefault(head.lr, []).append(place)
    # A rate at which a seed has no figure is not to be relied upon.
    means = {rate: _mean([progress[place].best for place in places]) for rate, places in by_rate.items()}
    usable = {rate: mean for rate, mean in means.items() if mean is not None}
    if not usable:
        raise ValueError(
            f"no learning rate of {', '.join(f'{rate:g}' for rate in by_rate)} gave a figure ({metric}) on dev, by "
            "which one is chosen: give the task a dev split, or lower rates (search.learning_rates)"
        )
    best = min(usable, key=lambda rate: (-usable[rate] if higher_is_better else usable[rate], rate))
    members = [
        {"lr": head.lr, "seed": head.seed, "best": p.best, "step": p.step, "diverged": p.diverged}
        for head, p in zip(heads, progress, strict=True)
    ]
    record = {
        "learning_rates": list(by_rate),
        "seeds": asked.seeds,
        "chosen": best,
        "metric": metric,
        "higher_is_better": higher_is_better,
        "members": members,
    }
    return Choice(best, by_rate[best], record)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
