"""Heads side by side against heads that run alone, for each task's own head and loss."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from s3prl_distiller.downstream import asr, asv, er, ic, ks, pr, sd, sf, sid
from s3prl_distiller.downstream.core import side_by_side
from s3prl_distiller.downstream.core.side_by_side import SideBySide
from s3prl_distiller.downstream.core.task import Task
from s3prl_distiller.downstream.heads.diarization import DiarizationHead
from torch import Tensor, nn

from s3prl_distiller.data.utterance import Utterance

torch.set_num_threads(1)
LENGTHS = torch.tensor([40, 31, 17, 24])
WIDTH = 12

Case = tuple[Task, list[Any]]


def classes(module: Any, config: Any, slots: dict[str, int]) -> Case:
    task = module.Task(config)
    task.load_state({"classes": [[slot, [f"{slot}{i}" for i in range(count)]] for slot, count in slots.items()]})
    return task, [[row % count for count in slots.values()] for row in range(len(LENGTHS))]


def tokens(module: Any, config: Any, key: str, *texts: str) -> Case:
    task = module.Task(config)
    utterances = [
        Utterance(f"u{i}", f"u{i}", f"/u{i}.wav", duration=9.0, custom={key: text}) for i, text in enumerate(texts)
    ]
    task.prepare({"train": utterances}, 320)
    return task, [task.target(utterance) for utterance in utterances]


def speakers() -> Case:
    task = asv.Task(asv.AsvConfig())
    task.load_state({"speakers": ["a", "b", "c"], "threshold": None, "dev_eer": None})
    return task, [2, 0, 1, 0]


def turns(layers: int = 1) -> Case:
    task = sd.Task(sd.DiarizationConfig(num_speakers=2, hidden_size=8, rnn_layers=layers))
    frames = (LENGTHS + torch.tensor([0, 1, -2, 0])).tolist()
    draw = torch.Generator().manual_seed(3)
    return task, [(torch.rand(count, 2, generator=draw) > 0.5).float() for count in frames]


# The last text of each does not fit into its 24 frames.
LONG = "AABBCCDDEEFFGGHHIIJJKK"
TASKS: dict[str, Callable[[], Case]] = {
    "ks": partial(classes, ks, ks.KeywordConfig(projector_dim=8), {"label": 12}),
    "ic": partial(classes, ic, ic.IntentConfig(projector_dim=8), {"action": 6, "object": 14, "location": 4}),
    "sid": partial(classes, sid, sid.SpeakerConfig(projector_dim=8), {"label": 30}),
    "er": partial(classes, er, er.EmotionConfig(projector_dim=8), {"label": 4}),
    "pr": partial(tokens, pr, pr.PrConfig(project_dim=8), "phones", "AH B B", "K AE T", "S", " ".join(["T"] * 15)),
    "asr": partial(tokens, asr, asr.AsrConfig(project_dim=8, hidden=8, dropout=0.0), "text", "A BEE", "ZOO", "I", LONG),
    "sf": partial(
        tokens,
        sf,
        sf.SfConfig(project_dim=8, hidden=8, dropout=0.0),
        "text_tagged",
        "B-X ZOO E-X",
        "A",
        "B-X E E-X",
        LONG,
    ),
    "asv": speakers,
    "sd": turns,
    "sd of two layers": partial(turns, 2),
    "sd of none": partial(turns, 0),
}


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads are stacked where they would be on a GPU only."""
    monkeypatch.setattr(side_by_side, "_pays", lambda device: True)


def make_heads(task: Task, count: int) -> list[nn.Module]:
    torch.manual_seed(7)
    return [task.build_head(WIDTH, 320) for _ in range(count)]


def make_features(count: int) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    features = torch.randn(count, len(LENGTHS), int(LENGTHS.max()), WIDTH, generator=draw)
    return (features * (torch.arange(features.shape[2])[:, None] < LENGTHS[:, None, None])).requires_grad_()


def gradients(heads: Sequence[nn.Module], losses: Tensor, features: Tensor) -> list[Tensor]:
    """Of the features, and of each head's parameters."""
    parameters = [parameter for head in heads for parameter in head.parameters()]
    return list(torch.autograd.grad(losses.sum(), [features, *parameters]))


def alone(task: Task, heads: Sequence[nn.Module], features: Tensor, targets: list[Any]) -> tuple[Tensor, Any]:
    each = [task.loss(head, own, LENGTHS, targets) for head, own in zip(heads, features, strict=True)]
    return torch.stack([loss for loss, _ in each]), {k: torch.stack([f[k] for _, f in each]) for k in each[0][1]}


@pytest.mark.filterwarnings("error")  # of operations that vmap computes one head at a time
@pytest.mark.parametrize("name", TASKS)
def test_each_head_learns_as_if_it_were_alone(name, on_gpu, caplog):
    task, targets = TASKS[name]()
    heads, features = make_heads(task, 3), make_features(3)
    expected, figures = alone(task, heads, features, targets)
    with caplog.at_level(logging.INFO):
        losses, got = SideBySide(task, heads).losses(features, LENGTHS, targets)
    assert not caplog.records
    assert losses.shape == (3,) and losses.unique().numel() == 3
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-5)
    assert got.keys() == figures.keys()
    for key, values in figures.items():
        torch.testing.assert_close(got[key], values)
    wanted = gradients(heads, expected, features)
    found = gradients(heads, losses, features)
    assert all(gradient.any() for gradient in found)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_under_autocast_stacked_heads_are_as_near_to_float32_as_those_alone(name, on_gpu, caplog):
    task, targets = TASKS[name]()
    heads, features = make_heads(task, 3), make_features(3)
    exact, _ = alone(task, heads, features, targets)
    with torch.autocast("cpu", torch.bfloat16), caplog.at_level(logging.INFO):
        single, _ = alone(task, heads, features, targets)
        losses, _ = SideBySide(task, heads).losses(features, LENGTHS, targets)
    assert not caplog.records
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, exact, atol=0.0, rtol=0.02)
    off, true = [], gradients(heads, exact, features)
    for loss in (losses, single):
        pairs = zip(gradients(heads, loss, features), true, strict=True)
        off.append(torch.stack([(one - wanted).norm() / wanted.norm() for one, wanted in pairs]).mean())
    assert 0 < off[0] <= 1.2 * off[1] + 0.005


@pytest.mark.parametrize("name", TASKS)
def test_a_head_that_is_lost_takes_no_other_with_it(name, on_gpu):
    task, targets = TASKS[name]()
    heads, features = make_heads(task, 3), make_features(3)
    healthy, _ = SideBySide(task, heads).losses(features, LENGTHS, targets)
    wanted = gradients(heads, healthy, features)
    with torch.no_grad():
        for parameter in heads[1].parameters():
            parameter.fill_(float("nan"))
    losses, _ = SideBySide(task, heads).losses(features, LENGTHS, targets)
    assert losses[1].isnan() or name in ("pr", "asr", "sf")
    found = gradients(heads, losses, features)
    assert torch.equal(losses[::2], healthy[::2])
    count = len(list(heads[0].parameters()))
    kept = [found[0][::2], *found[1 : 1 + count], *found[1 + 2 * count :]]
    for one, other in zip(kept, [wanted[0][::2], *wanted[1 : 1 + count], *wanted[1 + 2 * count :]], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("count", [1, 3])
def test_on_a_cpu_and_alone_the_numbers_are_those_of_the_loss_itself(name, count):
    task, targets = TASKS[name]()
    heads, features = make_heads(task, count), make_features(count)
    losses, figures = SideBySide(task, heads).losses(features, LENGTHS, targets)
    expected, wanted = alone(task, heads, features, targets)
    assert torch.equal(losses, expected)
    assert all(torch.equal(figures[key], values) for key, values in wanted.items())


def test_dropout_differs_between_heads(on_gpu):
    task, targets = tokens(asr, asr.AsrConfig(project_dim=8, hidden=8, dropout=0.5), "text", "A", "B", "C", "D")
    head = make_heads(task, 1)[0]
    features = make_features(1).detach().expand(3, -1, -1, -1)
    side = SideBySide(task, [head] * 3)
    losses, _ = side.losses(features, LENGTHS, targets)
    assert losses.unique().numel() == 3
    head.eval()
    losses, _ = side.losses(features, LENGTHS, targets)
    assert losses.unique().numel() == 1


class Branch(DiarizationHead):
    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features if features.mean() > 0 else -features)


class OwnLSTM(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(WIDTH, 2, batch_first=True)

    def forward(self, features: Tensor) -> Tensor:
        return self.rnn(features)[0]


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(self.norm(features.transpose(1, 2)).transpose(1, 2))


@pytest.mark.parametrize("kind, said", [(partial(Branch, WIDTH, 2), 1), (OwnLSTM, 1), (Normed, 0)])
def test_what_cannot_be_stacked_runs_in_turn(kind, said, on_gpu, caplog):
    task, targets = turns()
    heads, features = [kind() for _ in range(3)], make_features(3)
    side = SideBySide(task, heads)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            losses, _ = side.losses(features, LENGTHS, targets)
    assert [record.message.startswith("The heads of sd run one after the other") for record in caplog.records] == (
        [True] * said
    )
    assert torch.equal(losses, alone(task, heads, features, targets)[0])


def test_an_error_of_the_task_itself_comes_through(on_gpu):
    task, targets = speakers()
    with pytest.raises(ValueError, match="an x-vector needs 16 frames"):
        SideBySide(task, make_heads(task, 2)).losses(make_features(2)[:, :, :9], LENGTHS.clamp(max=9), targets)


def test_memory_that_is_used_up_is_no_reason_to_go_on(on_gpu, monkeypatch):
    task, targets = turns()

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("no memory")

    side = SideBySide(task, make_heads(task, 2))
    monkeypatch.setattr(task, "loss", full)
    with pytest.raises(torch.OutOfMemoryError):
        side.losses(make_features(2), LENGTHS, targets)
