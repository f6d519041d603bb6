"""Buckets: which documents are shuffled and packed together, drawn from their ids alone.

The documents of a split are parted by source where a mixture weighs these, each part by the levels
of a curriculum, and each level by the top bits of the id into a power of two of buckets. So a
document added or removed disturbs little more than its own bucket.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llm.config_data import DataConfig
from llm.dataset_file import Documents, Ints

BUCKET_TOKENS = 1 << 24  # 32 MiB as uint16: what an order holds in memory at a time.
LEVELS = 8  # of a curriculum


@dataclass(frozen=True)
class Part:
    """Documents that one order is drawn from: those of a source, or all."""

    source: str
    """Its name; empty for all."""
    documents: Ints
    """Numbers of the documents: bucket by bucket, in order of id inside each."""
    bounds: Ints
    """(buckets + 1,): where each bucket begins among them, and the end of the last."""
    levels: Ints
    """(buckets,): the level of a curriculum that each bucket is of, ascending."""

    def __len__(self) -> int:
        return len(self.levels)

    def bucket(self, number: int) -> Ints:
        """The documents of a bucket."""
        return self.documents[self.bounds[number] : self.bounds[number + 1]]


def lay_out(
    documents: Documents, data: DataConfig, bucket_tokens: int = BUCKET_TOKENS
) -> list[Part]:
    """The parts of a split, in order of their sources' names; how much each weighs is no matter."""
    sources = np.unique(documents.source).tolist() if data.weights else [-1]
    parts = []
    for source in sources:
        chosen = np.flatnonzero(documents.source == source)
        if source < 0:
            chosen = np.arange(documents.n_documents)
        name = documents.sources[source] if source >= 0 else ""
        parts.append(_part(name, documents, chosen, data.curriculum, bucket_tokens))
    return parts


def _part(
    name: str, documents: Documents, chosen: Ints, curriculum: str, bucket_tokens: int
) -> Part:
    ordered, bounds, levels = [], [np.zeros(1, np.int64)], []
    at = 0
    for level, some in enumerate(_levels(documents, chosen, curriculum)):
        n_tokens = int(np.diff(documents.starts)[some].sum())
        edges = _bucket_bounds(documents.ids[some, 0], n_buckets(n_tokens, bucket_tokens))
        ordered.append(some)
        bounds.append(edges[1:] + at)
        levels.append(np.full(len(edges) - 1, level))
        at += len(some)
    return Part(name, np.concatenate(ordered), np.concatenate(bounds), np.concatenate(levels))


def _levels(documents: Documents, chosen: Ints, curriculum: str) -> list[Ints]:
    """The documents by level, in order of id inside each: of about equally many tokens."""
    if curriculum == "none":
        return [chosen]
    lengths = np.diff(documents.starts)[chosen]
    measure = lengths.astype(np.float64)
    if curriculum == "difficulty":
        measure = (lengths - 1) / np.maximum(1, documents.n_bytes[chosen])
    order = np.argsort(measure, kind="stable")
    share = np.cumsum(lengths[order]) - lengths[order]
    level = np.empty_like(order)
    level[order] = share * LEVELS // max(1, int(lengths.sum()))
    found = [chosen[level == number] for number in range(LEVELS)]
    return [some for some in found if len(some)]


def n_buckets(n_tokens: int, bucket_tokens: int = BUCKET_TOKENS) -> int:
    """The least power of two whose buckets hold `bucket_tokens` or fewer on average."""
    return 1 << max(0, (n_tokens - 1) // bucket_tokens).bit_length()


def _bucket_bounds(high: npt.NDArray[np.uint64], buckets: int) -> Ints:
    """(buckets + 1,): the first document of each bucket, given the upper halves of sorted ids."""
    starts = np.arange(1, buckets, dtype=np.uint64) << np.uint64(64 - (buckets.bit_length() - 1))
    return np.concatenate(([0], np.searchsorted(high, starts), [len(high)]))
