"""Long recordings are heard whole; what is held out stays held out."""

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from s3prl_distiller import audio
from s3prl_distiller.data import corpus
from s3prl_distiller.data.corpus import hold_out, windows
from s3prl_distiller.data.utterance import Utterance


@settings(max_examples=100, deadline=None)
@given(samples=st.integers(1, 5_000_000), split=st.floats(0.5, 100), start=st.integers(0, 1_000_000))
def test_windows_cover_everything_once(samples, split, start):
    whole = Utterance("u", "g", "u.wav", start=start / 16000, duration=samples / 16000)
    parts = windows(whole, split)
    spans = [(round(p.start * 16000), round(p.duration * 16000)) for p in parts]
    assert spans[0][0] == start and spans[-1][0] + spans[-1][1] == start + samples
    assert all(a + n == b for (a, n), (b, _) in zip(spans, spans[1:], strict=False))
    assert all(0 < n <= split * 16000 + 1 for _, n in spans)
    assert len({p.id for p in parts}) == len(parts) and {p.group for p in parts} == {"g"}


def test_a_twenty_minute_recording_is_heard_whole(speech_files, make, tmp_path):
    waves = [audio.load(path).numpy() for path in speech_files]
    talk = np.resize(np.concatenate(waves), 20 * 60 * 16000)
    (tmp_path / "talks").mkdir()
    soundfile.write(tmp_path / "talks" / "talk.flac", talk, 16000)
    for number, wave in enumerate(waves[:6]):
        soundfile.write(tmp_path / "talks" / f"{number}.wav", wave, 16000)
    talks = make(tmp_path / "talks", crop_samples=640_000, batch_size=4, valid_share=0.0)
    pieces = {}
    for batch in talks.train_loader(0):
        pieces |= {n: w[:k].numpy() for n, w, k in zip(batch.ids, batch.wave, batch.lengths, strict=True)}
    parts = sorted((float(name.split("@")[1]), wave) for name, wave in pieces.items() if "@" in name)
    assert len(parts) == 30
    np.testing.assert_array_equal(np.concatenate([wave for _, wave in parts]), audio.load(tmp_path / "talks/talk.flac"))
    assert talks.train_seconds + talks.valid_seconds == pytest.approx(1200 + sum(map(len, waves[:6])) / 16000)


def make_utterances(groups: dict[str, list[float]]) -> list[Utterance]:
    return [Utterance(f"{g}-{i}", g, g, duration=s) for g, parts in groups.items() for i, s in enumerate(parts)]


GROUPS = st.dictionaries(
    st.text("abcdefgh0123456789", min_size=1, max_size=8),
    st.lists(st.floats(0.1, 60), min_size=1, max_size=5),
    min_size=2,
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(groups=GROUPS, share=st.floats(0, 1), seconds=st.floats(1, 600))
def test_both_sides_hold_whole_recordings(groups, share, seconds):
    listed = make_utterances(groups)
    train, valid = hold_out(listed, share, seconds)
    assert train and valid
    assert not {u.group for u in train} & {u.group for u in valid}
    assert len(valid) == 1 or sum(u.duration for u in valid) <= seconds + 0.01
    used = {u.id for u in train + valid}
    unused = [u for u in listed if u.id not in used]
    assert all(u.group in {v.group for v in valid} for u in unused)


@settings(max_examples=100, deadline=None)
@given(groups=GROUPS, more=GROUPS, share=st.floats(0.05, 0.9))
def test_new_files_move_nothing_that_was_trained_on(groups, more, share):
    _, before = hold_out(make_utterances(groups), share, 1e9)
    _, after = hold_out(make_utterances(more | groups), share, 1e9)
    by_hash = {u.group for u in after}
    trained = groups.keys() - {u.group for u in before}
    everything_held = len(before) == len(make_utterances(groups)) - 1
    assert not trained & by_hash or everything_held or len(trained) == 1


def test_the_share_held_out_is_as_asked():
    listed = make_utterances({f"speaker{i}/utterance{i}.flac": [10.0] for i in range(20_000)})
    _, valid = hold_out(listed, 0.02, 1e9)
    assert len(valid) / len(listed) == pytest.approx(0.02, abs=0.004)
    _, valid = hold_out(listed, 0.02, 600.0)
    assert len(valid) == 60


def test_late_parts_of_files_that_cannot_be_sought_in_are_remarked_on(folder, make, monkeypatch):
    assert "convert these" not in make(folder).describe()
    monkeypatch.setattr(corpus, "_LATE", 1)
    described = make(folder, split_seconds=1.0).describe()
    assert "more than 1 s into files" in described and "convert these to .flac" in described
    for path in folder.rglob("*.ogg"):
        path.unlink()
    assert "convert these" not in make(folder, split_seconds=1.0).describe()


def test_one_recording_cannot_be_split(speech_files, make, tmp_path):
    (tmp_path / "one").mkdir()
    wave = np.concatenate([audio.load(path).numpy() for path in speech_files])
    soundfile.write(tmp_path / "one" / "only.flac", wave, 16000)
    with pytest.raises(ValueError, match=r"one usable recording only \(only.flac\): training needs at least two"):
        make(tmp_path / "one", split_seconds=10.0)


def test_the_fingerprint_follows_what_is_trained_on(folder, make, tmp_path):
    first = make(folder)
    assert make(folder, batch_size=3, num_buckets=4).fingerprint == first.fingerprint
    assert make(folder, split_seconds=5.0).fingerprint != first.fingerprint
    assert make(folder, valid_share=0.5).fingerprint != first.fingerprint
    folder.rename(tmp_path / "moved")
    assert make(tmp_path / "moved").fingerprint == first.fingerprint
    next((tmp_path / "moved").glob("*.flac")).unlink()
    assert make(tmp_path / "moved").fingerprint != first.fingerprint
