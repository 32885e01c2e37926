"""A downstream run behind the interface of the training loop: upstream, featurizer, head and task, tied together."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from s3prl_distiller import checkpoint, settings
from s3prl_distiller.data.utterance import Utterance
from s3prl_distiller.engine import Member, distributed

from ..features.kept import Kept, keep_features
from .batches import LabelledBatch, load_waves, make_loader
from .config import DownstreamConfig
from .corpus import fingerprint
from .draws import EvalOrder, TrainOrder
from .featurizer import Featurizer, featurize
from .search import variants
from .side_by_side import SideBySide
from .task import Predict, Row, Task
from .upstream import Upstream

FORMAT = "s3prl_distiller.downstream"
SEARCH_FORMAT = "s3prl_distiller.downstream.search"


class Model(nn.Module):
    """What a checkpoint holds: featurizer and head, and the upstream where it is trained too."""

    def __init__(self, featurizer: Featurizer, head: nn.Module, upstream: Upstream | None):
        super().__init__()
        self.featurizer, self.head, self.upstream = featurizer, head, upstream


class DownstreamExpert(nn.Module):
    """What is trained and judged: one model, or several that learn side by side (section ``search`` of the config).

    Args:
        config: of the run.
        task: with its data prepared, or its state loaded.
        upstream: in eval mode, unless it is trained too.

    Attributes:
        variants: learning rate and seed of each model.
        models: one for each variant.
        started: when the run began, on the monotonic clock.
        kept: the features that are not computed anew, if any.
        unheard: of the last evaluation, how many utterances could not be decoded.
    """

    keep_best = True

    def __init__(self, config: DownstreamConfig, task: Task, upstream: Upstream):
        super().__init__()
        self.config, self.task, self.upstream = config, task, upstream
        self.metric, self.higher_is_better = task.metric, task.higher_is_better
        self.fingerprint = fingerprint(task.splits.get("train", []))
        self.variants = variants(config)
        self.models = list(self._build_models())
        self._together = nn.ModuleList(self.models)
        self.model.train()
        self._side_by_side = SideBySide(task, [model.head for model in self.models]) if len(self.models) > 1 else None
        self.started = time.monotonic()
        self._states: list[dict[str, Any]] = []
        self.unheard = 0
        self.kept: Kept | None = None
        self.waves = load_waves((u for split in task.splits.values() for u in split), config.data)
        balanced = config.data.balanced and "train" in task.splits
        self._classes = [task.balance_by(utterance) for utterance in task.splits["train"]] if balanced else None

    def _build_models(self) -> Iterator[Model]:
        """Heads of one seed begin alike, so that learning rates are compared and nothing else."""
        first: dict[int, Model] = {}
        for variant in self.variants:
            if variant.seed not in first:
                # The first seed is the run's: it has been set, and its model is that of a run of one head.
                with torch.random.fork_rng(enabled=bool(first)):
                    if first:
                        torch.manual_seed(variant.seed)
                    first[variant.seed] = self._build_model()
                yield first[variant.seed]
            else:
                yield copy.deepcopy(first[variant.seed])

    def _build_model(self) -> Model:
        return Model(
            Featurizer(self.upstream.n_layers, self.config.upstream.normalize),
            self.task.build_head(self.upstream.width, self.upstream.downsample_rate),
            self.upstream if self.config.upstream.trainable else None,
        )

    @property
    def model(self) -> nn.Module:
        """What is trained and saved: the model, or all of them."""
        return self.models[0] if len(self.models) == 1 else self._together

    @property
    def members(self) -> list[Member]:
        """The models with their learning rates."""
        rate = self.config.optimizer.lr
        return [Member(m, v.lr / rate, v.name) for m, v in zip(self.models, self.variants, strict=True)]

    def keep_features(self, autocast: Any, device: torch.device) -> None:
        """Compute once what need not be computed for each batch, where the config asks for it."""
        if self.kept is None:
            self.kept = keep_features(self.upstream, self.task, self.config, self.waves, autocast, device)

    # Training

    def get_train_dataloader(self, epoch: int, skip: int) -> Iterable[LabelledBatch]:
        """Batches of an epoch without the first ``skip``."""
        data, utterances = self.config.data, self.task.splits["train"]
        order = TrainOrder(utterances, data, self._classes, self.config.runner.seed, epoch, skip)
        return make_loader(order, self.task, self.waves, data, self.kept)

    def weight(self, batch: LabelledBatch) -> int:
        """Utterances that the loss of a batch is a mean over."""
        return len(batch.ids)

    def forward(self, batch: LabelledBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and figures to log; of several models, one value each."""
        hidden_states, lengths = self._hear(batch)
        if self._side_by_side is None:
            model = self.models[0]
            features = self.task.augment(model.featurizer(hidden_states), lengths)
            loss, parts = self.task.loss(model.head, features, lengths, batch.targets)
        else:
            features = featurize([model.featurizer for model in self.models], hidden_states)
            features = self.task.augment(features, lengths)
            loss, parts = self._side_by_side.losses(features, lengths, batch.targets)
        return loss, parts

    def _hear(self, batch: LabelledBatch) -> tuple[Sequence[Tensor] | Tensor, Tensor]:
        if batch.states is not None and batch.frames is not None:
            return batch.states.float(), batch.frames
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.upstream.trainable):
            hidden_states, lengths = self.upstream(batch.wave, batch.lengths)
            return [_zero_padding(state, lengths) for state in hidden_states], lengths

    # Judging

    def validate(self, autocast: Any, device: torch.device) -> list[dict[str, float]]:
        """Figures of each model on the split ``dev``."""
        figures, self._states, self.unheard = [], [], 0
        predict = self._predictions_of_each(autocast, device)
        for place in range(len(self.models)):
            rows = self.task.evaluate("dev", predict(place))
            figures.append(self.task.score(rows))
            self._states.append(self.task.state())
        return figures

    def evaluate(self, split: str, autocast: Any, device: torch.device, member: int = 0) -> list[Row]:
        """Predictions of a model on a split, or on the utterances that a split of that name was given."""

        def predict(utterances: Sequence[Utterance]) -> Iterator[dict[str, Any]]:
            return self.predict(utterances, autocast, device, member)

        self.unheard = 0
        return self.task.evaluate(split, predict)

    def _predictions_of_each(self, autocast: Any, device: torch.device) -> Callable[[int], Predict]:
        """By place of a model, its predictions; what the upstream says is computed once for all of them."""
        if len(self.models) == 1:
            return lambda place: lambda utterances: self.predict(utterances, autocast, device, place)
        known: dict[tuple[str, ...], list[list[dict[str, Any]]]] = {}

        def of(place: int, utterances: Sequence[Utterance]) -> Iterator[dict[str, Any]]:
            asked = tuple(utterance.id for utterance in utterances)
            if asked not in known:
                places = range(len(self.models))
                known[asked] = [list(o) for o in zip(*self._predict(utterances, autocast, device, places), strict=True)]
            return iter(known[asked][place])

        return lambda place: lambda utterances: of(place, utterances)

    def predict(
        self, utterances: Sequence[Utterance], autocast: Any, device: torch.device, member: int = 0
    ) -> Iterator[dict[str, Any]]:
        """Outputs of the task's ``predict``, in the order of the utterances; of all processes, on each of them."""
        for (output,) in self._predict(utterances, autocast, device, [member]):
            yield output

    @torch.no_grad()
    def _predict(
        self, utterances: Sequence[Utterance], autocast: Any, device: torch.device, members: Sequence[int]
    ) -> Iterator[tuple[dict[str, Any], ...]]:
        """Of each utterance, the output of each of those models."""
        data = self.config.data
        loader = make_loader(EvalOrder(utterances, data), None, self.waves, data, self.kept)
        self.model.eval()
        try:
            if self.task.all_layers:
                yield from self._outputs(loader, autocast, device, members)
            else:
                place = {utterance.id: index for index, utterance in enumerate(utterances)}
                outputs = distributed.gather(list(self._outputs(loader, autocast, device, members)))
                yield from sorted(outputs, key=lambda output: place[output[0]["id"]])
        finally:
            self.model.train()

    def _outputs(
        self, loader: Iterable[LabelledBatch], autocast: Any, device: torch.device, members: Sequence[int]
    ) -> Iterator[tuple[dict[str, Any], ...]]:
        for batch in loader:
            self.unheard += len(batch.dropped)
            if not batch.ids:
                continue
            outputs = []
            with autocast():
                hidden_states, lengths = self._hear(batch.to(device))
                for model in (self.models[member] for member in members):
                    if self.task.all_layers:
                        features = torch.stack(list(hidden_states), 1)
                    else:
                        features = model.featurizer(hidden_states)
                    outputs.append(self.task.predict(model.head, features, lengths, batch.utterances))
            yield from zip(*outputs, strict=True)

    # Keeping

    def add_state_to_save(self, all_states: dict[str, Any], step: int) -> dict[str, Any]:
        """Nothing beside the native form: a head is of use here only."""
        return all_states

    def native_writers(self, step: int, member: int | None = None) -> dict[str, Any]:
        """Writers of weights and config, by file name.

        Args:
            member: the model to write, with what the task chose on dev for it; None: all that is trained, to go on
                with. A model's checkpoint is that of an ordinary run.
        """
        whole = member is None and len(self.models) > 1
        model = self.model if member is None else self.models[member]
        state = self.task.state() if member is None or not self._states else self._states[member]
        config = self.config if whole else self.variants[member or 0].config(self.config)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        description = {
            "format": SEARCH_FORMAT if whole else FORMAT,
            "task": self.task.name,
            "step": step,
            "upstream": {
                "name": self.upstream.name,
                "fingerprint": self.upstream.fingerprint,
                "layers": self.upstream.n_layers,
                "width": self.upstream.width,
            },
            "state": state,
            "settings": settings.plain(config),
        }
        return {
            checkpoint.WEIGHTS: lambda path: safetensors.torch.save_file(weights, path, metadata={"format": "pt"}),
            checkpoint.CONFIG: lambda path: checkpoint.save_json(description, path),
        }

    def load(self, folder: Path, member: int | None = None) -> None:
        """Take the weights of a checkpoint folder: of all that is trained, or of one model.

        Raises:
            ValueError: they do not fit.
        """
        model = self.model if member is None else self.models[member]
        weights = checkpoint.load_safetensors(folder / checkpoint.WEIGHTS)
        checkpoint.check_weights(weights, model, folder)
        model.load_state_dict(weights)


def check_upstream(saved: Mapping[str, Any], upstream: Upstream, folder: Path, even_trained: bool = False) -> None:
    """Raises ValueError where a checkpoint's head was trained on another upstream.

    Args:
        even_trained: also where the upstream was trained too, so that the checkpoint has weights of its own for it.
    """
    trained = saved["upstream"]
    kept = saved["settings"]["upstream"]["trainable"] and not even_trained
    if trained["fingerprint"] != upstream.fingerprint and not kept:
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
