"""Batches of windows, in an order of training drawn from ids alone.

The order, for a seed and an epoch:
1. The top bits of a document's id choose its bucket. The number of buckets is a power of two set
   by the tokens of the split.
2. Buckets are permuted by (seed, epoch); documents inside a bucket by hash(seed, epoch, id).
3. The documents of a bucket are packed into windows (`llm.packing`). None crosses a bucket.
4. The windows of a bucket are permuted by (seed, epoch, bucket), so that a batch mixes documents.

So the order depends on nothing but ids and lengths: not on shards, object names, row numbers or
the order of the dataset file. A document added or removed disturbs its own bucket only, and any
position is found without reading what comes before it. A mixture has such an order for each source
and says which of them the next window is from; a curriculum has one for each level, which come one
after the other.

Shapes: B windows of a batch, T tokens of context, S tokens of a stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import xxhash
from torch import Tensor

from llm.config_data import DataConfig
from llm.data import IGNORED, Prepared
from llm.errors import ConfigError, DataError
from llm.packing import Packing, best_fit, cut_stream, fill, number_documents

Ints = npt.NDArray[np.int64]

BUCKET_TOKENS = 1 << 24  # 32 MiB as uint16: what an order holds in memory at a time.
LEVELS = 8  # of a curriculum
PERIOD = 4096  # windows in which a mixture's sources come in just their parts


@dataclass(frozen=True)
class Batch:
    """Windows to learn from, each (B, T) int64. Targets that do not count are -100.

    `documents_BT` numbers the documents of each window from 0, padding last; None where attention
    may cross them.
    """

    inputs_BT: Tensor
    targets_BT: Tensor
    documents_BT: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        documents_BT = None if self.documents_BT is None else self.documents_BT.to(device)
        return Batch(self.inputs_BT.to(device), self.targets_BT.to(device), documents_BT)

    @property
    def n_targets(self) -> int:
        """Targets that count."""
        return int((self.targets_BT != IGNORED).sum())


class Loader:
    """Batches of windows in training order. `batch` is a pure function of its arguments.

    One bucket of each source is in memory at a time: about 16 Mi tokens, however large the split.
    """

    def __init__(
        self,
        prepared: Prepared,
        context_length: int,
        batch_size: int,
        seed: int,
        data: DataConfig = DataConfig(),
        *,
        bucket_tokens: int = BUCKET_TOKENS,
    ) -> None:
        """Raises ConfigError for impossible sizes or weights that do not fit the sources, DataError
        for a split without a token."""
        if context_length < 1 or batch_size < 1:
            raise ConfigError(
                f"context_length is {context_length} and batch_size {batch_size}; "
                "both must be at least 1"
            )
        if not prepared.n_tokens:
            raise DataError(f"split {prepared.split!r} has no token to predict; add documents")
        self.prepared, self.data = prepared, data
        self.context_length, self.batch_size = context_length, batch_size
        groups = _groups(prepared, data.weights)
        self._orders = [
            _Order(prepared, documents, context_length, seed, data, bucket_tokens)
            for documents in groups.values()
        ]
        parts = [data.weights[name] for name in groups] if data.weights else [1.0]
        self._mixture = _Mixture(parts, seed)

    def n_windows(self, epoch: int = 0) -> int:
        """Windows of an epoch, the same for each: shuffling moves documents inside buckets. Of a
        mixture, those of all its sources together."""
        return sum(order.n_windows for order in self._orders)

    @property
    def tokens_per_epoch(self) -> int:
        """Targets of an epoch: every token of every document, and an eot after each."""
        return sum(order.n_pairs for order in self._orders)

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """The share of a rank in global micro-batch `step`: rows that follow each other.

        Epochs follow each other without a gap: a batch may hold the end of one and the beginning
        of the next. Raises ConfigError where the ranks cannot share the rows evenly.
        """
        if self.batch_size % world_size:
            raise ConfigError(
                f"batch_size is {self.batch_size}, which {world_size} processes cannot share evenly"
            )
        share = self.batch_size // world_size
        first = step * self.batch_size + rank * share
        shape = (share, self.context_length)
        inputs_BT, targets_BT = np.empty(shape, np.int64), np.empty(shape, np.int64)
        documents_BT = np.empty(shape if self.data.document_mask else (0, 0), np.int64)
        arrays = (inputs_BT, targets_BT, documents_BT)
        if len(self._orders) == 1:
            self._orders[0].read(first, arrays)
        else:
            self._read_mixed(first, arrays)
        documents = torch.from_numpy(documents_BT) if self.data.document_mask else None
        return Batch(torch.from_numpy(inputs_BT), torch.from_numpy(targets_BT), documents)

    def _read_mixed(self, first: int, arrays: Sequence[Ints]) -> None:
        sources, numbers = self._mixture.places(first, len(arrays[0]))
        for source in np.unique(sources).tolist():
            rows = np.flatnonzero(sources == source)
            some = [array[rows] if len(array) else array for array in arrays]
            self._orders[source].read(int(numbers[rows[0]]), some)
            for array, part in zip(arrays, some, strict=True):
                if len(array):
                    array[rows] = part


def _groups(prepared: Prepared, weights: Mapping[str, float]) -> dict[str, Ints]:
    """The documents of each source that has a weight; without weights, all as one."""
    if not weights:
        return {"": np.arange(prepared.n_documents)}
    there = {prepared.sources[code] for code in np.unique(prepared.source).tolist()}
    if missing := sorted(there - weights.keys()):
        raise ConfigError(
            f"train.data.weights says nothing of the source {missing[0]!r}: give it a weight, or 0 "
            "to leave it out"
        )
    if unknown := sorted(name for name in weights.keys() - there if weights[name]):
        raise ConfigError(
            f"train.data.weights names {unknown[0]!r}, of which the dataset has no document; its "
            f"sources: {', '.join(sorted(there))}"
        )
    return {
        name: np.flatnonzero(prepared.source == prepared.sources.index(name))
        for name in sorted(there)
        if weights[name]
    }


class _Mixture:
    """Which source each window is from. In `PERIOD` windows each source has its part, to the next
    whole number, in an order drawn anew for each period."""

    def __init__(self, parts: Sequence[float], seed: int) -> None:
        self.seed = seed
        exact = np.array(parts) / sum(parts) * PERIOD
        counts = np.floor(exact).astype(np.int64)
        # What is left goes to those that lost most by rounding down, the first of equals first.
        counts[np.argsort(counts - exact, kind="stable")[: PERIOD - counts.sum()]] += 1
        self.counts = counts

    def places(self, first: int, n: int) -> tuple[Ints, Ints]:
        """(source, number among its windows) of n windows from `first` on."""
        periods = range(first // PERIOD, (first + n - 1) // PERIOD + 1)
        found = [self._period(period) for period in periods]
        start = first - periods[0] * PERIOD
        sources, numbers = (
            np.concatenate(column)[start : start + n] for column in zip(*found, strict=True)
        )
        return sources, numbers

    def _period(self, period: int) -> tuple[Ints, Ints]:
        dealt = np.repeat(np.arange(len(self.counts)), self.counts)
        sources = dealt[_permutation(PERIOD, "mixture", self.seed, period)]
        numbers = np.empty(PERIOD, np.int64)
        for source, count in enumerate(self.counts.tolist()):
            numbers[sources == source] = period * count + np.arange(count)
        return sources, numbers


class _Order:
    """The windows of some documents, epoch after epoch."""

    def __init__(
        self,
        prepared: Prepared,
        documents: Ints,
        context_length: int,
        seed: int,
        data: DataConfig,
        bucket_tokens: int,
    ) -> None:
        self.prepared, self.context_length, self.seed = prepared, context_length, seed
        self.packing = data.packing
        self._documents, self._bounds, self._levels = _layout(
            prepared, documents, data.curriculum, bucket_tokens
        )
        n_pairs_of = np.diff(prepared.starts)[self._documents]
        self.n_pairs = int(n_pairs_of.sum())
        self._n_windows = self._count_windows(n_pairs_of)
        self.n_windows = int(self._n_windows.sum())
        self._epoch = (-1, np.empty(0, np.int64), np.empty(0, np.int64))
        self._bucket: tuple[int, int, Packing, npt.NDArray[np.generic], Ints] | None = None

    def _count_windows(self, n_pairs_of: Ints) -> Ints:
        """Windows of each bucket, from the lengths of its documents alone."""
        context = self.context_length
        if self.packing == "stream":
            return -(-_sums(n_pairs_of, self._bounds) // context)
        whole = _sums(n_pairs_of // context, self._bounds)
        return whole - (-_sums(n_pairs_of % context, self._bounds) // context)

    def read(self, first: int, arrays: Sequence[Ints]) -> None:
        """Fills the rows of the arrays (inputs, targets, documents) with windows from number
        `first` of all epochs on, bucket by bucket."""
        row, n_rows = 0, len(arrays[0])
        while row < n_rows:
            epoch, position = divmod(first + row, self.n_windows)
            buckets, ends = self._order_of(epoch)
            place = int(np.searchsorted(ends, position, side="right"))
            packing, stream_S, order = self._assemble(epoch, int(buckets[place]))
            inside = position - (int(ends[place]) - len(packing))
            windows = order[inside : inside + n_rows - row]
            inputs, targets, documents = (array[row : row + len(windows)] for array in arrays)
            eot_id, lengths, bounds = self.prepared.eot_id, packing.lengths, packing.bounds
            fill(
                windows, packing.starts, lengths, bounds, stream_S, eot_id, IGNORED, inputs, targets
            )
            if len(documents):
                number_documents(windows, lengths, bounds, eot_id, inputs, documents)
            row += len(windows)

    def _order_of(self, epoch: int) -> tuple[Ints, Ints]:
        """The epoch's buckets in order, and after how many windows each one ends."""
        if self._epoch[0] != epoch:
            buckets = _permutation(len(self._n_windows), "buckets", self.seed, epoch)
            buckets = buckets[np.argsort(self._levels[buckets], kind="stable")]
            self._epoch = (epoch, buckets, np.cumsum(self._n_windows[buckets]))
        return self._epoch[1], self._epoch[2]

    def _assemble(self, epoch: int, bucket: int) -> tuple[Packing, npt.NDArray[np.generic], Ints]:
        """The bucket's windows, the stream they are cut from, and the order to take them in."""
        if self._bucket is None or self._bucket[:2] != (epoch, bucket):
            self._bucket = None  # Free the last one before the next is made.
            prepared = self.prepared
            documents = self._documents[slice(*self._bounds[bucket : bucket + 2])]
            high, low = prepared.ids[documents].T
            key = _key("documents", self.seed, epoch)
            documents = documents[np.argsort(_mix(low ^ _mix(high + key)), kind="stable")]
            stream_S = _gather(prepared, documents)
            if self.packing == "stream":
                packing = cut_stream(len(stream_S) - 1, self.context_length)
            else:
                n_pairs_of = np.diff(prepared.starts)[documents]
                packing = best_fit(n_pairs_of, self.context_length)
            order = _permutation(len(packing), "windows", self.seed, epoch, bucket)
            self._bucket = (epoch, bucket, packing, stream_S, order)
        return self._bucket[2:]


def _layout(
    prepared: Prepared, documents: Ints, curriculum: str, bucket_tokens: int
) -> tuple[Ints, Ints, Ints]:
    """The documents in order of their buckets, the bounds of those, and the level of each."""
    ordered, bounds, levels = [], [np.zeros(1, np.int64)], []
    at = 0
    for level, some in enumerate(_levels(prepared, documents, curriculum)):
        n_tokens = int(np.diff(prepared.starts)[some].sum())
        edges = _bucket_bounds(prepared.ids[some, 0], n_buckets(n_tokens, bucket_tokens))
        ordered.append(some)
        bounds.append(edges[1:] + at)
        levels.append(np.full(len(edges) - 1, level))
        at += len(some)
    return np.concatenate(ordered), np.concatenate(bounds), np.concatenate(levels)


def _levels(prepared: Prepared, documents: Ints, curriculum: str) -> list[Ints]:
    """The documents by level, in order of id inside each: of about equally many tokens."""
    if curriculum == "none":
        return [documents]
    lengths = np.diff(prepared.starts)[documents]
    measure = lengths.astype(np.float64)
    if curriculum == "difficulty":
        measure = (lengths - 1) / np.maximum(1, prepared.n_bytes[documents])
    order = np.argsort(measure, kind="stable")
    share = np.cumsum(lengths[order]) - lengths[order]
    level = np.empty_like(order)
    level[order] = share * LEVELS // max(1, int(lengths.sum()))
    found = [documents[level == number] for number in range(LEVELS)]
    return [some for some in found if len(some)]


def n_buckets(n_tokens: int, bucket_tokens: int = BUCKET_TOKENS) -> int:
    """The least power of two whose buckets hold `bucket_tokens` or fewer on average."""
    return 1 << max(0, (n_tokens - 1) // bucket_tokens).bit_length()


def _bucket_bounds(high: npt.NDArray[np.uint64], buckets: int) -> Ints:
    """(buckets + 1,): the first document of each bucket, given the upper halves of sorted ids."""
    starts = np.arange(1, buckets, dtype=np.uint64) << np.uint64(64 - (buckets.bit_length() - 1))
    return np.concatenate(([0], np.searchsorted(high, starts), [len(high)]))


def _sums(values: Ints, bounds: Ints) -> Ints:
    """The sum of the values between each two bounds."""
    return np.diff(np.concatenate([[0], np.cumsum(values)])[bounds])


def _gather(prepared: Prepared, documents: Ints) -> npt.NDArray[np.generic]:
    """The stream of `documents` in the order given, each with its eot, and an eot behind them."""
    tokens_S, starts = prepared.tokens_S, prepared.starts
    lengths = starts[documents + 1] - starts[documents]
    ends = np.cumsum(lengths)
    stream_S = np.empty(int(lengths.sum()) + 1, tokens_S.dtype)
    for i in range(0, len(documents), 512):  # Few enough that the indices stay in cache.
        here = slice(i, i + 512)
        first, last = ends[i] - lengths[i], ends[here][-1]
        shift = starts[documents[here]] - (ends[here] - lengths[here])
        places = np.repeat(shift, lengths[here])
        places += np.arange(first, last)
        stream_S[first:last] = tokens_S[places]
    stream_S[-1] = prepared.eot_id
    return stream_S


def _key(purpose: str, *numbers: int) -> np.uint64:
    return np.uint64(xxhash.xxh3_64_intdigest(f"{purpose} {numbers}".encode()))


def _permutation(n: int, purpose: str, *numbers: int) -> Ints:
    """A permutation of range(n) that the arguments decide, on every machine and numpy alike."""
    return np.argsort(_mix(np.arange(n, dtype=np.uint64) + _key(purpose, *numbers)), kind="stable")


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's output function (Steele, Lea and Flood 2014): a bijection that looks random."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
