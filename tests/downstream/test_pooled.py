"""The head of utterance classification, against s3prl's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from s3prl_distiller.downstream.heads.pooled import PooledClassifier, mean_over_time
from torch import nn

from s3prl_distiller.hub import load_hub

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def theirs():
    """s3prl's head of all four tasks, as their experts put it together."""
    load_hub()
    from s3prl.downstream.model import UtteranceLevel

    class Head(nn.Module):
        def __init__(self, width, classes):
            super().__init__()
            self.projector = nn.Linear(width, 256)
            self.model = UtteranceLevel(input_dim=256, output_dim=classes, pooling="MeanPooling")

        def forward(self, features, lengths):
            return self.model(self.projector(features), lengths)[0]

    return Head


@pytest.mark.parametrize("classes", [4, 12, 24, 1251])
def test_equals_s3prl(theirs, classes):
    torch.manual_seed(classes)
    head, other = PooledClassifier(768, classes), theirs(768, classes)
    copy = {
        "projector.weight": head.projector.weight,
        "projector.bias": head.projector.bias,
        "model.post_net.linear.weight": head.linear.weight,
        "model.post_net.linear.bias": head.linear.bias,
    }
    other.load_state_dict(copy)
    features, lengths = torch.randn(5, 61, 768), torch.tensor([61, 1, 17, 60, 2])
    torch.testing.assert_close(head(features, lengths), other(features, lengths), atol=1e-6, rtol=0)
    assert sum(p.numel() for p in head.parameters()) == sum(p.numel() for p in other.parameters())
    # Gradients too: training is the same.
    head(features, lengths).square().sum().backward()
    other(features, lengths).square().sum().backward()
    mine, yours = head.projector.weight.grad, other.projector.weight.grad
    torch.testing.assert_close(mine, yours, atol=1e-4, rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6), padding=st.integers(0, 30), seed=st.integers(0, 99)
)
def test_padding_has_no_influence(lengths, padding, seed):
    torch.manual_seed(seed)
    head = PooledClassifier(24, 5, hidden=16)
    alone = [torch.randn(length, 24) for length in lengths]
    batch = torch.full((len(lengths), max(lengths) + padding, 24), float("nan"))
    for row, features in zip(batch, alone, strict=True):
        row[: len(features)] = features
    together = head(batch, torch.tensor(lengths))
    for scores, features in zip(together, alone, strict=True):
        torch.testing.assert_close(scores, head(features[None], torch.tensor([len(features)]))[0], atol=1e-6, rtol=1e-5)


def test_mean_over_time():
    features = torch.tensor([[[1.0], [3.0], [100.0]], [[5.0], [7.0], [9.0]]])
    assert mean_over_time(features, torch.tensor([2, 3])).tolist() == [[2.0], [7.0]]


def test_close_classes_stay_apart_under_autocast():
    """In bfloat16 scores that differ by less than a hundredth of their size are one number."""
    torch.manual_seed(0)
    head = PooledClassifier(32, 1251)
    features, lengths = torch.randn(2, 9, 32), torch.tensor([9, 4])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = head(features.bfloat16(), lengths)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, head(features.bfloat16().float(), lengths))
    assert len(scores[0].unique()) > 1240 > len(scores[0].bfloat16().unique())
