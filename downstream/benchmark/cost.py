"""What an upstream costs: parameters, arithmetic, time and memory, measured as a downstream task runs it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from s3prl_distiller.machine import device_name, utterance, versions

from ...upstream.distiller.model import DistillerModel, Encoder
from ..core.config import UpstreamConfig
from ..core.upstream import Upstream, load_upstream
from .memory import peak_on_cpu, peak_on_gpu

FILE = "cost.json"
_LONGEST = 600.0  # seconds: attention takes the square of it
_RUNS, _LEAST_RUNS = 20, 5
_ENOUGH, _TOO_LONG = 5.0, 20.0  # seconds of timing: enough once there are the least runs, or else an end to it


@dataclass
class Cost:
    """What :func:`measure` finds, None where something was not measured or does not apply.

    Attributes:
        name: of the upstream.
        fingerprint: of its weights.
        feature: the output that was asked for.
        runs_as: "own encoder" or "as the hub gives it".
        parameters: all that the model which runs holds. In our own encoder that is what extraction needs (94.37 M for
            HuBERT base); as the hub gives it, also what an expert keeps of its training (94.70 M).
        parameters_without_heads: of a student that has prediction heads.
        macs_per_second: multiply-accumulates for a second of audio, at the length of ``seconds``: attention's share
            grows with the length. Products of matrices, convolutions, attention and LSTMs are counted as they are
            run; Fourier transforms and what is done element by element are not.
        macs_per_second_without_heads: of a student that has prediction heads.
        seconds: of the one utterance that was run.
        batch: 1.
        device: its name.
        threads: of the CPU.
        precision: "float32", without TensorFloat-32.
        real_time_factor: seconds of computing for a second of audio, the median of ``times`` over ``seconds``.
        real_time_factor_autocast: the same in bfloat16, on a GPU and in our own encoder; others are kept from it.
        times: seconds of each run.
        peak_memory: bytes at the peak of a forward pass, weights included; see :mod:`.memory`.
        layers: that a task is given.
        width: of each.
        versions: of what was measured with.
    """

    name: str
    fingerprint: str
    feature: str
    runs_as: str
    parameters: int
    parameters_without_heads: int | None
    macs_per_second: float
    macs_per_second_without_heads: float | None
    seconds: float
    batch: int
    device: str
    threads: int
    precision: str
    real_time_factor: float
    real_time_factor_autocast: float | None
    times: list[float]
    peak_memory: int | None
    layers: int
    width: int
    versions: dict[str, str]


def measure(config: UpstreamConfig, device: torch.device, seconds: float = 10.0, threads: int | None = None) -> Cost:
    """Load an upstream and measure it on one utterance of noise.

    Args:
        config: which upstream, and which of its outputs; all hidden states by default.
        device: where time and memory are measured.
        seconds: of the utterance.
        threads: of the CPU; None: as many as torch takes.

    Raises:
        ValueError: it cannot be loaded, or a number makes no sense.
    """
    if not 0.1 <= seconds <= _LONGEST:
        raise ValueError(f"--seconds is {seconds:g}: give a length between 0.1 and {_LONGEST:.0f}")
    if threads is not None and threads < 1:
        raise ValueError(f"--threads is {threads}: give at least 1")
    upstream = load_upstream(config)
    with _threads(threads):
        macs, macs_of_heads = count_macs(upstream, seconds)
        own = own_encoder(upstream)
        has_heads = isinstance(own, DistillerModel) and own.output_layer is not None
        parameters = count_parameters(upstream)
        upstream.to(device)
        times = _time(upstream, seconds, device)
        fast = None
        if device.type == "cuda" and upstream.twin is not None:
            with torch.autocast("cuda", torch.bfloat16):
                fast = statistics.median(_time(upstream, seconds, device)) / seconds
        if device.type == "cuda":
            peak = peak_on_gpu(upstream, seconds, device)
        else:
            peak = peak_on_cpu(config, seconds, torch.get_num_threads())
        return Cost(
            name=upstream.name,
            fingerprint=upstream.fingerprint,
            feature=config.feature if config.layer is None else f"{config.feature}, layer {config.layer}",
            runs_as="as the hub gives it" if own is None else "own encoder",
            parameters=parameters,
            parameters_without_heads=parameters - count_parameters(_heads(own)) if has_heads else None,
            macs_per_second=macs / seconds,
            macs_per_second_without_heads=(macs - macs_of_heads) / seconds if has_heads else None,
            seconds=seconds,
            batch=1,
            device=device_name(device),
            threads=torch.get_num_threads(),
            precision="float32",
            real_time_factor=statistics.median(times) / seconds,
            real_time_factor_autocast=fast,
            times=times,
            peak_memory=peak,
            layers=upstream.n_layers,
            width=upstream.width,
            versions=versions(),
        )


def as_json(cost: Cost) -> dict[str, Any]:
    """What ``cost.json`` holds."""
    return asdict(cost)


def describe(cost: Cost) -> str:
    """A few lines for the screen."""
    plain, macs = cost.parameters_without_heads, cost.macs_per_second_without_heads
    rows = {
        "Runs as": f"{cost.runs_as}; {cost.layers} x {cost.width} of {cost.feature}",
        "Parameters": _millions(cost.parameters) + (f" ({_millions(plain)} without heads)" if plain else ""),
        "Arithmetic": f"{cost.macs_per_second / 1e9:.2f} GMAC for a second of audio"
        + (f" ({macs / 1e9:.2f} without heads)" if macs else ""),
        "Real-time factor": f"{cost.real_time_factor:.3g} in {cost.precision}, median of {len(cost.times)} runs",
        "Peak memory": "not measured"
        if cost.peak_memory is None
        else f"{cost.peak_memory / 2**20:.0f} MiB in a forward pass, weights included",
    }
    if cost.real_time_factor_autocast is not None:
        rows["Real-time factor"] += f"; {cost.real_time_factor_autocast:.3g} in bfloat16"
    threads = f"{cost.threads} thread{'' if cost.threads == 1 else 's'}"
    lines = [f"{cost.name}: one utterance of {cost.seconds:g} s on {cost.device}, {threads}"]
    return "\n".join([*lines, *(f"  {key:<18}{value}" for key, value in rows.items())]) + "\n"


def own_encoder(upstream: Upstream) -> Encoder | None:
    """Our model, where the upstream runs as one."""
    model = upstream.twin or getattr(upstream.expert, "model", None)
    return model if isinstance(model, Encoder) else None


def count_parameters(module: nn.Module | None) -> int:
    """Numbers in all parameters of a module, trained or frozen."""
    return sum(parameter.numel() for parameter in module.parameters()) if module is not None else 0


def count_macs(upstream: Upstream, seconds: float) -> tuple[int, int]:
    """Multiply-accumulates of one utterance, and those of a student's prediction heads among them.

    They are counted as the operations run, on the CPU, where the upstream must be; a student of ours runs in its plain
    definition.
    """
    own = own_encoder(upstream)
    return count_model_macs(own if isinstance(own, DistillerModel) else upstream, seconds)


@torch.no_grad()
def count_model_macs(model: nn.Module, seconds: float) -> tuple[int, int]:
    """As :func:`count_macs`, of a model that takes waveforms (B, samples) and lengths (B,)."""
    wave, lengths = utterance(seconds)
    aten = torch.ops.aten
    more = {
        getattr(aten, name): count
        for name, count in (
            ("_scaled_dot_product_flash_attention_for_cpu", _attention_flops),
            ("mkldnn_rnn_layer", _lstm_flops),
        )
        if hasattr(aten, name)
    }
    counter = FlopCounterMode(display=False, custom_mapping=more)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # in it a Transformer's layer is one operation
    try:
        with counter:
            model(wave, lengths)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    heads = sum(counter.get_flop_counts().get(f"{type(model).__name__}.output_layer", {}).values())
    return counter.get_total_flops() // 2, heads // 2


def _heads(model: Encoder | None) -> nn.Module | None:
    return model.output_layer if isinstance(model, DistillerModel) else None


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    """Of scores and of their products with the values; shapes (B, heads, T, D)."""
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _lstm_flops(x: Any, from_input: Any, from_hidden: Any, *args: Any, **kwargs: Any) -> int:
    """Of a layer in one direction; x: (T, B, D)."""
    return 2 * prod(x[:-1]) * (prod(from_input) + prod(from_hidden))


@torch.no_grad()
def _time(upstream: Upstream, seconds: float, device: torch.device) -> list[float]:
    """Seconds of each forward pass, the first ones left out."""
    wave, lengths = utterance(seconds)
    wave = wave.to(device)
    cudnn = torch.backends.cudnn

    def run() -> float:
        begun = time.perf_counter()
        upstream(wave, lengths)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begun

    # By default torch's convolutions are in TensorFloat-32 on a GPU, though its matrix products are not.
    with cudnn.flags(cudnn.enabled, cudnn.benchmark, cudnn.benchmark_limit, cudnn.deterministic, allow_tf32=False):
        for _ in range(3 if device.type == "cuda" else 1):
            run()
        times: list[float] = []
        while len(times) < _RUNS and sum(times) < (_TOO_LONG if len(times) < _LEAST_RUNS else _ENOUGH):
            times.append(run())
    return times


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _millions(number: int) -> str:
    return f"{number / 1e6:.2f} M"
