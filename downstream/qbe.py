"""Query by example as in SUPERB: which documents hold a spoken query? Nothing is trained.

Each frame of each layer is standardised by the mean and standard deviation over all queries and documents of the split;
the distances of a query's frame to a document's are scaled to 0 ... 1; the score is the cost of the best subsequence
alignment (``heads/dtw.py``) with its sign changed, then z-normalised over the documents of a query. A query of fewer
than 5 frames scores 0 everywhere. The layer is the one with the highest MTWV (``metrics/mtwv.py``) on dev.

Documents are streamed (``heads/search.py``): beside the queries' features and, where they fit into ``task.keep_gb``,
the documents', only scores are held.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from s3prl_distiller.audio import SAMPLE_RATE
from s3prl_distiller.data.utterance import Utterance, as_bytes

from .core import task as base
from .core.task import Predict, Row, Splits
from .core.untrained import UntrainedTask
from .corpora import quesst14
from .corpora.absent import absent
from .corpora.manifest import manifest_folder, read_manifest
from .heads import dtw
from .heads.search import SHORTEST, Held, Search
from .metrics.mtwv import beta, mtwv

_MANIFESTS = "qbe_queries.jsonl with the key 'relevant' (ids of documents), qbe_docs.jsonl, and qbe_dev_queries.jsonl"


@dataclass
class QbeConfig(base.TaskConfig):
    """Section ``task`` of query by example."""

    layer: int | None = None
    """use this hidden state (-1: the last) and choose none on dev"""
    distance: str = "cosine_exp"
    """between frames: cosine_exp, cosine, euclidean or cityblock"""
    standardize: bool = True
    """each dimension of the features to mean 0 and standard deviation 1"""
    minmax: bool = True
    """scale the distances of each frame of a query to 0 ... 1 within a document"""
    beta: float | None = None
    """of MTWV; null: the one of the QUESST 2014 scorer"""
    keep_gb: float = 4.0
    """features of documents held, so that the upstream runs once; where they need more it runs for each pass"""


class Task(UntrainedTask):
    """Query by example.

    A split's utterances are its queries, then its documents; ``custom["role"]`` says which. The bootstrap draws
    queries, each with all of its documents.
    """

    name = "qbe"
    config_class = QbeConfig
    metric = "mtwv"
    higher_is_better = True
    metric_in_words = "MTWV"
    resample_by = "query"
    units = {"mtwv": "%", "mtwv_trials": "%"}
    published = {"dev": 138 + 2438, "test": 138 + 2438}

    def __init__(self, config: QbeConfig):
        super().__init__(config)
        if config.distance not in dtw.DISTANCES:
            raise ValueError(f"task.distance={config.distance!r} is not known: use one of {', '.join(dtw.DISTANCES)}")
        if config.beta is not None and not config.beta >= 0 or not config.keep_gb >= 0:
            raise ValueError("task.beta and task.keep_gb must be 0 or more")
        self.scoring = quesst14.Scoring()
        self._search = Search(config.distance, config.standardize, config.minmax)
        self._held: tuple[list[str], Held] | None = None  # documents, by their ids: dev and test share them
        self._choosing = False

    # Data

    def read(self, root: Path) -> Splits:
        folder = manifest_folder(root, "keywords_mini", ["qbe_queries.jsonl", "qbe_docs.jsonl"])
        if folder:
            parts = self._read_manifests(folder)
        else:
            corpus = quesst14.find_quesst14(root)
            if corpus is None:
                raise absent(root, "QUESST 2014", quesst14.SOURCE, quesst14.TREE, f"{_MANIFESTS} if there is one")
            parts, self.scoring = quesst14.read_quesst14(corpus)
            if self.scoring.beta is None:
                self.notes.append(f"no score-TWV-Cnxe.sh in {corpus / 'scoring'}: beta is that of QUESST 2015")
            self.notes.append(
                "mtwv counts the queries of all languages, as the corpus's scorer does; mtwv_trials those searched"
            )
        return {
            split: [_with_role(query, "query") for query in queries]
            + [_with_role(one, "document") for one in documents]
            for split, (queries, documents) in parts.items()
        }

    def _read_manifests(self, folder: Path) -> dict[str, tuple[list[Utterance], list[Utterance]]]:
        for name in ("qbe_queries.jsonl", "qbe_docs.jsonl"):
            if not (folder / name).is_file():
                raise ValueError(f"{folder} has no {name}: query by example needs {_MANIFESTS} if there is one")
        documents = read_manifest(folder / "qbe_docs.jsonl")
        known = {document.id for document in documents}
        queries = _read_queries(folder / "qbe_queries.jsonl", known)
        if (folder / "qbe_dev_queries.jsonl").is_file():
            parts = {"dev": _read_queries(folder / "qbe_dev_queries.jsonl", known), "test": queries}
        else:
            dev, test = _halve(queries)
            parts = {"dev": dev, "test": test, "all": queries}
            self.notes.append(
                f"no qbe_dev_queries.jsonl: of {len(queries)} queries, {len(dev)} that a hash picks choose the layer "
                f"(dev) and {len(test)} are the test; the split 'all' has both, and half of it chose the layer"
            )
        return {split: (some, documents) for split, some in parts.items()}

    def prepare(self, splits: Splits, downsample_rate: int) -> None:
        for split, utterances in splits.items():
            documents = [utterance for utterance in utterances if _role(utterance) == "document"]
            there = {one.id for one in documents if round((one.duration or 0.0) * SAMPLE_RATE) >= downsample_rate}
            kept = []
            for utterance in utterances:
                if round((utterance.duration or 0.0) * SAMPLE_RATE) < downsample_rate:
                    self.leave_out(split, utterance, "shorter than one frame of the features")
                    continue
                if _role(utterance) == "query":
                    relevant = _relevant(utterance)
                    utterance = replace(utterance, custom={**(utterance.custom or {}), "relevant": relevant & there})
                    if relevant and not relevant & there:
                        self.leave_out(split, utterance, "no document that holds it can be used")
                        continue
                kept.append(utterance)
            matched = sum(1 for u in kept if _role(u) == "query" and _relevant(u))
            if not matched or not there:
                raise ValueError(
                    f"{split} has {matched} queries that some document holds, and {len(there)} documents: one of each "
                    "is needed at least"
                )
            self.splits[split] = kept

    # Judging

    def predict(
        self, head: nn.Module, features: Tensor, lengths: Tensor, utterances: Sequence[Utterance]
    ) -> list[dict[str, Any]]:
        """Features of each utterance, (L, frames, D), on the device they are on; one layer once it is chosen."""
        if self.layer is not None and not self._choosing:
            features = self.select_layer(features, self.layer)
        return [
            {"id": utterance.id, "features": states[:, :count]}
            for utterance, states, count in zip(utterances, features, lengths.tolist(), strict=True)
        ]

    def evaluate(self, split: str, predict: Predict) -> list[Row]:
        """As the base; on dev every layer is tried and one chosen. In a split without roles, which is a user's own
        files, the first is the query."""
        utterances = self.splits[split]
        queries = [utterance for utterance in utterances if _role(utterance) == "query"]
        documents = [utterance for utterance in utterances if _role(utterance) == "document"]
        if not queries:
            outputs = {output["id"]: output for output in predict(utterances)}
            return self.rows([outputs[u.id] for u in utterances if u.id in outputs], None)
        if split != "dev" and self.layer is None:
            if "dev" not in self.splits:
                raise ValueError("there is no dev to choose a layer on: set task.layer")
            self.evaluate("dev", predict)
        ids = [document.id for document in documents]
        if self._held is None or self._held[0] != ids:
            self._held = ids, Held(lambda: predict(documents), self.config.keep_gb)
        stream = self._held[1]
        self._choosing = split == "dev" and self.config.layer is None
        try:
            asked, found, scores = self._search(predict(queries), lambda: map(self._in_use, stream()))
        finally:
            self._choosing, choosing = False, self._choosing
        sort = _order(queries, asked), _order(documents, found)
        relevant = {query.id: _relevant(query) for query in queries}
        rows = [
            self._rows([asked[q] for q in sort[0]], [found[d] for d in sort[1]], layer[np.ix_(*sort)], relevant, split)
            for layer in scores
        ]
        if choosing:
            self.layers = [round(self.score(some)["mtwv"], 4) for some in rows]
            self.layer = int(np.argmax(self.layers))
        return rows[self.layer if choosing and self.layer else 0]

    def _in_use(self, output: dict[str, Any]) -> dict[str, Any]:
        """Without the layers that are not in use, where they were held when one was chosen."""
        layers = output["features"]
        return output if self._choosing or len(layers) == 1 else {**output, "features": layers[[self.layer]]}

    def _rows(
        self, queries: list[str], documents: list[str], scores: np.ndarray, relevant: Mapping[str, set[str]], split: str
    ) -> list[Row]:
        counted = self.scoring.of(split)
        return [
            {
                "id": f"{query} {document}",
                "query": query,
                "doc": document,
                "score": round(float(score), 6),
                "label": int(document in relevant[query]),
                **counted,
            }
            for query, line in zip(queries, scores, strict=True)
            for document, score in zip(documents, line, strict=True)
        ]

    def rows(self, outputs: Sequence[dict[str, Any]], split: str | None) -> list[Row]:
        """Of a user's own files: the first output is the query, the others are documents. Scores are not normalised:
        0 is a perfect match, and with ``task.minmax`` -1 the worst."""
        if split is not None:
            raise ValueError("query by example is evaluated split by split: call evaluate")
        if len(outputs) < 2:
            raise ValueError("query by example needs two files or more: the query, then documents to look for it in")
        features = [output["features"][-1:] for output in outputs]  # the chosen layer is alone, else the last is taken
        if features[0].shape[1] < SHORTEST:
            raise ValueError(f"the query {outputs[0]['id']} has {features[0].shape[1]} frames: {SHORTEST} are needed")
        scores = self._search.match(features[:1], features[1:], self._search.moments(features))[0, 0]
        return [
            {
                "id": f"{outputs[0]['id']} {output['id']}",
                "query": outputs[0]["id"],
                "doc": output["id"],
                "score": round(float(score), 6),
                "label": None,
                "layer": self.layer,
            }
            for output, score in zip(outputs[1:], scores, strict=True)
        ]

    def score(self, rows: Sequence[Row]) -> dict[str, float]:
        """``mtwv``, and where the corpus has queries and documents that were not searched (SUPERB leaves out other
        languages than English) ``mtwv_trials`` over what was searched alone.

        The QUESST scorer counts what a system does not report as not found: queries of the other languages are missed
        and their documents rightly rejected. Figures in SUPERB's table are of that kind, and so is ``mtwv``.
        """
        if not rows:
            return {"mtwv": math.nan}
        # A bootstrap does this a thousand times: a list for each key is four times as fast as tuples for each row.
        queries, documents, labels, scores = ([row[key] for row in rows] for key in ("query", "doc", "label", "score"))
        numbers = {query: number for number, query in enumerate(dict.fromkeys(queries))}
        places = np.fromiter(map(numbers.__getitem__, queries), dtype=np.int64, count=len(queries))
        weight = rows[0].get("beta", beta()) if self.config.beta is None else self.config.beta
        trials = (places, len(set(documents)), labels, scores, weight)
        alone = 100 * mtwv(*trials).value
        if "corpus_queries" not in rows[0]:
            return {"mtwv": alone}
        whole = mtwv(*trials, rows[0]["corpus_queries"], rows[0]["corpus_documents"]).value
        return {"mtwv": 100 * whole, "mtwv_trials": alone}

    def figures(self, rows: Sequence[Row], folder: Path) -> Iterable[Path]:
        from .pictures.detection import draw_scores

        kinds = {"relevant": 1, "irrelevant": 0}
        scores = {name: [row["score"] for row in rows if row["label"] == label] for name, label in kinds.items()}
        pictures = [
            draw_scores(scores, {}, "score, z-normalised over a query's documents", "pairs", folder / "scores.png")
        ]
        return [*pictures, *self.layers_picture(folder)]

    def say(self, row: Row) -> str:
        layer = "the last layer" if row.get("layer") is None else f"layer {row['layer']}"
        return f"{row['query']} in {row['doc']}: {row['score']:.3f} ({layer}; 0 is a perfect match)"


def _read_queries(path: Path, documents: set[str]) -> list[Utterance]:
    queries = read_manifest(path, ["relevant"])
    for query in queries:
        relevant = (query.custom or {})["relevant"]
        if not isinstance(relevant, list) or not all(isinstance(name, str) for name in relevant):
            raise ValueError(f"{path}: 'relevant' of {query.id} is {relevant!r}, where a list of ids is expected")
        if unknown := sorted(set(relevant) - documents):
            raise ValueError(
                f"{path}: 'relevant' of {query.id} names {', '.join(unknown[:3])}, which qbe_docs.jsonl does not have"
            )
    return queries


def _halve(queries: Sequence[Utterance]) -> tuple[list[Utterance], list[Utterance]]:
    """Every second query of each keyword, in the order of a hash of their ids, and the others."""
    groups: dict[str, list[Utterance]] = {}
    for query in queries:
        groups.setdefault(str((query.custom or {}).get("keyword")), []).append(query)
    dev = set()
    for group in groups.values():
        ordered = sorted(group, key=lambda query: hashlib.blake2b(as_bytes(query.id), digest_size=8).digest())
        dev.update(query.id for query in ordered[::2])
    return [query for query in queries if query.id in dev], [query for query in queries if query.id not in dev]


def _order(utterances: Sequence[Utterance], ids: Sequence[str]) -> list[int]:
    """Places of ids in the order of the utterances."""
    place = {utterance.id: number for number, utterance in enumerate(utterances)}
    return sorted(range(len(ids)), key=lambda number: place[ids[number]])


def _with_role(utterance: Utterance, role: str) -> Utterance:
    return replace(utterance, custom={**(utterance.custom or {}), "role": role})


def _role(utterance: Utterance) -> str | None:
    return (utterance.custom or {}).get("role")


def _relevant(query: Utterance) -> set[str]:
    return set((query.custom or {})["relevant"])
