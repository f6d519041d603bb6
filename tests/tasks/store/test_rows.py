"""Row hashes and data digests: who a row is, what it says, and sums that do not mind the order."""

from __future__ import annotations

import hashlib
import struct

import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from tasks.store.rows import (
    MODULUS,
    canonical_meta,
    data_digest,
    digest_hex,
    document_id,
    hashed_rows,
    row_hashes,
    text_digest,
)
from tasks.store.schema import CLAIMS, DEAD, DOCUMENTS, DROPS, EDGES, Schema

INT64 = st.integers(-(2**63), 2**63 - 1)
CELLS = (
    st.none()
    | st.text(max_size=6)
    | INT64
    | st.floats(allow_nan=False)
    | st.binary(max_size=6)
)  # fmt: skip
DROP_ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.text(max_size=4),
            "reason": st.text(max_size=4) | st.none(),
            "value": st.floats(allow_nan=False) | st.none(),
        }
    ),
    max_size=12,
)


def encode_value(value: object) -> bytes:
    """One cell as bytes, in plain Python: what `docs/format.md` says."""
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


def same(a: object, b: object) -> bool:
    """Equal and of one type; +0.0 and -0.0 are one value."""
    return type(a) is type(b) and a == b


@given(st.lists(CELLS, max_size=4), st.lists(CELLS, max_size=4))
def test_two_rows_share_an_encoding_only_when_they_are_equal(
    a: list[object], b: list[object]
) -> None:
    equal = len(a) == len(b) and all(map(same, a, b))
    assert (b"".join(map(encode_value, a)) == b"".join(map(encode_value, b))) == equal


@given(st.text(max_size=8), st.integers(0, 8))
def test_where_a_cell_ends_is_part_of_the_encoding(text: str, cut: int) -> None:
    whole, parts = [text, ""], [text[:cut], text[cut:]]
    encoded = [b"".join(map(encode_value, row)) for row in (whole, parts)]
    assert (encoded[0] == encoded[1]) == (whole == parts)


def test_each_type_is_encoded_as_the_format_says() -> None:
    assert encode_value(None).hex() == "00"
    assert encode_value("é").hex() == "01" + "0200000000000000" + "c3a9"
    assert encode_value(1).hex() == "02" + "010000000000000000"
    assert encode_value(-1).hex() == "02" + "ff" * 9
    assert encode_value(1.5).hex() == "03" + struct.pack("<d", 1.5).hex()
    assert encode_value(-0.0) == encode_value(0.0)
    assert encode_value(b"\x00").hex() == "04" + "0100000000000000" + "00"


ODD = Schema(
    "odd",
    pa.schema(
        [
            ("text", pa.string()),
            ("long", pa.large_string()),
            ("number", pa.int64()),
            ("share", pa.float64()),
            ("blob", pa.binary()),
        ]
    ),
    ("blob", "share", "number", "long", "text"),
)
ODD_ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "text": st.none() | st.text(max_size=6),
            "long": st.none() | st.text(max_size=6),
            "number": st.none() | INT64,
            "share": st.none() | st.floats(allow_nan=False),
            "blob": st.none() | st.binary(max_size=6),
        }
    ),
    max_size=8,
)


@given(ODD_ROWS, st.integers(0, 8))
def test_row_hashes_are_those_of_the_plain_encoding(rows: list[dict], cut: int) -> None:
    expected = [
        hashlib.sha256(b"odd\0" + b"".join(encode_value(row[name]) for name in ODD.hashed)).digest()
        for row in rows
    ]
    assert list(hashed_rows(ODD.table(rows).slice(cut), ODD)) == expected[cut:]


@pytest.mark.parametrize(
    "column",
    [pa.array([float("nan")]), pa.array([True]), pa.array([[1]]), pa.array([{"a": 1}])],
)
def test_a_column_without_one_encoding_is_refused(column: pa.Array) -> None:
    schema = Schema("odd", pa.schema([("x", column.type)]), ("x",))
    with pytest.raises((TypeError, ValueError)):
        data_digest(pa.table({"x": column}), schema)


def test_a_row_hash_is_the_sha256_that_the_format_spells_out() -> None:
    row = {"shard": 3, "id": "ab", "reason": "gone"}
    spelled = (
        b"dead\x00"
        b"\x02\x03\x00\x00\x00\x00\x00\x00\x00\x00"
        b"\x01\x02\x00\x00\x00\x00\x00\x00\x00ab"
        b"\x01\x04\x00\x00\x00\x00\x00\x00\x00gone"
    )
    expected = int.from_bytes(hashlib.sha256(spelled).digest(), "little")
    assert list(row_hashes(DEAD.table([row]), DEAD)) == [expected]
    assert data_digest(DEAD.table([row, row]), DEAD) == 2 * expected % MODULUS


DOCUMENT = {
    "id": document_id("site", "https://example.org/"),
    "digest": text_digest("Grow well.\n"),
    "text": "Grow well.\n",
    "url": "https://example.org/",
    "source": "site",
    "license": None,
    "language": "en",
    "fetched_at": "2025-01-01T00:00:00Z",
    "meta": canonical_meta({"title": "Grüße", "depth": 1}),
}


def test_the_format_page_shows_these_digests() -> None:
    """Golden values: another program that follows docs/format.md must get them too."""
    assert DOCUMENT["id"] == "e0ab211db99cd6229c48ec8ed46d3460"
    assert DOCUMENT["digest"] == "5d10718cddb674d5f62d6f16f441ebcc"
    assert DOCUMENT["meta"] == '{"depth":1,"title":"Grüße"}'
    assert digest_hex(data_digest(DOCUMENTS.table([DOCUMENT]), DOCUMENTS)) == (
        "7d1c05c355ea896437af062c104fcc398420141118d9a3ae5b4e65a1ddf84e3f"
    )
    assert digest_hex(data_digest(DOCUMENTS.empty(), DOCUMENTS)) == "0" * 64


def test_ids_are_xxh3_of_source_and_locator() -> None:
    assert document_id("s", "l") == xxhash.xxh3_128_hexdigest(b"s\0l")
    assert document_id("s", "l") != document_id("sl", "")
    assert text_digest("") == "99aa06d3014798d86001c324468d497f", "xxHash's own test vector"


@given(DROP_ROWS, st.data())
def test_the_data_digest_ignores_order_and_sharding(rows: list[dict], data: st.DataObject) -> None:
    whole = data_digest(DROPS.table(rows), DROPS)
    shuffled = data.draw(st.permutations(rows))
    cut = data.draw(st.integers(0, len(rows)))
    parts = [DROPS.table(shuffled[:cut]), DROPS.table(shuffled[cut:])]
    assert sum(data_digest(part, DROPS) for part in parts) % MODULUS == whole
    assert data_digest(pa.concat_tables(parts), DROPS) == whole


@given(DROP_ROWS, DROP_ROWS)
def test_different_data_has_different_digests(a: list[dict], b: list[dict]) -> None:
    def sorted_rows(rows: list[dict]) -> list[str]:
        # A negative zero is a zero, and the order of keys says nothing.
        equal = ({**row, "value": row["value"] if row["value"] else abs(row["value"] or 0.0)}
                 if row["value"] is not None else row for row in rows)  # fmt: skip
        return sorted(repr(sorted(row.items())) for row in equal)

    same_data = sorted_rows(a) == sorted_rows(b)
    assert (data_digest(DROPS.table(a), DROPS) == data_digest(DROPS.table(b), DROPS)) == same_data


def test_rows_of_different_kinds_never_cancel_out() -> None:
    dead = DEAD.table([{"shard": 1, "id": "a", "reason": "b"}])
    renamed = type(DEAD)("other", DEAD.arrow, DEAD.hashed)
    assert data_digest(dead, DEAD) != data_digest(dead, renamed)


@pytest.mark.parametrize("column", ["fetched_at", "text"])
def test_provenance_is_outside_the_row_hash(column: str) -> None:
    # The text itself is covered by its digest.
    changed = {**DOCUMENT, column: "other"}
    tables = [DOCUMENTS.table([row]) for row in (DOCUMENT, changed)]
    assert data_digest(tables[0], DOCUMENTS) == data_digest(tables[1], DOCUMENTS)


@pytest.mark.parametrize("column", DOCUMENTS.hashed)
def test_what_decisions_read_is_inside_the_row_hash(column: str) -> None:
    changed = {**DOCUMENT, column: "other"}
    tables = [DOCUMENTS.table([row]) for row in (DOCUMENT, changed)]
    assert data_digest(tables[0], DOCUMENTS) != data_digest(tables[1], DOCUMENTS)


def test_binary_and_float_columns_are_hashed() -> None:
    edge = {"a": "x", "b": "y", "similarity": 0.8}
    assert data_digest(EDGES.table([edge]), EDGES) != 0
    row = {"file": "f", "id": "x", "digest": "y", "row_hash": b"\0\1"}
    other = {**row, "row_hash": b"\0\2"}
    assert data_digest(CLAIMS.table([row]), CLAIMS) != data_digest(CLAIMS.table([other]), CLAIMS)


@given(st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3), max_size=4))
def test_equal_meta_has_one_text(meta: dict[str, object]) -> None:
    backwards = dict(reversed(meta.items()))
    assert canonical_meta(meta) == canonical_meta(backwards)
    assert (canonical_meta(meta) is None) == (meta == {})


def test_a_column_the_schema_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dead has no column \['who'\]"):
        DEAD.table([{"who": "me"}])
