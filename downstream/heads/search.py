"""Spoken queries looked for in a stream of documents, layer by layer; what is held of the stream has a limit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s3prl_distiller.engine import distributed

from .dtw import costs
from .moments import Moments

Output = dict[str, Any]
"""``id``, and ``features`` as (layers, frames, D)."""

SHORTEST = 5
"""Frames; a shorter query scores 0 everywhere."""

_AT_ONCE = 32  # documents matched together


class Held:
    """A stream that is run once where its outputs fit into memory, and each time anew where they do not.

    Args:
        stream: gives the outputs from the beginning each time it is called.
        gigabytes: of features that may be held.
    """

    def __init__(self, stream: Callable[[], Iterator[Output]], gigabytes: float):
        self._stream, self._room = stream, gigabytes * 1e9
        self._outputs: list[Output] | None = None

    def __call__(self) -> Iterator[Output]:
        if self._outputs is not None:
            yield from self._outputs
            return
        held: list[Output] = []
        size = 0
        for output in self._stream():
            size += output["features"].numel() * output["features"].element_size()
            held = [] if size > self._room else held
            if size <= self._room:
                held.append(output)
            yield output
        if size <= self._room:
            self._outputs = held


@dataclass(frozen=True)
class Search:
    """How queries are matched.

    Args:
        distance: of two frames, see ``dtw.DISTANCES``.
        standardize: each dimension to mean 0 and standard deviation 1 over all queries and documents.
        minmax: scale the distances of each frame of a query to 0 ... 1 within a document.
    """

    distance: str = "cosine_exp"
    standardize: bool = True
    minmax: bool = True

    def __call__(
        self, queries: Iterable[Output], documents: Callable[[], Iterator[Output]]
    ) -> tuple[list[str], list[str], np.ndarray]:
        """Ids of queries and documents, and the score of each pair, z-normalised over the documents of a query.

        Args:
            queries: held in memory all together.
            documents: gives them from the beginning each time it is called, which is twice where frames are
                standardised. Of several processes each may have some only.

        Returns:
            Ids of the queries and documents, and scores of shape (layers, queries, documents).
        """
        asked = distributed.gather([_shared(output) for output in queries])
        moments = Moments()
        for output in documents() if self.standardize else ():
            moments.add(output["features"])
        frames = self.moments([output["features"] for output in asked], distributed.gather([moments]))
        columns: list[tuple[str, Tensor]] = []
        for some in _batches(documents()):
            found = self.match([one["features"] for one in asked], [one["features"] for one in some], frames)
            columns += zip((one["id"] for one in some), found.unbind(-1), strict=True)
        columns = distributed.gather(columns)
        scores = torch.stack([column for _, column in columns], dim=-1).double().numpy()
        scores -= scores.mean(-1, keepdims=True)
        scores /= np.maximum(scores.std(-1, keepdims=True), 1e-9)
        return [output["id"] for output in asked], [name for name, _ in columns], scores

    def moments(self, features: Iterable[Tensor], others: Sequence[Moments] = ()) -> Moments | None:
        """What to standardise by: the moments of all frames of some utterances, and of others; None if not at all."""
        if not self.standardize:
            return None
        result = Moments()
        for moments in others:
            result.merge(moments)
        for one in features:
            result.add(one)
        return result

    def match(self, queries: Sequence[Tensor], documents: Sequence[Tensor], moments: Moments | None) -> Tensor:
        """Scores as they are, (layers, queries, documents): 0 for a perfect match, less for others."""
        device, layers = documents[0].device, documents[0].shape[0]
        scores = torch.zeros(layers, len(queries), len(documents))
        long = [number for number, query in enumerate(queries) if query.shape[1] >= SHORTEST]
        for layer in range(layers):
            mean, deviation = moments.of(layer, device) if moments else (0.0, 1.0)
            left = [(queries[number][layer].to(device).float() - mean) / deviation for number in long]
            right = [(document[layer].float() - mean) / deviation for document in documents]
            scores[layer, long] = -costs(left, right, self.distance, self.minmax)
        return scores


def _shared(output: Output) -> Output:
    """On the CPU, where other processes are to have it too."""
    return output if distributed.world() == 1 else {**output, "features": output["features"].cpu()}


def _batches(items: Iterator[Output]) -> Iterator[list[Output]]:
    batch: list[Output] = []
    for item in items:
        batch.append(item)
        if len(batch) == _AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch
