"""DistilXLSR-53's recipe at full size, with a teacher of XLSR-53's shape and random weights: rate, memory, student.

    python benchmarks/distilxlsr.py --data MANIFEST --out results/distilxlsr.md

Runs ``run_pretrain.py -g distilxlsr_bp_4-12`` for some steps, as its user would, then exports the student to
transformers and loads it there. The rate is that of the log after ``--warm-up`` steps, the memory that of
``--dry-run``. Random weights cost what trained ones cost, and say nothing of what a student is worth.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from s3prl_distiller import machine
from s3prl_distiller.data.config import cores

ROOT = Path(__file__).resolve().parents[1]
XLSR = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "do_stable_layer_norm": True,
}
SMALL = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "conv_dim": [64] * 7}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="JSON lines with audio and duration, each of 40 s at most")
    add("--recipe", default="distilxlsr_bp_4-12")
    add("--steps", type=int, default=200)
    add("--warm-up", type=int, default=80)
    add("--small", action="store_true", help="a narrow teacher, to try the script out")
    add("-o", "--override", action="append", default=[])
    add("--out", type=Path)
    args = parser.parse_args()
    seconds = batch_seconds(args.data)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_teacher(folder / "xlsr", args.small)
        options = [f"runner.total_steps={args.steps}", f"runner.eval_step={args.steps}"]
        options += [f"runner.save_step={args.steps}", "runner.log_step=10", *args.override]
        command = ["run_pretrain.py", "-u", "distiller", "-g", args.recipe, "--teacher", str(folder / "xlsr")]
        command += ["--data", str(args.data), "-p", str(folder / "run"), *(part for o in options for part in ("-o", o))]
        dry = run([*command, "--dry-run"])
        run(command)
        lines = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
        later = [x["audio_s_per_s"] for x in lines if x["kind"] == "train" and args.warm_up < x["step"] < args.steps]
        ckpt = folder / "run" / f"states-{args.steps}.ckpt"
        run(["-m", "s3prl_distiller", "export", str(ckpt), "--to", "hf", "-o", str(folder / "hf"), "--no-costs"])
        facts = json.loads(run(["-m", "s3prl_distiller", "info", str(ckpt), "--json"]))
        loaded = in_transformers(folder / "hf")
    size = f"{facts['parameters_without_heads'] / 1e6:.2f} M parameters without heads"
    memory = re.search(r"memory at its highest: (.*)", dry)
    rate = statistics.mean(later)
    device = machine.device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    found = ", ".join(f"{name} {version}" for name, version in machine.versions().items())
    text = f"""\
# DistilXLSR-53's recipe {args.recipe} at full size

| | |
|---|---|
| teacher | XLSR-53's shape, random weights: 24 layers, {SMALL["hidden_size"] if args.small else 1024} wide |
| student | {facts["layers"]} layers, {facts["width"]} wide, {size} |
| predicts | layers {", ".join(map(str, facts["predicts_layers"]))} |
| rate, from step {args.warm_up + 1} | {rate / seconds:.1f} steps of 24 utterances, {rate:,.0f} s of audio, a second |
| memory at its highest | {memory[1] if memory else "not said"} |
| held-out loss | {valid(lines, 0):.4f} at first, {valid(lines, -1):.4f} after {args.steps} steps |
| in transformers | {loaded} |

{device}, {cores()} CPU cores; {found}.
`python {" ".join(sys.argv)}`
"""
    sys.stdout.write(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    return 0


def make_teacher(folder: Path, small: bool) -> None:
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    torch.manual_seed(0)
    Wav2Vec2Model(Wav2Vec2Config(**(XLSR | (SMALL if small else {})))).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": True})
    )


def batch_seconds(data: Path) -> float:
    """Audio of 24 utterances on average, with the recipe's crops of 15.625 s."""
    durations = [json.loads(line)["duration"] for line in data.read_text(encoding="utf-8").splitlines()]
    return 24 * statistics.mean(min(seconds, 15.625) for seconds in durations)


def run(command: list[str]) -> str:
    """Run a command of ours; what it prints."""
    command = [command[0] if command[0].startswith("-") else str(ROOT / command[0]), *command[1:]]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *command], env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return done.stdout


def in_transformers(folder: Path) -> str:
    from transformers import AutoModel

    model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    with torch.no_grad():
        states = model.eval()(torch.randn(1, 16_000), output_hidden_states=True).hidden_states
    odd = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    shape = f"{type(model).__name__} with {len(states)} hidden states of shape {tuple(states[-1].shape)}"
    return f"{shape}, {f'{len(odd)} weights missing or unexpected' if odd else 'no weight missing or unexpected'}"


def valid(lines: list[dict], index: int) -> float:
    return [line["loss"] for line in lines if line["kind"] == "valid"][index]


if __name__ == "__main__":
    sys.exit(main())
