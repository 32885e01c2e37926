"""An upstream that takes no time, a task that does nothing, and the plain way to the same states."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import safetensors.torch
import torch
from s3prl_distiller.downstream.core.batches import Waves
from s3prl_distiller.downstream.core.config import DataConfig, DownstreamConfig, FeaturesConfig, UpstreamConfig
from s3prl_distiller.downstream.core.draws import Draw, eval_draw
from s3prl_distiller.downstream.core.expert import _zero_padding
from s3prl_distiller.downstream.features.kept import Kept, keep_features
from torch.nn.utils.rnn import pad_sequence

from s3prl_distiller.data.utterance import Utterance
from s3prl_distiller.engine.loop import precision

NANO = Path(__file__).resolve().parents[3] / "s3prl_distiller" / "quickstart" / "hubert_nano"
CPU = torch.device("cpu")
AUTOCAST, _ = precision("float32", CPU)


class Means(torch.nn.Module):
    """An upstream that takes no time: means of 160 samples, as they are and squared; NaN after the end."""

    n_layers, width, downsample_rate, twin = 2, 3, 160, None

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[int] = []
        self.pause, self.scale, self.weights = 0.0, {}, "0"

    def identity(self) -> dict[str, Any]:
        return {"weights": self.weights}

    def forward(self, wave: torch.Tensor, lengths: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        assert not torch.is_grad_enabled()
        time.sleep(self.pause)
        self.heard += lengths.tolist()
        frames = lengths // 160
        most = int(frames.max())
        means = wave[:, : most * 160].unflatten(1, (most, 160)).mean(2)[..., None] * torch.tensor([1.0, 2.0, 3.0])
        means = means * torch.tensor([self.scale.get(int(n), 1.0) for n in lengths])[:, None, None]
        means[torch.arange(most) >= frames[:, None]] = torch.nan
        return [means, means.square()], frames


def means() -> Any:
    return Means()


def task_of(pooled: bool = False, trained: bool = True, **splits: list[Utterance]) -> Any:
    return SimpleNamespace(
        name="stub",
        pooled=pooled,
        trained=trained,
        all_layers=False,
        splits=splits,
        target=lambda utterance: f"target of {utterance.id}",
    )


def config_of(folder: Path, normalize: bool = False, options: dict[str, Any] | None = None, **data: Any) -> Any:
    return DownstreamConfig(
        upstream=UpstreamConfig(normalize=normalize),
        data=DataConfig(**{"num_workers": 0} | data),
        features=FeaturesConfig(keep=True, folder=str(folder / "store"), **options or {}),
    )


def keep(upstream: Any, task: Any, config: Any, autocast: Any = AUTOCAST, **more: Any) -> Kept:
    found = keep_features(upstream, task, config, Waves(gain=10 ** (config.data.gain_db / 20)), autocast, CPU, **more)
    assert found is not None
    return found


def whole(utterances: list[Utterance]) -> list[Draw]:
    return [eval_draw(utterance, DataConfig()) for utterance in utterances]


@torch.no_grad()
def plainly(upstream: Any, draws: list[Draw]) -> tuple[torch.Tensor, torch.Tensor]:
    """What a run without a store gives to its head, (L, B, T, D), in one batch."""
    waves = [Waves().get(draw) for draw in draws]
    states, frames = upstream(pad_sequence(waves, batch_first=True), torch.tensor([len(wave) for wave in waves]))
    return torch.stack([_zero_padding(state, frames) for state in states])[:, :, : int(frames.max())], frames


def content(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in folder.rglob("*.safetensors"):
        for name, tensor in safetensors.torch.load_file(path).items():
            assert name not in found, "nothing is kept twice"
            found[name] = tensor.clone()  # what is loaded is the file's own pages
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
