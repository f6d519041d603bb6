"""docs/format.md against the code: its tables, its example, and a reader written from it alone."""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tasks.census import COUNTS, PROFILES
from tasks.decontaminate import LEDGER
from tasks.matches import MATCHES
from tasks.planting import CANARIES
from tasks.signals import SIGNALS
from tasks.split import HELDOUT
from tasks.store import schema as schemas
from tasks.store.rows import digest_hex
from tasks.store.run import Run
from tasks.store.schema import Schema
from tasks.store.store import Store
from tasks.takedown import TAKEDOWNS
from tests.tasks.store import chain

PAGE = (Path(__file__).parents[3] / "docs" / "format.md").read_text(encoding="utf-8")
SCHEMAS = {
    schema.kind: schema
    for schema in (
        *vars(schemas).values(),
        SIGNALS,
        MATCHES,
        LEDGER,
        HELDOUT,
        TAKEDOWNS,
        CANARIES,
        PROFILES,
        COUNTS,
    )
    if isinstance(schema, Schema)
}


def described() -> dict[str, list[tuple[str, str, str]]]:
    """The schemas as the page tells them: (column, type, place in the row hash) by kind."""
    part = PAGE.split("\n## Schemas\n")[1].split("\n## ")[0]
    found = {}
    for section in part.split("\n### ")[1:]:
        kind = section.split("`")[1]
        rows = re.findall(r"^\| `(\w+)` \| ([^|]+?) \| ?(\d*) ?\|", section, re.MULTILINE)
        found[kind] = rows
    return found


def test_the_page_describes_every_kind_of_table() -> None:
    assert set(described()) == set(SCHEMAS)


@pytest.mark.parametrize("kind", sorted(SCHEMAS))
def test_the_page_has_the_columns_that_the_code_has(kind: str) -> None:
    schema = SCHEMAS[kind]
    places = {name: str(place + 1) for place, name in enumerate(schema.hashed)}
    assert described()[kind] == [
        (field.name, str(field.type).replace("list<item: ", "list<"), places.get(field.name, ""))
        for field in schema.arrow
    ]


# A reader written from the page alone: JSON, sha256, Parquet and arithmetic.


class Reader:
    """Another program. It shares no code with the store."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def ref(self, kind: str, name: str) -> dict[str, str]:
        return self.json(f"refs/{kind}/{name}.json")["entries"][0]["value"]

    def json(self, path: str) -> dict[str, Any]:
        data = json.loads((self.root / path).read_bytes())
        assert data["format"] == 1
        return data

    def manifest(self, pin: dict[str, str]) -> dict[str, Any]:
        data = self.json(f"manifests/{pin['stage']}/{pin['fingerprint']}.json")
        canonical = json.dumps(
            data["payload"], sort_keys=True, separators=(",", ":"), ensure_ascii=False
        )
        assert hashlib.sha256(canonical.encode()).hexdigest() == pin["fingerprint"]
        return data

    def table(self, ref: dict[str, Any]) -> list[dict[str, Any]]:
        name = ref["sha256"]
        body = (self.root / "objects" / name[:2] / f"{name}.{ref['ext']}").read_bytes()
        assert hashlib.sha256(body).hexdigest() == name
        assert len(body) == ref["bytes"]
        return pq.read_table(io.BytesIO(body)).to_pylist()

    def receipts(self, manifest: dict[str, Any]) -> list[dict[str, Any]]:
        if manifest["receipts"] is None:
            return []
        return [json.loads(row["receipt"]) for row in self.table(manifest["receipts"])]

    def chain(self, manifest: dict[str, Any]) -> list[dict[str, Any]]:
        if manifest["stage"] == "extract":
            return [manifest]
        return [*self.chain(self.manifest(manifest["inputs"]["corpus"])), manifest]

    def live(self, manifest: dict[str, Any]) -> list[dict[str, Any]]:
        chain = self.chain(manifest)
        out = [dead for pin in sorted(chain[0]["inputs"].items()) for dead in self.dead(pin[1])]
        texts: list[list[dict[str, Any]]] = [[] for _ in out]
        for step in chain:
            for shard, receipt in enumerate(self.receipts(step)):
                outputs = {ref["kind"]: ref for ref in receipt["outputs"]}
                if step["stage"] in ("extract", "scrub"):
                    texts[shard] = (
                        self.table(outputs["documents"]) if "documents" in outputs else []
                    )
                if "drops" in outputs:
                    out[shard] |= {row["id"] for row in self.table(outputs["drops"])}
        return [
            row
            for dead, rows in zip(out, texts, strict=True)
            for row in rows
            if row["id"] not in dead
        ]

    def dead(self, pin: dict[str, str]) -> Iterator[set[str]]:
        snapshot = self.manifest(pin)
        rows = [row for ref in snapshot["objects"].get("dead", []) for row in self.table(ref)]
        for shard, _ in enumerate(self.receipts(snapshot)):
            yield {row["id"] for row in rows if row["shard"] == shard}


def row_hash(kind: str, row: dict[str, Any]) -> int:
    hashed = sorted((int(place), name) for name, _, place in described()[kind] if place)
    body = kind.encode() + b"\0"
    for _, name in hashed:
        value = row[name]
        if value is None:
            body += b"\x00"
        else:
            assert isinstance(value, str)
            body += b"\x01" + struct.pack("<Q", len(value.encode())) + value.encode()
    return int.from_bytes(hashlib.sha256(body).digest(), "little")


def test_another_program_that_follows_the_page_finds_the_corpus(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    run = Run(store, "main", "run-1", shard_rows=2, say=lambda text: None)
    before = {"a": "one two", "b": "hi", "c": "", "d": "three", "e": "gone soon"}
    after = {"a": "One Two", "b": "hi there", "d": "three", "f": "ONE two", "g": "x"}
    chain.grow(run, {"x": before, "y": {"h": "three"}})
    manifest = chain.grow(run, {"x": after, "y": {"h": "three"}})
    store.move_ref(
        "corpus", "main", {"stage": manifest.stage, "fingerprint": manifest.fingerprint}, None
    )

    reader = Reader(tmp_path)
    found = reader.manifest(reader.ref("corpus", "main"))
    rows = reader.live(found)
    expected = chain.expected({"x": after, "y": {"h": "three"}}).to_pylist()
    assert sorted(rows, key=lambda row: row["id"]) == expected
    assert len(rows) == found["rows_out"] == 3
    digest = sum(row_hash("documents", row) for row in rows) % 2**256
    assert f"{digest:064x}" == found["data_digest"]


def test_the_example_on_the_page_is_right() -> None:
    table = PAGE.split("Example, a `documents` table")[1].split("\n## ")[0]
    values = dict(re.findall(r"^\| `?([\w ]+?)`? \| `(.+)` \|$", table, re.MULTILINE))
    row = {
        "id": values["id"], "digest": values["digest"], "url": "https://example.org/",
        "source": "site", "license": None, "language": values["language"], "meta": values["meta"],
    }  # fmt: skip
    assert digest_hex(row_hash("documents", row)) == values["data digest"]
