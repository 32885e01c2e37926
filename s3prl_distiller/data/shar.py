"""What lhotse wrote: cuts, recordings, and Shar folders, whose tars are indexed and read in place."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lhotse import CutSet, MonoCut, MultiCut, Recording
from lhotse.cut import Cut
from lhotse.lazy import LazyJsonlIterator, LazyManifestIterator
from lhotse.serialization import deserialize_item

from .utterance import TarMember, Utterance


def read_lhotse(path: Path) -> Iterator[Utterance]:
    """Utterances of a cuts or recordings file. Relative audio paths are tried from here, then from its folder."""
    for number, item in enumerate(_items(path), 1):
        cut = item.to_cut() if isinstance(item, Recording) else item
        if not isinstance(cut, Cut) or not cut.has_recording:
            raise ValueError(f"{path}, item {number}: {type(item).__name__} without a recording, so there is no audio")
        yield from_cut(cut, path.parent)


def _items(path: Path) -> Iterator[Any]:
    try:
        yield from LazyManifestIterator(path)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not lhotse cuts or recordings ({error!r})") from error


def from_cut(cut: Cut, folder: Path) -> Utterance:
    """The utterance of a cut: its file where that says it all, else the cut itself, decoded by lhotse."""
    if not isinstance(cut, (MonoCut, MultiCut)):
        return Utterance(cut.id, cut.id, cut, duration=cut.duration)
    recording, custom = cut.recording, cut.custom
    assert recording is not None
    channels = [cut.channel] if isinstance(cut.channel, int) else cut.channel
    one_file = len(recording.sources) == 1 and recording.sources[0].type == "file"
    if not one_file or recording.transforms or set(channels) != set(recording.channel_ids or [0]):
        return Utterance(cut.id, recording.id, cut, duration=cut.duration, custom=custom)
    file = str(recording.sources[0].source)
    if not os.path.exists(file):
        file = os.path.join(folder, file)
    return Utterance(cut.id, recording.id, file, cut.start, cut.duration, custom=custom)


def read_shar(folder: Path) -> Iterator[Utterance]:
    """Utterances of a Shar folder. Only the tars' member headers are read."""
    cuts = {_shard(p): p for p in sorted(folder.glob("cuts.*.jsonl*"))}
    audio = {_shard(p): p for p in sorted(folder.glob("recording.*"))}
    if set(cuts) != set(audio):
        odd = ", ".join(sorted(set(cuts) ^ set(audio))[:5])
        raise ValueError(f"{folder}: shards without their counterpart of cuts.*.jsonl.gz and recording.*.tar: {odd}")
    for shard, path in cuts.items():
        if audio[shard].suffix == ".tar":
            yield from _tar_shard(path, audio[shard])
        elif ".jsonl" in audio[shard].name:
            yield from _jsonl_shard(path, audio[shard])
        else:
            raise ValueError(f"{audio[shard]}: only uncompressed .tar (or .jsonl.gz) shards can be read in place")


def _shard(path: Path) -> str:
    return path.name.split(".")[1]


def _tar_shard(cuts: Path, tar: Path) -> Iterator[Utterance]:
    """Shar stores the audio of each cut already cut out, in the order of the cuts, its manifest after it."""
    try:
        with tarfile.open(tar, "r:") as archive:
            members = [(m.name, m.offset_data, m.size) for m in archive]
    except tarfile.TarError as error:
        raise ValueError(f"{tar}: not a readable tar ({error})") from error
    data = [m for m in members if not m[0].endswith((".json", ".nometa"))]
    rows = list(CutSet(LazyManifestIterator(cuts)))
    if len(rows) != len(data):
        raise ValueError(f"{tar}: holds audio of {len(data)} cuts, but {cuts.name} lists {len(rows)}")
    path = str(tar)  # one text for all of its members
    for cut, (name, offset, size) in zip(rows, data, strict=True):
        if os.path.splitext(name)[0] != cut.id:
            raise ValueError(f"{tar}: holds {name!r} where {cuts.name} has cut {cut.id!r}")
        group = getattr(getattr(cut, "recording", None), "id", cut.id)
        custom = getattr(cut, "custom", None)
        yield Utterance(
            cut.id, cut.id if group == cut.id else group, TarMember(path, name, offset, size), custom=custom
        )


def _jsonl_shard(cuts: Path, recordings: Path) -> Iterator[Utterance]:
    for cut, row in zip(LazyManifestIterator(cuts), LazyJsonlIterator(recordings), strict=True):
        if row.get("cut_id") != cut.id or "recording" not in row:
            raise ValueError(f"{recordings}: no recording for cut {cut.id!r} where {cuts.name} has it")
        cut.recording = deserialize_item(row["recording"])
        yield from_cut(cut, cuts.parent)
