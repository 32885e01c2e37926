"""Converters are pure: names and numbers of one form in, those of another out."""

import json

import pytest
import torch
from s3prl_distiller.upstream.distiller.convert import (
    encoder_weights,
    fairseq_config,
    huggingface_config,
    huggingface_weights,
)
from s3prl_distiller.upstream.distiller.model import Encoder

KINDS = ["hubert", "wav2vec2", "data2vec-audio"]


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("large", [False, True], ids=["base", "large"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_finds_its_place(huggingface_folder, kind, large):
    from safetensors.torch import load_file

    changes = {"large": large} if kind != "data2vec-audio" else {"conv_bias": large}
    folder = huggingface_folder(kind, **changes)
    state = load_file(folder / "model.safetensors")
    config = huggingface_config(config_of(folder), {"do_normalize": large})
    assert config.normalize == large
    assert config.conv_bias == large
    weights = huggingface_weights(state, config)
    expected = Encoder(config).state_dict()
    assert {name: tensor.shape for name, tensor in weights.items()} == {n: t.shape for n, t in expected.items()}
    # Only the vector that stands for masked frames is left behind.
    assert len(weights) == len(state) - sum(name == "masked_spec_embed" for name in state)
    total = sum(tensor.double().abs().sum() for name, tensor in state.items() if name != "masked_spec_embed")
    torch.testing.assert_close(sum(tensor.double().abs().sum() for tensor in weights.values()), total)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_given_is_changed(huggingface_folder, kind):
    from safetensors.torch import load_file

    folder = huggingface_folder(kind)
    config, state = config_of(folder), load_file(folder / "model.safetensors")
    names, before = list(state), json.dumps(config)
    huggingface_weights(state, huggingface_config(config))
    assert list(state) == names
    assert json.dumps(config) == before


def test_released_students_and_teachers_by_their_configs():
    """What the config.json of DistilHuBERT and of XLSR-53 say, as far as a model is made of it."""
    strides = {
        "conv_dim": [512] * 7,
        "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
        "conv_stride": [5, 2, 2, 2, 2, 2, 2],
        "num_conv_pos_embeddings": 128,
        "num_conv_pos_embedding_groups": 16,
        "hidden_act": "gelu",
    }
    base = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 2}
    student = huggingface_config(
        {"model_type": "hubert", **strides, **base, "feat_extract_norm": "group", "feat_proj_layer_norm": False}
    )
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in Encoder(student).parameters()) == 23_491_200
    wide = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24}
    large = huggingface_config(
        {
            "model_type": "wav2vec2",
            **strides,
            **wide,
            "feat_extract_norm": "layer",
            "conv_bias": True,
            "do_stable_layer_norm": True,
        },
        {"do_normalize": True},
    )
    assert (large.extractor_mode, large.conv_bias, large.layer_norm_first, large.normalize) == (
        "layer_norm",
        True,
        True,
        True,
    )
    with torch.device("meta"):
        # 315.4 M of XLSR-53's 317 M; the rest is its quantiser.
        assert sum(parameter.numel() for parameter in Encoder(large).parameters()) == 315_437_696


@pytest.mark.parametrize("large", [False, True], ids=["base", "large"])
@pytest.mark.parametrize("kind", ["hubert", "wav2vec2", "data2vec"])
def test_fairseq_models_are_read_off_their_modules(hub_file, kind, large):
    from s3prl_distiller.hub import load_hub

    path = hub_file(kind, large=large, normalize=large)
    model = getattr(load_hub(), f"{kind}_custom")(ckpt=str(path)).model
    config = fairseq_config(model, large)
    written = torch.load(path)["model_cfg"]
    for key in (
        "encoder_layers",
        "encoder_embed_dim",
        "encoder_ffn_embed_dim",
        "encoder_attention_heads",
        "conv_pos",
        "conv_pos_groups",
        "layer_norm_first",
        "extractor_mode",
        "conv_bias",
    ):
        assert getattr(config, key) == written[key], key
    assert config.conv_pos_depth == written.get("pos_conv_depth", 1)
    expected = Encoder(config).state_dict()
    weights = encoder_weights(model.state_dict())
    assert {name: tensor.shape for name, tensor in weights.items()} == {n: t.shape for n, t in expected.items()}
