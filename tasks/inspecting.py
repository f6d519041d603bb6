"""What became of the documents: a manifest's funnel, its drops by reason, and examples of them.

Plain data out of the store, for whoever shows it: the CLI and the report. A `manifest` here is any
one that came of a corpus, the newest stage first; what led to it is found by following its pins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from llm.errors import DataError
from tasks.store.corpus import Shard, open_corpus, out_ids, snapshot_shards
from tasks.store.records import Manifest, ManifestRef, ObjectRef, Receipt
from tasks.store.schema import DOCUMENTS, DROPS, PAGES, QUARANTINE
from tasks.store.store import Store

SNAPSHOT_STAGES = frozenset({"crawl", "import"})

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
    """Records that could not be read, for one reason, and the first of them by place."""

    source: str
    stage: str
    reason: str
    count: int
    examples: tuple[tuple[str, str | None], ...] = field(default=())
    """(locator, detail)"""


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
    line = lineage(store, manifest)
    sizes = _live_text_bytes(store, line)
    return [
        FunnelRow(
            stage=stage_name(one),
            rows_in=one.rows_in,
            rows_out=one.rows_out,
            drops=one.drops,
            text_bytes=sizes.get(one.ref),
            seconds=one.provenance.get("seconds"),
        )
        for one in line
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
    rows = sorted(rows, key=lambda row: str(row["id"]))[:n]
    ids = [str(row["id"]) for row in rows]
    urls, excerpts = _urls(store, line, ids), _excerpts(store, line, ids)
    return [
        DropSample(**{**row, "url": urls.get(id), "excerpt": excerpts.get(id, "")})
        for id, row in zip(ids, rows, strict=True)
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


def _corpus_line(store: Store, manifest: Manifest) -> list[Manifest]:
    """The stages that see documents: from extract on, without snapshots."""
    return [
        one
        for one in lineage(store, manifest)
        if one.stage == "extract" or "corpus" in one.inputs and one.receipts is not None
    ]


def _before(store: Store, manifest: Manifest) -> tuple[Shard, ...]:
    """The shards as the stage of `manifest` found them."""
    if manifest.stage == "extract":
        sources = [store.manifest(manifest.inputs[role]) for role in sorted(manifest.inputs)]
        return tuple(shard for one in sources for shard in snapshot_shards(store, one))
    return open_corpus(store, store.manifest(manifest.inputs["corpus"])).shards


def _first_dropped(
    store: Store, manifest: Manifest, reason: str, n: int
) -> Iterator[dict[str, object]]:
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
            if schema.kind in shard.extras:
                rows = _rows(store, shard.extras[schema.kind], ids, ["id", "url"], schema)
                found |= {row["id"]: row["url"] for row in rows if row["id"] not in shard.dead}
    return found


def _excerpts(store: Store, line: Sequence[Manifest], ids: Sequence[str]) -> dict[str, str]:
    """The beginning of each text, out of the scrubbed corpus or scrubbed here and now."""
    texts: dict[str, str] = {}
    scrubbed = next((one for one in line if one.stage == "scrub"), None)
    if scrubbed is not None:
        texts = _texts(store, store.receipts(scrubbed), ids)
    raw = _texts(store, store.receipts(line[0]), [id for id in ids if id not in texts])
    if raw:
        from tasks.scrubbing import ScrubConfig, Scrubber, scrub_text

        settings = scrubbed.payload["config"] if scrubbed else {}
        fields = {name: settings[name] for name in ScrubConfig.model_fields if name in settings}
        scrubber = Scrubber(ScrubConfig.model_validate(fields))
        texts |= {id: scrub_text(text, scrubber)[0] for id, text in raw.items()}
    return {id: _shortened(text) for id, text in texts.items()}


def _texts(store: Store, receipts: Sequence[Receipt], ids: Sequence[str]) -> dict[str, str]:
    if not ids:
        return {}
    return {
        row["id"]: row["text"][:_VIEWED_CHARACTERS]
        for receipt in receipts
        for row in _rows(store, receipt.output(DOCUMENTS.kind), ids, ["id", "text"], DOCUMENTS)
    }


def _rows(
    store: Store,
    ref: ObjectRef | None,
    ids: Sequence[str],
    columns: list[str],
    schema: object,
) -> list[dict[str, str]]:
    """The rows with those ids, of an object whose texts are read only if it holds one of them."""
    raise NotImplementedError
