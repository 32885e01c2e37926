"""A student on disk: read from every form, written so that s3prl and plain torch read it back."""

import json
import shutil

import pytest
import torch
from s3prl_distiller.upstream.distiller import hubconf, student
from s3prl_distiller.upstream.distiller.hubconf import distiller_local, distilxlsr_bp_4_12
from s3prl_distiller.upstream.distiller.model import DistillerModel
from s3prl_distiller.upstream.distiller.model_config import DistillerConfig
from s3prl_distiller.upstream.distiller.student import load_student, native_writers, s3prl_states

from s3prl_distiller import checkpoint
from s3prl_distiller.checkpoint import CheckpointError


@torch.no_grad()
def features(expert, wavs):
    return expert.eval()(wavs)["hidden_states"]


def assert_same(ours, theirs, tolerance=1e-5):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def rewrite(path, target, change):
    states = checkpoint.load_torch(path)
    states = {key: states[key] for key in ("Distiller", "Config", "Step")}
    change(states)
    torch.save(states, target)
    return target


@pytest.mark.parametrize(
    "changes", [{}, {"layer_norm_first": True, "extractor_mode": "layer_norm"}], ids=["base", "large"]
)
def test_what_we_save_is_read_by_torch_by_s3prl_and_by_us(student_file, s3prl_expert, waves, tmp_path, changes):
    model = load_student(student_file(**changes))
    path = tmp_path / "states-7.ckpt"
    checkpoint.save_torch(s3prl_states(model, {"teacher": {"model": "hubert_base"}}, 7), path)

    states = torch.load(path, weights_only=True)
    assert set(states) == {"Distiller", "Config", "Step"}
    assert states["Step"] == 7
    assert states["Config"]["teacher"] == {"model": "hubert_base"}

    ours = features(distiller_local(path), waves[:1])
    assert_same(ours, features(s3prl_expert(path), waves[:1]))
    assert_same(ours, features(distiller_local(student_file(**changes)), waves[:1]), tolerance=0)


def test_native_folder_round_trip_is_exact(student_file, waves, tmp_path):
    source = student_file(layer_norm_first=True)
    model = load_student(source)
    folder = tmp_path / "student"
    checkpoint.save_folder(folder, native_writers(model, {"runner": {"lr": 0.1}}, 7))
    again = load_student(folder)
    assert again.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert_same(features(distiller_local(folder), waves), features(distiller_local(source), waves), tolerance=0)
    config = json.loads((folder / "config.json").read_text())
    assert (config["format"], config["step"], config["runner"]) == ("s3prl_distiller", 7, {"lr": 0.1})


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
def test_both_file_formats_of_torch(student_file, s3prl_expert, waves, new_format):
    path = student_file(torch_options={"_use_new_zipfile_serialization": new_format})
    assert_same(features(distiller_local(path), waves[:1]), features(s3prl_expert(path), waves[:1]))


@pytest.mark.parametrize(
    ("values", "attribute", "expected"),
    [
        # PyYAML reads 1e-1 as a text, and s3prl turns whatever it finds into what it needs.
        ({"feature_grad_mult": "1e-1"}, "feature_grad_mult", 0.1),
        ({"cosine_loss": "1"}, "cosine_loss", 1.0),
        ({"encoder_layers": 2.0}, "encoder_layers", 2),
        ({"layer_norm_first": 1}, "layer_norm_first", True),
        ({"extractor_conv_feature_layers": [[16, 10, 5], [16, 8, 4]]}, "conv_layers", [(16, 10, 5), (16, 8, 4)]),
        ({"pred_layer_id": (4, 8, 12)}, "pred_layer_id", [4, 8, 12]),
        ({"some_key_of_a_fork": 3}, "encoder_layers", 2),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_config_values_are_read_as_loosely_as_s3prl_reads_them(
    student_file, s3prl_expert, waves, values, attribute, expected
):
    path = student_file(**values)
    expert = distiller_local(path)
    found = getattr(expert.model.config, attribute)
    assert found == expected
    assert type(found) is type(expected)
    assert_same(features(expert, waves[:1]), features(s3prl_expert(path), waves[:1]))


def test_minimal_config_has_s3prl_s_defaults(s3prl_expert, waves, tmp_path):
    from s3prl.upstream.distiller.model import DistillerConfig as Theirs

    theirs, ours = vars(Theirs({})), vars(DistillerConfig.from_mapping({}))
    assert {key: ours[key] for key in theirs} == theirs


WRONG = {
    "no weights": (lambda s: s.pop("Distiller"), "Config, Step instead of Distiller and Config"),
    "no Config": (lambda s: s.pop("Config"), "instead of Distiller and Config"),
    "no section": (lambda s: s.update(Config={"task": {}}), "no section 'distiller'"),
    "Config is a list": (lambda s: s.update(Config=[1]), "no section 'distiller'"),
    "another width": (
        lambda s: s["Config"]["distiller"].update(final_dim=41),
        r"output_layer\.2\.weight is \(3, 48, 40\) and not \(3, 48, 41\)",
    ),
    "another depth": (lambda s: s["Config"]["distiller"].update(encoder_layers=3), r"lacks encoder\.layers\.2\..*more"),
    "a weight too many": (lambda s: s["Distiller"].update(head=torch.ones(1)), "has head, which the model has not"),
    "an unknown activation": (lambda s: s["Config"]["distiller"].update(activation_fn="gelo"), "activation_fn='gelo'"),
    "a number that is none": (lambda s: s["Config"]["distiller"].update(encoder_layers="two"), "encoder_layers"),
    "code": (
        lambda s: s["Config"]["distiller"].update(extractor_conv_feature_layers="__import__('os').getpid()"),
        "extractor_conv_feature_layers",
    ),
    "weights that are no tensors": (lambda s: s["Distiller"].update({"encoder.layer_norm.bias": 3}), "layer_norm.bias"),
    "weights that are a list": (lambda s: s.update(Distiller=[torch.ones(1)]), "x.ckpt"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_checkpoint_of_something_else(student_file, tmp_path, kind):
    change, message = WRONG[kind]
    path = rewrite(student_file(), tmp_path / "x.ckpt", change)
    with pytest.raises(CheckpointError, match=rf"(?s)x\.ckpt.*{message}" if message != "x.ckpt" else "x.ckpt"):
        load_student(path)


def test_a_file_that_is_no_dictionary(tmp_path):
    torch.save([1, 2], tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match="is no distiller checkpoint: it has list"):
        load_student(tmp_path / "x.ckpt")


@pytest.fixture
def native(student_file, tmp_path):
    folder = tmp_path / "native"
    checkpoint.save_folder(folder, native_writers(load_student(student_file()), {}, 1))
    return folder


def test_damaged_native_folders(native):
    config, weights = native / "config.json", native / "model.safetensors"
    text, content = config.read_text(), weights.read_bytes()
    for damaged in (content[:1000], b"\xff" * 8 + content[8:], b""):
        weights.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            load_student(native)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_student(native)
    weights.write_bytes(content)
    for damaged in ("{", "[]", '{"format": "s3prl_distiller"}', '{"format": "s3prl_distiller", "distiller": 3}'):
        config.write_text(damaged)
        with pytest.raises(CheckpointError, match="native"):
            load_student(native)
    config.unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_student(native)
    config.write_text(text)
    load_student(native)


@pytest.mark.parametrize("source", ["", "none.ckpt", "/none/at/all", "a folder/with a space"])
def test_nothing_there(source, monkeypatch):
    def fetched(repository):
        raise AssertionError(f"asked the Hugging Face hub for {repository}")

    monkeypatch.setattr(student, "download_huggingface", fetched)
    with pytest.raises(CheckpointError, match="there is no checkpoint at"):
        load_student(source if source else "x")


XLSR = {
    "normalised": {"large": True, "normalize": True},
    "no norm before the projection": {"large": True, "normalize": True, "feat_proj_layer_norm": False},
    "pickled weights": {"large": True, "normalize": True, "pickled": True},
    "base": {},
}


@pytest.mark.parametrize("changes", XLSR.values(), ids=XLSR)
def test_huggingface_student_equals_transformers(huggingface_folder, waves, changes):
    """As DistilXLSR is built: pre-norm, biased convolutions, a layer norm after each, waveforms normalised."""
    from transformers import AutoFeatureExtractor, HubertModel

    folder = huggingface_folder("hubert", num_hidden_layers=2, **changes)
    ours = distilxlsr_bp_4_12(ckpt=str(folder)).eval()
    if changes.get("pickled"):
        shutil.copy(folder / "pytorch_model.bin", folder / "copy.bin")
    theirs = HubertModel.from_pretrained(folder).eval()
    seen = {}
    theirs.feature_projection.register_forward_hook(lambda module, args, out: seen.update(projected=out))
    for index, layer in enumerate(theirs.encoder.layers):
        layer.register_forward_hook(
            lambda module, args, out, index=index: seen.update({index: out if torch.is_tensor(out) else out[0]})
        )
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    for wav in waves[:2]:
        inputs = extractor(wav.numpy(), sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            output = theirs(inputs["input_values"])
            mine = ours([wav])
        assert_same(mine["hidden_states"], [seen["projected"], seen[0], seen[1]])
        torch.testing.assert_close(mine["last_hidden_state"], output.last_hidden_state, rtol=0, atol=1e-5)
        torch.testing.assert_close(mine["paper"], seen[1], rtol=0, atol=1e-5)


def test_huggingface_weights_under_older_names(huggingface_folder, waves):
    """Weight normalisation once had weight_g and weight_v; with a head on top, the encoder is one level down."""
    folder = huggingface_folder("hubert", pickled=True)
    before = features(distiller_local(folder), waves[:1])
    old = {}
    for name, tensor in torch.load(folder / "pytorch_model.bin").items():
        name = name.replace("parametrizations.weight.original0", "weight_g")
        old["hubert." + name.replace("parametrizations.weight.original1", "weight_v")] = tensor
    old["lm_head.weight"] = torch.ones(2, 48)
    torch.save(old, folder / "pytorch_model.bin")
    assert any(name.endswith("weight_g") for name in old)
    assert_same(features(distiller_local(folder), waves[:1]), before, tolerance=0)


@pytest.mark.parametrize("normalize", [False, True])
def test_a_processor_of_transformers_5_says_whether_waveforms_are_normalised(huggingface_folder, normalize):
    """Saved as one, feature extractor and tokenizer leave no preprocessor_config.json."""
    folder = huggingface_folder("hubert", normalize=normalize)
    extractor = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"feature_extractor": extractor}))
    assert load_student(folder).config.normalize == normalize


def test_another_layer_norm_epsilon_is_refused(huggingface_folder):
    with pytest.raises(ValueError, match="layer_norm_eps 1e-06 is not supported, only 1e-5"):
        load_student(huggingface_folder("hubert", layer_norm_eps=1e-6))


def test_half_precision_weights_are_widened(huggingface_folder, waves):
    folder = huggingface_folder("hubert", pickled=True)
    states = torch.load(folder / "pytorch_model.bin")
    torch.save({name: tensor.half() for name, tensor in states.items()}, folder / "pytorch_model.bin")
    expert = distiller_local(folder)
    assert {tensor.dtype for tensor in expert.model.state_dict().values()} == {torch.float32}
    assert torch.isfinite(features(expert, waves[:1])[-1]).all()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "bert"}, "model_type 'bert'"),
        ({"model_type": None}, "model_type None"),
        ({"conv_dim": None}, "config.json"),
        ({"conv_kernel": [10, 3]}, "config.json"),
        ({"hidden_size": 50}, "encoder_embed_dim=50"),
        ({"num_hidden_layers": 4}, "lacks encoder.layers.3"),
        ({"feat_extract_activation": "relu"}, "feat_extract_activation 'relu'"),
        ({"hidden_act": "mish"}, "activation_fn='mish'"),
        ({"add_adapter": True}, "adapters"),
    ],
)
def test_huggingface_folder_that_is_not_understood(huggingface_folder, tmp_path, change, named):
    folder = tmp_path / "copy"
    shutil.copytree(huggingface_folder("hubert"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match="copy") as raised:
        load_student(folder)
    assert named in str(raised.value)


def test_huggingface_folder_without_weights(huggingface_folder, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(huggingface_folder("hubert"), folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="copy"):
        load_student(folder)


def test_hub_id_that_cannot_be_fetched(monkeypatch, no_network):
    import huggingface_hub

    def refuse(*args, **kwargs):
        raise OSError("no network in this test")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ValueError, match="lgris/distilxlsr_bp_4-12 could not be downloaded") as raised:
        distilxlsr_bp_4_12()
    message = str(raised.value)
    assert huggingface_hub.constants.HF_HUB_CACHE in message
    assert "ckpt=FOLDER" in message


def test_distiller_needs_a_checkpoint(student_file):
    with pytest.raises(ValueError, match="ckpt=PATH"):
        hubconf.distiller()
    assert isinstance(hubconf.distiller(ckpt=str(student_file())).model, DistillerModel)
    with pytest.raises(ValueError, match="there is no checkpoint at none.ckpt"):
        hubconf.distiller_local("none.ckpt")
