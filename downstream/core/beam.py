"""Beam search over a CTC head's output with an n-gram language model of words (torchaudio's decoder with KenLM)."""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from torch import Tensor

from .symbols import Symbols

INSTALL = "task.lm needs the package flashlight-text: pip install 's3prl-distiller[lm]'"


class BeamSearch:
    """Finds the words whose probability by head and language model together is highest, among those of a lexicon.

    Args:
        symbols: classes of the head; the space ends a word.
        lm: an ARPA file, or KenLM's binary form of one.
        words: as the language model has them.
        normalise: turns a word of the language model into characters of the head.
        beam: hypotheses that are kept at each frame.
        threshold: those that score lower than the best by more are dropped.
        lm_weight: what a word's log10-probability in the language model is multiplied by.
        word_score: added for each word.

    Raises:
        ValueError: the package is not installed, the language model cannot be read, or no word can be spelled.
    """

    def __init__(
        self,
        symbols: Symbols,
        lm: Path,
        words: Iterable[str],
        normalise: Callable[[str], str],
        beam: int,
        threshold: float,
        lm_weight: float,
        word_score: float,
    ):
        try:
            from torchaudio.models.decoder import ctc_decoder
        except (ImportError, RuntimeError) as error:
            raise ValueError(INSTALL) from error
        if not lm.is_file():
            raise ValueError(f"task.lm: there is no file {lm}")
        self._normalise = normalise
        # Classes go by number here: as themselves a space or a bar would break the decoder's file format.
        place = {name: str(index) for index, name in enumerate(symbols.names)}
        spelled = {word: [place.get(letter) for letter in normalise(word)] for word in words}
        lines = [f"{word}\t{' '.join(map(str, s))} {place[' ']}" for word, s in spelled.items() if s and None not in s]
        if not lines:
            raise ValueError(f"no word of the lexicon of {lm} can be written in the alphabet of the head")
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".lexicon") as file:
            file.write("\n".join(lines) + "\n")
            file.flush()
            try:
                self._decoder = ctc_decoder(
                    lexicon=file.name,
                    tokens=[str(index) for index in range(len(symbols))],
                    lm=str(lm),
                    beam_size=beam,
                    beam_threshold=threshold,
                    lm_weight=lm_weight,
                    word_score=word_score,
                    blank_token=str(symbols.blank),
                    sil_token=place[" "],
                )
            except RuntimeError as error:
                reason = str(error).splitlines()[-1]  # before it, where in KenLM that was
                raise ValueError(f"task.lm: {lm} cannot be read as an ARPA file or KenLM binary: {reason}") from error

    def __call__(self, log_probs: Tensor, lengths: Tensor) -> list[str]:
        """The text of each utterance.

        Args:
            log_probs: (B, T, C) in float32.
            lengths: (B,) frames of each, on the CPU.
        """
        found = self._decoder(log_probs.cpu().contiguous(), lengths)
        return [self._normalise(" ".join(best[0].words)) if best else "" for best in found]


def words_of_lexicon(path: Path) -> list[str]:
    """First column of a lexicon file: ``WORD`` or ``WORD W O R D |`` on each line.

    Raises:
        ValueError: there is none, or it is empty.
    """
    if not path.is_file():
        raise ValueError(f"task.lexicon: there is no file {path}")
    words = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not words:
        raise ValueError(f"task.lexicon: {path} is empty")
    return list(dict.fromkeys(words))


def words_of_arpa(path: Path) -> list[str] | None:
    """The words of an ARPA file (or a gzipped one); None where it is no such file (KenLM's binary form)."""
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    words: list[str] = []
    inside = False
    with gzip.open(path, "rb") if zipped else path.open("rb") as lines:
        if lines.readline(64).strip() != b"\\data\\":
            return None
        for line in lines:
            if line.startswith(b"\\"):
                if inside:
                    break
                inside = line.strip() == b"\\1-grams:"
            elif inside and line.strip():
                words.append(line.split()[1].decode("utf-8", "replace"))
    return [word for word in words if word not in ("<s>", "</s>", "<unk>")]
