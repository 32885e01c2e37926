"""The objective against the formulas of its paper, and padding that must not matter."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from s3prl_distiller.upstream.distiller.objective import distillation_loss, masked_mean


def paper(predictions, targets, loss_type, weight, features=None, penalty=0.0):
    """Equations 1 and 2 as s3prl's trainer computes them: means over everything, layers alike."""
    criterion = torch.nn.L1Loss(reduction="none") if loss_type == "l1" else torch.nn.MSELoss(reduction="none")
    loss = criterion(predictions, targets).mean()
    if weight > 0:
        loss = loss + weight * -F.logsigmoid(F.cosine_similarity(predictions, targets, dim=-1)).mean()
    if penalty > 0:
        loss = loss + penalty * features.float().pow(2).mean()
    return loss


def random(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("loss_type", ["l1", "l2"])
@pytest.mark.parametrize("weight", [0.0, 1.0, 3.5])
@pytest.mark.parametrize("penalty", [0.0, 0.7])
@pytest.mark.parametrize("shape", [(2, 3, 20, 16), (1, 1, 1, 4), (3, 2, 7, 1)])
def test_equals_the_paper_s(loss_type, weight, penalty, shape):
    predictions, targets = random(*shape, seed=1).requires_grad_(), random(*shape, seed=2)
    features = random(shape[0], shape[2], 5, seed=3)
    loss = distillation_loss(
        predictions,
        targets,
        None,
        list(range(shape[1])),
        loss_type=loss_type,
        cosine_weight=weight,
        features=features,
        feature_penalty=penalty,
    )
    expected = paper(predictions, targets, loss_type, weight, features, penalty)
    torch.testing.assert_close(loss.total, expected, rtol=1e-6, atol=1e-6)
    (ours,) = torch.autograd.grad(loss.total, predictions)
    (theirs,) = torch.autograd.grad(expected, predictions)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_parts_are_those_of_each_layer():
    predictions, targets = random(2, 3, 20, 16, seed=1).requires_grad_(), random(2, 3, 20, 16, seed=2)
    features = random(2, 20, 5, seed=3)
    loss = distillation_loss(predictions, targets, None, [4, 8, 12], features=features, feature_penalty=2.0)
    assert list(loss.parts) == [
        *(f"{part}_layer{layer}" for layer in (4, 8, 12) for part in ("l1", "cosine")),
        "feature_penalty",
    ]
    for index, layer in enumerate((4, 8, 12)):
        p, t = predictions[:, index], targets[:, index]
        torch.testing.assert_close(loss.parts[f"l1_layer{layer}"], (p - t).abs().mean())
        torch.testing.assert_close(loss.parts[f"cosine_layer{layer}"], F.cosine_similarity(p, t, dim=-1).mean())
    torch.testing.assert_close(loss.parts["feature_penalty"], features.square().mean())
    assert not any(value.requires_grad for value in loss.parts.values())
    assert "feature_penalty" not in distillation_loss(predictions, targets, None, [4, 8, 12], features=features).parts


def test_a_perfect_prediction():
    targets = random(1, 1, 9, 6)
    loss = distillation_loss(targets, targets, None, [1], cosine_weight=1.0)
    assert float(loss.total) == pytest.approx(float(-F.logsigmoid(torch.tensor(1.0))), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(dtype):
    predictions, targets = random(1, 1, 400, 8, scale=100).to(dtype), random(1, 1, 400, 8, seed=1, scale=100).to(dtype)
    loss = distillation_loss(predictions, targets, None, [1], loss_type="l2").total
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, paper(predictions.float(), targets.float(), "l2", 1.0), rtol=1e-5, atol=1e-4)


def batches(value):
    """Predictions, targets, features and mask of utterances of some lengths, with ``value`` where they are padded."""

    @st.composite
    def draw_batch(draw):
        lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
        seed, longest = draw(st.integers(0, 1000)), max(lengths) + draw(st.integers(0, 2))
        mask = torch.arange(longest)[None] < torch.tensor(lengths)[:, None]
        tensors = [
            random(len(lengths), 2, longest, 4, seed=seed),
            random(len(lengths), 2, longest, 4, seed=seed + 1),
            random(len(lengths), longest, 3, seed=seed + 2),
        ]
        fills = [draw(value) for _ in tensors]
        return lengths, mask, tensors, fills

    return draw_batch()


def check_padding(batch, loss_type):
    lengths, mask, (predictions, targets, features), fills = batch
    arguments = {"loss_type": loss_type, "cosine_weight": 0.5, "feature_penalty": 0.3}

    def filled(tensor, value):
        hidden = ~mask[:, None, :, None] if tensor.dim() == 4 else ~mask[..., None]
        return tensor.masked_fill(hidden, value).requires_grad_()

    p, t, f = (filled(tensor, value) for tensor, value in zip((predictions, targets, features), fills, strict=True))
    loss = distillation_loss(p, t, mask, [4, 8], features=f, **arguments)
    loss.total.backward()
    # The frames of content, end to end as if they were one utterance.
    joined = [
        torch.cat([x[i, ..., :n, :] for i, n in enumerate(lengths)], -2)[None] for x in (predictions, targets, features)
    ]
    expected = distillation_loss(joined[0], joined[1], None, [4, 8], features=joined[2], **arguments)
    torch.testing.assert_close(loss.total, expected.total, rtol=1e-5, atol=1e-6)
    for name, value in expected.parts.items():
        torch.testing.assert_close(loss.parts[name], value, rtol=1e-5, atol=1e-6)
    for tensor in (p, f):
        hidden = ~mask[:, None, :, None] if tensor.dim() == 4 else ~mask[..., None]
        assert torch.isfinite(tensor.grad).all()
        assert not tensor.grad[hidden.expand_as(tensor)].any()
        assert tensor.grad.any()


@pytest.mark.parametrize("loss_type", ["l1", "l2"])
@settings(max_examples=60, deadline=None)
@given(batch=batches(st.floats(-1e4, 1e4, width=32)))
def test_what_stands_in_the_padding_changes_nothing(loss_type, batch):
    check_padding(batch, loss_type)


@pytest.mark.parametrize("loss_type", ["l1", "l2"])
@settings(max_examples=60, deadline=None)
@given(batch=batches(st.sampled_from([0.0, 1e20, -3e38, float("inf"), float("-inf"), float("nan")])))
def test_not_even_what_overflows(loss_type, batch):
    """``0 * inf`` is no number: padding must be left out, not multiplied by zero."""
    check_padding(batch, loss_type)


def test_masked_mean_weighs_frames_and_not_utterances():
    values = torch.tensor([[[1.0, 1.0, 1.0]], [[5.0, 0.0, 0.0]]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert masked_mean(values, mask).tolist() == [2.0]
    assert masked_mean(values, None).tolist() == pytest.approx([8 / 6])
