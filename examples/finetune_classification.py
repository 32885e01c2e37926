"""Fine-tune an exported student to tell classes of utterances (words, intents, speakers), and judge it.

    s3prl-distiller export states-STEP.ckpt --to hf -o student
    python examples/finetune_classification.py --student student --train train.jsonl --dev dev.jsonl --test test.jsonl \
        --output words

A manifest is JSON lines with the keys ``audio`` (path from the manifest's folder) and ``label``. What it leaves in
``--output`` is a folder that ``transformers.pipeline("audio-classification")`` loads. See docs/finetune.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)

from s3prl_distiller import audio
from s3prl_distiller.data.sources import read_utterances

MINUTE = 60 * audio.SAMPLE_RATE


def main() -> None:
    args = parser().parse_args()
    try:
        check_student(args.student)
        splits = {name: read_manifest(getattr(args, name)) for name in ("train", "dev", "test")}
        labels = sorted({label for _, label in splits["train"]})
        check_labels(splits, labels)
    except ValueError as error:
        sys.exit(f"error: {error}")
    set_seed(args.seed)
    torch.set_flush_denormal(True)  # gradients fade to subnormal numbers, with which a CPU takes twice as long

    extractor = AutoFeatureExtractor.from_pretrained(args.student)
    config = AutoConfig.from_pretrained(
        args.student,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    # HubertForSequenceClassification where the student is a HuBERT: mean over the clip's own frames, two linear layers.
    model = AutoModelForAudioClassification.from_pretrained(args.student, config=config)
    if not args.train_front_end:
        model.freeze_feature_encoder()

    clips = {name: Clips(rows, labels, extractor) for name, rows in splits.items()}
    trainer = Trainer(
        model=model,
        args=training_arguments(args),
        data_collator=collate,
        train_dataset=clips["train"],
        eval_dataset=clips["dev"],
        compute_metrics=accuracy,
    )
    before = trainer.evaluate()
    trainer.train()
    test = trainer.evaluate(clips["test"], metric_key_prefix="test")  # pyright: ignore[reportArgumentType]
    model.save_pretrained(args.output)
    extractor.save_pretrained(args.output)
    figures = {"before": before, "log": trainer.state.log_history, "test": test}
    (args.output / "figures.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    print(f"test: accuracy {test['test_accuracy']:.1f} % ({len(clips['test'])} clips, {len(labels)} classes)")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description="Fine-tune an exported student to tell classes of utterances.")
    add = p.add_argument
    add("--student", type=Path, required=True, metavar="FOLDER", help="made by: s3prl-distiller export CKPT --to hf")
    for name in ("train", "dev", "test"):
        add(f"--{name}", type=Path, required=True, metavar="JSONL", help="manifest with the keys audio and label")
    add("--output", type=Path, required=True, metavar="DIR", help="for the fine-tuned model and its figures")
    add("--steps", type=int, default=500, help="updates (default 500)")
    add("--batch-size", type=int, default=16, help="clips an update (default 16)")
    add("--lr", type=float, default=2e-4, help="highest learning rate (default 2e-4)")
    add("--eval-steps", type=int, default=100, help="updates between evaluations on dev (default 100)")
    add("--workers", type=int, default=0, help="processes that decode audio (default 0)")
    add("--seed", type=int, default=0)
    add("--train-front-end", action="store_true", help="train the convolutions too (default: they stay as they are)")
    return p


def check_student(folder: Path) -> None:
    """Raises ValueError where the folder is not what the export to ``hf`` writes."""
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder} is not an exported student, it has no {name}: s3prl-distiller export CKPT --to hf -o DIR"
            )


def read_manifest(path: Path) -> list[tuple[str, str]]:
    """Path and label of each line.

    Raises:
        ValueError: no manifest, an empty one, a line without ``label``, or audio that cannot be read.
    """
    clips = []
    for utterance in read_utterances(str(path), [])[0]:
        values = utterance.custom or {}
        if values.get("label") is None:
            raise ValueError(f"{path}: {utterance.id} has no 'label'; it has {', '.join(values) or 'no other keys'}")
        audio.probe(utterance.place)
        clips.append((utterance.place, str(values["label"])))
    return clips


def check_labels(splits: dict[str, list[tuple[str, str]]], labels: Sequence[str]) -> None:
    """Raises ValueError where there is nothing to tell apart, or dev or test has a label that train has not."""
    if len(labels) < 2:
        raise ValueError(f"train has one label only, {labels[0]!r}: there is nothing to tell apart")
    for name in ("dev", "test"):
        if unknown := sorted({label for _, label in splits[name]} - set(labels)):
            raise ValueError(f"{name} has labels that train has not: {', '.join(unknown[:5])}")


class Clips(torch.utils.data.Dataset):
    """Decoded when asked for: ``input_values`` (samples,), at most a minute of them, and ``labels`` (a number)."""

    def __init__(self, clips: Sequence[tuple[str, str]], labels: Sequence[str], extractor: Any):
        self.clips, self.labels, self.extractor = clips, labels, extractor

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, label = self.clips[index]
        wave = audio.load(path)[:MINUTE].numpy()
        values = self.extractor(wave, sampling_rate=audio.SAMPLE_RATE, return_tensors="pt").input_values[0]
        return {"input_values": values, "labels": self.labels.index(label)}


def collate(items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pad to the longest with zeros; the mask keeps the padding out of the mean over frames."""
    lengths = torch.tensor([len(item["input_values"]) for item in items])
    return {
        "input_values": pad_sequence([item["input_values"] for item in items], batch_first=True),
        "attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long(),
        "labels": torch.tensor([item["labels"] for item in items]),
    }


def training_arguments(args: argparse.Namespace) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(args.output),
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size,
        per_device_eval_batch_size=1,  # as the pipeline hears them: the first layer may normalise over padding
        learning_rate=args.lr,
        warmup_steps=args.steps // 10,
        weight_decay=0.0,
        eval_strategy="steps",
        eval_steps=args.eval_steps,
        logging_steps=max(1, args.eval_steps // 4),
        save_strategy="no",
        bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        dataloader_num_workers=args.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        report_to="none",
        seed=args.seed,
    )


def accuracy(prediction: Any) -> dict[str, float]:
    """Per cent of clips whose likeliest class is theirs."""
    return {"accuracy": 100 * float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


if __name__ == "__main__":
    main()
