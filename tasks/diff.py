"""What two corpora do not have in common: documents gained, lost and changed, by source and reason.

Shards whose text is the same on both sides are compared by their drops alone, and those whose drops
are the same too are not read at all. The books must balance, against what the manifests say: rows,
the digest of all texts (a sum of row hashes, so that no change can be missed), and tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pyarrow.compute as pc

from tasks.inspecting import SNAPSHOT_STAGES, excerpts, lineage, shards_before
from tasks.locating import rows_with
from tasks.refs import Named, entries_of, published
from tasks.store.corpus import Shard, live_rows, open_corpus, out_ids
from tasks.store.records import Manifest, ManifestRef, ObjectRef
from tasks.store.rows import MODULUS, row_hashes
from tasks.store.run import BooksDoNotBalance
from tasks.store.schema import DEAD, DOCUMENTS, DROPS, LABELS, TOKENS
from tasks.store.store import Store

Kind = Literal["gained", "lost", "changed"]

NEW, NEW_SOURCE = "new at the source", "new source"
GONE, NO_SOURCE = "gone from the source", "source removed"
EDITED, REMADE, RETOKENISED = (
    "edited at the source", "other text from the same source", "other split or tokens"
)  # fmt: skip


@dataclass(frozen=True)
class Side:
    """One of the two: live documents and, where it has a dataset, the tokens trained on."""

    name: str
    stage: str
    fingerprint: str
    at: str | None
    documents: int
    tokens: int | None


@dataclass(frozen=True)
class Change:
    """Documents of one source that came, went or changed for one reason, and their size before and
    after in the unit of the Diff."""

    kind: Kind
    source: str
    reason: str
    documents: int
    before: int
    after: int


@dataclass(frozen=True)
class Sample:
    """A document that came, went or changed; `excerpt` is scrubbed, empty if it is taken down."""

    kind: Kind
    id: str
    url: str | None
    source: str
    reason: str
    before: int
    after: int
    excerpt: str


@dataclass(frozen=True)
class Diff:
    """From `before` to `after`. `unit` is `tokens` (those trained on) where both have a dataset,
    else `bytes` of text. `proven`: the digests of all texts add up too; they cannot be held against
    each other once a document was erased."""

    before: Side
    after: Side
    unit: str
    proven: bool
    changes: tuple[Change, ...]
    samples: tuple[Sample, ...]


class _Row(NamedTuple):
    """A live document: what it says (its row hash), its size, its split and its tokens' digest."""

    row_hash: int
    source: str
    url: str | None
    size: int
    split: str | None
    tokens: str | None


@dataclass(frozen=True)
class _Corpus:
    """A side as it is read: its stages, and its dataset where it has one."""

    named: Named
    manifest: Manifest
    dataset: Manifest | None
    shards: tuple[Shard, ...]

    @property
    def sources(self) -> set[str]:
        return {str(m.summary["source"]) for m in self.named.line if m.stage in SNAPSHOT_STAGES}

    def side(self) -> Side:
        return Side(
            name=self.named.name,
            stage=self.named.manifest.stage,
            fingerprint=self.named.manifest.fingerprint,
            at=self.named.manifest.provenance.get("at"),
            documents=self.manifest.rows_out,
            tokens=_trained_tokens(self.dataset),
        )


def diff(store: Store, before: Named, after: Named, n: int) -> Diff:
    """What changed from one corpus to another, with the `n` first documents by id of each reason.

    Raises BooksDoNotBalance where the difference does not account for every row.
    """
    a, b = _open(store, before), _open(store, after)
    tokens = a.dataset is not None and b.dataset is not None
    old, new, whole = _differing(store, a, b, tokens)
    reasons: dict[Kind, dict[str, str]] = {
        "gained": _why_gained(store, a, b, {i: row for i, row in new.items() if i not in old}),
        "lost": _why_lost(store, a, b, {i: row for i, row in old.items() if i not in new}),
        "changed": _why_changed(store, a, b, old, new),
    }
    _check(a, b, old, new, reasons, whole, tokens)
    samples: list[Sample] = []
    for kind, why in reasons.items():
        samples += _samples(store, a if kind == "lost" else b, kind, why, old, new, n)
    return Diff(
        before=a.side(),
        after=b.side(),
        unit="tokens" if tokens else "bytes",
        proven=whole,
        changes=tuple(
            change for kind, why in reasons.items() for change in _changes(kind, why, old, new)
        ),
        samples=tuple(samples),
    )


def _changes(
    kind: Kind, why: Mapping[str, str], old: Mapping[str, _Row], new: Mapping[str, _Row]
) -> list[Change]:
    """The documents by source and reason, by source and the most frequent reason first."""
    groups: dict[tuple[str, str], list[str]] = {}
    for id_, reason in why.items():
        row = new[id_] if id_ in new else old[id_]
        groups.setdefault((row.source, reason), []).append(id_)
    found = [
        Change(kind, *key, len(ids), *(sum(_size(rows, i) for i in ids) for rows in (old, new)))
        for key, ids in groups.items()
    ]
    return sorted(found, key=lambda one: (one.source, -one.documents, one.reason))


def _size(rows: Mapping[str, _Row], id_: str) -> int:
    return rows[id_].size if id_ in rows else 0


# the two sides


def _open(store: Store, named: Named) -> _Corpus:
    """A corpus with its dataset: the named one, or the newest that was made of its very rows."""
    dataset = named.manifest if named.manifest.stage == "dataset" else _dataset_of(store, named)
    manifest = store.manifest(dataset.inputs["corpus"]) if dataset else named.manifest
    return _Corpus(named, manifest, dataset, open_corpus(store, manifest).shards)


def _dataset_of(store: Store, named: Named) -> Manifest | None:
    for ref in published(store):
        kind, _, name = ref.partition("/")
        for entry in entries_of(store, kind, name) if kind == "dataset" else ():
            if entry.get("collected"):
                continue
            value = entry["value"]
            dataset = store.manifest(ManifestRef(value["stage"], value["fingerprint"]))
            tokens = store.manifest(dataset.inputs["corpus"])
            labelled = store.manifest(tokens.inputs["corpus"])
            if named.manifest.ref in (tokens.ref, labelled.ref) or (
                labelled.stage == named.manifest.stage
                and labelled.data_digest == named.manifest.data_digest
            ):
                return dataset
    return None


def _trained_tokens(dataset: Manifest | None) -> int | None:
    if dataset is None:
        return None
    return int(dataset.summary["splits"].get("train", {}).get("tokens", 0))


# the rows that differ


def _differing(
    store: Store, a: _Corpus, b: _Corpus, tokens: bool
) -> tuple[dict[str, _Row], dict[str, _Row], bool]:
    """The live rows of each side by id that the other has not, or not as they are; and whether
    none was read that has been erased since."""
    same: dict[tuple[str, ...], list[Shard]] = {}
    for shard in b.shards:
        same.setdefault(_key(shard, tokens), []).append(shard)
    old: dict[str, _Row] = {}
    new: dict[str, _Row] = {}
    read: list[ObjectRef] = []
    for shard in a.shards:
        twins = same.get(_key(shard, tokens))
        if not twins:
            old |= _live(store, shard, tokens, read)
            continue
        twin = twins.pop()
        if _out_refs(shard) != _out_refs(twin):
            out, twin_out = (set(out_ids(store, s).to_pylist()) for s in (shard, twin))
            old |= _rows(store, shard, twin_out - out, tokens, read)
            new |= _rows(store, twin, out - twin_out, tokens, read)
    for shards in same.values():
        for shard in shards:
            new |= _live(store, shard, tokens, read)
    for id_ in [id_ for id_, row in old.items() if new.get(id_) == row]:
        del old[id_], new[id_]
    return old, new, all(store.current(ref) == ref for ref in read)


def _key(shard: Shard, tokens: bool) -> tuple[str, ...]:
    """What decides the rows of a shard, live or not: equal keys, equal rows."""
    measured = [shard.extras.get(kind) for kind in (TOKENS.kind, LABELS.kind)] if tokens else []
    return tuple(ref.data_digest if ref else "" for ref in (shard.text, *measured))


def _out_refs(shard: Shard) -> tuple[Set[str], Sequence[str]]:
    """What decides which rows of a shard are live."""
    return {ref.data_digest for ref in (*shard.filtered, *shard.verdicts)}, shard.dead


def _live(store: Store, shard: Shard, tokens: bool, read: list[ObjectRef]) -> dict[str, _Row]:
    ids = live_rows(store, shard, columns=["id"])["id"].to_pylist()
    return _rows(store, shard, set(ids), tokens, read)


def _rows(
    store: Store, shard: Shard, ids: Set[str], tokens: bool, read: list[ObjectRef]
) -> dict[str, _Row]:
    """The rows of a shard's text with those ids. What was read is added to `read`."""
    if not ids or shard.text is None:
        return {}
    read.append(shard.text)
    where = pc.field("id").isin(sorted(ids))
    columns = [*DOCUMENTS.hashed, *(() if tokens else ("text",))]
    table = store.read_table(shard.text, DOCUMENTS, columns, where)
    found = table["id"].to_pylist()
    if tokens:
        lengths = _by_id(store, shard, TOKENS, where, ("length", "digest"))
        labels = _by_id(store, shard, LABELS, where, ("split",))
        told = [(*lengths[id_], *labels[id_]) for id_ in found]
        # What is held out is not trained on.
        sizes = [length if split == "train" else 0 for length, _, split in told]
        marks = [(split, digest) for _, digest, split in told]
    else:
        sizes = pc.binary_length(table["text"]).to_pylist()
        marks = [(None, None)] * len(found)
    who = zip(table["source"].to_pylist(), table["url"].to_pylist(), strict=True)
    hashes = row_hashes(table, DOCUMENTS)
    return {
        id_: _Row(row_hash, source, url, size, *mark)
        for id_, row_hash, (source, url), size, mark in zip(
            found, hashes, who, sizes, marks, strict=True
        )
    }


def _by_id(
    store: Store, shard: Shard, schema: Any, where: pc.Expression, columns: Sequence[str]
) -> dict[str, tuple[Any, ...]]:
    rows = store.read_table(shard.extras.get(schema.kind), schema, ["id", *columns], where)
    values = zip(*(rows[name].to_pylist() for name in columns), strict=True)
    return dict(zip(rows["id"].to_pylist(), values, strict=True))


# why


def _why_gained(store: Store, a: _Corpus, b: _Corpus, rows: Mapping[str, _Row]) -> dict[str, str]:
    """A live row of a source is live or dropped: what the older side did not drop, it had not."""
    dropped, known = _dropped(store, a, b, rows.keys()), a.sources
    return {
        id_: f"no longer {dropped[id_]}"
        if id_ in dropped
        else (NEW if row.source in known else NEW_SOURCE)
        for id_, row in rows.items()
    }


def _why_lost(store: Store, a: _Corpus, b: _Corpus, rows: Mapping[str, _Row]) -> dict[str, str]:
    dropped, known = _dropped(store, b, a, rows.keys()), b.sources
    return {
        id_: f"now {dropped[id_]}"
        if id_ in dropped
        else (GONE if row.source in known else NO_SOURCE)
        for id_, row in rows.items()
    }


def _why_changed(
    store: Store, a: _Corpus, b: _Corpus, old: Mapping[str, _Row], new: Mapping[str, _Row]
) -> dict[str, str]:
    """A new version at the source makes the one before it superseded, in one of the two logs."""
    dead = [_dead_refs(store, side) for side in (a, b)]
    superseded = {
        row["id"]
        for ref in dead[0] ^ dead[1]
        for row in store.read_table(ref, DEAD).to_pylist()
        if row["reason"] == "superseded"
    }
    return {
        id_: RETOKENISED
        if old[id_].row_hash == new[id_].row_hash
        else (EDITED if id_ in superseded else REMADE)
        for id_ in sorted(old.keys() & new.keys())
    }


def _dead_refs(store: Store, side: _Corpus) -> set[ObjectRef]:
    snapshots = [one for one in lineage(store, side.manifest) if one.stage in SNAPSHOT_STAGES]
    return {ref for one in snapshots for ref in one.objects.get("dead", ())}


def _dropped(store: Store, side: _Corpus, other: _Corpus, ids: Set[str]) -> dict[str, str]:
    """Why a side dropped documents that are live on the other one, where it did."""
    if not ids:
        return {}
    wanted = sorted(ids)
    found: dict[str, str] = {}
    # What is live on the other side is in none of its drops, so those of both hold no answer; but
    # for a shard where it is dead, being live in another.
    shared = {
        ref.sha256
        for shard in other.shards
        if ids.isdisjoint(shard.dead)
        for ref in (*shard.filtered, *shard.verdicts)
    }
    for one in side.named.line:
        if not one.drops or ("corpus" not in one.inputs and one.stage != "extract"):
            continue
        receipts = store.receipts(one)
        for shard, receipt in zip(shards_before(store, one), receipts, strict=bool(receipts)):
            ref = receipt.output(DROPS.kind)
            if ref is None or ref.sha256 in shared:
                continue
            rows = rows_with(store, ref, DROPS, wanted, ["id", "reason"])
            gone = set(out_ids(store, shard).to_pylist()) if rows else set()
            found |= {row["id"]: row["reason"] for row in rows if row["id"] not in gone}
    return found


# the books


def _check(
    a: _Corpus,
    b: _Corpus,
    old: Mapping[str, _Row],
    new: Mapping[str, _Row],
    reasons: Mapping[Kind, Mapping[str, str]],
    whole: bool,
    tokens: bool,
) -> None:
    """Raises BooksDoNotBalance unless what is told leads from one side's totals to the other's."""
    gained, lost = len(reasons["gained"]), len(reasons["lost"])
    _balance("documents", a.manifest.rows_out, gained - lost, b.manifest.rows_out)
    if whole:
        texts = [int(side.manifest.summary["text_digest"], 16) for side in (a, b)]
        change = sum(r.row_hash for r in new.values()) - sum(r.row_hash for r in old.values())
        _balance("digests of text", texts[0], change, texts[1], MODULUS)
    held_back = [side.dataset for side in (a, b) if side.dataset and side.dataset.drops]
    if tokens and not held_back:
        totals = [_trained_tokens(side.dataset) or 0 for side in (a, b)]
        change = sum(r.size for r in new.values()) - sum(r.size for r in old.values())
        _balance("tokens", totals[0], change, totals[1])


def _balance(what: str, before: int, change: int, after: int, modulus: int = 0) -> None:
    left = before + change - after
    if left % modulus if modulus else left:
        raise BooksDoNotBalance(
            f"{what}: {before} and a change of {change} are not {after}; this is a fault in Loam, "
            "or the store was changed by hand: `loam store verify`"
        )


def _samples(
    store: Store,
    side: _Corpus,
    kind: Kind,
    why: Mapping[str, str],
    old: Mapping[str, _Row],
    new: Mapping[str, _Row],
    n: int,
) -> Iterator[Sample]:
    """The first `n` documents by id of each reason, with what the side has of them."""
    by_reason: dict[str, list[str]] = {}
    for id_ in sorted(why):
        by_reason.setdefault(why[id_], []).append(id_)
    ids = [id_ for listed in by_reason.values() for id_ in listed[:n]]
    if not ids:
        return
    rows = {id_: (new.get(id_) or old[id_]) for id_ in ids}
    texts = excerpts(store, side.manifest, side.named.line, ids)
    for id_ in ids:
        yield Sample(
            kind=kind,
            id=id_,
            url=rows[id_].url,
            source=rows[id_].source,
            reason=why[id_],
            before=_size(old, id_),
            after=_size(new, id_),
            excerpt=texts.get(id_, ""),
        )
