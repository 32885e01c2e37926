"""The probe as a run has it: in the main process, with its page in the run's folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from s3prl_distiller.audio import SAMPLE_RATE
from s3prl_distiller.data import DataConfig
from s3prl_distiller.engine import distributed
from s3prl_distiller.machine import device_name, versions

from ..derive import derive_student, evenly_spaced
from ..model_config import DistillerConfig
from ..teacher import Teacher
from .measure import compare, hear, probe
from .page import write
from .proposal import Proposal, conclude
from .sample import draw

log = logging.getLogger(__name__)


def with_targets(
    config: DistillerConfig,
    given: Mapping[str, Any],
    teacher: Teacher,
    data: DataConfig,
    seed: int,
    folder: Path,
    device: torch.device,
) -> dict[str, Any]:
    """Probe the layers, write ``targets.md``, ``.png`` and ``.json`` into ``folder``, and choose which to predict.

    As many are chosen as ``given`` has, or 3. Of several processes the main one probes, and all get its choice.

    Args:
        config: the student's, before it is completed from its teacher.
        given: the keys of ``distiller`` that were given.
        teacher: is moved to ``device``.

    Returns:
        ``given`` with the choice as ``pred_layer_id``.

    Raises:
        ValueError: the data or the teacher cannot be probed, or the student does not fit the teacher.
    """
    if config.task_emb_type not in ("expand-last", "self-hidden"):
        raise ValueError(
            f"--targets auto does not go with distiller.task_emb_type={config.task_emb_type}, which predicts fixed "
            "layers"
        )
    named, layers = given.get("pred_layer_id", []), teacher.info.n_layers
    count = given.get("n_tasks") or len(named) or min(3, layers)
    if count > layers:
        raise ValueError(
            f"{count} layers are to be predicted, but teacher {teacher.info.name} has {layers}: name fewer in "
            "distiller.pred_layer_id of the recipe, or name them with --targets"
        )
    # Whether all else fits is known in no time, and does not depend on which layers they are.
    derive_student({**given, "pred_layer_id": list(range(1, count + 1))}, teacher.info)
    chosen: list[int] = []
    failure = None
    if distributed.is_main():
        try:
            proposal = _measure(teacher, data, seed, count, named or evenly_spaced(layers, count), device)
            write(proposal, folder)
            log.info("Targets: %s. Why: %s", proposal.line, folder / "targets.md")
            chosen = list(proposal.chosen.layers)
        except (ValueError, OSError) as error:
            failure = error
    # Whatever became of it: the others wait here.
    chosen, said = distributed.gather([(chosen, str(failure) if failure else None)])[0]
    if failure is not None:
        raise failure
    if said is not None:
        raise ValueError(said)
    return {**given, "pred_layer_id": chosen}


def _measure(
    teacher: Teacher, data: DataConfig, seed: int, count: int, recipe: Sequence[int], device: torch.device
) -> Proposal:
    started = time.monotonic()
    drawn = draw(data, seed)
    seconds = sum(request.samples for request in drawn.requests) / SAMPLE_RATE
    log.info(
        "Probing %d layers on %d utterances, %.1f minutes of audio, before training",
        teacher.info.n_layers,
        len(drawn.requests),
        seconds / 60,
    )
    heard = hear(teacher.to(device), drawn, device, seed)
    probes, left_out = probe(heard, drawn, seed)
    parts = compare(heard.blocks)
    frames = sum(block.shape[1] for block in heard.blocks)
    setting = {
        "Data": f"{data.path}: {heard.utterances} utterances heard, {heard.seconds / 60:.1f} minutes (seed {seed})",
        "Compared": f"{frames} frames in {len(heard.blocks)} parts, of utterances drawn at random",
        "Took": f"{time.monotonic() - started:.0f} s on {device_name(device)}",
        "With": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }
    return conclude(parts, probes, left_out, count, recipe, teacher.info.name, setting, [*heard.remarks])
