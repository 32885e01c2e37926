"""Libri2Mix as SUPERB prepares it for diarization: a Kaldi data folder for each split."""

from __future__ import annotations

from pathlib import Path

from s3prl_distiller.data.utterance import Utterance

SPLITS = ("train", "dev", "test")

HOW = """Libri2Mix as SUPERB has it is made by https://github.com/s3prl/LibriMix:
    bash generate_librimix_sd.sh CORPORA
    python scripts/prepare_diarization.py --target_dir DATA --source_dir CORPORA/Libri2Mix/wav16k/max/metadata
and DATA is then:
    train/wav.scp   RECORDING PATH
    train/rttm      SPEAKER RECORDING 1 START DURATION <NA> <NA> NAME <NA>
    train/reco2dur  RECORDING SECONDS
    dev/ and test/ the same"""


def is_kaldi(root: Path) -> bool:
    """Whether a Kaldi data folder of any split is there."""
    return any((root / split / "wav.scp").is_file() for split in SPLITS)


def read_kaldi(root: Path) -> dict[str, list[Utterance]]:
    """Recordings by split, the path of their RTTM file in ``custom``.

    Raises:
        ValueError: a file of a split is missing, or a line of it is not what it should be.
    """
    wanted = [root / split / name for split in SPLITS for name in ("wav.scp", "rttm")]
    missing = [str(path) for path in wanted if not path.is_file()]
    if missing:
        raise ValueError(f"there is no {' and no '.join(missing)}. {HOW}")
    return {split: _read_split(root / split) for split in SPLITS}


def _read_split(folder: Path) -> list[Utterance]:
    durations = _table(folder / "reco2dur") if (folder / "reco2dur").is_file() else {}
    utterances = []
    for recording, path in _table(folder / "wav.scp").items():
        if path.endswith("|"):
            raise ValueError(
                f"{folder / 'wav.scp'}: {recording} is a command; write its output to a file and name that"
            )
        claimed = durations.get(recording)
        try:
            seconds = None if claimed is None else float(claimed)
        except ValueError as error:
            raise ValueError(
                f"{folder / 'reco2dur'}: {recording} has {claimed!r} where seconds are expected"
            ) from error
        custom = {"rttm": str(folder / "rttm")}
        utterances.append(Utterance(recording, recording, str(folder / path), claimed=seconds, custom=custom))
    return utterances


def _table(path: Path) -> dict[str, str]:
    """A file of lines ``KEY VALUE``."""
    table: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        key, *rest = line.strip().split(None, 1)
        if not rest or key in table:
            what = f"{key} is there twice" if rest else f"{key} has no value"
            raise ValueError(f"{path}, line {number}: {what}")
        table[key] = rest[0]
    return table
