"""Any upstream for a task: what it gives, how long, and that s3prl's featurizer makes the same of it."""

from pathlib import Path

import pytest
import torch
from s3prl_distiller.downstream.core.config import UpstreamConfig
from s3prl_distiller.downstream.core.featurizer import Featurizer
from s3prl_distiller.downstream.core.upstream import load_upstream
from s3prl_distiller.upstream.distiller.hub_expert import load_hub_expert
from torch.nn.utils.rnn import pad_sequence

from s3prl_distiller import audio
from s3prl_distiller.hub import load_hub

NANO = str(Path(__file__).resolve().parents[2] / "s3prl_distiller" / "quickstart" / "hubert_nano")


@pytest.fixture(scope="module")
def waves(speech_files: list[Path]) -> list[torch.Tensor]:
    return [audio.load(path, duration=seconds) for path, seconds in zip(speech_files, (3.0, 1.2, 2.1), strict=False)]


def batch(waves: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return pad_sequence(waves, batch_first=True), torch.tensor([len(wave) for wave in waves])


@pytest.mark.parametrize(
    ("name", "feature", "layer"),
    [
        (NANO, "hidden_states", None),
        (NANO, "hidden_states", 3),
        (NANO, "hidden_states", -1),
        ("fbank", "hidden_states", None),
        ("fbank", "last_hidden_state", None),
    ],
)
@torch.no_grad()
def test_weighted_sum_is_that_of_s3prl(name, feature, layer, waves):
    """One utterance at a time, as the hub's own batches feel their padding."""
    from s3prl.upstream.interfaces import Featurizer as Theirs

    load_hub()
    upstream = load_upstream(UpstreamConfig(name=name, feature=feature, layer=layer))
    ours = Featurizer(upstream.n_layers)
    _, expert = load_hub_expert(name, None, "upstream")
    # s3prl heeds a layer only where it is not negative of a list, in which both count alike.
    theirs = Theirs(expert, feature, upstream_device="cpu", layer_selection=layer)
    if ours.weights is not None:
        ours.weights.copy_(torch.randn(upstream.n_layers, generator=torch.Generator().manual_seed(1)))
        theirs.weights.copy_(ours.weights)
    for wave in waves:
        states, frames = upstream(*batch([wave]))
        feature_of_ours = ours(states)
        [expected] = theirs([wave], expert([wave]))
        length = min(int(frames[0]), len(expected))
        assert abs(int(frames[0]) - len(expected)) <= 1, "s3prl rounds the frames of an utterance up"
        torch.testing.assert_close(feature_of_ours[0, :length], expected[:length], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [NANO, "fbank"])
@torch.no_grad()
def test_features_do_not_depend_on_the_batch(name, waves):
    upstream = load_upstream(UpstreamConfig(name=name))
    together, frames = upstream(*batch(waves))
    for index, wave in enumerate(waves):
        alone, length = upstream(*batch([wave]))
        assert length[0] == frames[index]
        for one, all_of_them in zip(alone, together, strict=True):
            kept = all_of_them[index, : length[0]]
            torch.testing.assert_close(kept, one[0, : length[0]], atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_last_hidden_state_is_the_last_layer(waves):
    last, frames = load_upstream(UpstreamConfig(name=NANO, feature="last_hidden_state"))(*batch(waves))
    layer, _ = load_upstream(UpstreamConfig(name=NANO, layer=12))(*batch(waves))
    torch.testing.assert_close(last, layer)
    trained, lengths = load_upstream(UpstreamConfig(name=NANO, feature="last_hidden_state", trainable=True))(
        *batch(waves[:1])
    )
    assert lengths[0] == frames[0], "the hub's own forward, which has no padding mask, has as many frames"
    torch.testing.assert_close(trained[0][:, : lengths[0]], last[0][:1, : lengths[0]], atol=1e-4, rtol=1e-3)


def test_what_is_not_there_is_named():
    with pytest.raises(ValueError, match="gives no 'papr' \\(-s\\): it has .*hidden_states"):
        load_upstream(UpstreamConfig(name="fbank", feature="papr"))
    with pytest.raises(ValueError, match="upstream.layer \\(-l\\) is 13.* has 13 layers, 0 to 12"):
        load_upstream(UpstreamConfig(name=NANO, layer=13))
    with pytest.raises(ValueError, match="upstream 'fbnk' is no name .* did you mean fbank"):
        load_upstream(UpstreamConfig(name="fbnk"))
    with pytest.raises(ValueError, match="name the upstream: -u"):
        load_upstream(UpstreamConfig())


def test_frozen_and_trainable():
    frozen = load_upstream(UpstreamConfig(name=NANO)).train()
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert not any(module.training for module in frozen.children() if module is not None)
    trained = load_upstream(UpstreamConfig(name=NANO, trainable=True, feature="last_hidden_state")).train()
    assert trained.training and all(parameter.requires_grad for parameter in trained.parameters())
    states, _ = trained(torch.randn(1, 4000), torch.tensor([4000]))
    states[0].sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.parameters())


def test_fingerprint_tells_weights_apart(tmp_path):
    import shutil

    import safetensors.torch

    one = load_upstream(UpstreamConfig(name=NANO))
    assert one.fingerprint == load_upstream(UpstreamConfig(name=NANO, layer=2)).fingerprint
    other = tmp_path / "other"
    shutil.copytree(NANO, other)
    weights = safetensors.torch.load_file(other / "model.safetensors")
    name = next(iter(weights))
    weights[name] = weights[name] + 1e-3
    safetensors.torch.save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    assert load_upstream(UpstreamConfig(name=str(other))).fingerprint != one.fingerprint
