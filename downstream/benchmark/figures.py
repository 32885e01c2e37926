"""The ten tasks as a benchmark sees them: the figures that stand for each, their direction, and SUPERB's order."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One column of the table.

    Attributes:
        name: in ``metrics-test.json``.
        label: for people.
        unit: the unit that tasks give it.
        higher: whether higher is better.
        published: its column in ``published.csv``.
    """

    name: str
    label: str
    unit: str
    higher: bool
    published: str

    @property
    def arrow(self) -> str:
        return "↑" if self.higher else "↓"


@dataclass(frozen=True)
class BenchmarkTask:
    """A task: what it is called, what is trained (``{key=usual}``: a size in section ``task``), and its figures."""

    name: str
    title: str
    head: str
    figures: tuple[Figure, ...]


_MEAN = "Linear {projector_dim=256}, mean over time, Linear; cross-entropy"
_BLSTM = "Linear {project_dim=1024}, {layers=2} BLSTM of {hidden=1024}, Linear; CTC"

TASKS: dict[str, BenchmarkTask] = {
    task.name: task
    for task in (
        BenchmarkTask(
            "pr",
            "Phoneme recognition",
            "Linear {project_dim=256}, Linear; CTC",
            (Figure("per", "PER", "%", False, "pr_per"),),
        ),
        BenchmarkTask("asr", "Speech recognition", _BLSTM, (Figure("wer", "WER", "%", False, "asr_wer"),)),
        BenchmarkTask("ks", "Keyword spotting", _MEAN, (Figure("acc", "accuracy", "%", True, "ks_acc"),)),
        BenchmarkTask(
            "qbe",
            "Query by example",
            "none: subsequence DTW of each layer",
            (Figure("mtwv", "MTWV", "x 100", True, "qbe_mtwv"),),
        ),
        BenchmarkTask("sid", "Speaker identification", _MEAN, (Figure("acc", "accuracy", "%", True, "sid_acc"),)),
        BenchmarkTask(
            "asv",
            "Speaker verification",
            "Linear 512, x-vector; AM-softmax",
            (Figure("eer", "EER", "%", False, "asv_eer"),),
        ),
        BenchmarkTask(
            "sd",
            "Speaker diarization",
            "{rnn_layers=1} LSTM of {hidden_size=512}, Linear; permutation-invariant cross-entropy",
            (Figure("der", "DER", "%", False, "sd_der"),),
        ),
        BenchmarkTask(
            "ic",
            "Intent classification",
            f"{_MEAN} of each slot, summed",
            (Figure("acc", "accuracy", "%", True, "ic_acc"),),
        ),
        BenchmarkTask(
            "sf",
            "Slot filling",
            _BLSTM,
            (Figure("slot_f1", "slot F1", "%", True, "sf_f1"), Figure("slot_cer", "slot CER", "%", False, "sf_cer")),
        ),
        BenchmarkTask("er", "Emotion recognition", _MEAN, (Figure("acc", "accuracy", "%", True, "er_acc"),)),
    )
}
"""By name, in the order of SUPERB's table."""
