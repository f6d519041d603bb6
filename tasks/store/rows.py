"""Who a row is and what it says: ids, digests, row hashes and the data digest.

The data digest of a table is the sum mod 2^256 of its row hashes, so that equal data has an
equal digest whatever the sharding, the order or the history (Bellare and Micciancio, "A new
paradigm for collision-free hashing", 1997, call this AdHash).
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator

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


def encode_value(value: object) -> bytes:
    """One cell as bytes, self-delimiting, so that no two rows share an encoding."""
    if value is None:
        return b"\x00"
    if isinstance(value, bool):
        raise TypeError("no hashed column is boolean; use an integer")
    if isinstance(value, str):
        body = value.encode("utf-8", "surrogatepass")
        return b"\x01" + struct.pack("<Q", len(body)) + body
    if isinstance(value, int):
        return b"\x02" + value.to_bytes(9, "little", signed=True)
    if isinstance(value, float):
        if value != value:
            raise ValueError("a hashed column holds NaN; store null instead")
        return b"\x03" + struct.pack("<d", value + 0.0)
    if isinstance(value, bytes):
        return b"\x04" + struct.pack("<Q", len(value)) + value
    raise TypeError(f"a {type(value).__name__} cannot be part of a row hash")


def row_hashes(table: pa.Table, schema: Schema) -> Iterator[int]:
    """The row hash of each row: sha256 of the kind and the hashed columns, as an integer."""
    prefix = schema.kind.encode() + b"\0"
    for batch in table.select(list(schema.hashed)).to_batches(max_chunksize=8192):
        columns = [column.to_pylist() for column in batch.columns]
        for values in zip(*columns, strict=True):
            body = prefix + b"".join(map(encode_value, values))
            yield int.from_bytes(hashlib.sha256(body).digest(), "little")


def data_digest(table: pa.Table, schema: Schema) -> int:
    """The sum mod 2^256 of the row hashes of `table`."""
    return sum(row_hashes(table, schema)) % MODULUS


def digest_hex(digest: int) -> str:
    """A data digest as it is written in JSON: 64 hex digits, most significant first."""
    return f"{digest % MODULUS:064x}"
