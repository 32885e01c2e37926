"""The heads and SpecAugment against s3prl's own, with its weights and its draws."""

import pytest
import torch
import torch.nn.functional as F
from s3prl_distiller.downstream.heads.ctc import LinearHead, RecurrentHead, ctc_loss
from s3prl_distiller.downstream.heads.specaugment import SpecAugmentConfig, spec_augment

from s3prl_distiller.hub import load_hub

load_hub()

from s3prl.downstream.asr.model import RNNs  # noqa: E402
from s3prl.downstream.model import FrameLevel  # noqa: E402
from s3prl.downstream.specaug import SpecAug  # noqa: E402

LENGTHS = torch.tensor([31, 50, 7])


def features(width: int) -> torch.Tensor:
    x = torch.randn(3, 50, width, generator=torch.Generator().manual_seed(1))
    return x * (torch.arange(50)[None, :, None] < LENGTHS[:, None, None])


def s3prl_recurrent(classes: int, dim: int = 1024) -> RNNs:
    return RNNs(
        dim,
        classes,
        320,
        module="LSTM",
        bidirection=True,
        dim=[dim, dim],
        dropout=[0.2, 0.2],
        layer_norm=[False, False],
        proj=[False, False],
        sample_rate=[1, 1],
        sample_style="concat",
        total_rate=-1,
    )


def count(*modules: torch.nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@torch.no_grad()
def test_recurrent_head_is_that_of_s3prl():
    projector, theirs = torch.nn.Linear(24, 48).eval(), s3prl_recurrent(32, 48).eval()
    head = RecurrentHead(24, 32, 48, 48).eval()
    head.projector.load_state_dict(projector.state_dict())
    for ours, layer in zip(head.rnns, theirs.rnns, strict=True):
        ours.load_state_dict(layer.layer.state_dict())
    head.linear.load_state_dict(theirs.linear.state_dict())
    expected, lengths = theirs(projector(features(24)), LENGTHS)
    assert torch.equal(lengths, LENGTHS)
    torch.testing.assert_close(head(features(24), LENGTHS), expected, atol=1e-6, rtol=0)


def test_recurrent_head_has_as_many_parameters():
    assert count(RecurrentHead(768, 32)) == count(torch.nn.Linear(768, 1024), s3prl_recurrent(32))


@torch.no_grad()
def test_linear_head_is_that_of_s3prl():
    projector, theirs = torch.nn.Linear(768, 256), FrameLevel(256, 74)
    head = LinearHead(768, 74)
    assert count(head) == count(projector, theirs)
    head.projector.load_state_dict(projector.state_dict())
    head.linear.load_state_dict(theirs.linear.state_dict())
    x = features(768)
    torch.testing.assert_close(head(x, LENGTHS), theirs(projector(x))[0], atol=1e-6, rtol=0)


@torch.no_grad()
def test_recurrent_head_does_not_feel_padding():
    head = RecurrentHead(24, 9, 16, 16).eval()
    together = head(features(24), LENGTHS)
    for row, length, x in zip(together, LENGTHS.tolist(), features(24), strict=True):
        alone = head(x[None, :length], torch.tensor([length]))[0]
        torch.testing.assert_close(row[:length], alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("seed", range(4))
def test_spec_augment_draws_and_does_what_s3prl_does(seed):
    """With the values of s3prl's recipes for ASR and SNIPS, which are our defaults."""
    theirs = SpecAug(
        adaptive=False,
        apply_time_warp=True,
        apply_time_mask=True,
        apply_freq_mask=True,
        time_warp_window=5,
        time_mask_width_range=[0, 40],
        freq_mask_width_range=[0, 50],
        num_freq_mask=4,
        num_time_mask=2,
    )
    x = features(240)
    torch.manual_seed(seed)
    expected, _ = theirs([row[:length].clone() for row, length in zip(x, LENGTHS.tolist(), strict=True)])
    torch.manual_seed(seed)
    ours = spec_augment(x.requires_grad_(), LENGTHS, SpecAugmentConfig())
    for row, length, wanted in zip(ours, LENGTHS.tolist(), expected, strict=True):
        torch.testing.assert_close(row[:length], wanted, atol=1e-6, rtol=0)
        assert not row[length:].any()
    assert not torch.equal(ours, x)
    ours.sum().backward()
    assert x.grad is not None and x.grad.any()


@pytest.mark.parametrize("seed", range(6))
def test_time_warp_is_that_of_interpolate_and_so_is_its_gradient(seed):
    lengths, window = torch.tensor([600, 433, 11, 10, 12]), 5
    x = torch.randn(5, 620, 16, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    torch.manual_seed(seed)
    config = SpecAugmentConfig(apply_freq_mask=False, apply_time_mask=False, time_warp_window=window)
    found = spec_augment(x, lengths, config)
    torch.manual_seed(seed)
    rows = []
    for row, length in zip(x, lengths.tolist(), strict=True):
        if length > 2 * window:
            center = int(torch.randint(window, length - window, (1,)))
            warped = int(torch.randint(center - window, center + window, (1,))) + 1
            parts = ((row[:center], warped), (row[center:length], length - warped))
            stretched = [F.interpolate(part[None, None], (size, 16), mode="bicubic")[0, 0] for part, size in parts]
            row = torch.cat([*stretched, row[length:]])
        rows.append(row)
    expected = torch.stack(rows)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert not torch.equal(found, x) and torch.equal(found[3], x[3])
    of_output = torch.randn(x.shape)
    ours, theirs = (torch.autograd.grad(output, x, of_output)[0] for output in (found, expected))
    # F.interpolate rounds a frame's place otherwise on its way back.
    torch.testing.assert_close(ours, theirs, atol=3e-4, rtol=0)


def test_spec_augment_draws_the_same_for_all_heads():
    x = features(60)
    torch.manual_seed(3)
    alone = spec_augment(x, LENGTHS, SpecAugmentConfig())
    torch.manual_seed(3)
    heads = spec_augment(torch.stack([x, -x, 2 * x]), LENGTHS, SpecAugmentConfig())
    assert torch.equal(heads, torch.stack([alone, -alone, 2 * alone])) and alone.any()


def test_loss_of_a_head_alone_is_torchs_bit_for_bit():
    log_probs = torch.randn(3, 50, 9, generator=torch.Generator().manual_seed(2)).log_softmax(-1).requires_grad_()
    targets = [torch.tensor([1, 1, 3, 5]), torch.tensor([2]), torch.tensor([4] * 6)]  # the last does not fit
    sizes = torch.tensor([4, 1, 6])
    found = ctc_loss(log_probs, LENGTHS, targets, 0)
    expected = F.ctc_loss(log_probs.transpose(0, 1), torch.cat(targets), LENGTHS, sizes, zero_infinity=True)
    assert torch.equal(found, expected)
    assert torch.equal(*(torch.autograd.grad(loss, log_probs)[0] for loss in (found, expected)))


@pytest.mark.parametrize(
    "values",
    [{"freq_mask_width_range": [5, 5]}, {"num_time_mask": -1}, {"time_warp_window": 0}, {"time_mask_width_range": [3]}],
)
def test_values_of_spec_augment_that_cannot_be_are_named(values):
    with pytest.raises(ValueError, match=f"task.specaug.{next(iter(values))}"):
        SpecAugmentConfig(**values).check()
