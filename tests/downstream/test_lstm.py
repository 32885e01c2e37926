"""LSTMs of several heads in one recurrence, against nn.LSTM over packed sequences."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from s3prl_distiller.downstream.heads import lstm
from s3prl_distiller.downstream.heads.lstm import LSTM
from s3prl_distiller.downstream.heads.stacked import stacked
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

torch.set_num_threads(1)


def together(modules: Sequence[LSTM], features: Tensor, lengths: Tensor | None) -> Tensor:
    """(K, B, T, I) to (K, B, T, directions * H)."""
    names = [name for name, _ in modules[0].named_parameters()]
    parameters = {name: torch.stack([module.get_parameter(name) for module in modules]) for name in names}
    with stacked():
        return vmap(lambda own, x: functional_call(modules[0], own, (x, lengths)))(parameters, features)


def packed(module: LSTM, features: Tensor, lengths: Tensor | None) -> Tensor:
    """What nn.LSTM itself gives."""
    if lengths is None:
        return nn.LSTM.forward(module, features)[0]
    rows = pack_padded_sequence(features, lengths, batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(nn.LSTM.forward(module, rows)[0], batch_first=True, total_length=features.shape[1])[0]


def compare(modules: Sequence[LSTM], features: Tensor, lengths: Tensor | None, tolerance: float) -> None:
    expected = torch.stack([packed(module, own, lengths) for module, own in zip(modules, features, strict=True)])
    found = together(modules, features, lengths)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    # Also of what comes after the end, which nothing may look at.
    of_output = torch.randn(expected.shape, dtype=expected.dtype)
    leaves = [features, *(parameter for module in modules for parameter in module.parameters())]
    wanted = torch.autograd.grad(expected, leaves, of_output)
    for one, other in zip(torch.autograd.grad(found, leaves, of_output), wanted, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


def make(heads: int, size: int, hidden: int, layers: int, both: bool) -> list[LSTM]:
    return [LSTM(size, hidden, layers, bidirectional=both) for _ in range(heads)]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    more=st.integers(0, 2),
    heads=st.integers(1, 4),
    size=st.integers(1, 5),
    hidden=st.integers(1, 5),
    layers=st.integers(1, 2),
    both=st.booleans(),
    pack=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equals_nn_lstm(lengths, more, heads, size, hidden, layers, both, pack, seed):
    torch.manual_seed(seed)
    features = torch.randn(heads, len(lengths), max(lengths) + more, size, requires_grad=True)
    modules = make(heads, size, hidden, layers, both)
    compare(modules, features, torch.tensor(lengths) if pack else None, 1e-5)


def test_long_sequences():
    torch.manual_seed(0)
    features = torch.randn(2, 3, 600, 16, requires_grad=True)
    compare(make(2, 16, 24, 1, True), features, torch.tensor([600, 411, 2]), 1e-4)


@pytest.mark.parametrize("lengths", [None, torch.tensor([3, 7])])
def test_a_head_alone_is_nn_lstm(lengths):
    torch.manual_seed(0)
    module, features = LSTM(4, 6, bidirectional=True), torch.randn(2, 8, 4)
    torch.testing.assert_close(module(features, lengths), packed(module, features, lengths), atol=1e-6, rtol=0)
    plain = nn.LSTM(4, 6, batch_first=True, bidirectional=True)
    assert {name: p.shape for name, p in plain.named_parameters()} == {n: p.shape for n, p in module.named_parameters()}


def test_what_comes_after_an_utterance_has_no_influence():
    torch.manual_seed(0)
    modules, lengths = make(2, 4, 6, 1, True), torch.tensor([3, 7])
    features = torch.randn(2, 2, 9, 4)
    changed = features.clone()
    changed[:, 0, 3:], changed[:, 1, 7:] = 5.0, -5.0
    found, other = together(modules, features, lengths), together(modules, changed, lengths)
    assert torch.equal(found, other)
    assert not found[:, 0, 3:].any() and not found[:, 1, 7:].any() and found[:, 0, 2].all()


def test_features_that_need_no_gradient_and_none_at_all():
    torch.manual_seed(0)
    modules, features = make(2, 4, 3, 1, False), torch.randn(2, 2, 5, 4)
    together(modules, features, None).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for m in modules for parameter in m.parameters())
    with torch.no_grad():
        assert not together(modules, features, None).requires_grad


@pytest.mark.parametrize("both", [False, True])
def test_gradient_by_differences(both):
    torch.manual_seed(0)
    lengths = torch.tensor([4, 2])
    module = LSTM(2, 3, bidirectional=both).double()
    weights = [torch.randn(2, *p.shape, dtype=torch.float64, requires_grad=True) for p in module.parameters()]
    features = torch.randn(2, 2, 4, 2, dtype=torch.float64, requires_grad=True)

    def run(features: Tensor, *weights: Tensor) -> Tensor:
        return lstm.lstm_layer(lengths, features, *weights)

    assert torch.autograd.gradcheck(run, (features, *weights))


@pytest.mark.parametrize("long", [False, True])
def test_in_half_precision_it_is_as_near_to_float32_as_nn_lstm(long):
    """nn.LSTM without packing runs in bfloat16 under autocast; of packed sequences only a GPU's does.

    On a CPU where it fails, float32 with a rounded output stands in for it.
    """
    torch.manual_seed(0)
    frames = 400 if long else 20
    features, modules = torch.randn(2, 3, frames, 16, requires_grad=True), make(2, 16, 24, 1, True)
    exact = together(modules, features, None)
    with torch.autocast("cpu", torch.bfloat16):
        found = together(modules, features, None)
    with torch.autocast("cpu", torch.bfloat16, enabled=lstm.cpu_has_lstm_of(torch.bfloat16)):
        theirs = torch.stack([packed(module, own, None) for module, own in zip(modules, features, strict=True)])
    theirs = theirs.bfloat16()
    assert found.dtype == torch.bfloat16
    assert 0 < (found - exact).norm() <= 1.2 * (theirs - exact).norm()
    leaves = [features, *(parameter for module in modules for parameter in module.parameters())]
    of_output = torch.randn(exact.shape)
    wanted, got, other = (torch.autograd.grad(y, leaves, of_output.to(y.dtype)) for y in (exact, found, theirs))
    for w, g, o in zip(wanted, got, other, strict=True):
        assert g.dtype == torch.float32
        assert (g - w).norm() <= 1.2 * (o - w).norm() + 0.005 * w.norm()


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_a_cpu_without_lstms_of_half_precision_computes_in_float32(half, monkeypatch):
    monkeypatch.setattr(lstm, "cpu_has_lstm_of", lambda half: False)
    torch.manual_seed(0)
    modules, lengths = make(2, 4, 6, 1, True), torch.tensor([3, 7])
    features = torch.randn(2, 2, 8, 4).to(half)  # as a linear layer before gives them
    with torch.autocast("cpu", half):
        found = together(modules, features, lengths)
    assert found.dtype == half
    assert torch.equal(found, together(modules, features.float(), lengths).to(half))
    found.sum().backward()
    assert all(parameter.grad.any() for module in modules for parameter in module.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [16, 128])
@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_on_a_gpu(dtype, size):
    torch.manual_seed(0)
    lengths = torch.tensor([300, 211, 2])
    modules = [module.cuda() for module in make(3, size, 128, 1, True)]
    features = torch.randn(3, 3, 300, size, device="cuda", requires_grad=True)
    leaves = [features, *(parameter for module in modules for parameter in module.parameters())]
    # TF32, cuDNN's default, is not exact.
    with torch.backends.cudnn.flags(allow_tf32=False):
        exact = torch.stack([packed(module, own, lengths) for module, own in zip(modules, features, strict=True)])
    with torch.autocast("cuda", dtype, enabled=dtype is not None):
        alone = torch.stack([packed(module, own, lengths) for module, own in zip(modules, features, strict=True)])
        found = together(modules, features, lengths)
    assert found.dtype == alone.dtype
    of_output = torch.randn(exact.shape, device="cuda")
    with torch.backends.cudnn.flags(allow_tf32=False):
        wanted, got, other = (torch.autograd.grad(y, leaves, of_output.to(y.dtype)) for y in (exact, found, alone))
    for w, g, o in zip((exact, *wanted), (found, *got), (alone, *other), strict=True):
        assert (g - w).norm() <= 1.2 * (o - w).norm() + (1e-5 if dtype is None else 0.005) * w.norm()
