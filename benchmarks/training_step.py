"""One step of distillation, HuBERT base to the paper's student: this project beside s3prl's own code, in one run.

    git clone --depth 1 https://github.com/s3prl/s3prl peer
    python benchmarks/training_step.py --s3prl peer/s3prl --out results/training_step.md

A step is the forward pass of teacher and student, the backward pass, clipping and AdamW, on batches of 24 utterances of
10.6 to 15.6 s of noise; several batches in turn, so that shapes change. Models have random weights, which cost the same
arithmetic. s3prl's ``pretrain/distiller`` is in its repository and not in its pip package; it needs ``easydict``. It is
driven as its runner does it: a float16 student, a float32 teacher in train mode, all frames. Ours trains as its command
does; "plain" is the model's plain definition, with the same loss.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import importlib
import itertools
import math
import random
import sys
import time
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from s3prl_distiller.upstream.distiller.fast.replay import ReplayedDistillation
from s3prl_distiller.upstream.distiller.fast.step import PackedDistillation
from s3prl_distiller.upstream.distiller.frontend import frame_lengths, valid_mask
from s3prl_distiller.upstream.distiller.initialise import initialise
from s3prl_distiller.upstream.distiller.model import DistillerModel, Encoder
from s3prl_distiller.upstream.distiller.model_config import DistillerConfig, EncoderConfig
from s3prl_distiller.upstream.distiller.objective import DistillationLoss, distillation_loss
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from s3prl_distiller import hub, machine
from s3prl_distiller.engine import Member, OptimizerConfig, Updates, precision, to_device


@dataclass(frozen=True)
class Batch:
    """Zero-padded noise (B, samples) and its lengths (B,), on the CPU."""

    wave: Tensor
    lengths: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(self.wave.to(device, non_blocking=True), self.lengths)


STUDENT = {
    "encoder_layers": 2,
    "n_tasks": 3,
    "pred_layer_id": [4, 8, 12],
    "task_emb_type": "expand-last",
    "out_layer_type": "expand-last",
    "feature_grad_mult": 0.1,
    "cosine_loss": 1.0,
}


def make_batches(count: int, utterances: int, seconds: tuple[float, float], pin: bool) -> list[Batch]:
    """Batches of noise, longest utterance first."""
    drawn = random.Random(0)
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(count):
        lengths = sorted((round(drawn.uniform(*seconds) * 16_000) for _ in range(utterances)), reverse=True)
        wave = pad_sequence([0.1 * torch.randn(n, generator=generator) for n in lengths], batch_first=True)
        batches.append(Batch(wave.pin_memory() if pin else wave, torch.tensor(lengths)))
    return batches


def models(device: torch.device) -> tuple[Encoder, DistillerModel]:
    """A teacher of HuBERT base's shape, its weights random, and a student that starts from it."""
    torch.manual_seed(0)
    quiet = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
    teacher = Encoder(EncoderConfig(encoder_layers=12, feature_layer_norm=True, **quiet))
    student = DistillerModel(DistillerConfig.from_mapping(STUDENT))
    initialise(student, teacher)
    return teacher.to(device).eval().requires_grad_(False), student.to(device).train()


def plain_loss(teacher: Encoder, student: DistillerModel, wave: Tensor, lengths: Tensor) -> DistillationLoss:
    layers = student.config.targets
    with torch.no_grad():
        states = teacher(wave, lengths, last_layer=max(layers)).hidden_states
        targets = torch.stack([states[layer] for layer in layers], 1)
    predictions = student(wave, lengths).predictions
    assert predictions is not None
    mask = valid_mask(frame_lengths(lengths, student.conv_layers), targets.shape[2], wave.device)
    return distillation_loss(predictions, targets, mask, layers)


def ours(device: torch.device, kind: str) -> Callable[[Batch], None]:
    """A step of this project: "fast", "fast, not replayed", "fast, not compiled" or "plain"."""
    teacher, student = models(device)
    autocast, scaler = precision("auto", device)
    fast = None
    if kind != "plain":
        fast = PackedDistillation(student, teacher, autocast, compiled="not compiled" not in kind)
        if device.type == "cuda" and "not replayed" not in kind:
            fast = ReplayedDistillation(fast)
    updates = Updates([Member(student)], OptimizerConfig(), 5.0, scaler)
    numbers = itertools.count(1)

    def step(batch: Batch) -> None:
        with autocast():
            compute = functools.partial(plain_loss, teacher, student) if fast is None else fast
            loss = compute(batch.wave, batch.lengths)
        loss.total.backward()
        updates.make(next(numbers), 2e-4)
        for _, norms in updates.norms(newest=False):
            assert math.isfinite(norms[0])

    return step


def peer(device: torch.device, source: Path) -> Callable[[Batch], None]:
    """A step of s3prl's distiller, as ``pretrain/runner.py`` makes it with ``fp16: true``."""
    hub.load_hub()
    hubert: Any = importlib.import_module("s3prl.upstream.hubert.hubert_model")
    expert: Any = importlib.import_module("s3prl.upstream.hubert.expert")
    distiller: Any = importlib.import_module("s3prl.upstream.distiller.model")
    task = hubert.HubertPretrainingConfig()
    model = hubert.HubertModel(hubert.HubertConfig(label_rate=50), task, [[str(i) for i in range(504)]])
    expert.load_converted_model = lambda ckpt: (model, task)
    teacher = expert.UpstreamExpert("no file: its model is built above").eval()
    torch.hub.load = lambda *_, **__: teacher
    sys.path.insert(0, str(source))
    for name, module in (("upstream", None), ("upstream.distiller", None), ("upstream.distiller.model", distiller)):
        sys.modules[name] = module or types.ModuleType(name)
    code: Any = importlib.import_module("pretrain.distiller.pretrain_expert")
    import yaml
    from easydict import EasyDict  # pyright: ignore[reportMissingImports]

    config = yaml.safe_load((source / "pretrain/distiller/config_model.yaml").read_text())
    config["distiller"] |= {"n_tasks": 3, "pred_layer_id": [4, 8, 12]}
    net = code.DistillerForPretrain(distiller.DistillerConfig(config["distiller"]), EasyDict(config["teacher"]))
    net = net.to(device).train()
    optimizer = torch.optim.AdamW(net.distiller.parameters(), lr=2e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=1e-6)
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")

    def step(batch: Batch) -> None:
        wave, lengths = batch.wave, batch.lengths
        mask = (torch.arange(wave.shape[1])[None] < lengths[:, None]).float()
        waves = [row[:length] for row, length in zip(wave, lengths.tolist(), strict=True)]
        with torch.autocast(device.type, dtype=torch.float16, enabled=device.type == "cuda"):
            loss, _ = net(wave.to(device), waves, lengths.to(device), mask.to(device))
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        loss.item()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


def copied(batches: list[Batch], device: torch.device) -> Iterable[Batch]:
    """As the training loop hands out batches."""
    return (batch for batch, _ in to_device(((batch, None) for batch in batches), device))


def measure(
    step: Callable[[Batch], None],
    batches: list[Batch],
    steps: int,
    device: torch.device,
    give: Callable[[list[Batch]], Iterable[Batch]],
) -> dict[str, float]:
    """Steps a second and peak memory after a warm-up, how long that took, and recompilations after it."""
    cuda = device.type == "cuda"
    started = time.perf_counter()
    for batch in give(batches):
        step(batch)
    if cuda:
        torch.cuda.synchronize()
    warm = time.perf_counter() - started
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    started = time.perf_counter()
    for batch in give([batches[index % len(batches)] for index in range(steps)]):
        step(batch)
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    return {
        "rate": steps / seconds,
        "gib": torch.cuda.max_memory_reserved() / 2**30 if cuda else 0.0,
        "warm": warm,
        "recompiled": torch._dynamo.utils.counters["stats"]["unique_graphs"] - compiled,
    }


def losses(batch: Batch, device: torch.device) -> dict[str, float]:
    """The first loss without dropout: plain in float32, and as it is trained."""
    teacher, student = models(device)
    student.eval()
    autocast, _ = precision("auto", device)
    wave, lengths = batch.to(device).wave, batch.lengths
    with torch.no_grad():
        found = {"plain, float32": plain_loss(teacher, student, wave, lengths).total.item()}
        fast = PackedDistillation(student, teacher, contextlib.nullcontext, compiled=False)
        found["fast, float32"] = fast(wave, lengths).total.item()
        with autocast():
            found["plain, as trained"] = plain_loss(teacher, student, wave, lengths).total.item()
            fast = PackedDistillation(student, teacher, autocast, compiled=False)
            found["fast, as trained"] = fast(wave, lengths).total.item()
    return found


def profile(step: Callable[[Batch], None], batch: Batch, file: Path) -> None:
    """Time of each GPU kernel in three steps, to a file."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        for _ in range(3):
            step(batch)
        torch.cuda.synchronize()
    events = sorted(found.key_averages(), key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in events) / 3e3
    lines = [f"{total:.2f} ms of kernels a step"]
    lines += [f"{e.self_device_time_total / 3e3:8.3f} ms {e.count / 3:6.1f} x {e.key[:150]}" for e in events]
    file.write_text("\n".join(lines) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--s3prl", type=Path, help="the folder of s3prl's repository that holds pretrain/")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--utterances", type=int, default=24)
    parser.add_argument("--seconds", type=float, nargs=2, default=(10.625, 15.625))
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--kinds", default="fast,fast not replayed,fast not compiled,plain")
    parser.add_argument("--profile", type=Path, help="a file for the time of each GPU kernel of the fast step")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device: torch.device = args.device
    batches = make_batches(args.batches, args.utterances, tuple(args.seconds), device.type == "cuda")
    audio = sum(int(batch.lengths.sum()) for batch in batches) / 16_000 / len(batches)
    makers: dict[str, Callable[[], Callable[[Batch], None]]] = {}
    if args.s3prl:
        makers["s3prl's distiller"] = lambda: peer(device, args.s3prl)
    makers |= {f"this project, {kind}": lambda k=kind: ours(device, k) for kind in args.kinds.split(",")}
    rows: dict[str, dict[str, float]] = {}
    for name, make in makers.items():
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        step = make()
        # s3prl copies each batch itself, and waits for it.
        give = iter if name.startswith("s3prl") else functools.partial(copied, device=device)
        rows[name] = measure(step, batches, args.steps, device, give)
        sys.stderr.write(f"{name}: {rows[name]}\n")
        if args.profile and name.endswith(", fast"):
            profile(step, batches[0].to(device), args.profile)
        del step
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    text = report(rows, losses(batches[0], device), audio, device)
    sys.stdout.write(text)
    if args.out:
        args.out.write_text(text)
    late = [name for name, row in rows.items() if row["recompiled"] or row["warm"] > 60]
    for name in late:
        sys.stderr.write(f"{name}: compiling took longer than a minute, or began again later\n")
    return 1 if late else 0


def report(rows: dict[str, dict[str, float]], losses: dict[str, float], audio: float, device: torch.device) -> str:
    base = next(iter(rows.values()))
    lines = [
        "# A step of distillation: HuBERT base to 2 layers, three heads",
        "",
        "| | steps/s | against the first row | audio s/s | peak GiB taken | first steps, s | compiled again later |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['rate']:.2f} | {row['rate'] / base['rate']:.2f} | {row['rate'] * audio:.0f} "
            f"| {row['gib']:.1f} | {row['warm']:.1f} | {row['recompiled']:.0f} |"
        )
    reference = losses["plain, float32"]
    lines += ["", "The first loss, without dropout: "]
    lines[-1] += "; ".join(f"{name} {value:.5f} ({value / reference - 1:+.1e})" for name, value in losses.items()) + "."
    found = ", ".join(f"{name} {value}" for name, value in machine.versions().items())
    lines += ["", f"{machine.device_name(device)}; {found}.", f"`python {' '.join(sys.argv)}`", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
