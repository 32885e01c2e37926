"""Speaker verification: both forms of data, trials, learning, judging, one's own files, and bad input."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from s3prl_distiller.downstream.asv import AsvConfig, Task
from s3prl_distiller.downstream.corpora.voxceleb1_trials import Trial, make_trials, read_trials
from s3prl_distiller.downstream.heads.xvector import MIN_FRAMES
from s3prl_distiller.downstream.metrics import verification

from s3prl_distiller import audio
from s3prl_distiller.data.utterance import Utterance

from .durations import with_durations

torch.set_num_threads(1)
RATE = 320


def prepared(root: Path, **config) -> Task:
    task = Task(AsvConfig(**config))
    task.prepare(with_durations(task.read(root)), RATE)
    return task


@pytest.fixture(scope="module")
def mini(minisuperb) -> Task:
    return prepared(minisuperb)


@pytest.fixture
def vox(tmp_path, speech_files) -> Path:
    """VoxCeleb1's tree: five speakers in dev with three utterances each, two in test, and a list of trials."""
    root = tmp_path / "VoxCeleb1"
    names = [(f"id1000{speaker}", clip) for speaker in range(1, 6) for clip in (1, 2, 3)]
    names += [(f"id1027{speaker}", clip) for speaker in (0, 1) for clip in (1, 2)]
    for (speaker, clip), source in zip(names, speech_files, strict=False):
        folder = root / ("test" if speaker > "id10100" else "dev") / "wav" / speaker / f"video{clip}"
        folder.mkdir(parents=True)
        shutil.copy(source, folder / "00001.wav")  # what a file is called is not what decides how it is decoded
    trials = [
        "1 id10270/video1/00001.wav id10270/video2/00001.wav",
        "0 id10270/video1/00001.wav id10271/video1/00001.wav",
    ]
    (root / "voxceleb1_test_v2.txt").write_text("\n".join(trials) + "\n")
    return root


class Hears:
    """Stands in for upstream and head: each utterance's embedding is given by a function."""

    def __init__(self, embed, unheard=()):
        self.embed, self.unheard = embed, unheard

    def __call__(self, utterances):
        for utterance in utterances:
            if utterance.id not in self.unheard:
                speaker = (utterance.custom or {}).get("speaker")
                yield {"id": utterance.id, "embedding": self.embed(utterance), "speaker": speaker}


def test_manifests(mini, minisuperb):
    assert len(mini.splits["train"]) + mini.left_out["train"].total() == 230
    assert len(mini.splits["test"]) == 100 and len(mini.trials["test"]) == 1800
    assert sum(trial.label for trial in mini.trials["test"]) == 900
    assert {u.custom["speaker"] for u in mini.splits["test"]}.isdisjoint(mini.speakers)
    assert all(u.duration > 2 for u in mini.splits["train"]) and len(mini.speakers) == len(mini.splits["train"])
    assert [mini.target(u) for u in mini.splits["train"]] == [
        mini.speakers.index(mini.balance_by(u)) for u in mini.splits["train"]
    ]
    assert Task(AsvConfig()).read(minisuperb / "librispeech_mini").keys() == {"train", "dev", "test"}


def test_dev_of_one_utterance_a_speaker_is_halved(mini):
    dev = {utterance.id: utterance for utterance in mini.splits["dev"]}
    assert len(dev) == 42 and any("halves" in note for note in mini.notes)
    same = [trial for trial in mini.trials["dev"] if trial.label]
    assert len(same) == 21
    for _, one, other in same:
        assert dev[one].audio == dev[other].audio and dev[one].start == 0
        assert dev[other].start == dev[one].duration == dev[other].duration
        whole = audio.probe(dev[one].audio).duration
        assert dev[other].start + dev[other].duration == pytest.approx(whole)
    for _, one, other in (trial for trial in mini.trials["dev"] if not trial.label):
        assert dev[one].custom["speaker"] != dev[other].custom["speaker"]


def test_voxceleb1(vox):
    task = prepared(vox, dev_speakers=2, min_seconds=0.0)
    assert len(task.speakers) == 3 and len(task.splits["train"]) == 9
    held = {u.custom["speaker"] for u in task.splits["dev"]}
    assert len(held) == 2 and held.isdisjoint(task.speakers) and "id10270" not in task.speakers
    assert sum(trial.label for trial in task.trials["dev"]) == 6 and len(task.trials["dev"]) == 6 + 9
    assert [u.id for u in task.splits["test"]] == [
        "id10270/video1/00001.wav",
        "id10270/video2/00001.wav",
        "id10271/video1/00001.wav",
    ]
    # The same speakers each time, and with one folder for all speakers the same data.
    again = prepared(vox, dev_speakers=2, min_seconds=0.0)
    assert again.splits == task.splits and again.trials == task.trials
    for part in ("dev", "test"):
        shutil.copytree(vox / part / "wav", vox.parent / "merged" / "wav", dirs_exist_ok=True)
    shutil.copy(vox / "voxceleb1_test_v2.txt", vox.parent / "merged" / "veri_test.txt")
    merged = prepared(vox.parent / "merged", dev_speakers=2, min_seconds=0.0)
    assert merged.trials == task.trials and merged.speakers == task.speakers


def test_superb_s_own_training_set_has_no_dev(vox):
    task = prepared(vox, dev_speakers=0, min_seconds=0.0)
    assert len(task.speakers) == 5 and set(task.splits) == {"train", "test"}
    rows = task.evaluate("dev", Hears(lambda utterance: np.ones(4)))
    assert rows == [] and all(np.isnan(value) for value in task.score(rows).values())


def test_training_utterances_must_be_longer_than_two_seconds(minisuperb):
    task = Task(AsvConfig())
    splits = with_durations(task.read(minisuperb))
    for utterance, seconds in zip(splits["train"], (2.0, 2.0001, 0.1), strict=False):
        utterance.duration = seconds
    kept = splits["train"][1].id
    dropped = {splits["train"][0].id, splits["train"][2].id}
    task.prepare(splits, RATE)
    ids = {utterance.id for utterance in task.splits["train"]}
    assert kept in ids and not dropped & ids


def test_test_utterances_too_short_for_an_x_vector_take_their_trials_with_them(minisuperb):
    task = Task(AsvConfig())
    splits = with_durations(task.read(minisuperb))
    short = splits["test"][0]
    short.duration = (MIN_FRAMES - 1) * RATE / 16_000
    concerned = sum(short.id in trial for trial in task.trials["test"])
    task.prepare(splits, RATE)
    assert task.left_out["test"]["trials of utterances left out"] == concerned > 0
    assert len(task.trials["test"]) == 1800 - concerned and short not in task.splits["test"]


def test_learns_and_hears_each_utterance_by_itself(mini):
    """A few steps on features that differ by speaker; no figure depends on what else is in a batch."""
    torch.manual_seed(0)
    few = mini.splits["train"][:4]
    head = mini.build_head(16, RATE)
    voices = torch.randn(4, 1, 16)
    features, lengths = voices + 0.3 * torch.randn(4, 60, 16), torch.tensor([60, 50, 40, 30])
    for index, length in enumerate(lengths.tolist()):
        features[index, length:] = 0
    targets = [mini.target(utterance) for utterance in few]
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    losses = []
    for _ in range(25):
        loss, parts = mini.loss(head, features, lengths, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0] and parts["acc"] == 100
    with torch.no_grad():
        together = mini.predict(head, features, lengths, few)
        for index, length in enumerate(lengths.tolist()):
            (alone,) = mini.predict(
                head, features[index : index + 1, :length], lengths[index : index + 1], [few[index]]
            )
            np.testing.assert_allclose(alone["embedding"], together[index]["embedding"], rtol=1e-5, atol=1e-5)
        with pytest.raises(ValueError, match=rf"{few[0].id} .* too short: .* {MIN_FRAMES} frames .* gives 12"):
            mini.predict(head, features[:1, :12], torch.tensor([12]), few[:1])


def test_rows_score_and_threshold(mini, tmp_path):
    """Against a plain loop over the trials; and a threshold of dev that survives saving."""
    rng = np.random.default_rng(0)
    voices: dict[str, np.ndarray] = {}

    def embed(utterance):
        voice = voices.setdefault(utterance.custom["speaker"], rng.normal(size=8))
        return (voice + rng.normal(size=8)).astype(np.float32)

    vectors = {u.id: embed(u) for u in mini.splits["test"]}
    rows = mini.evaluate("test", Hears(lambda utterance: vectors[utterance.id]))
    assert len(rows) == 1800
    for row, trial in zip(rows, mini.trials["test"], strict=True):
        one, other = vectors[trial.enrol], vectors[trial.test]
        assert row["score"] == pytest.approx(one @ other / np.linalg.norm(one) / np.linalg.norm(other), abs=1e-5)
        assert (row["label"], row["enrol"], row["test"]) == trial and Path(trial.enrol).name.startswith(
            f"{row['speaker']}-"
        )
    curve = verification.errors([row["label"] for row in rows], [row["score"] for row in rows])
    scores = mini.score(json.loads(json.dumps(rows)))
    assert scores["eer"] == 100 * verification.equal_error(curve)[0] and 0 < scores["eer"] < 50
    assert scores["min_dcf"] >= scores["min_dcf_p05"]

    mini.evaluate("dev", Hears(embed))
    other = Task(AsvConfig())
    other.load_state(json.loads(json.dumps(mini.state())))
    assert other.threshold == mini.threshold and other.speakers == mini.speakers
    assert {path.name for path in mini.figures(rows, tmp_path)} == {"det.png", "scores.png"}
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("det.png", "scores.png"))


def test_what_cannot_be_heard_is_not_scored(mini, caplog):
    gone = mini.splits["test"][0].id
    rows = mini.evaluate("test", Hears(lambda utterance: np.ones(3), {gone}))
    lost = sum(gone in trial for trial in mini.trials["test"])
    assert len(rows) == 1800 - lost and f"{lost} of 1800 trials of test cannot be heard" in caplog.text


def test_one_s_own_files():
    task = Task(AsvConfig())
    files = {"a.wav": [1.0, 0.0], "b.wav": [1.0, 0.1], "c.wav": [0.0, 1.0]}
    outputs = [{"id": name, "embedding": np.array(vector), "speaker": None} for name, vector in files.items()]
    rows = task.rows(outputs, None)
    assert [(row["enrol"], row["test"]) for row in rows] == [("a.wav", "b.wav"), ("a.wav", "c.wav"), ("b.wav", "c.wav")]
    assert "no decision" in task.say(rows[0])
    task.threshold, task.dev_eer = 0.5, 7.0
    assert task.say(rows[0]).startswith("a.wav and b.wav: cosine 0.9950: one speaker (threshold 0.5")
    assert "two speakers" in task.say(rows[1]) and "7.0 % of dev" in task.say(rows[1])
    (row,) = task.rows(outputs[:1], None)
    assert row["dimensions"] == 2 and row["norm"] == 1 and "name two files or more" in task.say(row)


def test_trials_that_are_made():
    speakers = {f"{speaker}{clip}": speaker for speaker in "abcd" for clip in range(5)}
    trials = make_trials(speakers, 40)
    assert trials == make_trials(speakers, 40) and len(set(trials)) == 40
    assert sum(trial.label for trial in trials) == 20
    assert all((speakers[one] == speakers[other]) == bool(label) and one != other for label, one, other in trials)
    everything = make_trials(speakers, 10_000)
    assert len(everything) == 20 * 19 // 2 and sum(trial.label for trial in everything) == 4 * 10


def test_lists_of_trials(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("1 a.wav b.wav\n\n0 a.wav c.wav\n")
    assert read_trials(path) == [Trial(1, "a.wav", "b.wav"), Trial(0, "a.wav", "c.wav")]
    for text, message in (
        ("1 a b\n2 a b\n", "list.txt, line 2: '2 a b', where '1 enrol test' or '0 enrol test' is due"),
        ("1 a\n", "list.txt, line 1: '1 a'"),
        ("1 a b\n1 a c\n", "only trials of label 1"),
        ("\n", "has no trial"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_trials(path)


def test_missing_files_are_counted_in_one_error(vox):
    with (vox / "voxceleb1_test_v2.txt").open("a") as file:
        file.writelines(f"0 id10270/video1/00001.wav id10299/video1/{number:05d}.wav\n" for number in range(5))
    message = r"names 5 files \(of 8\) that are not in .*: id10299/video1/00000.wav, .*00001.wav, .*00002.wav, \.\.\."
    with pytest.raises(ValueError, match=message):
        Task(AsvConfig()).read(vox)


def test_what_is_not_there(tmp_path, vox):
    with pytest.raises(
        ValueError, match=r"does not hold VoxCeleb1: get it from https://[\s\S]*dev/wav/id10001[\s\S]*asv_trials"
    ):
        Task(AsvConfig()).read(tmp_path)
    with pytest.raises(ValueError, match="5 training speakers, too few to hold out task.dev_speakers = 40"):
        Task(AsvConfig()).read(vox)
    (vox / "voxceleb1_test_v2.txt").rename(vox / "mine.txt")
    with pytest.raises(ValueError, match="no list of trials .*voxceleb1_test_v2.txt or .*task.trials"):
        Task(AsvConfig(dev_speakers=2)).read(vox)
    for given in ("mine.txt", str(vox / "mine.txt")):
        assert len(Task(AsvConfig(dev_speakers=2, trials=given)).read(vox)["test"]) == 3
    with pytest.raises(ValueError, match="nowhere.txt is missing"):
        Task(AsvConfig(trials="nowhere.txt")).read(vox)


def test_manifests_that_do_not_do(tmp_path, minisuperb):
    (tmp_path / "asv_trials.txt").write_text("1 a.flac b.flac\n0 a.flac c.flac\n")
    source = sorted((minisuperb / "librispeech_mini" / "audio").glob("*.flac"))
    for name, file in zip("abcd", source, strict=False):
        shutil.copy(file, tmp_path / f"{name}.flac")
    with pytest.raises(
        ValueError, match="has no train.jsonl: speaker verification needs train.jsonl with the key 'speaker'"
    ):
        Task(AsvConfig()).read(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"id": "d", "audio": "d.flac", "speakers": "x"}\n')
    with pytest.raises(ValueError, match=r"train.jsonl: d has no 'speaker'; did you mean 'speaker' for 'speakers'\?"):
        Task(AsvConfig()).read(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"id": "d", "audio": "d.flac", "speaker": "x"}\n')
    with pytest.raises(ValueError, match="two speakers or more, and there are 1"):
        prepared(tmp_path, dev_speakers=0)
    with pytest.raises(ValueError, match="task.dev_speakers must be 0 or more"):
        Task(AsvConfig(dev_speakers=-1))


def test_a_speaker_of_one_utterance_and_unknown_speakers_in_the_test(tmp_path, minisuperb):
    """Both are fine; trials without a speaker are drawn one by one in a bootstrap."""
    source = sorted((minisuperb / "librispeech_mini" / "audio").glob("*.flac"))
    for name, file in zip("abcdef", source, strict=False):
        shutil.copy(file, tmp_path / f"{name}.flac")
    (tmp_path / "asv_trials.txt").write_text("1 a.flac b.flac\n0 a.flac c.flac\n")
    lines = [{"id": name, "audio": f"{name}.flac", "speaker": name} for name in "def"]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = prepared(tmp_path, dev_speakers=0, min_seconds=0.0)
    assert task.speakers == ["d", "e", "f"]
    rows = task.evaluate("test", Hears(lambda utterance: np.arange(3.0)))
    assert [row["speaker"] for row in rows] == [row["id"] for row in rows] and len({row["id"] for row in rows}) == 2


def test_halves_keep_their_place_in_a_longer_recording(mini):
    from s3prl_distiller.downstream.asv import _halves

    one, other = _halves(Utterance("u", "g", "f.wav", start=3.0, duration=5.0), 0.3)
    assert (one.start, one.duration, other.start, other.duration) == (3.0, 2.5, 5.5, 2.5)
    assert _halves(Utterance("u", "g", "f.wav", duration=0.5), 0.3) == []
