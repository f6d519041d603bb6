"""Snapshots: what a source holds, as a log that only grows.

New and changed rows come in new shards; rows that live no more (superseded by a newer version, or
gone from the source) are listed as dead by the position of their shard. So the live rows of two
snapshots can be equal while their logs are not, and then their data digests are equal too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from llm.errors import ConfigError, DataError
from tasks.erase import erased_list
from tasks.store.corpus import Shard, snapshot_shards
from tasks.store.fingerprint import canonical, fingerprint
from tasks.store.records import Manifest, ManifestRef, ObjectRef, Receipt
from tasks.store.rows import digest_hex, row_hashes
from tasks.store.run import Run, check_books
from tasks.store.schema import DEAD, QUARANTINE, Schema
from tasks.store.stage import Stage
from tasks.store.store import Ref, RefMoved, Store, now


@dataclass(frozen=True)
class LiveRow:
    """A live row of a snapshot: the position of its shard, and its row hash."""

    shard: int
    row_hash: int


def find_snapshot(run: Run, source: str) -> tuple[Ref | None, Manifest | None]:
    """The ref of a source's snapshot and the snapshot; None before the first ingest."""
    ref = run.store.find_ref("snapshot", f"{run.name}/{source}")
    return ref, run.store.manifest(ref.manifest) if ref else None


def shards_of(store: Store, snapshot: Manifest | None, schema: Schema) -> tuple[Shard, ...]:
    """A snapshot's shards. Raises ConfigError where they hold rows of another schema: its source
    was of another kind."""
    if snapshot is None:
        return ()
    shards = snapshot_shards(store, snapshot)
    for shard in shards:
        if schema.kind not in shard.extras:
            raise ConfigError(
                f"{snapshot.summary['source']}: the snapshot of that name holds "
                f"{', '.join(shard.extras)}, and the source now gives {schema.kind}; give the "
                "source another name"
            )
    return shards


def live_index(
    store: Store, snapshot: Manifest | None, schema: Schema, ids: pa.Array | None = None
) -> dict[str, LiveRow]:
    """The live rows of a snapshot by id: those of `ids`, or all. Raises ConfigError as
    `shards_of`."""
    where = None if ids is None else pc.field("id").isin(ids)
    index: dict[str, LiveRow] = {}
    for place, shard in enumerate(shards_of(store, snapshot, schema)):
        if ids is not None and not len(ids):
            continue
        table = store.read_table(shard.extras[schema.kind], schema, list(schema.hashed), where)
        dead = frozenset(shard.dead)
        hashes = row_hashes(table, schema)
        for row, row_hash in zip(table.column("id").to_pylist(), hashes, strict=True):
            if row not in dead:
                index[row] = LiveRow(place, row_hash)
    return index


@dataclass(frozen=True)
class Ingest:
    """What an ingest found: rows new or changed, ids gone for good, and what was unreadable.

    `rows` hold each id once. `objects` are named in the manifest so that readers and the garbage
    collector reach them; those of the previous snapshot stay, but for those of a name in `current`,
    which take the place of the earlier ones. `summary` says what was seen,
    such as the files' marks; `seconds` how long it took.
    """

    schema: Schema
    rows: Iterable[pa.Table]
    gone: Iterable[str]
    quarantine: pa.Table
    objects: Mapping[str, tuple[ObjectRef, ...]]
    summary: Mapping[str, Any]
    current: Mapping[str, tuple[ObjectRef, ...]] = field(default_factory=dict)
    seconds: float = 0.0


def append(
    run: Run,
    stage: Stage,
    source: str,
    config: Mapping[str, Any],
    seen: Ref | None,
    previous: Manifest | None,
    found: Ingest,
    live: Mapping[str, LiveRow],
) -> Manifest:
    """Appends an ingest to a source's snapshot and moves its ref.

    `live` are at least the rows that the ingest supersedes or says are gone. Where another run
    moved the ref meanwhile, that run's snapshot is returned: it looked at the same source at the
    same time. Raises DataError when an id comes twice, or is gone and new.
    """
    store = run.store
    old = store.receipts(previous) if previous else []
    new, dead = _write_shards(run, source, found, live, len(old))
    receipts = [*old, *new]
    n_new = sum(receipt.rows_out for receipt in new)
    n_live, digest = _live_total(store, previous, found.schema)
    digest += sum(int(receipt.data_digest, 16) for receipt in new)
    digest -= sum(live[row["id"]].row_hash for row in dead)
    objects = _objects(store, previous, found, dead)
    drops = dict(previous.drops) if previous else {}
    for row in dead:
        drops[row["reason"]] = drops.get(row["reason"], 0) + 1
    rows_in = sum(receipt.rows_in for receipt in receipts)
    rows_out = n_live - len(dead) + n_new
    check_books(stage.name, rows_in, rows_out, drops)
    payload = canonical(
        {
            "stage": stage.name,
            "version": stage.version,
            "source": source,
            "config": dict(config),
            "summary": dict(found.summary),
            "log": [ref.sha256 for receipt in receipts for ref in receipt.outputs],
            "objects": {name: [ref.sha256 for ref in refs] for name, refs in objects.items()},
        }
    )
    manifest = store.commit(
        Manifest(
            stage=stage.name,
            fingerprint=fingerprint(payload),
            payload=payload,
            inputs={},
            rows_in=rows_in,
            rows_out=rows_out,
            drops=dict(sorted(drops.items())),
            data_digest=digest_hex(digest),
            receipts=store.put_receipts(receipts),
            objects=objects,
            summary={"source": source, "new_rows": n_new, "dead_rows": len(dead), **found.summary},
            provenance={
                **run.provenance,
                "run_id": run.run_id,
                "at": now(),
                "seconds": round(found.seconds, 3),
            },
        )
    )
    return _publish(run, source, manifest.ref, seen)


def _live_total(store: Store, snapshot: Manifest | None, schema: Schema) -> tuple[int, int]:
    """How many rows of a snapshot live, and the sum of their row hashes."""
    if snapshot is None:
        return 0, 0
    if erased_list(store).entries:
        # Rows may have been emptied since the snapshot was made, so that their hashes are others.
        live = live_index(store, snapshot, schema)
        return len(live), sum(row.row_hash for row in live.values())
    return snapshot.rows_out, int(snapshot.data_digest, 16)


def _write_shards(
    run: Run, source: str, found: Ingest, live: Mapping[str, LiveRow], start: int
) -> tuple[list[Receipt], list[dict[str, Any]]]:
    """Writes an ingest's rows as shards from position `start` of the log on.

    Returns a receipt for each, and the rows of DEAD: what is gone and what the new rows supersede.
    """
    seen_ids = set(found.gone)
    dead: list[dict[str, Any]] = [
        {"shard": live[row].shard, "id": row, "reason": "gone"} for row in sorted(seen_ids)
    ]
    receipts: list[Receipt] = []
    for shard in _cut(run, found.rows):
        ids = shard.column("id").to_pylist()
        if len(set(ids)) < len(ids) or not seen_ids.isdisjoint(ids):
            raise DataError(f"{source}: an ingest tells of one id twice; give each row once")
        seen_ids.update(ids)
        dead += [
            {"shard": live[row].shard, "id": row, "reason": "superseded"}
            for row in ids
            if row in live
        ]
        ref = run.store.put_table(shard, found.schema)
        if ref is None:
            continue
        at = start + len(receipts)
        receipts.append(
            Receipt(
                key=fingerprint({"source": source, "data": ref.data_digest, "at": at}),
                outputs=(ref,),
                rows_in=ref.rows,
                rows_out=ref.rows,
                drops={},
                data_digest=ref.data_digest,
                run_id=run.run_id,
            )
        )
    return receipts, dead


def touch(run: Run, source: str, snapshot: Manifest, seen: Ref) -> Manifest:
    """Notes that the source was looked at and had not changed."""
    return _publish(run, source, snapshot.ref, seen)


def _publish(run: Run, source: str, ref: ManifestRef, seen: Ref | None) -> Manifest:
    value = {"stage": ref.stage, "fingerprint": ref.fingerprint}
    try:
        run.store.move_ref("snapshot", f"{run.name}/{source}", value, seen)
    except RefMoved:
        run.say(f"{source}: another run refreshed it meanwhile; using what it found")
    _, manifest = find_snapshot(run, source)
    if manifest is None:
        raise DataError(f"the snapshot of {source} vanished; run again")
    return manifest


def _objects(
    store: Store, previous: Manifest | None, found: Ingest, dead: list[dict[str, Any]]
) -> dict[str, tuple[ObjectRef, ...]]:
    """The objects of the extended log: the dead add up, what is current replaces what was."""
    before = dict(previous.objects) if previous else {}
    after = {name: (*before.get(name, ()), *refs) for name, refs in found.objects.items()}
    dead_ref = store.put_table(
        DEAD.table(dead).sort_by([("shard", "ascending"), ("id", "ascending")]), DEAD
    )
    quarantine_ref = store.put_table(found.quarantine, QUARANTINE)
    after["dead"] = (*before.get("dead", ()), *((dead_ref,) if dead_ref else ()))
    after["quarantine"] = (quarantine_ref,) if quarantine_ref else ()
    after |= found.current
    return {name: tuple(dict.fromkeys(refs)) for name, refs in sorted({**before, **after}.items())}


def _cut(run: Run, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The rows in shards of at most so many rows and about so many bytes, each sorted by id."""
    waiting, rows, size = [], 0, 0
    for piece in _pieces(run, tables):
        waiting.append(piece)
        rows, size = rows + piece.num_rows, size + _bytes(piece)
        if rows >= run.shard_rows or size >= run.shard_bytes:
            whole = pa.concat_tables(waiting).sort_by("id")
            for start in range(0, whole.num_rows, run.shard_rows):
                yield whole.slice(start, run.shard_rows)
            waiting, rows, size = [], 0, 0
    if waiting:
        yield pa.concat_tables(waiting).sort_by("id")


def _pieces(run: Run, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The tables, cut where one alone would overfill a shard."""
    for table in tables:
        parts = max(1, -(-_bytes(table) // run.shard_bytes))
        step = min(run.shard_rows, -(-max(table.num_rows, 1) // parts))
        for start in range(0, table.num_rows, step):
            yield table.slice(start, step)


def _bytes(table: pa.Table) -> int:
    """What the rows weigh: the text of documents, the responses of pages."""
    if "payload_bytes" in table.column_names:
        return int(pc.sum(table.column("payload_bytes")).as_py() or 0)
    return int(pc.sum(pc.binary_length(table.column("text"))).as_py() or 0)


def check_losses(source: str, gone: int, live: int, most: float, accepted: bool) -> None:
    """Raises DataError when an ingest would lose an unusual share of a source's documents."""
    if live and gone / live > most and not accepted:
        raise DataError(
            f"{source}: {gone} of {live} documents are gone, more than {most:.0%}; if that is "
            "right, run again with --accept-losses"
        )


def refreshed_within(ref: Ref, seconds: float | None) -> bool:
    """Whether the source was looked at less than so many seconds ago; None: no matter when."""
    if seconds is None:
        return True
    at = datetime.strptime(ref.at, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return (datetime.now(UTC) - at).total_seconds() < seconds
