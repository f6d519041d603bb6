"""What each kind of object holds, and which of its columns make up a row's identity.

`docs/format.md` says the same in words, for other programs. A column outside `hashed` is
provenance: no stage may decide on it, so that equal data gives equal digests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa


@dataclass(frozen=True)
class Schema:
    """A kind of object: its Arrow schema, the columns its row hash covers, in order, and how many
    rows are read at least when some are."""

    kind: str
    arrow: pa.Schema
    hashed: tuple[str, ...]
    group_rows: int = 16384

    def empty(self) -> pa.Table:
        return self.arrow.empty_table()

    def table(self, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
        """A table of `rows`; a key the schema does not know is an error, a missing one is null."""
        unknown = {key for row in rows for key in row} - set(self.arrow.names)
        if unknown:
            raise ValueError(f"{self.kind} has no column {sorted(unknown)}")
        return pa.Table.from_pylist(list(rows), schema=self.arrow)


def _schema(kind: str, hashed: str, columns: list[tuple[str, pa.DataType]]) -> Schema:
    return Schema(kind, pa.schema(columns), tuple(hashed.split()))


_TEXT, _INT, _FLOAT = pa.string(), pa.int64(), pa.float64()

# A crawled page: what a server said, without its body, which lies in the WARC object.
PAGES = _schema(
    "pages",
    "id url source license status content_type payload_sha256",
    [
        ("id", _TEXT),
        ("url", _TEXT),
        ("source", _TEXT),
        ("license", _TEXT),
        ("status", _INT),
        ("content_type", _TEXT),
        ("payload_sha256", _TEXT),
        ("fetched_at", _TEXT),
        ("warc", _TEXT),
        ("warc_offset", _INT),
        ("payload_bytes", _INT),
        ("etag", _TEXT),
        ("last_modified", _TEXT),
    ],
)

# A document: one row of text. `meta` is canonical JSON (sorted keys, no spaces) or null.
DOCUMENTS = _schema(
    "documents",
    "id digest url source license language meta",
    [
        ("id", _TEXT),
        ("digest", _TEXT),
        ("text", pa.large_string()),
        ("url", _TEXT),
        ("source", _TEXT),
        ("license", _TEXT),
        ("language", _TEXT),
        ("fetched_at", _TEXT),
        ("meta", _TEXT),
    ],
)

# Why a document left. Its digest plays no part in a filter's, which is of the survivors.
DROPS = _schema(
    "drops",
    "id stage reason value detail",
    [
        ("id", _TEXT),
        ("stage", _TEXT),
        ("reason", _TEXT),
        ("value", _FLOAT),
        ("threshold", _FLOAT),
        ("detail", _TEXT),
    ],
)

# Rows of earlier shards of the same snapshot that live no more; `shard` is the 0-based index
# of the shard in the snapshot's receipts, which only ever grow.
DEAD = _schema("dead", "shard id reason", [("shard", _INT), ("id", _TEXT), ("reason", _TEXT)])

# What could not be read at all: it never became a document.
QUARANTINE = _schema(
    "quarantine",
    "source locator stage reason detail",
    [
        ("source", _TEXT),
        ("locator", _TEXT),
        ("stage", _TEXT),
        ("reason", _TEXT),
        ("detail", _TEXT),
    ],
)

# What each file of an import was found to hold, record by record: `row_hash` is that of its row.
CLAIMS = _schema(
    "claims",
    "file id fetched_at digest row_hash",
    [
        ("file", _TEXT),
        ("id", _TEXT),
        ("fetched_at", _TEXT),
        ("digest", _TEXT),
        ("row_hash", pa.binary()),
    ],
)

# What deduplication knows of the rows a shard's filters kept.
SIGNATURES = _schema(
    "signatures",
    "id digest length source",
    [("id", _TEXT), ("digest", _TEXT), ("length", _INT), ("source", _TEXT)],
)

# Numbers of rows under sorted keys, a slice of them a row, so that a range of keys can be read by
# itself. `first` and `last` bound the keys (int64), which may be hashes; `rows` are uint32.
_SLICES = pa.schema([("first", _INT), ("last", _INT), ("keys", pa.binary()), ("rows", pa.binary())])
# MinHash band keys of SIGNATURES, and the row each is of.
BANDS = Schema("bands", _SLICES, ("first", "last", "keys", "rows"), group_rows=1)
# Hashes of the shingles of candidates, on their way to where they are compared; `first` and `last`
# are the number of the comparison.
SHINGLES = Schema("shingles", _SLICES, ("first", "last", "keys", "rows"), group_rows=1)

# Candidate pairs of texts with their true Jaccard similarity, also below the threshold: a < b by
# digest.
EDGES = _schema("edges", "a b similarity", [("a", _TEXT), ("b", _TEXT), ("similarity", _FLOAT)])

# Which cluster a document belongs to: `root` is the cluster's smallest id.
CLUSTERS = _schema("clusters", "id root", [("id", _TEXT), ("root", _TEXT)])

# Personal data found, per document and type: counts, never the findings themselves.
FINDINGS = _schema(
    "findings", "id type count", [("id", _TEXT), ("type", _TEXT), ("count", _INT)]
)  # fmt: skip

# Where a scrubbed text holds a placeholder, and for which type of finding; in characters of it.
REDACTIONS = _schema(
    "redactions",
    "id type placeholder start end",
    [("id", _TEXT), ("type", _TEXT), ("placeholder", _TEXT), ("start", _INT), ("end", _INT)],
)  # fmt: skip

LABELS = _schema("labels", "id split", [("id", _TEXT), ("split", _TEXT)])

# Token ids of one document a row, without special tokens. `digest` is xxh3-128 of the ids as
# little-endian uint32. Column `tokens` is list<uint16> where vocab_size <= 65536.
TOKENS = _schema(
    "tokens",
    "id digest length",
    [("id", _TEXT), ("digest", _TEXT), ("length", _INT), ("n_bytes", _INT),
     ("tokens", pa.large_list(pa.uint32()))],
)  # fmt: skip

# Which rows of which token shards are trained, validated and tested on. `object` is the token
# shard's URL relative to the store's root; it and `row` are places, not data.
DATASET = _schema(
    "dataset",
    "id digest length split source",
    [("id", _TEXT), ("digest", _TEXT), ("length", _INT), ("n_bytes", _INT), ("split", _TEXT),
     ("source", _TEXT), ("object", _TEXT), ("row", _INT)],
)  # fmt: skip
