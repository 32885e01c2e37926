"""Make the bundled quick-start corpus: synthetic speech in three languages as Ogg/Opus, 16 kHz mono.

    pip install espeakng-loader        # or: pip install "s3prl-distiller[quickstart]"
    python scripts/make_quickstart_corpus.py [--out DIR] [--seed 0]

The same seed gives the same manifests and the same samples before encoding; with the same versions of espeak-ng, numpy,
soxr and libsndfile it gives the same bytes. What is said, and by whom, stands in ``quickstart_texts.yaml``.
"""

import argparse
import ctypes
import hashlib
import io
import json
import multiprocessing
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import soxr
import yaml

HERE = Path(__file__).resolve().parent
DEFAULT_OUT = HERE.parent / "s3prl_distiller" / "quickstart" / "corpus"
SAMPLE_RATE = 16000
SPLITS = ("train", "dev", "test")
OPUS_KBPS = 12  # what libopus is asked for; its variable rate makes 12-18 of it
STREAM_SERIAL = 1

# espeak-ng's C interface (speak_lib.h)
SYNCHRONOUS, CHARS_UTF8, RATE, VOLUME, PITCH, RANGE = 2, 1, 1, 2, 3, 4
SynthCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True)
class Speaker:
    """One synthetic speaker: a voice and variant of espeak-ng at a constant pitch, pitch range and rate."""

    name: str
    voice: str
    lang: str
    split: str
    pitch: int  # 0-99
    pitch_range: int  # 0-99
    rate: int  # words per minute


@dataclass(frozen=True)
class Job:
    """One utterance to make. ``spoken`` is what the synthesiser gets; ``text`` is what the manifest says."""

    id: str
    speaker: Speaker
    kind: str  # "sentence" or "keyword"
    text: str
    spoken: str
    label: str | None
    seed: int


def generator(seed: int, key: str) -> np.random.Generator:
    """A random generator of its own for each name, so that adding an utterance changes no other."""
    return np.random.default_rng([seed, zlib.crc32(key.encode())])


def split_of(position: int) -> str:
    """The split of the sentence at this place of its language's list: one in ten dev, two in ten test."""
    return {4: "test", 8: "dev", 9: "test"}.get(position % 10, "train")


def plan(texts: dict[str, Any], seed: int) -> list[Job]:
    """Every utterance of the corpus, in a fixed order."""
    jobs: list[Job] = []
    for key, part in texts.items():
        for split in SPLITS:
            pool = [s for i, s in enumerate(part["sentences"]) if split_of(i) == split]
            for voice in part["speakers"][split]:
                rng = generator(seed, voice)
                pitch, spread, rate = int(rng.integers(30, 71)), int(rng.integers(35, 71)), int(rng.integers(130, 181))
                speaker = Speaker(voice.replace("+", "_"), voice, part.get("lang", key), split, pitch, spread, rate)
                deck = rng.permutation(pool).tolist()
                for n in range(part["sentences_per_speaker"]):
                    text = draw(deck, rng, rate)
                    jobs.append(Job(f"{speaker.name}_s{n:02d}", speaker, "sentence", text, text, None, seed))
                for label, word in part.get("keywords", {}).items():
                    for mark, tone in ((".", "fall"), ("?", "rise")):  # said and asked: two takes that differ
                        name = f"{speaker.name}_{label}_{tone}"
                        jobs.append(Job(name, speaker, "keyword", word, word + mark, label, seed))
    return jobs


def draw(deck: list[str], rng: np.random.Generator, rate: int) -> str:
    """Take one sentence from the top of the deck, or two where both fit a target length; used ones go to the bottom."""
    room = rng.uniform(2.5, 7.5) * rate / 60  # words
    text = deck[0]
    deck.append(deck.pop(0))
    if len(text.split()) + len(deck[0].split()) <= room:
        text = f"{text} {deck[0]}"
        deck.append(deck.pop(0))
    return text


def synthesise(speaker: Speaker, text: str, seed: int) -> np.ndarray:
    """Speech as float32 samples at 16 kHz, silence at both ends removed.

    espeak-ng carries state from one text to the next, so call this once a process to get the same samples every time.
    """
    import espeakng_loader  # pyright: ignore[reportMissingImports]

    data = Path(espeakng_loader.get_data_path())
    variant = speaker.voice.partition("+")[2]
    if not (data / "voices" / "!v" / variant).is_file():  # espeak-ng itself would silently speak without it
        raise ValueError(f"espeak-ng has no variant {variant!r}: change {speaker.voice!r} in quickstart_texts.yaml")
    lib = ctypes.CDLL(espeakng_loader.get_library_path())
    rate = lib.espeak_Initialize(SYNCHRONOUS, 0, str(data).encode(), 0)
    if rate <= 0:
        raise RuntimeError(f"espeak-ng does not start with the data in {data}: reinstall espeakng-loader")
    lib.espeak_ng_SetRandSeed(ctypes.c_long(seed))
    pieces: list[np.ndarray] = []

    @SynthCallback
    def collect(samples: Any, count: int, _events: Any) -> int:
        if samples and count > 0:
            pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    lib.espeak_SetSynthCallback(collect)
    if lib.espeak_SetVoiceByName(speaker.voice.encode()) != 0:
        raise ValueError(f"espeak-ng has no voice {speaker.voice!r}: change it in quickstart_texts.yaml")
    # Half volume: at full volume some variants clip inside the synthesiser.
    for name, value in ((VOLUME, 50), (PITCH, speaker.pitch), (RANGE, speaker.pitch_range), (RATE, speaker.rate)):
        lib.espeak_SetParameter(name, value, 0)
    utf8 = text.encode()
    lib.espeak_Synth(utf8, ctypes.c_size_t(len(utf8) + 1), 0, 1, 0, CHARS_UTF8, None, None)
    wav = np.concatenate(pieces or [np.zeros(1, np.int16)]).astype(np.float32) / 32768
    sound = np.flatnonzero(np.abs(wav) > 1e-3)
    if not len(sound):
        raise RuntimeError(f"espeak-ng gave no sound for {text!r} with voice {speaker.voice!r}")
    return soxr.resample(wav[sound[0] : sound[-1] + 1], rate, SAMPLE_RATE)


def place(wav: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Put dry speech [samples] into a light room with noise, at a varied level; the peak stays under 0.85."""
    lead, trail = rng.uniform(0.08, 0.25, 2)
    if kind == "keyword":  # a second in all where the word allows it
        spare = max(1.0 - len(wav) / SAMPLE_RATE, 0.1)
        lead = spare * rng.uniform(0.2, 0.6)
        trail = spare - lead
    wav = np.pad(wav, (round(lead * SAMPLE_RATE), round(trail * SAMPLE_RATE))).astype(np.float64)
    n = len(wav)
    if rng.random() < 0.4:
        decay = rng.uniform(0.1, 0.35)  # seconds to -60 dB
        time = np.arange(int(decay * SAMPLE_RATE)) / SAMPLE_RATE
        tail = rng.standard_normal(len(time)) * 10 ** (-3 * time / decay) * (time > rng.uniform(0.002, 0.008))
        room = tail * 10 ** (-rng.uniform(6, 14) / 20) / np.linalg.norm(tail)
        room[0] = 1.0
        size = n + len(room)
        wav = np.fft.irfft(np.fft.rfft(wav, size) * np.fft.rfft(room, size), size)[:n]
    active = wav[np.abs(wav) > 0.02 * np.abs(wav).max()]
    wav /= np.sqrt(np.mean(active**2))
    slope = rng.uniform(0.0, 1.0)  # white to roughly pink
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(n)) / np.maximum(np.arange(n // 2 + 1), 20) ** (slope / 2), n)
    wav += noise / noise.std() * 10 ** (-rng.uniform(25, 40) / 20)
    wav *= 10 ** (rng.uniform(-26, -18) / 20)
    return (wav * min(1.0, 0.85 / np.abs(wav).max())).astype(np.float32)


def encode(wav: np.ndarray) -> bytes:
    """Ogg/Opus bytes of samples at 16 kHz."""
    buffer = io.BytesIO()
    level = 1 - (OPUS_KBPS - 6) / 250  # libsndfile's scale: 6 kbit/s at 1, 256 at 0
    sf.write(buffer, wav, SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=level)
    return canonical_ogg(buffer.getvalue())


def canonical_ogg(data: bytes) -> bytes:
    """The same stream with a fixed serial number and no padding in its comments.

    libsndfile draws the serial number at random and pads the comments with 512 zeros: the files would differ from run
    to run, and a keyword clip would be a quarter larger.
    """
    out, at = [], 0
    while at < len(data):
        count = data[at + 26]
        start = at + 27 + count
        lacing = data[at + 27 : start]
        body = data[start : start + sum(lacing)]
        at = start + len(body)
        if body.startswith(b"OpusTags"):
            vendor = 12 + int.from_bytes(body[8:12], "little")
            body = body[:vendor] + bytes(4)  # then the count of comments: none
            lacing = bytes([255] * (len(body) // 255) + [len(body) % 255])
        head = data[start - count - 27 : start - count]
        head = head[:14] + STREAM_SERIAL.to_bytes(4, "little") + head[18:22] + bytes(4) + bytes([len(lacing)])
        page = head + lacing + body
        out.append(page[:22] + ogg_crc(page).to_bytes(4, "little") + page[26:])
    return b"".join(out)


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        crc = value << 24
        for _ in range(8):
            crc = (crc << 1 ^ 0x04C11DB7 if crc & 0x80000000 else crc << 1) & 0xFFFFFFFF
        table.append(crc)
    return table


CRC_TABLE = _crc_table()


def ogg_crc(page: bytes) -> int:
    """The checksum of an Ogg page whose own checksum field is zero (RFC 3533)."""
    crc = 0
    for byte in page:
        crc = (crc << 8 & 0xFFFFFFFF) ^ CRC_TABLE[crc >> 24 ^ byte]
    return crc


def render(job: Job) -> np.ndarray:
    """The samples of one utterance before encoding, float32 at 16 kHz. Once a process, as ``synthesise``."""
    key = zlib.crc32(f"{job.seed} {job.id}".encode()) & 0x7FFFFFFF
    return place(synthesise(job.speaker, job.spoken, key), job.kind, generator(job.seed, job.id))


def make(job: Job) -> tuple[dict[str, Any], bytes]:
    """Manifest entry and Ogg/Opus bytes of one utterance."""
    wav = render(job)
    entry = {"id": job.id, "audio": f"audio/{job.id}.opus", "duration": round(len(wav) / SAMPLE_RATE, 4)}
    entry |= {"speaker": job.speaker.name, "lang": job.speaker.lang, "text": job.text, "kind": job.kind}
    if job.label is not None:
        entry["label"] = job.label
    return entry, encode(wav)


def make_all(jobs: list[Job]) -> Iterator[tuple[dict[str, Any], bytes]]:
    """``make`` of each job, in order, each in a fresh process."""
    with multiprocessing.Pool(maxtasksperchild=1) as pool:
        results = pool.imap(make, jobs)
        for _ in jobs:
            yield results.next(timeout=300)  # a pool waits for ever on a process that crashed


def manifests(jobs: list[Job], entries: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Manifest name -> its entries: the three splits, and the training part without what was said."""
    parts = {split: [e for j, e in zip(jobs, entries, strict=True) if j.speaker.split == split] for split in SPLITS}
    unlabelled = ("id", "audio", "duration", "speaker", "lang")
    return parts | {"pretrain": [{key: e[key] for key in unlabelled} for e in parts["train"]]}


def write(out: Path, files: dict[str, bytes]) -> None:
    """Write the files and SHA256SUMS, in place of the audio that an earlier run left in ``out/audio``."""
    (out / "audio").mkdir(parents=True, exist_ok=True)
    for old in (out / "audio").glob("*.opus"):
        old.unlink()
    for name, data in files.items():
        (out / name).write_bytes(data)
    sums = "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
    (out / "SHA256SUMS").write_bytes(sums.encode())


def table(parts: dict[str, list[dict[str, Any]]]) -> str:
    """The counts by split and language as a Markdown table."""
    rows = ["| split | language | speakers | sentences | keyword clips | minutes |", "|---|---|---|---|---|---|"]
    total = [e for split in SPLITS for e in parts[split]]
    groups = [(s, lang, [e for e in parts[s] if e["lang"] == lang]) for s in SPLITS for lang in ("en", "pt-BR", "es")]
    for split, lang, group in [*groups, ("all", "", total)]:
        sentences = sum(e["kind"] == "sentence" for e in group)
        minutes = sum(e["duration"] for e in group) / 60
        speakers = len({e["speaker"] for e in group})
        rows.append(f"| {split} | {lang} | {speakers} | {sentences} | {len(group) - sentences} | {minutes:.1f} |")
    return "\n".join(rows)


def main(argv: list[str] | None = None) -> int:
    """Make the corpus; returns the exit status."""
    parser = argparse.ArgumentParser(description="Make the bundled quick-start corpus of synthetic speech.")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="new folder (default: replace the bundled one)")
    parser.add_argument("--seed", type=int, default=0, help="changes voices, pairing of sentences, rooms and noise")
    args = parser.parse_args(argv)
    if find_spec("espeakng_loader") is None:
        parser.error('espeakng_loader is not installed: pip install "s3prl-distiller[quickstart]"')
    if args.seed < 0:
        parser.error("--seed must be 0 or more")
    if args.out.exists() and not args.out.is_dir():
        parser.error(f"--out {args.out} is a file: name a folder")
    if args.out.is_dir() and args.out.resolve() != DEFAULT_OUT and any(args.out.iterdir()):
        parser.error(f"--out {args.out} is not empty: name a new folder (only the bundled corpus is replaced)")
    jobs = plan(yaml.safe_load((HERE / "quickstart_texts.yaml").read_text("utf-8")), args.seed)
    entries, files = [], {}
    for entry, data in make_all(jobs):
        entries.append(entry)
        files[entry["audio"]] = data
    parts = manifests(jobs, entries)
    for name, lines in parts.items():
        files[f"{name}.jsonl"] = "".join(json.dumps(e, ensure_ascii=False) + "\n" for e in lines).encode()
    write(args.out, files)
    print(table(parts))
    print(f"{len(entries)} clips, {sum(map(len, files.values())) / 1e6:.2f} MB in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
