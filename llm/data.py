"""Training data: a split of a dataset, copied to local disk as one stream of tokens.

A dataset file is a Parquet of `object`, `row`, `id`, `length`, `n_bytes`, `split`, `source`: which
documents there are, and in which row of which token shard each one's tokens lie. Shards hold no
special tokens; on reading, every document is preceded by `<|endoftext|>` and so costs length + 1.

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

from llm.errors import DataError, StorageError
from llm.files import arrow_filesystem, read_bytes

IGNORED = -100  # The target that torch's cross-entropy leaves out.
_LAYOUT = 2  # Part of the name of what `prepare` writes; raise it when the layout changes.


@dataclass(frozen=True)
class Prepared:
    """One split on local disk, memory-mapped: its documents in order of id, each after an eot."""

    split: str
    eot_id: int
    digest: str
    """sha256 of ids, lengths, bytes, sources and tokens: equal data, equal digest, whatever the
    shards."""
    tokens_S: np.ndarray
    """The stream, uint16 or uint32: eot, tokens of document 0, eot, tokens of document 1, ..."""
    ids: np.ndarray
    """(n_documents, 2) uint64: the upper and lower half of each id, ascending."""
    starts: np.ndarray
    """(n_documents + 1,) int64: where each document's eot stands in the stream, and its end."""
    n_bytes: np.ndarray
    """(n_documents,) int64: the UTF-8 bytes of each document's text."""
    sources: tuple[str, ...]
    """Names of the sources, sorted."""
    source: np.ndarray
    """(n_documents,) int64: which of them each document is from."""

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
    sources: list[str]
    source: np.ndarray
    rows: np.ndarray
    objects: list[str]
    object_indices: np.ndarray

    @classmethod
    def read(cls, body: bytes, split: str, url: str) -> _Documents:
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
        return cls(
            ids=ids,
            starts=np.concatenate(([0], np.cumsum(_int64(chosen["length"])[order] + 1))),
            n_bytes=_int64(chosen["n_bytes"])[order],
            sources=sources,
            source=_int64(source)[order],
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
    digest.update(json.dumps(documents.sources).encode())
    for name in ("ids", "starts", "n_bytes", "source"):
        array = getattr(documents, name)
        np.save(folder / f"{name}.npy", array)
        digest.update(array.tobytes())
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            digest.update(chunk)
    index["sources"] = documents.sources
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
        sources=tuple(index["sources"]),
        source=np.load(folder / "source.npy"),
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
