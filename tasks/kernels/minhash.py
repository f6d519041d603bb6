"""MinHash (Broder 1997) from Arrow's buffers: shingles, signatures, band keys, true similarities.

A shingle is a run of units, words or letters, and its hash their polynomial (`ngram_hashes`). A
text shorter than a shingle is one shingle; a text without units is one unit, its bytes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit

from tasks.kernels.words import (
    MULTIPLIER,
    Hashes,
    Ints,
    flat_texts,
    folding,
    hash_text,
    mixed,
    with_room,
)

Words32 = npt.NDArray[np.uint32]


def permutations(count: int, seed: int) -> Words32:
    """(2, count): the factors and the terms of datasketch's `affine32` permutations."""
    drawn = np.random.RandomState(seed)
    factors = drawn.randint(0, 1 << 31, count, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    return np.array([factors, drawn.randint(0, 1 << 32, count, dtype=np.uint32)])


def sign(
    texts: pa.Array | pa.ChunkedArray, ngram: int, by_letter: bool, permuted: Words32
) -> Words32:
    """Signatures (texts, permutations): for each permutation x -> factor * x + term mod 2^32 the
    least value over the text's shingles, where x is the upper half of the shingle's hash after
    MurmurHash3's 32-bit finalizer. So datasketch's `affine32` gives them as well."""
    table = folding()
    return _sign(*flat_texts(texts), table.entries, table.expansions, by_letter, ngram, *permuted)


@njit(cache=True, nogil=True)
def _sign(offsets, data, entries, expansions, by_letter, ngram, factors, terms):
    signatures = np.empty((len(offsets) - 1, len(factors)), np.uint32)
    units = np.empty(1024, np.uint64)
    values = np.empty(1024, np.uint32)
    for text in range(len(offsets) - 1):
        start, end = offsets[text], offsets[text + 1]
        units = with_room(units, 0, end - start)
        count = shingle_text(data, start, end, entries, expansions, by_letter, ngram, units)
        if count > len(values):
            values = np.empty(2 * count, np.uint32)
        for k in range(count):
            values[k] = _mixed32(units[k] >> np.uint64(32))
        for k in range(len(factors)):
            signatures[text, k] = _least(values, count, factors[k], terms[k])
    return signatures


@njit(cache=True, nogil=True)
def shingle_text(data, start, end, entries, expansions, by_letter, ngram, units):
    """Puts the hashes of the shingles of the UTF-8 text data[start:end] into `units`, in their
    order, and returns how many there are, one at least."""
    count = hash_text(data, start, end, entries, expansions, by_letter, units, 0)
    if count == 0:
        raw = np.uint64(0)
        for place in range(start, end):
            raw = (raw ^ np.uint64(data[place])) * MULTIPLIER
        units[0] = mixed(raw)
        count = 1
    ngram = min(ngram, count)
    for first in range(count - ngram + 1):
        value = np.uint64(ngram)
        for k in range(first, first + ngram):
            value = value * MULTIPLIER + units[k]
        units[first] = value
    return count - ngram + 1


@njit(cache=True, nogil=True)
def _mixed32(value):
    """MurmurHash3's 32-bit finalizer."""
    x = np.uint32(value)
    x = np.uint32((x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B))
    x = np.uint32((x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35))
    return np.uint32(x ^ (x >> np.uint32(16)))


@njit(cache=True, nogil=True)
def _least(values, count, factor, term):
    """The least value of a permutation: the loop that takes most of the time, in vectors."""
    least = np.uint32(0xFFFFFFFF)
    for k in range(count):
        least = min(least, np.uint32(values[k] * factor + term))
    return least


@njit(cache=True, nogil=True)
def band_keys(signatures, bands):
    """Keys (texts * bands) of the bands of each signature, as int64: texts that agree on a whole
    band share its key. Those of two bands never meet but by chance, of 2^-64 a pair."""
    n_texts, size = signatures.shape
    rows = size // bands
    keys = np.empty(n_texts * bands, np.int64)
    for text in range(n_texts):
        for band in range(bands):
            raw = mixed(np.uint64(band + 1))
            for k in range(band * rows, (band + 1) * rows):
                raw = (raw ^ np.uint64(signatures[text, k])) * MULTIPLIER
            keys[text * bands + band] = np.int64(mixed(raw))
    return keys


def shingle_sets(
    texts: pa.Array | pa.ChunkedArray, ngram: int, by_letter: bool
) -> tuple[Hashes, Ints]:
    """The distinct shingles of each text, ascending, one text after the other, and where each
    begins (texts + 1)."""
    table = folding()
    return _shingle_sets(*flat_texts(texts), table.entries, table.expansions, by_letter, ngram)


@njit(cache=True, nogil=True)
def _shingle_sets(offsets, data, entries, expansions, by_letter, ngram):
    bounds = np.zeros(len(offsets), np.int64)
    hashes = np.empty(1024, np.uint64)
    units = np.empty(1024, np.uint64)
    for text in range(len(offsets) - 1):
        start, end = offsets[text], offsets[text + 1]
        units = with_room(units, 0, end - start)
        count = shingle_text(data, start, end, entries, expansions, by_letter, ngram, units)
        ordered = np.sort(units[:count])
        at = bounds[text]
        if at + count > len(hashes):
            longer = np.empty(2 * (at + count), np.uint64)
            longer[:at] = hashes[:at]
            hashes = longer
        for k in range(count):
            if k == 0 or ordered[k] != ordered[k - 1]:
                hashes[at] = ordered[k]
                at += 1
        bounds[text + 1] = at
    return hashes[: bounds[-1]], bounds


@njit(cache=True, nogil=True)
def similarities(hashes, bounds, one, two):
    """Jaccard similarity of the sets one[p] and two[p] for each p; sets as `shingle_sets` has
    them."""
    found = np.empty(len(one), np.float64)
    for pair in range(len(one)):
        a, end_a = bounds[one[pair]], bounds[one[pair] + 1]
        b, end_b = bounds[two[pair]], bounds[two[pair] + 1]
        total = end_a - a + end_b - b
        common = 0
        while a < end_a and b < end_b:
            left, right = hashes[a], hashes[b]
            common += left == right
            a += left <= right
            b += right <= left
        found[pair] = common / (total - common)
    return found
