"""Packing: which piece of which document stands where in which window.

A document of n tokens is n + 1 pairs of an input and the target one place further: its
`<|endoftext|>` predicts its first token, its last token predicts the `<|endoftext|>` that ends it.
A window holds T pairs. So a packing is computed from lengths alone, and every pair stands in it
exactly once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

Ints = npt.NDArray[np.int64]
Tokens = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Packing:
    """Pieces of one document each, in order of window, and inside it by place: parallel arrays.

    starts: the first pair of each piece, counted over all documents end to end. lengths: pairs in
    it. bounds (windows + 1): which pieces are each window's.
    """

    starts: Ints
    lengths: Ints
    bounds: Ints

    def __len__(self) -> int:
        return len(self.bounds) - 1


def cut_stream(n_pairs_of: Ints, context_length: int) -> Packing:
    """Documents end to end, cut every `context_length` pairs."""
    ends = np.cumsum(n_pairs_of)
    cuts = np.arange(0, ends[-1], context_length)
    starts = np.union1d(cuts, ends[:-1])
    lengths = np.diff(starts, append=ends[-1])
    return Packing(starts, lengths, np.append(np.searchsorted(starts, cuts), len(starts)))


def best_fit(n_pairs_of: Ints, context_length: int) -> Packing:
    """Documents packed best-fit-decreasing (Ding et al. 2024) into the fewest windows there can be.

    A document longer than a window fills as many as it can, and its rest is packed. Each piece, the
    longest first and of equal ones the first, goes where it leaves the least room. Where that
    leaves more windows than the pairs need, the emptiest are dealt out to the room in the others,
    cut where they must be: so less than one window's room stays empty in all.
    """
    starts_of = np.cumsum(n_pairs_of) - n_pairs_of
    n_whole = n_pairs_of // context_length
    whole = np.repeat(starts_of, n_whole)
    within = np.arange(len(whole)) - np.repeat(np.cumsum(n_whole) - n_whole, n_whole)
    whole += within * context_length

    rest = n_pairs_of % context_length
    order = np.argsort(-rest, kind="stable")
    order = order[: np.count_nonzero(rest)]
    rest_lengths = rest[order]
    rest_starts = starts_of[order] + n_whole[order] * context_length
    bins = _best_fit(rest_lengths, context_length)
    n_wanted = -(-int(rest_lengths.sum()) // context_length)
    window, starts, lengths = _deal_out(bins, rest_starts, rest_lengths, n_wanted, context_length)

    by_window = np.argsort(window, kind="stable")
    bounds = np.searchsorted(window[by_window], np.arange(n_wanted + 1))
    return Packing(
        np.concatenate([whole, starts[by_window]]),
        np.concatenate([np.full(len(whole), context_length), lengths[by_window]]),
        np.concatenate([np.arange(len(whole)), len(whole) + bounds]),
    )


@njit(cache=True, nogil=True)
def _best_fit(lengths, capacity):
    """The bin of each piece; pieces come longest first."""
    newest = np.full(capacity + 1, -1, np.int64)  # by room: the bin that came to it last
    before = np.full(len(lengths) + 1, -1, np.int64)  # by bin: the one that came to its room before
    bins = np.empty(len(lengths), np.int64)
    n_bins = 0
    for piece in range(len(lengths)):
        length = lengths[piece]
        room = length
        while room < capacity and newest[room] < 0:
            room += 1
        if room == capacity:
            chosen = n_bins
            n_bins += 1
        else:
            chosen = newest[room]
            newest[room] = before[chosen]
        bins[piece] = chosen
        room -= length
        if room > 0:
            before[chosen] = newest[room]
            newest[room] = chosen
    return bins


def _deal_out(
    bins: Ints, starts: Ints, lengths: Ints, n_wanted: int, capacity: int
) -> tuple[Ints, Ints, Ints]:
    """(window, start, length) of the pieces once the emptiest bins are dealt out to the others."""
    filled = np.bincount(bins, lengths, minlength=n_wanted).astype(np.int64)
    fullest = np.argsort(-filled, kind="stable")
    number = np.empty_like(fullest)
    number[fullest] = np.arange(len(fullest))
    window = number[bins]
    stays = window < n_wanted
    room = capacity - filled[fullest[:n_wanted]]
    loose = np.flatnonzero(~stays)
    moved = _pour(starts[loose], lengths[loose], room)
    parts = zip((window[stays], starts[stays], lengths[stays]), moved, strict=True)
    whole_window, whole_start, whole_length = (np.concatenate(pair) for pair in parts)
    return whole_window, whole_start, whole_length


@njit(cache=True, nogil=True)
def _pour(starts, lengths, room):
    """(window, start, length) of pieces poured into the room there is, the largest first, which is
    in the last windows."""
    most = len(starts) + len(room)
    windows = np.empty(most, np.int64)
    firsts = np.empty(most, np.int64)
    sizes = np.empty(most, np.int64)
    count, at = 0, len(room) - 1
    for piece in range(len(starts)):
        start, left = starts[piece], lengths[piece]
        while left > 0:
            while room[at] == 0:
                at -= 1
            size = min(left, room[at])
            windows[count], firsts[count], sizes[count] = at, start, size
            count += 1
            room[at] -= size
            start += size
            left -= size
    return windows[:count], firsts[:count], sizes[:count]


def gather(tokens_S: Tokens, starts: Ints, lengths: Ints, eot_id: int) -> Tokens:
    """The pieces of a stream that begin at `starts`, end to end, and an eot behind them."""
    stream_S = np.empty(int(lengths.sum()) + 1, tokens_S.dtype)
    _copy(tokens_S, starts, lengths, stream_S)
    stream_S[-1] = eot_id
    return stream_S


@njit(cache=True, nogil=True)
def _copy(tokens_S, starts, lengths, stream_S):
    place = 0
    for piece in range(len(starts)):
        start, length = starts[piece], lengths[piece]
        stream_S[place : place + length] = tokens_S[start : start + length]
        place += length


@njit(cache=True, nogil=True)
def fill(windows, rows, starts, lengths, bounds, stream_S, eot_id, ignored, inputs_BT, targets_BT):
    """Writes windows of a packing, whose pairs are those of a stream, into rows of a batch.

    What is left of a row is padding: eot as input, `ignored` as target.
    """
    for number in range(len(windows)):
        window, row = windows[number], rows[number]
        place = 0
        for piece in range(bounds[window], bounds[window + 1]):
            start, length = starts[piece], lengths[piece]
            for k in range(length):
                inputs_BT[row, place + k] = stream_S[start + k]
            for k in range(length):
                targets_BT[row, place + k] = stream_S[start + 1 + k]
            place += length
        inputs_BT[row, place:] = eot_id
        targets_BT[row, place:] = ignored


@njit(cache=True, nogil=True)
def number_documents(windows, rows, lengths, bounds, documents_BT):
    """Numbers the pieces of windows, each of one document, in rows of a batch. Padding comes last
    and has a number of its own."""
    for number in range(len(windows)):
        window, row = windows[number], rows[number]
        place, first = 0, bounds[window]
        for piece in range(first, bounds[window + 1]):
            documents_BT[row, place : place + lengths[piece]] = piece - first
            place += lengths[piece]
        documents_BT[row, place:] = bounds[window + 1] - first
