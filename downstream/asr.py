"""ASR: characters by CTC; LibriSpeech 100 h in SUPERB. Greedy, or beam search with an n-gram language model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from s3prl_distiller.data.utterance import Utterance

from .core import ctc
from .core.beam import BeamSearch, words_of_arpa, words_of_lexicon
from .core.symbols import ENGLISH, FAIRSEQ, Symbols, normalise
from .core.task import Row, Splits
from .corpora.librispeech import PUBLISHED, read_librispeech
from .corpora.manifest import manifest_folder, read_manifests
from .metrics.text import edits, rate, text_errors
from .pictures.edits import draw_edits

FILES = {split: f"{split}.jsonl" for split in ("train", "dev", "test")}


@dataclass
class AsrConfig(ctc.CharacterConfig):
    lm: str | None = None
    """n-gram language model, an ARPA file or KenLM's binary form: beam search in place of greedy decoding"""
    lexicon: str | None = None
    """the words that beam search can find, one a line; null: those of the ARPA file, else of the training text"""
    beam: int = 5
    beam_threshold: float = 25.0
    lm_weight: float = 2.0
    word_score: float = -1.0


class Task(ctc.CharacterTask):
    name = "asr"
    config_class = AsrConfig
    key = "text"
    metric = "wer"
    higher_is_better = False
    units = {"wer": "%", "cer": "%"}
    published = PUBLISHED

    def __init__(self, config: AsrConfig):
        super().__init__(config)
        self.words: list[str] = []
        self._beam: BeamSearch | None = None
        for key in ("lm", "lexicon"):
            if (path := getattr(config, key)) and not Path(path).expanduser().is_file():
                raise ValueError(f"task.{key}: there is no file {path}")
        if config.beam < 1:
            raise ValueError(f"task.beam is {config.beam}: it must be at least 1")

    # Data

    def read(self, root: Path) -> Splits:
        folder = manifest_folder(root, "librispeech_mini", list(FILES.values()))
        return read_manifests(folder, FILES, [self.key]) if folder else read_librispeech(root)

    def tokens(self, utterance: Utterance) -> list[str]:
        # A space ends the last word too, as in s3prl.
        return [*self.text(utterance), " "]

    def classes(self, train: Sequence[Utterance]) -> Symbols:
        self.words = sorted({word for utterance in train for word in self.text(utterance).split()})
        return Symbols.make(FAIRSEQ, self.letters([self.tokens(utterance) for utterance in train], ENGLISH))

    # Judging

    def build_head(self, width: int, downsample_rate: int) -> nn.Module:
        if self.config.lm and self._beam is None:  # before training, so that what cannot work stops early
            self._beam = self._beam_search(Path(self.config.lm).expanduser())
        return super().build_head(width, downsample_rate)

    def _beam_search(self, lm: Path) -> BeamSearch:
        c = self.config
        if c.lexicon:
            words, source = words_of_lexicon(Path(c.lexicon).expanduser()), c.lexicon
        elif known := words_of_arpa(lm):
            words, source = known, f"the language model, {len(known)}"
        else:
            words, source = self.words, f"the training text, {len(self.words)}"
        self.notes.append(f"beam {c.beam}, {lm.name}, weight {c.lm_weight}, word score {c.word_score}; words: {source}")
        return BeamSearch(
            self.symbols,
            lm,
            words,
            lambda text: normalise(text, c.alphabet),
            c.beam,
            c.beam_threshold,
            c.lm_weight,
            c.word_score,
        )

    def hypotheses(self, log_probs: Tensor, lengths: Tensor) -> list[list[str]]:
        if self._beam is None:
            return super().hypotheses(log_probs, lengths)
        return [list(text) for text in self._beam(log_probs, lengths)]

    def compare(self, reference: list[str] | None, hypothesis: list[str]) -> dict[str, Any]:
        said = " ".join("".join(hypothesis).split())
        if reference is None:
            return {"reference": None, "prediction": said}
        text = "".join(reference).strip()
        return {"reference": text, "prediction": said, **text_errors(text, said)}

    def score(self, rows: Sequence[Row]) -> dict[str, float]:
        return {"wer": rate(rows, "word_errors", "words"), "cer": rate(rows, "char_errors", "chars")}

    def figures(self, rows: Sequence[Row], folder: Path) -> Iterable[Path]:
        """The picture of errors, and the texts as sclite reads them: a line for each utterance, its id in brackets."""
        known = [row for row in rows if row["reference"] is not None]
        for key, name in (("reference", "references.trn"), ("prediction", "hypotheses.trn")):
            text = "".join(f"{row[key]} ({row['id']})\n" for row in known)
            (folder / name).write_text(text, encoding="utf-8")
        pairs = (edits(row["reference"], row["prediction"]) for row in known)
        return [draw_edits(pairs, "characters", folder / "errors.png")]

    # Keeping

    def state(self) -> dict[str, Any]:
        return {**super().state(), "words": self.words}

    def load_state(self, state: Mapping[str, Any]) -> None:
        super().load_state(state)
        self.words = list(state["words"])
