"""The store: objects by content, receipts by key, manifests by fingerprint, refs by name."""

from __future__ import annotations

import hashlib
import io
import json
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llm import files
from llm.errors import DataError, LoamError, StorageError
from tasks.store.records import (
    FORMAT,
    Erased,
    Manifest,
    ManifestRef,
    ObjectRef,
    Receipt,
    check_format,
    erased_from,
    manifest_from,
    parse,
    receipt_from,
    to_json,
)
from tasks.store.rows import data_digest, digest_hex
from tasks.store.schema import Schema

COMPRESSION, COMPRESSION_LEVEL = "zstd", 3


class NondeterministicStage(LoamError):
    """One fingerprint, two results: the stage read something that its fingerprint leaves out."""


class RefMoved(LoamError):
    """Another run moved the ref since this one read it: plan again, never retry the swap."""


@dataclass(frozen=True)
class Ref:
    """A name for a manifest or a pin, its history newest first, and what a swap must match."""

    value: dict[str, Any]
    at: str
    history: tuple[dict[str, Any], ...]
    seen: files.Versioned

    @property
    def manifest(self) -> ManifestRef:
        return ManifestRef(self.value["stage"], self.value["fingerprint"])

    @property
    def line(self) -> tuple[ManifestRef, ...]:
        """The manifests that the run which moved the ref came through, in order."""
        return tuple(ManifestRef(**ref) for ref in self.value.get("line", ()))


@dataclass(frozen=True)
class Store:
    """An artifact store at `root` (file:// or s3://). Plain data: it may cross processes."""

    root: str

    @classmethod
    def at(cls, url: str) -> Store:
        return cls(files.absolute_url(url))

    def creates_once(self) -> bool:
        """Whether the storage honours create-if-absent, on which concurrent runs rely.

        Some S3 servers ignore the condition and let the last writer win.
        """
        url = f"{self.root}/probe"
        files.create(url, secrets.token_bytes(16))
        return not files.create(url, secrets.token_bytes(16))

    # objects

    def object_url(self, ref: ObjectRef) -> str:
        return f"{self.root}/objects/{ref.sha256[:2]}/{ref.sha256}.{ref.ext}"

    def put_table(self, table: pa.Table, schema: Schema) -> ObjectRef | None:
        """Writes a table as an object, its rows as they are. None, and no object, for no rows.

        The bytes are reopened and counted before they are put: a writer's fault must not get
        a name.
        """
        if table.num_rows == 0:
            return None
        if table.column_names != schema.arrow.names:
            raise DataError(
                f"{schema.kind} has the columns {schema.arrow.names}, found {table.column_names}"
            )
        sink = io.BytesIO()
        pq.write_table(
            table, sink, compression=COMPRESSION, compression_level=COMPRESSION_LEVEL,
            row_group_size=schema.group_rows,
        )  # fmt: skip
        body = sink.getvalue()
        counted = pq.read_metadata(io.BytesIO(body)).num_rows
        if counted != table.num_rows:
            raise StorageError(f"wrote {table.num_rows} rows of {schema.kind}, read {counted} back")
        digest = digest_hex(data_digest(table, schema))
        return self._put(body, schema.kind, "parquet", counted, digest)

    def put_bytes(self, body: bytes, kind: str, ext: str) -> ObjectRef:
        return self._put(body, kind, ext, 0, "")

    def put_local_file(self, path: Path, kind: str, ext: str) -> ObjectRef:
        """Uploads a file under the sha256 of its content."""
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        ref = ObjectRef(kind, sha256, ext, 0, path.stat().st_size)
        files.put_file(self.object_url(ref), path)
        return ref

    def _put(self, body: bytes, kind: str, ext: str, rows: int, digest: str) -> ObjectRef:
        ref = ObjectRef(kind, hashlib.sha256(body).hexdigest(), ext, rows, len(body), digest)
        files.put(self.object_url(ref), body)
        return ref

    def erased_url(self, sha256: str) -> str:
        """Where it is said what stands in the place of an object that held an erased document."""
        return f"{self.root}/objects/{sha256[:2]}/{sha256}.erased.json"

    def find_erased(self, sha256: str) -> Erased | None:
        """What was said of an object when a document was erased from it; None: it is whole."""
        url = self.erased_url(sha256)
        (body,) = files.read_many([url])
        return erased_from(parse(body, url), url) if body is not None else None

    def current(self, ref: ObjectRef) -> ObjectRef | None:
        """The object itself, or what stands in its place since documents were erased from it;
        None where no row was left."""
        while (erased := self.find_erased(ref.sha256)) is not None:
            if erased.successor is None:
                return None
            ref = erased.successor
        return ref

    def _instead(self, ref: ObjectRef) -> ObjectRef | None:
        """What to read in the place of an object that is not there. Raises DataError for a loss."""
        found = self.current(ref)
        if found == ref:
            raise DataError(
                f"{self.object_url(ref)} is missing; `loam store verify` lists what else is"
            )
        return found

    def read_bytes(self, ref: ObjectRef) -> bytes:
        """An object's bytes, checked against its name. Raises DataError when missing or changed."""
        try:
            body = files.read_bytes(self.object_url(ref))
        except FileNotFoundError:
            successor = self._instead(ref)
            return self.read_bytes(successor) if successor else b""
        if hashlib.sha256(body).hexdigest() != ref.sha256:
            raise DataError(f"{self.object_url(ref)} does not hold what its name says")
        return body

    def read_table(
        self,
        ref: ObjectRef | None,
        schema: Schema,
        columns: Sequence[str] | None = None,
        where: pc.Expression | None = None,
    ) -> pa.Table:
        """An object's rows, or those of which `where` holds; groups of rows that cannot have any
        are not read. The empty table for None, which is what an empty output leaves."""
        return self.read_current(ref, schema, columns, where)[1]

    def read_current(
        self,
        ref: ObjectRef | None,
        schema: Schema,
        columns: Sequence[str] | None = None,
        where: pc.Expression | None = None,
    ) -> tuple[ObjectRef | None, pa.Table]:
        """As `read_table`, and which object the rows are of: the one that stands in its place where
        documents were erased from it."""
        if ref is None:
            empty = schema.empty()
            return None, empty.select(list(columns)) if columns else empty
        url = self.object_url(ref)
        filesystem, path = files.arrow_filesystem(url)
        try:
            with files.explained(url, "reading"):
                table = pq.read_table(
                    path,
                    columns=list(columns) if columns else None,
                    filesystem=filesystem,
                    filters=where,
                )
        except FileNotFoundError:
            return self.read_current(self._instead(ref), schema, columns, where)
        except pa.ArrowInvalid as error:
            raise DataError(
                f"{url} is not the Parquet it was ({error}); `loam store verify` lists what else "
                "has changed"
            ) from error
        return ref, table.combine_chunks()

    # receipts

    def receipt_url(self, stage: str, key: str) -> str:
        return f"{self.root}/actions/{stage}/{key}.json"

    def put_receipt(self, stage: str, receipt: Receipt) -> Receipt:
        """Records an action's receipt. Where another worker was first, theirs is returned.

        Raises NondeterministicStage when theirs tells of other data.
        """
        url = self.receipt_url(stage, receipt.key)
        if files.create(url, to_json(receipt)):
            return receipt
        theirs = receipt_from(parse(files.read_bytes(url), url))
        if theirs.data_digest != receipt.data_digest:
            raise NondeterministicStage(
                f"{stage}: action {receipt.key[:12]} gave data digest {receipt.data_digest[:12]}, "
                f"and {theirs.data_digest[:12]} before; something outside its key decides its "
                f"output. Raise the stage's version, or remove {url} to trust this run"
            )
        return theirs

    def find_receipts(self, stage: str, keys: Sequence[str]) -> dict[str, Receipt]:
        """The receipts there are for `keys`, in one batch of reads."""
        urls = [self.receipt_url(stage, key) for key in keys]
        return {
            key: receipt_from(parse(body, url))
            for key, url, body in zip(keys, urls, files.read_many(urls), strict=True)
            if body is not None
        }

    # manifests

    def manifest_url(self, ref: ManifestRef) -> str:
        return f"{self.root}/manifests/{ref.stage}/{ref.fingerprint}.json"

    def find_manifest(self, ref: ManifestRef) -> Manifest | None:
        url = self.manifest_url(ref)
        try:
            found = manifest_from(files.read_bytes(url), url)
        except FileNotFoundError:
            return None
        if found.ref != ref:
            raise DataError(f"{url} holds the manifest {found.stage} {found.fingerprint}")
        return found

    def manifest(self, ref: ManifestRef) -> Manifest:
        """Raises DataError when it is missing."""
        found = self.find_manifest(ref)
        if found is None:
            raise DataError(f"{self.manifest_url(ref)} is missing, though something refers to it")
        return found

    def receipts(self, manifest: Manifest) -> list[Receipt]:
        """The receipts of a manifest, in shard order."""
        if manifest.receipts is None:
            return []
        body = self.read_bytes(manifest.receipts)
        rows = pq.read_table(io.BytesIO(body)).column("receipt").to_pylist()
        return [receipt_from(json.loads(row)) for row in rows]

    def put_receipts(self, receipts: Sequence[Receipt]) -> ObjectRef | None:
        """One Parquet of receipts: columns to query by, and the whole receipt as JSON."""
        if not receipts:
            return None
        table = pa.table(
            {
                "shard": pa.array(range(len(receipts)), pa.int64()),
                "key": [receipt.key for receipt in receipts],
                "rows_in": pa.array([receipt.rows_in for receipt in receipts], pa.int64()),
                "rows_out": pa.array([receipt.rows_out for receipt in receipts], pa.int64()),
                "data_digest": [receipt.data_digest for receipt in receipts],
                "seconds": [receipt.seconds for receipt in receipts],
                "receipt": [
                    json.dumps(asdict(receipt), sort_keys=True, ensure_ascii=False)
                    for receipt in receipts
                ],
            }
        )
        sink = io.BytesIO()
        pq.write_table(table, sink, compression=COMPRESSION)
        return self._put(sink.getvalue(), "receipts", "parquet", len(receipts), "")

    def commit(self, manifest: Manifest) -> Manifest:
        """Creates the manifest; where another run was first, theirs is returned.

        Raises NondeterministicStage when theirs has another data digest.
        """
        url = self.manifest_url(manifest.ref)
        if files.create(url, to_json(manifest)):
            return manifest
        theirs = self.manifest(manifest.ref)
        if theirs.data_digest != manifest.data_digest:
            raise NondeterministicStage(
                f"{manifest.stage} {manifest.fingerprint[:12]} gave data digest "
                f"{manifest.data_digest[:12]}, and {theirs.data_digest[:12]} in {url}; something "
                "outside its fingerprint decides its output: raise the stage's version"
            )
        return theirs

    # refs

    def ref_url(self, kind: str, name: str) -> str:
        return f"{self.root}/refs/{kind}/{name}.json"

    def find_ref(self, kind: str, name: str) -> Ref | None:
        url = self.ref_url(kind, name)
        seen = files.read_versioned(url)
        if seen is None:
            return None
        data = parse(seen.body, url)
        check_format(data, url)
        newest, *history = data["entries"]
        return Ref(newest["value"], newest["at"], tuple(history), seen)

    def list_refs(self, kind: str = "") -> list[tuple[str, str]]:
        """(kind, name) of every ref, sorted; names may hold slashes."""
        base = f"{self.root}/refs/"
        found = [
            url.removeprefix(base).removesuffix(".json")
            for url in files.list_urls(base + kind if kind else base)
            if url.endswith(".json")
        ]
        pairs = [name.split("/", 1) for name in found]
        return sorted((pair[0], pair[1]) for pair in pairs if len(pair) == 2)

    def move_ref(self, kind: str, name: str, value: dict[str, Any], seen: Ref | None) -> Ref:
        """Points the ref at `value`, if it still is what the caller saw when its run started.

        Raises RefMoved otherwise. A ref that has that value already only gets the new time.
        """
        url = self.ref_url(kind, name)
        entries: list[dict[str, Any]] = [{"value": value, "at": now()}]
        if seen is not None:
            current = {"value": seen.value, "at": seen.at}
            entries += list(seen.history) if seen.value == value else [current, *seen.history]
        body = json.dumps(
            {"format": FORMAT, "entries": entries}, sort_keys=True, indent=2, ensure_ascii=False
        ).encode()
        if not files.swap(url, seen.seen if seen else None, body):
            raise RefMoved(
                f"{url} was moved by another run since this one read it; run again to plan anew"
            )
        moved = self.find_ref(kind, name)
        if moved is None:
            raise StorageError(f"{url} vanished right after it was written")
        return moved


def now() -> str:
    """The time in UTC to the second, ISO 8601: for provenance only, never for a decision's data."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
