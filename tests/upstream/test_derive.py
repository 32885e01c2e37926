"""A student made for its teacher: what it takes over, what starts from the teacher, and what does not fit."""

import logging
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from s3prl_distiller.upstream.distiller.derive import derive_student, evenly_spaced
from s3prl_distiller.upstream.distiller.initialise import initialise
from s3prl_distiller.upstream.distiller.model import DistillerModel, Encoder
from s3prl_distiller.upstream.distiller.model_config import DistillerConfig, EncoderConfig
from s3prl_distiller.upstream.distiller.pretrain_expert import load_config
from s3prl_distiller.upstream.distiller.teacher import TeacherConfig, TeacherInfo, load_teacher

import s3prl_distiller
from s3prl_distiller import settings

NANO = Path(s3prl_distiller.__file__).parent / "quickstart" / "hubert_nano"
FOLLOWED = {
    "extractor_mode",
    "extractor_conv_feature_layers",
    "conv_bias",
    "conv_pos",
    "conv_pos_groups",
    "conv_pos_depth",
    "encoder_embed_dim",
    "encoder_ffn_embed_dim",
    "encoder_attention_heads",
    "layer_norm_first",
    "normalize",
}
RECIPE = {
    "encoder_layers": 2,
    "pred_layer_id": [1, 3],
    "init_teacher_conv_layers": True,
    "init_teacher_encoder_layers": True,
}


def info_of(n_layers=12, width=768, rate=320, normalize=False, architecture=True, **changes) -> TeacherInfo:
    """HuBERT base, or what ``changes`` make of it."""
    config = EncoderConfig(
        **{"encoder_layers": n_layers, "encoder_embed_dim": width, "normalize": normalize, **changes}
    )
    return TeacherInfo("some_teacher", n_layers, width, rate, normalize, config if architecture else None)


@pytest.mark.parametrize("large", [False, True], ids=["base", "large"])
@pytest.mark.parametrize("form", ["s3prl", "Hugging Face"])
@pytest.mark.parametrize("kind", ["hubert", "wav2vec2", "data2vec"])
def test_students_of_every_family(hub_file, huggingface_folder, waves, kind, form, large):
    if form == "s3prl":
        path = hub_file(kind, large=large, normalize=large)
    elif kind == "data2vec":
        path = huggingface_folder("data2vec-audio", normalize=large, conv_bias=large)
    else:
        path = huggingface_folder(kind, large=large, normalize=large)
    teacher = load_teacher(TeacherConfig(model=str(path)))
    config = derive_student(RECIPE, teacher.info)
    for key in FOLLOWED:
        assert getattr(config, key) == getattr(teacher.info.architecture, key), key
    assert config.encoder_layers == 2
    assert config.final_dim == teacher.info.width == 48
    assert config.n_tasks == 2
    assert config.targets == [1, 3]
    assert not config.always_project

    torch.manual_seed(1)
    student = DistillerModel(config)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    copied = initialise(student, teacher.twin)
    theirs, total = teacher.twin.state_dict(), 0
    for name, tensor in student.state_dict().items():
        if name.startswith(("feature_extractor.", "post_extract_proj.", "encoder.pos_conv.", "encoder.layers.")):
            assert torch.equal(tensor, theirs[name]), name
            total += tensor.numel()
        else:
            # Heads, and the encoder's own normalisation: s3prl leaves it as it is.
            assert name.startswith(("output_layer.", "encoder.layer_norm.")), name
            assert torch.equal(tensor, before[name]), name
    assert copied == total
    out = student.eval()(waves[0][None], torch.tensor([len(waves[0])]))
    assert out.predictions.shape == (1, 2, 64, 48)


@pytest.mark.parametrize("norm", [False, True])
def test_encoder_norm_starts_from_the_teacher_only_with_its_flag(huggingface_folder, norm):
    teacher = load_teacher(TeacherConfig(model=str(huggingface_folder("hubert"))))
    student = DistillerModel(derive_student({**RECIPE, "init_teacher_encoder_norm": norm}, teacher.info))
    initialise(student, teacher.twin)
    same = torch.equal(student.encoder.layer_norm.weight, teacher.twin.encoder.layer_norm.weight)
    assert same == norm


def test_each_flag_copies_its_part(huggingface_folder):
    teacher = load_teacher(TeacherConfig(model=str(huggingface_folder("hubert"))))
    parts = {
        "init_teacher_conv_layers": ("feature_extractor.", "post_extract_proj."),
        "init_teacher_encoder_layers": ("encoder.pos_conv.", "encoder.layers."),
        "init_teacher_encoder_norm": ("encoder.layer_norm.",),
    }
    nothing = {**RECIPE, **dict.fromkeys(parts, False)}
    for flag, prefixes in parts.items():
        student = DistillerModel(derive_student({**nothing, flag: True}, teacher.info))
        before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
        initialise(student, teacher.twin)
        changed = {name for name, tensor in student.state_dict().items() if not torch.equal(tensor, before[name])}
        assert changed == {name for name in before if name.startswith(prefixes)}
    student = DistillerModel(derive_student(nothing, teacher.info))
    assert initialise(student, teacher.twin) == 0


def test_the_bundled_teacher_with_nothing_given():
    teacher = load_teacher(TeacherConfig(model=str(NANO)))
    config = derive_student({}, teacher.info)
    assert config.encoder_embed_dim == config.final_dim == 192
    assert config.encoder_ffn_embed_dim == 768
    assert config.encoder_attention_heads == 3
    assert config.targets == [4, 8, 12]
    # Defaults of s3prl's for what a teacher has no say in.
    assert (config.encoder_layers, config.cosine_loss, config.dropout) == (1, 0.0, 0.1)


@pytest.mark.parametrize(
    ("n_layers", "targets"),
    [(12, [4, 8, 12]), (24, [8, 16, 24]), (48, [16, 32, 48]), (6, [2, 4, 6]), (4, [1, 3, 4]), (2, [1, 2]), (1, [1])],
)
def test_predicted_layers_follow_the_depth(n_layers, targets, caplog):
    with caplog.at_level(logging.INFO):
        config = derive_student({}, info_of(n_layers=n_layers))
    assert config.targets == targets
    assert config.n_tasks == len(targets)
    assert f"predicts layers {', '.join(map(str, targets))} of the {n_layers}" in caplog.text


PRE_NORM = {"layer_norm_first": True, "extractor_mode": "layer_norm", "normalize": True}


@pytest.mark.parametrize(
    ("released", "n_layers", "width", "switches"),
    [
        ("HuBERT large", 24, 1024, PRE_NORM),
        ("HuBERT x-large", 48, 1280, {**PRE_NORM, "encoder_ffn_embed_dim": 5120}),
        ("XLS-R 1B", 48, 1280, {**PRE_NORM, "conv_bias": True, "encoder_ffn_embed_dim": 5120}),
        ("XLS-R 2B", 48, 1920, {**PRE_NORM, "conv_bias": True, "encoder_ffn_embed_dim": 7680}),
    ],
)
def test_students_of_released_sizes(released, n_layers, width, switches):
    """At full width and depth: two of the teacher's layers, on its front end."""
    info = info_of(n_layers, width, encoder_attention_heads=16, **{"encoder_ffn_embed_dim": 4096, **switches})
    _, given = load_config([settings.bundled("pretrain", "distilhubert")], {}, [])
    config = derive_student(given, info)
    assert config.final_dim == config.encoder_embed_dim == width
    assert config.targets == [n_layers // 3, 2 * n_layers // 3, n_layers]
    with torch.device("meta"):
        student = DistillerModel(config)
    heads = sum(parameter.numel() for parameter in student.output_layer.parameters())
    total = sum(parameter.numel() for parameter in student.parameters()) - heads
    units = info.architecture.encoder_ffn_embed_dim
    layers = 2 * (4 * (width**2 + width) + 2 * width * units + units + width + 4 * width)
    positions = width * width // 16 * 128 + 128 + width
    front_end = 512 * (10 + 4 * 512 * 3 + 2 * 512 * 2) + 7 * 2 * 512 + (7 * 512 if config.conv_bias else 0)
    assert total == layers + positions + 2 * width + front_end + 512 * width + width


@given(n_layers=st.integers(1, 60), count=st.integers(1, 8))
def test_evenly_spaced_layers(n_layers, count):
    layers = evenly_spaced(n_layers, count)
    assert layers == sorted(set(layers))
    assert len(layers) == min(count, n_layers) and layers[-1] == n_layers
    for part, layer in enumerate(layers, start=1):
        if count <= n_layers:
            assert abs(layer - part * n_layers / count) <= 0.5
    assert layers[0] >= 1


@pytest.mark.parametrize(
    ("given", "targets"),
    [
        ({"pred_layer_id": [5]}, [5]),
        ({"n_tasks": 4}, [1, 2, 3, 4]),  # s3prl's meaning
        ({"task_emb_type": "self-hidden", "out_layer_type": "none", "encoder_layers": 3}, [6, 12, 18, 24]),
        ({"task_emb_type": "none", "out_layer_type": "linear"}, [24]),
        ({"task_emb_type": "add", "out_layer_type": "linear"}, list(range(1, 25))),
    ],
)
def test_what_is_said_of_predicted_layers_wins(given, targets):
    assert derive_student(given, info_of(n_layers=24)).targets == targets


@pytest.mark.parametrize(("n_layers", "targets"), [(12, [4, 8, 12]), (24, [8, 16, 24])])
def test_the_recipe_means_the_paper_s_layers(n_layers, targets, tmp_path):
    """And the config that is saved with a run says so in numbers, so that a resumed run predicts the same."""
    recipe = settings.bundled("pretrain", "distilhubert")
    config, given = load_config([recipe], {}, [])
    config.distiller = derive_student(given, info_of(n_layers=n_layers))
    assert config.distiller.targets == targets
    (tmp_path / "config.yaml").write_text(settings.to_yaml(config))
    again, given = load_config([tmp_path / "config.yaml", recipe], {}, [])
    assert not settings.differences(config, again)
    assert derive_student(given, info_of(n_layers=n_layers)) == config.distiller
    _, given = load_config([recipe], {}, ["distiller.pred_layer_id=[2]"])
    assert derive_student(given, info_of(n_layers=n_layers)).targets == [2]


@pytest.mark.parametrize(
    ("given", "heads", "units"),
    [
        ({}, 12, 3072),
        ({"encoder_embed_dim": 384}, 6, 1536),
        ({"encoder_embed_dim": 192, "encoder_ffn_embed_dim": 500}, 3, 500),
        ({"encoder_embed_dim": 384, "encoder_attention_heads": 12}, 12, 1536),
        ({"encoder_embed_dim": 480}, 12, 1920),  # no whole number of heads of 64 values
    ],
)
def test_heads_and_units_go_with_the_width(given, heads, units):
    config = derive_student(given, info_of())
    assert (config.encoder_attention_heads, config.encoder_ffn_embed_dim) == (heads, units)


def test_a_student_of_hubert_base_is_s3prl_s():
    """Nothing in the checkpoint of the paper's student is beyond s3prl."""
    given = {"encoder_layers": 2, "pred_layer_id": [4, 8, 12]}
    hubert = info_of(always_project=True, normalize_eps=1e-7)
    assert derive_student(given, hubert) == DistillerConfig(encoder_layers=2, n_tasks=3, pred_layer_id=[4, 8, 12])


def test_what_is_given_comes_first():
    given = {
        "pred_layer_id": [12],
        "encoder_embed_dim": 384,
        "encoder_attention_heads": 6,
        "conv_pos": 64,
        "layer_norm_first": True,
        "extractor_conv_feature_layers": "[(256,10,5)] + [(256,3,2)] * 4 + [(256,2,2)] * 2",
    }
    config = derive_student(given, info_of(width=1024, encoder_attention_heads=16))
    for key, value in given.items():
        assert getattr(config, key) == value
    assert config.final_dim == 1024
    DistillerModel(config)


def test_an_unknown_architecture_gives_its_width_and_rate():
    config = derive_student({"pred_layer_id": [4]}, info_of(width=1024, architecture=False, normalize=True))
    assert config.final_dim == 1024
    assert config.normalize
    assert config.encoder_embed_dim == 768


def test_different_waveforms_are_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        derive_student({"pred_layer_id": [4], "normalize": False}, info_of(normalize=True))
    assert "distiller.normalize" in caplog.text
    caplog.clear()
    derive_student({"pred_layer_id": [4]}, info_of(normalize=True))
    assert not caplog.text


INIT_ALL = {"init_teacher_conv_layers": True, "init_teacher_encoder_layers": True}


@pytest.mark.parametrize(
    ("given", "teacher", "parts"),
    [
        ({"pred_layer_id": [4, 13]}, {}, ["pred_layer_id", "layer 13", "some_teacher", "12 layers"]),
        ({"pred_layer_id": [-1]}, {}, ["pred_layer_id", "layer -1"]),
        ({"pred_layer_id": [4], "n_tasks": 3}, {}, ["n_tasks=3", "pred_layer_id"]),
        ({"n_tasks": 13}, {}, ["layer 13"]),
        ({"pred_layer_id": []}, {}, ["pred_layer_id"]),
        ({"pred_layer_id": [4], "final_dim": 512}, {}, ["final_dim=512", "768 wide"]),
        (
            {"task_emb_type": "none", "out_layer_type": "none", "n_tasks": 4, "encoder_embed_dim": 384},
            {},
            ["predicts 384", "768 wide"],
        ),
        (
            {"pred_layer_id": [4], "extractor_conv_feature_layers": "[(512,10,5),(512,8,4),(512,4,4)]"},
            {},
            ["frame of 80 samples", "extractor_conv_feature_layers", "one of 320"],
        ),
        ({"pred_layer_id": [4], "encoder_attention_heads": 7}, {}, ["encoder_attention_heads=7", "768"]),
        # Narrower than the teacher, whose 12 heads and 16 groups no longer divide it.
        ({"pred_layer_id": [4], "encoder_embed_dim": 200}, {}, ["encoder_attention_heads=12", "200"]),
        ({"pred_layer_id": [4], "encoder_layers": 13, **INIT_ALL}, {}, ["encoder_layers=13", "12 layers"]),
        (
            {"pred_layer_id": [4], "encoder_embed_dim": 1536, **INIT_ALL},
            {},
            ["encoder_embed_dim=1536", "768", "init_teacher_conv_layers=false"],
        ),
        (
            {"pred_layer_id": [4], "encoder_ffn_embed_dim": 4096, **INIT_ALL},
            {},
            ["encoder_ffn_embed_dim=4096", "3072", "init_teacher_encoder_layers=false"],
        ),
        (
            {"encoder_attention_heads": 24, **INIT_ALL},
            {},
            ["encoder_attention_heads=24", "12", "init_teacher_encoder_layers=false"],
        ),
        (
            {"encoder_attention_heads": 6, **INIT_ALL},
            {},
            ["encoder_attention_heads=6", "128", "64", "init_teacher_encoder_layers=false"],
        ),
        (
            {"extractor_conv_feature_layers": "[(512,10,5)] + [(600,3,2)] * 4 + [(512,2,2)] * 2", **INIT_ALL},
            {},
            ["extractor_conv_feature_layers", "channels", "init_teacher_conv_layers=false"],
        ),
        (
            {"extractor_conv_feature_layers": "[(512,10,5)] + [(512,3,2)] * 4 + [(512,4,2)] * 2", **INIT_ALL},
            {},
            ["extractor_conv_feature_layers", "kernels", "init_teacher_conv_layers=false"],
        ),
        ({"encoder_layers": 2, "init_layers": [1, 13], **INIT_ALL}, {}, ["init_layers=[1, 13]", "1 to 12"]),
        ({"encoder_layers": 2, "init_layers": [0, 1], **INIT_ALL}, {}, ["init_layers=[0, 1]", "1 to 12"]),
        ({"encoder_layers": 2, "init_layers": [1], **INIT_ALL}, {}, ["init_layers=[1]", "encoder_layers=2"]),
        ({"init_layers": [1]}, {}, ["init_layers", "init_teacher_encoder_layers=true"]),
        ({"pred_layer_id": [4], "conv_pos": 64, **INIT_ALL}, {}, ["conv_pos=64", "128"]),
        ({"pred_layer_id": [4], "conv_bias": True, **INIT_ALL}, {}, ["conv_bias=True", "False"]),
        ({"pred_layer_id": [4], "extractor_mode": "layer_norm", **INIT_ALL}, {}, ["extractor_mode=layer_norm"]),
        (
            {"pred_layer_id": [4], **INIT_ALL},
            {"architecture": False},
            [
                "init_teacher_conv_layers=true",
                "some_teacher",
                "set distiller.init_teacher_conv_layers=false, distiller.init_teacher_encoder_layers=false",
            ],
        ),
        (
            {
                "n_tasks": 4,
                "task_emb_type": "concat",
                "task_emb_size": 8,
                "out_layer_type": "linear",
                "init_teacher_conv_layers": True,
            },
            {},
            ["task_emb_type", "init_teacher_conv_layers"],
        ),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_fit_is_named(given, teacher, parts):
    with pytest.raises(ValueError) as raised:
        config = derive_student(given, info_of(**teacher))
        initialise(DistillerModel(config), Encoder(info_of(**teacher).architecture))
    message = str(raised.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_description_of_the_same_front_end_in_other_words_fits():
    written_out = "[(512,10,5)" + ", (512,3,2)" * 4 + ", (512,2,2)" * 2 + "]"
    config = derive_student(
        {"pred_layer_id": [4], "extractor_conv_feature_layers": written_out, **INIT_ALL}, info_of(encoder_layers=12)
    )
    assert config.extractor_conv_feature_layers == written_out
