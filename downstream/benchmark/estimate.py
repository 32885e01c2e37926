"""What the runs of a benchmark will take on this machine: a few seconds of each upstream and of each kind of head."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from s3prl_distiller.audio import SAMPLE_RATE
from s3prl_distiller.data.scan import examine
from s3prl_distiller.data.utterance import Utterance
from s3prl_distiller.engine import precision

from ..core.config import DownstreamConfig
from ..core.upstream import Upstream, load_upstream
from ..heads.ctc import LinearHead, RecurrentHead, ctc_loss
from ..heads.diarization import DiarizationHead
from ..heads.dtw import costs
from ..heads.pooled import PooledClassifier
from ..heads.xvector import XVector
from .places import Corpus
from .plan import Benchmark, Cost, Run, fingerprint_of

# To start, import, read and check the corpus, load the upstream; to judge, draw the bootstrap and the pictures.
_FIXED = {"cuda": 15.0, "cpu": 20.0}
_OF_A_TEST_ITEM = 0.004
_PROBED = 200  # headers read of a corpus that does not say how long its files are
_CTC = {"pr": 10, "asr": 15, "sf": 15}  # tokens in a second of speech
_FORWARD = 1 / 3  # of a training step
_MOMENT = 1.0
_FEW_FRAMES, _LONG = 60, 2.0


def look(benchmark: Benchmark, device: torch.device | None) -> dict[str, Cost]:
    """Load the upstreams, see that what is there was made with their weights, and estimate what is still to be done.

    Args:
        device: of the runs; None: no estimates, and an upstream without runs is not loaded.

    Returns:
        The cost of each run that is to be done, by its name.

    Raises:
        ValueError: an upstream cannot be loaded, or its weights are others than those of a run that is there.
    """
    found: dict[str, Cost] = {}
    estimator = Estimator(device, benchmark.corpora) if device is not None and benchmark.pending else None
    for upstream in benchmark.upstreams:
        own = [run for run in benchmark.runs if run.upstream == upstream]
        places = {run.name: run.folder for run in own} | {f"the cost of {upstream.label}": own[0].folder.parent}
        made = {name: print_ for name, place in places.items() if (print_ := fingerprint_of(place)) is not None}
        pending = [run for run in own if run in benchmark.pending]
        if not made and (estimator is None or not pending):
            continue
        loaded = load_upstream(own[0].config.upstream)
        for name, print_ in made.items():
            if print_ != loaded.fingerprint:
                raise ValueError(
                    f"{name} is there, made with other weights of {upstream.name} ({print_}) than it has now "
                    f"({loaded.fingerprint}): give the benchmark another name (-n), or the upstream another label"
                )
        if estimator is not None and pending:
            found |= zip((run.name for run in pending), estimator.costs(loaded, pending), strict=True)
    return found


def lengths(utterances: Sequence[Utterance]) -> list[float]:
    """Seconds of each utterance: what the corpus says, or for what it does not say the mean of some."""
    said = [utterance.claimed or utterance.duration for utterance in utterances]
    unknown = [utterance for utterance, seconds in zip(utterances, said, strict=True) if not seconds]
    mean = 0.0
    if unknown:
        facts = [examine(utterance.audio, full=False) for utterance in unknown[:: math.ceil(len(unknown) / _PROBED)]]
        usable = [fact.duration for fact in facts if not fact.reason]
        mean = sum(usable) / max(len(usable), 1)
    return [seconds or mean for seconds in said]


class Estimator:
    """Times things once and remembers them.

    Args:
        device: of the runs.
        corpora: by task; their lengths are read once.
    """

    def __init__(self, device: torch.device, corpora: dict[str, Corpus]):
        self.device, self.corpora = device, corpora
        self._lengths = {
            task: {split: lengths(utterances) for split, utterances in corpus.splits.items()}
            for task, corpus in corpora.items()
        }
        self._heads: dict[Any, float] = {}

    def costs(self, upstream: Upstream, runs: Sequence[Run]) -> list[Cost]:
        """Of runs on one upstream, in the order in which they are done."""
        upstream = upstream.to(self.device)
        speed = self._speed(upstream, runs[0].config)
        kept: set[tuple[Any, ...]] = set()
        return [self._cost(run, upstream, speed, kept) for run in runs]

    def _speed(self, upstream: Upstream, config: DownstreamConfig) -> float:
        """Seconds of audio per second."""
        count, seconds = (16, 8) if self.device.type == "cuda" else (2, 4)
        wave = torch.randn(count, seconds * SAMPLE_RATE, device=self.device) * 0.1
        autocast, _ = precision(config.runner.precision, self.device)

        def hear() -> None:
            with torch.no_grad(), autocast():
                upstream(wave, torch.full((count,), wave.shape[1]))

        return count * seconds / self._time(hear)

    def _cost(self, run: Run, upstream: Upstream, speed: float, kept: set[tuple[Any, ...]]) -> Cost:
        corpus, config, seconds = self.corpora[run.task], run.config, self._lengths[run.task]
        rate = SAMPLE_RATE / upstream.downsample_rate
        fixed = _FIXED.get(self.device.type, _FIXED["cpu"]) + _OF_A_TEST_ITEM * len(corpus.splits.get("test", ()))
        if not corpus.task.trained:
            heard, _ = self._keep(corpus, run, upstream, set())  # what is heard once is not kept
            return Cost(fixed + heard / speed + self._matching(corpus, seconds, upstream), 0)
        heard, disk = 0.0, 0
        crop, runner, data = config.data.crop_seconds, config.runner, config.data
        drawn = runner.total_steps * runner.gradient_accumulate_steps * data.batch_size
        if data.bucketed:
            drawn = drawn * min(1.0, max(0.5, data.long_seconds / max(seconds["train"], default=1.0)))
        mean = sum(seconds["train"]) / max(len(seconds["train"]), 1)
        mean, random = (min(mean, crop), mean > crop) if crop else (mean, False)
        evaluations = 1 + math.ceil(runner.total_steps / runner.eval_step)
        if config.features.keep:
            heard, disk = self._keep(corpus, run, upstream, kept, {"train"} if random else set())
            if disk > config.features.disk_gb * 1e9:
                random, disk = True, 0
        if random or not config.features.keep:
            heard += drawn * mean
        if not config.features.keep:
            heard += evaluations * sum(seconds["dev"]) + sum(seconds["test"])
        frames = max(1, round(mean * rate))
        batch = max(1, round(drawn / (runner.total_steps * runner.gradient_accumulate_steps)))
        step = self._head(run, upstream.width, batch, frames)
        if run.task in _CTC:
            step += self._ctc(batch, frames, round(_CTC[run.task] * mean))
        a_frame = step / (batch * frames)
        judged = evaluations * sum(seconds["dev"]) * rate * _FORWARD * run.heads + sum(seconds["test"]) * rate
        learning = drawn * frames * a_frame * run.heads
        return Cost(fixed + heard / speed + corpus.folds * (learning + judged * a_frame), disk)

    def _keep(
        self, corpus: Corpus, run: Run, upstream: Upstream, kept: set[tuple[Any, ...]], but: Iterable[str] = ()
    ) -> tuple[float, int]:
        """Seconds of audio that are heard, and bytes that are kept, for the first time."""
        data, heard, size = run.config.data, 0.0, 0
        width = 2 if run.config.features.dtype == "float16" else 4
        for split, utterances in corpus.splits.items():
            crop = data.eval_crop_seconds if split != "train" else data.crop_seconds
            for utterance, seconds in zip(utterances, self._lengths[run.task][split], strict=True):
                seconds = min(seconds, crop) if crop else seconds
                key = (str(utterance.audio), utterance.start, data.gain_db, crop, corpus.task.pooled)
                if split in but or key in kept:
                    continue
                kept.add(key)
                heard += seconds
                # The mean over time is all that a pooled head hears.
                frames = 2 if corpus.task.pooled else seconds * SAMPLE_RATE / upstream.downsample_rate
                size += round(frames * upstream.n_layers * upstream.width * width)
        return heard, size

    def _matching(self, corpus: Corpus, seconds: dict[str, list[float]], upstream: Upstream) -> float:
        """Seconds that matching queries with documents takes."""
        rate = SAMPLE_RATE / upstream.downsample_rate
        total = 0.0
        for split in ("dev", "test"):
            roles: dict[Any, list[float]] = {}
            for utterance, length in zip(corpus.splits.get(split, []), seconds.get(split, []), strict=True):
                roles.setdefault((utterance.custom or {}).get("role"), []).append(length)
            queries, documents = roles.get("query", []), roles.get("document", [])
            if not queries or not documents:
                continue
            few, some = min(4, len(queries)), min(16, len(documents))
            asked = [self._random(round(rate * sum(queries) / len(queries)) or 1, upstream.width) for _ in range(few)]
            told = [
                self._random(round(rate * sum(documents) / len(documents)) or 1, upstream.width) for _ in range(some)
            ]
            one = self._time(lambda asked=asked, told=told: costs(asked, told)) / (few * some)
            total += one * len(queries) * len(documents) * upstream.n_layers
        return total

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device)

    def _head(self, run: Run, width: int, batch: int, frames: int) -> float:
        """Seconds of a step of one head; where a CPU would take long over it, what some of the frames say."""
        few = min(frames, _FEW_FRAMES)
        if self.device.type == "cpu" and (seconds := self._step(run, width, batch, few) * frames / few) > _LONG:
            return seconds
        return self._step(run, width, batch, frames)

    def _step(self, run: Run, width: int, batch: int, frames: int) -> float:
        build, kind = _builder(run.task, run.config.task, width)
        key = (kind, batch, frames)
        if key not in self._heads:
            head = build().to(self.device)
            optimizer = torch.optim.Adam(head.parameters())
            features, lengths = self._random(batch, frames, width), torch.full((batch,), frames)
            autocast, _ = precision(run.config.runner.precision, self.device)

            def step() -> None:
                with autocast():
                    output = head(features) if isinstance(head, DiarizationHead) else head(features, lengths)
                output.float().square().mean().backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            self._heads[key] = self._time(step)
        return self._heads[key]

    def _ctc(self, batch: int, frames: int, tokens: int) -> float:
        """Seconds of CTC of one head, which looks at each token at each frame."""
        key = ("ctc", batch, frames, tokens)
        if key not in self._heads:
            logits = self._random(batch, frames, 32).requires_grad_()
            lengths, targets = torch.full((batch,), frames), [torch.ones(max(tokens, 1), dtype=torch.long)] * batch
            self._heads[key] = self._time(lambda: ctc_loss(logits.log_softmax(-1), lengths, targets, 0).backward())
        return self._heads[key]

    def _time(self, work: Callable[[], Any]) -> float:
        """Seconds that it takes, once warm: the least of what fits into a moment, as others may use the machine too."""
        taken = self._once(work)
        if self.device.type == "cpu" and taken > 2.0:
            return taken
        times = [self._once(work), self._once(work)]
        while sum(times) < _MOMENT and len(times) < 10:
            times.append(self._once(work))
        return min(times)

    def _once(self, work: Callable[[], Any]) -> float:
        started = time.monotonic()
        work()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return max(time.monotonic() - started, 1e-6)


def _builder(task: str, config: Any, width: int) -> tuple[Callable[[], nn.Module], Any]:
    """The head of a task with about as many classes as SUPERB has, and what its size depends on."""
    if task in ("asr", "sf"):
        size = (config.project_dim, config.hidden, config.layers)
        return lambda: RecurrentHead(width, 32, *size), ("recurrent", width, *size)
    if task == "sd":
        size = (config.hidden_size, config.rnn_layers)
        return lambda: DiarizationHead(width, 2, *size), ("diarization", width, *size)
    if task == "asv":
        return lambda: XVector(width), ("xvector", width)
    if task == "pr":
        return lambda: LinearHead(width, 74), ("linear", width)
    return lambda: PooledClassifier(width, 64), ("pooled", width)
