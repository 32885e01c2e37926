"""The s3prl hub on today's torchaudio, with our upstreams in it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from s3prl_distiller.upstream.distiller import hubconf
from s3prl_distiller.upstream.distiller.model import DistillerModel
from s3prl_distiller.upstream.distiller.model_config import DistillerConfig
from s3prl_distiller.upstream.distiller.student import s3prl_states

from s3prl_distiller import register
from s3prl_distiller.hub import load_hub

CHECKOUT = Path(__file__).resolve().parents[1]
NAMES = {
    "distilhubert",
    "distilhubert_base",
    "distiller",
    "distiller_custom",
    "distiller_local",
    "distiller_url",
    "distilxlsr_bp_12_16",
    "distilxlsr_bp_16_24",
    "distilxlsr_bp_4_12",
    "distilxlsr_bp_4_8_12",
    "distilxlsr_bp_8_12",
    "distilxlsr_bp_8_12_16",
    "distilxlsr_bp_8_12_24",
}


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    config = DistillerConfig(
        extractor_conv_feature_layers="[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] * 2",
        encoder_layers=2,
        encoder_embed_dim=48,
        encoder_ffn_embed_dim=96,
        encoder_attention_heads=4,
        conv_pos=32,
        final_dim=40,
        n_tasks=1,
        pred_layer_id=[4],
    )
    path = tmp_path_factory.mktemp("hub") / "states-1.ckpt"
    torch.save(s3prl_states(DistillerModel(config), {}, 1), path)
    return path


def test_register_is_idempotent():
    names = register()
    entries = {name: getattr(load_hub(), name) for name in names}
    assert set(names) == NAMES
    assert len(names) == len(NAMES)
    assert register() == names
    assert {name: getattr(load_hub(), name) for name in names} == entries
    for name, entry in entries.items():
        assert entry is getattr(hubconf, name)


def test_names_are_seen_by_s3prl():
    register()
    from s3prl.nn import S3PRLUpstream

    options = load_hub().options()
    assert set(options) >= NAMES
    assert len(options) == len(set(options))
    assert set(S3PRLUpstream.available_names()) >= NAMES
    registered = set(S3PRLUpstream.available_names(only_registered_ckpt=True))
    assert {"distilhubert", "distilhubert_base", "distilxlsr_bp_4_12"} <= registered
    assert not {"distiller_local", "distiller_url", "distiller_custom"} & registered
    # The rest of s3prl is as it was.
    assert {"hubert_base", "wav2vec2_custom", "wavlm_local", "fbank", "hf_hubert_custom"} <= set(options)


def test_what_torchaudio_dropped_says_so_when_called():
    load_hub()
    import torchaudio

    torchaudio.set_audio_backend("soundfile")
    if torchaudio.sox_effects.__doc__ != "Stands in for what torchaudio 2.9 removed.":
        pytest.skip("this torchaudio still has sox effects")
    for name in ("apply_effects_tensor", "apply_effects_file"):
        with pytest.raises(RuntimeError, match=rf"torchaudio\.sox_effects\.{name} was removed in torchaudio 2\.9"):
            getattr(torchaudio.sox_effects, name)(torch.zeros(1, 10), 16_000, [])


def test_a_torchaudio_of_another_torch_is_named(tmp_path: Path):
    """On the command line too, before any time is spent."""
    (tmp_path / "torchaudio.py").write_text("raise OSError('Could not load this library: libtorchaudio.so')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(CHECKOUT)])}
    command = [sys.executable, str(CHECKOUT / "run_pretrain.py"), "-u", "distiller", "--dry-run"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "error: torchaudio 2.11.0 does not load beside torch 2.11.0" in done.stderr
    assert "pip install torch==2.11.0 torchaudio==2.11.0" in done.stderr


# Nothing but what torch.hub does may put the checkout on the path: an install of it is taken off first.
TORCH_HUB = """
import sys
from pathlib import Path
checkout, ckpt = Path(sys.argv[1]), sys.argv[2]
sys.path = [entry for entry in sys.path if Path(entry).resolve() != checkout]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder)]
import torch
assert Path.cwd() != checkout
expert = torch.hub.load(str(checkout), "distiller_local", source="local", ckpt=ckpt)
import s3prl_distiller
assert Path(s3prl_distiller.__file__).parent.parent == checkout, s3prl_distiller.__file__
expert.eval()
with torch.no_grad():
    states = expert([torch.ones(16000)])["hidden_states"]
root = torch.hub._import_module("hubconf", str(checkout / "hubconf.py"))
print("entries", *sorted(name for name, value in vars(root).items() if callable(value) and not name.startswith("_")))
print("shapes", *[tuple(state.shape) for state in states])
print("sum", float(sum(state.double().sum() for state in states)))
bare = [name for name in ("upstream", "downstream") if name in sys.modules]
assert not bare, bare
"""


def test_torch_hub_from_a_checkout_in_another_folder(ckpt, tmp_path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(
        [sys.executable, "-c", TORCH_HUB, str(CHECKOUT), str(ckpt)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    assert set(lines["entries"].split()) == NAMES
    with torch.no_grad():
        states = hubconf.distiller_local(ckpt).eval()([torch.ones(16_000)])["hidden_states"]
    assert lines["shapes"] == " ".join(str(tuple(state.shape)) for state in states)
    assert float(lines["sum"]) == pytest.approx(float(sum(state.double().sum() for state in states)), abs=1e-3)
