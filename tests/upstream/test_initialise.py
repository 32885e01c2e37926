"""First weights of a student: which of the teacher's elements each of its own starts from."""

import logging
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from s3prl_distiller.upstream.distiller.derive import derive_student
from s3prl_distiller.upstream.distiller.initialise import Choice, describe, evenly, initialise
from s3prl_distiller.upstream.distiller.model import DistillerModel, Encoder
from s3prl_distiller.upstream.distiller.model_config import EncoderConfig
from s3prl_distiller.upstream.distiller.objective import distillation_loss
from s3prl_distiller.upstream.distiller.teacher import TeacherInfo

FRONT_END = "[({c},10,5)] + [({c},3,2)] * 4 + [({c},2,2)] * 2"
FLAGS = {
    "init_teacher_conv_layers": True,
    "init_teacher_encoder_layers": True,
    "init_teacher_encoder_norm": True,
}
NARROW = {
    "encoder_layers": 2,
    "encoder_embed_dim": 24,
    "encoder_ffn_embed_dim": 40,
    "encoder_attention_heads": 2,
    "extractor_conv_feature_layers": FRONT_END.format(c=12),
    **FLAGS,
}
SHAPES = {
    "base": {},
    "large": {"extractor_mode": "layer_norm", "layer_norm_first": True, "conv_bias": True},
    "data2vec": {"extractor_mode": "layer_norm", "conv_pos_depth": 3, "conv_pos": 21},
}


def teacher_of(**changes) -> tuple[Encoder, TeacherInfo]:
    """Six layers, 48 wide, heads of 12 values; weights such that no two elements are alike."""
    config = EncoderConfig(
        **{
            "extractor_conv_feature_layers": FRONT_END.format(c=16),
            "conv_pos": 32,
            "conv_pos_groups": 4,
            "encoder_layers": 6,
            "encoder_embed_dim": 48,
            "encoder_ffn_embed_dim": 96,
            "encoder_attention_heads": 4,
            "feature_layer_norm": True,
            "always_project": True,
            **changes,
        }
    )
    torch.manual_seed(0)
    twin = Encoder(config)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    width = config.encoder_embed_dim
    return twin, TeacherInfo("some_teacher", 6, width, 320, False, config)


@given(take=st.integers(1, 200), more=st.integers(0, 200))
def test_evenly(take, more):
    of = take + more
    chosen = evenly(of, take).tolist()
    assert chosen == [position * of // take for position in range(take)]
    steps = {b - a for a, b in zip(chosen, chosen[1:], strict=False)}
    assert chosen[0] == 0 and chosen[-1] < of and len(steps) <= 2 and min(steps, default=1) >= 1
    assert chosen == list(range(of)) or more


@pytest.mark.parametrize("shape", SHAPES)
def test_of_equal_width_it_is_a_plain_copy(shape):
    twin, info = teacher_of(**SHAPES[shape])
    student = DistillerModel(derive_student({"encoder_layers": 2, **FLAGS}, info))
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    filled = initialise(student, twin)
    theirs, total = twin.state_dict(), 0
    for name, tensor in student.state_dict().items():
        if name.startswith("output_layer."):
            assert torch.equal(tensor, before[name]), name
        else:
            assert torch.equal(tensor, theirs[name]), name
            total += tensor.numel()
    assert filled == total
    assert describe(student.config, twin.config) == ""


def test_layers_are_those_that_are_named():
    twin, info = teacher_of()
    student = DistillerModel(derive_student({"encoder_layers": 3, "init_layers": [2, 6, 2], **FLAGS}, info))
    initialise(student, twin)
    ours, theirs = student.state_dict(), twin.state_dict()
    for index, source in enumerate((1, 5, 1)):
        names = [name for name in ours if name.startswith(f"encoder.layers.{index}.")]
        assert len(names) == 16
        for name in names:
            assert torch.equal(ours[name], theirs[name.replace(f"layers.{index}.", f"layers.{source}.")]), name
    assert describe(student.config, twin.config) == "layers 2, 6, 2 of the teacher"


@pytest.mark.parametrize("shape", SHAPES)
def test_each_element_of_a_narrower_student_is_what_the_rule_says(shape):
    """Written out by hand: 24 of 48 values in 4 groups, 2 of 4 heads of 12, 40 of 96 units, 12 of 16 channels."""
    twin, info = teacher_of(**SHAPES[shape])
    student = DistillerModel(derive_student({**NARROW, "init_layers": [1, 4]}, info))
    initialise(student, twin)
    width = [group * 12 + 2 * i for group in range(4) for i in range(6)]
    inside = [0, 2, 4, 6, 8, 10]
    heads = [*range(0, 12), *range(24, 36)]
    units = [i * 96 // 40 for i in range(40)]
    channels = [0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14]
    ours, theirs = student.state_dict(), twin.state_dict()

    def same(name: str, *chosen: list[int], source: str | None = None) -> None:
        found = theirs.pop(source or name)
        for dimension, positions in enumerate(chosen):
            found = found.index_select(dimension, torch.tensor(positions))
        assert torch.equal(ours.pop(name), found), name

    for index in range(7):
        block = f"feature_extractor.conv_layers.{index}."
        same(block + "0.weight", channels, [0] if index == 0 else channels)
        for name in [name for name in ours if name.startswith(block)]:
            same(name, channels)
    same("post_extract_proj.weight", width, channels)
    same("post_extract_proj.bias", width)
    same("encoder.layer_norm.weight", width)
    same("encoder.layer_norm.bias", width)
    if shape == "data2vec":
        for index in range(3):
            same(f"encoder.pos_conv.{index}.0.weight", width, inside)
            same(f"encoder.pos_conv.{index}.0.bias", width)
    else:
        # The convolution that is computed, not the two parts in which its weight is kept.
        whole = twin.encoder.pos_conv[0].weight()
        torch.testing.assert_close(student.encoder.pos_conv[0].weight(), whole[width][:, inside], rtol=1e-5, atol=1e-6)
        for part in ("weight_g", "weight_v", "bias"):
            ours.pop(f"encoder.pos_conv.0.{part}")
    for index, source in enumerate((0, 3)):
        layer, taught = f"encoder.layers.{index}.", f"encoder.layers.{source}."
        for name in "qkv":
            same(layer + f"self_attn.{name}_proj.weight", heads, width, source=taught + f"self_attn.{name}_proj.weight")
            same(layer + f"self_attn.{name}_proj.bias", heads, source=taught + f"self_attn.{name}_proj.bias")
        for name, chosen in {
            "self_attn.out_proj.weight": (width, heads),
            "self_attn.out_proj.bias": (width,),
            "self_attn_layer_norm.weight": (width,),
            "self_attn_layer_norm.bias": (width,),
            "fc1.weight": (units, width),
            "fc1.bias": (units,),
            "fc2.weight": (width, units),
            "fc2.bias": (width,),
            "final_layer_norm.weight": (width,),
            "final_layer_norm.bias": (width,),
        }.items():
            same(layer + name, *chosen, source=taught + name)
    assert all(name.startswith("output_layer.") for name in ours), list(ours)
    said = describe(student.config, twin.config)
    for part in ("layers 1, 4", "24 of 48 values", "2 of 4 heads", "40 of 96 feed-forward", "84 of 112 channels"):
        assert part in said


@settings(max_examples=60, deadline=None)
@given(
    groups=st.sampled_from([1, 2, 4]),
    widths=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    heads=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    units=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    channels=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    shape=st.sampled_from(sorted(SHAPES)),
    flags=st.sets(st.sampled_from(sorted(FLAGS))),
)
def test_any_narrower_student_can_start_or_is_refused(groups, widths, heads, sizes, units, channels, shape, flags):
    """Whatever is let pass is filled, element for element with the teacher's."""
    wide, narrow = (4 * width * head * size for width, head, size in zip(widths, heads, sizes, strict=True))
    twin, info = teacher_of(
        **{
            **SHAPES[shape],
            "encoder_embed_dim": wide,
            "encoder_attention_heads": heads[0],
            "encoder_ffn_embed_dim": units[0],
            "extractor_conv_feature_layers": FRONT_END.format(c=channels[0]),
            "conv_pos_groups": groups,
            "encoder_layers": 2,
        }
    )
    asked = {
        "encoder_layers": 1,
        "pred_layer_id": [1],
        "encoder_embed_dim": narrow,
        "encoder_attention_heads": heads[1],
        "encoder_ffn_embed_dim": units[1],
        "extractor_conv_feature_layers": FRONT_END.format(c=channels[1]),
        **dict.fromkeys(flags, True),
    }
    fits = wide >= narrow and heads[0] >= heads[1] and units[0] >= units[1] and channels[0] >= channels[1]
    fits = fits and wide // heads[0] >= narrow // heads[1]
    try:
        config = derive_student(asked, info)
    except ValueError as error:
        assert not fits and re.search(r"distiller\.\w+=", str(error)), error
        return
    assert fits or flags != set(FLAGS)
    student = DistillerModel(config)
    filled = initialise(student, twin)
    if flags == set(FLAGS):
        heads_of_prediction = sum(parameter.numel() for parameter in student.output_layer.parameters())
        assert filled == sum(parameter.numel() for parameter in student.parameters()) - heads_of_prediction
        values = student.encoder.layers[0].fc1.weight
        assert torch.isin(values, twin.encoder.layers[0].fc1.weight).all()


def test_groups_that_differ_leave_the_rest_to_start():
    """The positional convolution is then not asked for, and a projection has no groups."""
    twin, info = teacher_of()
    given = {"encoder_embed_dim": 20, "conv_pos_groups": 5, "init_teacher_conv_layers": True, "pred_layer_id": [1]}
    student = DistillerModel(derive_student({**given, "encoder_attention_heads": 2}, info))
    initialise(student, twin)
    assert torch.equal(student.post_extract_proj.bias, twin.post_extract_proj.bias[evenly(48, 20)])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_narrower_student_learns(shape, waves, caplog):
    """Prediction heads map up to the teacher's width, and the loss of a batch comes down."""
    twin, info = teacher_of(**SHAPES[shape])
    with caplog.at_level(logging.INFO):
        student = DistillerModel(derive_student({**NARROW, "cosine_loss": 1.0}, info))
    assert "predicts layers 2, 4, 6 of the 6" in caplog.text
    initialise(student, twin)
    batch = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    lengths = torch.tensor([len(wav) for wav in waves])
    with torch.no_grad():
        states = twin(batch, lengths).hidden_states
    targets = torch.stack([states[layer] for layer in (2, 4, 6)], 1)
    optimizer = torch.optim.AdamW(student.parameters(), 1e-3)
    losses = []
    for _ in range(4):
        torch.manual_seed(0)
        predictions = student(batch, lengths).predictions
        assert predictions.shape == targets.shape and targets.shape[-1] == 48
        loss = distillation_loss(predictions, targets, None, [2, 4, 6], cosine_weight=1.0).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_a_choice_is_the_same_wherever_two_weights_meet():
    """What one layer gives is what the next takes: products of chosen parts are parts of the product's terms."""
    _, info = teacher_of()
    config = derive_student(NARROW, info)
    choice = Choice(config, info.architecture)
    positions = torch.arange(48.0)
    width = choice.of("encoder.layer_norm.weight", positions)
    for name in ("encoder.layers.0.final_layer_norm.bias", "post_extract_proj.bias", "encoder.pos_conv.0.bias"):
        assert torch.equal(choice.of(name, positions), width)
    grid = torch.arange(48.0).expand(48, 48)
    assert torch.equal(choice.of("encoder.layers.1.self_attn.k_proj.weight", grid)[0], width)
    keys = choice.of("encoder.layers.1.self_attn.k_proj.bias", positions)
    assert torch.equal(choice.of("encoder.layers.1.self_attn.out_proj.weight", grid)[0], keys)
