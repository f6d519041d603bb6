"""fastText's supervised models applied to texts in Arrow's buffers.

The words of a text, the character n-grams in them and runs of words are hashed and looked up; the
mean of their rows is what the output layer sees (Joulin et al. 2016; Bojanowski et al. 2017 for the
n-grams). Hashes, features and the order of additions are those of the library's dictionary.cc,
fasttext.cc and loss.cc, and so are the results.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Places = npt.NDArray[np.int32]
Reals = npt.NDArray[np.float32]

_MASK = np.uint64(0xFFFFFFFF)
_BASIS = np.uint64(2166136261)
_PRIME = np.uint64(16777619)
_WORD_PRIME = np.uint64(116049371)
_LABEL = np.frombuffer(b"__label__", np.uint8)
# Features found at a time: what fits the first cache. No character begins as many n-grams.
_ROOM = 1024
# The library reports a probability's logarithm plus this.
_TINY = 1e-5


class InputLayer(NamedTuple):
    """Where the features of a text are found.

    `words` and `starts` are the entries of the dictionary, words before labels, one after the
    other; `slots` leads from a word's hash to its entry. Character n-grams have `shortest` to
    `longest` characters (`longest` 0: there are none), runs 2 to `word_run` words. `kept` has a bit
    for each of the `buckets` of their hashes: set, if it has a row. `places` (buckets,) is its row
    after those of the words; empty, where all have theirs. `rows` is the matrix (words + buckets
    kept, dim), flat.
    """

    words: Bytes
    starts: Ints
    slots: Places
    n_words: int
    end_of_text: int
    buckets: int
    shortest: int
    longest: int
    word_run: int
    kept: Bytes
    places: Places
    rows: Reals
    dim: int


@njit(cache=True, nogil=True)
def entry_slots(words: Bytes, starts: Ints) -> Places:
    """An open-addressed table of the entries by the hash of their bytes; -1 is free."""
    entries = len(starts) - 1
    size = 1
    while size < 2 * entries + 2:
        size *= 2
    slots = np.full(size, -1, np.int32)
    for entry in range(entries):
        slot = np.int64(_hash(words, starts[entry], starts[entry + 1])) & (size - 1)
        while slots[slot] >= 0:
            slot = (slot + 1) & (size - 1)
        slots[slot] = entry
    return slots


@njit(cache=True, nogil=True)
def hidden_states(layer: InputLayer, offsets: Ints, data: Bytes) -> Reals:
    """(texts, dim): the mean of the rows of each text's features; NaN where it has none."""
    found = np.zeros((len(offsets) - 1, layer.dim), np.float32)
    longest = 0
    for text in range(len(found)):
        longest = max(longest, offsets[text + 1] - offsets[text])
    hashes = np.empty(longest // 2 + 2, np.uint32)
    features = np.empty(_ROOM, np.int64)
    for text in range(len(found)):
        hidden = found[text]
        count, n_hashes = _add_words(
            layer.words, layer.starts, layer.slots, layer.n_words, layer.end_of_text, layer.buckets,
            layer.shortest, layer.longest, layer.kept, layer.places, layer.rows,
            data, offsets[text], offsets[text + 1], features, hashes, hidden,
        )  # fmt: skip
        count += _add_runs(
            hashes[:n_hashes], layer.word_run, layer.n_words, layer.buckets, layer.kept,
            layer.places, layer.rows, features, hidden,
        )  # fmt: skip
        hidden *= np.float32(1.0 / count) if count else np.float32(np.nan)
    return found


@njit(cache=True, nogil=True)
def _add_words(
    words, starts, slots, n_words, end_of_text, buckets, shortest, longest, kept, places, rows,
    data, place, stop, features, hashes, hidden,
):  # fmt: skip
    """Adds the rows of words and their n-grams, and fills in the words' hashes. How many of each.

    `features` is room for entries' numbers, and for buckets plus `n_words`, until they are added.
    """
    total = count = n_hashes = 0
    piece = np.empty(_ROOM, np.uint8)
    while True:
        while place < stop and _is_space(data[place]):
            place += 1
        start, code = place, _BASIS
        while place < stop and not _is_space(data[place]):
            code = _step(code, data[place])
            place += 1
        if place == start:
            break
        word = _find(words, starts, slots, data, start, place, code)
        if word >= n_words or (word < 0 and _is_label(data, start, place)):
            continue
        if word >= 0 and word == end_of_text:
            break
        if count == len(features):
            _add_rows(features, n_words, places, rows, hidden)
            total, count = total + count, 0
        if word >= 0:
            features[count] = word
            count += 1
        if longest:
            size = place - start + 2
            if size > len(piece):
                piece = np.empty(2 * size, np.uint8)
            piece[0], piece[size - 1] = 0x3C, 0x3E
            piece[1 : size - 1] = data[start:place]
            added, count = _ngram_features(
                piece, size, shortest, longest, n_words, buckets, kept, places, rows, features,
                count, hidden,
            )  # fmt: skip
            total += added
        hashes[n_hashes] = code
        n_hashes += 1
    _add_rows(features[:count], n_words, places, rows, hidden)
    total += count
    if end_of_text >= 0:
        features[0] = end_of_text
        _add_rows(features[:1], n_words, places, rows, hidden)
        hashes[n_hashes] = _hash(words, starts[end_of_text], starts[end_of_text + 1])
        return total + 1, n_hashes + 1
    return total, n_hashes


@njit(cache=True, nogil=True)
def _add_rows(features, n_words, places, rows, hidden):
    dim = len(hidden)
    for feature in features:
        if feature >= n_words and len(places):
            feature = n_words + places[feature - n_words]
        for d in range(dim):
            hidden[d] += rows[feature * dim + d]


@njit(cache=True, nogil=True)
def _ngram_features(
    piece, size, shortest, longest, n_words, buckets, kept, places, rows, features, count, hidden
):
    """Notes the n-grams of a word, and adds the rows of those noted whenever the room is used up.
    How many were added, and how many are noted."""
    added = 0
    reciprocal = 1.0 / buckets
    for first in range(size):
        if piece[first] & 0xC0 == 0x80:
            continue
        if count + longest >= len(features):
            _add_rows(features[:count], n_words, places, rows, hidden)
            added, count = added + count, 0
        code, place = _BASIS, first
        for n in range(1, longest + 1):
            if place == size:
                break
            code = _step(code, piece[place])
            place += 1
            while place < size and piece[place] & 0xC0 == 0x80:
                code = _step(code, piece[place])
                place += 1
            if n < shortest or (n == 1 and (first == 0 or place == size)):
                continue
            # The remainder: a division by what the compiler does not know is slow.
            bucket = np.int64(code)
            bucket -= np.int64(bucket * reciprocal) * buckets
            if bucket < 0:
                bucket += buckets
            elif bucket >= buckets:
                bucket -= buckets
            # Noted in any case and kept by counting on: a branch would often be guessed wrongly.
            features[count] = n_words + bucket
            count += (kept[bucket >> 3] >> (bucket & 7)) & 1
    return added, count


@njit(cache=True, nogil=True)
def _add_runs(hashes, word_run, n_words, buckets, kept, places, rows, features, hidden):
    """Adds the rows of runs of 2 to `word_run` words. How many."""
    total = 0
    for first in range(len(hashes)):
        code = _signed(hashes[first])
        for place in range(first + 1, min(first + word_run, len(hashes))):
            code = code * _WORD_PRIME + _signed(hashes[place])
            bucket = np.int64(code % np.uint64(buckets))
            if (kept[bucket >> 3] >> (bucket & 7)) & 1:
                features[0] = n_words + bucket
                _add_rows(features[:1], n_words, places, rows, hidden)
                total += 1
    return total


@njit(cache=True, nogil=True)
def _find(words, starts, slots, data, start, stop, code):
    """The dictionary's entry for a word, or -1."""
    last = len(slots) - 1
    slot = np.int64(code) & last
    while slots[slot] >= 0:
        entry = slots[slot]
        place, at = starts[entry], start
        if starts[entry + 1] - place == stop - start:
            while at < stop and data[at] == words[place]:
                at += 1
                place += 1
            if at == stop:
                return np.int64(entry)
        slot = (slot + 1) & last
    return np.int64(-1)


@njit(cache=True, nogil=True)
def _hash(data, start, stop):
    code = _BASIS
    for place in range(start, stop):
        code = _step(code, data[place])
    return code


@njit(cache=True, nogil=True)
def _step(code, byte):
    """FNV-1a in 32 bits that widens bytes with their sign, as the library does."""
    wide = np.uint64(byte) | (np.uint64(byte >> 7) * np.uint64(0xFFFFFF00))
    return ((code ^ wide) * _PRIME) & _MASK


@njit(cache=True, nogil=True)
def _signed(hash_32):
    """A hash of 32 bits widened with its sign, as the library does."""
    code = np.uint64(hash_32)
    return code | (code >> np.uint64(31)) * np.uint64(0xFFFFFFFF00000000)


@njit(cache=True, nogil=True)
def _is_space(byte):
    return byte == 0x20 or 0x09 <= byte <= 0x0D or byte == 0


@njit(cache=True, nogil=True)
def _is_label(data, start, stop):
    same = 0
    while same < len(_LABEL) and start + same < stop and data[start + same] == _LABEL[same]:
        same += 1
    return same == len(_LABEL)


@njit(cache=True, nogil=True)
def tree_probabilities(hidden: Reals, output: Reals, children: Places) -> npt.NDArray[np.float64]:
    """(texts, labels): hierarchical softmax, which goes down a binary tree.

    Nodes 0 to n - 1 are the labels. Node n + i is the parent of `children[i]` and goes to the right
    one of the two with the probability that row i of `output` gives; the last node is the root.
    """
    labels = len(children) + 1
    found = np.empty((len(hidden), labels), np.float64)
    reached = np.empty(2 * labels - 1, np.float64)
    for text in range(len(hidden)):
        reached[2 * labels - 2] = 1.0
        for i in range(labels - 2, -1, -1):
            right = 1.0 / (1.0 + np.exp(-np.float64(_dot(output[i], hidden[text]))))
            reached[children[i, 0]] = reached[labels + i] * (1.0 - right + _TINY)
            reached[children[i, 1]] = reached[labels + i] * (right + _TINY)
        found[text] = reached[:labels]
    return found


@njit(cache=True, nogil=True)
def flat_probabilities(hidden: Reals, output: Reals, one_of: bool) -> npt.NDArray[np.float64]:
    """(texts, labels): softmax over the rows of `output`, or else each row's own sigmoid."""
    found = np.empty((len(hidden), len(output)), np.float64)
    for text in range(len(hidden)):
        row = found[text]
        for label in range(len(output)):
            row[label] = _dot(output[label], hidden[text])
        if one_of:
            row[:] = np.exp(row - row.max())
            row /= row.sum()
        else:
            row[:] = 1.0 / (1.0 + np.exp(-row))
        row += _TINY
    return found


@njit(cache=True, nogil=True)
def _dot(row, hidden):
    total = np.float32(0)
    for d in range(len(row)):
        total += row[d] * hidden[d]
    return total
