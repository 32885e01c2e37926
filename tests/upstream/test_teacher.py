"""Teachers of every family and form: what they are found to be, their twins, and what is said where they fail."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import requests
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from s3prl_distiller.upstream.distiller.frontend import frame_lengths
from s3prl_distiller.upstream.distiller.teacher import TeacherConfig, load_teacher
from s3prl_distiller.upstream.distiller.twin import mismatch

import s3prl_distiller
from s3prl_distiller.hub import load_hub

NANO = Path(s3prl_distiller.__file__).parent / "quickstart" / "hubert_nano"
KINDS = ["hubert", "wav2vec2", "data2vec"]
SHAPES = {
    "base": {},
    "base, normalised": {"normalize": True},
    "large": {"large": True},
    "large, normalised": {"large": True, "normalize": True},
}


@pytest.fixture(scope="session")
def teacher_path(huggingface_folder, hub_file):
    """The path of a small random teacher; each is made once."""
    made = {}

    def path(kind: str, form: str, shape: str) -> Path:
        key = kind, form, shape
        if key not in made:
            if form == "s3prl":
                made[key] = hub_file(kind, **SHAPES[shape])
            else:
                name = "data2vec-audio" if kind == "data2vec" else kind
                changes = dict(SHAPES[shape])
                if kind == "data2vec" and changes.pop("large", False):
                    # transformers has no pre-norm data2vec, but it has the front end.
                    changes |= {"feat_extract_norm": "layer", "conv_bias": True}
                made[key] = huggingface_folder(name, **changes)
        return made[key]

    return path


@torch.no_grad()
def relative(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", ["s3prl", "Hugging Face"])
@pytest.mark.parametrize("kind", KINDS)
def test_twin_equals_the_hub(teacher_path, speech, kind, form, shape):
    path = teacher_path(kind, form, shape)
    teacher = load_teacher(TeacherConfig(model=str(path)))
    info, twin, expert = teacher.info, teacher.twin, teacher.expert
    assert twin is not None, "no twin"
    assert (info.n_layers, info.width, info.downsample_rate) == (3, 48, 320)
    assert info.normalize == ("normalised" in shape)
    assert info.architecture is twin.config
    assert info.name == str(path)
    for wav in speech:
        with torch.no_grad():
            theirs = expert([wav])["hidden_states"]
            ours = twin(wav[None], torch.tensor([len(wav)])).hidden_states
        assert len(ours) == len(theirs) == 4
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert mismatch(twin, expert, speech) is None

    # In a batch, as alone; and no further than the last layer that is asked for.
    teacher.verify(speech)
    assert teacher.expert is None
    batch = torch.nn.utils.rnn.pad_sequence(speech, batch_first=True)
    lengths = torch.tensor([len(wav) for wav in speech])
    together = teacher(batch, lengths, [1, 2, 3])
    frames = frame_lengths(lengths, info.architecture.conv_layers).tolist()
    for index, wav in enumerate(speech):
        alone = teacher(wav[None], lengths[index : index + 1], [1, 2, 3])
        assert alone.shape == (1, 3, frames[index], 48)
        torch.testing.assert_close(together[index, :, : frames[index]], alone[0], rtol=1e-4, atol=1e-4)
    assert torch.equal(teacher(batch, lengths, [1, 2]), together[:, :2])
    assert torch.equal(teacher(batch, lengths, [2]), together[:, 1:2])


@pytest.mark.parametrize("twin", [True, False])
@pytest.mark.parametrize("kind", ["hubert", "wav2vec2"])
def test_the_last_layer_of_a_pre_norm_teacher_is_normalised(teacher_path, waves, kind, twin):
    """As fairseq and transformers 4 give it; transformers 5 by itself leaves that out."""
    from transformers import AutoModel

    path = teacher_path(kind, "Hugging Face", "large")
    teacher = load_teacher(TeacherConfig(model=str(path), twin=twin))
    with torch.no_grad():
        expected = AutoModel.from_pretrained(path).eval()(waves[0][None]).last_hidden_state
    found = teacher(waves[0][None], torch.tensor([len(waves[0])]), [3])[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "changes", [{"encoder_embed_dim": 16}, {"required_seq_len_multiple": 1}, {"activation_fn": "relu"}]
)
def test_less_usual_shapes(hub_file, speech, changes):
    """As wide as the front end, so without a projection; no rounding of lengths; an activation that twins do not know,
    which must show when they are compared."""
    teacher = load_teacher(TeacherConfig(model=str(hub_file("hubert", **changes))))
    assert (teacher.twin is None) == ("activation_fn" in changes)
    expected = teacher.expert(speech[:1])["hidden_states"]
    found = teacher(speech[0][None], torch.tensor([len(speech[0])]), [0, 3])
    assert relative(found[:, 0], expected[0]) < 1e-4
    assert relative(found[:, 1], expected[3]) < 1e-4


def real_teachers():
    return ["bundled", "hubert_nano", "hubert_small"]


@pytest.mark.parametrize("name", real_teachers())
def test_trained_teachers(request, speech, name):
    path = NANO if name == "bundled" else request.getfixturevalue("shared") / "teachers" / name
    teacher = load_teacher(TeacherConfig(model=str(path), n_layers=12))
    assert teacher.twin is not None
    config = json.loads((path / "config.json").read_text())
    assert (teacher.info.n_layers, teacher.info.width) == (12, config["hidden_size"])
    with torch.no_grad():
        theirs = teacher.expert(speech[1:2])["hidden_states"]
    found = teacher(speech[1][None], torch.tensor([len(speech[1])]), list(range(13)))
    for layer, reference in enumerate(theirs):
        torch.testing.assert_close(found[:, layer], reference, rtol=1e-4, atol=1e-4)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(400, 8000), min_size=2, max_size=4))
@pytest.mark.parametrize("kind", KINDS)
def test_twins_do_not_feel_the_batch(teacher_path, waves, kind, lengths):
    teacher = load_teacher(TeacherConfig(model=str(teacher_path(kind, "s3prl", "base, normalised"))))
    wavs = [waves[0][:length] for length in lengths]
    batch = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
    together = teacher(batch, torch.tensor(lengths), [0, 3])
    for index, wav in enumerate(wavs):
        alone = teacher(wav[None], torch.tensor([len(wav)]), [0, 3])[0]
        torch.testing.assert_close(together[index, :, : alone.shape[1]], alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("twin", [True, False])
def test_always_in_eval_mode_and_without_gradient(teacher_path, waves, twin):
    teacher = load_teacher(TeacherConfig(model=str(teacher_path("hubert", "Hugging Face", "base")), twin=twin))
    holder = torch.nn.ModuleList([teacher])
    holder.train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    wav, lengths = waves[0][None], torch.tensor([len(waves[0])])
    once, again = teacher(wav, lengths, [3]), teacher(wav, lengths, [3])
    assert torch.equal(once, again)
    assert not once.requires_grad


def test_noisy_targets_only_where_asked_for(teacher_path, waves):
    path = str(teacher_path("hubert", "Hugging Face", "base"))
    with pytest.raises(ValueError, match=r"teacher\.train_mode=true needs teacher\.twin=false"):
        load_teacher(TeacherConfig(model=path, train_mode=True))
    teacher = load_teacher(TeacherConfig(model=path, train_mode=True, twin=False)).eval()
    wav, lengths = waves[0][None], torch.tensor([len(waves[0])])
    assert not torch.equal(teacher(wav, lengths, [3]), teacher(wav, lengths, [3]))


def test_without_a_twin_the_hub_s_own_forward_runs(teacher_path, waves):
    path = str(teacher_path("wav2vec2", "s3prl", "base"))
    teacher = load_teacher(TeacherConfig(model=path, twin=False))
    assert not teacher.runs_twin
    assert teacher.info.architecture is not None, "a student could not start from it"
    assert not teacher.info.normalize
    lengths = torch.tensor([len(wav) for wav in waves])
    batch = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    expected = teacher.expert(waves)["hidden_states"]
    found = teacher(batch, lengths, [1, 3])
    assert torch.equal(found, torch.stack([expected[1], expected[3]], 1))
    teacher.verify(waves)
    assert teacher.expert is not None


@pytest.mark.parametrize(
    "weight", ["encoder.layers.2.fc2.weight", "feature_extractor.conv_layers.0.0.weight", "encoder.pos_conv.0.weight_g"]
)
def test_a_broken_twin_is_found_and_not_used(teacher_path, speech, caplog, weight):
    teacher = load_teacher(TeacherConfig(model=str(teacher_path("hubert", "s3prl", "base"))))
    with torch.no_grad():
        teacher.twin.get_parameter(weight).mul_(1.05)
    expected = teacher.expert(speech[:1])["hidden_states"][3]
    with caplog.at_level(logging.WARNING):
        teacher.verify(speech)
    assert teacher.twin is None
    assert teacher.expert is not None
    assert "going on with the hub's own forward" in caplog.text
    found = teacher(speech[0][None], torch.tensor([len(speech[0])]), [3])
    assert torch.equal(found[:, 0], expected)


def test_a_twin_that_gives_nan_is_not_used(teacher_path, speech, caplog):
    teacher = load_teacher(TeacherConfig(model=str(teacher_path("hubert", "s3prl", "base"))))
    with torch.no_grad():
        teacher.twin.get_parameter("encoder.layers.1.fc1.bias").fill_(float("nan"))
    teacher.verify(speech[:1])
    assert teacher.twin is None


def test_names_in_the_hub(hub_file):
    path = str(hub_file("hubert"))
    teacher = load_teacher(TeacherConfig(model="hubert_custom", ckpt=path))
    assert teacher.info.name == f"hubert_custom ({path})"
    assert teacher.twin is not None


def test_another_architecture_runs_as_the_hub_gives_it(hub_file, waves):
    """WavLM has gated relative positions, which our encoder has not."""
    teacher = load_teacher(TeacherConfig(model=str(hub_file("wavlm", normalize=True))))
    assert teacher.twin is None and not teacher.runs_twin
    assert teacher.info.normalize
    assert (teacher.info.n_layers, teacher.info.width, teacher.info.downsample_rate) == (3, 48, 320)
    lengths = torch.tensor([len(wav) for wav in waves])
    found = teacher(torch.nn.utils.rnn.pad_sequence(waves, batch_first=True), lengths, [2])
    assert torch.equal(found[:, 0], teacher.expert(waves)["hidden_states"][2])


def test_a_student_can_teach(student_file, waves):
    """Its prediction heads count as layers, as in the s3prl hub; they are as wide as the rest here."""
    teacher = load_teacher(TeacherConfig(model=str(student_file(final_dim=48))))
    assert teacher.twin is None
    assert (teacher.info.n_layers, teacher.info.width) == (5, 48)


def test_the_folder_of_a_run_is_its_newest_student(student_file, waves, tmp_path):
    with pytest.raises(ValueError, match=r"teacher .* has neither a config\.json.* nor states-STEP\.ckpt"):
        load_teacher(TeacherConfig(model=str(tmp_path)))
    newest, other = student_file(final_dim=48), student_file(final_dim=48, encoder_layers=1)
    shutil.copy(newest, tmp_path / "states-100.ckpt")
    shutil.copy(other, tmp_path / "states-20.ckpt")
    lengths = torch.tensor([len(wave) for wave in waves])
    padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    from_run, from_file = (load_teacher(TeacherConfig(model=str(path))) for path in (tmp_path, newest))
    assert torch.equal(from_run(padded, lengths, [1, 2]), from_file(padded, lengths, [1, 2]))


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ("hubert_bsae", ["'hubert_bsae'", "did you mean", "hubert_base"]),
        ("zzzzzzzz", ["'zzzzzzzz'", "no name in the s3prl hub"]),
        ("none/at/all.pt", ["'none/at/all.pt'", "no checkpoint file"]),
        ("hubert_custom", ["hubert_custom", "ckpt"]),
        ("wavlm_local", ["wavlm_local", "ckpt"]),
        ("distiller", ["ckpt"]),
    ],
)
def test_unknown_names_and_missing_checkpoints(no_network, model, parts):
    with pytest.raises(ValueError) as raised:
        load_teacher(TeacherConfig(model=model))
    message = str(raised.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("name", ["fbank", "mfcc"])
def test_an_upstream_without_layers_of_one_shape(name):
    """fbank has a single hidden state, its output: nothing to predict, or something that can be run."""
    if name not in load_hub().options():
        pytest.skip(f"this s3prl has no {name}")
    try:
        teacher = load_teacher(TeacherConfig(model=name))
    except ValueError as error:
        assert name in str(error)
    else:
        assert teacher.twin is None
        assert teacher.info.architecture is None


def test_number_of_layers_is_checked(teacher_path):
    path = str(teacher_path("hubert", "s3prl", "base"))
    assert load_teacher(TeacherConfig(model=path, n_layers=3)).info.n_layers == 3
    with pytest.raises(ValueError, match=r"teacher\.n_layers=12.* has 3 layers"):
        load_teacher(TeacherConfig(model=path, n_layers=12))


def test_files_that_are_no_teacher(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("no checkpoint\n" * 20)
    with pytest.raises(ValueError, match=r"notes\.txt cannot be read as a checkpoint"):
        load_teacher(TeacherConfig(model=str(text)))
    other = tmp_path / "other.pt"
    torch.save({"args": 1, "model": {}}, other)
    with pytest.raises(ValueError, match=r"other\.pt is no teacher that s3prl can load: it has the keys args, model"):
        load_teacher(TeacherConfig(model=str(other)))
    torch.save([1], other)
    with pytest.raises(ValueError, match=r"other\.pt is no teacher"):
        load_teacher(TeacherConfig(model=str(other)))


@pytest.mark.parametrize("entry", ["hubert_custom", "wavlm_local", "data2vec_custom"])
@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04", b"\x80\x02c__main__\nnothing\n."])
def test_hub_entries_with_a_file_that_is_none(tmp_path, entry, content):
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.pt could not be loaded"):
        load_teacher(TeacherConfig(model=entry, ckpt=str(path)))


def test_an_upstream_whose_package_is_not_installed(hub_file, monkeypatch):
    """As fairseq is for s3prl's legacy entries."""
    import sys

    def needs_fairseq(**kwargs):
        import fairseq

        return fairseq

    monkeypatch.setitem(sys.modules, "fairseq", None)
    monkeypatch.setattr(load_hub(), "needs_fairseq", needs_fairseq, raising=False)
    with pytest.raises(ValueError, match=r"needs_fairseq\b.* could not be loaded.*fairseq"):
        load_teacher(TeacherConfig(model="needs_fairseq"))


def test_checkpoint_with_weights_of_another_model(hub_file, tmp_path):
    states = torch.load(hub_file("hubert"))
    states["model_cfg"]["encoder_layers"] = 4
    torch.save(states, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt could not be loaded") as raised:
        load_teacher(TeacherConfig(model=str(tmp_path / "x.pt")))
    assert "\n" not in str(raised.value)
    del states["model_weight"], states["model_cfg"]["encoder_layers"]
    torch.save(states, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt is no teacher"):
        load_teacher(TeacherConfig(model=str(tmp_path / "x.pt")))


@pytest.mark.parametrize("kind", ["hubert", "data2vec"])
def test_huggingface_folders_that_lack_something(teacher_path, tmp_path, no_network, monkeypatch, kind):
    folder = tmp_path / "folder"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source = teacher_path(kind, "Hugging Face", "base")

    def broken(change):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        change()
        with pytest.raises(ValueError, match="folder") as raised:
            load_teacher(TeacherConfig(model=str(folder)))
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert "config.json" in broken(lambda: (folder / "config.json").unlink())
    assert "config.json" in broken(lambda: (folder / "config.json").write_text("{"))
    broken(lambda: (folder / "model.safetensors").unlink())
    broken(lambda: (folder / "model.safetensors").write_bytes(b"x" * 100))
    broken(lambda: (folder / "config.json").write_text('{"model_type": "no-such-model"}'))
    broken(lambda: (folder / "config.json").write_text("{}"))
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(ValueError, match=r"config\.json"):
        load_teacher(TeacherConfig(model=str(folder)))


def test_a_folder_without_a_preprocessor_config(teacher_path, tmp_path, no_network, monkeypatch):
    """Whether waveforms are normalised is not guessed: s3prl asks the hub for another model's file then."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "folder"
    shutil.copytree(teacher_path("hubert", "Hugging Face", "base"), folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="folder") as raised:
        load_teacher(TeacherConfig(model=str(folder)))
    assert "preprocessor_config.json" in str(raised.value)


def test_no_network(no_network):
    with pytest.raises(ValueError, match="hubert_base") as raised:
        load_teacher(TeacherConfig())
    message = str(raised.value)
    for part in (str(no_network), "--teacher"):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize("error", [requests.exceptions.ConnectionError(), OSError(), TimeoutError("timed out\nagain")])
def test_downloads_that_fail_without_a_word(no_network, monkeypatch, error):
    from s3prl.util import download

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(download, "_download", fail)
    with pytest.raises(ValueError, match="hubert_base.* could not be loaded"):
        load_teacher(TeacherConfig())
