"""What an upstream costs, against formulas, against the hub's own model, and by the real command."""

import argparse
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from s3prl_distiller.downstream.benchmark import cost, memory
from s3prl_distiller.downstream.core.config import UpstreamConfig
from s3prl_distiller.downstream.core.upstream import Upstream, load_upstream
from s3prl_distiller.upstream.distiller.frontend import format_conv_layers
from s3prl_distiller.upstream.distiller.model import DistillerModel
from s3prl_distiller.upstream.distiller.model_config import DistillerConfig, EncoderConfig
from s3prl_distiller.upstream.distiller.student import s3prl_states
from torch import nn

from s3prl_distiller import checkpoint
from s3prl_distiller.cli import measure as command

ROOT = Path(__file__).resolve().parents[2]
NANO = str(ROOT / "s3prl_distiller" / "quickstart" / "hubert_nano")
CPU = torch.device("cpu")


def analytic_macs(config: EncoderConfig, samples: int) -> int:
    """By hand, from the sizes alone."""
    total, channels, frames = 0, 1, samples
    for out, kernel, stride in config.conv_layers:
        frames = (frames - kernel) // stride + 1
        total += frames * out * kernel * channels
        channels = out
    width = config.encoder_embed_dim
    if channels != width or config.always_project:
        total += frames * channels * width
    total += frames * width * (width // config.conv_pos_groups) * config.conv_pos
    linear = frames * (4 * width**2 + 2 * width * config.encoder_ffn_embed_dim)
    attention = 2 * frames**2 * width
    return total + config.encoder_layers * (linear + attention)


def head_macs(config: DistillerConfig, frames: int) -> int:
    width = config.encoder_embed_dim
    return frames * config.n_tasks * (width * width + width * config.final_dim)


def student(folder: Path, **sizes: object) -> tuple[Upstream, DistillerConfig]:
    config = DistillerConfig.from_mapping(
        {
            "extractor_conv_feature_layers": format_conv_layers([(16, 10, 5), *[(16, 3, 2)] * 4, *[(16, 2, 2)] * 2]),
            "conv_pos": 16,
            "conv_pos_groups": 4,
            "encoder_embed_dim": 32,
            "encoder_ffn_embed_dim": 64,
            "encoder_attention_heads": 4,
            "final_dim": 32,
            "n_tasks": 2,
            "pred_layer_id": [4, 8],
            **sizes,
        }
    )
    path = folder / "student.ckpt"
    checkpoint.save_torch(s3prl_states(DistillerModel(config), {}, 0), path)
    return load_upstream(UpstreamConfig(name=str(path))), config


@given(
    layers=st.integers(1, 3),
    heads=st.sampled_from([1, 2, 4]),
    ffn=st.integers(8, 100),
    seconds=st.floats(0.5, 6),
    groups=st.sampled_from([1, 4, 16]),
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arithmetic_of_a_student_is_the_formulas(tmp_path, layers, heads, ffn, seconds, groups):
    upstream, config = student(
        tmp_path,
        encoder_layers=layers,
        encoder_attention_heads=heads,
        encoder_ffn_embed_dim=ffn,
        conv_pos_groups=groups,
    )
    macs, of_heads = cost.count_macs(upstream, seconds)
    samples = round(seconds * 16_000)
    frames = upstream(torch.zeros(1, samples), torch.tensor([samples]))[0][0].shape[1]
    assert of_heads == head_macs(config, frames)
    # An even positional kernel makes one frame more, which is dropped.
    extra = 32 * (32 // groups) * 16
    assert macs - of_heads == analytic_macs(config, samples) + extra


def test_arithmetic_of_hubert_is_the_formulas_in_our_encoder_and_the_hubs():
    ours = load_upstream(UpstreamConfig(name=NANO))
    theirs = load_upstream(UpstreamConfig(name=NANO, trainable=True))
    assert ours.twin is not None and theirs.twin is None
    for seconds in (0.5, 3.7):
        expected = analytic_macs(ours.twin.config, round(seconds * 16_000))
        for upstream in (ours, theirs):
            macs, heads = cost.count_macs(upstream, seconds)
            assert macs == pytest.approx(expected, rel=0.03) and heads == 0
        # Less than a layer's attention makes: nothing is left out.
        assert cost.count_macs(ours, seconds)[0] == pytest.approx(expected, rel=1e-3)
    sizes = EncoderConfig(encoder_layers=12, always_project=True)
    assert analytic_macs(sizes, round(12.3 * 16_000)) / 12.3 == pytest.approx(7.52e9, rel=0.005), "published figure"


def test_what_grows_with_length_and_depth(tmp_path):
    shallow, config = student(tmp_path, encoder_layers=1)
    one, two, four = (cost.count_macs(shallow, seconds)[0] for seconds in (1, 2, 4))
    assert 2 * one < two and 2 * two < four, "attention takes the square"
    none, _ = student(tmp_path, encoder_layers=0)
    one, four = (cost.count_macs(none, seconds)[0] for seconds in (1, 4))
    assert four / one == pytest.approx(4, rel=0.02), "a front end and heads do not"
    deep, _ = student(tmp_path, encoder_layers=2)
    assert cost.count_macs(deep, 1)[0] > cost.count_macs(shallow, 1)[0]
    assert cost.count_parameters(deep) > cost.count_parameters(shallow) > config.encoder_embed_dim


def test_arithmetic_does_not_depend_on_threads():
    upstream = load_upstream(UpstreamConfig(name=NANO))
    before = torch.get_num_threads()
    try:
        counts = set()
        for threads in (1, 2):
            torch.set_num_threads(threads)
            counts.add(cost.count_macs(upstream, 1.5))
    finally:
        torch.set_num_threads(before)
    assert len(counts) == 1


class Recurrent(nn.Module):
    """An expert built of what torch runs as one operation: an LSTM, a GRU, a Transformer's layer."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(80, 24, num_layers=2, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(48, 16, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)

    def get_downsample_rates(self, key: str) -> int:
        return 80

    def forward(self, wavs):
        x = torch.stack([wav[: len(wav) // 80 * 80].view(-1, 80) for wav in wavs])
        return {"hidden_states": [self.layer(self.gru(self.lstm(x)[0])[0])]}


def test_recurrent_layers_are_counted():
    upstream = Upstream(Recurrent(), UpstreamConfig(name="recurrent"), "recurrent")
    frames = 16_000 // 80
    lstm = 2 * 4 * 24 * (80 + 24) + 2 * 4 * 24 * (48 + 24)
    gru = 3 * 16 * (48 + 16)
    layer = 4 * 16 * 16 + 2 * 16 * 32 + 2 * frames * 16
    assert cost.count_macs(upstream, 1)[0] == frames * (lstm + gru + layer)
    assert torch.backends.mha.get_fastpath_enabled(), "as it was"


def test_parameters_of_distilhubert(tmp_path):
    """Released as 23.49 M, which is without its prediction heads."""
    with torch.device("meta"):
        model = DistillerModel(DistillerConfig(encoder_layers=2, n_tasks=3, pred_layer_id=[4, 8, 12]))
    whole, heads = cost.count_parameters(model), cost.count_parameters(model.output_layer)
    assert (whole - heads) / 1e6 == pytest.approx(23.49, abs=0.005)
    assert heads == 768 * 2304 + 2304 + 3 * (768 * 768 + 768)


@pytest.fixture
def without_memory(monkeypatch):
    """Its process takes seconds to start."""
    monkeypatch.setattr(cost, "peak_on_cpu", lambda *_: None)


def test_cost_of_a_student(tmp_path, without_memory):
    upstream, _ = student(tmp_path, encoder_layers=2)
    found = cost.measure(UpstreamConfig(name=str(tmp_path / "student.ckpt")), CPU, 1.0, 1)
    assert found.runs_as == "own encoder" and (found.layers, found.width) == (1 + 2 + 2, 32)
    assert found.parameters == sum(p.numel() for p in upstream.parameters())
    heads = upstream.expert.model.output_layer
    assert found.parameters_without_heads == found.parameters - sum(p.numel() for p in heads.parameters())
    assert 0 < found.macs_per_second_without_heads < found.macs_per_second
    assert found.fingerprint == upstream.fingerprint
    assert "without heads" in cost.describe(found) and "not measured" in cost.describe(found)


def test_cost_of_fbank_and_of_one_layer(without_memory):
    found = cost.measure(UpstreamConfig(name="fbank"), CPU, 1.0, 1)
    assert (found.parameters, found.runs_as, found.layers) == (0, "as the hub gives it", 1)
    # 98 windows of 25 ms in a second, each of 80 filters over 257 frequencies; differences over 5 windows, twice.
    assert found.macs_per_second == 98 * (257 * 80 + 2 * 5 * 80)
    whole = cost.measure(UpstreamConfig(name=NANO), CPU, 1.0, 1)
    third = cost.measure(UpstreamConfig(name=NANO, layer=3), CPU, 1.0, 1)
    assert third.layers == 1 and third.feature == "hidden_states, layer 3"
    assert third.macs_per_second < whole.macs_per_second, "layers above it are not run"
    assert whole.parameters_without_heads is None and whole.real_time_factor_autocast is None


def test_times(without_memory, monkeypatch):
    """The median counts; five runs at least unless they take too long; on as many threads as asked for, there only."""
    seen = []
    forward = Upstream.forward

    def slow(self, wave, lengths):
        seen.append(torch.get_num_threads())
        return forward(self, wave, lengths)

    monkeypatch.setattr(Upstream, "forward", slow)
    before = torch.get_num_threads()
    found = cost.measure(UpstreamConfig(name="fbank"), CPU, 0.5, before + 1)
    assert set(seen) == {before + 1} == {found.threads} and torch.get_num_threads() == before
    assert len(seen) == len(found.times) + 2, "one to count, one to warm up"
    assert found.real_time_factor == sorted(found.times)[len(found.times) // 2] / 0.5 or len(found.times) % 2 == 0
    assert min(found.times) <= found.real_time_factor * 0.5 <= max(found.times)

    clock = iter(range(0, 10_000, 3))
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(clock))
    assert cost.measure(UpstreamConfig(name="fbank"), CPU, 0.5).times == [3] * 5
    clock = iter(range(0, 10_000, 15))
    assert cost.measure(UpstreamConfig(name="fbank"), CPU, 0.5).times == [15] * 2
    clock = iter(x / 100 for x in range(10_000))
    assert len(cost.measure(UpstreamConfig(name="fbank"), CPU, 0.5).times) == 20


def test_peak_memory_holds_weights_and_the_widest_layers():
    config = UpstreamConfig(name=NANO)
    upstream = load_upstream(config)
    weights = sum(p.nbytes for p in upstream.parameters())
    assert upstream.twin is not None
    channels, kernel, stride = upstream.twin.conv_layers[0]
    widest = 4 * channels * ((20 * 16_000 - kernel) // stride + 1)
    found = memory.peak_on_cpu(config, 20.0, 1)
    if found is None:
        pytest.skip("no /proc to clear here")
    # A layer's input and output at the least; torch keeps no more than a few of them without gradients.
    assert weights + 2 * widest <= found <= weights + 5 * widest


def test_memory_that_cannot_be_measured_is_none(monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    assert memory.peak_on_cpu(UpstreamConfig(name=NANO), 0.001, 1) is None, "shorter than a frame"
    assert "ended with 1 and said ValueError: an utterance of 16 samples" in caplog.text
    monkeypatch.setattr("s3prl_distiller.memory._CLEAR", Path("/nowhere/clear_refs"))
    assert memory.peak_on_cpu(UpstreamConfig(name=NANO), 1.0, 1) is None
    assert "/nowhere/clear_refs" in caplog.text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu(without_memory):
    on_cpu = cost.measure(UpstreamConfig(name=NANO), CPU, 2.0)
    found = cost.measure(UpstreamConfig(name=NANO), torch.device("cuda"), 2.0)
    assert found.macs_per_second == on_cpu.macs_per_second and found.parameters == on_cpu.parameters
    assert found.real_time_factor_autocast is not None and found.real_time_factor < on_cpu.real_time_factor
    assert found.peak_memory is not None and found.peak_memory > 4 * found.parameters
    assert found.device == torch.cuda.get_device_name()


def arguments(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_options(parser)
    common = {"upstream": "fbank", "upstream_ckpt": None, "expdir": None, "expname": None, "device": "cpu"}
    selected = {"upstream_feature_selection": None, "upstream_layer_selection": None}
    return parser.parse_args(given, argparse.Namespace(**common, **selected))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--seconds", "0"], "--seconds is 0: give a length between 0.1 and 600"),
        (["--seconds", "-3"], "--seconds is -3"),
        (["--seconds", "nan"], "--seconds is nan"),
        (["--seconds", "1e9"], "--seconds is 1e.09"),
        (["--threads", "0"], "--threads is 0: give at least 1"),
    ],
)
def test_numbers_without_sense(given, message):
    with pytest.raises(ValueError, match=message):
        command.measure(arguments(*given))


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch, capsys, without_memory):
    monkeypatch.chdir(tmp_path)
    assert command.measure(arguments("--seconds", "0.5")) == 0
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out.startswith("fbank: one utterance of 0.5 s on ")


def test_command(tmp_path):
    """As a user types it, from another folder."""
    script = [sys.executable, str(ROOT / "run_downstream.py"), "-m", "measure", "--device", "cpu"]
    good = [*script, "-u", NANO, "-p", str(tmp_path / "out"), "--threads", "1", "--seconds", "1"]
    bad = [*script, "-u", "hubrt_base"]
    running = [
        subprocess.Popen(each, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for each in (good, bad)
    ]
    (out, err), (_, refused) = (process.communicate(timeout=300) for process in running)
    assert running[0].returncode == 0, err
    found = json.loads((tmp_path / "out" / "cost.json").read_text())
    assert list(found) == list(cost.Cost.__dataclass_fields__)
    assert (found["name"], found["threads"], found["seconds"], found["batch"]) == (NANO, 1, 1.0, 1)
    assert (found["layers"], found["width"], found["parameters"]) == (13, 192, 5_824_320)
    assert 5 <= len(found["times"]) <= 20 and found["real_time_factor"] > 0
    assert found["peak_memory"] is None or found["peak_memory"] > 4 * found["parameters"]
    for said in ("own encoder", "5.82 M", "GMAC", "Real-time factor", "Peak memory", "cost.json"):
        assert said in out
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and len(list((tmp_path / "out").iterdir())) == 1
    assert running[1].returncode == 2 and "did you mean" in refused.splitlines()[-1]
