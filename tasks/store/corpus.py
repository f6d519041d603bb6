"""A corpus as a reader sees it: text minus drops, shard by shard, found by following pins.

A manifest pins its inputs and a reader follows those pins, never a newer manifest beside them,
so that signals, drops and labels are always aligned to *their* shards, by position.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from llm.errors import DataError
from tasks.store.executors import run_all
from tasks.store.records import Manifest, ManifestRef, ObjectRef, Receipt
from tasks.store.rows import data_digest, digest_hex
from tasks.store.run import Request, Run, check_books
from tasks.store.schema import DEAD, DOCUMENTS, DROPS, Schema
from tasks.store.store import Store, now

# Stages whose drops depend on other shards: decided afterwards, applied on reading only.
VERDICTS = frozenset({"takedown", "dedup", "decontaminate"})


@dataclass(frozen=True)
class Shard:
    """One shard: its text, what its own filters dropped, what else a reader skips, its dead.

    `extras` holds what else was measured of it, by kind: signals, findings, labels, ...
    """

    text: ObjectRef | None
    filtered: tuple[ObjectRef, ...] = ()
    verdicts: tuple[ObjectRef, ...] = ()
    dead: tuple[str, ...] = ()
    extras: Mapping[str, ObjectRef] = field(default_factory=dict)

    @property
    def inputs(self) -> dict[str, Any]:
        """The digests that decide what a measurement of this shard's kept rows gives."""
        return {
            "text": self.text.data_digest if self.text else "",
            "filtered": [ref.data_digest for ref in self.filtered],
        }


@dataclass(frozen=True)
class Corpus:
    """The shards a manifest speaks of, and the manifest."""

    manifest: Manifest
    shards: tuple[Shard, ...]


def snapshot_shards(store: Store, snapshot: Manifest) -> tuple[Shard, ...]:
    """A snapshot's shards, without text yet: what its log holds, and who of it is dead."""
    dead: dict[int, list[str]] = {}
    for ref in snapshot.objects.get("dead", ()):
        for row in store.read_table(ref, DEAD).to_pylist():
            dead.setdefault(row["shard"], []).append(row["id"])
    receipts = store.receipts(snapshot)
    return tuple(
        Shard(
            text=None,
            dead=tuple(sorted(dead.get(index, ()))),
            extras={ref.kind: ref for ref in receipt.outputs},
        )
        for index, receipt in enumerate(receipts)
    )


def open_corpus(store: Store, manifest: Manifest) -> Corpus:
    """The corpus as it stands after the stage that wrote `manifest`."""
    return Corpus(manifest, _shards(store, manifest.ref))


# Every stage of a run goes back over those before it.
@lru_cache(maxsize=2)
def _shards(store: Store, ref: ManifestRef) -> tuple[Shard, ...]:
    manifest = store.manifest(ref)
    receipts = store.receipts(manifest)
    if manifest.stage == "extract":
        sources = [store.manifest(manifest.inputs[role]) for role in sorted(manifest.inputs)]
        parents = tuple(shard for snapshot in sources for shard in snapshot_shards(store, snapshot))
        return _all_after(parents, manifest.stage, receipts)
    if "corpus" not in manifest.inputs:
        raise DataError(f"{manifest.stage} {manifest.fingerprint[:12]} is not part of a corpus")
    return _all_after(_shards(store, manifest.inputs["corpus"]), manifest.stage, receipts)


def _all_after(
    shards: Sequence[Shard], stage: str, receipts: Sequence[Receipt]
) -> tuple[Shard, ...]:
    return tuple(_after(s, stage, r) for s, r in zip(shards, receipts, strict=True))


def _after(shard: Shard, stage: str, receipt: Receipt) -> Shard:
    """The shard once `stage` has been at it."""
    if stage == "extract":
        return replace(shard, text=receipt.output(DOCUMENTS.kind))
    for ref in receipt.outputs:
        if ref.kind == DROPS.kind and stage in VERDICTS:
            shard = replace(shard, verdicts=(*shard.verdicts, ref))
        elif ref.kind == DROPS.kind:
            shard = replace(shard, filtered=(*shard.filtered, ref))
        elif ref.kind != DOCUMENTS.kind:
            shard = replace(shard, extras={**shard.extras, ref.kind: ref})
    if stage == "scrub":
        # Its text lacks what the shard's own filters dropped, so that no later measurement depends
        # on them; what was measured before it still holds those rows.
        shard = replace(
            shard,
            text=receipt.output(DOCUMENTS.kind),
            filtered=(),
            verdicts=(*shard.filtered, *shard.verdicts),
        )
    return shard


def _without(table: pa.Table, ids: pa.Array) -> pa.Table:
    if len(ids) == 0 or table.num_rows == 0:
        return table
    return table.filter(pc.invert(pc.is_in(table.column("id"), value_set=ids)))


def _ids(store: Store, drops: Sequence[ObjectRef]) -> list[str]:
    return [
        row for ref in drops for row in store.read_table(ref, DROPS, ["id"]).column(0).to_pylist()
    ]


def kept_rows(store: Store, shard: Shard, columns: Sequence[str] | None = None) -> pa.Table:
    """The text rows that the shard's own filters kept: what a measurement covers.

    It depends on nothing but this shard, so that a verdict elsewhere never costs a re-measure.
    """
    table = store.read_table(shard.text, DOCUMENTS, columns)
    return _without(table, pa.array(_ids(store, shard.filtered), pa.string()))


def _n_kept(shard: Shard) -> int:
    """How many rows `kept_rows` has: a filter drops a row of its shard once."""
    return (shard.text.rows if shard.text else 0) - sum(ref.rows for ref in shard.filtered)


def out_ids(store: Store, shard: Shard) -> pa.Array:
    """Every id of the shard that a reader does not see: filtered, dropped by verdict, or dead."""
    return _out_ids(store, (*shard.filtered, *shard.verdicts), shard.dead)


# Whoever reads one thing of a shard mostly reads another of it next.
@lru_cache(maxsize=2)
def _out_ids(store: Store, drops: tuple[ObjectRef, ...], dead: tuple[str, ...]) -> pa.Array:
    return pa.array(sorted({*_ids(store, drops), *dead}), pa.string())


def live_rows(
    store: Store,
    shard: Shard,
    ref: ObjectRef | None = None,
    schema: Schema = DOCUMENTS,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """The rows a reader sees: of the shard's text, or of another object aligned to it."""
    table = store.read_table(shard.text if schema is DOCUMENTS else ref, schema, columns)
    return _without(table, out_ids(store, shard))


def _live_total(
    store: Store, ref: ObjectRef | None, schema: Schema, out: pa.Array
) -> tuple[int, int]:
    """Rows and data digest of an object's rows that are not `out`: what is out is subtracted from
    the object's own digest, or where that is most of it, what is left is summed."""
    if ref is None:
        return 0, 0
    if len(out) == 0:
        return ref.rows, int(ref.data_digest, 16)
    columns = list(dict.fromkeys(("id", *schema.hashed)))
    # Rows that are out may have been emptied by an erase: their hashes are those in its successor.
    current, table = store.read_current(ref, schema, columns)
    gone = pc.is_in(table.column("id"), value_set=out)
    n_gone = pc.sum(gone).as_py() or 0
    n_live = table.num_rows - n_gone
    if current is None or n_gone > n_live:
        return n_live, data_digest(table.filter(pc.invert(gone)), schema)
    return n_live, int(current.data_digest, 16) - data_digest(table.filter(gone), schema)


@dataclass(frozen=True)
class _Account:
    """What one shard adds to a stage's books, over its live rows."""

    text: tuple[int, int] = (0, 0)
    measured: int = 0
    drops: Mapping[str, int] = field(default_factory=dict)


def _account(
    store: Store,
    before: Shard,
    stage: str,
    receipt: Receipt,
    counts_text: bool,
    kind: Schema | None,
) -> _Account:
    """The account of one shard: of its text where that is asked for, and of what was measured."""
    dropped = _without(
        store.read_table(receipt.output(DROPS.kind), DROPS, ["id", "reason"]),
        out_ids(store, before),
    )
    after = _after(before, stage, receipt)
    out = out_ids(store, after)
    text = _live_total(store, after.text, DOCUMENTS, out) if counts_text else (0, 0)
    measured = _live_total(store, after.extras.get(kind.kind), kind, out)[1] if kind else 0
    return _Account(text, measured, Counter(dropped.column("reason").to_pylist()))


def _accounts(
    run: Run,
    stage: str,
    receipts: Sequence[Receipt],
    before: Sequence[Shard],
    counts_text: bool,
    measured: Schema | None,
) -> list[_Account]:
    """Every shard's account; nothing is read where a stage left the text and its rows alone."""
    if not counts_text and measured is None:
        return []
    calls = [
        (run.store, shard, stage, receipt, counts_text, measured)
        for shard, receipt in zip(before, receipts, strict=True)
    ]
    return [account for _, account in run_all(run.executor, _account, calls)]


def commit_stage(
    run: Run,
    request: Request,
    receipts: Sequence[Receipt],
    before: Sequence[Shard],
    measured: Schema | None = None,
    objects: Mapping[str, tuple[ObjectRef, ...]] | None = None,
    summary: Mapping[str, Any] | None = None,
) -> Manifest:
    """Balances the books of a stage over its live rows and commits its manifest.

    `before` are the shards as they were upstream. The data digest sums the live rows of the text
    and, where the stage measured something that a later one decides on, of `measured` as well.
    Raises BooksDoNotBalance.
    """
    stage = request.stage.name
    rows_in = sum(manifest.rows_out for manifest in request.inputs.values())
    parent = request.inputs.get("corpus")
    written = {ref.kind for receipt in receipts for ref in receipt.outputs}
    counts_text = parent is None or not written.isdisjoint({DROPS.kind, DOCUMENTS.kind})
    accounts = _accounts(run, stage, receipts, before, counts_text, measured)
    if parent is None or counts_text:
        rows_out = sum(account.text[0] for account in accounts)
        text_digest = sum(account.text[1] for account in accounts)
    else:
        rows_out, text_digest = parent.rows_out, int(parent.summary["text_digest"], 16)
    dropped: Counter[str] = Counter()
    for account in accounts:
        dropped.update(account.drops)
    drops = dict(sorted(dropped.items()))
    check_books(stage, rows_in, rows_out, drops)
    digest = text_digest + sum(account.measured for account in accounts)
    stats: dict[str, float] = {}
    for name, value in (pair for receipt in receipts for pair in receipt.stats.items()):
        stats[name] = stats.get(name, 0) + value
    return run.store.commit(
        Manifest(
            stage=stage,
            fingerprint=request.ref.fingerprint,
            payload=request.payload,
            inputs={role: manifest.ref for role, manifest in request.inputs.items()},
            rows_in=rows_in,
            rows_out=rows_out,
            drops=drops,
            data_digest=digest_hex(digest),
            receipts=run.store.put_receipts(receipts),
            objects=dict(objects or {}),
            summary={
                **(summary or {}),
                "stats": dict(sorted(stats.items())),
                "text_digest": digest_hex(text_digest),
            },
            provenance={
                **run.provenance,
                "run_id": run.run_id,
                "at": now(),
                "seconds": round(sum(receipt.seconds for receipt in receipts), 3),
            },
        )
    )


def verdict_receipts(
    run: Run, request: Request, shards: Sequence[Shard], drops: pa.Table
) -> list[Receipt]:
    """A receipt per shard for a decision over all of them: the drops that fall into it.

    `drops` are those of live rows; only ids decide where they fall, and a live id is in one shard.
    """
    receipts = []
    for index, shard in enumerate(shards):
        rows, mine = _n_kept(shard), drops
        if drops.num_rows:
            live = live_rows(run.store, shard, columns=["id"]).column("id")
            mine = drops.filter(pc.is_in(drops.column("id"), value_set=live)).sort_by("id")
        ref = run.store.put_table(mine, DROPS)
        reasons = Counter(mine.column("reason").to_pylist())
        receipts.append(
            Receipt(
                key=request.action_key({"verdict": request.ref.fingerprint, "shard": index}),
                outputs=(ref,) if ref else (),
                rows_in=rows,
                rows_out=rows - mine.num_rows,
                drops=dict(sorted(reasons.items())),
                data_digest=ref.data_digest if ref else digest_hex(0),
                run_id=run.run_id,
            )
        )
    return receipts


def texts_by_id(store: Store, shards: Sequence[Shard], ids: Sequence[str]) -> list[str]:
    """The texts of live documents, in the order of `ids`. Raises DataError for one not there."""
    wanted = pa.array(ids, pa.string())
    found: dict[str, str] = {}
    for shard in shards:
        here = live_rows(store, shard, columns=["id"]).column("id")
        if pc.any(pc.is_in(here, value_set=wanted)).as_py():
            rows = live_rows(store, shard, columns=["id", "text"])
            rows = rows.filter(pc.is_in(rows.column("id"), value_set=wanted))
            found.update(zip(rows["id"].to_pylist(), rows["text"].to_pylist(), strict=True))
    missing = [row for row in ids if row not in found]
    if missing:
        raise DataError(f"no live document has the id {missing[0]}")
    return [found[row] for row in ids]
