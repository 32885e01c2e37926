"""Which utterances a probe hears: some at random, and some for each property that a manifest names."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from s3prl_distiller.audio import SAMPLE_RATE
from s3prl_distiller.data.check import judge
from s3prl_distiller.data.config import DataConfig
from s3prl_distiller.data.corpus import samples_of
from s3prl_distiller.data.loader import Request
from s3prl_distiller.data.scan import scan
from s3prl_distiller.data.sources import read_utterances
from s3prl_distiller.data.utterance import Utterance

from .linear import FEWEST

SECONDS = 180
"""Of audio heard to compare layers, and for each property."""
UTTERANCES = 200
"""As many at the most, to compare layers and for each property."""
_CLASSES = 10  # speakers or labels at the most
_LONGEST = 20  # seconds: longer utterances are cut to compare layers by, and not probed
_SHORTEST = 0.1  # seconds: a few frames

SEQUENCES, CLASSES = ("phones", "text"), ("speaker", "label")


@dataclass(frozen=True)
class Drawn:
    """What is to be heard.

    Attributes:
        requests: what to decode.
        utterances: of each request.
        compared: whether it was drawn to compare layers by.
        whole: whether all of it is heard, as a probe needs.
        remarks: what was passed over, for people.
    """

    requests: list[Request]
    utterances: list[Utterance]
    compared: list[bool]
    whole: list[bool]
    remarks: list[str]


def sequence(utterance: Utterance, name: str) -> list[str]:
    """Phones, or the letters of a text; empty where the manifest has none."""
    value = (utterance.custom or {}).get(name)
    if name == "text":
        return [letter for letter in value.casefold() if letter.isalpha()] if isinstance(value, str) else []
    if isinstance(value, str):
        return value.split()
    return [str(item) for item in value] if isinstance(value, list) else []


def class_of(utterance: Utterance, name: str) -> str | None:
    """The speaker or label of an utterance."""
    value = (utterance.custom or {}).get(name)
    return str(value) if isinstance(value, (str, int, float)) and value != "" else None


def draw(config: DataConfig, seed: int) -> Drawn:
    """Draw utterances; the same ones for the same data and seed.

    Raises:
        ValueError: the data is not there, or none of what was drawn can be read.
    """
    listed, _ = read_utterances(config.path, list(config.sets))
    rng = random.Random(seed)
    at_random = rng.sample(listed, min(len(listed), UTTERANCES))
    pools = {name: _pool(listed, name, rng) for name in (*SEQUENCES, *CLASSES)}
    if len(pools["phones"]) >= FEWEST:
        pools["text"] = []  # stands in for phones, and need not be looked for
    known = {utterance.id: utterance for pool in (at_random, *pools.values()) for utterance in pool}
    facts = scan((utterance.audio for utterance in known.values()), full=False, progress=False)
    good, findings = judge(list(known.values()), facts, max(config.min_seconds, _SHORTEST))
    bad = [finding for finding in findings if finding.bad]
    if not good:
        raise ValueError(f"none of {len(known)} utterances drawn to probe layers can be used: {bad[0].detail}")
    usable = {utterance.id for utterance in good}
    compared = _until_full([u for u in at_random if u.id in usable])
    chosen = {utterance.id: utterance for utterance in compared}
    for name, pool in pools.items():
        fitting = [u for u in pool if u.id in usable and samples_of(u) <= _LONGEST * SAMPLE_RATE]
        fitting = _in_turn(fitting, name) if name in CLASSES else sorted(fitting, key=samples_of)
        chosen |= {utterance.id: utterance for utterance in _until_full(fitting)}
    remarks = [f"{len(bad)} of {len(known)} utterances drawn cannot be used, such as {bad[0].id}"] if bad else []
    ids, utterances = {utterance.id for utterance in compared}, list(chosen.values())
    lengths = [min(samples_of(utterance), _LONGEST * SAMPLE_RATE) for utterance in utterances]
    return Drawn(
        [Request(u.id, u.audio, u.start, length) for u, length in zip(utterances, lengths, strict=True)],
        utterances,
        [utterance.id in ids for utterance in utterances],
        [samples_of(utterance) == length for utterance, length in zip(utterances, lengths, strict=True)],
        remarks,
    )


def _pool(listed: Sequence[Utterance], name: str, rng: random.Random) -> list[Utterance]:
    """Twice as many as needed at random, of which the shorter ones are then heard: probes need many utterances."""
    if name in SEQUENCES:
        having = [utterance for utterance in listed if sequence(utterance, name)]
        return rng.sample(having, min(len(having), 2 * UTTERANCES))
    classes: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in listed:
        if (value := class_of(utterance, name)) is not None:
            classes[value].append(utterance)
    several = sorted(value for value, members in classes.items() if len(members) > 1)
    picked = rng.sample(several, min(len(several), _CLASSES))
    each = 2 * UTTERANCES // max(len(picked), 1)
    return [u for value in picked for u in rng.sample(classes[value], min(len(classes[value]), each))]


def _in_turn(utterances: Sequence[Utterance], name: str) -> list[Utterance]:
    """The shortest utterance of each class, then the second of each, and so on."""
    rounds: list[tuple[int, Utterance]] = []
    seen: dict[str | None, int] = defaultdict(int)
    for utterance in sorted(utterances, key=samples_of):
        value = class_of(utterance, name)
        rounds.append((seen[value], utterance))
        seen[value] += 1
    return [utterance for _, utterance in sorted(rounds, key=lambda pair: pair[0])]


def _until_full(utterances: Sequence[Utterance]) -> list[Utterance]:
    """The first ones, up to :data:`UTTERANCES` and :data:`SECONDS`; one at least."""
    taken: list[Utterance] = []
    left = SECONDS * SAMPLE_RATE
    for utterance in utterances[:UTTERANCES]:
        left -= min(samples_of(utterance), _LONGEST * SAMPLE_RATE)
        if taken and left < 0:
            break
        taken.append(utterance)
    return taken
