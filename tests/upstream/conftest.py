"""Small random students and teachers in every form they come in, real speech, and a network that is down.

s3prl's and transformers' own classes make the files, so that what is tested against them never saw our code.
"""

import argparse
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn

from s3prl_distiller import audio
from s3prl_distiller.hub import load_hub

load_hub()

from s3prl.upstream.distiller import hubconf as s3prl_hubconf  # noqa: E402
from s3prl.upstream.distiller.model import DistillerConfig as S3prlConfig  # noqa: E402
from s3prl.upstream.distiller.model import DistillerModel as S3prlModel  # noqa: E402

HUBERT_STRIDES = "[({c},10,5)] + [({c},3,2)] * 4 + [({c},2,2)] * 2"

SMALL = {
    "extractor_mode": "default",
    "extractor_conv_feature_layers": HUBERT_STRIDES.format(c=16),
    "encoder_layers": 2,
    "encoder_embed_dim": 48,
    "encoder_ffn_embed_dim": 96,
    "encoder_attention_heads": 4,
    "conv_pos": 32,
    "conv_pos_groups": 4,
    "final_dim": 40,
    "n_tasks": 3,
    "pred_layer_id": [4, 8, 12],
    "task_emb_type": "expand-last",
    "out_layer_type": "expand-last",
    "loss_type": "l1",
    "cosine_loss": 1.0,
    "feature_grad_mult": 0.1,
}


def scatter(model: nn.Module, seed: int = 0, scale: float = 0.1) -> nn.Module:
    """Move every weight, so that no normalisation is the identity and no bias zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="session")
def small() -> dict:
    return dict(SMALL)


@pytest.fixture(scope="session")
def waves() -> list[Tensor]:
    """Speech, three utterances of 1.3, 0.9 and 0.6 s: synthetic, from the bundled corpus."""
    folder = Path(audio.__file__).parent / "quickstart" / "corpus" / "audio"
    files = sorted(folder.glob("*s0[0-2].opus"))[:3]
    return [audio.load(file, start=0.3)[:size] for file, size in zip(files, (20_800, 14_411, 9_600), strict=True)]


@pytest.fixture(scope="session")
def speech(speech_files) -> list[Tensor]:
    """Real speech: 1.5 and 1.1 s."""
    return [audio.load(file)[8000 : 8000 + size] for file, size in zip(speech_files, (24_000, 17_600), strict=False)]


@pytest.fixture(scope="session")
def student_file(tmp_path_factory) -> Callable[..., Path]:
    """Write a student as s3prl's trainer does, a pickled schedule and an ``argparse.Namespace`` beside the weights."""

    def write(real_size: bool = False, torch_options: dict | None = None, **changes) -> Path:
        config = changes if real_size else {**SMALL, **changes}
        torch.manual_seed(0)
        model = scatter(S3prlModel(S3prlConfig(config)), scale=0.02 if real_size else 0.1)
        path = tmp_path_factory.mktemp("student") / "states-10.ckpt"
        schedule = type("WarmupLinearSchedule", (), {"__module__": "optimizers"})
        module = types.ModuleType("optimizers")
        module.WarmupLinearSchedule = schedule
        lr_schedule = schedule()
        lr_schedule.__dict__.update(warmup=0.07, t_total=200)
        states = {
            "Distiller": model.state_dict(),
            "Config": {
                "distiller": config,
                "teacher": {"model": "hubert_base", "n_layers": 12},
                "task": {"sequence_length": 250000},
                "audio": {"target_level": -25},
            },
            "Args": argparse.Namespace(upstream="distiller", gpus=[0], expdir="result"),
            "Step": 10,
            "Optimizer": {"state": {}, "param_groups": [{"lr": 2e-4, "schedule": lr_schedule, "params": [0]}]},
        }
        before = sys.modules.get("optimizers")
        sys.modules["optimizers"] = module
        try:
            torch.save(states, path, **(torch_options or {}))
        finally:
            del sys.modules["optimizers"]
            if before is not None:
                sys.modules["optimizers"] = before
        return path

    return write


@pytest.fixture(scope="session")
def s3prl_expert() -> Callable[..., nn.Module]:
    """s3prl's own distiller, in eval mode."""
    return lambda path, **kwargs: s3prl_hubconf.distiller_local(str(path), **kwargs).eval()


# Shapes that the three architectures share, small.
_HUGGINGFACE = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "conv_dim": [16] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "num_conv_pos_embeddings": 32,
    "num_conv_pos_embedding_groups": 4,
    "num_codevector_groups": 2,
    "codevector_dim": 16,
}


@pytest.fixture(scope="session")
def huggingface_folder(tmp_path_factory) -> Callable[..., Path]:
    """Write a Hugging Face folder of random weights: ``kind`` is its model_type."""
    import transformers

    classes = {
        "hubert": (transformers.HubertConfig, transformers.HubertModel),
        "wav2vec2": (transformers.Wav2Vec2Config, transformers.Wav2Vec2Model),
        "unispeech": (transformers.UniSpeechConfig, transformers.UniSpeechModel),
        "unispeech-sat": (transformers.UniSpeechSatConfig, transformers.UniSpeechSatModel),
        "wavlm": (transformers.WavLMConfig, transformers.WavLMModel),
        "data2vec-audio": (transformers.Data2VecAudioConfig, transformers.Data2VecAudioModel),
    }

    def write(kind: str, large: bool = False, normalize: bool = False, pickled: bool = False, **changes) -> Path:
        """large: as XLSR is built: pre-norm, a layer norm after each convolution, which has a bias."""
        shape = dict(_HUGGINGFACE)
        if kind == "data2vec-audio":
            shape |= {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 7}
        if large:
            shape |= {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
        config_class, model_class = classes[kind]
        torch.manual_seed(0)
        model = scatter(model_class(config_class(**{**shape, **changes})))
        path = tmp_path_factory.mktemp(kind)
        model.save_pretrained(path)
        if pickled:
            (path / "model.safetensors").unlink()
            torch.save(model.state_dict(), path / "pytorch_model.bin")
        extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize, return_attention_mask=True)
        extractor.save_pretrained(path)
        assert json.loads((path / "config.json").read_text())["model_type"] == kind
        return path

    return write


@pytest.fixture(scope="session")
def hub_file(tmp_path_factory) -> Callable[..., Path]:
    """Write a checkpoint as s3prl converts them from fairseq: plain types only."""
    from s3prl.upstream.data2vec.data2vec_model import Data2VecAudioConfig, Data2VecAudioModel
    from s3prl.upstream.hubert.hubert_model import HubertConfig, HubertModel, HubertPretrainingConfig
    from s3prl.upstream.wav2vec2.wav2vec2_model import AudioPretrainingConfig, Wav2Vec2Config, Wav2Vec2Model
    from s3prl.upstream.wavlm.WavLM import WavLM, WavLMConfig

    def write(kind: str, large: bool = False, normalize: bool = False, **changes) -> Path:
        config = {
            "conv_feature_layers": HUBERT_STRIDES.format(c=16),
            "encoder_layers": 3,
            "encoder_embed_dim": 48,
            "encoder_ffn_embed_dim": 96,
            "encoder_attention_heads": 4,
            "conv_pos": 32,
            "conv_pos_groups": 4,
            "extractor_mode": "layer_norm" if large else "default",
            "layer_norm_first": large,
            "conv_bias": large,
            **changes,
        }
        task = {"sample_rate": 16000, "normalize": normalize}
        states = {"task_cfg": task, "model_cfg": config}
        torch.manual_seed(0)
        path = tmp_path_factory.mktemp(kind) / f"{kind}.pt"
        if kind in ("wavlm", "unispeech_sat"):  # one class, the latter without relative positions
            relative = kind == "wavlm"
            config |= {"normalize": normalize, "relative_position_embedding": relative, "gru_rel_pos": relative}
            config |= {"num_buckets": 320, "max_distance": 800}
            torch.save({"cfg": config, "model": scatter(WavLM(WavLMConfig(config))).state_dict()}, path)
            return path
        if kind == "hubert":
            config["label_rate"] = 50.0
            states["dictionaries_symbols"] = [["a", "b", "c"]]
            model = HubertModel(HubertConfig(**config), HubertPretrainingConfig(**task), [["a", "b", "c"]])
        elif kind == "wav2vec2":
            config |= {"latent_vars": 4, "final_dim": 16}
            model = Wav2Vec2Model(Wav2Vec2Config(**config))
        else:
            config |= {"pos_conv_depth": 3, "conv_pos": 21, "average_top_k_layers": 2}
            model = Data2VecAudioModel(Data2VecAudioConfig(**config))
            model.remove_pretraining_modules()
        AudioPretrainingConfig(**task)
        states["model_weight"] = scatter(model).state_dict()
        if kind == "data2vec":
            states["model_weight"]["_ema"] = {}
        torch.save(states, path)
        return path

    return write


@pytest.fixture
def no_network(monkeypatch, tmp_path) -> Path:
    """Every download fails at once; s3prl's cache folder, which is empty, is returned."""
    from s3prl.util import download

    def refuse(*args, **kwargs):
        raise URLError("no network in this test")

    cache = tmp_path / "cache"
    monkeypatch.setattr(download, "_download_dir", cache)
    monkeypatch.setattr(download, "_download", refuse)
    return cache
