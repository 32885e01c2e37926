"""The audio door against independent readings of the same files."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s3prl_distiller import audio

FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "float.wav": ("WAV", "FLOAT"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}


@pytest.fixture(scope="session")
def speech(speech_files: list[Path]) -> np.ndarray:
    """12 s of real speech at 16 kHz."""
    waves = [soundfile.read(path, dtype="float32")[0] for path in speech_files[:2]]
    return np.concatenate(waves)[: 12 * 16000]


@pytest.fixture(scope="session")
def encoded(speech: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    """The same speech in every format and at several rates."""
    folder = tmp_path_factory.mktemp("encoded")
    paths = {}
    for suffix, (container, subtype) in FORMATS.items():
        for rate in (8000, 16000, 48000) if subtype == "OPUS" else (16000, 22050, 44100):
            wave = scipy.signal.resample_poly(speech, rate // 50, 16000 // 50) * 0.5
            path = folder / f"{rate}.{suffix}"
            soundfile.write(path, wave, rate, format=container, subtype=subtype)
            paths[suffix, rate] = path
    return paths


def test_sixteen_kilohertz_is_returned_as_decoded(speech_files):
    for path in (speech_files[0], speech_files[-1]):
        wave = audio.load(path)
        assert wave.dtype == torch.float32 and wave.ndim == 1
        np.testing.assert_array_equal(wave.numpy(), soundfile.read(path, dtype="float32")[0])
        info = audio.probe(path)
        assert (info.sample_rate, info.channels, info.frames) == (16000, 1, len(wave))
        assert info.duration == len(wave) / 16000
        assert audio.measure(path) == (info, float(wave.abs().max()))


def test_an_excerpt_equals_the_slice_of_the_whole(encoded):
    rng = np.random.default_rng(0)
    for (suffix, rate), path in encoded.items():
        whole = audio.load(path).numpy()
        native = rate == 16000
        tolerance = 2e-6 if not native else 1e-7 if suffix == "mp3" else 0.0  # mpg123 rounds by how it is read
        assert abs(len(whole) - 12 * 16000) <= (0 if native else 2)
        spans = [(0, 1), (0, len(whole) + 99), (len(whole) - 5, 99), (len(whole) + 9, 5), (7, len(whole) - 7)]
        spans += [(int(rng.integers(len(whole))), int(rng.integers(1, 60_000))) for _ in range(12)]
        for start, samples in spans:
            part = audio.load(path, start=start / 16000, duration=samples / 16000).numpy()
            expected = whole[start : start + samples]
            assert part.shape == expected.shape, (suffix, rate, start, samples)
            np.testing.assert_allclose(part, expected, rtol=0, atol=tolerance, err_msg=f"{suffix} {rate}")


def test_seeking_in_compressed_formats_is_why_they_are_decoded_from_the_start(encoded):
    """If libsndfile learns to seek exactly everywhere, this fails and the detour can go."""
    whole = soundfile.read(encoded["opus", 16000], dtype="float32")[0]
    same = 0
    for start in range(0, 160_000, 8001):
        with soundfile.SoundFile(encoded["opus", 16000]) as file:
            file.seek(start)
            same += np.array_equal(file.read(1000, dtype="float32"), whole[start : start + 1000])
    assert same < 20


def test_long_files_decode_to_the_same_in_blocks(encoded, monkeypatch):
    """python-soundfile seeks after every read, which would break the next block of Opus and MP3."""
    whole = {path: soundfile.read(path, dtype="float32")[0] for path in encoded.values()}
    monkeypatch.setattr(audio, "_BLOCK", 5003)
    for (suffix, rate), path in encoded.items():
        if rate == 16000:
            np.testing.assert_allclose(audio.load(path).numpy(), whole[path], rtol=0, atol=1e-7, err_msg=suffix)
        assert audio.measure(path)[1] == pytest.approx(np.abs(whole[path]).max(), abs=1e-7)


def test_resampling_agrees_with_a_polyphase_filter(speech, tmp_path):
    """8 kHz speech doubled by soxr and by scipy: different filters, the same band below 3.5 kHz."""
    low = scipy.signal.resample_poly(speech, 1, 2)
    soundfile.write(tmp_path / "8k.wav", low, 8000, subtype="FLOAT")
    wave = audio.load(tmp_path / "8k.wav").numpy()
    assert len(wave) == 2 * len(low)
    reference = scipy.signal.resample_poly(low, 2, 1, window=("kaiser", 12.0))
    band = scipy.signal.firwin(255, 3000, fs=16000)
    error = scipy.signal.lfilter(band, 1, wave - reference)
    assert np.sqrt(np.mean(error**2)) < 2e-3 * np.sqrt(np.mean(speech**2))


def test_channels_are_averaged(speech, tmp_path):
    stereo = np.stack([speech, 0.25 * speech[::-1]], axis=1)
    soundfile.write(tmp_path / "stereo.wav", stereo, 16000, subtype="FLOAT")
    np.testing.assert_allclose(audio.load(tmp_path / "stereo.wav").numpy(), stereo.mean(axis=1), atol=1e-7)
    assert audio.probe(tmp_path / "stereo.wav").channels == 2


def test_every_kind_of_source_gives_the_same(speech_files):
    path = speech_files[0]
    wave = audio.load(path, start=1.0, duration=2.0)
    assert len(wave) == 32000
    whole, rate = soundfile.read(path, dtype="float32")
    integers = soundfile.read(path, dtype="int16")[0]
    with path.open("rb") as file:
        from_file = audio.load(file, start=1.0, duration=2.0)
    sources = [io.BytesIO(path.read_bytes()), (whole, rate), (torch.from_numpy(whole), rate), (whole[None], rate)]
    sources += [str(path), (integers, rate), (np.stack([whole, whole]), rate)]
    for other in [from_file, *(audio.load(source, start=1.0, duration=2.0) for source in sources)]:
        assert torch.equal(other, wave)


@settings(max_examples=25, deadline=None)
@given(
    rate=st.sampled_from([8000, 11025, 16000, 44100, 48000]),
    samples=st.integers(1, 30_000),
    start=st.floats(0, 1),
    duration=st.none() | st.floats(0, 1),
)
def test_a_waveform_is_cut_where_asked(rate, samples, start, duration):
    wave = np.random.default_rng(samples).standard_normal(samples).astype(np.float32)
    whole = audio.load((wave, rate))
    assert abs(len(whole) - samples * 16000 / rate) < 1
    first = round(start * 16000)
    last = None if duration is None else first + round(duration * 16000)
    assert torch.equal(audio.load((wave, rate), start=start, duration=duration), whole[first:last])


def write_flac(path: Path, wave: np.ndarray) -> bytes:
    soundfile.write(path, wave, 16000)
    return path.read_bytes()


def test_errors_name_the_file_and_the_reason(speech, tmp_path):
    def reason(name: str, *, probe: bool) -> str:
        with pytest.raises(audio.AudioError, match=name) as caught:
            audio.probe(tmp_path / name) if probe else audio.load(tmp_path / name)
        again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301  it crosses processes
        assert (again.reason, str(again)) == (caught.value.reason, str(caught.value))
        return caught.value.reason

    (tmp_path / "text.wav").write_text("this is not audio\n" * 50)
    (tmp_path / "empty.flac").write_bytes(b"")
    (tmp_path / "samples.raw").write_bytes(bytes(1000))
    (tmp_path / "folder.wav").mkdir()
    for name in ("text.wav", "empty.flac", "samples.raw"):
        assert reason(name, probe=False) == reason(name, probe=True) == "unreadable"
    for name in ("absent.wav", "folder.wav"):
        assert reason(name, probe=False) == reason(name, probe=True) == "missing"

    data = write_flac(tmp_path / "cut.flac", speech)
    (tmp_path / "cut.flac").write_bytes(data[: len(data) // 2])
    assert reason("cut.flac", probe=False) == "truncated"
    with pytest.raises(audio.AudioError, match="cut.flac"):
        audio.measure(tmp_path / "cut.flac")
    assert len(audio.load(tmp_path / "cut.flac", duration=1.0)) == 16000  # what is there can be had

    for suffix, kind in {"wav": "WAV", "aiff": "AIFF", "au": "AU", "mp3": "MP3"}.items():
        path = tmp_path / f"short.{suffix}"
        soundfile.write(path, speech, 16000, format=kind)
        assert len(audio.load(path)) == len(speech)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
        assert reason(path.name, probe=False) == "truncated"

    wave = speech.copy()
    wave[100_000] = np.nan
    soundfile.write(tmp_path / "nan.wav", wave, 16000, subtype="FLOAT")
    assert reason("nan.wav", probe=False) == "non-finite"
    with pytest.raises(audio.AudioError, match="nan.wav"):
        audio.measure(tmp_path / "nan.wav")
    with pytest.raises(audio.AudioError, match="negative"):
        audio.load(tmp_path / "nan.wav", start=-1.0)
    with pytest.raises(audio.AudioError, match="shape"):
        audio.load((speech[:, None], 16000))


def test_a_wav_from_a_stream_without_its_size_is_read(speech, tmp_path):
    """Encoders that write to a pipe leave the largest number where the size belongs."""
    soundfile.write(tmp_path / "pipe.wav", speech, 16000)
    data = bytearray((tmp_path / "pipe.wav").read_bytes())
    at = data.index(b"data") + 4
    data[4:8] = data[at : at + 4] = b"\xff\xff\xff\xff"
    (tmp_path / "pipe.wav").write_bytes(data)
    assert len(audio.load(tmp_path / "pipe.wav")) == len(speech)
