"""What became of the documents: the funnel, the drops by reason, and examples of them.

Plain data out of the store, for whoever shows it: the CLI and the report. A `line` is the
manifests of the stages that led to a corpus, in order. A run knows its own (`line_of`); of a
manifest alone it is found by following pins (`lineage`), which tells how those very documents came
to be. The two differ where a stage was reused because its input came out the same in another way:
what was dropped on that other way is in the run's line only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from llm import files
from llm.errors import DataError
from tasks.store.corpus import Shard, open_corpus, out_ids, snapshot_shards
from tasks.store.records import Manifest, ManifestRef, ObjectRef
from tasks.store.run import Visit
from tasks.store.schema import DOCUMENTS, DROPS, PAGES, QUARANTINE, Schema
from tasks.store.store import Store
from tasks.takedown import read_list

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


def line_of(visits: Iterable[Visit]) -> list[Manifest]:
    """The manifests that a run came through, each once."""
    made = [visit.result for visit in visits if isinstance(visit.result, Manifest)]
    return list({manifest.ref: manifest for manifest in made}.values())


def funnel(store: Store, line: Sequence[Manifest]) -> list[FunnelRow]:
    """What went into and came out of the snapshots, and every stage that sees documents."""
    stages = _corpus_stages(line)
    sizes = _live_text_bytes(store, stages)
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
        if one.stage in SNAPSHOT_STAGES or one in stages
    ]


def drops_by_reason(line: Sequence[Manifest]) -> list[DropCount]:
    """Drops of documents by stage and reason: stages in order, the most frequent reason first."""
    return [
        DropCount(one.stage, reason, count)
        for one in _corpus_stages(line)
        for reason, count in sorted(one.drops.items(), key=lambda item: (-item[1], item[0]))
    ]


def drop_samples(store: Store, line: Sequence[Manifest], reason: str, n: int) -> list[DropSample]:
    """The `n` first documents dropped for a reason, by id: ids are hashes, so a uniform sample.

    Raises DataError, naming the reasons there are, when none was dropped for this one.
    """
    stages = [one for one in _corpus_stages(line) if reason in one.drops]
    if not stages:
        known = sorted({drop.reason for drop in drops_by_reason(line)})
        raise DataError(
            f"nothing was dropped as '{reason}'; reasons there are: {', '.join(known) or 'none'}"
        )
    found = [sample for one in stages for sample in _samples(store, one, line, [reason], n)]
    return sorted(found, key=lambda sample: sample.id)[:n]


def drop_examples(store: Store, line: Sequence[Manifest], n: int) -> list[DropSample]:
    """The `n` first documents by id that each stage dropped for each reason."""
    stages = _corpus_stages(line)
    return [x for one in stages for x in _samples(store, one, line, sorted(one.drops), n)]


def urls_of(store: Store, manifest: Manifest, ids: Sequence[str]) -> dict[str, str]:
    """Where documents came from, as their sources had it when the stage saw them; what has no URL
    is left out."""
    return {id_: url for id_, url in _urls(store, manifest, ids).items() if url}


def quarantined(store: Store, line: Sequence[Manifest], n: int) -> list[Quarantined]:
    """What each source could not read, by reason, the most frequent first, `n` examples each."""
    groups: dict[tuple[str, str, str], list[tuple[str, str | None]]] = {}
    for one in line:
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


def _corpus_stages(line: Sequence[Manifest]) -> list[Manifest]:
    """The stages that see documents shard by shard: from extract on, without the dataset."""
    return [one for one in line if one.stage == "extract" or _adds_to_shards(one)]


def _adds_to_shards(manifest: Manifest) -> bool:
    return "corpus" in manifest.inputs and manifest.stage != "dataset"


def shards_before(store: Store, manifest: Manifest) -> tuple[Shard, ...]:
    """The shards as the stage of `manifest` found them."""
    if manifest.stage == "extract":
        sources = [store.manifest(manifest.inputs[role]) for role in sorted(manifest.inputs)]
        return tuple(shard for one in sources for shard in snapshot_shards(store, one))
    return open_corpus(store, store.manifest(manifest.inputs["corpus"])).shards


def _samples(
    store: Store, manifest: Manifest, line: Sequence[Manifest], reasons: Sequence[str], n: int
) -> list[DropSample]:
    """The first `n` documents by id that the stage of `manifest` dropped for each reason."""
    rows = _first_dropped(store, manifest, reasons, n) if reasons else []
    if not rows:
        return []
    ids = [row["id"] for row in rows]
    urls, texts = _urls(store, manifest, ids), excerpts(store, manifest, line, ids)
    return [
        DropSample(**row, url=urls.get(row["id"]), excerpt=texts.get(row["id"], "")) for row in rows
    ]


def _first_dropped(
    store: Store, manifest: Manifest, reasons: Sequence[str], n: int
) -> list[dict[str, Any]]:
    """The first `n` live rows by id that a stage dropped for each of the reasons."""
    found = {reason: [DROPS.empty()] for reason in reasons}
    shards = shards_before(store, manifest)
    for shard, receipt in zip(shards, store.receipts(manifest), strict=True):
        if receipt.drops.keys().isdisjoint(found):
            continue
        rows = store.read_table(receipt.output(DROPS.kind), DROPS)
        gone = pc.is_in(rows.column("id"), value_set=out_ids(store, shard))
        rows = rows.filter(pc.invert(gone)).sort_by("id")
        for reason, parts in found.items():
            parts.append(rows.filter(pc.equal(rows.column("reason"), reason)).slice(0, n))
    return [
        row
        for parts in found.values()
        for row in pa.concat_tables(parts).sort_by("id").slice(0, n).to_pylist()
    ]


def _urls(store: Store, manifest: Manifest, ids: Sequence[str]) -> dict[str, str]:
    """Where documents came from, as their sources had it when the stage saw them."""
    while manifest.stage != "extract":
        manifest = store.manifest(manifest.inputs["corpus"])
    found: dict[str, str] = {}
    for shard in shards_before(store, manifest):
        for schema in (PAGES, DOCUMENTS):
            rows = _wanted(store, shard.extras.get(schema.kind), schema, ids, ["id", "url"])
            found |= {row["id"]: row["url"] for row in rows if row["id"] not in shard.dead}
    return found


def excerpts(
    store: Store, manifest: Manifest, line: Sequence[Manifest], ids: Sequence[str]
) -> dict[str, str]:
    """The beginning of each text as the stage saw it, scrubbed here and now if it was not yet; none
    of what is taken down."""
    if manifest.stage in ("extract", "takedown"):
        return {}
    found: dict[str, str] = {}
    taken = read_list(store)
    for shard in shards_before(store, manifest):
        rows = _wanted(store, shard.text, DOCUMENTS, ids, ["id", "url", "text"])
        for row in taken.hide(DOCUMENTS.table(rows)).select(["id", "text"]).to_pylist():
            if row["id"] not in shard.dead:
                found[row["id"]] = row["text"][:_VIEWED_CHARACTERS]
    if found and all(one.stage != "scrub" for one in lineage(store, manifest)):
        found = _scrubbed(found, line)
    return {id_: _shortened(text) for id_, text in found.items()}


def _scrubbed(texts: Mapping[str, str], line: Sequence[Manifest]) -> dict[str, str]:
    """Texts scrubbed as the line does it, but for what only a model finds that is not at hand."""
    from tasks.scrub import Scrubber, patterns_of, scrub_text

    scrubs = [one.payload["config"] for one in line if one.stage == "scrub"]
    scrubber = Scrubber(patterns_of(scrubs[0] if scrubs else {}))
    return {id_: scrub_text(text, scrubber)[0] for id_, text in texts.items()}


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


def _live_text_bytes(store: Store, stages: Sequence[Manifest]) -> dict[ManifestRef, int]:
    """UTF-8 bytes of the live text after each stage; empty when there is too much to read."""
    corpora = {one.ref: open_corpus(store, one).shards for one in stages}
    texts = {shard.text for shards in corpora.values() for shard in shards if shard.text}
    if sum(ref.bytes for ref in texts) > MEASURED_BYTES:
        return {}
    sizes = {ref: _sizes(store, ref) for ref in texts}

    def live(shard: Shard) -> int:
        if shard.text is None:
            return 0
        table = sizes[shard.text]
        gone = pc.is_in(table.column("id"), value_set=out_ids(store, shard))
        return pc.sum(table.filter(pc.invert(gone)).column("bytes")).as_py() or 0

    return {ref: sum(map(live, shards)) for ref, shards in corpora.items()}


def _sizes(store: Store, ref: ObjectRef) -> pa.Table:
    rows = store.read_table(ref, DOCUMENTS, ["id", "text"])
    return pa.table({"id": rows["id"], "bytes": pc.binary_length(rows["text"])})
