"""Tasks in which nothing is trained: features are compared as they are; all there is to choose is a layer, on dev."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from s3prl_distiller.data.utterance import Utterance

from . import task as base


class UntrainedTask(base.Task):
    """A task without a head. Its config has a key ``layer``, None where dev decides.

    Attributes:
        layer: the hidden state in use; None before one is chosen.
        layers: the task's metric of each hidden state on dev, where the layer was chosen there.
    """

    trained = False
    all_layers = True
    files_needed = 2
    metric_in_words: ClassVar[str]
    """As pictures have it."""

    def __init__(self, config: Any):
        super().__init__(config)
        self.layer: int | None = config.layer
        self.layers: list[float] = []

    def target(self, utterance: Utterance) -> Any:
        return None

    def build_head(self, width: int, downsample_rate: int) -> nn.Module:
        return nn.Identity()

    def loss(
        self, head: nn.Module, features: Tensor, lengths: Tensor, targets: Sequence[Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        raise AssertionError(f"{self.name} has nothing to train")

    def select_layer(self, features: Tensor, layer: int) -> Tensor:
        """One layer of features (B, L, T, D), as (B, 1, T, D).

        Raises:
            ValueError: the upstream has no such layer.
        """
        if not -features.shape[1] <= layer < features.shape[1]:
            raise ValueError(f"task.layer={layer}: this upstream has the layers 0 to {features.shape[1] - 1}")
        return features[:, [layer]]

    def layers_picture(self, folder: Path) -> list[Path]:
        """The metric of each layer, where one was chosen."""
        from ..pictures.detection import draw_layers

        if not self.layers or self.layer is None:
            return []
        name = f"{self.metric_in_words} ({self.units[self.metric]})"
        return [draw_layers(self.layers, self.layer, name, folder / f"{self.metric}_layers.png")]

    def state(self) -> dict[str, Any]:
        return {"layer": self.layer, f"dev_{self.metric}_of_layers": self.layers}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.layer = state["layer"] if self.config.layer is None else self.config.layer
        self.layers = list(state[f"dev_{self.metric}_of_layers"])
