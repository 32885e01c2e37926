"""Int8 on a CPU: the compiled loops beside plain arithmetic, blocks beside the whole."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from s3prl_distiller.upstream.distiller.fast import int8
from s3prl_distiller.upstream.distiller.fast import int8_kernels as kernels
from s3prl_distiller.upstream.distiller.fast.int8 import Int8FeedForward, Int8Linear, Int8RowConv, front_end_on_cpu
from s3prl_distiller.upstream.distiller.fast.threads import blocks_alone, in_parallel
from torch import Tensor, nn

shapes = st.fixed_dictionaries(
    {"count": st.integers(1, 9), "width": st.integers(1, 40), "kernel": st.integers(1, 4), "stride": st.integers(1, 4)}
)


def windows_of(rows: Tensor, kernel: int, stride: int) -> Tensor:
    """(R, C) to (N, kernel * C)."""
    return rows.unfold(0, kernel, stride).transpose(1, 2).flatten(1)


def check(out: np.ndarray, scales: np.ndarray, rows: Tensor, kernel: int, stride: int) -> None:
    """Windows in int8 are those of these rows, a step of a hundred-and-twenty-seventh of the largest apart at most."""
    expected = windows_of(rows, kernel, stride)
    found = torch.from_numpy(out[:, : expected.shape[1]]).float() * torch.from_numpy(scales)[:, None]
    assert ((found - expected).abs() <= 0.501 * torch.from_numpy(scales)[:, None] + 1e-6).all()
    bound = expected.abs().amax(1).clamp_min(1e-12) / 127
    torch.testing.assert_close(torch.from_numpy(scales), bound, rtol=1e-5, atol=1e-8)
    assert (out[:, expected.shape[1] :] == 7).all()


@pytest.mark.parametrize("has", [True, False])
def test_processors_without_products_of_int8_give_the_same(monkeypatch: pytest.MonkeyPatch, has: bool) -> None:
    """As wide as the widest layer, at the largest values: more than a float32 counts up to."""
    monkeypatch.setattr(int8, "_multiplies_int8", lambda: has)
    torch.manual_seed(0)
    linear, extreme = nn.Linear(3072, 48), torch.full((3, 3072), 0.5)
    nn.init.constant_(linear.weight, 0.25)
    rows = torch.cat([torch.randn(5, 3072), extreme])
    torch.testing.assert_close(Int8Linear(linear)(rows)[5:], linear(extreme), rtol=1e-5, atol=1e-4)
    with torch.no_grad():
        nn.init.normal_(linear.weight)
    assert F.cosine_similarity(Int8Linear(linear)(rows), linear(rows)).min() > 0.999
    assert (
        int8._multiplied(Int8Linear(linear), np.ones((2, 3072), np.int8), np.ones(2, np.float32))[0].dtype
    ) == np.int32


@settings(max_examples=40, deadline=None)
@given(shape=shapes, gelu=st.booleans(), seed=st.integers(0, 99), spare=st.integers(0, 3))
def test_kernels_are_plain_arithmetic(shape: dict[str, int], gelu: bool, seed: int, spare: int) -> None:
    count, width, kernel, stride = shape.values()
    random = torch.Generator().manual_seed(seed)
    height = (count - 1) * stride + kernel
    product = torch.randint(-9999, 9999, (height, width + spare), generator=random, dtype=torch.int32)
    factors, columns = torch.rand(height, generator=random) * 0.01, torch.rand(width, generator=random) * 0.1
    bias = torch.randn(width, generator=random)
    rows = product[:, :width] * factors[:, None] * columns + bias
    rows = F.gelu(rows) if gelu else rows
    given_arrays = [x.numpy() for x in (product, factors, columns, bias)]
    found = np.empty((height, width), np.float32)
    kernels.rows_of_product(*given_arrays, gelu, found)
    torch.testing.assert_close(torch.from_numpy(found), rows, atol=5e-6, rtol=1e-5)
    out, scales = np.full((count, kernel * width + spare), 7, np.int8), np.empty(count, np.float32)
    kernels.windows_of_product(*given_arrays, gelu, kernel, stride, out, scales)
    check(out, scales, rows, kernel, stride)
    out[:] = 7
    kernels.windows_of_rows(rows.numpy(), kernel, stride, out, scales)
    check(out, scales, rows, kernel, stride)
    wave, weight = torch.randn(3 * height + 9, generator=random), torch.randn(7, width, generator=random)
    out[:] = 7
    kernels.windows_of_wave(wave.numpy(), 3, weight.numpy(), bias.numpy(), kernel, stride, out, scales)
    check(out, scales, F.gelu(wave.unfold(0, 7, 3)[:height] @ weight + bias), kernel, stride)


def test_gelu_is_that_of_torch() -> None:
    x = torch.cat([torch.linspace(-12, 12, 10_001), torch.tensor([0.0, 1e30, -1e30, float("nan")])])
    found = np.empty((1, len(x)), np.float32)
    kernels.rows_of_product(
        np.zeros(found.shape, np.int32), np.ones(1, np.float32), np.ones(len(x), np.float32), x.numpy(), True, found
    )
    torch.testing.assert_close(torch.from_numpy(found)[0], F.gelu(x), atol=3e-6, rtol=1e-6, equal_nan=True)


@torch.no_grad()
def test_what_is_not_a_number_stays_so() -> None:
    rows = torch.randn(5, 16)
    rows[2, 3] = float("nan")
    assert Int8Linear(nn.Linear(16, 8))(rows).isnan().any(1).tolist() == [False, False, True, False, False]


@torch.no_grad()
@pytest.mark.parametrize("blocks", [False, True])
def test_layers_come_near_those_of_float32(blocks: bool) -> None:
    torch.manual_seed(0)
    x, first, second = torch.randn(2, 300, 64), nn.Linear(64, 100), nn.Linear(100, 50, bias=False)
    conv, following = nn.Conv1d(64, 48, 3, 2), nn.Conv1d(48, 40, 2, 2)
    wave, taps = torch.randn(1600), torch.randn(10, 64) * 0.3
    expected = F.gelu(wave.unfold(0, 10, 5) @ taps)[None].transpose(1, 2)
    with blocks_alone() if blocks else torch.no_grad():
        pairs = [
            (Int8FeedForward(first, second)(x), second(F.gelu(first(x)))),
            (Int8RowConv(conv)(x[0]), conv(x[0].t()[None])[0].t()),
            (
                front_end_on_cpu(taps, torch.zeros(64), 5, [Int8RowConv(conv), Int8RowConv(following)], wave),
                F.gelu(following(F.gelu(conv(expected))))[0].t(),
            ),
        ]
    for found, exact in pairs:
        assert found.shape == exact.shape
        assert F.cosine_similarity(found, exact, dim=-1).min() > 0.998


def test_blocks_share_torchs_threads() -> None:
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(3)
    try:
        for alone in (False, True):
            seen.clear()
            with blocks_alone() if alone else torch.no_grad(), torch.inference_mode():
                in_parallel(lambda start, stop: seen.append((start, stop, _state())), 10, 4)
            assert sorted(seen) == [(start, stop, (1, False, True)) for start, stop in ((0, 4), (4, 8), (8, 10))]
            assert torch.get_num_threads() == 3
        with pytest.raises(ZeroDivisionError):
            in_parallel(lambda start, stop: 1 // start, 2, 1)
    finally:
        torch.set_num_threads(before)


def _state() -> tuple[int, bool, bool]:
    return torch.get_num_threads(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()


def test_float32_does_without_numba() -> None:
    code = (
        "import sys; import s3prl_distiller.upstream.distiller.fast.inference; "
        "sys.exit('s3prl_distiller.upstream.distiller.fast.int8_kernels' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], env=dict(os.environ), cwd="/").returncode == 0
