"""Looking up the n-grams of many documents in one table of n-grams and their owners.

Texts come as the hashes of their words, one after the other: those of text t are
`hashes[bounds[t] : bounds[t + 1]]`. A run of n words is known by a polynomial in their hashes mod
2^64 (Karp and Rabin 1987) that starts from n, so that runs of different lengths share one table.
Nearly every place of a document is passed over by the few words that all runs looked for have at
least: their polynomial is rolled from word to word and looked up in a bitmap.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from numba import njit

from tasks.kernels.words import MULTIPLIER, Hashes

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class NgramIndex:
    """Which passages an n-gram belongs to: those of `keys[k]` are
    `owners[offsets[k] : offsets[k + 1]]`. A key without owners is known as a common phrase.

    `keys` (K,) are sorted and distinct; `sizes` (passages,) count the distinct n-grams of each;
    `lengths` are the values of n in use, ascending. N-grams of fewer than `whole_below` words are
    found only as a whole document; all others have at least `anchor` words, and `bitmap` says for
    the leading bits of the hash of so many words whether one begins with them. `buckets` (2^b + 1,)
    is the number of the first key with at least the leading bits b.
    """

    keys: Hashes
    offsets: Ints
    owners: Ints
    sizes: Ints
    lengths: Ints
    whole_below: int
    anchor: int
    bitmap: npt.NDArray[np.uint8] = field(repr=False)
    buckets: Ints = field(repr=False)


def index_ngrams(
    hashes: Hashes,
    bounds: Ints,
    n: int,
    max_owners: int | None = None,
    whole: bool = False,
    first_owners: int | None = None,
) -> NgramIndex:
    """The table of the n-grams of passages; a passage under `n` words is one n-gram.

    An n-gram of more than `max_owners` passages is a common phrase; one of more than `first_owners`
    is known as one of the first so many, and counts for no other. With `whole`, a passage under `n`
    words is found only where it is a whole document.
    """
    words = np.diff(bounds)
    widths = np.minimum(words, n)
    lengths = np.unique(widths[widths > 0])
    anchor = n if whole or not len(lengths) else int(lengths[0])
    counts = np.where(words > 0, words - widths + 1, 0)
    owners = np.repeat(np.arange(len(words)), counts)
    runs, beginnings = _runs(hashes, bounds, widths, anchor, len(owners))
    bitmap = _bitmap(beginnings[widths[owners] >= anchor])
    order = np.argsort(runs, kind="stable")  # owners ascend already
    fresh = np.ones(len(order), dtype=np.bool_)
    fresh[1:] = (np.diff(owners[order]) != 0) | (np.diff(runs[order]) != 0)
    order = order[fresh]
    runs, owners = runs[order], owners[order]
    starts = np.flatnonzero(np.append(True, runs[1:] != runs[:-1])[: len(runs)])
    keys, counts = runs[starts], np.diff(np.append(starts, len(runs)))
    if first_owners is not None:
        rank = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
        owners, counts = owners[rank < first_owners], np.minimum(counts, first_owners)
    sizes = np.bincount(owners, minlength=len(words))
    if max_owners is not None:
        owners = owners[np.repeat(counts <= max_owners, counts)]
        counts = np.where(counts <= max_owners, counts, 0)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    whole_below = n if whole else 0
    buckets = _buckets(keys)
    return NgramIndex(keys, offsets, owners, sizes, lengths, whole_below, anchor, bitmap, buckets)


def _bitmap(hashes: Hashes) -> npt.NDArray[np.uint8]:
    """A bit for each value of the leading bits, so many that one in 16 or fewer is set."""
    bits = max(16, min(27, 4 + len(hashes).bit_length()))
    flags = np.zeros(1 << bits, dtype=np.bool_)
    flags[hashes >> np.uint64(64 - bits)] = True
    return np.packbits(flags, bitorder="little")


def _buckets(keys: Hashes) -> Ints:
    """One key a bucket or two: hashes are spread evenly."""
    bits = max(1, min(26, len(keys).bit_length() - 1))
    edges = np.arange(1 << bits, dtype=np.uint64) << np.uint64(64 - bits)
    return np.append(np.searchsorted(keys, edges), len(keys))


def _shift(size: int) -> np.uint64:
    """What leaves of a 64-bit hash the leading bits that number `size` things."""
    return np.uint64(65 - size.bit_length())


@njit(cache=True, nogil=True)
def _runs(hashes, bounds, widths, anchor, total):
    """The hash of each run of `widths[p]` words in passage p, and the polynomial of its first
    `anchor` words."""
    runs = np.empty(total, np.uint64)
    beginnings = np.empty(total, np.uint64)
    at = 0
    for passage in range(len(widths)):
        width = widths[passage]
        if width == 0:
            continue
        for start in range(bounds[passage], bounds[passage + 1] - width + 1):
            run = np.uint64(width)
            beginning = np.uint64(0)
            for place in range(start, start + width):
                run = run * MULTIPLIER + hashes[place]
                if place < start + anchor:
                    beginning = beginning * MULTIPLIER + hashes[place]
            runs[at] = run
            beginnings[at] = beginning
            at += 1
    return runs, beginnings


@dataclass(frozen=True)
class Hits:
    """Distinct (document, key) pairs found, parallel arrays sorted by both.

    start, end: words of the document's first occurrence.
    """

    document: Ints
    key: Ints
    start: Ints
    end: Ints

    def where(self, which: npt.NDArray[np.bool_] | Ints) -> Hits:
        """Those hits, chosen by a mask or by number."""
        return Hits(self.document[which], self.key[which], self.start[which], self.end[which])


def find_ngrams(hashes: Hashes, bounds: Ints, index: NgramIndex) -> Hits:
    """The keys of `index` in each document."""
    places, documents = _places(
        hashes, bounds, index.anchor, index.whole_below, index.bitmap, _shift(8 * len(index.bitmap))
    )
    document, key, start, width = _confirmed(
        hashes, bounds, places, documents, index.lengths, index.whole_below, index.keys,
        index.buckets, _shift(len(index.buckets) - 1),
    )  # fmt: skip
    hits = Hits(document, key, start, start + width)
    pair = document * len(index.keys) + key
    order = np.argsort(pair, kind="stable")
    return hits.where(order[np.diff(pair[order], prepend=-1) != 0])


@njit(cache=True, nogil=True)
def _places(hashes, bounds, anchor, whole_below, bitmap, shift):
    """Where a key may begin, and in which document: the places whose next `anchor` words are in
    the bitmap, and the start of a document of fewer than `whole_below` words."""
    power = np.uint64(1)
    for _ in range(anchor):
        power *= MULTIPLIER
    places = np.empty(len(hashes), np.int64)
    documents = np.empty(len(hashes), np.int64)
    found = 0
    for document in range(len(bounds) - 1):
        first, end = bounds[document], bounds[document + 1]
        if 0 < end - first < whole_below:
            places[found] = first
            documents[found] = document
            found += 1
        if end - first < anchor:
            continue
        rolled = np.uint64(0)
        for place in range(first, first + anchor):
            rolled = rolled * MULTIPLIER + hashes[place]
        for place in range(first, end - anchor + 1):
            bit = rolled >> shift
            # Noted in any case and kept by counting on: a branch would often be guessed wrongly.
            places[found] = place
            documents[found] = document
            found += (bitmap[bit >> np.uint64(3)] >> (bit & np.uint64(7))) & np.uint64(1)
            if place + anchor < end:
                rolled = rolled * MULTIPLIER + (hashes[place + anchor] - hashes[place] * power)
    return places[:found], documents[:found]


@njit(cache=True, nogil=True)
def _confirmed(hashes, bounds, places, documents, lengths, whole_below, keys, buckets, shift):
    """(document, key, first word, words) of every key that begins at one of the places."""
    seeds = np.empty(len(lengths), np.uint64)
    for number, width in enumerate(lengths):
        seeds[number] = np.uint64(width)
        for _ in range(width):
            seeds[number] *= MULTIPLIER
    found = np.empty((4, len(places) * len(lengths)), np.int64)
    count = 0
    for at in range(len(places)):
        place, document = places[at], documents[at]
        first, end = bounds[document], bounds[document + 1]
        polynomial = np.uint64(0)
        done = place
        for number in range(len(lengths)):
            width = lengths[number]
            if place + width > end:
                break
            while done < place + width:
                polynomial = polynomial * MULTIPLIER + hashes[done]
                done += 1
            if width < whole_below and end - first != width:
                continue
            run = polynomial + seeds[number]
            bucket = np.int64(run >> shift)
            for key in range(buckets[bucket], buckets[bucket + 1]):
                if keys[key] == run:
                    found[0, count] = document
                    found[1, count] = key
                    found[2, count] = place - first
                    found[3, count] = width
                    count += 1
    return found[0, :count], found[1, :count], found[2, :count], found[3, :count]


@dataclass(frozen=True)
class Passages:
    """Hits by (document, owner), parallel arrays sorted by both. `matched` counts the keys found of
    each, and `keys` holds them one after the other, ascending."""

    document: Ints
    owner: Ints
    start: Ints
    end: Ints
    matched: Ints
    keys: Ints

    def smallest(self, most: int) -> tuple[Ints, Ints]:
        """At most so many keys of each passage, the smallest, and how many of each there are."""
        place = np.arange(len(self.keys)) - np.repeat(
            np.cumsum(self.matched) - self.matched, self.matched
        )
        return self.keys[place < most], np.minimum(self.matched, most)


def by_owner(hits: Hits, index: NgramIndex) -> Passages:
    """One row per hit and owner of its key, gathered by (document, owner)."""
    counts = np.diff(index.offsets)[hits.key]
    row = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    owner = index.owners[index.offsets[hits.key][row] + within]
    # Hits are sorted by key within a document, and stay so within an owner.
    order = np.argsort(hits.document[row] * len(index.sizes) + owner, kind="stable")
    row, owner = row[order], owner[order]
    document = hits.document[row]
    fresh = (np.diff(document, prepend=-1) != 0) | (np.diff(owner, prepend=-1) != 0)
    starts = np.flatnonzero(fresh)
    if not len(starts):
        return Passages(starts, starts, starts, starts, starts, starts)
    return Passages(
        document[starts],
        owner[starts],
        np.minimum.reduceat(hits.start[row], starts),
        np.maximum.reduceat(hits.end[row], starts),
        np.diff(np.append(starts, len(row))),
        hits.key[row],
    )


@njit(cache=True, nogil=True)
def count_ngrams(hashes, bounds, documents, n):
    """How many distinct n-grams of `n` words each of the documents has; 1 for a shorter one."""
    counts = np.empty(len(documents), np.int64)
    for at in range(len(documents)):
        first, end = bounds[documents[at]], bounds[documents[at] + 1]
        runs = np.empty(max(1, end - first - n + 1), np.uint64)
        for number in range(len(runs)):
            run = np.uint64(0)
            for place in range(first + number, min(first + number + n, end)):
                run = run * MULTIPLIER + hashes[place]
            runs[number] = run
        runs.sort()
        counts[at] = 1
        for number in range(1, len(runs)):
            counts[at] += runs[number] != runs[number - 1]
    return counts
