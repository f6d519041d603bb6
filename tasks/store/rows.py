"""Who a row is and what it says: ids, digests, row hashes and the data digest.

The data digest of a table is the sum mod 2^256 of its row hashes, so that equal data has an
equal digest whatever the sharding, the order or the history (Bellare and Micciancio, "A new
paradigm for collision-free hashing", 1997, call this AdHash).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from tasks.store.schema import Schema

MODULUS = 1 << 256


def document_id(source: str, locator: str) -> str:
    """xxh3-128 of (source, locator) as 32 hex digits: who a document is, through edits."""
    return xxhash.xxh3_128_hexdigest(f"{source}\0{locator}".encode("utf-8", "surrogatepass"))


def text_digest(text: str) -> str:
    """xxh3-128 of the UTF-8 text as 32 hex digits: what a document says."""
    return xxhash.xxh3_128_hexdigest(text.encode("utf-8", "surrogatepass"))


def text_bytes(documents: pa.Table) -> int:
    """UTF-8 bytes of all texts."""
    return int(pc.sum(pc.binary_length(documents.column("text"))).as_py() or 0)


def canonical_meta(meta: dict[str, object]) -> str | None:
    """`meta` as the one JSON text that equal mappings share; None when there is nothing."""
    if not meta:
        return None
    return json.dumps(meta, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def hashed_rows(table: pa.Table, schema: Schema) -> Iterator[bytes]:
    """The row hash of each row: sha256 (32 bytes) of the kind and the hashed columns.

    Cells are self-delimiting, so that no two rows share an encoding. Null: 00. Text: 01, its UTF-8
    length (uint64), its bytes. Integer: 02, 9 bytes, two's complement. Float: 03, float64; -0.0 is
    0.0. Binary: as text, with 04. All little-endian.

    Raises:
        ValueError: a hashed float is NaN.
        TypeError: a hashed column is of another type.
    """
    prefix = np.frombuffer(schema.kind.encode() + b"\0", np.uint8)
    for batch in table.select(list(schema.hashed)).to_batches(max_chunksize=65536):
        body, bounds = _encoded(prefix, batch)
        view = memoryview(body)
        for start, end in pairwise(bounds.tolist()):
            yield hashlib.sha256(view[start:end]).digest()


def row_hashes(table: pa.Table, schema: Schema) -> Iterator[int]:
    """The row hash of each row as an integer."""
    return (int.from_bytes(digest, "little") for digest in hashed_rows(table, schema))


def data_digest(table: pa.Table, schema: Schema) -> int:
    """The sum mod 2^256 of the row hashes of `table`."""
    halves = np.frombuffer(b"".join(hashed_rows(table, schema)), "<u4").reshape(-1, 8)
    sums = halves.sum(axis=0, dtype=np.uint64).tolist()
    return int(sum(part << (32 * place) for place, part in enumerate(sums))) % MODULUS


def _encoded(prefix: npt.NDArray[np.uint8], batch: pa.RecordBatch) -> tuple[Any, Any]:
    """The encoded rows one behind the other, and their bounds (rows + 1)."""
    from tasks.kernels.row_bytes import add_fixed, add_variable

    cells = [_cells(array) for array in batch.columns]
    sizes = np.full(batch.num_rows, len(prefix), np.int64)
    for cell in cells:
        sizes += np.where(cell.valid, 1 + cell.sizes, 1)
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    body = np.empty(bounds[-1], np.uint8)
    at = bounds[:-1].copy()
    for k, value in enumerate(prefix):
        body[at + k] = value
    at += len(prefix)
    for cell in cells:
        if cell.offsets is not None:
            add_variable(body, at, cell.tag, cell.offsets, cell.data, cell.valid)
        else:
            add_fixed(body, at, cell.tag, cell.data, cell.width, cell.valid)
    return body, bounds


@dataclass(frozen=True)
class _Cells:
    """A column as bytes: `offsets` where cells vary in length, else `width` bytes a cell."""

    tag: int
    data: npt.NDArray[np.uint8]
    valid: npt.NDArray[np.bool_]
    sizes: npt.NDArray[np.int64] | int
    offsets: npt.NDArray[np.int64] | None = None
    width: int = 0


def _cells(array: pa.Array) -> _Cells:
    kind = array.type
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _variable(array.cast(pa.large_binary()), 1, valid)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return _variable(array.cast(pa.large_binary()), 4, valid)
    values = pc.fill_null(array, 0).to_numpy(zero_copy_only=False)
    if pa.types.is_integer(kind):
        wide = np.empty((len(values), 9), np.uint8)
        wide[:, :8] = values.astype("<i8").view(np.uint8).reshape(-1, 8)
        wide[:, 8] = np.where(values < 0, 255, 0)
        return _Cells(2, wide.ravel(), valid, 9, width=9)
    if pa.types.is_floating(kind):
        if np.isnan(values).any():
            raise ValueError("a hashed column holds NaN; store null instead")
        data = (values.astype("<f8") + 0.0).view(np.uint8)
        return _Cells(3, data, valid, 8, width=8)
    raise TypeError(f"a column of {kind} cannot be part of a row hash")


def _variable(array: pa.Array, tag: int, valid: npt.NDArray[np.bool_]) -> _Cells:
    _, starts, data = array.buffers()
    offsets = np.frombuffer(starts, np.int64)[array.offset : array.offset + len(array) + 1]
    content = np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8)
    return _Cells(tag, content, valid, 8 + np.diff(offsets), offsets)


def digest_hex(digest: int) -> str:
    """A data digest as it is written in JSON: 64 hex digits, most significant first."""
    return f"{digest % MODULUS:064x}"
