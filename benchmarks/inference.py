"""How fast a student listens, and how exactly: each precision beside s3prl's own distiller and HuBERT base.

    python benchmarks/inference.py --threads 2 --audio LibriSpeech/dev-clean --out results/inference_cpu.md
    python benchmarks/inference.py --device cuda --audio LibriSpeech/dev-clean --out results/inference_cuda.md

The peers are ``distiller_local`` and ``hubert_custom`` of s3prl 0.4.18 as it loads them. Student and peer share one
checkpoint in s3prl's form: ``--ckpt``, by default a DistilHuBERT of random weights; HuBERT base has random weights. All
of them take turns in one process, heads included; times are medians, ratios medians over the turns. Cosines are per
frame, the lowest of all frames, against float32; random weights are harsher than trained ones there.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from s3prl_distiller.upstream.distiller.fast.inference import PRECISIONS
from s3prl_distiller.upstream.distiller.hubconf import distiller_local
from s3prl_distiller.upstream.distiller.model import DistillerModel
from s3prl_distiller.upstream.distiller.model_config import DistillerConfig
from s3prl_distiller.upstream.distiller.student import s3prl_states
from torch import Tensor

from s3prl_distiller import audio, hub, machine

PEER, TEACHER = "s3prl, distiller", "s3prl, HuBERT base"
DISTILHUBERT = {"encoder_layers": 2, "n_tasks": 3, "task_emb_type": "expand-last", "out_layer_type": "expand-last"}
SECONDS = 15
SUFFIXES = {".flac", ".ogg", ".opus", ".wav", ".mp3"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    parser.add_argument("--ckpt", type=Path, help="a student in s3prl's form, instead of random weights")
    parser.add_argument("--audio", type=Path, help="a folder of speech, any depth; without it there are no cosines")
    parser.add_argument("--files", type=int, default=24, help="how many of them, spread over the folder")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    device, precisions = torch.device(args.device), args.precisions.split(",")
    speech = heard(args.audio, args.files) if args.audio else []
    with tempfile.TemporaryDirectory() as folder:
        ours, peers = models(args.ckpt, Path(folder), precisions, device)
    taken = {name: turns(ours | peers, waves, args.repeats, device) for name, waves in batches(speech, device).items()}
    exact = [exactness(name, model, ours["float32"], speech, device) for name, model in (ours | peers).items()]
    text = report(args, device, taken, [line for line in exact if line])
    sys.stdout.write(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    return 0


def models(
    ckpt: Path | None, folder: Path, precisions: list[str], device: torch.device
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ours by precision, float32 always among them, and the peers by name."""
    hub.load_hub()
    from s3prl.upstream.distiller.hubconf import distiller_local as s3prl_distiller_local
    from s3prl.upstream.hubert.hubconf import hubert_custom
    from s3prl.upstream.hubert.hubert_model import HubertConfig, HubertModel, HubertPretrainingConfig

    torch.manual_seed(0)
    if ckpt is None:
        ckpt = folder / "student.ckpt"
        torch.save(s3prl_states(DistillerModel(DistillerConfig.from_mapping(DISTILHUBERT)), {}, 0), ckpt)
    teacher = {"task_cfg": {"sample_rate": 16_000, "normalize": False}, "model_cfg": {"label_rate": 50.0}}
    teacher["dictionaries_symbols"] = [[str(unit) for unit in range(504)]]
    model = HubertModel(
        HubertConfig(**teacher["model_cfg"]),
        HubertPretrainingConfig(**teacher["task_cfg"]),
        teacher["dictionaries_symbols"],
    )
    torch.save(teacher | {"model_weight": model.state_dict()}, folder / "hubert.pt")
    wanted = dict.fromkeys(["float32", *precisions])
    ours = {precision: distiller_local(ckpt, precision=precision) for precision in wanted}
    peers = {PEER: s3prl_distiller_local(str(ckpt)), TEACHER: hubert_custom(str(folder / "hubert.pt"))}
    for expert in (ours | peers).values():
        expert.to(device).eval()
    return ours, peers


def heard(folder: Path, files: int) -> list[Tensor]:
    """Some files of a folder, of each the first 15 s."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    chosen = paths[:: max(1, len(paths) // files)][:files]
    waves = [audio.load(path, duration=SECONDS) for path in chosen]
    if not waves:
        raise SystemExit(f"{folder} has no audio")
    return [wave for wave in waves if len(wave) >= 400]


def batches(speech: list[Tensor], device: torch.device) -> dict[str, list[Tensor]]:
    """What is listened to: speech end to end, or noise."""
    size = SECONDS * audio.SAMPLE_RATE
    generator = torch.Generator().manual_seed(0)
    endless = torch.cat(speech) if speech else 0.1 * torch.randn(size, generator=generator)
    endless = endless.repeat(-(-2 * size // len(endless))).to(device)

    def batch(lengths: list[int]) -> list[Tensor]:
        return [endless[(start := index * 997) : start + length] for index, length in enumerate(lengths)]

    def mixed(count: int) -> list[int]:
        return [int(seconds * audio.SAMPLE_RATE) for seconds in torch.linspace(4, SECONDS, count).tolist()]

    if device.type == "cpu":
        return {"1 x 15 s": batch([size]), "8 x 4 to 15 s": batch(mixed(8))}
    return {"1 x 15 s": batch([size]), "32 x 15 s": batch([size] * 32), "32 x 4 to 15 s": batch(mixed(32))}


def turns(
    experts: dict[str, Callable], waves: list[Tensor], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each, turn by turn; the first turn is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in experts}
    for turn in range(repeats + 1):
        for name, expert in experts.items():
            _wait(device)
            started = time.perf_counter()
            expert(waves)
            _wait(device)
            seconds = time.perf_counter() - started
            sys.stderr.write(f"turn {turn} of {repeats}, {len(waves)} utterances, {name}: {seconds:.3f} s\n")
            if turn:
                taken[name].append(seconds)
    return taken


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def exactness(name: str, model: Any, reference: Any, speech: list[Tensor], device: torch.device) -> str:
    """A row of the table of cosines; nothing for a model of other weights."""
    if name == TEACHER or not speech:
        return ""
    worst, difference = None, 0.0
    for wave in speech:
        states, expected = (expert([wave.to(device)])["hidden_states"] for expert in (model, reference))
        lowest = [float(F.cosine_similarity(a, b, dim=-1).min()) for a, b in zip(states, expected, strict=True)]
        worst = lowest if worst is None else [min(pair) for pair in zip(worst, lowest, strict=True)]
        difference = max(difference, *(float((a - b).abs().max()) for a, b in zip(states, expected, strict=True)))
    assert worst is not None
    return f"| {name} | {' | '.join(f'{cosine:.5f}' for cosine in worst)} | {difference:.1e} |"


def report(
    args: argparse.Namespace, device: torch.device, taken: dict[str, dict[str, list[float]]], exact: list[str]
) -> str:
    what = "a DistilHuBERT of random weights" if args.ckpt is None else args.ckpt.name
    threads = f", {args.threads} threads" if device.type == "cpu" else ""
    lines = [f"# Inference of {what} on {machine.device_name(device)}{threads}", ""]
    lines += ["| batch | model | seconds: median (lowest to highest) | times s3prl's distiller | times HuBERT base |"]
    lines += ["|---|---|---|---|---|"]
    for batch, found in taken.items():
        for name, seconds in found.items():
            spread = f"{statistics.median(seconds):.4f} ({min(seconds):.4f} to {max(seconds):.4f})"
            ratios = (_ratio(found[peer], seconds) for peer in (PEER, TEACHER))
            lines.append(f"| {batch} | {name} | {spread} | {' | '.join(ratios)} |")
    if exact:
        states = exact[0].count("|") - 3
        head = ["projection", *(f"{index + 1}" for index in range(states - 1))]
        lines += ["", f"Lowest cosine of a frame with float32, {args.files} files of speech, by hidden state:", ""]
        lines += [f"| model | {' | '.join(head)} | largest difference |", "|---" * (states + 2) + "|", *exact]
    command = f"python benchmarks/inference.py --device {args.device} --threads {args.threads} --repeats {args.repeats}"
    command += f" --precisions {args.precisions}" + (f" --ckpt {args.ckpt.name}" if args.ckpt else "")
    command += f" --audio {args.audio.name} --files {args.files}" if args.audio else ""
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions().items())
    return "\n".join([*lines, "", f"`{command}`", "", versions, ""])


def _ratio(peer: list[float], seconds: list[float]) -> str:
    return f"{statistics.median(other / own for other, own in zip(peer, seconds, strict=True)):.2f}"


if __name__ == "__main__":
    sys.exit(main())
