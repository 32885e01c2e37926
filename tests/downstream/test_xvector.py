"""The x-vector and AM-softmax, against both of s3prl's own (downstream/sv_voxceleb1 and nn)."""

import pytest
import torch
from s3prl_distiller.downstream.heads.amsoftmax import AMSoftmax
from s3prl_distiller.downstream.heads.xvector import MIN_FRAMES, XVector

from s3prl_distiller.hub import load_hub

torch.set_num_threads(1)
LAYERS = ((5, 1), (3, 2), (3, 3), (1, 1), (1, 1))


def kernels(head: XVector) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Weights as s3prl has them: one linear layer over the frames of a context, frame by frame."""
    convolutions = [layer for layer in head.tdnn if isinstance(layer, torch.nn.Conv1d)]
    return [(layer.weight.transpose(1, 2).flatten(1), layer.bias) for layer in convolutions]


@pytest.fixture(scope="module")
def head() -> XVector:
    torch.manual_seed(0)
    return XVector(768)


@pytest.fixture(scope="module")
def downstream(head):
    """The connector and model that s3prl's expert builds of its config, with the head's weights."""
    load_hub()
    from s3prl.downstream.sv_voxceleb1.model import Model

    model = Model(
        512, 1500, "SP", "XVector", "UtteranceExtractor", {"agg_dim": 1500, "dropout_p": 0.0, "batch_norm": False}
    )
    connector = torch.nn.Linear(768, 512)
    connector.load_state_dict(head.projector.state_dict())
    state = {}
    for number, (weight, bias) in enumerate(kernels(head)):
        state[f"framelevel_feature_extractor.module.{number}.kernel.weight"] = weight
        state[f"framelevel_feature_extractor.module.{number}.kernel.bias"] = bias
    for place, layer in (("linear1", head.first), ("linear2", head.second)):
        state |= {
            f"utterancelevel_feature_extractor.{place}.{name}": value for name, value in layer.state_dict().items()
        }
    model.load_state_dict(state)
    return connector, model


@torch.no_grad()
def test_equals_the_downstream_of_s3prl(head, downstream):
    connector, model = downstream
    for frames in (MIN_FRAMES, 60, 131):
        features = torch.randn(3, frames, 768)
        no_mask = torch.zeros(3, frames - 14)
        lengths = torch.full((3,), frames)
        torch.testing.assert_close(head(features, lengths), model(connector(features), no_mask), atol=1e-6, rtol=0)
        theirs = model.inference(connector(features), no_mask)
        torch.testing.assert_close(head.embed(features, lengths), theirs, atol=1e-6, rtol=0)
    own = sum(p.numel() for p in head.parameters())
    assert own == sum(p.numel() for part in downstream for p in part.parameters())


@torch.no_grad()
def test_equals_the_nn_of_s3prl_with_padding(head):
    load_hub()
    from s3prl.nn.speaker_model import SuperbXvector

    theirs = SuperbXvector(768)
    state = {f"projector.{name}": value for name, value in head.projector.state_dict().items()}
    for number, (weight, bias) in enumerate(kernels(head)):
        state |= {f"tdnns.module.{number}.kernel.weight": weight, f"tdnns.module.{number}.kernel.bias": bias}
    for place, layer in (("linear1", head.first), ("linear2", head.second)):
        state |= {f"affine.{place}.{name}": value for name, value in layer.state_dict().items()}
    theirs.load_state_dict(state)
    features, lengths = torch.randn(4, 80, 768), torch.tensor([80, 16, 47, 79])
    torch.testing.assert_close(head(features, lengths), theirs.train()(features, lengths), atol=1e-6, rtol=0)
    torch.testing.assert_close(head.embed(features, lengths), theirs.eval()(features, lengths), atol=1e-6, rtol=0)
    assert sum(p.numel() for p in head.parameters()) == sum(p.numel() for p in theirs.parameters())


@torch.no_grad()
def test_what_follows_an_utterance_has_no_effect(head):
    features = torch.randn(1, 50, 768)
    alone = head.embed(features, [50])
    padded = torch.cat([features, torch.full((1, 30, 768), 1e3)], dim=1)
    torch.testing.assert_close(head.embed(padded, torch.tensor([50])), alone, atol=1e-6, rtol=0)


def test_too_short(head):
    with pytest.raises(ValueError, match=f"needs {MIN_FRAMES} frames of speech or more, and here are 15"):
        head(torch.randn(2, 40, 768), torch.tensor([40, 15]))


def test_gradients_stay_finite_where_a_unit_is_silent(head):
    """A rectified unit that is 0 in all frames has a standard deviation of 0, whose root has no slope."""
    head.zero_grad()
    head(torch.zeros(2, 30, 768), [30, 20]).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)


@pytest.mark.parametrize("classes", [2, 1211])
def test_loss_equals_both_of_s3prl(classes):
    load_hub()
    from s3prl.downstream.sv_voxceleb1.model import AMSoftmaxLoss
    from s3prl.nn.speaker_loss import amsoftmax

    torch.manual_seed(classes)
    mine, first, second = AMSoftmax(512, classes), AMSoftmaxLoss(512, classes), amsoftmax(512, classes, 0.4, 30)
    with torch.no_grad():
        first.W.copy_(mine.weight)
        second.W.copy_(mine.weight)
    vectors, labels = torch.randn(10, 512, requires_grad=True), torch.randint(classes, (10,))
    loss, cosines = mine(vectors, labels)
    torch.testing.assert_close(loss, first(vectors, labels), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss, second(vectors, labels)[0], atol=1e-5, rtol=1e-5)
    assert cosines.shape == (10, classes) and cosines.abs().max() <= 1 + 1e-6
    (gradient,) = torch.autograd.grad(loss, vectors)
    (expected,) = torch.autograd.grad(first(vectors, labels), vectors)
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4)
    assert sum(p.numel() for p in mine.parameters()) == sum(p.numel() for p in first.parameters())
