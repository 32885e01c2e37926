"""A downstream run behind the interface of the training loop: upstream, featurizer, head and task, tied together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from s3prl_distiller import checkpoint, settings
from s3prl_distiller.data.utterance import Utterance
from s3prl_distiller.engine import distributed

from .batches import EvalOrder, LabelledBatch, TrainOrder, load_waves, make_loader
from .config import DownstreamConfig
from .corpus import fingerprint
from .featurizer import Featurizer
from .task import Row, Task
from .upstream import Upstream

FORMAT = "s3prl_distiller.downstream"


class Model(nn.Module):
    """What a checkpoint holds: featurizer and head, and the upstream where it is trained too."""

    def __init__(self, featurizer: Featurizer, head: nn.Module, upstream: Upstream | None):
        super().__init__()
        self.featurizer, self.head, self.upstream = featurizer, head, upstream


class DownstreamExpert(nn.Module):
    """What is trained and judged.

    Args:
        config: of the run.
        task: with its data prepared, or its state loaded.
        upstream: in eval mode, unless it is trained too.

    Attributes:
        model: what is trained.
        unheard: of the last evaluation, how many utterances could not be decoded.
    """

    keep_best = True

    def __init__(self, config: DownstreamConfig, task: Task, upstream: Upstream):
        super().__init__()
        self.config, self.task, self.upstream = config, task, upstream
        self.metric, self.higher_is_better = task.metric, task.higher_is_better
        self.fingerprint = fingerprint(task.splits.get("train", []))
        self.model = Model(
            Featurizer(upstream.n_layers, config.upstream.normalize),
            task.build_head(upstream.width, upstream.downsample_rate),
            upstream if config.upstream.trainable else None,
        )
        self.model.train()
        self.unheard = 0
        self._waves = load_waves((u for split in task.splits.values() for u in split), config.data)
        balanced = config.data.balanced and "train" in task.splits
        self._classes = [task.balance_by(utterance) for utterance in task.splits["train"]] if balanced else None

    # Training

    def get_train_dataloader(self, epoch: int, skip: int) -> Iterable[LabelledBatch]:
        """Batches of an epoch without the first ``skip``."""
        data, utterances = self.config.data, self.task.splits["train"]
        order = TrainOrder(utterances, data, self._classes, self.config.runner.seed, epoch, skip)
        return make_loader(order, self.task, self._waves, data)

    def forward(self, batch: LabelledBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and figures to log."""
        hidden_states, lengths = self._hear(batch)
        features = self.task.augment(self.model.featurizer(hidden_states), lengths)
        loss, parts = self.task.loss(self.model.head, features, lengths, batch.targets)
        return loss * batch.share, parts

    def _hear(self, batch: LabelledBatch) -> tuple[list[Tensor], Tensor]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.upstream.trainable):
            hidden_states, lengths = self.upstream(batch.wave, batch.lengths)
            return [_zero_padding(state, lengths) for state in hidden_states], lengths

    # Judging

    def validate(self, autocast: Any, device: torch.device) -> dict[str, float]:
        """Figures on the split ``dev``."""
        return self.task.score(self.evaluate("dev", autocast, device))

    def evaluate(self, split: str, autocast: Any, device: torch.device) -> list[Row]:
        """Predictions on a split, or on the utterances that a split of that name was given."""

        def predict(utterances: Sequence[Utterance]) -> Iterator[dict[str, Any]]:
            return self.predict(utterances, autocast, device)

        self.unheard = 0
        return self.task.evaluate(split, predict)

    @torch.no_grad()
    def predict(self, utterances: Sequence[Utterance], autocast: Any, device: torch.device) -> Iterator[dict[str, Any]]:
        """Outputs of the task's ``predict``, in the order of the utterances; of all processes, on each of them."""
        data = self.config.data
        loader = make_loader(EvalOrder(utterances, data), None, self._waves, data)
        self.model.eval()
        try:
            if self.task.all_layers:
                yield from self._outputs(loader, autocast, device)
            else:
                place = {utterance.id: index for index, utterance in enumerate(utterances)}
                outputs = distributed.gather(list(self._outputs(loader, autocast, device)))
                yield from sorted(outputs, key=lambda output: place[output["id"]])
        finally:
            self.model.train()

    def _outputs(
        self, loader: Iterable[LabelledBatch], autocast: Any, device: torch.device
    ) -> Iterator[dict[str, Any]]:
        for batch in loader:
            self.unheard += len(batch.dropped)
            if not batch.ids:
                continue
            with autocast():
                hidden_states, lengths = self._hear(batch.to(device))
                if self.task.all_layers:
                    features = torch.stack(hidden_states, 1)
                else:
                    features = self.model.featurizer(hidden_states)
                outputs = self.task.predict(self.model.head, features, lengths, batch.utterances)
            yield from outputs

    # Keeping

    def add_state_to_save(self, all_states: dict[str, Any], step: int) -> dict[str, Any]:
        """Nothing beside the native form: a head is of use here only."""
        return all_states

    def native_writers(self, step: int) -> dict[str, Any]:
        """Writers of weights and config, by file name."""
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.model.state_dict().items()}
        config = {
            "format": FORMAT,
            "task": self.task.name,
            "step": step,
            "upstream": {
                "name": self.upstream.name,
                "fingerprint": self.upstream.fingerprint,
                "layers": self.upstream.n_layers,
                "width": self.upstream.width,
            },
            "state": self.task.state(),
            "settings": settings.plain(self.config),
        }
        return {
            checkpoint.WEIGHTS: lambda path: safetensors.torch.save_file(weights, path, metadata={"format": "pt"}),
            checkpoint.CONFIG: lambda path: checkpoint.save_json(config, path),
        }

    def load(self, folder: Path) -> None:
        """Take the weights of a checkpoint folder.

        Raises:
            ValueError: they do not fit.
        """
        weights = checkpoint.load_safetensors(folder / checkpoint.WEIGHTS)
        checkpoint.check_weights(weights, self.model, folder)
        self.model.load_state_dict(weights)


def check_upstream(saved: Mapping[str, Any], upstream: Upstream, folder: Path) -> None:
    """Raises ValueError where a checkpoint's head was trained on another upstream."""
    trained = saved["upstream"]
    if trained["fingerprint"] != upstream.fingerprint and not saved["settings"]["upstream"]["trainable"]:
        raise ValueError(
            f"the head in {folder} was trained on {trained['name']} ({trained['fingerprint']}), which is not what "
            f"{upstream.name} is now ({upstream.fingerprint}): its weights are others"
        )


def _zero_padding(features: Tensor, lengths: Tensor) -> Tensor:
    """(B, T, D) with zeros after each utterance's frames, whatever stood there, NaN included.

    It is done before the weighted sum: a NaN that counts for nothing in a sum still spoils its gradient.
    """
    padding = (torch.arange(features.shape[1])[None] >= lengths[:, None]).to(features.device)[..., None]
    return features.masked_fill(padding, 0.0) if features.requires_grad else features.masked_fill_(padding, 0.0)
