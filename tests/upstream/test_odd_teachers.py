"""Teachers that are not what s3prl's interface asks for, or make frames at another rate: used, or refused in a line."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import torch
from s3prl.upstream.interfaces import UpstreamBase
from s3prl_distiller.upstream.distiller.derive import derive_student
from s3prl_distiller.upstream.distiller.initialise import initialise
from s3prl_distiller.upstream.distiller.model import DistillerModel
from s3prl_distiller.upstream.distiller.teacher import Teacher, TeacherConfig, load_teacher
from torch import nn

from s3prl_distiller.hub import load_hub

FLAGS = {"init_teacher_conv_layers": True, "init_teacher_encoder_layers": True, "init_teacher_encoder_norm": True}


class Expert(nn.Module):
    """Three states, 8 wide, of 25 ms at a stride in samples; ``answer`` makes of them what is returned."""

    def __init__(self, answer: Any, stride: int = 320, said: Any = "stride"):
        super().__init__()
        self.answer, self.stride = answer, stride
        if said is not None:
            self.get_downsample_rates = lambda key: stride if said == "stride" else said

    def forward(self, wavs):
        batch = nn.utils.rnn.pad_sequence(wavs, batch_first=True)
        frames = batch.unfold(1, 400, self.stride)[..., :8]  # some are lost at the edge, as convolutions do
        return self.answer([frames * layer for layer in (1.0, 2.0, 3.0)])


class Hooked(UpstreamBase):
    """As s3prl's own experts are built, whose base class insists on a dictionary."""

    def forward(self, wavs):
        return (torch.zeros(len(wavs), 49, 8),)

    def get_downsample_rates(self, key):
        return 320


@pytest.fixture
def load(monkeypatch):
    def load(make: Any) -> Teacher:
        monkeypatch.setattr(load_hub(), "odd", lambda **kwargs: make(), raising=False)
        return load_teacher(TeacherConfig(model="odd"))

    return load


def states(found):
    return {"hidden_states": found}


def fails(found):
    raise KeyError("wav_lens")


@pytest.mark.parametrize("container", [list, tuple])
@pytest.mark.parametrize(("stride", "said"), [(320, "stride"), (320, None), (640, None), (320, [320, 320, 320])])
def test_what_is_harmless_is_taken(load, container, stride, said):
    """A tuple for a list; no get_downsample_rates, or one that gives a rate for each state."""
    teacher = load(lambda: Expert(lambda found: states(container(found)), stride, said))
    info = teacher.info
    assert (info.n_layers, info.width, info.downsample_rate) == (2, 8, stride)
    assert info.architecture is None and not info.normalize
    found = teacher(torch.ones(2, 16_000), torch.tensor([16_000, 8000]), [0, 2])
    frames = 1 + (16_000 - 400) // stride
    assert found.shape == (2, 2, frames, 8)
    assert torch.equal(found[0, 1], torch.full((frames, 8), 3.0))


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: Expert(tuple), ["returns a tuple", "dictionary", "hidden_states"]),
        (lambda: Expert(lambda found: found[0]), ["returns a Tensor"]),
        (Hooked, ["fails", "AssertionError", "dictionary"]),
        (lambda: Expert(fails), ["fails", "wav_lens"]),
        (lambda: Expert(lambda found: {"last_hidden_state": found[0]}), ["NoneType", "no layers to predict"]),
        (lambda: Expert(lambda found: states([(x, None) for x in found])), ["list of tuple"]),
        (lambda: Expert(lambda found: states([])), ["list of nothing"]),
        (lambda: Expert(lambda found: states([x[0] for x in found])), ["(49, 8)", "(utterances, frames, width)"]),
        (lambda: Expert(lambda found: states([found[0], found[1][:, ::2]])), ["several widths or frame rates"]),
        (lambda: Expert(states, 160, 320), ["a frame is 320 samples", "98 frames"]),
        (lambda: Expert(states, 640, 320), ["a frame is 320 samples", "25 frames"]),
    ],
)
def test_what_is_not_is_refused_in_a_line(load, make, parts):
    with pytest.raises(ValueError, match=r"\bodd\b") as raised:
        load(make)
    message = str(raised.value)
    assert "\n" not in message and len(message) < 400
    for part in parts:
        assert part in message


def test_an_unknown_teacher_at_another_frame_rate(load):
    """Frames of 10 ms: refused, and what is asked for in the message works."""
    info = load(lambda: Expert(states, 160)).info
    with pytest.raises(ValueError, match=r"a frame of 320 samples .*extractor_conv_feature_layers.* odd one of 160"):
        derive_student({}, info)
    front_end = {"extractor_conv_feature_layers": "[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)]"}
    with pytest.raises(
        ValueError, match=r"init_teacher_conv_layers=false, .*init_teacher_encoder_norm=false"
    ) as raised:
        derive_student({**front_end, **FLAGS}, info)
    assert "random weights" in str(raised.value)
    config = derive_student({**front_end, "encoder_embed_dim": 48}, info)
    assert (config.downsample_rate, config.final_dim, config.targets) == (160, 8, [1, 2])
    out = DistillerModel(config)(torch.randn(1, 16_000), torch.tensor([16_000]))
    assert out.predictions.shape == (1, 2, 99, 8)


@pytest.mark.parametrize("form", ["hub", "Hugging Face"])
@pytest.mark.parametrize("kind", ["hubert", "wavlm"])
def test_a_known_teacher_at_another_frame_rate(hub_file, huggingface_folder, waves, kind, form):
    """Its student has its front end, and so its frames, although s3prl's experts say 320 of any teacher."""
    if form == "hub":
        layers = {"conv_feature_layers": "[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)]"}
        path = hub_file(kind, label_rate=100.0, **layers) if kind == "hubert" else hub_file(kind, **layers)
    else:
        shape = {"conv_dim": [16] * 6, "conv_kernel": [10, 3, 3, 3, 3, 2], "conv_stride": [5, 2, 2, 2, 2, 2]}
        path = huggingface_folder(kind, num_feat_extract_layers=6, **shape)
    teacher = load_teacher(TeacherConfig(model=str(path)))
    assert teacher.info.downsample_rate == 160
    config = derive_student({"encoder_layers": 2, **FLAGS}, teacher.info)
    assert config.downsample_rate == 160
    student, start = DistillerModel(config), teacher.start
    assert start is not None
    initialise(student, start)
    lengths = torch.tensor([len(waves[0])])
    predicted = student(waves[0][None], lengths).predictions
    assert predicted is not None
    assert predicted.shape == teacher(waves[0][None], lengths, config.targets).shape


@pytest.mark.parametrize("kind", ["hubert", "wav2vec2", "data2vec-audio", "wavlm"])
def test_a_folder_that_asks_for_tuples(huggingface_folder, waves, tmp_path, kind):
    """transformers heeds ``return_dict`` in config.json; the hidden states are what they are without."""
    folder = tmp_path / "folder"
    shutil.copytree(huggingface_folder(kind), folder)
    expected = load_teacher(TeacherConfig(model=str(folder)))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "return_dict": False}))
    teacher = load_teacher(TeacherConfig(model=str(folder)))
    lengths = torch.tensor([len(waves[0])])
    found = [each(waves[0][None], lengths, [0, 3]) for each in (teacher, expected)]
    assert torch.equal(*found)


def test_a_student_s_student_starts_from_it(student_file, waves):
    """Its prediction heads are layers to predict, but none to start from."""
    teacher = load_teacher(TeacherConfig(model=str(student_file(final_dim=48))))
    start = teacher.start
    assert start is not None and teacher.info.architecture is start.config
    with pytest.raises(ValueError, match=r"encoder_layers=3 cannot start from teacher .* has 2 layers"):
        derive_student({"encoder_layers": 3, **FLAGS}, teacher.info)
    student = DistillerModel(derive_student({"encoder_layers": 2, **FLAGS}, teacher.info))
    assert student.config.targets == [2, 3, 5]
    initialise(student, start)
    lengths = torch.tensor([len(waves[0])])
    out = student.eval()(waves[0][None], lengths)
    torch.testing.assert_close(out.output.detach(), teacher(waves[0][None], lengths, [2])[:, 0], rtol=1e-4, atol=1e-4)
    narrow = {"encoder_layers": 1, "init_layers": [2], "encoder_embed_dim": 24, **FLAGS}
    student = DistillerModel(derive_student(narrow, teacher.info))
    assert initialise(student, start) > 0


@pytest.mark.parametrize("kind", ["hubert", "wavlm"])
def test_a_folder_whose_waveforms_are_described_elsewhere(huggingface_folder, tmp_path, kind):
    """transformers 5 saves a recogniser's feature extractor as a section of its processor."""
    folder = tmp_path / "folder"
    shutil.copytree(huggingface_folder(kind, normalize=True), folder)
    description = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"feature_extractor": description}))
    assert load_teacher(TeacherConfig(model=str(folder))).info.normalize
    (folder / "processor_config.json").write_text(json.dumps({"tokenizer": {}}))
    with pytest.raises(ValueError, match=r"has no preprocessor_config\.json"):
        load_teacher(TeacherConfig(model=str(folder)))


@pytest.mark.parametrize("kind", ["hubert", "wavlm"])
def test_a_folder_of_a_model_for_another_sampling_rate(huggingface_folder, tmp_path, kind):
    folder = tmp_path / "folder"
    shutil.copytree(huggingface_folder(kind), folder)
    description = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**description, "sampling_rate": 8000}))
    with pytest.raises(ValueError, match=r"folder hears audio at 8000 Hz"):
        load_teacher(TeacherConfig(model=str(folder)))
