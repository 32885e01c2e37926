"""What holds for ASR, phones and slot filling alike: manifests, targets, loss, predictions, states, bad input."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from s3prl_distiller.downstream import asr, pr, sf
from s3prl_distiller.downstream.core.config import UpstreamConfig, schema
from s3prl_distiller.downstream.core.ctc import frames_needed
from s3prl_distiller.downstream.core.upstream import load_upstream

from s3prl_distiller import audio, settings
from s3prl_distiller.data.utterance import Utterance

TASKS = [asr, pr, sf]
FOLDERS = {asr: "librispeech_mini", pr: "librispeech_mini", sf: "slu_mini"}
LINES = {asr: {"text": "A CAT"}, pr: {"phones": "AH K AE T"}, sf: {"text_tagged": "A B-pet CAT E-pet"}}
KEYS = {asr: "text", pr: "phones", sf: "text_tagged"}

every_task = pytest.mark.parametrize("module", TASKS, ids=lambda module: module.Task.name)


def make(module, **values):
    task = module.Task(module.Task.config_class(**values))
    if module is not pr:
        task.config.project_dim = task.config.hidden = 32
    return task


def utterance(name: str, duration: float = 3.0, **custom) -> Utterance:
    return Utterance(name, name, f"/data/{name}.wav", duration=duration, custom=custom)


def prepared(module, **values):
    task = make(module, **values)
    task.prepare({"train": [utterance("u1", **LINES[module])]}, 320)
    return task


def from_minisuperb(module, minisuperb: Path):
    task = make(module)
    splits = task.read(minisuperb)
    for utterances in splits.values():
        for u in utterances:
            u.duration = audio.probe(u.audio).duration
    task.prepare(splits, 320)
    return task


@every_task
def test_manifests_have_the_counts_of_their_readme(module, minisuperb):
    task = from_minisuperb(module, minisuperb)
    counts = {"slu_mini": (442, 60, 117), "librispeech_mini": (230, 21, 100)}[FOLDERS[module]]
    assert tuple(len(task.splits[split]) for split in ("train", "dev", "test")) == counts
    assert not any(task.left_out.values())
    assert make(module).read(minisuperb / FOLDERS[module]).keys() == task.splits.keys()


@every_task
def test_config_file_gives_the_protocol(module):
    task = module.Task
    config, _ = settings.load(schema(task), [settings.bundled("downstream", task.name)], {}, [])
    config.validate()
    assert config.data.bucketed and config.optimizer.name == "Adam" and config.runner.gradient_clipping == 1.0
    steps, batch, accumulation, lr = {
        "asr": (200_000, 32, 1, 1e-4),
        "pr": (100_000, 16, 2, 1e-2),
        "sf": (200_000, 32, 1, 1e-4),
    }[task.name]
    assert (config.runner.total_steps, config.data.batch_size) == (steps, batch)
    assert (config.runner.gradient_accumulate_steps, config.optimizer.lr) == (accumulation, lr)
    assert config.task.specaug.active == (task.name != "pr")
    head = task(config.task)
    head.prepare({"train": [utterance("u1", **LINES[module])]}, 320)
    head.build_head(768, 320)


@every_task
def test_learns_real_speech(module, minisuperb):
    """A few steps on a few utterances: the loss falls, and stays finite."""
    task = from_minisuperb(module, minisuperb)
    chosen = sorted(task.splits["train"], key=lambda u: u.duration)[:3]
    upstream = load_upstream(UpstreamConfig(name="fbank"))
    waves = [audio.load(u.audio) for u in chosen]
    wave = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    (features,), lengths = upstream(wave, torch.tensor([len(w) for w in waves]))
    torch.manual_seed(0)
    head = task.build_head(upstream.width, upstream.downsample_rate)
    optimizer = torch.optim.Adam(head.parameters(), 1e-2)
    losses = []
    for _ in range(12):
        loss, parts = task.loss(head, features, lengths, [task.target(u) for u in chosen])
        assert not parts
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert math.isfinite(losses[-1]) and losses[-1] < 0.6 * losses[0]


@every_task
@torch.no_grad()
def test_predictions_do_not_feel_padding_and_are_json(module):
    task = prepared(module)
    torch.manual_seed(0)
    head = task.build_head(24, 320).eval()
    lengths = torch.tensor([40, 90, 5])
    utterances = [utterance(f"u{i}", **LINES[module]) for i in range(3)]
    features = 3 * torch.randn(3, 90, 24)
    together = task.predict(head, features, lengths, utterances)
    for row, length, x, u in zip(together, lengths.tolist(), features, utterances, strict=True):
        (alone,) = task.predict(head, x[None, :length], torch.tensor([length]), [u])
        assert row.pop("confidence") == pytest.approx(alone.pop("confidence"), abs=2e-4)
        assert row == alone and json.loads(json.dumps(row)) == row
    assert any(row["prediction"] for row in together)


@every_task
@torch.no_grad()
def test_own_files_need_no_reference(module, tmp_path):
    """A loaded task knows no corpus; its state has been a file."""
    task = make(module)
    task.load_state(json.loads(json.dumps(prepared(module).state())))
    head = task.build_head(24, 320).eval()
    u = Utterance("own", "own", "own.wav", duration=1.0)
    (row,) = task.predict(head, torch.randn(1, 30, 24), torch.tensor([30]), [u])
    assert row["reference"] is None and "words" not in row and "phones" not in row
    assert isinstance(task.say(row), str)
    (path,) = task.figures([row], tmp_path)
    assert path.is_file()


@every_task
@torch.no_grad()
def test_nothing_recognised_is_all_deleted(module):
    task = prepared(module)
    head = task.build_head(24, 320).eval()
    head.linear.bias[task.symbols.blank] = 1e4
    row = task.predict(head, torch.randn(1, 30, 24), torch.tensor([30]), [utterance("u", **LINES[module])])[0]
    assert row["prediction"] == "" and row["confidence"] is None
    figures = task.score([row])
    errors = {name: value for name, value in figures.items() if name != "slot_f1"}
    assert errors == dict.fromkeys(errors, 100.0) and figures.get("slot_f1", 0) == 0
    assert "nothing recognised" in task.say(row)


@every_task
@torch.no_grad()
def test_the_right_path_is_right(module):
    """Logits that spell the target, each class twice and a blank between, give the reference back."""
    task = prepared(module)
    u = utterance("u1", **LINES[module])
    path = [i for target in task.target(u).tolist() for i in (target, target, task.symbols.blank)]
    logits = 20 * torch.nn.functional.one_hot(torch.tensor([path]), len(task.symbols)).float()
    row = task.predict(lambda features, lengths: features, logits, torch.tensor([len(path)]), [u])[0]
    assert row["prediction"] == row["reference"] == LINES[module][KEYS[module]]
    assert row["confidence"] == pytest.approx(1.0, abs=1e-3)
    assert task.score([row]) == dict.fromkeys(task.units, 0.0) | ({"slot_f1": 100.0} if module is sf else {})


@every_task
def test_loss_is_float32_whatever_the_head_ran_in(module):
    task = prepared(module)
    head = torch.nn.Linear(24, len(task.symbols)).bfloat16()
    head.eval()
    features, lengths = torch.randn(1, 60, 24).bfloat16(), torch.tensor([60])
    target = task.target(utterance("u1", **LINES[module]))
    loss, _ = task.loss(_Frames(head), features, lengths, [target])
    logits = head(features).float()
    expected = torch.nn.CTCLoss()(
        logits.log_softmax(-1).transpose(0, 1), target[None], lengths, torch.tensor([len(target)])
    )
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)


class _Frames(torch.nn.Module):
    """A head that takes lengths, and does not use them."""

    def __init__(self, layer: torch.nn.Module):
        super().__init__()
        self.layer = layer
        self.training = layer.training

    def forward(self, features, lengths):
        return self.layer(features)


@every_task
def test_label_longer_than_frames_is_left_out_of_train_only(module):
    line = LINES[module]
    task = make(module)
    needed = 0.02 * frames_needed(prepared(module).target(utterance("u", **line)).tolist())
    short, long = utterance("short", needed - 0.01, **line), utterance("long", needed, **line)
    task.prepare({"train": [long, short], "dev": [short]}, 320)
    assert [u.id for u in task.splits["train"]] == ["long"] and len(task.splits["dev"]) == 1
    assert task.left_out["train"] == {"label longer than frames": 1}


@every_task
def test_label_longer_than_frames_does_not_poison_a_batch(module):
    task = prepared(module)
    head = task.build_head(24, 320).eval()
    target = task.target(utterance("u1", **LINES[module]))
    features, lengths = torch.randn(2, 60, 24), torch.tensor([60, len(target) - 1])
    loss, parts = task.loss(head, features, lengths, [target, target])
    alone, none = task.loss(head, features[:1], lengths[:1], [target])
    loss.backward()
    assert parts["too_long"] == 1 and not none
    torch.testing.assert_close(loss, alone / 2)
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())


def test_equal_neighbours_need_a_blank_between():
    assert frames_needed([5, 5, 6, 6, 6, 2]) == 6 + 3


@every_task
@pytest.mark.parametrize("split", ["train", "dev"])
@pytest.mark.parametrize("value", ["", "  ", 3, None])
def test_empty_or_odd_reference_is_named(module, split, value):
    bad = utterance("u7", **{KEYS[module]: value})
    splits = {"train": [utterance("u1", **LINES[module])], "dev": []}
    with pytest.raises(ValueError, match=rf"u7 \(/data/u7.wav\).*{KEYS[module]}"):
        make(module).prepare({**splits, split: [*splits[split], bad]}, 320)


@every_task
def test_key_with_a_typo_is_named(module, minisuperb, tmp_path):
    for split in ("train", "dev", "test"):
        line = json.loads((minisuperb / FOLDERS[module] / f"{split}.jsonl").read_text().splitlines()[0])
        wrong = {k + "x" if k in ("text", "phones", "text_tagged") else k: v for k, v in line.items()}
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(wrong) + "\n")
        target = tmp_path / line["audio"]
        target.parent.mkdir(exist_ok=True)
        shutil.copy(minisuperb / FOLDERS[module] / line["audio"], target)
    with pytest.raises(ValueError, match=r"did you mean|neither 'phones' nor"):
        make(module).read(tmp_path)


@every_task
def test_missing_corpus_says_what_and_where_from(module, tmp_path):
    with pytest.raises(ValueError, match=r"(?s)(openslr\.org/12|s3prl).*Expected:.*train"):
        make(module).read(tmp_path)


@every_task
def test_figures_are_drawn(module, tmp_path):
    task = prepared(module)
    row = {"id": "a", "confidence": 1.0, **task.compare(task.tokens(utterance("a", **LINES[module])), ["A", "H"])}
    (path,) = task.figures([row], tmp_path)
    assert path.stat().st_size > 5_000
