"""The real command on real speech: a few dozen steps bring the student nearer to its teacher on held-out recordings."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_distils_hubert_nano_on_real_speech(shared: Path, minisuperb: Path, tmp_path: Path):
    teacher = shared / "teachers" / "hubert_nano"
    overrides = (
        "runner.total_steps=40,runner.log_step=10,runner.eval_step=20,runner.save_step=40,task.sequence_length=24000,"
        "data.batch_size=4,data.num_workers=1,data.valid_seconds=20,data.check=header"
    )
    command = [sys.executable, str(ROOT / "run_pretrain.py"), "-u", "distiller", "-p", str(tmp_path / "run")]
    command += [
        "-c",
        "quickstart",
        "-o",
        overrides,
        "--teacher",
        str(teacher),
        "--data",
        str(minisuperb / "pretrain.jsonl"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "S3PRL_DISTILLER_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    held_out = {line["step"]: line for line in lines if line["kind"] == "valid"}
    assert held_out[40]["loss"] < 0.85 * held_out[0]["loss"]
    assert held_out[40]["loss"] < held_out[20]["loss"]
    for layer in (4, 8, 12):
        assert held_out[40][f"cosine_layer{layer}"] > held_out[0][f"cosine_layer{layer}"] + 0.2
    assert "76 % smaller" in done.stdout
