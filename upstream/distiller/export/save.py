"""Write an export, prove it, and only then put it where it was asked for."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from s3prl_distiller import checkpoint

from .. import card
from ..student import Student
from . import parity, report
from .forms import FORMS, WRITERS, Options, check
from .graph import without_heads
from .runners import FILES, open_runner


def export(student: Student, form: str, folder: Path, speech: Sequence[Tensor], options: Options) -> str:
    """Export a student into a folder, with the parity report.

    Args:
        student: what is exported.
        form: a key of :data:`FORMS`.
        folder: for the files. Others that it holds stay; those of the same names are replaced.
        speech: waveforms (samples,) at 16 kHz that the export is checked with.
        options: see there.

    Returns:
        The report.

    Raises:
        ValueError: the student cannot be had in that form, or the export does not hold its tolerance: then nothing is
            written.
    """
    check(student, form, options)
    model = student.model.eval() if options.predict else without_heads(student.model)
    student = replace(student, model=model)
    tolerance = parity.INT8 if form == "onnx-int8" else parity.FLOAT32
    with beside(folder) as temporary:
        notes = WRITERS[form](student, temporary, options)
        padding = report.lets_padding_in(model.config) if form in ("hf", "s3prl") else None
        notes += [padding] if padding else []
        checks = parity.compare(model, form, open_runner(form, temporary), speech, judge_padding=not padding)
        if (problem := report.broken(checks, tolerance)) is not None:
            raise ValueError(
                f"the export to {form} does not give the student's numbers, and was not written: {problem}"
            )
        costs = parity.costs(student.path, model, form, temporary) if options.costs else None
        text = report.page(f"{student.path.name} as {FORMS[form]}", checks, tolerance, costs, notes)
        source = {"source": student.path.name, "step": student.step}
        checkpoint.save_json(report.figures(form, checks, tolerance, costs, source), temporary / report.FIGURES)
        checkpoint.save_text(text, temporary / report.PAGE)
        if not (folder / card.FILE).exists():
            checkpoint.save_text(card.for_export(student, form, FILES[form]), temporary / card.FILE)
    return text


def check_folder(folder: Path, force: bool) -> None:
    """Raises ValueError where something lies at the target, unless it is to be written over."""
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise ValueError(f"{folder} is not empty: choose another folder (-o), or write over its files with --force")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give a folder (-o)")


@contextmanager
def beside(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files move to ``folder`` once the block has ended well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        yield temporary
        folder.mkdir(exist_ok=True)
        for file in sorted(temporary.iterdir()):
            file.chmod(0o644)
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
