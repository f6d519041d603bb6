"""What became of the documents: a manifest's funnel, its drops by reason, and examples of them.

Plain data out of the store, for whoever shows it: the CLI and the report. A `manifest` here is any
one that came of a corpus, the newest stage first; what led to it is found by following its pins.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from llm import files
from llm.errors import DataError
from tasks.store.corpus import Shard, open_corpus, out_ids, snapshot_shards
from tasks.store.records import Manifest, ManifestRef, ObjectRef
from tasks.store.schema import DOCUMENTS, DROPS, PAGES, QUARANTINE, Schema
from tasks.store.store import Store

SNAPSHOT_STAGES = frozenset({"crawl", "import"})
_WITHOUT_SHARDS = frozenset({"dataset"})

# Counting the bytes of live text reads the text: beyond so many stored bytes it is left out.
MEASURED_BYTES = 4 << 30

# An excerpt is cut out of this much of a text, so that scrubbing one on view stays quick.
_VIEWED_CHARACTERS, EXCERPT_CHARACTERS = 4000, 240


@dataclass(frozen=True)
class FunnelRow:
    """A stage's live rows in and out, drops by reason, text left in bytes (None: not measured),
    and the seconds that its actions took, summed over workers (None: not recorded)."""

    stage: str
    rows_in: int
    rows_out: int
    drops: dict[str, int]
    text_bytes: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class DropCount:
    """How many live documents a stage dropped for one reason."""

    stage: str
    reason: str
    count: int


@dataclass(frozen=True)
class DropSample:
    """A dropped document. `excerpt` is scrubbed; empty where there never was a text."""

    id: str
    stage: str
    reason: str
    url: str | None
    value: float | None
    threshold: float | None
    detail: str | None
    excerpt: str


@dataclass(frozen=True)
class Quarantined:
    """Records of a source that could not be read, for one reason; `examples` are the first of
    them as (locator, detail)."""

    source: str
    stage: str
    reason: str
    count: int
    examples: tuple[tuple[str, str | None], ...]


def lineage(store: Store, manifest: Manifest) -> list[Manifest]:
    """The manifests that led to this one, oldest first, and itself last."""
    found: dict[ManifestRef, Manifest] = {}

    def follow(one: Manifest) -> None:
        for role in sorted(one.inputs):
            if one.inputs[role] not in found:
                follow(store.manifest(one.inputs[role]))
        found[one.ref] = one

    follow(manifest)
    return list(found.values())


def stage_name(manifest: Manifest) -> str:
    """The stage, with its source where it has one: `crawl python-docs`."""
    source = manifest.summary.get("source") if manifest.stage in SNAPSHOT_STAGES else None
    return f"{manifest.stage} {source}" if source else manifest.stage


def funnel(store: Store, manifest: Manifest) -> list[FunnelRow]:
    """Every stage that led to the manifest, in order."""
    line = _corpus_line(store, manifest)
    sizes = _live_text_bytes(store, line) if line else {}
    return [
        FunnelRow(
            stage=stage_name(one),
            rows_in=one.rows_in,
            rows_out=one.rows_out,
            drops=one.drops,
            text_bytes=sizes.get(one.ref),
            seconds=one.provenance.get("seconds"),
        )
        for one in lineage(store, manifest)
    ]


def drops_by_reason(store: Store, manifest: Manifest) -> list[DropCount]:
    """Drops of documents by stage and reason: stages in order, the most frequent reason first."""
    return [
        DropCount(one.stage, reason, count)
        for one in _corpus_line(store, manifest)
        for reason, count in sorted(one.drops.items(), key=lambda item: (-item[1], item[0]))
    ]


def drop_samples(store: Store, manifest: Manifest, reason: str, n: int) -> list[DropSample]:
    """The `n` first documents dropped for a reason, by id: ids are hashes, so a uniform sample.

    Raises DataError, naming the reasons there are, when none was dropped for this one.
    """
    line = _corpus_line(store, manifest)
    stages = [one for one in line if reason in one.drops]
    if not stages:
        known = sorted({name for one in line for name in one.drops})
        raise DataError(
            f"nothing was dropped as '{reason}'; reasons there are: {', '.join(known) or 'none'}"
        )
    rows = [row for one in stages for row in _first_dropped(store, one, reason, n)]
    rows = sorted(rows, key=lambda row: row["id"])[:n]
    ids = [row["id"] for row in rows]
    urls, excerpts = _urls(store, line, ids), _excerpts(store, line, ids)
    return [
        DropSample(**row, url=urls.get(row["id"]), excerpt=excerpts.get(row["id"], ""))
        for row in rows
    ]


def quarantined(store: Store, manifest: Manifest, n: int) -> list[Quarantined]:
    """What each source could not read, by reason, the most frequent first, `n` examples each."""
    groups: dict[tuple[str, str, str], list[tuple[str, str | None]]] = {}
    for one in lineage(store, manifest):
        for ref in one.objects.get(QUARANTINE.kind, ()):
            for row in store.read_table(ref, QUARANTINE).to_pylist():
                key = (row["source"], row["stage"], row["reason"])
                groups.setdefault(key, []).append((row["locator"], row["detail"]))
    found = [
        Quarantined(*key, len(rows), tuple(sorted(rows, key=lambda row: row[0])[:n]))
        for key, rows in groups.items()
    ]
    return sorted(found, key=lambda one: (one.source, -one.count, one.stage, one.reason))


def last_samples(store: Store, trained: Manifest) -> list[tuple[str, str]]:
    """(prompt, continuation) of the last samples drawn in a training; empty when there are none."""
    urls = files.list_urls(f"{store.root}/{trained.summary['run']}/samples")
    if not urls:
        return []
    drawn = json.loads(files.read_bytes(urls[-1]))["samples"]
    return [(sample["prompt"], sample["text"]) for sample in drawn]


def _corpus_line(store: Store, manifest: Manifest) -> list[Manifest]:
    """The stages that see documents: from extract on, without snapshots."""
    return [
        one
        for one in lineage(store, manifest)
        if one.stage == "extract" or ("corpus" in one.inputs and one.stage not in _WITHOUT_SHARDS)
    ]


def _before(store: Store, manifest: Manifest) -> tuple[Shard, ...]:
    """The shards as the stage of `manifest` found them."""
    if manifest.stage == "extract":
        sources = [store.manifest(manifest.inputs[role]) for role in sorted(manifest.inputs)]
        return tuple(shard for one in sources for shard in snapshot_shards(store, one))
    return open_corpus(store, store.manifest(manifest.inputs["corpus"])).shards


def _first_dropped(
    store: Store, manifest: Manifest, reason: str, n: int
) -> Iterator[dict[str, Any]]:
    """The first `n` live rows by id that a stage dropped for `reason`."""
    found = [DROPS.empty()]
    shards = _before(store, manifest)
    for shard, receipt in zip(shards, store.receipts(manifest), strict=True):
        if reason in receipt.drops:
            rows = store.read_table(receipt.output(DROPS.kind), DROPS)
            rows = rows.filter(pc.equal(rows.column("reason"), reason))
            gone = pc.is_in(rows.column("id"), value_set=out_ids(store, shard))
            found.append(rows.filter(pc.invert(gone)))
    yield from pa.concat_tables(found).sort_by("id").slice(0, n).to_pylist()


def _urls(store: Store, line: Sequence[Manifest], ids: Sequence[str]) -> dict[str, str]:
    """Where documents came from, as their sources had it."""
    found: dict[str, str] = {}
    for shard in _before(store, line[0]):
        for schema in (PAGES, DOCUMENTS):
            rows = _wanted(store, shard.extras.get(schema.kind), schema, ids, ["id", "url"])
            found |= {row["id"]: row["url"] for row in rows if row["id"] not in shard.dead}
    return found


def _excerpts(store: Store, line: Sequence[Manifest], ids: Sequence[str]) -> dict[str, str]:
    """The beginning of each text, out of the scrubbed corpus or scrubbed here and now."""
    texts: dict[str, str] = {}
    scrubbed = next((one for one in line if one.stage == "scrub"), None)
    if scrubbed is not None:
        texts = _texts(store, line[0], scrubbed, ids)
    raw = _texts(store, line[0], line[0], [id for id in ids if id not in texts])
    if raw:
        from tasks.scrub import Scrubber, ScrubConfig, scrub_text

        config = scrubbed.payload["config"] if scrubbed else {}
        scrubber = Scrubber(ScrubConfig.model_validate(config))
        texts |= {id: scrub_text(text, scrubber)[0] for id, text in raw.items()}
    return {id: _shortened(text) for id, text in texts.items()}


def _texts(
    store: Store, extracted: Manifest, written: Manifest, ids: Sequence[str]
) -> dict[str, str]:
    """The beginnings of texts as the stage of `written` wrote them; dead rows have none."""
    found: dict[str, str] = {}
    for shard, receipt in zip(_before(store, extracted), store.receipts(written), strict=True):
        ref = receipt.output(DOCUMENTS.kind)
        for row in _wanted(store, ref, DOCUMENTS, ids, ["id", "text"]):
            if row["id"] not in shard.dead:
                found[row["id"]] = row["text"][:_VIEWED_CHARACTERS]
    return found


def _wanted(
    store: Store, ref: ObjectRef | None, schema: Schema, ids: Sequence[str], columns: list[str]
) -> list[dict[str, str]]:
    """The rows of an object with those ids; it is only read in full where it holds one."""
    wanted = pa.array(ids, pa.string())
    held = store.read_table(ref, schema, ["id"]).column("id")
    if not pc.any(pc.is_in(held, value_set=wanted)).as_py():
        return []
    rows = store.read_table(ref, schema, columns)
    return rows.filter(pc.is_in(rows.column("id"), value_set=wanted)).to_pylist()


def _shortened(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= EXCERPT_CHARACTERS else words[: EXCERPT_CHARACTERS - 1] + "…"


def _live_text_bytes(store: Store, line: Sequence[Manifest]) -> dict[ManifestRef, int]:
    """UTF-8 bytes of the live text after each stage that sees documents; empty when too large."""
    extracted = line[0]
    before = _before(store, extracted)
    refs = [receipt.output(DOCUMENTS.kind) for receipt in store.receipts(extracted)]
    if sum(ref.bytes for ref in refs if ref) > MEASURED_BYTES:
        return {}
    live = [
        _without(_sizes(store, ref), shard.dead) for ref, shard in zip(refs, before, strict=True)
    ]
    totals: dict[ManifestRef, int] = {}
    for one in line:
        for index, receipt in enumerate(store.receipts(one)):
            if one.stage == "scrub":
                kept = live[index].column("id").combine_chunks()
                sizes = _sizes(store, receipt.output(DOCUMENTS.kind))
                live[index] = sizes.filter(pc.is_in(sizes.column("id"), value_set=kept))
            dropped = store.read_table(receipt.output(DROPS.kind), DROPS, ["id"])
            live[index] = _without(live[index], dropped.column("id").to_pylist())
        totals[one.ref] = sum(pc.sum(part.column("bytes")).as_py() or 0 for part in live)
    return totals


def _sizes(store: Store, ref: ObjectRef | None) -> pa.Table:
    rows = store.read_table(ref, DOCUMENTS, ["id", "text"])
    return pa.table({"id": rows["id"], "bytes": pc.binary_length(rows["text"])})


def _without(sizes: pa.Table, ids: Sequence[str]) -> pa.Table:
    gone = pc.is_in(sizes.column("id"), value_set=pa.array(ids, pa.string()))
    return sizes.filter(pc.invert(gone))
