"""Which live documents resemble each other: copies by digest, candidates by band, true similarity.

Here a document is a number, its place among the ids of all live documents, and all that is held of
it is 72 bytes in arrays. What is larger stays with the shards: ranges of band keys are searched and
texts are compared by calls that a worker anywhere can run, each with a bounded part of the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llm.errors import DataError
from tasks.signatures import DedupConfig, Ints, read_slices, slices
from tasks.store.corpus import Shard, out_ids
from tasks.store.executors import run_all
from tasks.store.records import ObjectRef
from tasks.store.schema import BANDS, DOCUMENTS, SHINGLES, SIGNATURES
from tasks.store.store import Store

Names = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Documents:
    """The live documents of a corpus in order of id; parallel arrays of n.

    ids, digests: (n, 2) the 32 hex digits as two numbers, the leading half first. lengths: in
    characters. ranks: of their sources among `DedupConfig.priorities`. shards, rows: where in
    whose SIGNATURES they are.
    """

    ids: Names
    digests: Names
    lengths: Ints
    ranks: Ints
    shards: Ints
    rows: Ints

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def first(self) -> Ints:
        """The first document with the same text, for each (n): it stands for all its copies."""
        order = np.lexsort((self.digests[:, 1], self.digests[:, 0]))
        starts = np.flatnonzero(_new(self.digests[order].T))
        first = np.empty_like(order)
        first[order] = np.repeat(order[starts], np.diff(starts, append=len(self)))
        return first


@dataclass(frozen=True)
class Pairs:
    """Pairs of `n_documents` by number, each once and in order. `codes` are one * n_documents + two
    of each, where one < two."""

    codes: Ints
    n_documents: int

    @classmethod
    def of(cls, some: Ints, others: Ints, n_documents: int) -> Pairs:
        """The distinct pairs of `some` with their `others`, but for those with themselves."""
        apart = some != others
        codes = _codes(some[apart], others[apart], n_documents)
        return cls(np.unique(codes), n_documents)

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def one(self) -> Ints:
        return self.codes // max(1, self.n_documents)

    @property
    def two(self) -> Ints:
        return self.codes % max(1, self.n_documents)

    def where(self, which: npt.NDArray[np.bool_]) -> Pairs:
        """Those of the pairs."""
        return Pairs(self.codes[which], self.n_documents)

    def find(self, some: Ints, others: Ints) -> Ints:
        """Where among the pairs are those of `some` with their `others`, which are there."""
        return np.searchsorted(self.codes, _codes(some, others, self.n_documents))

    def digests(self, documents: Documents) -> tuple[Names, Names]:
        """The digests of the texts of each pair, the lesser first."""
        a, b = documents.digests[self.one], documents.digests[self.two]
        swapped = (a[:, 0] > b[:, 0]) | ((a[:, 0] == b[:, 0]) & (a[:, 1] > b[:, 1]))
        return np.where(swapped[:, None], b, a), np.where(swapped[:, None], a, b)


def _codes(some: Ints, others: Ints, n_documents: int) -> Ints:
    return np.minimum(some, others) * n_documents + np.maximum(some, others)


@dataclass(frozen=True)
class Workers:
    """Where the shards are, and who reads them. What one call leaves for another lies in `scratch`,
    which whoever made it clears."""

    store: Store
    shards: Sequence[Shard]
    executor: Executor
    scratch: Store

    def each(
        self, function: Callable[..., Result], calls: Sequence[tuple[Any, ...]]
    ) -> list[Result]:
        """What the function returns for each call, in their order; the store comes first."""
        found = dict(run_all(self.executor, function, [(self.store, *call) for call in calls]))
        return [found[number] for number in range(len(calls))]


def live_documents(workers: Workers, config: DedupConfig) -> Documents:
    """Raises DataError for an id that comes twice, or is not 32 hex digits."""
    found = workers.each(_live_rows, [(shard, config) for shard in workers.shards])
    ids, digests, lengths, ranks, rows = (
        np.concatenate(columns) for columns in zip(_no_rows(), *found, strict=True)
    )
    shards = np.repeat(np.arange(len(found)), [len(part[0]) for part in found])
    order = np.lexsort((ids[:, 1], ids[:, 0]))
    ids = ids[order]
    twice = np.flatnonzero(~_new(ids.T))
    if len(twice):
        id = to_hex(ids[twice[:1]])[0]
        raise DataError(f"the id {id} comes twice among the live documents, expected once")
    return Documents(ids, digests[order], lengths[order], ranks[order], shards[order], rows[order])


def _no_rows() -> tuple[npt.NDArray[Any], ...]:
    names, numbers = np.empty((0, 2), np.uint64), np.empty(0, np.int64)
    return names, names, numbers, numbers, numbers


def _live_rows(store: Store, shard: Shard, config: DedupConfig) -> tuple[npt.NDArray[Any], ...]:
    """(ids, digests, lengths, ranks, rows) of one shard's live documents."""
    table = store.read_table(shard.extras.get(SIGNATURES.kind), SIGNATURES)
    gone = pc.is_in(table["id"], value_set=out_ids(store, shard))
    rows = np.flatnonzero(~gone.to_numpy())
    table = table.take(rows)
    priorities = pa.array(config.priorities, pa.string())
    ranks = pc.fill_null(pc.index_in(table["source"], value_set=priorities), len(priorities))
    numbers = [column.to_numpy().astype(np.int64) for column in (table["length"], ranks)]
    return from_hex(table["id"]), from_hex(table["digest"]), *numbers, rows


_DIGITS = b"0123456789abcdef"
_VALUES = np.full(256, 255, np.uint8)
_VALUES[list(_DIGITS)] = range(16)


def from_hex(column: pa.ChunkedArray) -> Names:
    """(n, 2): 32 hex digits as two numbers, the leading half first. Raises DataError for others."""
    from tasks.kernels.words import flat_texts

    offsets, digits = flat_texts(column)
    values = _VALUES[digits[offsets[0] : offsets[-1]]]
    wrong = np.flatnonzero(np.diff(offsets) != 32)
    if not len(wrong):
        values = values.reshape(-1, 32)
        wrong = np.flatnonzero((values == 255).any(axis=1))
    if len(wrong):
        raise DataError(f"found {column[wrong[0]]} for an id or a digest, expected 32 hex digits")
    return (values[:, ::2] << 4 | values[:, 1::2]).view(">u8").astype(np.uint64)


def to_hex(names: Names) -> pa.Array:
    """The 32 hex digits of each of `names` (n, 2)."""
    octets = names.astype(">u8").view(np.uint8).reshape(-1, 16)
    digits = np.frombuffer(_DIGITS, np.uint8)[np.stack([octets >> 4, octets & 15], axis=2)]
    offsets = np.arange(0, 32 * len(names) + 1, 32, dtype=np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(digits.tobytes())]
    return pa.Array.from_buffers(pa.string(), len(names), buffers)


_KEYS_AT_ONCE = 1 << 22  # in a range: 34 MB of them, 150 MB while they are sorted


def candidate_pairs(workers: Workers, documents: Documents, config: DedupConfig) -> Pairs:
    """Pairs of distinct texts that share a band.

    Each text stands for all its copies. In a bucket of equal keys every document is paired with
    the least only, at a cost linear in the bucket: two that resemble each other but not the least
    have other bands to meet in. The keys are cut into ranges, each searched by a call that reads
    its part of every shard.
    """
    from tasks.kernels.banding import star_pairs

    refs = [shard.extras.get(SIGNATURES.kind) for shard in workers.shards]
    offsets = np.cumsum([0, *(ref.rows if ref else 0 for ref in refs)])
    places = offsets[documents.shards] + documents.rows
    number = np.full(offsets[-1], -1, np.int64)
    number[places] = np.arange(len(documents))
    wanted = np.zeros(offsets[-1], np.bool_)
    wanted[places[documents.first == np.arange(len(documents))]] = True
    sources = [
        (shard.extras.get(BANDS.kind), int(start), np.packbits(wanted[start:end]))
        for shard, (start, end) in zip(workers.shards, pairwise(offsets), strict=True)
    ]
    n_ranges = 1 + int(np.count_nonzero(wanted)) * config.bands // _KEYS_AT_ONCE
    edges = [(k << 64) // n_ranges - (1 << 63) for k in range(n_ranges + 1)]
    calls = [(sources, low, high - 1) for low, high in pairwise(edges)]
    found = workers.each(_shared_bands, calls)
    sizes = [0, *(int(bucket[-1]) + 1 if len(bucket) else 0 for bucket, _ in found)]
    buckets = [bucket + at for (bucket, _), at in zip(found, np.cumsum(sizes), strict=False)]
    members = [number[places] for _, places in found]
    pairs = star_pairs(np.concatenate(buckets), np.concatenate(members))
    return Pairs.of(*pairs, len(documents))


def _shared_bands(
    store: Store,
    sources: Sequence[tuple[ObjectRef | None, int, npt.NDArray[np.uint8]]],
    low: int,
    high: int,
) -> tuple[Ints, Ints]:
    """(bucket, place) of what shares a band key from `low` to `high`.

    A source is a shard's BANDS, the place of its first row, and bits of the rows to look at.
    """
    from tasks.kernels.banding import buckets

    keys, places = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for ref, offset, wanted in sources:
        found, rows = read_slices(store, ref, BANDS, low, high)
        inside = np.unpackbits(wanted)[rows].astype(np.bool_)
        inside &= (found >= low) & (found <= high)
        keys.append(found[inside])
        places.append(rows[inside].astype(np.int64) + offset)
    return buckets(np.concatenate(keys), np.concatenate(places))


def measured(
    workers: Workers,
    documents: Documents,
    pairs: Pairs,
    config: DedupConfig,
    known: pa.Table | None = None,
) -> Floats:
    """The true Jaccard similarity of each pair, to 6 decimals.

    `known` are EDGES of earlier runs with the same shingles; they only save work, since two texts
    have one similarity.
    """
    result = np.full(len(pairs), np.nan)
    if known is not None:
        earlier = _joined(from_hex(known["a"]), from_hex(known["b"]))
        found = pc.index_in(_joined(*pairs.digests(documents)), value_set=earlier)
        place = pc.fill_null(found, -1).to_numpy()
        result[place >= 0] = known["similarity"].to_numpy()[place[place >= 0]]
    fresh = np.isnan(result)
    result[fresh] = _compared(workers, documents, pairs.where(fresh), config)
    return result


def _joined(a: Names, b: Names) -> pa.Array:
    """Both as one value of 32 bytes."""
    buffers = [None, pa.py_buffer(np.hstack([a, b]).tobytes())]
    return pa.Array.from_buffers(pa.binary(32), len(a), buffers)


_CHARACTERS_AT_ONCE = 1 << 25  # in a comparison: 45 MB of shingles, 150 MB with their copies


def _compared(workers: Workers, documents: Documents, pairs: Pairs, config: DedupConfig) -> Floats:
    """The similarities of pairs, part by part.

    The texts of a part may be in any shards. So each shard's texts are read once, by a call that
    leaves their shingles in order of part, and each part is compared by a call that reads its
    slices of what the shards left.
    """
    characters = documents.lengths[pairs.one] + documents.lengths[pairs.two]
    part = np.unique(np.cumsum(characters) // _CHARACTERS_AT_ONCE, return_inverse=True)[1]
    ends = np.concatenate([pairs.one, pairs.two])
    needed = _distinct(documents.shards[ends], np.tile(part, 2), ends)
    calls = []
    for start, end in _runs(needed[0]):
        shard, parts, members = needed[:, start:end]
        ids = to_hex(documents.ids[np.unique(members)])
        text = workers.shards[shard[0]].text
        calls.append((workers.scratch, text, ids, members, parts, config))
    left = dict(zip(np.unique(needed[0]), workers.each(_leave_shingles, calls), strict=True))
    comparisons = []
    for number, (start, end) in enumerate(_runs(part)):
        refs = [left[shard] for shard in np.unique(needed[0, needed[1] == number])]
        ends_of = (pairs.one[start:end], pairs.two[start:end])
        comparisons.append((workers.scratch, refs, number, *ends_of))
    return np.concatenate([np.empty(0), *workers.each(_compare, comparisons)])


def _distinct(*columns: Ints) -> Ints:
    """(columns, rows): the distinct rows of parallel arrays, in order."""
    rows = np.stack(columns)[:, np.lexsort(columns[::-1])]
    return rows[:, _new(rows)]


def _new(rows: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
    """Whether each of the rows (columns, rows) differs from the one before it."""
    fresh = np.ones(rows.shape[1], np.bool_)
    fresh[1:] = (rows[:, 1:] != rows[:, :-1]).any(axis=0)
    return fresh


def _runs(values: Ints) -> list[tuple[int, int]]:
    """Where each run of equal values, which ascend from 0 or more, begins and ends."""
    starts = np.flatnonzero(np.diff(values, prepend=-1)).tolist()
    return list(pairwise([*starts, len(values)]))


def _leave_shingles(
    store: Store,
    scratch: Store,
    text: ObjectRef | None,
    ids: pa.Array,
    members: Ints,
    parts: Ints,
    config: DedupConfig,
) -> ObjectRef | None:
    """SHINGLES of one shard's documents `ids`, which are numbered `members`: a slice for each part
    that needs some of them. `parts` and `members` are parallel and in order.

    Raises DataError for a document that is not there.
    """
    from tasks.kernels.minhash import shingle_sets

    rows = store.read_table(text, DOCUMENTS, ["id", "text"], pc.field("id").isin(ids))
    found = pc.index_in(ids, value_set=rows["id"].combine_chunks())
    if found.null_count:
        raise DataError(f"no live document has the id {ids.filter(found.is_null())[0]}")
    hashes, bounds = shingle_sets(rows["text"].take(found), config.ngram, config.by_letter)
    place = np.searchsorted(np.unique(members), members)
    sizes = np.diff(bounds)[place]
    tables = []
    for start, end in _runs(parts):
        keys = [hashes[bounds[at] : bounds[at + 1]] for at in place[start:end]]
        numbers = np.repeat(members[start:end], sizes[start:end])
        tables.append((parts[start], parts[start], np.concatenate(keys), numbers))
    return scratch.put_table(slices(tables, SHINGLES), SHINGLES)


def _compare(
    _: Store, scratch: Store, refs: Sequence[ObjectRef | None], part: int, one: Ints, two: Ints
) -> Floats:
    """The similarities of the pairs of one part, whose shingles are in its slices of `refs`."""
    from tasks.kernels.minhash import similarities

    found = [read_slices(scratch, ref, SHINGLES, part, part) for ref in refs]
    hashes, members = (np.concatenate(columns) for columns in zip(*found, strict=True))
    starts = np.flatnonzero(_new(members[np.newaxis]))
    order = np.argsort(members[starts])
    ordered = members[starts][order]
    sets = [order[np.searchsorted(ordered, numbers)] for numbers in (one, two)]
    found = similarities(hashes.view(np.uint64), np.append(starts, len(members)), *sets)
    return np.round(found, 6)
