"""The dataset file: which documents there are, and where the tokens of each one lie.

A Parquet of `object`, `row`, `id`, `length`, `n_bytes`, `split`, `source`: a row for each document,
with the token shard that holds its tokens and its row there. Shards hold no special tokens; on
reading, every document is preceded by `<|endoftext|>` and so costs length + 1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from llm.errors import DataError, StorageError
from llm.files import arrow_filesystem, read_bytes

Ints = npt.NDArray[np.int64]

_IDS_AT_A_TIME = 1 << 16
_COUNTED_AT_A_TIME = 1024  # documents


@dataclass(frozen=True)
class Documents:
    """The documents of a split, in order of id. 48 bytes each in memory."""

    ids: npt.NDArray[np.uint64]
    """(n_documents, 2): the upper and lower half of each id, ascending."""
    starts: Ints
    """(n_documents + 1,): where each document's eot stands in the stream, and its end."""
    n_bytes: Ints
    """(n_documents,): the UTF-8 bytes of each document's text."""
    sources: tuple[str, ...]
    """Names of the sources, sorted."""
    source: Ints
    """(n_documents,): which of them each document is from."""

    @property
    def n_documents(self) -> int:
        return len(self.ids)

    @property
    def n_tokens(self) -> int:
        """Tokens of the documents, without the eots."""
        return int(self.starts[-1]) - self.n_documents

    def digest_with(self, tokens: int) -> str:
        """What is equal for equal data, whatever the shards; `tokens` is the sum of `row_hash`."""
        digest = hashlib.sha256(json.dumps(self.sources).encode())
        for array in (self.ids, self.starts, self.n_bytes, self.source):
            digest.update(array.tobytes())
        digest.update((tokens % (1 << 256)).to_bytes(32, "big"))
        return digest.hexdigest()

    def row_hash(self, document: int, tokens: npt.NDArray[Any]) -> int:
        """xxh3-128 of a document's id and tokens. A sum of these tells data from other data."""
        digest = xxhash.xxh3_128(self.ids[document].astype(">u8").tobytes())
        digest.update(np.ascontiguousarray(tokens, "<u4").data)
        return digest.intdigest()


@dataclass(frozen=True)
class Places:
    """In which row of which token shard each document's tokens lie."""

    objects: list[str]
    """URLs of the shards, or names below `base_url`."""
    base_url: str
    object_index: Ints
    """(n_documents,): the shard of each document."""
    row: Ints
    """(n_documents,): its row there."""

    def by_shard(self) -> list[Ints]:
        """The documents of each shard, in order of row."""
        order = np.lexsort((self.row, self.object_index))
        edges = np.arange(1, len(self.objects))
        return np.split(order, np.searchsorted(self.object_index[order], edges))


def read_dataset(url: str) -> bytes:
    """The dataset file. Raises DataError when there is none."""
    try:
        return read_bytes(url)
    except FileNotFoundError as error:
        raise DataError(f"{url}: no such dataset file; build the corpus first") from error


def documents_of(body: bytes, split: str, url: str, base_url: str) -> tuple[Documents, Places]:
    """The documents of a split of a dataset file, which is at `url`, in order of id.

    Raises DataError when it is no dataset file or has no document of the split.
    """
    columns = ["object", "row", "id", "length", "n_bytes", "split", "source"]
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
    sources = sorted(map(str, chosen["source"].unique().to_pylist()))
    source = pc.index_in(chosen["source"].cast(pa.string()), pa.array(sources, pa.string()))
    documents = Documents(
        ids=ids,
        starts=np.concatenate(([0], np.cumsum(_int64(chosen["length"])[order] + 1))),
        n_bytes=_int64(chosen["n_bytes"])[order],
        sources=tuple(sources),
        source=_int64(source)[order],
    )
    objects, of_each = encoded.dictionary.to_pylist(), _int64(encoded.indices)[order]
    return documents, Places(objects, base_url, of_each, _int64(chosen["row"])[order])


def _int64(column: Any) -> Ints:
    return column.to_numpy().astype(np.int64)


def _halves(ids: Any, url: str) -> npt.NDArray[np.uint64]:
    """(n, 2): the two halves of ids of 32 hex digits."""
    halves = np.empty((len(ids), 2), np.uint64)
    try:
        for i in range(0, len(ids), _IDS_AT_A_TIME):
            some = ids.slice(i, _IDS_AT_A_TIME).to_pylist()
            digits = bytes.fromhex("".join(some))
            halves[i : i + len(some)] = np.frombuffer(digits, ">u8").reshape(len(some), 2)
    except (TypeError, ValueError) as error:
        raise DataError(f"{url}: expected ids of 32 hex digits: {error}") from error
    return halves


def _hex(halves: npt.NDArray[np.uint64]) -> str:
    return f"{int(halves[0]):016x}{int(halves[1]):016x}"


def read_shard(
    documents: Documents, places: Places, shard: int, wanted: Ints
) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """(number of a document, its tokens) of the documents `wanted` of a shard, in order of row.

    A few documents are in memory at a time. Raises DataError where the shard is missing or holds
    something else than the dataset says, StorageError where it cannot be read.
    """
    url = _resolve(places.objects[shard], places.base_url)
    for document, row, row_id, tokens in _read_rows(url, wanted, places.row[wanted]):
        expected = int(np.diff(documents.starts[document : document + 2])[0]) - 1
        if row_id != _hex(documents.ids[document]) or len(tokens) != expected:
            raise DataError(
                f"{url}: row {row} is {row_id} with {len(tokens)} tokens, but the dataset "
                f"expects {_hex(documents.ids[document])} with {expected}; "
                "write the dataset file again"
            )
        yield document, tokens


def count_tokens(
    dataset_url: str, split: str, base_url: str = "", *, eot_id: int, vocab_size: int
) -> Ints:
    """(vocab_size,): how often each token is in a split, with one eot a document.

    One pass over the token shards, of which nothing is kept. Raises what `read_shard` raises.
    """
    body = read_dataset(dataset_url)
    documents, places = documents_of(body, split, dataset_url, base_url)
    counts = np.zeros(vocab_size, np.int64)
    counts[eot_id] = documents.n_documents
    held: list[npt.NDArray[Any]] = []
    for shard, wanted in enumerate(places.by_shard()):
        for _, tokens in read_shard(documents, places, shard, wanted):
            held.append(tokens)
            if len(held) == _COUNTED_AT_A_TIME:
                counts += np.bincount(np.concatenate(held), minlength=vocab_size)
                held = []
    if held:
        counts += np.bincount(np.concatenate(held), minlength=vocab_size)
    return counts


def _resolve(name: str, base_url: str) -> str:
    if "://" in name or name.startswith("/") or not base_url:
        return name
    return f"{base_url.rstrip('/')}/{name}"


def _read_rows(
    url: str, documents: Ints, rows: Ints
) -> Iterator[tuple[int, int, str, npt.NDArray[Any]]]:
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
