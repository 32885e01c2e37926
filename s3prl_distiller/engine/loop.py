"""The training loop, top to bottom."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from s3prl_distiller import checkpoint

from . import distributed, randomness
from .config import OptimizerConfig, RunnerConfig
from .log import RunLog
from .members import Member
from .optimizer import learning_rate
from .prefetch import to_device
from .state import (
    BEST,
    MOST_SKIPPED,
    TRAINER,
    Position,
    Progress,
    remove_leftovers,
    restore,
    save_checkpoint,
    trainer_state,
)
from .update import Updates
from .watch import Watch

log = logging.getLogger(__name__)


class Task(Protocol):
    """What the loop needs of what is trained; the pretrain expert is one, a downstream expert another."""

    fingerprint: str  # of the training data
    metric: str  # which figure of a validation says how good the model is
    higher_is_better: bool
    keep_best: bool  # whether the best model on held-out data is kept apart, in the folder ``best``

    @property
    def model(self) -> nn.Module: ...  # what is trained and saved
    @property
    def members(self) -> Sequence[Member]: ...  # its parts that learn each by itself; most tasks have one, all of it
    def get_train_dataloader(self, epoch: int, skip: int) -> Iterable[Any]: ...
    # The figures of each member.
    def validate(self, autocast: Any, device: torch.device) -> Sequence[dict[str, float]]: ...
    # How much a batch counts for in a mean, in what its loss is a mean over; 0 for one without utterances.
    def weight(self, batch: Any) -> int: ...
    # Losses and figures: scalars, or one for each member.
    def __call__(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]: ...
    def add_state_to_save(self, all_states: dict[str, Any], step: int) -> dict[str, Any]: ...
    # Of the whole model, or of a member as it was last validated.
    def native_writers(self, step: int, member: int | None = None) -> dict[str, Any]: ...


@dataclass
class Outcome:
    """How a run ended."""

    step: int
    signal: int | None  # that stopped it, if one did
    checkpoint: Path
    members: list[Progress]  # how each did


def train(
    task: Task,
    runner: RunnerConfig,
    optimizer_config: OptimizerConfig,
    folder: Path,
    device: torch.device,
    resume: Path | None = None,
    config_text: str | None = None,
) -> Outcome:
    """Train until ``runner.total_steps`` or until SIGINT or SIGTERM, which save first.

    Of several processes each has its part of every batch, and an update is that of one process with all of it.

    Args:
        task: what is trained, on ``device`` already.
        folder: where logs and checkpoints go.
        resume: a checkpoint folder to go on from, if any; the task's model holds its weights already.
        config_text: YAML of all settings, kept as ``config.yaml`` once nothing speaks against the run.

    Raises:
        ValueError: the data has changed since the checkpoint, the disk is full, or the gradient stays not finite.
        ConnectionError: another process has ended.
    """
    distributed.share_weights(task.model)
    members = task.members
    autocast, scaler = precision(runner.precision, device)
    assert len(members) == 1 or not scaler.is_enabled(), "one scale of the loss cannot serve several members"
    updates = Updates(members, optimizer_config, runner.gradient_clipping, scaler)
    position = Position(members=[Progress() for _ in members])
    randomness.part_ways(runner.seed)
    if resume is not None:
        state = checkpoint.load_torch(resume / TRAINER)
        position = restore(state, updates.optimizer, scaler, task.fingerprint, resume)
    if distributed.is_main():
        remove_leftovers(folder)
        if config_text is not None:
            checkpoint.save_text(config_text, folder / "config.yaml")
    run_log = RunLog(folder, position.step, runner.total_steps, quiet=not distributed.is_main())

    def save() -> Path:
        state = trainer_state(position, updates.optimizer, scaler, task.fingerprint)
        if distributed.is_main():
            save_checkpoint(folder, task, state, position.step, runner.max_keep)
        distributed.wait()
        return folder / f"states-{position.step}"

    def evaluate() -> None:
        figures = task.validate(autocast, device)
        run_log.write("valid", position.step, _named(figures, members))
        found = ", ".join(f"{f[task.metric]:.4f} {m.name}".rstrip() for f, m in zip(figures, members, strict=True))
        log.info("Step %d: validation %s %s", position.step, task.metric, found)
        if position.step == 0:
            return  # what has not learnt yet is not the best, though chance may say so on a small dev set
        for index, (member, progress) in enumerate(zip(members, position.members, strict=True)):
            value = figures[index][task.metric]
            if progress.note(value, task.higher_is_better, position.step) and task.keep_best:
                if distributed.is_main():
                    checkpoint.save_folder(folder / member.name / BEST, task.native_writers(position.step, index))
                distributed.wait()

    saved = resume
    with contextlib.closing(run_log), _Stop() as stop, Watch():
        if position.step == 0:
            evaluate()
        meter = _Meter(position, members)
        batches = to_device(_batches(task, position.epoch, position.batches), device)
        while position.step < runner.total_steps and not position.stale(runner.early_stop) and not stop.asked():
            for _ in range(runner.gradient_accumulate_steps):
                with meter.waiting():
                    batch, (share, position.epoch, position.batches) = next(batches)
                meter.count(batch)
                # Of several processes, one may have no utterance of a small batch.
                if not batch.ids:
                    continue
                with autocast():
                    loss, parts = task(batch)
                scaler.scale(loss.sum() * share / runner.gradient_accumulate_steps).backward()
                meter.add(loss.detach(), parts, share)
            distributed.average_gradients(task.model)
            rate = learning_rate(position.step + 1, runner.total_steps, optimizer_config)
            updates.make(position.step + 1, rate)
            position.step += 1
            run_log.bar.update()

            last = position.step == runner.total_steps
            due = last or any(position.step % n == 0 for n in (runner.log_step, runner.eval_step, runner.save_step))
            norms = _count_skipped(position, members, updates.norms(newest=due or stop.signal is not None))
            if position.step % runner.log_step == 0 or last:
                values = meter.flush()
                named = _named([{"gradient_norm": norm} for norm in norms], members)
                run_log.write("train", position.step, {**values, **named, "lr": rate})
                run_log.bar.set_postfix_str(f"loss {values['loss']:.3f}, {values['audio_s_per_s']:.0f} s audio/s")
            if position.step % runner.eval_step == 0 or last:
                evaluate()
            if position.step % runner.save_step == 0 or last or position.stale(runner.early_stop):
                meter.store()
                saved = save()
        if stop.signal is not None and (saved is None or saved.name != f"states-{position.step}"):
            meter.store()
            saved = save()
    assert saved is not None
    return Outcome(position.step, stop.signal, saved, position.members)


def precision(name: str, device: torch.device) -> tuple[Any, torch.amp.GradScaler]:
    """A factory of autocast contexts for a precision of the config, and the loss scaler that float16 needs."""
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    dtype = getattr(torch, name)

    def autocast() -> Any:
        return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)

    return autocast, torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)


@torch.no_grad()
def mean_loss(task: Any, batches: Iterable[Any], autocast: Any, device: torch.device) -> dict[str, float]:
    """Loss of a task and its parts over held-out batches, weighted by their audio; nothing random is touched."""
    sums: dict[str, Tensor] = {}
    seconds = 0.0
    task.model.eval()
    try:
        for batch in batches:
            if not batch.ids:
                continue
            with autocast():
                loss, parts = task(batch.to(device))
            seconds += batch.seconds
            for name, value in {"loss": loss, **parts}.items():
                sums[name] = sums.get(name, torch.zeros((), device=device)) + value * batch.seconds
    finally:
        task.model.train()
    everyone = distributed.gather([({name: float(value) for name, value in sums.items()}, seconds)])
    heard = sum(seconds for _, seconds in everyone)
    return {name: value / heard for name, value in _added([sums for sums, _ in everyone]).items()}


def _added(everyone: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums of figures by name; who lacks one counts for nothing."""
    names = dict.fromkeys(name for one in everyone for name in one)
    return {name: sum(one[name] for one in everyone if name in one) for name in names}


def _batches(task: Task, epoch: int, skip: int) -> Iterator[tuple[Any, tuple[float, int, int]]]:
    """Batches without end, from those that ``epoch`` has after the first ``skip``.

    Each comes with the factor that makes the mean over the processes, of losses that are means over their parts of it,
    its mean loss; with its epoch; and with how many batches of that the run has then had. All processes pass over the
    same batches.
    """
    while True:
        found = skip > 0
        for batch in task.get_train_dataloader(epoch, skip):
            skip += 1
            for reason in batch.dropped:
                log.warning("Left out of its batch: %s", reason)
            weight = task.weight(batch)
            # All utterances of a batch may have failed to decode.
            if whole := distributed.total(weight):
                found = True
                yield batch, (weight * distributed.world() / whole, epoch, skip)
        if not found:
            raise ValueError(f"no utterance could be read in epoch {epoch}: see the data report")
        epoch, skip = epoch + 1, 0


def _count_skipped(
    position: Position, members: Sequence[Member], updates: Iterable[tuple[int, list[float]]]
) -> list[float]:
    """Note which updates were left out, by their gradient norms; those of the newest."""
    norms: list[float] = []
    for step, norms in updates:
        for member, progress, norm in zip(members, position.members, norms, strict=True):
            progress.skipped = 0 if math.isfinite(norm) else progress.skipped + 1
            if progress.skipped == 1:
                log.warning("Step %d: the gradient is not finite, no update was made. %s", step, member.name)
        if all(progress.diverged for progress in position.members):
            raise ValueError(
                f"the gradient was not finite for {MOST_SKIPPED} steps up to step {step}: lower optimizer.lr or use "
                "runner.precision=float32. No checkpoint holds NaN; one from before it went wrong is a place to start "
                "again from (-e CKPT -n NEW_NAME)."
            )
    return norms


def _named(values: Sequence[dict[str, float]], members: Sequence[Member]) -> dict[str, float]:
    """Figures of each member by one name: ``acc``, or with several members ``acc/NAME``."""
    if len(members) == 1:
        return dict(values[0])
    return {f"{key}/{m.name}": v for m, figures in zip(members, values, strict=True) for key, v in figures.items()}


class _Meter:
    """Adds up what the log averages over batches; survives a resume through ``Position.sums``."""

    def __init__(self, position: Position, members: Sequence[Member]):
        self.position, self.members = position, members
        self.sums: dict[str, Any] = {
            name: torch.tensor(value, dtype=torch.float64) for name, value in position.sums.items()
        }
        self.count_of = float(self.sums.pop("count", 0.0))
        self.audio = self.waited = 0.0
        self.started = time.monotonic()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        before = time.monotonic()
        yield
        self.waited += time.monotonic() - before

    def count(self, batch: Any) -> None:
        self.audio += batch.seconds
        self.count_of += 1

    def add(self, loss: Tensor, parts: dict[str, Tensor], share: float) -> None:
        # Kept on the device: a .item() here would make every batch wait.
        for name, value in {"loss": loss, **parts}.items():
            value = value.double() * share
            self.sums[name] = self.sums[name].to(value.device) + value if name in self.sums else value

    def store(self) -> None:
        self.position.sums = {name: value.tolist() for name, value in self._whole().items()} | {"count": self.count_of}

    def _whole(self) -> dict[str, Tensor]:
        """Sums over whole batches, of which each process has added up its parts."""
        everyone = distributed.gather([{name: value.cpu() for name, value in self.sums.items()}])
        return {name: value / len(everyone) for name, value in _added(everyone).items()}

    def flush(self) -> dict[str, float]:
        elapsed = max(time.monotonic() - self.started, 1e-9)
        values = self._means() or {"loss": math.nan}
        everyone = distributed.gather([(self.audio / elapsed, self.waited / elapsed)])
        values["audio_s_per_s"] = sum(audio for audio, _ in everyone)
        values["data_wait_share"] = sum(waited for _, waited in everyone) / len(everyone)
        self.sums, self.count_of, self.audio, self.waited = {}, 0.0, 0.0, 0.0
        self.started = time.monotonic()
        return values

    def _means(self) -> dict[str, float]:
        """Of several members: of each, and of those that have one together."""
        means: dict[str, float] = {}
        for name, value in self._whole().items():
            found = (value / self.count_of).tolist()
            if isinstance(found, list):
                finite = [one for one in found if math.isfinite(one)]
                means[name] = sum(finite) / len(finite) if finite else math.nan
                means |= {f"{name}/{member.name}": one for member, one in zip(self.members, found, strict=True)}
            else:
                means[name] = found
        return means


class _Stop:
    """Turns SIGINT and SIGTERM into a request that the loop heeds between two steps; a second SIGINT stops at once."""

    def asked(self) -> bool:
        """Whether any process was asked to stop: they stop together, at one step."""
        agreed = distributed.highest(self.signal or 0)
        # A signal that came while this process waited for the others is kept for the next time.
        self.signal = agreed or self.signal
        return agreed > 0

    def __enter__(self) -> _Stop:
        self.signal: int | None = None
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: Any) -> None:
        if self.signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.signal = number
        log.info("Stopping after this step, then saving (Ctrl-C again to stop without).")
