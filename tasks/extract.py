"""tmp"""

from __future__ import annotations

from collections.abc import Mapping

from tasks.as_task import as_task
from tasks.extracting import ExtractConfig, extract_shard, normalize_shard
from tasks.payloads import read_payloads
from tasks.store.corpus import commit_stage, snapshot_shards
from tasks.store.records import Manifest, ObjectRef
from tasks.store.rows import text_bytes
from tasks.store.run import Action, Outcome, Request, Run, reuse, run_actions
from tasks.store.schema import DOCUMENTS, DROPS, PAGES
from tasks.store.stage import Stage
from tasks.store.store import Store

STAGE = Stage("extract", 1, ("ftfy", "lxml", "resiliparse", "trafilatura"))


def extract_request(snapshots: Mapping[str, Manifest], config: ExtractConfig) -> Request:
    """What decides the corpus's text: the snapshots by source name, and the config."""
    return Request(STAGE, config.model_dump(), {f"source/{k}": v for k, v in snapshots.items()})


def extract_work(store: Store, rows: ObjectRef, config: ExtractConfig) -> Outcome:
    """Text of one snapshot shard: out of stored responses, or of documents as imported."""
    if rows.kind == PAGES.kind:
        table = store.read_table(rows, PAGES)
        documents, drops = extract_shard(table, read_payloads(store, table), config)
    else:
        table = store.read_table(rows, DOCUMENTS)
        documents, drops = normalize_shard(table, config)
    return Outcome(
        tables=((DOCUMENTS, documents), (DROPS, drops)),
        rows_in=table.num_rows,
        rows_out=documents.num_rows,
        stats={"text_bytes": text_bytes(documents)},
    )


@as_task("extract")
def extract(run: Run, snapshots: Mapping[str, Manifest], config: ExtractConfig) -> Manifest:
    """Main text of every document, normalized; one shard of text per shard of the snapshots."""
    request = extract_request(snapshots, config)
    if done := reuse(run, request):
        return done
    shards = [
        shard
        for role in sorted(request.inputs)
        for shard in snapshot_shards(run.store, request.inputs[role])
    ]
    actions = []
    for shard in shards:
        (rows,) = (
            shard.extras[kind] for kind in (PAGES.kind, DOCUMENTS.kind) if kind in shard.extras
        )
        actions.append(Action({"rows": rows.data_digest}, (rows, config)))
    receipts = run_actions(run, request, extract_work, actions)
    return commit_stage(run, request, receipts, shards)
