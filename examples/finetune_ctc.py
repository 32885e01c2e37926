"""Fine-tune an exported student for speech recognition, and judge it.

    s3prl-distiller export states-STEP.ckpt --to hf -o student
    python examples/finetune_ctc.py --student student --train train.jsonl --dev dev.jsonl --test test.jsonl --output asr

A manifest is JSON lines with the keys ``audio`` (path from the manifest's folder) and ``text``. What it leaves in
``--output`` is a folder that ``transformers.pipeline("automatic-speech-recognition")`` loads. See docs/finetune.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from s3prl_distiller.downstream.metrics.text import rate, text_errors  # pyright: ignore[reportMissingImports]
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForCTC,
    Trainer,
    TrainingArguments,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2Processor,
    set_seed,
)
from transformers.trainer_pt_utils import LengthGroupedSampler

from s3prl_distiller import audio
from s3prl_distiller.data.sources import read_utterances


def main() -> None:
    args = parser().parse_args()
    if args.train_front_end and args.keep_front_end:
        sys.exit("error: --keep-front-end keeps what a frozen front end gives: leave it or --train-front-end out")
    try:
        check_student(args.student)
        splits = {name: read_manifest(getattr(args, name)) for name in ("train", "dev", "test")}
    except ValueError as error:
        sys.exit(f"error: {error}")
    args.output.mkdir(parents=True, exist_ok=True)
    set_seed(args.seed)
    torch.set_flush_denormal(True)  # gradients fade to subnormal numbers, with which a CPU takes twice as long

    processor = build_processor(args.student, [text for _, text, _ in splits["train"]], args.output)
    model = build_model(args.student, processor, args.from_scratch)
    model.accepts_loss_kwargs = False  # else Trainer takes CTC's mean for a sum that is already divided by its batches
    if not args.train_front_end:
        model.freeze_feature_encoder()
    front_end = model.base_model.feature_extractor if args.keep_front_end else None
    clips = {name: Clips(rows, processor, front_end if name != "test" else None) for name, rows in splits.items()}
    if front_end is not None:
        model.base_model.feature_extractor = torch.nn.Identity()  # its outputs are what the clips hold

    trainer = CTCTrainer(
        model=model,
        args=training_arguments(args),
        data_collator=collate,
        train_dataset=clips["train"],
        eval_dataset=clips["dev"],
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
        compute_metrics=lambda prediction: error_rates(prediction, processor),
    )
    before = trainer.evaluate()
    trainer.train()
    if front_end is not None:
        model.base_model.feature_extractor = front_end.to(model.device)
    model.save_pretrained(args.output)
    processor.save_pretrained(args.output)
    processor.feature_extractor.save_pretrained(args.output)  # where transformers 4 and this package look for it

    test = trainer.predict(clips["test"], metric_key_prefix="test")  # pyright: ignore[reportArgumentType]
    hypotheses = processor.batch_decode(_ids(test.predictions, processor))
    with (args.output / "predictions-test.jsonl").open("w", encoding="utf-8") as file:
        for (path, text, _), said in zip(splits["test"], hypotheses, strict=True):
            file.write(json.dumps({"audio": path, "text": text, "hypothesis": said}, ensure_ascii=False) + "\n")
    figures = {"before": before, "log": trainer.state.log_history, "test": test.metrics}
    (args.output / "figures.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    scores = test.metrics or {}
    print(f"test: WER {scores['test_wer']:.1f} %, CER {scores['test_cer']:.1f} % ({len(clips['test'])} clips)")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description="Fine-tune an exported student for speech recognition with CTC.")
    add = p.add_argument
    add("--student", type=Path, required=True, metavar="FOLDER", help="made by: s3prl-distiller export CKPT --to hf")
    for name in ("train", "dev", "test"):
        add(f"--{name}", type=Path, required=True, metavar="JSONL", help="manifest with the keys audio and text")
    add("--output", type=Path, required=True, metavar="DIR", help="for the fine-tuned model and its figures")
    add("--steps", type=int, default=2000, help="updates (default 2000)")
    add("--batch-size", type=int, default=8, help="clips an update (default 8)")
    add("--lr", type=float, default=5e-4, help="highest learning rate (default 5e-4)")
    add("--eval-steps", type=int, default=200, help="updates between evaluations on dev (default 200)")
    add("--workers", type=int, default=0, help="processes that decode audio (default 0)")
    add("--seed", type=int, default=0)
    add("--train-front-end", action="store_true", help="train the convolutions too (default: they stay as they are)")
    add(
        "--keep-front-end",
        action="store_true",
        help="compute the frozen front end once a clip and keep it in memory: 100 KB for a second of speech",
    )
    add("--from-scratch", action="store_true", help="random weights instead of the student's, to compare with")
    return p


def check_student(folder: Path) -> None:
    """Raises ValueError where the folder is not what the export to ``hf`` writes."""
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder} is not an exported student, it has no {name}: s3prl-distiller export CKPT --to hf -o DIR"
            )


def normalise(text: str) -> str:
    """Lower case, letters (with their marks), digits and apostrophes of any alphabet; one space between words."""
    text = unicodedata.normalize("NFC", text).lower().replace("’", "'")
    return " ".join("".join(c if c == "'" or unicodedata.category(c)[0] in "LMN" else " " for c in text).split())


def read_manifest(path: Path) -> list[tuple[str, str, float]]:
    """The clips of a manifest that have a text: path, normalised text, seconds.

    Raises:
        ValueError: no manifest, a line without the key ``text``, audio that cannot be read, or no clip with a text.
    """
    utterances, _ = read_utterances(str(path), [])
    clips = []
    for utterance in utterances:
        values = utterance.custom or {}
        if "text" not in values:
            raise ValueError(f"{path}: {utterance.id} has no key 'text'; it has {', '.join(values) or 'no other keys'}")
        if text := normalise(str(values["text"] or "")):
            clips.append((utterance.place, text, audio.probe(utterance.place).duration))
    if not clips:
        raise ValueError(f"{path}: none of its {len(utterances)} lines has a text")
    if len(clips) < len(utterances):
        print(f"{path}: {len(utterances) - len(clips)} of {len(utterances)} lines have no text and are left out")
    return clips


def build_processor(student: Path, texts: Sequence[str], output: Path) -> Wav2Vec2Processor:
    """The student's feature extractor, and a tokenizer of the characters of these texts."""
    characters = sorted(set("".join(texts)) - {" "})
    vocabulary = {symbol: number for number, symbol in enumerate(["[PAD]", "[UNK]", "|", *characters])}
    path = output / "vocab.json"
    path.write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    tokenizer = Wav2Vec2CTCTokenizer(
        str(path),
        pad_token="[PAD]",  # the blank of CTC
        unk_token="[UNK]",
        word_delimiter_token="|",
        bos_token=None,  # pyright: ignore[reportArgumentType]
        # CTC has neither; by default they would be two classes that never occur.
        eos_token=None,  # pyright: ignore[reportArgumentType]
    )
    return Wav2Vec2Processor(AutoFeatureExtractor.from_pretrained(student), tokenizer)


def build_model(student: Path, processor: Wav2Vec2Processor, from_scratch: bool) -> Any:
    """The student with a new linear layer to the vocabulary; HubertForCTC where it is a HuBERT."""
    config = AutoConfig.from_pretrained(
        student,
        vocab_size=len(processor.tokenizer),
        pad_token_id=processor.tokenizer.pad_token_id,
        ctc_loss_reduction="mean",  # over characters: long clips do not outweigh short ones
        ctc_zero_infinity=True,  # a text with more characters than the clip has frames has no gradient to give
    )
    if from_scratch:
        return AutoModelForCTC.from_config(config)
    return AutoModelForCTC.from_pretrained(student, config=config)


class Clips(torch.utils.data.Dataset):
    """Decoded when asked for.

    An item has ``input_values`` (samples,), or (frames, channels) where ``front_end`` has been run on it; ``samples``,
    their number before that; ``labels`` (characters,).
    """

    def __init__(self, clips: Sequence[tuple[str, str, float]], processor: Wav2Vec2Processor, front_end: Any = None):
        self.clips, self.processor = clips, processor
        self.lengths = [max(1, round(100 * seconds)) for _, _, seconds in clips]
        self.kept = None
        if front_end is not None:
            self.kept = [self._front_end(front_end, index) for index in tqdm(range(len(clips)), "front end")]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        labels = self.processor.tokenizer(self.clips[index][1]).input_ids
        if self.kept is not None:
            values, samples = self.kept[index]
        else:
            values = self._waveform(index)
            samples = len(values)
        return {"input_values": values, "samples": samples, "labels": torch.tensor(labels)}

    def _waveform(self, index: int) -> torch.Tensor:
        wave = audio.load(self.clips[index][0]).numpy()
        return self.processor.feature_extractor(
            wave, sampling_rate=audio.SAMPLE_RATE, return_tensors="pt"
        ).input_values[0]

    @torch.no_grad()
    def _front_end(self, front_end: torch.nn.Module, index: int) -> tuple[torch.Tensor, int]:
        wave = self._waveform(index)
        device = next(front_end.parameters()).device
        return front_end.eval()(wave[None].to(device))[0].T.cpu(), len(wave)


def collate(items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pad to the longest: values with zeros, labels with -100, which the loss passes over."""
    values = pad_sequence([item["input_values"] for item in items], batch_first=True)
    samples = torch.tensor([item["samples"] for item in items])
    return {
        "input_values": values.transpose(1, 2) if values.ndim == 3 else values,
        "attention_mask": (torch.arange(int(samples.max())) < samples[:, None]).long(),  # of samples in either case
        "labels": pad_sequence([item["labels"] for item in items], batch_first=True, padding_value=-100),
    }


class CTCTrainer(Trainer):
    """Draws clips of similar length together.

    That saves padding. It also keeps training near to use: the first layer of most students normalises over time, and
    in a batch it normalises over the padding too, as transformers has it.
    """

    def _get_train_sampler(self, *_: Any) -> torch.utils.data.Sampler:
        lengths = self.train_dataset.lengths  # pyright: ignore
        generator = torch.Generator().manual_seed(self.args.seed)
        return LengthGroupedSampler(self.args.train_batch_size, lengths=lengths, generator=generator)


def training_arguments(args: argparse.Namespace) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(args.output),
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size,
        per_device_eval_batch_size=1,  # as the pipeline hears them: no padding to normalise over or to decode
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
        label_names=["labels"],
        report_to="none",
        seed=args.seed,
    )


def _ids(predictions: Any, processor: Wav2Vec2Processor) -> np.ndarray:
    """The likeliest symbol of each frame; -100, with which the trainer fills up the shorter clips, becomes blank."""
    return np.where(predictions < 0, processor.tokenizer.pad_token_id, predictions)


def error_rates(prediction: Any, processor: Wav2Vec2Processor) -> dict[str, float]:
    """WER and CER in per cent, greedy decoding."""
    tokenizer = processor.tokenizer
    heard = tokenizer.batch_decode(_ids(prediction.predictions, processor))
    wanted = tokenizer.batch_decode(_ids(prediction.label_ids, processor), group_tokens=False)
    rows = [text_errors(reference, said) for reference, said in zip(wanted, heard, strict=True)]
    return {"wer": rate(rows, "word_errors", "words"), "cer": rate(rows, "char_errors", "chars")}


if __name__ == "__main__":
    main()
