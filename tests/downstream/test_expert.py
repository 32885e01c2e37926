"""Upstream, featurizer, head and task tied together: what reaches the task, what is trained, what is kept."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from s3prl_distiller.downstream.core.config import DataConfig, DownstreamConfig, UpstreamConfig
from s3prl_distiller.downstream.core.expert import DownstreamExpert, check_upstream
from s3prl_distiller.downstream.core.task import Task, TaskConfig
from torch import nn

from s3prl_distiller import checkpoint
from s3prl_distiller.data.utterance import Utterance
from s3prl_distiller.engine.loop import precision

torch.set_num_threads(1)
CPU = torch.device("cpu")
AUTOCAST, _ = precision("float32", CPU)
RATE, WIDTH = 160, 3


class Steps(nn.Module):
    """An upstream of three layers: the mean of each 160 samples times a weight; ``padding`` after the end."""

    n_layers, width, downsample_rate, neural = 3, WIDTH, RATE, True
    name, fingerprint = "steps", "0123"
    padding = 1e6

    def __init__(self, trainable: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.arange(1.0, 4.0), requires_grad=trainable)

    def forward(self, wave: torch.Tensor, lengths: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        frames = lengths // RATE
        most = int(frames.max())
        means = wave[:, : most * RATE].unflatten(1, (most, RATE)).mean(2)
        means = torch.where(torch.arange(most) < frames[:, None], means, self.padding)
        return [weight * means[..., None].repeat(1, 1, WIDTH) for weight in self.weight], frames


class Level(Task):
    """How loud an utterance is, by a linear layer on the mean of the features."""

    name, metric, higher_is_better = "level", "error", False

    def __init__(self) -> None:
        super().__init__(TaskConfig())
        self.heard: list[torch.Tensor] = []

    def read(self, root: Path) -> Any: ...
    def prepare(self, splits: Any, downsample_rate: int) -> None: ...

    def target(self, utterance: Utterance) -> float:
        return (utterance.custom or {})["level"]

    def build_head(self, width: int, downsample_rate: int) -> nn.Module:
        assert (width, downsample_rate) == (WIDTH, RATE)
        torch.manual_seed(0)
        return nn.Sequential(nn.Dropout(0.5), nn.Linear(width, 1))

    def loss(self, head: nn.Module, features: torch.Tensor, lengths: torch.Tensor, targets: Any) -> Any:
        self.heard.append(features.detach())
        out = head(features.sum(1) / lengths[:, None])[:, 0]
        loss = (out - torch.tensor(targets)).pow(2).mean()
        return loss, {"error": loss.detach()}

    def predict(self, head: nn.Module, features: torch.Tensor, lengths: torch.Tensor, utterances: Any) -> Any:
        self.heard.append(features)
        assert not head.training and not torch.is_grad_enabled()
        means = features.sum(-2) / lengths.reshape(-1, *[1] * (features.dim() - 2))
        if self.all_layers:
            return [{"id": u.id, "means": mean.tolist()} for u, mean in zip(utterances, means, strict=True)]
        return [{"id": u.id, "out": float(out)} for u, out in zip(utterances, head(means)[:, 0], strict=True)]

    def score(self, rows: Any) -> dict[str, float]:
        return {"error": float(np.mean([row["out"] for row in rows])) if rows else math.nan}

    def state(self) -> dict[str, Any]:
        return {"known": ["é"]}


@pytest.fixture
def splits(tmp_path: Path) -> dict[str, list[Utterance]]:
    """Constants, so that features are known; lengths in no order."""
    found: dict[str, list[Utterance]] = {"train": [], "dev": []}
    for number, seconds in enumerate((0.5, 0.1, 0.9, 0.3, 0.7, 0.2)):
        level = (number + 1) / 10
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, np.full(round(16000 * seconds), level), 16000, subtype="FLOAT")
        for split, utterances in found.items():
            name = f"{split}-{number}"
            utterances.append(Utterance(name, name, str(path), duration=seconds, custom={"level": level}))
    return found


def make(splits: Any, trainable: bool = False, kind: type[Task] = Level, **data: Any) -> DownstreamExpert:
    task = kind()
    task.splits = splits
    config = DownstreamConfig(upstream=UpstreamConfig(trainable=trainable), data=DataConfig(**data))
    return DownstreamExpert(config, task, Steps(trainable))  # pyright: ignore[reportArgumentType]


def outputs(expert: DownstreamExpert, utterances: Any) -> list[dict[str, Any]]:
    return list(expert.predict(utterances, AUTOCAST, CPU))


def first_batch(expert: DownstreamExpert) -> Any:
    return next(iter(expert.get_train_dataloader(0, 0)))


def test_what_stands_after_an_utterance_is_zero(splits: Any) -> None:
    """Whatever it was, the loss and its gradient are those of zeros."""
    grads = []
    expert = make(splits, batch_size=6)
    for padding in (0.0, 1e6, math.nan):
        expert = make(splits, batch_size=6)
        expert.upstream.padding = padding
        expert.model.eval()
        loss, _ = expert(first_batch(expert))
        loss.backward()
        (heard,) = expert.task.heard
        assert heard.isfinite().all() and (heard == 0).any()
        grads.append([float(loss.detach()), *(parameter.grad for parameter in expert.model.parameters())])
    torch.testing.assert_close(grads[0], grads[1])
    torch.testing.assert_close(grads[0], grads[2])
    expert.upstream.padding = math.nan
    outputs(expert, splits["dev"])
    assert len(expert.task.heard) > 1 and all(heard.isfinite().all() for heard in expert.task.heard)


@pytest.mark.parametrize("size", [1, 2, 4, 6])
def test_outputs_are_in_the_order_of_the_utterances(size: int, splits: Any) -> None:
    """Whatever they are batched with; layers count alike at first: the mean of 1, 2 and 3 times the level."""
    expert = make(splits, eval_batch_size=size)
    found = outputs(expert, splits["dev"])
    linear = expert.model.head[1]
    assert [one["id"] for one in found] == [utterance.id for utterance in splits["dev"]]
    for utterance, one in zip(splits["dev"], found, strict=True):
        expected = linear(torch.full((WIDTH,), 2 * utterance.custom["level"])).item()
        assert one["out"] == pytest.approx(expected, abs=1e-5)


def test_every_layer_for_a_task_that_asks_for_it(splits: Any) -> None:
    class Layers(Level):
        all_layers = True

    found = {one["id"]: one["means"] for one in outputs(make(splits, kind=Layers, batch_size=4), splits["dev"])}
    for utterance in splits["dev"]:
        level = utterance.custom["level"]
        expected = [[layer * level] * WIDTH for layer in (1, 2, 3)]
        np.testing.assert_allclose(found[utterance.id], expected, rtol=1e-5)


@pytest.mark.parametrize("trainable", [False, True])
def test_what_is_trained_and_kept(trainable: bool, splits: Any, tmp_path: Path) -> None:
    expert = make(splits, trainable, batch_size=6)
    loss, _ = expert(first_batch(expert))
    loss.backward()
    trained = {name for name, parameter in expert.model.named_parameters() if parameter.grad is not None}
    expected = {"featurizer.weights", "head.1.weight", "head.1.bias"} | ({"upstream.weight"} if trainable else set())
    assert trained == expected == set(expert.model.state_dict())

    with torch.no_grad():
        for parameter in expert.model.parameters():
            parameter.add_(0.25)
    checkpoint.save_folder(tmp_path / "kept", expert.native_writers(7))
    saved = checkpoint.load_json(tmp_path / "kept" / "config.json")
    assert (saved["task"], saved["step"], saved["state"]) == ("level", 7, {"known": ["é"]})
    assert saved["upstream"] == {"name": "steps", "fingerprint": "0123", "layers": 3, "width": WIDTH}
    other = make(splits, trainable, batch_size=2)
    assert outputs(other, splits["dev"]) != outputs(expert, splits["dev"])
    other.load(tmp_path / "kept")
    for one, its in zip(outputs(other, splits["dev"]), outputs(expert, splits["dev"]), strict=True):
        assert one["out"] == pytest.approx(its["out"], abs=1e-6)
    with pytest.raises(ValueError, match="upstream.weight"):
        make(splits, not trainable).load(tmp_path / "kept")


def test_validation_leaves_no_trace(splits: Any) -> None:
    expert = make(splits)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one = expert.validate(AUTOCAST, CPU)
    assert torch.equal(before, torch.get_rng_state()) and expert.validate(AUTOCAST, CPU) == one
    assert expert.model.training and expert.model.head[0].training
    assert all(parameter.grad is None for parameter in expert.model.parameters())


def test_a_batch_weighs_as_many_as_its_utterances(splits: Any) -> None:
    expert = make(splits, batch_size=6)
    assert [expert.weight(batch) for batch in expert.get_train_dataloader(0, 0)] == [len(splits["train"])]


def test_undecodable_utterances_are_counted_anew_each_time(splits: Any) -> None:
    gone = splits["dev"][2]
    Path(gone.audio).unlink()
    expert = make(splits)
    for _ in range(2):
        rows = expert.evaluate("dev", AUTOCAST, CPU)
        assert [row["id"] for row in rows] == [u.id for u in splits["dev"] if u is not gone] and expert.unheard == 1
    expert.task.splits["dev"] = splits["dev"][:2]
    expert.evaluate("dev", AUTOCAST, CPU)
    assert expert.unheard == 0


def test_an_epoch_goes_on_after_the_batches_that_were_consumed(splits: Any) -> None:
    expert = make(splits, batch_size=2)
    whole = [batch.ids for batch in expert.get_train_dataloader(1, 0)]
    assert len(whole) == 3 and sorted(sum(whole, [])) == sorted(u.id for u in splits["train"])
    assert [batch.ids for batch in expert.get_train_dataloader(1, 2)] == whole[2:]


def test_a_head_is_of_one_upstream(splits: Any) -> None:
    expert = make(splits)
    saved = {
        "upstream": {"name": "older", "fingerprint": "ffff"},
        "settings": {"upstream": {"trainable": False}},
    }
    with pytest.raises(ValueError, match=r"trained on older \(ffff\).*steps is now \(0123\)"):
        check_upstream(saved, expert.upstream, Path("run/best"))
    check_upstream({**saved, "upstream": {"name": "older", "fingerprint": "0123"}}, expert.upstream, Path("run/best"))
    # Where it was trained too, its weights come with the checkpoint.
    check_upstream({**saved, "settings": {"upstream": {"trainable": True}}}, expert.upstream, Path("run/best"))
