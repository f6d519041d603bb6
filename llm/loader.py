"""Batches of windows, in an order of training drawn from ids alone.

The order, for a seed and an epoch:
1. The top bits of a document's id choose its bucket (`llm.buckets`). The number of buckets is a
   power of two set by the tokens of the split.
2. Buckets are permuted by (seed, epoch); documents inside a bucket by hash(seed, epoch, id).
3. The documents of a bucket are packed into windows (`llm.packing`). None crosses a bucket.
4. The windows of a bucket are permuted by (seed, epoch, bucket), so that a batch mixes documents.

So the order depends on nothing but ids and lengths: not on shards, object names, row numbers or
the order of the dataset file. A document added or removed disturbs its own bucket only, and any
position is found without reading what comes before it. A mixture has such an order for each source
and says which of them the next window is from (`llm.mixture`); a curriculum has one for each level,
which come one after the other.

Shapes: B windows of a batch, T tokens of context, S tokens of a stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llm.ahead import Ahead
from llm.buckets import BUCKET_TOKENS, Part, lay_out
from llm.config_data import DataConfig
from llm.data import IGNORED, Prepared, Tokens
from llm.errors import ConfigError, DataError
from llm.mixture import Mixture, check_weights
from llm.packing import Packing, best_fit, cut_stream, fill, gather, number_documents
from llm.shuffle import key, mix, permutation

Ints = npt.NDArray[np.int64]


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

    Two buckets of each source are in memory at a time, the one in use and the next, which a thread
    fetches and packs meanwhile: each about 16 Mi tokens, however large the split.
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
        weights = [1.0]
        if data.weights:
            check_weights(data.weights, prepared.sources)
            weights = [data.weights[source] for source in prepared.sources]
        parts = lay_out(prepared, data, bucket_tokens)
        used = [number for number, weight in enumerate(weights) if weight]
        self._orders = [
            _Order(prepared, number, parts[number], context_length, seed, data.packing)
            for number in used
        ]
        self._mixture = Mixture([weights[number] for number in used], seed)

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
            self._orders[0].read(first, np.arange(share), arrays)
        else:
            sources, numbers = self._mixture.places(first, share)
            for source, order in enumerate(self._orders):
                rows = np.flatnonzero(sources == source)
                if len(rows):
                    order.read(int(numbers[rows[0]]), rows, arrays)
        documents = torch.from_numpy(documents_BT) if self.data.document_mask else None
        return Batch(torch.from_numpy(inputs_BT), torch.from_numpy(targets_BT), documents)


@dataclass(frozen=True)
class _Bucket:
    """The windows of a bucket in an epoch, the stream they are cut from, and their order."""

    packing: Packing
    stream_S: Tokens
    windows: Ints


class _Order:
    """The windows of a part, epoch after epoch."""

    def __init__(
        self,
        prepared: Prepared,
        number: int,
        part: Part,
        context_length: int,
        seed: int,
        packing: str,
    ) -> None:
        self.prepared, self.number, self.part = prepared, number, part
        self.context_length, self.seed, self.packing = context_length, seed, packing
        n_pairs_of = np.diff(prepared.starts)[part.documents]
        self.n_pairs = int(n_pairs_of.sum())
        self._n_windows = self._count_windows(n_pairs_of)
        self.n_windows = int(self._n_windows.sum())
        self._epoch = (-1, np.empty(0, np.int64), np.empty(0, np.int64))
        self._held: tuple[tuple[int, int], _Bucket] | None = None
        self._ahead = Ahead(self._make)

    def _count_windows(self, n_pairs_of: Ints) -> Ints:
        """Windows of each bucket, from the lengths of its documents alone."""
        context, bounds = self.context_length, self.part.bounds
        if self.packing == "stream":
            return -(-_sums(n_pairs_of, bounds) // context)
        whole = _sums(n_pairs_of // context, bounds)
        return whole - (-_sums(n_pairs_of % context, bounds) // context)

    def read(self, first: int, rows: Ints, arrays: Sequence[Ints]) -> None:
        """Writes windows from number `first` of all epochs on into these rows of the arrays
        (inputs, targets, documents), bucket by bucket."""
        inputs_BT, targets_BT, documents_BT = arrays
        eot_id, done = self.prepared.eot_id, 0
        while done < len(rows):
            epoch, position = divmod(first + done, self.n_windows)
            ends = self._order_of(epoch)[1]
            place = int(ends.searchsorted(position, side="right"))
            bucket = self._take(epoch, place)
            packing = bucket.packing
            start = position - (int(ends[place]) - len(packing))
            windows = bucket.windows[start : start + len(rows) - done]
            here = rows[done : done + len(windows)]
            pieces = (packing.starts, packing.lengths, packing.bounds)
            fill(windows, here, *pieces, bucket.stream_S, eot_id, IGNORED, inputs_BT, targets_BT)
            if len(documents_BT):
                number_documents(windows, here, *pieces[1:], documents_BT)
            done += len(windows)

    def _order_of(self, epoch: int) -> tuple[Ints, Ints]:
        """The epoch's buckets in order, and after how many windows each one ends."""
        if self._epoch[0] != epoch:
            buckets = self._buckets_of(epoch)
            self._epoch = (epoch, buckets, np.cumsum(self._n_windows[buckets]))
        return self._epoch[1:]

    def _buckets_of(self, epoch: int) -> Ints:
        buckets = permutation(len(self.part), "buckets", self.seed, epoch)
        return buckets[np.argsort(self.part.levels[buckets], kind="stable")]

    def _take(self, epoch: int, place: int) -> _Bucket:
        """The bucket at a place of an epoch, while a thread makes the next that is not empty."""
        if self._held is None or self._held[0] != (epoch, place):
            self._held = None  # Free the last one before the next but one is made.
            buckets, _ = self._order_of(epoch)
            later = np.flatnonzero(self._n_windows[buckets[place + 1 :]])
            if len(later):
                then = (epoch, int(buckets[place + 1 + later[0]]))
            else:
                following = self._buckets_of(epoch + 1)
                then = (epoch + 1, int(following[np.argmax(self._n_windows[following] > 0)]))
            bucket = self._ahead.take((epoch, int(buckets[place])), then)
            self._held = ((epoch, place), bucket)
        return self._held[1]

    def _make(self, which: tuple[int, int]) -> _Bucket:
        """A bucket in an epoch. Called in two threads at once, and so changes nothing."""
        epoch, bucket = which
        documents = self.part.bucket(bucket)
        tokens_S, starts = self.prepared.kept.bucket(self.number, bucket, documents)
        high, low = self.prepared.ids[documents].T
        drawn = mix(low ^ mix(high + key("documents", self.seed, epoch)))
        order = np.argsort(drawn, kind="stable")
        n_pairs_of = (self.prepared.starts[documents + 1] - self.prepared.starts[documents])[order]
        stream_S = gather(tokens_S, starts[order], n_pairs_of, self.prepared.eot_id)
        pack = cut_stream if self.packing == "stream" else best_fit
        packing = pack(n_pairs_of, self.context_length)
        windows = permutation(len(packing), "windows", self.seed, epoch, bucket)
        return _Bucket(packing, stream_S, windows)


def _sums(values: Ints, bounds: Ints) -> Ints:
    """The sum of the values between each two bounds."""
    return np.diff(np.concatenate([[0], np.cumsum(values)])[bounds])
