"""Training data: a split of a dataset as one stream of tokens, copied to local disk.

Where the disk is too small for that, `llm.bucket_files` gives the same split from storage.

Shapes: B windows of a batch, T tokens of context, S tokens of a stream.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import filelock
import numpy as np
import numpy.typing as npt

from llm.dataset_file import Documents, Ints, Places, documents_of, read_dataset, read_shard
from llm.errors import DataError, StorageError
from llm.progress import tally

IGNORED = -100  # The target that torch's cross-entropy leaves out.
_LAYOUT = 3  # Part of the name of what `prepare` writes; raise it when the layout changes.

Tokens = npt.NDArray[np.unsignedinteger[Any]]


class Kept(Protocol):
    """Where the tokens of a split lie."""

    def whole(self) -> Tokens:
        """The stream, uint16 or uint32: eot, tokens of document 0, eot, tokens of the next."""

    def bucket(self, part: int, bucket: int, documents: Ints) -> tuple[Tokens, Ints]:
        """A stream in which the documents of a bucket are, and where each one's eot is in it.

        `part` and `bucket` are their numbers in `llm.buckets.lay_out`.
        """


@dataclass(frozen=True)
class LocalStream:
    """All tokens of a split in a file on the local disk, memory-mapped."""

    tokens_S: Tokens
    starts: Ints

    def whole(self) -> Tokens:
        return self.tokens_S

    def bucket(self, part: int, bucket: int, documents: Ints) -> tuple[Tokens, Ints]:
        return self.tokens_S, self.starts[documents]


@dataclass(frozen=True)
class Prepared(Documents):
    """One split ready to be read: its documents in order of id, each after an eot."""

    split: str
    eot_id: int
    digest: str
    """sha256 of ids, lengths, bytes, sources and tokens: equal data, equal digest, whatever the
    shards and wherever the tokens lie."""
    kept: Kept

    @property
    def tokens_S(self) -> Tokens:
        """The stream: eot, tokens of document 0, eot, tokens of document 1, ...

        Raises ConfigError for a split that is streamed, and so in no one place.
        """
        return self.kept.whole()


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
    body = read_dataset(dataset_url)
    settings = json.dumps([_LAYOUT, split, eot_id, base_url]).encode()
    name = f"{split}-{hashlib.sha256(settings + body).hexdigest()[:32]}"
    folder = Path(cache_dir) / name
    Path(cache_dir).mkdir(parents=True, exist_ok=True)
    # A killed writer frees the lock and leaves a folder without its index, made anew here.
    with filelock.FileLock(str(folder) + ".lock"):
        if not (folder / "index.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            documents, places = documents_of(body, split, dataset_url, base_url)
            try:
                _write(folder, documents, places, {"split": split, "eot_id": eot_id})
            except OSError as error:
                raise StorageError(
                    f"{folder}: cannot write {documents.starts[-1]} tokens: {error}; free some "
                    "room or choose another cache folder"
                ) from error
    return _open(folder)


_ARRAYS = ("ids", "starts", "n_bytes", "source")


def _write(folder: Path, documents: Documents, places: Places, index: dict[str, Any]) -> None:
    """The token file and its arrays, and last the index, which says that all is there."""
    path, eot_id = folder / "tokens.bin", index["eot_id"]
    for dtype in (np.dtype(np.uint16), np.dtype(np.uint32)):
        hashes = _write_tokens(path, documents, places, eot_id, dtype)
        if hashes is not None:
            break
    else:
        raise DataError(f"a token or the eot_id {eot_id} is above 2^32 - 1; no tokenizer has such")
    for name in _ARRAYS:
        np.save(folder / f"{name}.npy", getattr(documents, name))
    index = index | {"dtype": dtype.name, "digest": documents.digest_with(hashes)}
    staged = folder / "index.json.staged"
    staged.write_text(json.dumps(index | {"sources": documents.sources}, sort_keys=True))
    staged.rename(folder / "index.json")


def _write_tokens(
    path: Path, documents: Documents, places: Places, eot_id: int, dtype: np.dtype
) -> int | None:
    """Writes every document at its place. The sum of their row hashes, or None as soon as a token
    does not fit in `dtype`."""
    largest, hashes = np.iinfo(dtype).max, 0
    if eot_id > largest:
        return None
    lengths = np.diff(documents.starts) - 1
    with path.open("wb") as file, tally("token file", "tokens", documents.n_tokens) as written:
        for shard, wanted in enumerate(places.by_shard()):
            for i, tokens in read_shard(documents, places, shard, wanted):
                if len(tokens) and tokens.max() > largest:
                    return None
                _write_at(file, int(documents.starts[i]), eot_id, tokens, dtype)
                hashes += documents.row_hash(i, tokens)
            written.advance(int(lengths[wanted].sum()))
        file.flush()
        os.fsync(file.fileno())
    return hashes


def _write_at(file: BinaryIO, start: int, eot_id: int, tokens: np.ndarray, dtype: np.dtype) -> None:
    body = np.empty(1 + len(tokens), dtype)
    body[0] = eot_id
    body[1:] = tokens
    # Written, not memory-mapped: a full disk is then an error and not a SIGBUS.
    file.seek(start * dtype.itemsize)
    file.write(body.tobytes())


def _open(folder: Path) -> Prepared:
    index = json.loads((folder / "index.json").read_text())
    arrays = {name: np.load(folder / f"{name}.npy") for name in _ARRAYS}
    tokens_S = np.asarray(np.memmap(folder / "tokens.bin", index["dtype"], mode="r"))
    return Prepared(
        **arrays,
        sources=tuple(index["sources"]),
        split=index["split"],
        eot_id=index["eot_id"],
        digest=index["digest"],
        kept=LocalStream(tokens_S, arrays["starts"]),
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
