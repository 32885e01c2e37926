"""The bundled recipes of DistilXLSR-53, with a teacher of XLSR-53's build and depth that is narrow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from s3prl_distiller.upstream.distiller import hubconf, pretrain_expert
from s3prl_distiller.upstream.distiller.derive import derive_student
from s3prl_distiller.upstream.distiller.export import save
from s3prl_distiller.upstream.distiller.export.forms import Options
from s3prl_distiller.upstream.distiller.fast.step import PackedDistillation
from s3prl_distiller.upstream.distiller.initialise import initialise
from s3prl_distiller.upstream.distiller.model import DistillerModel
from s3prl_distiller.upstream.distiller.student import Student
from s3prl_distiller.upstream.distiller.teacher import Teacher, TeacherConfig, load_teacher

from s3prl_distiller import settings
from s3prl_distiller.engine import precision

RECIPES = [path.stem for path in sorted(settings.bundled("pretrain", "distilhubert").parent.glob("distilxlsr_bp_*"))]


@pytest.fixture(scope="module")
def xlsr(request: pytest.FixtureRequest) -> Teacher:
    make: Any = request.getfixturevalue("huggingface_folder")
    return load_teacher(TeacherConfig(str(make("wav2vec2", large=True, normalize=True, num_hidden_layers=24))))


def student_of(recipe: str, teacher: Teacher) -> DistillerModel:
    files = [settings.bundled("pretrain", "distilhubert"), settings.find("pretrain", recipe)]
    config, given = pretrain_expert.load_config(files, {}, [])
    assert config.teacher.model == "xlsr_53" and config.data.language == ["pt-BR"]
    model = DistillerModel(derive_student(given, teacher.info))
    assert teacher.twin is not None
    initialise(model, teacher.twin)
    return model


def test_there_are_those_that_were_published() -> None:
    published = {"4-12", "8-12", "4-8-12", "8-12-16", "12-16", "16-24", "8-12-24"}
    assert {recipe.removeprefix("distilxlsr_bp_") for recipe in RECIPES} == published


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_its_name(recipe: str, xlsr: Teacher) -> None:
    """Its layers are predicted, the build is XLSR's, a step gives every weight a gradient, and the hub has its name."""
    student = student_of(recipe, xlsr).train()
    config = student.config
    assert list(config.targets) == [int(layer) for layer in recipe.removeprefix("distilxlsr_bp_").split("-")]
    assert config.encoder_layers == 2 and config.layer_norm_first and config.conv_bias and config.normalize
    assert config.extractor_mode == "layer_norm" and config.final_dim == xlsr.info.width
    autocast, _ = precision("float32", torch.device("cpu"))
    assert xlsr.twin is not None
    step = PackedDistillation(student, xlsr.twin, autocast, compiled=False)
    wave = torch.randn(2, 8_000, generator=torch.Generator().manual_seed(0))
    loss = step(wave, torch.tensor([8_000, 6_000]))
    loss.total.backward()
    assert loss.total.isfinite() and len(loss.parts) == 2 * len(config.targets)
    without = {name for name, weight in student.named_parameters() if weight.grad is None or not weight.grad.any()}
    # Attention is the same for every key bias: it shifts all scores of a query alike.
    assert {name for name in without if not name.endswith("k_proj.bias")} <= {"encoder.layer_norm.bias"}
    assert callable(getattr(hubconf, recipe.replace("-", "_")))


def test_a_student_loads_in_transformers(xlsr: Teacher, tmp_path: Path) -> None:
    from transformers import AutoModel

    student = student_of("distilxlsr_bp_4-12", xlsr).eval()
    wave = torch.randn(16_000, generator=torch.Generator().manual_seed(0))
    source = Student(student, {}, 0, "s3prl", tmp_path / "states-0.ckpt")
    save.export(source, "hf", tmp_path / "hf", [wave], Options(costs=False))
    theirs = AutoModel.from_pretrained(tmp_path / "hf").eval()
    heard = (wave - wave.mean()) / (wave.var(unbiased=False) + student.config.normalize_eps).sqrt()
    with torch.no_grad():
        expected = student(wave[None], torch.tensor([16_000]))
        torch.testing.assert_close(theirs(heard[None]).last_hidden_state, expected.output, atol=1e-4, rtol=1e-4)
    ours = hubconf.distilxlsr_bp_4_12(ckpt=str(tmp_path / "hf")).eval()
    with torch.no_grad():
        torch.testing.assert_close(ours([wave])["hidden_states"], expected.listed, atol=1e-5, rtol=1e-4)
