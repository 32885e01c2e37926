"""The config of a downstream run: typed defaults; ``config/downstream/TASK.yaml`` holds what a task has otherwise."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from typing import Any

from s3prl_distiller.engine import OptimizerConfig, RunnerConfig

from .task import Task, TaskConfig


@dataclass
class UpstreamConfig:
    """Section ``upstream``: which model, and what of it a task is given."""

    name: str | None = None
    """-u: a name in the s3prl hub (``fbank`` is one), a checkpoint file or a Hugging Face folder"""
    ckpt: str | None = None
    """-k: what a hub name that takes a checkpoint is to load"""
    feature: str = "hidden_states"
    """-s: key of what the upstream returns; a list of layers becomes a learned weighted sum"""
    layer: int | None = None
    """-l: this one of the layers in place of their weighted sum"""
    normalize: bool = False
    """-r: normalise each frame of each layer before the weighted sum"""
    trainable: bool = False
    """-f: train the upstream too"""


@dataclass
class DataConfig:
    """Section ``data``: where the corpus is, and how its utterances are drawn."""

    path: str | None = None
    """--data: the corpus in its official layout, or a folder of manifests"""
    batch_size: int = 32
    """utterances in a training batch, over all GPUs together"""
    eval_batch_size: int = 0
    """utterances in a batch of an evaluation, which figures do not depend on; 0: as in training"""
    num_workers: int = -1
    """decoding processes; -1: one fewer than there are cores, at most 16; 0: decode in the training process"""
    memory_hours: float = 2.0
    """a corpus of at most so many hours is decoded once and kept in memory (230 MB an hour)"""
    bucketed: bool = False
    """draw batches of utterances of similar length"""
    long_seconds: float = 18.75
    """bucketed batches with a longer utterance have half as many (s3prl's 300,000 samples)"""
    balanced: bool = False
    """draw each class equally often, with replacement"""
    crop_seconds: float | None = None
    """longer utterances are cropped at random to this in training"""
    eval_crop_seconds: float | None = None
    """longer utterances are cropped to their middle in evaluations; null: heard whole"""
    gain_db: float = 0.0
    """added to the level of all audio"""
    check: str = "full"
    """"full": decode every file once before; "header": read headers only"""
    max_bad_share: float = 0.05
    """larger shares of unusable utterances (0 to 1) stop before training"""
    min_seconds: float = 0.05
    """shorter utterances are left out; at least 0.04: a baseline such as fbank, which is normalised over time, is no
    number in one frame, and nothing at all below a window of 0.025 s"""
    cache_dir: str | None = None
    """where the results of checking files are kept; null: $S3PRL_DISTILLER_CACHE, else ~/.cache/s3prl-distiller"""

    def validate(self) -> None:
        """Raises ValueError, naming the key, for a value that cannot work."""
        if self.batch_size < 1 or self.eval_batch_size < 0 or self.num_workers < -1:
            raise ValueError("data.batch_size must be at least 1, data.eval_batch_size 0 and data.num_workers -1")
        for name in ("crop_seconds", "eval_crop_seconds"):
            value = getattr(self, name)
            if value is not None and not value >= self.min_seconds:
                raise ValueError(f"data.{name} is {value}: it must be at least data.min_seconds = {self.min_seconds}")
        if not self.memory_hours >= 0:
            raise ValueError(f"data.memory_hours is {self.memory_hours}: it must be at least 0")
        if not 0 <= self.max_bad_share <= 1 or not self.min_seconds >= 0.04:
            raise ValueError("data.max_bad_share is a share between 0 and 1, and data.min_seconds at least 0.04")
        if not -100 <= self.gain_db <= 100:
            raise ValueError(f"data.gain_db is {self.gain_db}: it must be between -100 and 100")
        if self.check not in ("full", "header"):
            raise ValueError(f"data.check is {self.check!r}: it is 'full' or 'header'")


@dataclass
class FeaturesConfig:
    """Section ``features``: the hidden states of a frozen upstream, computed once for every head, rate and seed."""

    keep: bool = False
    """compute them once and keep them as files; where they do not fit, or training hears random crops, they are
    computed anew for each batch"""
    folder: str | None = None
    """where; null: "features" in data.cache_dir. Runs share what they have in common"""
    disk_gb: float = 50.0
    """most that the folder may hold; a corpus beyond it is computed anew for each batch"""
    memory_gb: float = -1.0
    """most of it that is held on the training device; -1: 40 % of what is free there"""
    dtype: str = "float16"
    """of the files: "float16" or "float32"; means over time are always float32"""

    def validate(self) -> None:
        """Raises ValueError, naming the key, for a value that cannot work."""
        if not self.disk_gb >= 0:
            raise ValueError(f"features.disk_gb is {self.disk_gb}: it must be at least 0")
        if not (self.memory_gb >= 0 or self.memory_gb == -1):
            raise ValueError(f"features.memory_gb is {self.memory_gb}: it must be at least 0, or -1")
        if self.dtype not in ("float16", "float32"):
            raise ValueError(f"features.dtype is {self.dtype!r}: it is 'float16' or 'float32'")


@dataclass
class SearchConfig:
    """Section ``search``: heads that learn side by side from the same batches, each by itself."""

    learning_rates: list[float] = field(default_factory=list)
    """a head for each; the one that does best on dev is judged on test. Empty: optimizer.lr alone"""
    seeds: int = 1
    """so many heads for each rate, with seeds from runner.seed on; figures are means over them"""

    def validate(self) -> None:
        """Raises ValueError, naming the key, for a value that cannot work."""
        rates = list(self.learning_rates)
        if not all(0 < rate < float("inf") for rate in rates) or len(set(rates)) != len(rates):
            raise ValueError(f"search.learning_rates is {rates}: give numbers above 0, each once")
        if self.seeds < 1:
            raise ValueError(f"search.seeds is {self.seeds}: it must be at least 1")

    @property
    def active(self) -> bool:
        """Whether more than one head is trained, or a rate is chosen."""
        return bool(self.learning_rates) or self.seeds > 1


@dataclass
class DownstreamConfig:
    """A whole run. Defaults are what most of SUPERB's tasks share."""

    upstream: UpstreamConfig = field(default_factory=UpstreamConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    data: DataConfig = field(default_factory=DataConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    runner: RunnerConfig = field(
        default_factory=lambda: RunnerConfig(
            gradient_clipping=1.0, log_step=100, eval_step=2_000, save_step=2_000, max_keep=2
        )
    )
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            name="Adam", lr=1e-4, warmup_proportion=0.0, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.0
        )
    )

    def validate(self) -> None:
        """Raises ValueError, naming the key, for values that no run can follow."""
        self.runner.check()
        self.optimizer.check()
        self.data.validate()
        self.features.validate()
        self.search.validate()
        if self.search.active and self.runner.precision == "float16":
            raise ValueError(
                "runner.precision=float16 scales the loss of one head: with search use bfloat16 or float32"
            )
        if self.upstream.trainable and (self.features.keep or self.search.active):
            raise ValueError("features.keep and search are for a frozen upstream: leave out -f (upstream.trainable)")


def schema(task: type[Task]) -> type[Any]:
    """The config of a task's runs: :class:`DownstreamConfig` with the task's own section ``task``."""
    section = ("task", task.config_class, field(default_factory=task.config_class))
    return make_dataclass("DownstreamConfig", [section], bases=(DownstreamConfig,))
