"""What became of one document: from its source to the models that were trained on it.

Everything is read out of the store as it was recorded; nothing is computed anew but an excerpt of a
text that was never scrubbed. A line's stages can go back to different text (where one was reused,
since its input came out the same in another way), so the document is looked for in each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm.errors import DataError
from tasks import registry
from tasks.decontaminate import LEDGER
from tasks.inspecting import excerpts, stage_name
from tasks.locating import (
    Found,
    Place,
    TokenPlace,
    dataset_rows,
    datasets,
    extract_of,
    find_place,
    rows_with,
)
from tasks.matches import MATCHES
from tasks.refs import Named
from tasks.signals import SIGNALS
from tasks.split import HELDOUT
from tasks.store.corpus import VERDICTS, open_corpus
from tasks.store.records import Manifest, ManifestRef, ObjectRef, Receipt
from tasks.store.schema import (
    CLAIMS,
    CLUSTERS,
    DOCUMENTS,
    DROPS,
    FINDINGS,
    LABELS,
    PAGES,
    REDACTIONS,
    TOKENS,
)
from tasks.store.store import Store
from tasks.takedown import read_list

EXCERPT_CHARACTERS, AROUND_TOKENS = 400, 40
_DECIDES = VERDICTS | {"extract", "select"}


@dataclass(frozen=True)
class Origin:
    """Where a document came from: a response in a WARC object, or files of an import.

    `state` says what became of it at the source: live, superseded or gone. `versions` counts how
    often the source has given it; `previous` ones are in the store's history.
    """

    kind: str
    source: str
    locator: str | None
    fetched_at: str | None
    state: str
    versions: int
    status: int | None = None
    content_type: str | None = None
    payload_sha256: str | None = None
    payload_bytes: int | None = None
    warc: str | None = None
    warc_offset: int | None = None
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decision:
    """What a stage did with the document: kept, measured or dropped it, and by what rule."""

    stage: str
    outcome: str
    reason: str | None = None
    value: float | None = None
    threshold: float | None = None
    detail: str | None = None


@dataclass(frozen=True)
class Member:
    """A document of a cluster of duplicates; the survivor has no `reason`. `similarity` is with the
    survivor, under the threshold where only others join the two."""

    id: str
    url: str | None
    source: str | None
    survived: bool
    reason: str | None = None
    similarity: float | None = None


@dataclass(frozen=True)
class InDataset:
    """A dataset that holds the document: the split, the token row, the `offset` of its first token
    in its shard's flat sequence, and the models trained on the dataset."""

    name: str
    fingerprint: str
    split: str
    object: str
    row: int
    offset: int
    tokens: int
    models: tuple[str, ...]


@dataclass(frozen=True)
class Trace:
    """The story of a document. `left` is the stage that dropped it, None for a live one;
    `token` and `text` (around the token, or the beginning) are of the scrubbed text."""

    id: str
    corpus: str
    how: str
    others: tuple[str, ...]
    left: str | None
    document: Mapping[str, Any]
    origin: Origin | None
    decisions: tuple[Decision, ...]
    signals: Mapping[str, Any]
    cluster: tuple[Member, ...]
    redactions: Mapping[str, int]
    redacted_spans: tuple[Mapping[str, Any], ...]
    matches: tuple[Mapping[str, Any], ...]
    leaks: tuple[Mapping[str, Any], ...]
    takedown: Mapping[str, Any] | None
    split: str | None
    token: TokenPlace | None
    text: str
    datasets: tuple[InDataset, ...]


@dataclass(frozen=True)
class _Step:
    """A stage of a line, and its receipt for the shard that holds the document."""

    manifest: Manifest
    receipt: Receipt

    def rows(self, store: Store, schema: Any, id_: str) -> list[dict[str, Any]]:
        return rows_with(store, self.receipt.output(schema.kind), schema, [id_])


def trace(store: Store, found: Found, token: TokenPlace | None = None) -> Trace:
    """The story of a document that was found. Raises DataError when nothing tells of it."""
    line, id_ = found.corpus.line, found.id
    place, steps = _follow(store, line, id_)
    origin = _origin(store, place, id_) if place else None
    decisions = _decisions(store, place, steps, id_)
    last = decisions[-1] if decisions else None
    left = last.stage if last and last.outcome == "dropped" else None
    document = _document(store, line, place, steps, id_)
    at = {step.manifest.stage: step for step in steps}
    spans = at["scrub"].rows(store, REDACTIONS, id_) if "scrub" in at else []
    labels = at["split"].rows(store, LABELS, id_) if "split" in at else []
    taken = _takedown(store, id_, document.get("url"))
    return Trace(
        id=id_,
        corpus=found.corpus.name,
        how=found.how,
        others=found.others,
        left=left,
        document=document,
        origin=origin,
        decisions=tuple(decisions),
        signals=_signals(store, at, id_),
        cluster=tuple(_cluster(store, at, id_)),
        redactions=_redactions(store, at, id_),
        redacted_spans=tuple(_without_id(spans)),
        matches=tuple(_matches(store, at, id_)),
        leaks=tuple(_leaks(store, at, id_)),
        takedown=taken,
        split=labels[0]["split"] if labels and left is None else None,
        token=token,
        text="" if taken else _text(store, found, token, steps, left),
        datasets=tuple(_datasets(store, found, id_)),
    )


def _follow(store: Store, line: Sequence[Manifest], id_: str) -> tuple[Place | None, list[_Step]]:
    """Where the document lies, and the stages of the line that came by its shard."""
    places: dict[ManifestRef, Place | None] = {}
    steps = []
    for manifest in line:
        extract = extract_of(store, manifest)
        if extract is None or manifest.receipts is None:
            continue
        if extract.ref not in places:
            places[extract.ref] = find_place(store, extract, id_)
        place = places[extract.ref]
        if place is not None:
            steps.append(_Step(manifest, store.receipts(manifest)[place.shard]))
    return next((place for place in places.values() if place), None), steps


# the source


def _origin(store: Store, place: Place, id_: str) -> Origin:
    schema = PAGES if place.ref.kind == PAGES.kind else DOCUMENTS
    columns = [name for name in schema.arrow.names if name != "text"]
    (row,) = rows_with(store, place.ref, schema, [id_], columns)
    told = ("status", "content_type", "payload_sha256", "payload_bytes", "warc", "warc_offset")
    said = row.get("payload_sha256") or row.get("digest")
    claims = [
        claim
        for ref in place.snapshot.objects.get(CLAIMS.kind, ())
        for claim in rows_with(store, ref, CLAIMS, [id_], ["file", "digest"])
    ]
    return Origin(
        kind=place.snapshot.stage,
        source=row["source"],
        locator=row["url"],
        fetched_at=row["fetched_at"],
        state=place.dead or "live",
        versions=place.versions,
        files=tuple(sorted({claim["file"] for claim in claims if claim["digest"] == said})),
        **{name: row.get(name) for name in told},
    )


def _document(
    store: Store, line: Sequence[Manifest], place: Place | None, steps: Sequence[_Step], id_: str
) -> dict[str, Any]:
    """Who the document is, as the last stage that wrote its text has it."""
    columns = [name for name in DOCUMENTS.arrow.names if name != "text"]
    for step in reversed(steps):
        ref = step.receipt.output(DOCUMENTS.kind)
        for row in rows_with(store, ref, DOCUMENTS, [id_], columns) if ref else ():
            return {**row, "meta": json.loads(row["meta"] or "{}")}
    if place is not None:
        schema = PAGES if place.ref.kind == PAGES.kind else DOCUMENTS
        named = ["id", "url", "source", "license", "fetched_at"]
        return rows_with(store, place.ref, schema, [id_], named)[0]
    # Held out by an earlier corpus, and no longer at its source.
    pinned = [ref for one in line for ref in one.objects.get(HELDOUT.kind, ())]
    for row in rows_with(store, pinned[0], HELDOUT, [id_], columns) if pinned else ():
        return {**row, "meta": json.loads(row["meta"] or "{}")}
    raise DataError(f"nothing in the store tells of document {id_} any more")


# the stages


def _decisions(
    store: Store, place: Place | None, steps: Sequence[_Step], id_: str
) -> list[Decision]:
    """What each stage did, up to the one that dropped the document."""
    if place is None:
        return []
    if place.dead is not None:
        return [Decision(stage_name(place.snapshot), "dropped", place.dead)]
    found = [Decision(stage_name(place.snapshot), "kept")]
    for step in steps:
        stage = step.manifest.stage
        for row in step.rows(store, DROPS, id_):
            told = {name: row[name] for name in ("reason", "value", "threshold", "detail")}
            return [*found, Decision(stage, "dropped", **told)]
        found.append(Decision(stage, "kept" if stage in _DECIDES else "measured"))
    return found


def _signals(store: Store, at: Mapping[str, _Step], id_: str) -> dict[str, Any]:
    rows = at["annotate"].rows(store, SIGNALS, id_) if "annotate" in at else []
    return {k: v for row in rows for k, v in row.items() if k not in ("id", "digest")}


def _redactions(store: Store, at: Mapping[str, _Step], id_: str) -> dict[str, int]:
    rows = at["scrub"].rows(store, FINDINGS, id_) if "scrub" in at else []
    return {row["type"]: row["count"] for row in rows}


def _matches(store: Store, at: Mapping[str, _Step], id_: str) -> Iterator[dict[str, Any]]:
    """What of benchmarks and held-out documents stands in it, whether or not it counted."""
    for row in at["matches"].rows(store, MATCHES, id_) if "matches" in at else ():
        told = ("kind", "benchmark", "item", "n_ngrams", "matched", "start", "end")
        yield {name: row[name] for name in told}


def _leaks(store: Store, at: Mapping[str, _Step], id_: str) -> Iterator[dict[str, Any]]:
    """The passages that condemned it."""
    decided = at.get("decontaminate")
    for ref in decided.manifest.objects.get(LEDGER.kind, ()) if decided else ():
        yield from _without_id(rows_with(store, ref, LEDGER, [id_]))


def _without_id(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    return ({name: value for name, value in row.items() if name != "id"} for row in rows)


def _takedown(store: Store, id_: str, url: str | None) -> dict[str, Any] | None:
    """The entry of the takedown list that names the document, if any."""
    taken = read_list(store)
    row = pa.table({"id": pa.array([id_]), "url": pa.array([url], pa.string())})
    found = taken.find(row)[0].as_py() if taken.entries else None
    return None if found is None else asdict(taken.entries[found])


def _cluster(store: Store, at: Mapping[str, _Step], id_: str) -> Iterator[Member]:
    """The duplicates of the document and itself, the survivor first; none where it has none."""
    if "dedup" not in at:
        return
    deduped = at["dedup"].manifest
    clusters: Sequence[ObjectRef] = deduped.objects.get(CLUSTERS.kind, ())
    roots = [row["root"] for ref in clusters for row in rows_with(store, ref, CLUSTERS, [id_])]
    where = pc.field("root") == (roots[0] if roots else "")
    tables = [store.read_table(ref, CLUSTERS, ["id"], where) for ref in clusters]
    ids = sorted(row for table in tables for row in table["id"].to_pylist())
    if len(ids) < 2:
        return
    drops = {
        row["id"]: row
        for receipt in store.receipts(deduped)
        if (ref := receipt.output(DROPS.kind))
        for row in rows_with(store, ref, DROPS, ids)
    }
    about = {
        row["id"]: row
        for shard in open_corpus(store, deduped).shards
        for row in rows_with(store, shard.text, DOCUMENTS, ids, ["id", "url", "source"])
    }
    for one in sorted(ids, key=lambda one: (one in drops, one)):
        drop, who = drops.get(one, {}), about.get(one, {})
        yield Member(
            id=one,
            url=who.get("url"),
            source=who.get("source"),
            survived=one not in drops,
            reason=drop.get("reason"),
            similarity=drop.get("value"),
        )


# the text


def _text(
    store: Store,
    found: Found,
    token: TokenPlace | None,
    steps: Sequence[_Step],
    left: str | None,
) -> str:
    """What the document says, scrubbed: around the token, or at its beginning."""
    if token is not None:
        return _around(store, found, token)
    for step in reversed(steps):
        if step.manifest.stage == "scrub":
            ref = step.receipt.output(DOCUMENTS.kind)
            for row in rows_with(store, ref, DOCUMENTS, [found.id], ["text"]):
                return _shortened(row["text"], found.said)
    stage = left or "scrub"
    dropped_by = [step.manifest for step in steps if step.manifest.stage == stage]
    for manifest in dropped_by:
        return excerpts(store, manifest, found.corpus.line, [found.id]).get(found.id, "")
    return ""


def _around(store: Store, found: Found, place: TokenPlace) -> str:
    """The text of the tokens before and after one, which stands in double brackets."""
    from llm.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_bytes(store.read_bytes(found.corpus.manifest.object("tokenizer")))
    ref = ObjectRef(TOKENS.kind, place.shard, "parquet", 0, 0)
    tokens = rows_with(store, ref, TOKENS, [found.id], ["tokens"])[0]["tokens"]
    at = place.in_document
    before = tokenizer.decode(tokens[max(0, at - AROUND_TOKENS) : at])
    after = tokenizer.decode(tokens[at + 1 : at + 1 + AROUND_TOKENS])
    return f"{before}[[{tokenizer.decode([place.token])}]]{after}"


def _shortened(text: str, said: str) -> str:
    """A part of a text: from what was looked for on, where it holds that."""
    place = re.search(r"\s+".join(map(re.escape, said.split())), text)
    start = place.start() if place else 0
    end = start + EXCERPT_CHARACTERS
    return f"{'…' * (start > 0)}{text[start:end]}{'…' * (end < len(text))}"


# the tokens


def _datasets(store: Store, found: Found, id_: str) -> Iterator[InDataset]:
    """The datasets of all names, and of all models, that hold the document."""
    models = _models(store)
    for dataset in {one.manifest.ref: one for one in (*datasets(store), *_own(found))}.values():
        for row in dataset_rows(store, dataset.manifest, id_):
            ref = ObjectRef(
                TOKENS.kind, row["object"].split("/")[-1].split(".")[0], "parquet", 0, 0
            )
            lengths = store.read_table(ref, TOKENS, ["length"])["length"].to_numpy()
            yield InDataset(
                name=dataset.name,
                fingerprint=dataset.manifest.fingerprint,
                split=row["split"],
                object=row["object"],
                row=row["row"],
                offset=int(np.sum(lengths[: row["row"]])),
                tokens=row["length"],
                models=tuple(models.get(dataset.manifest.ref, ())),
            )


def _own(found: Found) -> tuple[Named, ...]:
    return (found.corpus,) if found.corpus.manifest.stage == "dataset" else ()


def _models(store: Store) -> dict[ManifestRef, list[str]]:
    """The versions of models by the dataset they were trained on."""
    found: dict[ManifestRef, list[str]] = {}
    for name in registry.names(store):
        for version in registry.versions(store, name):
            found.setdefault(version.manifests["dataset"], []).append(f"{name}@{version.version}")
    return found
