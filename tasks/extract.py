"""Extract: the text of every page and imported record, as documents; or why it is none.

`extract_shard` turns crawled pages into documents, `normalize_shard` does the same for records
that were imported as text. Both give every input row back exactly once: as a document, or as a
drop that says why it is none. How text comes out of a page is in `tasks/page_text.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pyarrow as pa

from llm.errors import DataError
from tasks.as_task import as_task
from tasks.page_text import (
    ExtractConfig,
    Extracted,
    Rejected,
    checked,
    extract_page,
    normalize_text,
    primary_language,
)
from tasks.payloads import read_payloads
from tasks.store.corpus import commit_stage, snapshot_shards
from tasks.store.records import Manifest, ObjectRef
from tasks.store.rows import canonical_meta, text_bytes, text_digest
from tasks.store.run import Action, Outcome, Request, Run, reuse, run_actions
from tasks.store.schema import DOCUMENTS, DROPS, PAGES
from tasks.store.stage import Stage
from tasks.store.store import Store

STAGE = Stage("extract", 2, ("ftfy", "lxml", "resiliparse", "trafilatura", "unicode"))


def extract_shard(
    pages: pa.Table, payloads: Iterable[bytes | None], config: ExtractConfig
) -> tuple[pa.Table, pa.Table]:
    """The documents and the drops of a shard of crawled pages, each sorted by id.

    `pages` has the columns of PAGES; `payloads` gives the body of each row in the same order, None
    where there is none. Where the row states a license (the source's config does), it stands;
    elsewhere the page's own is taken. Raises DataError if the two differ in length.
    """
    columns = ["id", "url", "source", "license", "status", "content_type", "fetched_at"]
    documents: list[dict[str, object]] = []
    drops: list[dict[str, object]] = []
    rows = pages.select(columns).to_pylist()
    bodies = iter(payloads)
    for i in range(len(rows)):
        row, rows[i] = rows[i], {}
        try:
            payload = next(bodies)
        except StopIteration:
            raise DataError(f"found {i} payloads for {len(rows)} pages; give one a page") from None
        result = _extract_row(row, payload, config)
        if isinstance(result, Rejected):
            drops.append(_drop(row["id"], result))
        else:
            documents.append(_document(row, result))
    if next(bodies, _END) is not _END:
        raise DataError(f"found more payloads than the {len(rows)} pages; give one a page")
    return _sorted(DOCUMENTS.table(documents)), _sorted(DROPS.table(drops))


def normalize_shard(documents: pa.Table, config: ExtractConfig) -> tuple[pa.Table, pa.Table]:
    """Imported documents in normal form, and drops for those with no text; sorted by id.

    The digest is recomputed from the text; language tags keep their primary subtag.
    """
    kept: list[dict[str, object]] = []
    drops: list[dict[str, object]] = []
    for batch in documents.select(DOCUMENTS.arrow.names).to_batches(max_chunksize=1024):
        for row in batch.to_pylist():
            result = checked(normalize_text(row["text"] or "", config))
            if isinstance(result, Rejected):
                drops.append(_drop(row["id"], result))
                continue
            row["text"], row["digest"] = result, text_digest(result)
            row["language"] = primary_language(row["language"])
            kept.append(row)
    return _sorted(DOCUMENTS.table(kept)), _sorted(DROPS.table(drops))


def _extract_row(
    row: dict[str, object], payload: bytes | None, config: ExtractConfig
) -> Extracted | Rejected:
    status = row["status"]
    if isinstance(status, int) and not 200 <= status < 300:
        return Rejected("http_status", f"HTTP {status}", float(status))
    if payload is None:
        return Rejected("no_payload", "the page has no stored body")
    content_type, url = row["content_type"], row["url"]
    return extract_page(
        payload,
        content_type if isinstance(content_type, str) else None,
        url if isinstance(url, str) else "",
        config,
    )


def _document(row: dict[str, object], page: Extracted) -> dict[str, object]:
    return {
        "id": row["id"],
        "digest": text_digest(page.text),
        "text": page.text,
        "url": row["url"],
        "source": row["source"],
        "license": row["license"] or page.license,
        "language": page.language,
        "fetched_at": row["fetched_at"],
        "meta": canonical_meta({"title": page.title} if page.title else {}),
    }


def _drop(id_: object, why: Rejected) -> dict[str, object]:
    return {
        "id": id_,
        "stage": STAGE.name,
        "reason": why.reason,
        "value": why.value,
        "threshold": why.threshold,
        "detail": why.detail,
    }


_END = object()


def _sorted(table: pa.Table) -> pa.Table:
    return table.sort_by("id").combine_chunks()


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
    _tell_of_removed_sources(run, request)
    if done := reuse(run, request):
        return done
    shards = [
        shard
        for role in sorted(request.inputs)
        for shard in snapshot_shards(run.store, request.inputs[role])
    ]
    actions = []
    for shard in shards:
        rows = shard.extras.get(PAGES.kind) or shard.extras[DOCUMENTS.kind]
        actions.append(Action({"rows": rows.data_digest}, (rows, config)))
    receipts = run_actions(run, request, extract_work, actions)
    return commit_stage(run, request, receipts, shards)


def _tell_of_removed_sources(run: Run, request: Request) -> None:
    """Says how many documents leave with the sources that the last run had and this one has not."""
    before = run.previous.get(STAGE.name)
    for role, pin in sorted(before.inputs.items()) if before else ():
        if role not in request.inputs:
            count = run.store.manifest(pin).rows_out
            run.say(
                f"{role.removeprefix('source/')} is no longer among the sources: "
                f"its {count:,} documents leave the corpus"
            )
