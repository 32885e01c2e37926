"""PR: phones by CTC; LibriSpeech 100 h with a lexicon in SUPERB."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from s3prl_distiller.data.utterance import Utterance

from .core import ctc
from .core.symbols import ARPABET, PLAIN, Symbols
from .core.task import Row, Splits, custom
from .corpora.lexicon import add_phones
from .corpora.librispeech import PUBLISHED, read_librispeech
from .corpora.manifest import manifest_folder, read_manifests
from .heads.ctc import LinearHead
from .metrics.text import distance, edits, rate
from .pictures.edits import draw_edits

FILES = {split: f"{split}.jsonl" for split in ("train", "dev", "test")}


@dataclass
class PrConfig(ctc.CTCConfig):
    lexicon: Any = None
    """pronunciations, a file or a list of files with a word and its phones on each line; null: g2p"""
    project_dim: int = 256


class Task(ctc.CTCTask):
    name = "pr"
    config_class = PrConfig
    key = "phones"
    token_name = "phone"
    metric = "per"
    higher_is_better = False
    units = {"per": "%"}
    published = PUBLISHED

    def __init__(self, config: PrConfig):
        super().__init__(config)
        given = [config.lexicon] if isinstance(config.lexicon, str) else config.lexicon or []
        if not isinstance(given, Sequence) or not all(isinstance(path, str) for path in given):
            raise ValueError(f"task.lexicon is {config.lexicon!r}: it must be a file or a list of files")
        self._lexicon = [Path(path).expanduser() for path in given]
        for path in self._lexicon:
            if not path.is_file():
                raise ValueError(f"task.lexicon: there is no file {path}")

    # Data

    def read(self, root: Path) -> Splits:
        folder = manifest_folder(root, "librispeech_mini", list(FILES.values()))
        splits = read_manifests(folder, FILES, []) if folder else read_librispeech(root)
        everything = [utterance for utterances in splits.values() for utterance in utterances]
        lacking = [utterance for utterance in everything if (utterance.custom or {}).get(self.key) is None]
        if not lacking:
            self.notes.append("phones from the manifest")
            return splits
        if len(lacking) < len(everything):
            raise ValueError(
                f"{lacking[0].id} ({lacking[0].place}) has no {self.key!r}, but others in {root} have: write them for "
                "all, or for none"
            )
        for utterance in everything:
            if not str(custom(utterance, "text") or "").strip():
                raise ValueError(f"{utterance.id} ({utterance.place}) has neither {self.key!r} nor a 'text'")
        self.notes.append(add_phones(everything, self._lexicon))
        return splits

    def tokens(self, utterance: Utterance) -> list[str]:
        phones = custom(utterance, self.key)
        tokens = phones.split() if isinstance(phones, str) else phones
        if not isinstance(tokens, list) or not tokens or not all(isinstance(p, str) and p.strip() for p in tokens):
            raise ValueError(
                f"{utterance.id} ({utterance.place}): {self.key!r} is {phones!r}: write phones with spaces between them"
            )
        return tokens

    def classes(self, train: Sequence[Utterance]) -> Symbols:
        """SUPERB's 74 classes where they hold all that is in train, else those in train."""
        phones = {phone for utterance in train for phone in self.tokens(utterance)}
        return Symbols.make(PLAIN, ARPABET if phones <= set(ARPABET) else sorted(phones))

    # Learning and judging

    def build_head(self, width: int, downsample_rate: int) -> nn.Module:
        return LinearHead(width, len(self.symbols), self.config.project_dim)

    def written(self, token: str) -> str:
        return f"{token} "

    def compare(self, reference: list[str] | None, hypothesis: list[str]) -> dict[str, Any]:
        said = " ".join(hypothesis)
        if reference is None:
            return {"reference": None, "prediction": said}
        errors = {"phone_errors": distance(reference, hypothesis), "phones": len(reference)}
        return {"reference": " ".join(reference), "prediction": said, **errors}

    def score(self, rows: Sequence[Row]) -> dict[str, float]:
        return {"per": rate(rows, "phone_errors", "phones")}

    def figures(self, rows: Sequence[Row], folder: Path) -> Iterable[Path]:
        known = [row for row in rows if row["reference"] is not None]
        pairs = (edits(row["reference"].split(), row["prediction"].split()) for row in known)
        return [draw_edits(pairs, "phones", folder / "errors.png")]
