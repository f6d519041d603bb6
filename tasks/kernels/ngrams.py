"""Looking up the n-grams of many documents in one table of n-grams and their owners."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tasks.kernels.words import Hashes, ngram_hashes

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class NgramIndex:
    """Which passages an n-gram belongs to: those of `keys[k]` are
    `owners[offsets[k] : offsets[k + 1]]`. A key without owners is known as a common phrase.

    `keys` (K,) are sorted and distinct; `lengths` are the values of n in use; `bitmap` says for
    the leading bits of a hash whether any key has them, so that most lookups end there.
    """

    keys: Hashes
    offsets: Ints
    owners: Ints
    lengths: tuple[int, ...]
    bitmap: npt.NDArray[np.bool_] = field(repr=False)

    def find(self, hashes: Hashes) -> tuple[Ints, Ints]:
        """Positions in `hashes` that hold a key, and the key's number for each."""
        shift = np.uint64(64 - (len(self.bitmap).bit_length() - 1))
        near = np.flatnonzero(self.bitmap[hashes >> shift])
        numbers = np.searchsorted(self.keys, hashes[near])
        numbers[numbers == len(self.keys)] = 0
        sure = self.keys[numbers] == hashes[near]
        return near[sure], numbers[sure]


def distinct_ngrams(hashes: Hashes, n: int) -> tuple[Hashes, int]:
    """The sorted distinct n-grams of a text and their length: `n`, or all its words if fewer."""
    n = min(n, len(hashes))
    return np.unique(ngram_hashes(hashes, n)) if n else hashes, n


def index_ngrams(found: list[tuple[Hashes, int]], max_owners: int | None) -> NgramIndex:
    hashes = np.concatenate([np.empty(0, np.uint64), *(h for h, _ in found)])
    owners = np.repeat(np.arange(len(found)), [len(h) for h, _ in found])
    keys, numbers, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    order = np.argsort(numbers, kind="stable")
    if max_owners is not None:
        order = order[counts[numbers[order]] <= max_owners]
        counts = np.where(counts <= max_owners, counts, 0)
    bits = min(26, 16 + (len(keys) >> 12).bit_length())
    bitmap = np.zeros(1 << bits, dtype=np.bool_)
    bitmap[keys >> np.uint64(64 - bits)] = True
    offsets = np.concatenate([[0], np.cumsum(counts)])
    lengths = tuple(sorted({n for h, n in found if len(h)}))
    return NgramIndex(keys, offsets, owners[order], lengths, bitmap)


@dataclass(frozen=True)
class WordStream:
    """The words of several documents in a row: `bounds[d]` to `bounds[d + 1]` are those of d."""

    hashes: Hashes
    bounds: Ints

    @classmethod
    def of(cls, hashes: list[Hashes]) -> WordStream:
        return cls(np.concatenate(hashes), np.cumsum([0, *map(len, hashes)]))


@dataclass(frozen=True)
class Hits:
    """Distinct (document, key) pairs found, parallel arrays sorted by both.

    start, end: words of the document's first occurrence.
    """

    document: Ints
    key: Ints
    start: Ints
    end: Ints

    def where(self, mask: npt.NDArray[np.bool_]) -> Hits:
        return Hits(self.document[mask], self.key[mask], self.start[mask], self.end[mask])


def find_ngrams(stream: WordStream, index: NgramIndex, whole_below: int = 0) -> Hits:
    """Keys of `index` in each document; those under `whole_below` words only as a whole one."""
    none = np.empty(0, dtype=np.int64)
    positions, keys, ends = [none], [none], [none]
    for n in index.lengths:
        position, key = index.find(ngram_hashes(stream.hashes, n))
        positions.append(position)
        keys.append(key)
        ends.append(position + n)
    position, key, end = map(np.concatenate, (positions, keys, ends))
    document = np.searchsorted(stream.bounds, position, side="right") - 1
    first, last = stream.bounds[document], stream.bounds[document + 1]
    inside = (end <= last) & ((end - position >= whole_below) | (last - first == end - position))
    hits = Hits(document, key, position - first, end - first).where(inside)
    order = np.lexsort((hits.start, hits.key, hits.document))
    same = (np.diff(hits.document[order], prepend=-1) == 0) & (
        np.diff(hits.key[order], prepend=-1) == 0
    )
    return hits.where(order[~same])


@dataclass(frozen=True)
class Passages:
    """Hits by (document, owner), parallel arrays sorted by both; `keys` number the n-grams."""

    document: Ints
    owner: Ints
    start: Ints
    end: Ints
    keys: list[Ints]


def by_owner(hits: Hits, index: NgramIndex) -> Passages:
    """One row per hit and owner of its key, gathered by (document, owner)."""
    counts = np.diff(index.offsets)[hits.key]
    row = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    owner = index.owners[index.offsets[hits.key][row] + within]
    order = np.lexsort((hits.key[row], owner, hits.document[row]))
    row, owner = row[order], owner[order]
    document = hits.document[row]
    fresh = (np.diff(document, prepend=-1) != 0) | (np.diff(owner, prepend=-1) != 0)
    starts = np.flatnonzero(fresh)
    if not len(starts):
        return Passages(starts, starts, starts, starts, [])
    return Passages(
        document[starts],
        owner[starts],
        np.minimum.reduceat(hits.start[row], starts),
        np.maximum.reduceat(hits.end[row], starts),
        np.split(hits.key[row], starts[1:]),
    )
