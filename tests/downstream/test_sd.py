"""Speaker diarization: learning, choosing on dev, judging."""

import json

import numpy as np
import pytest
import torch
from s3prl_distiller.downstream.corpora.rttm import read_rttm
from s3prl_distiller.downstream.metrics.der import diarization_error
from s3prl_distiller.downstream.metrics.turns import Turn
from s3prl_distiller.downstream.sd import DiarizationConfig, Setting, Task

from s3prl_distiller.data.utterance import Utterance

from .diarization import RATE, prepared, rows_of
from .durations import with_durations


def features_of(task: Task, utterances, width=40, off=0):
    """Features that tell who speaks, with noise; ``off`` more frames than labels."""
    torch.manual_seed(0)
    mix = torch.randn(task.num_speakers, width)
    features = []
    for utterance in utterances:
        active = task.target(utterance) @ mix + 0.3 * torch.randn(len(task.target(utterance)), width)
        features.append(active[:off] if off < 0 else torch.cat([active, torch.zeros(off, width)]))
    return torch.nn.utils.rnn.pad_sequence(features, batch_first=True), torch.tensor([len(x) for x in features])


def trained(task: Task, steps=40, utterances=None):
    torch.manual_seed(0)
    head = task.build_head(40, RATE)
    optimizer = torch.optim.Adam(head.parameters(), 3e-3)
    utterances = utterances or task.splits["train"][:4]
    features, lengths = features_of(task, utterances, off=-1)
    history = []
    for _ in range(steps):
        loss, parts = task.loss(head, features, lengths, [task.target(utterance) for utterance in utterances])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append((loss.item(), parts["frame_accuracy"].item()))
    return head, history


@pytest.fixture(scope="module")
def learnt(minisuperb):
    task = prepared(minisuperb, num_speakers=2, hidden_size=64)
    mixtures = [utterance for utterance in task.splits["train"] if utterance.id.startswith("mix")][:4]
    return task, *trained(task, 60, mixtures), mixtures


def test_steps_reduce_the_loss_and_the_error(learnt):
    task, head, history, mixtures = learnt
    assert history[-1][0] < 0.5 * history[0][0] and history[-1][1] > history[0][1] + 0.1
    outputs = predict(task, head, mixtures)
    score = task.score(task.rows(outputs, "train"))
    untrained = predict(task, task.build_head(40, RATE), mixtures)
    assert score["der"] < 25 < task.score(task.rows(untrained, "train"))["der"]


@torch.no_grad()
def predict(task, head, utterances, size=4, off=-1):
    outputs = []
    every, lengths = features_of(task, utterances, off=off)
    for low in range(0, len(utterances), size):
        part = lengths[low : low + size]
        outputs += task.predict(head, every[low : low + size, : part.max()], part, utterances[low : low + size])
    return outputs


def test_prediction_does_not_depend_on_the_batch(learnt):
    task, head, _, mixtures = learnt
    together, alone = predict(task, head, mixtures), predict(task, head, mixtures, size=1)
    for one, other, utterance in zip(together, alone, mixtures, strict=True):
        assert len(one["probabilities"]) == len(task.target(utterance)) == len(other["probabilities"])
        np.testing.assert_allclose(one["probabilities"], other["probabilities"], atol=1e-6)
    assert len({len(output["probabilities"]) for output in together}) > 1


@pytest.mark.parametrize("off", [-9, 9])
def test_features_of_another_length_are_refused(learnt, off):
    task, head, _, mixtures = learnt
    features, lengths = features_of(task, mixtures, off=off)
    with pytest.raises(ValueError, match="data.crop_seconds"):
        task.loss(head, features, lengths, [task.target(utterance) for utterance in mixtures])
    with pytest.raises(ValueError, match="data.eval_crop_seconds"):
        task.predict(head, features, lengths, mixtures)


def test_a_chunk_where_no_one_speaks_can_be_learnt(learnt):
    task, head, _, mixtures = learnt
    features, lengths = features_of(task, mixtures)
    loss, parts = task.loss(
        head, features, lengths, [task.target(mixtures[0])] + [0 * task.target(u) for u in mixtures[1:]]
    )
    assert torch.isfinite(loss) and 0 <= parts["frame_accuracy"] <= 1


# Choosing, scoring, keeping


def noisy_outputs(seed, level):
    """Probabilities of three recordings that are too high or too low by ``level``, with outliers of a frame."""
    rng = np.random.default_rng(seed)
    outputs = []
    for index in range(3):
        reference = [Turn(0.6, 4.0, "a"), Turn(3.0, 8.0, "b")]
        truth = np.zeros((500, 2))
        truth[30:200, 1] = truth[150:400, 0] = 1
        noise = (rng.random((500, 2)) < 0.05) * (1 - 2 * truth)
        outputs.append({"id": str(index), "reference": reference, "probabilities": 0.1 * truth + level + 0.1 * noise})
    return outputs


@pytest.mark.parametrize("level, threshold", [(0.25, 0.3), (0.45, 0.5), (0.65, 0.7)])
def test_threshold_and_median_are_chosen_on_dev(level, threshold):
    from scipy.signal import medfilt

    task = Task(DiarizationConfig())
    task.downsample_rate, task.num_speakers = RATE, 2
    dev, test = noisy_outputs(0, level), noisy_outputs(1, 0.45)
    task.splits = {"dev": [], "test": []}
    rows = task.evaluate("dev", lambda _: iter(dev))
    assert task.setting == Setting(threshold, 11)
    assert task.state() == {"num_speakers": 2, "threshold": threshold, "median": 11}
    assert task.score(rows)["der"] == pytest.approx(task.score(rows)["der_test_chosen"], abs=1e-6)

    # Every setting by hand, as s3prl makes turns of probabilities; errors pooled over recordings.
    rows = task.evaluate("test", lambda _: iter(test))
    errors = {}
    for setting in task.grid:
        errors[setting] = 0.0
        for output in test:
            active = medfilt((output["probabilities"] > setting.threshold).astype(float), (setting.median, 1))
            turns = []
            for speaker, frames in enumerate(active.T):
                (edges,) = np.where(np.diff(np.pad(frames, 1)) != 0)
                turns += [Turn(s * 0.02, e * 0.02, str(speaker)) for s, e in zip(edges[::2], edges[1::2], strict=True)]
            errors[setting] += diarization_error(output["reference"], turns).total
    score = task.score(rows)
    assert score["der"] == pytest.approx(100 * errors[task.setting] / (3 * 8.4), abs=1e-4)
    assert score["der_test_chosen"] == pytest.approx(100 * min(errors.values()) / (3 * 8.4), abs=1e-4)
    assert score["der"] == pytest.approx(score["missed"] + score["false_alarm"] + score["confusion"])
    assert set(score) == set(task.units)
    json.dumps(rows)


def test_time_is_pooled_over_recordings():
    task = Task(DiarizationConfig())
    task.downsample_rate = RATE
    long, short = [Turn(0, 9, "a")], [Turn(0, 1, "a")]
    right = rows_of(task, [Turn(0, 9, "1")], long)
    wrong = rows_of(task, [], short)
    assert task.score([right, wrong])["der"] == pytest.approx(10)  # not 50, the mean over recordings
    assert task.score([right] * 3)["der"] == 0


def test_speakers_that_the_head_lacks_are_missed():
    task = Task(DiarizationConfig(num_speakers=2))
    task.downsample_rate = RATE
    reference = [Turn(0, 2, "a"), Turn(2, 4, "b"), Turn(4, 6, "c")]
    row = rows_of(task, [Turn(0, 2, "1"), Turn(2, 4, "2")], reference)
    assert (row["missed"], row["false_alarm"], row["confusion"], row["speech"]) == (2, 0, 0, 6)


def test_a_loaded_run_hears_a_file_of_ones_own(learnt):
    task, head, _, mixtures = learnt
    task.setting = Setting(0.6, 1)
    again = Task(DiarizationConfig(hidden_size=64))
    again.load_state(json.loads(json.dumps(task.state())))
    same = again.build_head(40, RATE)
    same.load_state_dict(head.state_dict())
    own = [Utterance("talk", "talk", "talk.wav", duration=mixtures[0].duration)]
    features, lengths = features_of(task, mixtures[:1])
    with torch.no_grad():
        (row,) = again.rows(again.predict(same, features, lengths, own), None)
        (known,) = task.rows(task.predict(head, features, lengths, mixtures[:1]), "train")
    assert row["reference"] is None and row["prediction"] == known["prediction"] != []
    start, end, speaker = row["prediction"][0]
    assert again.say(row).splitlines()[0] == f"{start:6.2f} - {end:6.2f} s  speaker {speaker}"
    assert again.say({"prediction": []}) == "no one speaks"


def test_the_head_of_a_loaded_run_stays_as_it_was(minisuperb):
    task = Task(DiarizationConfig())
    task.load_state({"num_speakers": 2, "threshold": 0.4, "median": 1})
    task.prepare(with_durations(task.read(minisuperb)), RATE)
    assert task.build_head(40, RATE).linear.out_features == 2 and task.setting == Setting(0.4, 1)


def test_figures(learnt, tmp_path):
    task, head, _, mixtures = learnt
    rows = task.rows(predict(task, head, mixtures), "test")
    rows[0]["id"] = "folder/../with space"  # an id may be a path
    (picture,) = task.figures(rows, tmp_path)
    assert picture.parent == tmp_path and picture.read_bytes()[:4] == b"\x89PNG"
    files = sorted(path.name for path in (tmp_path / "rttm").iterdir())
    assert len(files) == len(rows) == 4 and "folder%2F..%2Fwith space.rttm" in files
    written = read_rttm(tmp_path / "rttm" / f"{rows[1]['id']}.rttm")[rows[1]["id"]]
    assert [[round(a, 3), round(b, 3), c] for a, b, c in written] == [
        [round(a, 3), round(b, 3), c] for a, b, c in rows[1]["prediction"]
    ]
    silent = rows_of(task, [], [])
    assert list(task.figures([silent], tmp_path / "silent")) == []
