"""QUESST 2014 (Anguera et al., MediaEval 2014) in its official layout: the non-native English part that SUPERB uses."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from s3prl_distiller.data.utterance import Utterance

from ..metrics.mtwv import beta

SOURCE = "https://speech.fit.vutbr.cz/files/quesst14Database.tgz"
TREE = """\
  quesst14Database/Audio/quesst14_00001.wav
  quesst14Database/dev_queries/quesst14_dev_0001.wav
  quesst14Database/eval_queries/quesst14_eval_0001.wav
  quesst14Database/scoring/language_key_utterances.lst (and _dev.lst, _eval.lst)
  quesst14Database/scoring/groundtruth_quesst14_dev/quesst14_dev.rttm (and _eval)"""
LANGUAGE = "nnenglish"

_PARTS = {"dev": "dev", "test": "eval"}


@dataclass
class Scoring:
    """What the corpus's own scorer counts beside the trials of one language.

    Attributes:
        queries: by split, how many queries some document holds, over all languages.
        documents: of all languages.
        beta: by the costs in ``score-TWV-Cnxe.sh``; None without that file.
    """

    queries: dict[str, int] = field(default_factory=dict)
    documents: int = 0
    beta: float | None = None

    def of(self, split: str) -> dict[str, float]:
        """By name, what a split's figures need of it."""
        if split not in self.queries:
            return {}
        counts: dict[str, float] = {"corpus_queries": self.queries[split], "corpus_documents": self.documents}
        return counts if self.beta is None else {**counts, "beta": self.beta}


def find_quesst14(root: Path) -> Path | None:
    """``root``, or the folder ``quesst14Database`` in it, if it has the corpus's lists."""
    for place in (root, root / "quesst14Database"):
        if (place / "scoring").is_dir() and any((place / "scoring").glob("language_key_*.lst")):
            return place
    return None


def read_quesst14(root: Path) -> tuple[dict[str, tuple[list[Utterance], list[Utterance]]], Scoring]:
    """Queries and documents by split ("dev", "test"), and what its scorer counts.

    ``custom`` of a query is ``{"relevant": ids of the documents that hold it}``.

    Raises:
        ValueError: a list or a ground truth is missing, or a line of one cannot be read; the file is named.
    """
    scoring = root / "scoring"
    documents = _listed(root, "utterances")
    everything = _read_list(scoring / "language_key_utterances.lst")
    counted = Scoring(documents=len(everything), beta=_beta(scoring / "score-TWV-Cnxe.sh"))
    splits = {}
    for split, part in _PARTS.items():
        truth = _ground_truth(scoring / f"groundtruth_quesst14_{part}", part)
        counted.queries[split] = len(truth)
        queries = _listed(root, part)
        for query in queries:
            query.custom = {"relevant": sorted(truth.get(query.id, ()))}
        splits[split] = (queries, documents)
    return splits, counted


def _listed(root: Path, part: str) -> list[Utterance]:
    """The files of one list that are in non-native English."""
    path = root / "scoring" / f"language_key_{part}.lst"
    utterances = []
    for file, language in _read_list(path):
        if language == LANGUAGE:
            audio = root / Path(*Path(file).parts[1:])  # the list starts at the folder above the corpus
            utterances.append(Utterance(audio.stem, audio.stem, str(audio)))
    if not utterances:
        raise ValueError(f"{path} has no file in {LANGUAGE}")
    return utterances


def _read_list(path: Path) -> list[tuple[str, str]]:
    pairs = []
    for number, line in enumerate(_lines(path), 1):
        fields = line.split()
        if len(fields) == 2 and "/" in fields[0]:
            pairs.append((fields[0], fields[1]))
        elif fields:
            raise ValueError(f"{path}, line {number}: {line.strip()!r}, where a path and a language are expected")
    return pairs


def _ground_truth(folder: Path, part: str) -> dict[str, set[str]]:
    """By query, the documents that hold it."""
    path = next(iter(sorted(folder.glob("*.rttm"))), None)
    if path is None:
        raise ValueError(f"{folder} has no .rttm, which says what documents hold what queries. Expected:\n{TREE}")
    found: dict[str, set[str]] = {}
    pattern = re.compile(rf"LEXEME\s+(\S+)\s.*?\b(quesst14_{part}_\d+)\b")
    for number, line in enumerate(_lines(path), 1):
        if line.startswith("LEXEME"):
            match = pattern.match(line)
            if match is None:
                raise ValueError(f"{path}, line {number}: {line.strip()!r} names no document and query of {part}")
            found.setdefault(match[2], set()).add(match[1])
    return found


def _beta(path: Path) -> float | None:
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8", errors="replace")
    found = dict(re.findall(r"^\s*(P_target|C_miss|C_fa)=([0-9.]+)", text, re.MULTILINE))
    if len(found) < 3:
        raise ValueError(f"{path} sets no P_target, C_miss and C_fa: set task.beta, and take the file away")
    return beta(float(found["P_target"]), float(found["C_miss"]), float(found["C_fa"]))


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise ValueError(f"{path} is missing: get the whole of {SOURCE}. Expected:\n{TREE}")
    return path.read_text(encoding="utf-8", errors="replace").splitlines()
