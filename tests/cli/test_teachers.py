"""``--teacher NAME`` and nothing else, for a teacher that has no twin and another depth than the paper's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from s3prl_distiller.hub import load_hub, register

TINY = "task.sequence_length=16000,data.batch_size=2,data.num_workers=1,data.valid_seconds=8,runner.eval_step=2"


@pytest.fixture
def wavlm(tmp_path: Path) -> Path:
    """A small random WavLM of six layers, as Microsoft released them."""
    load_hub()
    from s3prl.upstream.wavlm.WavLM import WavLM, WavLMConfig

    config = {
        "conv_feature_layers": "[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] * 2",
        "encoder_layers": 6,
        "encoder_embed_dim": 48,
        "encoder_ffn_embed_dim": 96,
        "encoder_attention_heads": 4,
        "conv_pos": 32,
        "conv_pos_groups": 4,
        "extractor_mode": "layer_norm",
        "layer_norm_first": True,
        "relative_position_embedding": True,
        "gru_rel_pos": True,
        "max_distance": 800,
        "normalize": True,
    }
    torch.manual_seed(0)
    path = tmp_path / "wavlm.pt"
    torch.save({"cfg": config, "model": WavLM(WavLMConfig(config)).state_dict()}, path)
    return path


def test_a_teacher_and_nothing_else(commands: Any, corpus: Path, wavlm: Path, tmp_path: Path) -> None:
    run = tmp_path / "result" / "pretrain" / "one"
    command = ["-u", "distiller", "-n", "one", "--teacher", str(wavlm), "--data", str(corpus)]
    steps = [*command, "-o", f"{TINY},runner.total_steps=4,runner.save_step=2"]
    first = commands.run(tmp_path, *steps, "-o", "runner.total_steps=2").success()
    for said in ("predicts layers 2, 4, 6 of the 6", "starts from the rest of the weights", "plain path"):
        assert said in first.err, first.err
    distiller = yaml.safe_load((run / "config.yaml").read_text())["distiller"]
    assert (distiller["pred_layer_id"], distiller["final_dim"], distiller["normalize"]) == ([2, 4, 6], 48, True)
    assert "Size" in (run / "summary.md").read_text()

    # Going on means the same layers, although the recipe is named again.
    commands.run(tmp_path, *steps, "-c", "distilhubert", "-a").success()
    register()
    expert = load_hub().distiller_local(ckpt=str(run / "states-4.ckpt")).eval()
    with torch.no_grad():
        features = expert([torch.randn(16_000)])
    assert len(features["hidden_states"]) == 1 + 2 + 3
    assert features["hidden_states"][-1].shape == (1, 49, 48)
