"""The student against s3prl's own distiller, and what ours adds: features that do not feel the padding."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from s3prl_distiller.upstream.distiller.hubconf import distiller_local
from s3prl_distiller.upstream.distiller.model import DistillerModel, Encoder
from s3prl_distiller.upstream.distiller.model_config import DistillerConfig, EncoderConfig

PAPER = {
    "encoder_layers": 2,
    "n_tasks": 3,
    "pred_layer_id": [4, 8, 12],
    "cosine_loss": 1.0,
    "feature_grad_mult": 0.1,
    "init_teacher_conv_layers": True,
    "init_teacher_encoder_layers": True,
}
# Variants that s3prl can predict with.
VARIANTS = {
    "4-8-12": {},
    "pre-norm": {"layer_norm_first": True},
    "large": {"layer_norm_first": True, "extractor_mode": "layer_norm"},
    "layer norms in the front end": {"extractor_mode": "layer_norm"},
    "one head": {"n_tasks": 1, "pred_layer_id": [12]},
    "narrow heads": {"out_layer_inter_dim": 24},
    "self-hidden": {
        "task_emb_type": "self-hidden",
        "out_layer_type": "self-hidden",
        "n_tasks": 3,
        "final_dim": 48,
    },
    "one layer": {"encoder_layers": 1},
    "three layers": {"encoder_layers": 3},
    "no projection": {"extractor_conv_feature_layers": "[(48,10,5)] + [(48,3,2)] * 4 + [(48,2,2)] * 2"},
    "other front end": {"extractor_conv_feature_layers": "[(12,10,5),(20,8,4)] + [(16, 4, 2)]*2"},
    "odd positional kernel": {"conv_pos": 15},
    "even positional kernel": {"conv_pos": 16},
    **{f"activation {name}": {"activation_fn": name} for name in ("gelu", "gelu_accurate", "relu", "tanh", "linear")},
}
# Variants of which s3prl gives features but no predictions. With concat-last it gives nothing at all.
WITHOUT_PREDICTION = {
    "add": {"task_emb_type": "add", "out_layer_type": "none"},
    "concat": {"task_emb_type": "concat", "out_layer_type": "none", "task_emb_size": 8},
    "none": {"task_emb_type": "none", "out_layer_type": "none"},
}


@torch.no_grad()
def assert_equal_features(ours, theirs, wavs, tolerance=1e-5, **kwargs):
    mine, reference = ours(wavs, **kwargs), theirs(wavs, **kwargs)
    assert set(mine) == set(reference)
    assert len(mine["hidden_states"]) == len(reference["hidden_states"])
    for a, b in zip(mine["hidden_states"], reference["hidden_states"], strict=True):
        # Random weights make values of 20, of which float32 has no more digits.
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    for key in ("paper", "pad_mask", "last_hidden_state"):
        if reference[key] is None:
            assert mine[key] is None
        else:
            torch.testing.assert_close(mine[key], reference[key], rtol=0, atol=tolerance)
    return mine


def test_paper_config_at_real_size(student_file, s3prl_expert, waves):
    path = student_file(real_size=True, **PAPER)
    ours = distiller_local(path).eval()
    features = assert_equal_features(ours, s3prl_expert(path), [waves[0]])
    assert [tuple(h.shape) for h in features["hidden_states"]] == [(1, 64, 768)] * 6
    assert features["paper"] is features["hidden_states"][2]
    heads = sum(parameter.numel() for parameter in ours.model.output_layer.parameters())
    assert sum(parameter.numel() for parameter in ours.model.parameters()) - heads == 23_491_200


def test_parameters_with_two_heads():
    config = DistillerConfig(encoder_layers=2, n_tasks=2, pred_layer_id=[4, 12])
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in DistillerModel(config).parameters()) == 25_853_568


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_equals_s3prl(changes, student_file, s3prl_expert, waves):
    path = student_file(**changes)
    ours, theirs = distiller_local(path).eval(), s3prl_expert(path)
    for wav in waves[:2]:
        assert_equal_features(ours, theirs, [wav])
    without = assert_equal_features(ours, theirs, [waves[0]], no_pred=True)
    assert without["last_hidden_state"] is None
    assert len(without["hidden_states"]) == 1 + ours.model.config.encoder_layers


@pytest.mark.parametrize("changes", WITHOUT_PREDICTION.values(), ids=WITHOUT_PREDICTION)
@pytest.mark.parametrize("layer_norm_first", [False, True])
def test_equals_s3prl_without_prediction(changes, layer_norm_first, student_file, s3prl_expert, waves):
    path = student_file(**changes, layer_norm_first=layer_norm_first)
    assert_equal_features(distiller_local(path).eval(), s3prl_expert(path), [waves[0]], no_pred=True)


@pytest.mark.parametrize("extractor_mode", ["default", "layer_norm"])
@pytest.mark.parametrize("layer_norm_first", [False, True])
def test_batch_equals_s3prl_where_padding_is_normalised_over(
    extractor_mode, layer_norm_first, student_file, s3prl_expert, waves
):
    path = student_file(extractor_mode=extractor_mode, layer_norm_first=layer_norm_first, norm_over_padding=True)
    assert_equal_features(distiller_local(path).eval(), s3prl_expert(path), waves)


def test_s3prl_features_feel_the_padding_and_ours_do_not(student_file, s3prl_expert, waves):
    path = student_file()
    ours, theirs = distiller_local(path).eval(), s3prl_expert(path)
    last = waves[-1]
    with torch.no_grad():
        for expert, low, high in ((ours, 0, 1e-5), (theirs, 1e-2, float("inf"))):
            alone = expert([last])["paper"][0]
            batched = expert(waves)["paper"][-1, : len(alone)]
            assert low <= float((alone - batched).abs().max()) <= high


def test_model_config_yaml(student_file, s3prl_expert, tmp_path, waves):
    path = student_file()
    options = tmp_path / "options.yaml"
    options.write_text('load_pretrain: "True"\nno_grad: "True"\npermute_input: "False"\n')
    frozen = distiller_local(path, model_config=str(options)).eval()
    assert not frozen(waves[:1])["paper"].requires_grad
    assert distiller_local(path)(waves[:1])["paper"].requires_grad
    assert_equal_features(frozen, s3prl_expert(path, model_config=str(options)), waves[:1])

    options.write_text('load_pretrain: "False"\nno_grad: "False"\npermute_input: "False"\n')
    fresh = distiller_local(path, model_config=str(options)).eval()
    assert fresh.model.config == frozen.model.config
    fresh_weights, loaded = fresh.model.state_dict(), frozen.model.state_dict()
    assert not torch.equal(fresh_weights["post_extract_proj.weight"], loaded["post_extract_proj.weight"])


def test_downsample_rate(student_file):
    assert distiller_local(student_file()).get_downsample_rates("hidden_states") == 320
    other = student_file(extractor_conv_feature_layers="[(16,10,5),(16,8,4)]")
    assert distiller_local(other).get_downsample_rates("hidden_states") == 20


FAMILIES = {
    "HuBERT base": {},
    "normalised waveform": {"normalize": True},
    "pre-norm": {"layer_norm_first": True},
    "large": {
        "extractor_mode": "layer_norm",
        "layer_norm_first": True,
        "conv_bias": True,
        "normalize": True,
        "feature_layer_norm": True,
    },
    "post-norm, layer norms in front": {"extractor_mode": "layer_norm", "conv_bias": True},
    "data2vec": {"conv_pos_depth": 5, "conv_pos": 95, "extractor_mode": "layer_norm"},
    "task embeddings": {"task_emb_type": "add", "out_layer_type": "linear"},
    "task embeddings at the end": {"task_emb_type": "concat-last", "out_layer_type": "linear", "task_emb_size": 8},
    "task embeddings, concatenated": {"task_emb_type": "concat", "out_layer_type": "linear", "task_emb_size": 8},
}


@pytest.fixture(scope="module")
def students(small) -> dict[str, DistillerModel]:
    models = {}
    for name, changes in FAMILIES.items():
        torch.manual_seed(0)
        model = DistillerModel(DistillerConfig(**{**small, **changes})).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        models[name] = model
    return models


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(400, 9000), min_size=2, max_size=4),
    seed=st.integers(0, 2**31),
    offset=st.sampled_from([0.0, 0.05]),
)
def test_features_do_not_depend_on_the_batch(family, students, lengths, seed, offset):
    """Any mix of lengths from one frame up, and an offset as microphones have one, which padding has not."""
    model = students[family]
    generator = torch.Generator().manual_seed(seed)
    wavs = [torch.randn(length, generator=generator) * 0.1 + offset for length in lengths]
    batch = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
    with torch.no_grad():
        together = model(batch, torch.tensor(lengths))
        for index, wav in enumerate(wavs):
            alone = model(wav[None], torch.tensor([len(wav)]))
            frames = int(alone.frames[0])
            assert int(together.frames[index]) == frames == alone.features.shape[1]
            rows = slice(index * len(alone.projected), (index + 1) * len(alone.projected))
            pairs = [(together.projected[rows], alone.projected), (together.output[rows], alone.output)]
            pairs += zip([h[rows] for h in together.hidden_states], alone.hidden_states, strict=True)
            pairs.append((together.predictions[index], alone.predictions[0]))
            for batched, single in pairs:
                torch.testing.assert_close(batched[..., :frames, :], single, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("samples", [1, 399])
def test_too_short_for_a_frame(students, student_file, waves, samples):
    with pytest.raises(ValueError, match=rf"\b{samples} samples.*400"):
        students["HuBERT base"](torch.zeros(1, samples), torch.tensor([samples]))
    with pytest.raises(ValueError, match=rf"\b{samples} samples"):
        distiller_local(student_file())([waves[0], torch.zeros(samples)])


def test_waveform_with_a_channel_dimension_is_refused(student_file, waves):
    with pytest.raises(ValueError, match=r"\(1, 20800\)"):
        distiller_local(student_file())([waves[0][None]])


def gradients(model, wav, **kwargs):
    model.zero_grad()
    out = model(wav[None], torch.tensor([len(wav)]), **kwargs)
    loss = out.predictions.square().mean() + 0.1 * out.projected.square().mean()
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


def test_feature_grad_mult_scales_the_front_end_only(small, waves):
    found = {}
    for scale in (1.0, 0.1, 0.0):
        torch.manual_seed(0)
        model = DistillerModel(DistillerConfig(**{**small, "feature_grad_mult": scale})).eval()
        found[scale] = gradients(model, waves[0])[1]
    for name, full in found[1.0].items():
        if name.startswith("feature_extractor."):
            assert full.abs().max() > 0
            torch.testing.assert_close(found[0.1][name], 0.1 * full, rtol=1e-4, atol=1e-9)
            assert found[0.0][name] is None
        else:
            torch.testing.assert_close(found[0.1][name], full)
            torch.testing.assert_close(found[0.0][name], full)


def test_gradient_checkpointing_changes_no_number(small, waves):
    torch.manual_seed(0)
    model = DistillerModel(DistillerConfig(**{**small, "dropout": 0.1, "attention_dropout": 0.1})).train()
    torch.manual_seed(1)
    loss, plain = gradients(model, waves[0])
    model.encoder.gradient_checkpointing = True
    torch.manual_seed(1)
    again, checkpointed = gradients(model, waves[0])
    assert torch.equal(loss, again)
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-5, atol=1e-8)


def test_layerdrop_keeps_the_number_of_hidden_states(small, waves):
    model = DistillerModel(DistillerConfig(**{**small, "encoder_layers": 3, "encoder_layerdrop": 1.0})).train()
    out = model(waves[0][None], torch.tensor([len(waves[0])]))
    assert len(out.hidden_states) == 3
    assert torch.equal(out.hidden_states[0], out.hidden_states[2])


def test_encoder_stops_early(small, waves):
    config = EncoderConfig.from_mapping({**small, "encoder_layers": 4, "layer_norm_first": True})
    torch.manual_seed(0)
    model = Encoder(config).eval()
    wav, lengths = waves[0][None], torch.tensor([len(waves[0])])
    with torch.no_grad():
        every = model(wav, lengths).hidden_states
        first = model(wav, lengths, last_layer=2).hidden_states
    assert len(every) == 5
    assert len(first) == 3
    for a, b in zip(first, every, strict=False):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"extractor_mode": "batch_norm"}, "extractor_mode='batch_norm'"),
        ({"activation_fn": "gelo"}, "activation_fn='gelo'"),
        ({"attention_type": "sparse"}, "attention_type='sparse'"),
        ({"encoder_attention_heads": 5}, "encoder_attention_heads=5"),
        ({"encoder_attention_heads": 0}, "encoder_attention_heads=0"),
        ({"conv_pos_groups": 7}, "conv_pos_groups=7"),
        ({"encoder_layers": -1}, "encoder_layers=-1"),
        ({"task_emb_type": "expand"}, "task_emb_type='expand'"),
        ({"out_layer_type": "none"}, "out_layer_type='none'"),
        ({"loss_type": "l3"}, "loss_type='l3'"),
        ({"n_tasks": 2}, "n_tasks=2"),
        ({"task_emb_type": "concat", "out_layer_type": "none"}, "task_emb_size"),
        ({"task_emb_type": "self-hidden", "out_layer_type": "none", "encoder_layers": 4}, "5 entries, not 3"),
    ],
)
def test_impossible_configs_name_the_key(small, changes, named):
    with pytest.raises(ValueError, match="(?s)" + named.replace("(", r"\(")):
        DistillerModel(DistillerConfig(**{**small, **changes}))
