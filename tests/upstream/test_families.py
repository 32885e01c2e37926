"""Every family of teachers with the switches of its released models, in the hub's form and Hugging Face's.

What is heard from it, and that a student of it, with nothing said but its name, learns, is saved and is read again.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from s3prl_distiller.upstream.distiller.pretrain_expert import build, load_config
from s3prl_distiller.upstream.distiller.student import load_student
from s3prl_distiller.upstream.distiller.teacher import TeacherConfig, load_teacher
from torch import Tensor

from s3prl_distiller import checkpoint, settings
from s3prl_distiller.hub import load_hub

LAYERS = 6
PRE_NORM = {"layer_norm_first": True, "extractor_mode": "layer_norm"}
TINY = "task.sequence_length=16000,data.batch_size=3,data.num_workers=0,data.valid_seconds=1,optimizer.lr=1e-3"


class Family(NamedTuple):
    """Switches of a family's released configurations that shape the arithmetic, in fairseq's words."""

    hub: str | None  # kind of the hub's checkpoint
    huggingface: str | None  # model_type
    switches: dict[str, Any]
    normalize: bool
    depth: int = LAYERS


FAMILIES = {
    "HuBERT base": Family("hubert", "hubert", {}, False),
    "HuBERT large": Family("hubert", "hubert", PRE_NORM, True),
    # Heads of 80 values in the released model; here too, more than elsewhere, and more layers than the rest.
    "HuBERT x-large": Family("hubert", "hubert", {**PRE_NORM, "encoder_attention_heads": 2}, True, 12),
    "wav2vec 2.0 base": Family("wav2vec2", "wav2vec2", {}, False),
    "wav2vec 2.0 large": Family("wav2vec2", "wav2vec2", {"encoder_attention_heads": 8}, False, 8),
    "XLSR-53, XLS-R": Family("wav2vec2", "wav2vec2", {**PRE_NORM, "conv_bias": True}, True, 8),
    "data2vec-audio": Family("data2vec", "data2vec-audio", {"extractor_mode": "layer_norm"}, True),
    "UniSpeech": Family(None, "unispeech", {**PRE_NORM, "conv_bias": True}, True),
    "UniSpeech-SAT base": Family("unispeech_sat", "unispeech-sat", {}, False),
    "UniSpeech-SAT large": Family("unispeech_sat", "unispeech-sat", PRE_NORM, True),
    "WavLM base": Family("wavlm", "wavlm", {}, False),
    "WavLM large": Family("wavlm", "wavlm", PRE_NORM, True),
}
CASES = [
    pytest.param(family, form, id=f"{name}, {form}")
    for name, family in FAMILIES.items()
    for form, kind in (("hub", family.hub), ("Hugging Face", family.huggingface))
    if kind is not None
]
NAMES = {
    "layer_norm_first": "do_stable_layer_norm",
    "conv_bias": "conv_bias",
    "encoder_attention_heads": "num_attention_heads",
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("S3PRL_DISTILLER_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def write(hub_file, huggingface_folder):
    """The path of a small random teacher of a family; each is made once."""
    made: dict[str, Path] = {}

    def path(family: Family, form: str) -> Path:
        key = f"{family} {form}"
        if key in made:
            return made[key]
        if form == "hub":
            options = {**family.switches, "encoder_layers": family.depth}
            made[key] = hub_file(family.hub, normalize=family.normalize, **options)
        else:
            options = {NAMES[name]: value for name, value in family.switches.items() if name in NAMES}
            if family.switches.get("extractor_mode") == "layer_norm":
                options["feat_extract_norm"] = "layer"
            options["num_hidden_layers"] = family.depth
            made[key] = huggingface_folder(family.huggingface, normalize=family.normalize, **options)
        return made[key]

    return path


@torch.no_grad()
def by_its_own_code(family: Family, form: str, path: Path, wav: Tensor) -> list[Tensor]:
    """Hidden states as whoever published the form computes them, without our code."""
    if form == "hub":
        name = f"{family.hub}_local" if family.hub in ("wavlm", "unispeech_sat") else f"{family.hub}_custom"
        return list(getattr(load_hub(), name)(ckpt=str(path)).eval()([wav])["hidden_states"])
    from transformers import AutoFeatureExtractor, AutoModel

    heard = AutoFeatureExtractor.from_pretrained(path)(wav.numpy(), sampling_rate=16_000, return_tensors="pt")
    out = AutoModel.from_pretrained(path).eval()(**heard, output_hidden_states=True)
    # Version 5 hands out the last of them before a pre-norm encoder's own normalisation.
    return [*out.hidden_states[:-1], out.last_hidden_state]


@pytest.mark.parametrize(("family", "form"), CASES)
def test_what_is_heard(write, speech, family, form):
    path = write(family, form)
    teacher = load_teacher(TeacherConfig(model=str(path)))
    info = teacher.info
    assert (info.n_layers, info.width, info.downsample_rate) == (family.depth, 48, 320)
    assert info.normalize == family.normalize
    assert (teacher.twin is None) == (family.hub == "wavlm"), "a twin for all but WavLM"
    model: Any = teacher.expert
    assert info.parameters == pytest.approx(sum(p.numel() for p in model.model.parameters()), rel=0.05)
    for wav in speech:
        found = teacher(wav[None], torch.tensor([len(wav)]), range(info.n_layers + 1))[0]
        for ours, theirs in zip(found, by_its_own_code(family, form, path, wav), strict=True):
            torch.testing.assert_close(ours, theirs[0], rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="session")
def recordings(tmp_path_factory, speech_files) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    for file in speech_files[:6]:
        (folder / file.name).symlink_to(file)
    return folder


@pytest.mark.parametrize(("family", "form"), CASES)
def test_a_student_with_nothing_said_but_its_teacher(write, recordings, speech, tmp_path, caplog, family, form):
    options = {"teacher": {"model": str(write(family, form))}, "data": {"path": str(recordings)}}
    config, given = load_config([settings.bundled("pretrain", "distilhubert")], options, [TINY])
    torch.manual_seed(0)
    with caplog.at_level(logging.INFO, "s3prl_distiller"):
        expert = build(config, given, tmp_path, torch.device("cpu"), None)
    assert not [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    student = expert.model
    third = family.depth / 3
    assert student.config.targets == [round(third), round(2 * third), family.depth]
    assert student.config.normalize == family.normalize
    assert student.config.layer_norm_first == family.switches.get("layer_norm_first", False) or family.hub == "data2vec"
    assert (expert.fast is None) == (family.hub == "wavlm")
    assert "starts from the rest" in caplog.text or family.hub != "wavlm"
    started = re.search(r"(\d+) % of \S+ M parameters of the student start from the teacher", caplog.text)
    assert started is not None and int(started[1]) > 60  # all but the heads

    batch = next(iter(expert.get_train_dataloader(0, 0)))
    optimizer = torch.optim.AdamW(student.parameters(), 1e-3)
    losses = []
    for _ in range(4):
        torch.manual_seed(0)  # the same dropout, so that the loss of one batch must come down
        loss, parts = expert(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0], losses
    assert {f"l1_layer{layer}" for layer in student.config.targets} <= set(parts)

    path = tmp_path / "states-4.ckpt"
    checkpoint.save_torch(expert.add_state_to_save({}, 4), path)
    again = load_student(path)
    assert again.config == student.config
    lengths = torch.tensor([len(speech[0])])
    ours, theirs = (model.eval()(speech[0][None], lengths) for model in (student, again))
    assert torch.equal(ours.predictions, theirs.predictions)


@pytest.mark.parametrize("form", ["hub", "Hugging Face"])
def test_a_student_of_wavlm_starts_from_all_but_relative_positions(write, speech, form):
    """With them at zero a WavLM is a HuBERT: then what the student starts from gives the very same hidden states."""
    teacher = load_teacher(TeacherConfig(model=str(write(FAMILIES["WavLM large"], form))))
    expert: Any = teacher.expert
    start = teacher.start
    assert start is not None
    wav, lengths = speech[0], torch.tensor([len(speech[0])])
    with torch.no_grad():
        differ = zip(start(wav[None], lengths).hidden_states, expert([wav])["hidden_states"], strict=True)
        assert [torch.allclose(a, b, atol=1e-4) for a, b in differ] == [True] + [False] * LAYERS
        for name, parameter in expert.model.named_parameters():
            if name.endswith(("relative_attention_bias.weight", "rel_attn_embed.weight")):
                parameter.zero_()
        same = zip(start(wav[None], lengths).hidden_states, expert([wav])["hidden_states"], strict=True)
        for a, b in same:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    teacher.verify(speech)
    assert teacher.start is None and teacher.expert is not None
