"""A tiny chain of stages over a real store, and what it should give, told in plain Python.

extract upper-cases texts and drops blank ones; annotate measures their length; select drops short
ones; dedup keeps the smallest id of equal texts, a verdict over all shards; scrub writes the text
anew. Functions lie here, at the top of a module, so that a pool of processes can run them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tasks.snapshot import Ingest, append, find_snapshot, live_index
from tasks.store.corpus import (
    Corpus,
    Shard,
    commit_stage,
    kept_rows,
    live_rows,
    open_corpus,
    snapshot_shards,
    verdict_receipts,
)
from tasks.store.records import Manifest
from tasks.store.rows import document_id, text_digest
from tasks.store.run import Action, Outcome, Request, Run, reuse, run_actions
from tasks.store.schema import DOCUMENTS, DROPS, QUARANTINE, Schema
from tasks.store.stage import Stage
from tasks.store.store import Store

SHORTEST = 3
LENGTHS = Schema(
    "lengths", pa.schema([("id", pa.string()), ("length", pa.int64())]), ("id", "length")
)
IMPORT, EXTRACT, ANNOTATE, SELECT, DEDUP, SCRUB = (
    Stage(name, 1) for name in ("import", "extract", "annotate", "select", "dedup", "scrub")
)

State = Mapping[str, str]
"""What a source holds: texts by locator."""


def document(source: str, locator: str, text: str) -> dict[str, Any]:
    return {
        "id": document_id(source, locator),
        "digest": text_digest(text),
        "text": text,
        "source": source,
        "fetched_at": "2025-01-01T00:00:00Z",
    }


def documents(source: str, state: State) -> pa.Table:
    rows = [document(source, locator, text) for locator, text in state.items()]
    return DOCUMENTS.table(sorted(rows, key=lambda row: str(row["id"])))


def ingest(run: Run, source: str, state: State) -> Manifest:
    """Brings the snapshot of a source to `state`, writing only what is new or changed."""
    seen, previous = find_snapshot(run, source)
    live = live_index(run.store, previous, DOCUMENTS)
    fresh = live_index_of(documents(source, state))
    changed = [row for row, row_hash in fresh.items() if
               row not in live or live[row].row_hash != row_hash]  # fmt: skip
    rows = documents(source, state)
    rows = rows.filter(pc.is_in(rows.column("id"), value_set=pa.array(changed, pa.string())))
    gone = [row for row in live if row not in fresh]
    found = Ingest(DOCUMENTS, [rows], gone, QUARANTINE.empty(), {}, {})
    return append(run, IMPORT, source, {}, seen, previous, found, live)


def live_index_of(table: pa.Table) -> dict[str, int]:
    from tasks.store.rows import row_hashes

    return dict(zip(table.column("id").to_pylist(), row_hashes(table, DOCUMENTS), strict=True))


def _drops(stage: str, reason: str, ids: list[str]) -> pa.Table:
    return DROPS.table([{"id": row, "stage": stage, "reason": reason} for row in sorted(ids)])


def _rewritten(rows: pa.Table, texts: list[str]) -> pa.Table:
    for name, column in (("text", texts), ("digest", [text_digest(text) for text in texts])):
        place = rows.column_names.index(name)
        rows = rows.set_column(
            place, name, pa.array(column, DOCUMENTS.arrow.field(name).type)
        )  # fmt: skip
    return rows


def extract_work(store: Store, shard: Shard) -> Outcome:
    rows = store.read_table(shard.extras[DOCUMENTS.kind], DOCUMENTS)
    texts = [text.upper() for text in rows.column("text").to_pylist()]
    blank = pa.array([not text.strip() for text in texts])
    kept = _rewritten(rows, texts).filter(pc.invert(blank))
    drops = _drops("extract", "blank", rows.filter(blank).column("id").to_pylist())
    return Outcome(((DOCUMENTS, kept), (DROPS, drops)), rows.num_rows, kept.num_rows)


def annotate_work(store: Store, shard: Shard) -> Outcome:
    rows = kept_rows(store, shard)
    lengths = [len(text) for text in rows.column("text").to_pylist()]
    table = pa.table({"id": rows.column("id"), "length": lengths}, schema=LENGTHS.arrow)
    return Outcome(((LENGTHS, table),), rows.num_rows, rows.num_rows, {"letters": sum(lengths)})


def select_work(store: Store, shard: Shard) -> Outcome:
    lengths = store.read_table(shard.extras.get(LENGTHS.kind), LENGTHS)
    short = lengths.filter(pc.less(lengths.column("length"), SHORTEST)).column("id").to_pylist()
    drops = _drops("select", "short", short)
    return Outcome(((DROPS, drops),), lengths.num_rows, lengths.num_rows - len(short))


def scrub_work(store: Store, shard: Shard) -> Outcome:
    rows = kept_rows(store, shard)
    table = _rewritten(rows, [text + "!" for text in rows.column("text").to_pylist()])
    return Outcome(((DOCUMENTS, table),), rows.num_rows, rows.num_rows)


def _per_shard(run: Run, stage: Stage, parent: Manifest, work: Any, inputs: Any) -> Manifest:
    request = Request(stage, {}, {"corpus": parent})
    if done := reuse(run, request):
        return done
    shards = open_corpus(run.store, parent).shards
    actions = [Action(inputs(shard), (shard,)) for shard in shards]
    receipts = run_actions(run, request, work, actions)
    measured = LENGTHS if stage is ANNOTATE else None
    return commit_stage(run, request, receipts, shards, measured)


def _select_inputs(shard: Shard) -> dict[str, Any]:
    lengths = shard.extras.get(LENGTHS.kind)
    return {**shard.inputs, "lengths": lengths.data_digest if lengths else ""}


def extract(run: Run, snapshots: Mapping[str, Manifest]) -> Manifest:
    request = Request(EXTRACT, {}, snapshots)
    if done := reuse(run, request):
        return done
    shards = [s for name in sorted(snapshots) for s in snapshot_shards(run.store, snapshots[name])]
    actions = [Action({"documents": s.extras["documents"].data_digest}, (s,)) for s in shards]
    return commit_stage(run, request, run_actions(run, request, extract_work, actions), shards)


def dedup(run: Run, parent: Manifest) -> Manifest:
    request = Request(DEDUP, {}, {"corpus": parent})
    if done := reuse(run, request):
        return done
    shards = open_corpus(run.store, parent).shards
    rows = [
        (row["id"], row["digest"])
        for shard in shards
        for row in live_rows(run.store, shard, columns=["id", "digest"]).to_pylist()
    ]
    survivors: dict[str, str] = {}
    for row, digest in sorted(rows):
        survivors.setdefault(digest, row)
    twins = _drops("dedup", "exact", [row for row, digest in rows if survivors[digest] != row])
    return commit_stage(run, request, verdict_receipts(run, request, shards, twins), shards)


def grow(run: Run, states: Mapping[str, State]) -> Manifest:
    """Every stage in turn, over one source for each of `states`."""
    snapshots = {source: ingest(run, source, state) for source, state in states.items()}
    at = extract(run, snapshots)
    at = _per_shard(run, ANNOTATE, at, annotate_work, lambda shard: shard.inputs)
    # The lengths decide, and they lie beside the text they were measured on.
    at = _per_shard(run, SELECT, at, select_work, _select_inputs)
    at = dedup(run, at)
    return _per_shard(run, SCRUB, at, scrub_work, lambda shard: shard.inputs)


def expected(states: Mapping[str, State]) -> pa.Table:
    """The surviving documents, from the states alone: no store, no shards, no history."""
    kept: dict[str, dict[str, Any]] = {}
    for source, state in states.items():
        for locator, text in state.items():
            if text.strip() and len(text.upper()) >= SHORTEST:
                row = document(source, locator, text.upper())
                twin = kept.get(row["digest"])
                if twin is None or row["id"] < twin["id"]:
                    kept[row["digest"]] = row
    rows = [
        {**row, "text": row["text"] + "!", "digest": text_digest(row["text"] + "!")}
        for row in kept.values()
    ]
    return DOCUMENTS.table(sorted(rows, key=lambda row: str(row["id"])))


def read_live(corpus: Corpus, store: Store) -> pa.Table:
    tables = [live_rows(store, shard) for shard in corpus.shards]
    return pa.concat_tables([DOCUMENTS.empty(), *tables]).sort_by("id")
