"""``s3prl-distiller manifest``: a list of recordings, without their long silences if that is wanted."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from s3prl_distiller import audio, checkpoint
from s3prl_distiller.data.silence import loud_stretches
from s3prl_distiller.data.sources import audio_files

from .common import run_command

_SHORTEST = 0.1  # seconds of sound; what is shorter is a click


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="s3prl-distiller manifest",
        description="List recordings for --data, one JSON line for each, or for each stretch between long silences. "
        "Nothing is copied: a line has the file, and where in it the stretch is.",
    )
    add = p.add_argument
    add("audio", metavar="PATH", nargs="+", type=Path, help="files, and folders at any depth")
    add("-o", "--output", metavar="NAME.jsonl", type=Path, required=True)
    add("--language", metavar="CODE", help="of the speech, such as pt-BR: goes with the student")
    add("--trim-silence", metavar="SECONDS", type=float, help="leave out silences that are longer")
    add("--below", metavar="DB", type=float, default=30.0, help="silence is so far under a recording's loudness (30)")
    add("--margin", metavar="SECONDS", type=float, default=0.1, help="silence kept around speech (0.1)")
    add("--force", action="store_true", help="write over what is there")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0; 2 after a mistake in what was asked for."""
    args = parser().parse_args(arguments)
    return run_command(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    output: Path = args.output
    if output.suffix != ".jsonl":
        raise ValueError(f"{output} is to be a manifest: give it a name that ends in .jsonl")
    if output.exists() and not args.force:
        raise ValueError(f"{output} is there already: choose another name (-o), or write over it with --force")
    for name in ("trim_silence", "below", "margin"):
        value = getattr(args, name)
        if value is not None and value < 0:
            raise ValueError(f"--{name.replace('_', '-')} is {value}: it must be 0 or more")
    files = audio_files(args.audio)
    lines, refused = [], []
    heard = kept = 0.0
    for path in tqdm(files, desc="listening", unit="file", disable=not sys.stderr.isatty()):
        try:
            rows, seconds = _rows(path, args)
        except (audio.AudioError, OSError) as error:
            refused.append(str(error))
            continue
        lines += rows
        heard += seconds
        kept += sum(row["duration"] for row in rows)
    if not lines:
        raise ValueError(f"nothing can be listed: {refused[0] if refused else 'every recording is silent'}")
    output.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _placed(lines, output)), output)
    for words in refused[:5]:
        sys.stderr.write(f"left out: {words}\n")
    sys.stdout.write(_summary(args, len(files), len(refused), len(lines), heard, kept))
    return 0


def _rows(path: Path, args: argparse.Namespace) -> tuple[list[dict[str, Any]], float]:
    """Lines of a recording, and how long it is."""
    more = {"lang": args.language} if args.language else {}
    if args.trim_silence is None:
        seconds = round(audio.probe(path).duration, 4)
        return [{"id": path.stem, "audio": path, "duration": seconds, **more}], seconds
    stretches, seconds = loud_stretches(audio.stream(path), args.below, args.trim_silence, args.margin)
    chosen = [one for one in stretches if one.end - one.start >= _SHORTEST]
    rows = [
        {
            "id": f"{path.stem}@{one.start:.2f}",
            "audio": path,
            "start": round(one.start, 2),
            "duration": round(one.end - one.start, 2),
            **more,
        }
        for one in chosen
    ]
    return rows, seconds


def _placed(rows: list[dict[str, Any]], output: Path) -> Iterator[dict[str, Any]]:
    """With paths from the manifest's folder, where the audio lies below it."""
    root = output.parent.resolve()
    for row in rows:
        path = Path(row["audio"]).resolve()
        yield {**row, "audio": os.fspath(path.relative_to(root) if path.is_relative_to(root) else path)}


def _summary(args: argparse.Namespace, files: int, refused: int, lines: int, heard: float, kept: float) -> str:
    words = f"{args.output}: {lines:,} lines, {kept / 3600:.2f} hours, of {files - refused:,} recordings"
    if args.trim_silence is not None and heard:
        words += (
            f"; silences over {args.trim_silence:g} s took {100 * (1 - kept / heard):.1f} % of {heard / 3600:.2f} hours"
        )
    return f"{words}{f'; {refused} cannot be read' if refused else ''}\n"
