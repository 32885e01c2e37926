"""CKA and cosines against other formulas, and what they must not depend on."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from s3prl_distiller.upstream.distiller.similarity import cka_matrix, frame_cosine, linear_cka
from torch import Tensor


def layer(frames: int, width: int, seed: int) -> Tensor:
    """Directions of very different sizes, as layers have, around a mean far from 0."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(frames, width, generator=generator, dtype=torch.float64)
    return values @ torch.randn(width, width, generator=generator, dtype=torch.float64) + 5


def hsic(k: np.ndarray, m: np.ndarray) -> float:
    """Equation 3 of Kornblith et al."""
    n = len(k)
    h = np.eye(n) - np.ones((n, n)) / n
    return float(np.trace(k @ h @ m @ h)) / (n - 1) ** 2


def unbiased_hsic(k: np.ndarray, m: np.ndarray) -> float:
    """Equation 5 of Song et al., written out."""
    n, one = len(k), np.ones(len(k))
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    sums = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2)) - 2 * (one @ k @ m @ one) / (n - 2)
    return float(np.trace(k @ m) + sums) / (n * (n - 3))


@pytest.mark.parametrize(("product", "debiased"), [(hsic, False), (unbiased_hsic, True)])
@pytest.mark.parametrize("frames", [4, 30])
def test_cka_is_that_of_gram_matrices(product, debiased: bool, frames: int) -> None:
    xs, ys = [layer(frames, 5, 0), layer(frames, 40, 1)], [layer(frames, 12, 2), layer(frames, 5, 0) ** 2]
    found = cka_matrix(xs, ys, debiased)
    for row, x in enumerate(xs):
        for column, y in enumerate(ys):
            k, m = (z.numpy() @ z.numpy().T for z in (x, y))
            expected = product(k, m) / np.sqrt(product(k, k) * product(m, m))
            assert float(found[row, column]) == pytest.approx(expected, abs=1e-8)
            assert linear_cka(x, y, debiased) == pytest.approx(expected, abs=1e-8)


def test_plain_cka_is_that_of_features() -> None:
    """Equation 4 of Kornblith et al., from centred features without a Gram matrix."""
    x, y = layer(50, 7, 0), layer(50, 9, 1)
    a, b = (z - z.mean(0) for z in (x, y))
    expected = (b.T @ a).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())
    assert linear_cka(x, y) == pytest.approx(float(expected), abs=1e-10)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    frames=st.integers(5, 40),
    width=st.integers(1, 12),
    scale=st.floats(1e-6, 1e6),
    shift=st.floats(-10, 10),
    debiased=st.booleans(),
)
def test_cka_does_not_feel_rotation_scale_and_shift(seed, frames, width, scale, shift, debiased) -> None:
    x, y = layer(frames, width, seed), layer(frames, 6, seed + 1)
    rotation = torch.linalg.qr(layer(width, width, seed + 2))[0]
    moved = scale * (x @ rotation) + shift * scale
    assert linear_cka(moved, x, debiased) == pytest.approx(1, abs=1e-6)
    assert linear_cka(moved, y, debiased) == pytest.approx(linear_cka(x, y, debiased), abs=1e-6)
    assert linear_cka(x, y, debiased) == pytest.approx(linear_cka(y, x, debiased), abs=1e-12)
    assert linear_cka(x, y, debiased) <= 1 + 1e-9


def test_wide_layers_that_have_nothing_in_common() -> None:
    """The plain estimate takes them for alike, the debiased one does not."""
    x, y = (torch.randn(100, 768, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert linear_cka(x, y) > 0.8
    assert abs(linear_cka(x, y, debiased=True)) < 0.05


def test_layers_that_cannot_be_compared() -> None:
    x = layer(10, 4, 0)
    with pytest.raises(ValueError, match="9, 10 frames"):
        cka_matrix([x], [x[:9]])
    with pytest.raises(ValueError, match="3 frames are too few"):
        cka_matrix([x[:3]], [x[:3]])
    still = torch.full((10, 3), 0.1)
    for debiased in (False, True):
        found = cka_matrix([x.float(), still], [x.float()], debiased)
        assert found[0, 0] == pytest.approx(1, abs=1e-5) and found[1, 0].isnan()


def test_cosine_of_frames() -> None:
    x, y = layer(6, 8, 0), layer(6, 8, 1)
    a, b = x.numpy(), y.numpy()
    expected = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    np.testing.assert_allclose(frame_cosine(x, y).numpy(), expected, atol=1e-12)
    assert frame_cosine(torch.zeros(2, 8), torch.ones(2, 8)).tolist() == [0, 0]
