"""Subsequence dynamic time warping, a query anywhere in a document, for many queries and documents at once.

The path takes every frame of the query in turn and moves on by 0, 1 or 2 frames of the document at each (Sakoe and
Chiba's asymmetric pattern without slope constraint), begins and ends at any frame of the document, and costs the sum of
the distances it meets divided by the frames of the query. This is what s3prl has ``dtw`` do with ``step_pattern:
asymmetric`` and ``subsequence: True``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

DISTANCES = ("cosine_exp", "cosine", "euclidean", "cityblock")

_CELLS = {"cpu": 1 << 20, "cuda": 1 << 28}
"""Distances held at a time: on a CPU what its caches hold, on a GPU what keeps it busy (1 GiB)."""


def costs(
    queries: Sequence[Tensor], documents: Sequence[Tensor], distance: str = "cosine_exp", minmax: bool = True
) -> Tensor:
    """The lowest cost of each query in each document, (queries, documents), in float32 on the CPU.

    Args:
        queries: (frames, D) each, all on one device.
        documents: (frames, D) each, on that device too.
        distance: of two frames: "cosine_exp", which is exp(1 - cosine) - 1, "cosine", "euclidean" or "cityblock".
        minmax: scale the distances of each frame of a query to all frames of a document to 0 ... 1.

    Raises:
        ValueError: the distance is not known.
    """
    if distance not in DISTANCES:
        raise ValueError(f"{distance!r} is not a distance between frames: use one of {', '.join(DISTANCES)}")
    result = torch.empty(len(queries), len(documents))
    if not len(queries) or not len(documents):
        return result
    cells = _CELLS.get(queries[0].device.type, _CELLS["cuda"])
    # A document that is longer than what is held at a time is still taken whole, with one query at a time.
    for some in _parts([len(document) for document in documents], max(1, cells // (1 << 7))):
        batch, lengths = _pad([documents[index] for index in some])
        for few in _parts([len(query) for query in queries], max(1, cells // (batch.shape[0] * batch.shape[1]))):
            rows, frames = _pad([queries[index] for index in few])
            with torch.autocast(rows.device.type, enabled=False):
                distances = _distances(rows, batch, distance)
            if minmax:
                low, high = distances.amin(-1, keepdim=True), distances.amax(-1, keepdim=True)
                distances.sub_(low).div_((high - low).clamp_(min=1e-9))
            found = _lowest(distances, frames, lengths).cpu()
            result[torch.tensor(few)[:, None], torch.tensor(some)] = found
    return result


def _parts(lengths: Sequence[int], frames: int) -> Iterator[list[int]]:
    """Indices in groups of similar length whose padded size is about ``frames``, one at least in each."""
    part: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if part and (len(part) + 1) * lengths[index] > frames:
            yield part
            part = []
        part.append(index)
    yield part


def _pad(items: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
    """(N, T, D) and the length of each. Padding repeats the last frame, which no minimum or maximum notices."""
    longest = max(map(len, items))
    padded = [F.pad(item.float()[None], (0, 0, 0, longest - len(item)), mode="replicate") for item in items]
    return torch.cat(padded), [len(item) for item in items]


def _distances(rows: Tensor, documents: Tensor, distance: str) -> Tensor:
    """Of (Q, T, D) and (N, S, D), as (Q, T, N, S)."""
    shape = (*rows.shape[:2], *documents.shape[:2])
    left, right = rows.flatten(0, 1), documents.flatten(0, 1)
    if distance in ("euclidean", "cityblock"):
        return torch.cdist(left, right, p=2.0 if distance == "euclidean" else 1.0).view(shape)
    cosine = F.normalize(left, dim=-1) @ F.normalize(right, dim=-1).T
    gap = cosine.neg_().add_(1)
    return (gap.expm1_() if distance == "cosine_exp" else gap).view(shape)


def _lowest(distances: Tensor, frames: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """Cost of the best path per frame of the query, (Q, N), from distances (Q, T, N, S)."""
    device = distances.device
    ends = torch.arange(distances.shape[-1], device=device) < torch.tensor(lengths, device=device)[:, None]
    result = distances.new_empty(distances.shape[0], distances.shape[2])
    # Two columns of infinity in front stand for what lies before the document. A path never turns back, so that what
    # happens in the padding has no effect on the columns before it; it only must not end there.
    state = F.pad(distances[:, 0], (2, 0), value=float("inf"))
    for row in range(max(frames)):
        if row:
            best = torch.minimum(state[..., 2:], state[..., 1:-1])
            torch.minimum(best, state[..., :-2], out=best)
            torch.add(best, distances[:, row], out=state[..., 2:])
        for index in [index for index, count in enumerate(frames) if count == row + 1]:
            result[index] = state[index, :, 2:].masked_fill(~ends, float("inf")).amin(-1) / (row + 1)
    return result
