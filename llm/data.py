"""Training data: from a dataset file to batches of windows, in an order drawn from ids alone.

A dataset file is a Parquet of `object`, `row`, `id`, `length`, `n_bytes`, `split`, `source`: which
documents there are, and in which row of which token shard each one's tokens lie. Shards hold no
special tokens; on reading, every document is preceded by `<|endoftext|>` and so costs length + 1.

The order of training, for a seed and an epoch:
1. The top bits of a document's id choose its bucket. The number of buckets is a power of two set
   by the tokens of the split.
2. Buckets are permuted by (seed, epoch); documents inside a bucket by hash(seed, epoch, id).
3. The documents of a bucket form one stream, cut into windows. No window crosses a bucket.
4. The windows of a bucket are permuted by (seed, epoch, bucket), so that a batch mixes documents.

So the order depends on nothing but ids and lengths: not on shards, object names, row numbers or
the order of the dataset file. A document added or removed disturbs its own bucket only, and any
position is found without reading what comes before it.

Shapes: B windows of a batch, T tokens of context, S tokens of a stream.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import xxhash

from llm.errors import ConfigError, DataError, StorageError
from llm.files import arrow_filesystem, read_bytes

BUCKET_TOKENS = 1 << 24  # 32 MiB as uint16: what a loader holds in memory at a time.
IGNORED = -100  # The target that torch's cross-entropy leaves out.
_LAYOUT = 1  # Part of the name of what `prepare` writes; raise it when the layout changes.


@dataclass(frozen=True)
class Prepared:
    """One split on local disk, memory-mapped: its documents in order of id, each after an eot."""

    split: str
    eot_id: int
    digest: str
    """sha256 of ids, lengths, bytes and tokens: equal data, equal digest, whatever the shards."""
    tokens_S: np.ndarray
    """The stream, uint16 or uint32: eot, tokens of document 0, eot, tokens of document 1, ..."""
    ids: np.ndarray
    """(n_documents, 2) uint64: the upper and lower half of each id, ascending."""
    starts: np.ndarray
    """(n_documents + 1,) int64: where each document's eot stands in the stream, and its end."""
    n_bytes: np.ndarray
    """(n_documents,) int64: the UTF-8 bytes of each document's text."""

    @property
    def n_documents(self) -> int:
        return len(self.ids)

    @property
    def n_tokens(self) -> int:
        """Tokens of the documents, without the eots."""
        return len(self.tokens_S) - self.n_documents


def prepare(
    dataset_url: str, split: str, cache_dir: Path, base_url: str = "", *, eot_id: int = 0
) -> Prepared:
    """Copies one split's tokens into `cache_dir`, in order of id, unless they are there already.

    One pass over the token shards, a few documents in memory at a time. `base_url` is put before
    object names that are no URLs. The copy is named after the content of the dataset file and
    whole or not there at all; several processes may ask for it at once.

    Raises DataError when the dataset is missing, has no document of the split or disagrees with
    its shards, StorageError when the disk is full or a shard cannot be read.
    """
    try:
        body = read_bytes(dataset_url)
    except FileNotFoundError as error:
        raise DataError(f"{dataset_url}: no such dataset file; build the corpus first") from error
    settings = json.dumps([_LAYOUT, split, eot_id, base_url]).encode()
    name = f"{split}-{hashlib.sha256(settings + body).hexdigest()[:32]}"
    folder = Path(cache_dir) / name
    Path(cache_dir).mkdir(parents=True, exist_ok=True)
    # A killed writer frees the lock and leaves a folder without its index, made anew here.
    with filelock.FileLock(str(folder) + ".lock"):
        if not (folder / "index.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            documents = _Documents.read(body, split, dataset_url)
            try:
                _write(folder, documents, base_url, {"split": split, "eot_id": eot_id})
            except OSError as error:
                raise StorageError(
                    f"{folder}: cannot write {documents.starts[-1]} tokens: {error}; free some "
                    "room or choose another cache folder"
                ) from error
    return _open(folder)


@dataclass(frozen=True)
class _Documents:
    """The dataset file's rows of one split, sorted by id."""

    ids: np.ndarray
    starts: np.ndarray
    n_bytes: np.ndarray
    rows: np.ndarray
    objects: list[str]
    object_indices: np.ndarray

    @classmethod
    def read(cls, body: bytes, split: str, url: str) -> _Documents:
        columns = ["object", "row", "id", "length", "n_bytes", "split"]
        try:
            table = pq.read_table(pa.BufferReader(body), columns=columns)
        except (pa.ArrowException, KeyError) as error:
            raise DataError(f"{url}: not a dataset file: {error}") from error
        chosen: Any = table.filter(pc.field("split") == split).combine_chunks()
        if len(chosen) == 0:
            found = sorted(map(str, table["split"].unique().to_pylist()))
            raise DataError(f"{url}: no document of split {split!r}; it has {found or 'no rows'}")
        ids = _halves(chosen["id"], url)
        order = np.lexsort((ids[:, 1], ids[:, 0]))
        ids = ids[order]
        twice = (ids[1:] == ids[:-1]).all(axis=1)
        if twice.any():
            raise DataError(f"{url}: id {_hex(ids[np.argmax(twice)])} comes twice in {split!r}")
        encoded = chosen["object"].combine_chunks().dictionary_encode()
        return cls(
            ids=ids,
            starts=np.concatenate(([0], np.cumsum(_int64(chosen["length"])[order] + 1))),
            n_bytes=_int64(chosen["n_bytes"])[order],
            rows=_int64(chosen["row"])[order],
            objects=encoded.dictionary.to_pylist(),
            object_indices=encoded.indices.to_numpy()[order],
        )


def _int64(column: Any) -> np.ndarray:
    return column.to_numpy().astype(np.int64)


def _halves(ids: Any, url: str) -> np.ndarray:
    """(n, 2) uint64: the two halves of ids of 32 hex digits."""
    try:
        digits = "".join(ids.to_pylist())
        return np.frombuffer(bytes.fromhex(digits), ">u8").reshape(len(ids), 2).astype(np.uint64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{url}: expected ids of 32 hex digits: {error}") from error


def _hex(halves: np.ndarray) -> str:
    return f"{int(halves[0]):016x}{int(halves[1]):016x}"


def _write(folder: Path, documents: _Documents, base_url: str, index: dict[str, Any]) -> None:
    """The token file and its arrays, and last the index, which says that all is there."""
    path, eot_id = folder / "tokens.bin", index["eot_id"]
    narrow, wide = np.dtype(np.uint16), np.dtype(np.uint32)
    fits = _write_tokens(path, documents, base_url, eot_id, narrow)
    if not fits and not _write_tokens(path, documents, base_url, eot_id, wide):
        raise DataError(f"a token or the eot_id {eot_id} is above 2^32 - 1; no tokenizer has such")
    digest = hashlib.sha256()
    for name in ("ids", "starts", "n_bytes"):
        array = getattr(documents, name)
        np.save(folder / f"{name}.npy", array)
        digest.update(array.tobytes())
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            digest.update(chunk)
    index = index | {"dtype": (narrow if fits else wide).name, "digest": digest.hexdigest()}
    staged = folder / "index.json.staged"
    staged.write_text(json.dumps(index, sort_keys=True))
    staged.rename(folder / "index.json")


def _write_tokens(
    path: Path, documents: _Documents, base_url: str, eot_id: int, dtype: np.dtype
) -> bool:
    """Writes every document at its place. False as soon as a token does not fit in `dtype`."""
    largest = np.iinfo(dtype).max
    if eot_id > largest:
        return False
    with path.open("wb") as file:
        for i, tokens in _read_shards(documents, base_url):
            if len(tokens) and tokens.max() > largest:
                return False
            _write_at(file, int(documents.starts[i]), eot_id, tokens, dtype)
        file.flush()
        os.fsync(file.fileno())
    return True


def _write_at(file: BinaryIO, start: int, eot_id: int, tokens: np.ndarray, dtype: np.dtype) -> None:
    body = np.empty(1 + len(tokens), dtype)
    body[0] = eot_id
    body[1:] = tokens
    # Written, not memory-mapped: a full disk is then an error and not a SIGBUS.
    file.seek(start * dtype.itemsize)
    file.write(body.tobytes())


def _read_shards(documents: _Documents, base_url: str) -> Iterator[tuple[int, np.ndarray]]:
    """(index of a document, its tokens) for every document, shard by shard and row by row."""
    by_place = np.lexsort((documents.rows, documents.object_indices))
    bounds = np.searchsorted(
        documents.object_indices[by_place], np.arange(len(documents.objects) + 1)
    )
    for i, name in enumerate(documents.objects):
        url = _resolve(name, base_url)
        wanted = by_place[bounds[i] : bounds[i + 1]]
        for document, row, row_id, tokens in _read_rows(url, wanted, documents.rows[wanted]):
            expected = int(np.diff(documents.starts[document : document + 2])[0]) - 1
            if row_id != _hex(documents.ids[document]) or len(tokens) != expected:
                raise DataError(
                    f"{url}: row {row} is {row_id} with {len(tokens)} tokens, but the dataset "
                    f"expects {_hex(documents.ids[document])} with {expected}; "
                    "write the dataset file again"
                )
            yield document, tokens


def _resolve(name: str, base_url: str) -> str:
    if "://" in name or name.startswith("/") or not base_url:
        return name
    return f"{base_url.rstrip('/')}/{name}"


def _read_rows(
    url: str, documents: np.ndarray, rows: np.ndarray
) -> Iterator[tuple[int, int, str, np.ndarray]]:
    """(document, row, id, tokens) for each of the ascending `rows` of a token shard."""
    try:
        filesystem, path = arrow_filesystem(url)
        with pq.ParquetFile(path, filesystem=filesystem) as shard:
            n_rows = shard.metadata.num_rows
            if len(rows) and rows[-1] >= n_rows:
                raise DataError(
                    f"{url}: the dataset expects a row {rows[-1]}, but it has {n_rows} rows; "
                    "write the dataset file again"
                )
            first = 0
            for batch in shard.iter_batches(batch_size=1024, columns=["id", "tokens"]):
                here = slice(*np.searchsorted(rows, (first, first + len(batch))))
                ids: Any = batch.column("id")
                lists: Any = batch.column("tokens")
                values, offsets = lists.values.to_numpy(), lists.offsets.to_numpy()
                for document, row in zip(documents[here], rows[here] - first, strict=True):
                    tokens = values[offsets[row] : offsets[row + 1]]
                    yield int(document), first + int(row), ids[int(row)].as_py(), tokens
                first += len(batch)
    except FileNotFoundError as error:
        raise DataError(f"{url}: the dataset names this token shard, but it is gone") from error
    except (pa.ArrowException, KeyError) as error:
        raise DataError(f"{url}: not a token shard: {error}") from error
    except OSError as error:
        raise StorageError(f"{url}: cannot be read: {error}; check the storage") from error


def _open(folder: Path) -> Prepared:
    index = json.loads((folder / "index.json").read_text())
    return Prepared(
        split=index["split"],
        eot_id=index["eot_id"],
        digest=index["digest"],
        tokens_S=np.asarray(np.memmap(folder / "tokens.bin", index["dtype"], mode="r")),
        ids=np.load(folder / "ids.npy"),
        starts=np.load(folder / "starts.npy"),
        n_bytes=np.load(folder / "n_bytes.npy"),
    )


@dataclass(frozen=True)
class Windows:
    """A stream of S tokens cut into windows of T inputs and the T targets one place further.

    Every token but the first is a target exactly once. The last window is filled up with
    `padding`, whose targets are `IGNORED`.
    """

    stream_S: np.ndarray
    context_length: int
    padding: int

    def __len__(self) -> int:
        return -(-(len(self.stream_S) - 1) // self.context_length)

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of the windows `rows`, each (len(rows), T) int64."""
        stream_S, context = self.stream_S, self.context_length
        n_full = (len(stream_S) - 1) // context
        is_last = rows >= n_full
        size = stream_S.itemsize
        view = np.lib.stride_tricks.as_strided(
            stream_S, (n_full, context + 1), (context * size, size), writeable=False
        )
        chunk = np.full((len(rows), context + 1), self.padding, stream_S.dtype)
        chunk[~is_last] = view[rows[~is_last]]
        tail = stream_S[n_full * context :]
        chunk[is_last, : len(tail)] = tail
        inputs_BT, targets_BT = chunk[:, :-1].astype(np.int64), chunk[:, 1:].astype(np.int64)
        targets_BT[is_last, len(tail) - 1 :] = IGNORED
        return inputs_BT, targets_BT


def validation_windows(prepared: Prepared, context_length: int) -> Windows:
    """The split in order of id, as one stream: every token is predicted once, eots too.

    A single document of c1, c2, ... gives the inputs eot, c1, ... and the targets c1, c2, ...
    """
    return Windows(prepared.tokens_S, context_length, prepared.eot_id)


def n_buckets(n_tokens: int, bucket_tokens: int = BUCKET_TOKENS) -> int:
    """The least power of two whose buckets hold `bucket_tokens` or fewer on average."""
    return 1 << max(0, (n_tokens - 1) // bucket_tokens).bit_length()


class Loader:
    """Batches of windows in training order. `batch` is a pure function of its index.

    One bucket is in memory at a time: about 16 Mi tokens, however large the split.
    """

    def __init__(
        self,
        prepared: Prepared,
        context_length: int,
        batch_size: int,
        seed: int,
        *,
        bucket_tokens: int = BUCKET_TOKENS,
    ) -> None:
        """Raises ConfigError for impossible sizes, DataError for a split without two tokens."""
        if context_length < 1 or batch_size < 1:
            raise ConfigError(
                f"context_length is {context_length} and batch_size {batch_size}; "
                "both must be at least 1"
            )
        self.prepared, self.seed = prepared, seed
        self.context_length, self.batch_size = context_length, batch_size
        buckets = n_buckets(len(prepared.tokens_S), bucket_tokens)
        self._first_documents = _bucket_bounds(prepared.ids[:, 0], buckets)
        n_targets = np.maximum(0, np.diff(prepared.starts[self._first_documents]) - 1)
        self.tokens_per_epoch = int(n_targets.sum())
        self._n_windows = -(-n_targets // context_length)
        self._windows_per_epoch = int(self._n_windows.sum())
        if not self.tokens_per_epoch:
            raise DataError(f"split {prepared.split!r} has no token to predict; add documents")
        self._epoch = (-1, np.empty(0, np.int64), np.empty(0, np.int64))
        self._bucket: tuple[int, int, Windows, np.ndarray] | None = None

    def n_windows(self, epoch: int = 0) -> int:
        """Windows of an epoch, the same for each: shuffling moves documents inside buckets."""
        return self._windows_per_epoch

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets of global micro-batch `step`, each (B, T) int64.

        Epochs follow each other without a gap: a batch may hold the end of one and the beginning
        of the next. Targets that do not count are `IGNORED`.
        """
        first = step * self.batch_size
        parts = list(self._parts(first, first + self.batch_size))
        inputs_BT = torch.from_numpy(np.concatenate([inputs for inputs, _ in parts]))
        targets_BT = torch.from_numpy(np.concatenate([targets for _, targets in parts]))
        return inputs_BT, targets_BT

    def _parts(self, first: int, last: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The windows `first` to `last` (exclusive) of all epochs, bucket by bucket."""
        while first < last:
            epoch, position = divmod(first, self._windows_per_epoch)
            buckets, ends = self._order_of(epoch)
            place = int(np.searchsorted(ends, position, side="right"))
            bucket = int(buckets[place])
            windows, order = self._assemble(epoch, bucket)
            inside = position - (int(ends[place]) - len(windows))
            rows = order[inside : inside + last - first]
            yield windows.take(rows)
            first += len(rows)

    def _order_of(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's buckets in order, and after how many windows each one ends."""
        if self._epoch[0] != epoch:
            buckets = _permutation(len(self._n_windows), "buckets", self.seed, epoch)
            self._epoch = (epoch, buckets, np.cumsum(self._n_windows[buckets]))
        return self._epoch[1], self._epoch[2]

    def _assemble(self, epoch: int, bucket: int) -> tuple[Windows, np.ndarray]:
        """The bucket's windows, and the order to take them in."""
        if self._bucket is None or self._bucket[:2] != (epoch, bucket):
            self._bucket = None  # Free the last one before the next is made.
            prepared = self.prepared
            documents = np.arange(*self._first_documents[bucket : bucket + 2])
            high, low = prepared.ids[documents].T
            key = _key("documents", self.seed, epoch)
            documents = documents[np.argsort(_mix(low ^ _mix(high + key)), kind="stable")]
            stream_S = _gather(prepared.tokens_S, prepared.starts, documents)
            windows = Windows(stream_S, self.context_length, prepared.eot_id)
            order = _permutation(len(windows), "windows", self.seed, epoch, bucket)
            self._bucket = (epoch, bucket, windows, order)
        return self._bucket[2:]


def _bucket_bounds(high: np.ndarray, buckets: int) -> np.ndarray:
    """(buckets + 1,): the first document of each bucket, given the upper halves of sorted ids."""
    starts = np.arange(1, buckets, dtype=np.uint64) << np.uint64(64 - (buckets.bit_length() - 1))
    return np.concatenate(([0], np.searchsorted(high, starts), [len(high)]))


def _gather(tokens_S: np.ndarray, starts: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """The stream of `documents` in the order given, each with its eot."""
    lengths = starts[documents + 1] - starts[documents]
    ends = np.cumsum(lengths)
    stream_S = np.empty(int(lengths.sum()), tokens_S.dtype)
    for i in range(0, len(documents), 512):  # Few enough that the indices stay in cache.
        here = slice(i, i + 512)
        first, last = ends[i] - lengths[i], ends[here][-1]
        shift = starts[documents[here]] - (ends[here] - lengths[here])
        places = np.repeat(shift, lengths[here])
        places += np.arange(first, last)
        stream_S[first:last] = tokens_S[places]
    return stream_S


def _key(purpose: str, *numbers: int) -> np.uint64:
    return np.uint64(xxhash.xxh3_64_intdigest(f"{purpose} {numbers}".encode()))


def _permutation(n: int, purpose: str, *numbers: int) -> np.ndarray:
    """A permutation of range(n) that the arguments decide, on every machine and numpy alike."""
    return np.argsort(_mix(np.arange(n, dtype=np.uint64) + _key(purpose, *numbers)), kind="stable")


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's output function (Steele, Lea and Flood 2014): a bijection that looks random."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
