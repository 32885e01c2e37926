"""What the three CTC tasks share: targets, loss, greedy decoding; each adds its classes, its head and its figures."""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from s3prl_distiller.audio import SAMPLE_RATE
from s3prl_distiller.data.utterance import Utterance

from ..heads.ctc import RecurrentHead, ctc_loss
from ..heads.specaugment import SpecAugmentConfig, spec_augment
from .symbols import ALPHABETS, UNKNOWN, Symbols, normalise
from .task import Splits, Task, TaskConfig, custom


@dataclass
class CTCConfig(TaskConfig):
    """Keys of every CTC task."""

    specaug: SpecAugmentConfig = field(default_factory=SpecAugmentConfig.none)
    """SpecAugment on the features in training"""


@dataclass
class CharacterConfig(CTCConfig):
    """Keys of the tasks that recognise characters; defaults are SUPERB's."""

    specaug: SpecAugmentConfig = field(default_factory=SpecAugmentConfig)
    alphabet: str = "english"
    """"english": A to Z, apostrophe and space, text in upper case; "train": the characters of the training text"""
    project_dim: int = 1024
    hidden: int = 1024
    """units of each LSTM in each direction"""
    layers: int = 2
    """how many LSTMs"""
    dropout: float = 0.2


class CTCTask(Task):
    """Base of tasks whose target is a sequence of tokens, shorter than the frames.

    Attributes:
        symbols: the classes.
    """

    crops = False
    key: ClassVar[str]
    """Where an utterance's reference is: a key of a manifest's line."""
    token_name: ClassVar[str]
    """What a token is called in messages."""

    def __init__(self, config: Any):
        super().__init__(config)
        self.symbols: Symbols
        config.specaug.check()

    @abstractmethod
    def tokens(self, utterance: Utterance) -> list[str]:
        """The reference as it is learnt, without the end.

        Raises:
            ValueError: there is none, or it is malformed; utterance and file are named.
        """

    @abstractmethod
    def classes(self, train: Sequence[Utterance]) -> Symbols:
        """Classes from the training data."""

    @abstractmethod
    def compare(self, reference: list[str] | None, hypothesis: list[str]) -> dict[str, Any]:
        """A row's "reference" and "prediction", and counts of errors if there is a reference."""

    def unseen(self, split: str, utterance: Utterance, tokens: Sequence[str]) -> bool:
        """Whether an utterance of dev or test with tokens that train does not have is kept: they count as errors."""
        return True

    # Data

    def prepare(self, splits: Splits, downsample_rate: int) -> None:
        if "train" in splits:
            self.symbols = self.classes(splits["train"])
        known = set(self.symbols.own)
        for split, utterances in splits.items():
            self.splits[split] = kept = []
            missed: Counter[str] = Counter()
            for utterance in utterances:
                tokens = self.tokens(utterance)
                unknown = [token for token in tokens if token not in known]
                if split == "train":
                    if unknown:
                        raise ValueError(self._outside(utterance, unknown[0]))
                    assert utterance.duration is not None
                    frames = int(utterance.duration * SAMPLE_RATE) // downsample_rate
                    if (needed := frames_needed(self.symbols.encode(tokens))) > frames:
                        self.leave_out(split, utterance, "label longer than frames", f"{needed} > {frames}")
                        continue
                elif unknown and not self.unseen(split, utterance, unknown):
                    continue
                missed.update(unknown)
                kept.append(utterance)
            if missed:
                most = ", ".join(f"{token!r} {count} times" for token, count in missed.most_common(5))
                self.notes.append(
                    f"{split} has {len(missed)} {self.token_name}s that train does not have, which count as errors: "
                    f"{most}{', ...' if len(missed) > 5 else ''}"
                )

    def _outside(self, utterance: Utterance, token: str) -> str:
        where = f"{utterance.id} ({utterance.place})"
        return f"{where}: {self.token_name} {token!r} of its {self.key!r} is not in the alphabet"

    def target(self, utterance: Utterance) -> Tensor:
        """(U,) classes, the end last."""
        return torch.tensor(self.symbols.encode(self.tokens(utterance)))

    # Learning

    def augment(self, features: Tensor, lengths: Tensor) -> Tensor:
        if not self.config.specaug.active:
            return features
        return spec_augment(features.float(), lengths, self.config.specaug)

    def loss(
        self, head: nn.Module, features: Tensor, lengths: Tensor, targets: Sequence[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """CTC per token of each target, averaged over targets, as torch's "mean"; zero where a target does not fit."""
        # In float32, whatever precision the head ran in.
        log_probs = head(features, lengths).float().log_softmax(-1)
        loss = ctc_loss(log_probs, lengths, targets, self.symbols.blank)
        too_long = sum(
            frames_needed(target.tolist()) > length for target, length in zip(targets, lengths.tolist(), strict=True)
        )
        return loss, {"too_long": torch.tensor(float(too_long), device=loss.device)} if too_long else {}

    # Judging

    def predict(
        self, head: nn.Module, features: Tensor, lengths: Tensor, utterances: Sequence[Utterance]
    ) -> list[dict[str, Any]]:
        return self.interpret(self.answer(head, features, lengths), utterances)

    def answer(self, head: nn.Module, features: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """ "frames" (B,), and "logits" (B, T, C)."""
        return {"frames": lengths, "logits": head(features, lengths).float()}

    def interpret(self, answer: Mapping[str, Tensor], utterances: Sequence[Utterance]) -> list[dict[str, Any]]:
        lengths, log_probs = answer["frames"], answer["logits"].log_softmax(-1)
        hypotheses = self.hypotheses(log_probs, lengths)
        rows = []
        for utterance, hypothesis, sure in zip(
            utterances, hypotheses, self._confidence(log_probs, lengths), strict=True
        ):
            known = (utterance.custom or {}).get(self.key)
            compared = self.compare(self.tokens(utterance) if known else None, hypothesis)
            rows.append({"id": utterance.id, **compared, "confidence": sure})
        return rows

    def hypotheses(self, log_probs: Tensor, lengths: Tensor) -> list[list[str]]:
        """Tokens of each utterance: greedy, the best class of each frame.

        Args:
            log_probs: (B, T, C).
            lengths: (B,) frames of each, on the CPU.
        """
        paths = log_probs.argmax(-1).cpu()
        return [
            self.symbols.decode(path[:length].unique_consecutive().tolist())
            for path, length in zip(paths, lengths.tolist(), strict=True)
        ]

    def _confidence(self, log_probs: Tensor, lengths: Tensor) -> list[float | None]:
        """Geometric mean of the probabilities of the frames whose best class is no blank; None without such a frame."""
        best, paths = log_probs.max(-1)
        said = (paths != self.symbols.blank) & (torch.arange(best.shape[1]) < lengths[:, None]).to(best.device)
        sums, counts = (best * said).sum(1).tolist(), said.sum(1).tolist()
        return [round(math.exp(total / count), 4) if count else None for total, count in zip(sums, counts, strict=True)]

    def say(self, row: Mapping[str, Any]) -> str:
        sure = "" if row["confidence"] is None else f" (confidence {row['confidence']:.2f})"
        return f"{row['prediction'] or 'nothing recognised'}{sure}"

    def legend(self) -> dict[str, str]:
        """``symbols``: the classes; ``blank`` and ``end``: indices of two of them; ``writes``: what each class writes.

        The best class of each frame, of equal ones in a row the first, is written; then spaces are brought to one
        between words, and none around.
        """
        spoken = map(self.written, (UNKNOWN, *self.symbols.own))
        writes = [*("" for _ in range(self.symbols.special - 1)), *spoken]
        return {
            "symbols": json.dumps(self.symbols.names, ensure_ascii=False),
            "writes": json.dumps(writes, ensure_ascii=False),
            "blank": str(self.symbols.blank),
            "end": str(self.symbols.end),
        }

    def written(self, token: str) -> str:
        """A token with the spaces that are to be around it."""
        return token

    # Keeping

    def state(self) -> dict[str, Any]:
        return {"symbols": self.symbols.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.symbols = Symbols.from_state(state["symbols"])


class CharacterTask(CTCTask):
    """Base of tasks that recognise characters."""

    token_name = "character"

    def __init__(self, config: Any):
        super().__init__(config)
        if config.alphabet not in ALPHABETS:
            raise ValueError(f"task.alphabet is {config.alphabet!r}: it is one of {', '.join(ALPHABETS)}")

    def letters(self, train: Iterable[Sequence[str]], english: str) -> list[str]:
        """The alphabet, the space first.

        Args:
            train: tokens of the training data; those of one character count.
            english: the alphabet where it is English.
        """
        if self.config.alphabet == "english":
            return list(english)
        return [" ", *sorted({token for tokens in train for token in tokens if len(token) == 1} - {" "})]

    def text(self, utterance: Utterance) -> str:
        """The reference, normalised.

        Raises:
            ValueError: it is missing or empty.
        """
        text = custom(utterance, self.key)
        if not isinstance(text, str):
            raise ValueError(f"{utterance.id} ({utterance.place}): {self.key!r} is {text!r}, not a text")
        text = normalise(text, self.config.alphabet)
        if not text:
            raise ValueError(
                f"{utterance.id} ({utterance.place}) has an empty {self.key!r}: write what is said, or remove the line"
            )
        return text

    def _outside(self, utterance: Utterance, token: str) -> str:
        return (
            f"{super()._outside(utterance, token)} of task.alphabet={self.config.alphabet}: correct the text, or take "
            "the alphabet from the training text (task.alphabet=train)"
        )

    def build_head(self, width: int, downsample_rate: int) -> nn.Module:
        c = self.config
        return RecurrentHead(width, len(self.symbols), c.project_dim, c.hidden, c.layers, c.dropout)


def frames_needed(target: Sequence[int]) -> int:
    """The frames that CTC needs at least: one for each token, and a blank between two equal ones."""
    return len(target) + sum(one == other for one, other in zip(target, target[1:], strict=False))
