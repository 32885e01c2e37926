"""Programs that take upstreams from the s3prl hub, run on ours: what they see is what the expert gives."""

import hashlib
import shutil

import numpy as np
import pytest
import torch
from s3prl_distiller.upstream.distiller.hubconf import _DISTILHUBERT, distiller_local

from s3prl_distiller import register

RATE = 16_000


@pytest.fixture(scope="module")
def ckpt(student_file):
    register()
    # All hidden states are of one width, as DistilHuBERT's are: clients stack them.
    return student_file(final_dim=48)


@pytest.fixture
def in_cache(ckpt, monkeypatch, tmp_path):
    """The checkpoint where s3prl keeps DistilHuBERT's."""
    from s3prl.util import download

    monkeypatch.setattr(download, "_download_dir", tmp_path)
    name = f"{hashlib.sha256(_DISTILHUBERT.encode()).hexdigest()}.{_DISTILHUBERT.rsplit('/', 1)[1]}"
    shutil.copy(ckpt, tmp_path / name)


@torch.no_grad()
def expert_features(ckpt, wavs, **kwargs):
    return distiller_local(ckpt).eval()(wavs, **kwargs)


def padded(wavs):
    return torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True), torch.tensor([len(wav) for wav in wavs])


def test_s3prl_upstream_and_featurizer(ckpt, waves):
    from s3prl.nn import Featurizer, S3PRLUpstream

    upstream = S3PRLUpstream("distiller_local", path_or_url=str(ckpt)).eval()
    assert upstream.num_layers == 6
    assert upstream.hidden_sizes == [48] * 6
    assert upstream.downsample_rates == [320] * 6
    wav, lengths = padded(waves)
    with torch.no_grad():
        states, state_lengths = upstream(wav, lengths)
    expected = expert_features(ckpt, waves)
    frames = expected["pad_mask"].sum(1).int().tolist()
    assert state_lengths[0].tolist() == [-(-int(length) // 320) for length in lengths]
    for ours, reference in zip(states, expected["hidden_states"], strict=True):
        assert ours.shape == (3, -(-len(waves[0]) // 320), 48)
        for index, count in enumerate(frames):
            assert torch.equal(ours[index, :count], reference[index, :count])

    featurizer = Featurizer(upstream)
    mixed, mixed_lengths = featurizer(states, state_lengths)
    assert torch.equal(mixed_lengths, state_lengths[0])
    torch.testing.assert_close(mixed, torch.stack(list(states)).mean(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("samples", [400, 799, 800])
def test_s3prl_upstream_with_very_short_utterances(ckpt, waves, samples):
    """It pads what is below 0.05 s by itself."""
    from s3prl.nn import S3PRLUpstream

    upstream = S3PRLUpstream("distiller_local", path_or_url=str(ckpt)).eval()
    with torch.no_grad():
        states, lengths = upstream(waves[0][None, :samples], torch.tensor([samples]))
    assert states[0].shape == (1, -(-samples // 320), 48)
    assert all(torch.isfinite(state).all() for state in states)


def test_s3prl_upstream_by_a_registered_name(in_cache, waves):
    from s3prl.nn import S3PRLUpstream

    assert S3PRLUpstream("distilhubert").num_layers == 6
    with_option = S3PRLUpstream("distilhubert", extra_conf={"model_config": None}, normalize=True).eval()
    wav, lengths = padded(waves)
    assert torch.isfinite(with_option(wav, lengths)[0][-1]).all()


@pytest.mark.parametrize("selection", ["hidden_states", "paper", "last_hidden_state"])
def test_featurizer_of_run_downstream(ckpt, waves, selection):
    from s3prl.upstream.interfaces import Featurizer

    expert = distiller_local(ckpt).eval()
    featurizer = Featurizer(expert, selection, upstream_device="cpu")
    assert featurizer.output_dim == 48
    assert featurizer.downsample_rate == 320
    with torch.no_grad():
        features = featurizer(waves, expert(waves))
    expected = expert_features(ckpt, waves)[selection]
    if selection == "hidden_states":
        expected = torch.stack(expected).mean(0)
    for wav, feature, reference in zip(waves, features, expected, strict=True):
        count = (len(wav) - 400) // 320 + 1
        assert abs(len(feature) - len(wav) / 320) <= 1
        torch.testing.assert_close(feature[:count], reference[:count], rtol=0, atol=1e-6)


def test_featurizer_picks_one_layer(ckpt, waves):
    from s3prl.upstream.interfaces import Featurizer

    expert = distiller_local(ckpt).eval()
    featurizer = Featurizer(expert, "hidden_states", upstream_device="cpu", layer_selection=2)
    with torch.no_grad():
        features = featurizer(waves[:1], expert(waves[:1]))
    assert torch.equal(features[0][:64], expert_features(ckpt, waves[:1])["paper"][0])


def test_lhotse_extractor(in_cache, ckpt, waves):
    from lhotse.features.ssl import S3PRLSSL, S3PRLSSLConfig

    extractor = S3PRLSSL(S3PRLSSLConfig(ssl_model="distilhubert", feature_dim=48, layer=2))
    expected = expert_features(ckpt, waves[:1])["paper"][0].numpy()
    found = extractor.extract(waves[0].numpy(), RATE)
    assert found.shape == (65, 48)
    np.testing.assert_allclose(found[:64], expected, rtol=0, atol=1e-6)

    batch = extractor.extract_batch([wav.numpy() for wav in waves], RATE)
    assert [len(features) for features in batch] == [65, 45, 30]
    for features, wav in zip(batch, waves, strict=True):
        alone = expert_features(ckpt, [wav])["paper"][0].numpy()
        np.testing.assert_allclose(features[: len(alone)], alone, rtol=0, atol=1e-4)
    assert extractor.feature_dim(RATE) == 48


@pytest.mark.parametrize("by_path", [False, True])
def test_espnet_frontend(ckpt, in_cache, waves, by_path):
    frontend = pytest.importorskip("espnet2.asr.frontend.s3prl", reason="ESPnet is not installed")
    conf = {"upstream": "distiller_local", "path_or_url": str(ckpt)} if by_path else {"upstream": "distilhubert"}
    wav, lengths = padded(waves)
    expected = expert_features(ckpt, waves)["hidden_states"]
    for options, reference in (
        ({"multilayer_feature": True}, torch.stack(expected).mean(0)),
        ({"layer": 2}, expected[2]),
        ({}, expected[-1]),
    ):
        model = frontend.S3prlFrontend(fs=RATE, frontend_conf=conf, **options).eval()
        assert model.output_size() == 48
        assert model.hop_length == 320
        with torch.no_grad():
            features, feature_lengths = model(wav, lengths)
        assert features.shape[0] == 3
        assert feature_lengths.tolist() == [-(-int(length) // 320) for length in lengths]
        torch.testing.assert_close(features[0, :64], reference[0, :64], rtol=0, atol=1e-5)
        model.reload_pretrained_parameters()
