"""The diarization head and its loss against s3prl's."""

from itertools import permutations

import pytest
import torch
from s3prl_distiller.downstream.heads.diarization import DiarizationHead, fit_frames, permutation_invariant_loss
from torch.nn import functional

from s3prl_distiller.hub import load_hub

load_hub()

from s3prl.downstream.diarization.model import Model  # noqa: E402
from s3prl.downstream.diarization.utils import calc_diarization_error, get_label_perm, pit_loss  # noqa: E402


@pytest.mark.parametrize("layers, speakers, width", [(1, 2, 768), (2, 4, 24), (0, 3, 24)])
def test_forward_is_s3prls(layers, speakers, width):
    torch.manual_seed(0)
    theirs = Model(width, speakers, rnn_layers=layers, hidden_size=512)
    ours = DiarizationHead(width, speakers, 512, layers)
    ours.load_state_dict(theirs.state_dict())
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    features = torch.randn(3, 50, width)
    torch.testing.assert_close(ours(features), theirs(features), rtol=0, atol=1e-6)


def test_superbs_size():
    head = DiarizationHead(768, 2)
    assert sum(p.numel() for p in head.parameters()) == 4 * 512 * (768 + 512 + 2) + 2 * (512 + 1)


def random_case(seed, speakers):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([40, 25, 7])
    logits = 3 * torch.randn(3, 40, speakers, generator=generator)
    labels = (torch.rand(3, 40, speakers, generator=generator) > 0.6).float()
    return logits, labels, lengths


@pytest.mark.parametrize("speakers", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_loss_order_and_gradient_are_s3prls(seed, speakers):
    logits, labels, lengths = random_case(seed, speakers)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss, ordered = permutation_invariant_loss(ours, labels, lengths)
    expected, index, orders = pit_loss(theirs, labels, lengths)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ordered, get_label_perm(labels, index, orders))
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7)
    correct, frames, *_ = calc_diarization_error(logits, ordered, lengths)
    mask = torch.arange(40) < lengths[:, None]
    ours_right = (((logits > 0) == (ordered > 0.5)).float().mean(2) * mask).sum()
    assert ours_right.item() == pytest.approx(correct, rel=1e-6) and frames == lengths.sum()


def test_speakers_may_come_in_any_order():
    logits, labels, lengths = random_case(5, 3)
    losses = [permutation_invariant_loss(logits, labels[:, :, order], lengths)[0] for order in permutations(range(3))]
    torch.testing.assert_close(torch.stack(losses), losses[0].expand(6))
    in_order = functional.binary_cross_entropy_with_logits(logits[:1], labels[:1])
    assert permutation_invariant_loss(logits[:1], labels[:1], lengths[:1])[0] <= in_order + 1e-6


def test_padding_counts_for_nothing():
    logits, labels, lengths = random_case(6, 2)
    loss, _ = permutation_invariant_loss(logits, labels, lengths)
    logits[1, 25:], labels[2, 7:] = 50.0, 1.0
    assert torch.equal(permutation_invariant_loss(logits, labels, lengths)[0], loss)


def test_large_logits_stay_finite():
    logits = torch.tensor([[[500.0, -500.0]]])
    loss, _ = permutation_invariant_loss(logits, torch.tensor([[[0.0, 1.0]]]), torch.tensor([1]))
    assert loss.item() == 0  # the other order
    loss, _ = permutation_invariant_loss(logits, torch.tensor([[[1.0, 1.0]]]), torch.tensor([1]))
    assert loss.item() == 250


def test_autocast_does_not_round_the_loss():
    torch.manual_seed(0)
    logits, labels, lengths = torch.randn(1, 2000, 2), torch.ones(1, 2000, 2), torch.tensor([2000])
    expected, _ = permutation_invariant_loss(logits, labels, lengths)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = permutation_invariant_loss(logits, labels, lengths)
        assert DiarizationHead(8, 2, 16)(torch.randn(1, 5, 8)).dtype == torch.float32
    torch.testing.assert_close(loss, expected)


def test_features_are_cut_or_the_last_repeated():
    features = torch.arange(1.0, 13).view(2, 6, 1)
    fitted = fit_frames(features, torch.tensor([6, 4]), torch.tensor([5, 7]))
    assert fitted[0, :5, 0].tolist() == [1, 2, 3, 4, 5]
    assert fitted[1, :, 0].tolist() == [7, 8, 9, 10, 10, 10, 10]
