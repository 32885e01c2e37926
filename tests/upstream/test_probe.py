"""Which layers are proposed: the choice is the best there is, and probes find what was planted."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from s3prl_distiller.upstream.distiller.model_config import DistillerConfig
from s3prl_distiller.upstream.distiller.probe import choose, linear, measure, page, proposal, sample, with_targets

from s3prl_distiller.data import DataConfig

CPU = torch.device("cpu")


@st.composite
def problems(draw: Any) -> tuple[np.ndarray, int, list[frozenset[int]]]:
    layers = draw(st.integers(1, 8))
    dice = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    similarity = dice.uniform(-0.1, 1, (layers, layers))
    groups = st.frozensets(st.integers(0, layers - 1), min_size=1)
    return (similarity + similarity.T) / 2, draw(st.integers(1, layers)), draw(st.lists(groups, max_size=4))


def judged(similarity: np.ndarray, layers: tuple[int, ...], wanted: list[frozenset[int]]) -> tuple[int, float]:
    """Groups met and coverage, said anew in loops."""
    met = sum(bool(group & set(layers)) for group in wanted)
    return met, sum(max(row[layer] for layer in layers) for row in similarity) / len(similarity)


@settings(deadline=None, max_examples=150)
@given(problems())
def test_no_set_is_better_than_the_one_chosen(problem: tuple[np.ndarray, int, list[frozenset[int]]]) -> None:
    similarity, count, wanted = problem
    ranked = choose.rank(similarity, count, wanted, best=3)
    every = sorted((judged(similarity, s, wanted) for s in combinations(range(len(similarity)), count)), reverse=True)
    for found, (met, coverage) in zip(ranked, every, strict=False):
        assert len(set(found.layers)) == count and list(found.layers) == sorted(found.layers)
        assert found.met == met and found.coverage == pytest.approx(coverage)
        assert judged(similarity, found.layers, wanted) == (found.met, pytest.approx(found.coverage))


@settings(deadline=None, max_examples=80)
@given(problems())
def test_grown_sets_are_whole_and_no_exchange_betters_them(
    problem: tuple[np.ndarray, int, list[frozenset[int]]],
) -> None:
    similarity, count, wanted = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choose, "MOST_SETS", 0)
        (grown,) = choose.rank(similarity, count, wanted)
    assert len(set(grown.layers)) == count
    for old in grown.layers:
        for new in set(range(len(similarity))) - set(grown.layers):
            met, coverage = judged(similarity, (*sorted({*grown.layers} - {old}), new), wanted)
            assert (met, coverage) <= (grown.met, grown.coverage + 1e-9)


@settings(deadline=None, max_examples=80)
@given(problems())
def test_what_probes_want_is_held_where_it_can_be(problem: tuple[np.ndarray, int, list[frozenset[int]]]) -> None:
    similarity, count, wanted = problem
    (best,) = choose.rank(similarity, count, wanted)
    some = any(all(group & set(s) for group in wanted) for s in combinations(range(len(similarity)), count))
    assert (best.met == len(wanted)) == some


def test_chosen_layers_are_one_of_each_kind() -> None:
    """Three groups of layers, alike within and unlike between: one of each, the more central one."""
    kinds = np.array([0, 0, 0, 1, 1, 2])
    similarity = np.where(kinds[:, None] == kinds, 0.9, 0.1)
    np.fill_diagonal(similarity, 1)
    similarity[1, [0, 2]] = similarity[[0, 2], 1] = 0.95
    assert choose.rank(similarity, 3)[0].layers == (1, 3, 5)
    assert choose.rank(similarity, 3, [frozenset({4})])[0].layers == (1, 4, 5)


def test_fewer_layers_than_wanted_or_no_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="4 layers are to be chosen, and there are 3"):
        choose.rank(np.eye(3), 4)
    with pytest.raises(ValueError, match="without a similarity"):
        choose.rank(np.full((3, 3), np.nan), 2)


def planted(dice: np.random.Generator, layer: int, what: np.ndarray, layers: int = 5, width: int = 24) -> np.ndarray:
    """(utterances, layers, width) of noise, ``what`` mixed linearly into one layer."""
    states = dice.normal(size=(len(what), layers, width))
    states[:, layer] += 3 * what @ dice.normal(size=(what.shape[1], width))
    return states.astype(np.float32)


@pytest.mark.parametrize("layer", [1, 4])
def test_the_layer_that_carries_a_class_is_found(layer: int) -> None:
    dice = np.random.default_rng(layer)
    classes = dice.integers(0, 3, 90)
    probe = linear.probe_classes("label", planted(dice, layer, np.eye(3)[classes]), list(map(str, classes)), 0)
    assert probe.best == layer and probe.near == {layer} and probe.informative
    assert probe.scores[layer] > 0.95
    others = np.delete(probe.scores, layer)
    assert (abs(others - probe.baseline) < 0.25).all()


def test_the_layer_that_carries_phones_is_found() -> None:
    dice = np.random.default_rng(0)
    phones = [dice.choice(list("abcdef"), 12).tolist() for _ in range(80)]
    shares = np.array([[one.count(name) / 12 for name in "abcdef"] for one in phones])
    probe = linear.probe_shares("phones", planted(dice, 3, 4 * shares), phones, 0)
    assert probe.best == 3 and probe.near == {3} and probe.informative and probe.scores[3] > 0.5
    assert (np.delete(probe.scores, 3) < 0.15).all()


def test_noise_tells_nothing() -> None:
    dice = np.random.default_rng(5)
    values = [str(value) for value in dice.integers(0, 2, 60)]
    assert not linear.probe_classes("label", dice.normal(size=(60, 3, 8)), values, 0).informative


def test_what_cannot_be_probed_says_why() -> None:
    states = np.random.default_rng(0).normal(size=(30, 3, 4))
    for values, words in (
        (["a"] * 30, "all 30 utterances heard have the same"),
        ([str(n) for n in range(30)], "0 utterances heard share theirs"),
    ):
        with pytest.raises(ValueError, match=words):
            linear.probe_classes("label", states, values, 0)
    with pytest.raises(ValueError, match="all 30 utterances heard have the same"):
        linear.probe_shares("text", states, [list("ab")] * 30, 0)
    with pytest.raises(ValueError, match="3 utterances heard have them"):
        linear.probe_shares("text", states[:3], [list("ab")] * 3, 0)


class Synthetic(torch.nn.Module):
    """A teacher of 6 layers: noise that drifts from layer to layer; the loudness of the wave in layer 5 alone."""

    def __init__(self, spoil: float | None = None):
        super().__init__()
        self.info = SimpleNamespace(name="synthetic", n_layers=6, width=12, downsample_rate=320)
        self.spoil = spoil

    def forward(self, wave: torch.Tensor, lengths: torch.Tensor, layers: range) -> torch.Tensor:
        frames = int(lengths[0]) // 320
        dice = torch.Generator().manual_seed(int(lengths[0]))
        drift = torch.randn(len(layers), frames, 12, generator=dice).cumsum(0)
        drift[5, :, 0] += 30 * wave[0, : frames * 320].view(frames, 320).std(1)
        if self.spoil is not None:
            drift[2, 0, 0] = self.spoil
        return drift[None]


def noises(folder: Path, count: int = 40, label: Any = lambda number: number % 2) -> Path:
    """A manifest of noises of 0.5 s, loud or soft as their label says."""
    dice = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        loud = (0.05, 0.5)[number % 2]
        soundfile.write(folder / f"{number}.wav", loud * dice.uniform(-1, 1, 8000 + 7 * number), 16000)
        rows.append({"audio": f"{number}.wav", "label": label(number)})
    manifest = folder / "data.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def proposed(manifest: Path, teacher: Any, seed: int = 0) -> proposal.Proposal:
    drawn = sample.draw(DataConfig(path=str(manifest)), seed)
    heard = measure.hear(teacher, drawn, CPU, seed, progress=False)
    probes, left_out = measure.probe(heard, drawn, seed)
    parts = measure.compare(heard.blocks)
    return proposal.conclude(parts, probes, left_out, 2, [2, 4], "synthetic", {"Data": "noises"}, heard.remarks)


def test_the_one_layer_that_carries_the_label_is_a_target(tmp_path: Path) -> None:
    found = proposed(noises(tmp_path), Synthetic())
    assert found.probes[0].near == {5} and 5 in found.chosen.layers
    assert found.chosen.met == found.counted == 1 and found.recipe is not None and found.recipe.met == 0
    assert np.allclose(np.diagonal(found.cka), 1) and found.cka[1, 2] > found.cka[1, 4]
    page.write(found, tmp_path / "out")
    numbers = json.loads((tmp_path / "out" / "targets.json").read_text())
    assert numbers["targets"] == list(found.chosen.layers) and numbers["probes"][0]["best"] == 5
    assert (tmp_path / "out" / "targets.png").stat().st_size > 10_000
    assert "| **chosen** |" in (tmp_path / "out" / "targets.md").read_text()


def test_the_same_seed_hears_and_proposes_the_same(tmp_path: Path) -> None:
    manifest = noises(tmp_path)
    one, again = (page.numbers(proposed(manifest, Synthetic())) for _ in range(2))
    assert one == again


def test_a_label_that_never_changes_is_left_out_and_said(tmp_path: Path) -> None:
    found = proposed(noises(tmp_path, 24, lambda _: "same"), Synthetic())
    assert not found.probes and found.counted == 0
    assert "rests on CKA alone" in page.page(found)
    assert found.left_out[0] == "label: all 24 utterances heard have the same"
    found = proposed(noises(tmp_path, 24, lambda number: number), Synthetic())
    assert not found.probes and found.left_out[0].startswith("label: 0 utterances heard share theirs")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_states_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="layer 2 of teacher synthetic has values that are not finite"):
        proposed(noises(tmp_path, 4), Synthetic(value))


def test_data_without_audio_is_refused(tmp_path: Path) -> None:
    manifest = noises(tmp_path, 4)
    for file in tmp_path.glob("*.wav"):
        file.write_text("no audio")
    with pytest.raises(ValueError, match="none of 4 utterances drawn"):
        sample.draw(DataConfig(path=str(manifest)), 0)


def test_undecodable_utterances_are_passed_over_and_said(tmp_path: Path) -> None:
    manifest = noises(tmp_path, 30)
    (tmp_path / "3.wav").write_text("no audio")
    found = proposed(manifest, Synthetic())
    assert "1 of 30 utterances drawn cannot be used" in page.page(found)


def test_more_targets_than_layers_are_refused_before_anything_is_heard(tmp_path: Path) -> None:
    teacher: Any = Synthetic()
    keys = {"pred_layer_id": list(range(1, 8))}
    with pytest.raises(ValueError, match="7 layers are to be predicted, but teacher synthetic has 6"):
        with_targets(DistillerConfig(), keys, teacher, DataConfig(path="absent"), 0, tmp_path, CPU)
    with pytest.raises(ValueError, match="task_emb_type=none"):
        with_targets(DistillerConfig(task_emb_type="none"), {}, teacher, DataConfig(), 0, tmp_path, CPU)


def test_a_layer_that_never_varies_is_not_chosen() -> None:
    parts = np.full((2, 4, 4), 0.5) + 0.5 * np.eye(4)
    parts[:, 2] = parts[:, :, 2] = np.nan
    found = proposal.conclude(parts, [], [], 2, [], "t", {}, [])
    assert found.chosen.layers == (1, 3)
    assert page.numbers(found)["cka"][2] == [None] * 4
    with pytest.raises(ValueError, match="has 2 to choose from"):
        proposal.conclude(parts, [], [], 3, [], "t", {}, [])
