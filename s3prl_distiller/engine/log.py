"""What a run leaves to be read: a line of JSON for each log step, TensorBoard, and a progress bar."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

JSONL = "log.jsonl"


class RunLog:
    """Logs of one run.

    Args:
        folder: where ``log.jsonl`` and TensorBoard's files go.
        step: the step that the run starts from; lines of later steps, left by a run that was killed, are dropped.
        total_steps: of the run.
        quiet: write nothing, as all processes but one do.
    """

    def __init__(self, folder: Path, step: int, total_steps: int, quiet: bool = False):
        self.bar = tqdm(total=total_steps, disable=True)
        self._file = self._board = None
        if quiet:
            return
        path = folder / JSONL
        kept = [line for line in read_log(path) if line["step"] <= step] if path.is_file() and step > 0 else []
        path.write_text("".join(_to_json(line) for line in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder), purge_step=step + 1)
        # A file that collects stderr needs no frame a tenth of a second.
        interval = 0.1 if sys.stderr.isatty() else 30
        self.bar = tqdm(
            total=total_steps, initial=step, desc="training", unit="step", dynamic_ncols=True, mininterval=interval
        )

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Log values of a step under ``train`` or ``valid``."""
        if self._file is None or self._board is None:
            return
        line = {"kind": kind, "step": step, **{name: float(f"{value:.7g}") for name, value in values.items()}}
        self._file.write(_to_json(line))
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self.bar.close()
        if self._file is not None and self._board is not None:
            self._file.close()
            self._board.close()


def _to_json(line: dict) -> str:
    """JSON has no NaN: null stands for it."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in line.items()
    }
    return json.dumps(finite) + "\n"


def read_log(path: Path) -> list[dict]:
    """The lines of ``log.jsonl``; a last one that was cut off by a crash is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append({name: math.nan if value is None else value for name, value in json.loads(text).items()})
        except json.JSONDecodeError:
            break
    return lines
