"""Where a document is: found by its id, by what it says, or by a token of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm.errors import DataError
from tasks import registry
from tasks.inspecting import lineage
from tasks.refs import Named, find_named, published
from tasks.store.corpus import open_corpus, out_ids
from tasks.store.records import Manifest, ManifestRef, ObjectRef
from tasks.store.schema import DATASET, DEAD, DOCUMENTS, PAGES, TOKENS, Schema
from tasks.store.store import Store

ID_DIGITS = 32
_NAMED = 5


@dataclass(frozen=True)
class Found:
    """A document of a corpus and how it was found: `said` is the text it was found by, and `others`
    (ids) hold it too."""

    id: str
    corpus: Named
    how: str
    others: tuple[str, ...] = ()
    said: str = ""


@dataclass(frozen=True)
class TokenPlace:
    """A token: its place in the shard's flat sequence, in its row, and its id in the tokenizer."""

    shard: str
    row: int
    offset: int
    in_document: int
    token: int


@dataclass(frozen=True)
class Place:
    """Where a document's row lies: its shard by position among all of the corpus's, its snapshot,
    and why that row lives no more (None: it lives). `versions` counts the rows of that id."""

    shard: int
    snapshot: Manifest
    ref: ObjectRef
    dead: str | None
    versions: int


def rows_with(
    store: Store,
    ref: ObjectRef | None,
    schema: Schema,
    ids: Sequence[str],
    columns: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """The rows of an object with those ids; what cannot hold them is not read."""
    field = pc.field("id")
    where = field == ids[0] if len(ids) == 1 else field.isin(list(ids))
    return store.read_table(ref, schema, columns, where).to_pylist()


# by id


def snapshots_of(store: Store, extract: Manifest) -> list[Manifest]:
    """The snapshots that the text was extracted from, in the order of their shards."""
    return [store.manifest(extract.inputs[role]) for role in sorted(extract.inputs)]


def extract_of(store: Store, manifest: Manifest) -> Manifest | None:
    """The extract stage that a manifest of a corpus goes back to; None before it."""
    while manifest.stage != "extract":
        if "corpus" not in manifest.inputs:
            return None
        manifest = store.manifest(manifest.inputs["corpus"])
    return manifest


def _source_rows(store: Store, extract: Manifest) -> Iterator[tuple[int, int, Manifest, ObjectRef]]:
    """Each shard: its position in the corpus and in its snapshot, that snapshot, and its rows."""
    position = 0
    for snapshot in snapshots_of(store, extract):
        for index, receipt in enumerate(store.receipts(snapshot)):
            yield position, index, snapshot, receipt.outputs[0]
            position += 1


def _schema_of(ref: ObjectRef) -> Schema:
    return PAGES if ref.kind == PAGES.kind else DOCUMENTS


def find_place(store: Store, extract: Manifest, id_: str) -> Place | None:
    """Where a document is in a corpus: its live row, else the last of those that died."""
    found = None
    versions = 0
    for position, index, snapshot, ref in _source_rows(store, extract):
        if not rows_with(store, ref, _schema_of(ref), [id_], ["id"]):
            continue
        versions += 1
        dead = _why_dead(store, snapshot, index, id_)
        if found is None or found.dead is not None:
            found = Place(position, snapshot, ref, dead, versions)
    return Place(found.shard, found.snapshot, found.ref, found.dead, versions) if found else None


def _why_dead(store: Store, snapshot: Manifest, index: int, id_: str) -> str | None:
    where = (pc.field("id") == id_) & (pc.field("shard") == index)
    for ref in snapshot.objects.get("dead", ()):
        for row in store.read_table(ref, DEAD, ["reason"], where).to_pylist():
            return str(row["reason"])
    return None


def find_id(store: Store, corpora: Sequence[Named], id_: str) -> Found:
    """A document by its id or the beginning of it. Raises DataError for none or several."""
    if not re.fullmatch(rf"[0-9a-f]{{1,{ID_DIGITS}}}", id_):
        raise DataError(f"{id_}: an id is {ID_DIGITS} hex digits, or the first of them")
    # No digit comes after f.
    where = (pc.field("id") >= id_) & (pc.field("id") < f"{id_}g")
    held: dict[str, Named] = {}
    for corpus in corpora:
        for extract in _extracts(store, corpus):
            for _, _, _, ref in _source_rows(store, extract):
                ids = store.read_table(ref, _schema_of(ref), ["id"], where).column("id")
                for one in ids.to_pylist():
                    held.setdefault(one, corpus)
    if len(held) == 1:
        ((whole, corpus),) = held.items()
        return Found(whole, corpus, "by its id")
    if not held:
        raise DataError(f"no document of {_names(corpora)} has an id that begins with {id_}")
    some = ", ".join(sorted(held)[:_NAMED])
    raise DataError(
        f"{len(held)} documents have an id that begins with {id_}: {some}"
        f"{', ...' if len(held) > _NAMED else ''}; give more digits"
    )


def _extracts(store: Store, corpus: Named) -> list[Manifest]:
    """The extract stages behind a corpus: the newest its line came through first."""
    behind = [extract_of(store, one) for one in (*corpus.line, corpus.manifest)]
    there = {one.ref: one for one in behind if one is not None}
    return list(there.values())


# by text


def find_text(store: Store, corpora: Sequence[Named], text: str) -> Found:
    """The first document by id that holds a text, live ones before dropped ones.

    White space of any length is alike. Raises DataError when none holds it.
    """
    words = text.split()
    if not words:
        raise DataError("the text to look for is empty; give some words of a document")
    escaped = [re.sub(r"[^\w\x80-\U0010ffff]", r"\\\g<0>", word, flags=re.ASCII) for word in words]
    pattern = r"[\s\p{Z}]+".join(escaped)
    for how, find in (
        ("in the text of a live document", _live_with),
        ("in the text of a document that was dropped", _dropped_with),
        ("in a text before it was scrubbed or dropped", _extracted_with),
    ):
        held = {one: corpus for corpus in corpora for one in find(store, corpus, pattern)}
        if held:
            first, *others = sorted(held)
            return Found(first, held[first], how, tuple(others), text)
    raise DataError(f"no document of {_names(corpora)}, live or dropped, holds this text")


def _live_with(store: Store, corpus: Named, pattern: str) -> Iterator[str]:
    for shard in open_corpus(store, corpus.manifest).shards:
        ids = _ids_with(store, shard.text, pattern)
        if len(ids):
            gone = pc.is_in(ids, value_set=out_ids(store, shard))
            yield from ids.filter(pc.invert(gone)).to_pylist()


def _dropped_with(store: Store, corpus: Named, pattern: str) -> Iterator[str]:
    for shard in open_corpus(store, corpus.manifest).shards:
        ids = _ids_with(store, shard.text, pattern).to_pylist()
        yield from (one for one in ids if one not in shard.dead)


def _extracted_with(store: Store, corpus: Named, pattern: str) -> Iterator[str]:
    for extract in _extracts(store, corpus):
        for shard in open_corpus(store, extract).shards:
            ids = _ids_with(store, shard.text, pattern).to_pylist()
            yield from (one for one in ids if one not in shard.dead)


def _ids_with(store: Store, ref: ObjectRef | None, pattern: str) -> pa.ChunkedArray:
    rows = store.read_table(ref, DOCUMENTS, ["id", "text"])
    return rows["id"].filter(pc.match_substring_regex(rows["text"], pattern))


# by a token


def find_token(
    store: Store, shard: str, offset: int, name: str | None = None
) -> tuple[Found, TokenPlace]:
    """The document that a token is of: `offset` counts the tokens of a shard, row after row.

    `shard` is the sha256 of a token shard of any dataset or model, its beginning, or its URL.
    Raises DataError naming what there is.
    """
    ref, corpus = _token_shard(store, shard, name)
    rows = store.read_table(ref, TOKENS, ["id", "length"])
    ends = np.cumsum(rows["length"].to_numpy())
    if not 0 <= offset < (ends[-1] if len(ends) else 0):
        there = f"{ends[-1]:,} tokens, 0 to {ends[-1] - 1}" if len(ends) else "no tokens"
        raise DataError(f"token shard {ref.sha256[:12]} has {there}; found the offset {offset}")
    row = int(np.searchsorted(ends, offset, "right"))
    id_, length = rows["id"][row].as_py(), rows["length"][row].as_py()
    within = offset - int(ends[row] - length)
    tokens = rows_with(store, ref, TOKENS, [id_], ["tokens"])[0]["tokens"]
    if not tokens:
        raise DataError(f"token {offset} is of document {id_}, which was erased")
    place = TokenPlace(ref.sha256, row, offset, within, tokens[within])
    return Found(id_, corpus, f"by token {offset} of token shard {ref.sha256[:12]}"), place


def _token_shard(store: Store, shard: str, name: str | None) -> tuple[ObjectRef, Named]:
    """A token shard by what a person calls it, and the dataset that it is of."""
    wanted = shard.rstrip("/").rsplit("/", 1)[-1].split(".")[0]
    known: dict[str, tuple[ObjectRef, Named]] = {}
    for dataset in datasets(store, name):
        for ref in _token_refs(store, dataset.manifest):
            for one in (ref, store.current(ref)):
                if one is not None:
                    known.setdefault(one.sha256, (one, dataset))
    found = [at for sha256, at in known.items() if sha256.startswith(wanted)] if wanted else []
    if len(found) == 1:
        return found[0]
    several = [ref.sha256[:12] for ref, _ in found] or [sha256[:12] for sha256 in known]
    some = ", ".join(sorted(several)[:_NAMED]) + (", ..." if len(several) > _NAMED else "")
    what = f"{len(found)} token shards begin" if found else "no token shard begins"
    raise DataError(f"{what} with {wanted or 'nothing'}: there are {some or 'none yet'}")


def _token_refs(store: Store, dataset: Manifest) -> list[ObjectRef]:
    tokens = store.manifest(dataset.inputs["corpus"])
    refs = [receipt.output(TOKENS.kind) for receipt in store.receipts(tokens)]
    return [ref for ref in (*refs, *dataset.objects["heldout_tokens"]) if ref is not None]


def datasets(store: Store, name: str | None = None) -> list[Named]:
    """The newest dataset of every name and those that models were trained on, each once; with
    `name` only the one that it means."""
    if name is not None:
        named = find_named(store, name if "/" in name else f"dataset/{name}")
        if named.manifest.stage != "dataset":
            raise DataError(f"{name} is no dataset; refs: {', '.join(published(store)) or 'none'}")
        return [named]
    found: dict[ManifestRef, Named] = {}
    for kind, _, rest in (ref.partition("/") for ref in published(store)):
        if kind == "dataset":
            named = find_named(store, f"{kind}/{rest}")
            found.setdefault(named.manifest.ref, named)
    for model in registry.names(store):
        for version in registry.versions(store, model):
            pin = version.manifests["dataset"]
            if pin not in found:
                manifest = store.manifest(pin)
                who = f"the dataset of model {model}@{version.version}"
                found[pin] = Named(who, manifest, tuple(lineage(store, manifest)))
    return list(found.values())


def corpora(store: Store, name: str | None = None) -> list[Named]:
    """The newest corpus of every name; with `name` only the one that it means."""
    if name is not None:
        return [find_named(store, name)]
    found = [find_named(store, ref) for ref in published(store) if ref.startswith("corpus/")]
    if not found:
        raise DataError(f"there is no corpus in {store.root} yet; `loam run` grows one")
    return found


def dataset_rows(store: Store, dataset: Manifest, id_: str) -> list[dict[str, Any]]:
    """A document's rows in a dataset: none, or one."""
    ref = store.current(dataset.object("dataset"))
    return rows_with(store, ref, DATASET, [id_])


def _names(corpora: Sequence[Named]) -> str:
    return ", ".join(corpus.name for corpus in corpora)
