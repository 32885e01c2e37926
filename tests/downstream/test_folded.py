"""What a graph has in place of parts of a head that cannot be traced, against those parts."""

import pytest
import torch
from s3prl_distiller.downstream.heads import xvector
from s3prl_distiller.downstream.heads.ctc import RecurrentHead
from s3prl_distiller.downstream.heads.folded import fold_lstms, padded_lstm
from s3prl_distiller.downstream.heads.lstm import LSTM
from torch import nn

torch.set_num_threads(1)
LENGTHS = torch.tensor([9, 4, 1])


@pytest.mark.parametrize(("layers", "both"), [(1, False), (2, True)])
@torch.no_grad()
def test_folded_lstm_is_the_lstm(layers, both):
    torch.manual_seed(0)
    own = nn.Sequential(LSTM(5, 3, layers, bidirectional=both))
    features = torch.randn(3, 9, 5)
    expected = own[0](features, LENGTHS)
    torch.testing.assert_close(fold_lstms(own)[0](features, LENGTHS), expected, atol=0, rtol=0)
    assert not any(isinstance(module, LSTM) for module in own.modules())


@torch.no_grad()
def test_gates_are_in_the_order_of_onnx():
    """Against ONNX's equations (input, output, forget, cell), written out."""
    torch.manual_seed(0)
    lstm = LSTM(2, 3)
    features = torch.randn(1, 6, 2)
    [layer] = fold_lstms(nn.Sequential(lstm))[0].layers
    hidden = cell = torch.zeros(3)
    for time, x in enumerate(features[0]):
        total = layer["inputs"][0] @ x + layer["recurrent"][0] @ hidden + sum(layer["biases"][0].chunk(2))
        i, o, f, c = total.chunk(4)
        cell = f.sigmoid() * cell + i.sigmoid() * c.tanh()
        hidden = o.sigmoid() * cell.tanh()
        torch.testing.assert_close(lstm(features)[0, time], hidden)


def test_custom_operation_is_sound():
    layer = fold_lstms(nn.Sequential(LSTM(5, 3, bidirectional=True)))[0].layers[0]
    weights = [layer[name].detach() for name in ("inputs", "recurrent", "biases")]
    torch.library.opcheck(padded_lstm, (torch.randn(3, 9, 5), LENGTHS, *weights))


@torch.no_grad()
def test_a_head_with_dropout_between_its_lstms():
    torch.manual_seed(0)
    head = RecurrentHead(7, 5, project=6, hidden=4).eval()
    features = torch.randn(3, 9, 7)
    expected = head(features, LENGTHS)
    torch.testing.assert_close(fold_lstms(head)(features, LENGTHS), expected, atol=0, rtol=0)


@torch.no_grad()
def test_xvector_traced():
    torch.manual_seed(0)

    class Embed(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = xvector.XVector(8, 16, 24)

        def forward(self, features, lengths):
            return self.head.embed(features, lengths)

    module, features = Embed().eval(), torch.randn(3, 40, 8)
    frames = torch.export.Dim("frames", min=xvector.MIN_FRAMES)
    traced = torch.export.export(
        module, (features, torch.tensor([40, 30, 20])), dynamic_shapes=({1: frames}, None)
    ).module()
    lengths = torch.tensor([60, 29, xvector.MIN_FRAMES])
    longer = torch.randn(3, 60, 8)
    torch.testing.assert_close(traced(longer, lengths), module(longer, lengths), atol=1e-6, rtol=1e-5)
