"""Takedown: documents that must leave, whatever the sources say, and that no re-crawl brings back.

A store has one list (`refs/takedown/all`) of ids, URLs and domains, each with its reason. The stage
drops what the list names before duplicates are looked for, so that the next of a cluster takes the
place of one that left. Its drops are a verdict: nothing is measured again for them, and who leaves
the list is back as if never gone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from llm.errors import ConfigError
from tasks import registry
from tasks.as_task import as_task
from tasks.crawling.urls import canonical_url, netloc_of
from tasks.split import HELDOUT
from tasks.store.corpus import commit_stage, live_rows, open_corpus, verdict_receipts
from tasks.store.pins import find_pin
from tasks.store.reach import reach
from tasks.store.records import Manifest, ObjectRef
from tasks.store.rows import data_digest, digest_hex
from tasks.store.run import Request, Run, reuse
from tasks.store.schema import DATASET, DOCUMENTS, DROPS, PAGES, Schema
from tasks.store.stage import Stage
from tasks.store.store import Ref, RefMoved, Store, now

STAGE = Stage("takedown", 2)
REASON = "taken_down"
LIST = ("takedown", "all")
# Before the split of a document in a dataset, once its tokens are erased.
ERASED_SPLIT = "erased_"
Kind = Literal["id", "url", "domain"]

# What is taken down. When, by whom and whether its text is gone for good decides nothing.
TAKEDOWNS = Schema(
    "takedowns",
    pa.schema(
        [(name, pa.string()) for name in ("kind", "target", "reason", "at", "by", "erased_at")]
    ),
    ("kind", "target", "reason"),
)

_ID = re.compile(r"[0-9a-f]{32}")
# Also of addresses that are no canonical URL, as imported records may have: with a user's name, of
# another scheme, or of none.
_HOST = r"^(?:(?:[A-Za-z][A-Za-z0-9+.-]*:)?//)?(?:[^/?#@]*@)?(?P<host>\[[^\]]*\]|[^/?#:]*)"


@dataclass(frozen=True)
class Entry:
    """Something taken down: a document, an address, or a domain with all below it.

    `by` is the command that did it; `erased_at` is when its text began to be erased, if ever.
    """

    kind: Kind
    target: str
    reason: str
    at: str = ""
    by: str = ""
    erased_at: str | None = None


@dataclass(frozen=True)
class Takedowns:
    """The list as it stands, sorted by kind and target; `ref` is what it was read from."""

    entries: tuple[Entry, ...] = ()
    ref: Ref | None = None

    @cached_property
    def pins(self) -> dict[str, str]:
        """The list's content, for a Request that depends on it; nothing for an empty list."""
        if not self.entries:
            return {}
        return {"takedown": digest_hex(data_digest(_table(self.entries), TAKEDOWNS))}

    def find(self, rows: pa.Table) -> pa.Array:
        """For each row (columns id, url) the index of the entry that names it, or null.

        The id counts first, then the URL, then the longest domain.
        """
        by_id = _index_in(rows["id"], self._of("id"))
        by_url = _index_in(rows["url"], self._of("url"))
        return pc.coalesce(by_id, by_url, _by_domain(rows["url"], self._of("domain")))

    def named(self, rows: pa.Table) -> pa.Table:
        """The rows (columns id, url and others) that the list names."""
        return rows.filter(pc.is_valid(self.find(rows))) if self.entries else rows.slice(0, 0)

    def hide(self, rows: pa.Table) -> pa.Table:
        """The rows (columns id, url and others) that the list does not name."""
        return rows.filter(pc.is_null(self.find(rows))) if self.entries else rows

    def names(self, url: str) -> bool:
        """Whether the list names a canonical URL, by itself or by its domain."""
        return url in self._of("url") or _longest(_host(url), self._of("domain")) is not None

    def _of(self, kind: Kind) -> dict[str, int]:
        """The targets of a kind, and where in the list they stand."""
        return self._places.get(kind, {})

    @cached_property
    def _places(self) -> dict[str, dict[str, int]]:
        places: dict[str, dict[str, int]] = {}
        for index, entry in enumerate(self.entries):
            places.setdefault(entry.kind, {})[entry.target] = index
        return places


def _index_in(values: pa.ChunkedArray, places: dict[str, int]) -> pa.Array:
    found = pc.index_in(values, value_set=pa.array(list(places), pa.string()))
    return pa.array(list(places.values()), pa.int64()).take(_one(found))


def _by_domain(urls: pa.ChunkedArray, places: dict[str, int]) -> pa.Array:
    if not places:
        return pa.nulls(len(urls), pa.int64())
    hosts = _one(pc.struct_field(pc.extract_regex(urls, _HOST), "host")).dictionary_encode()
    known = [_longest(host, places) for host in hosts.dictionary.to_pylist()]
    return pa.array(known, pa.int64()).take(hosts.indices)


def _longest(host: str, places: dict[str, int]) -> int | None:
    """The entry of the host itself, or else of the nearest domain above it."""
    host = host.lower().rstrip(".")
    while host:
        if host in places:
            return places[host]
        host = host.partition(".")[2]
    return None


def _host(url: str) -> str:
    found = re.match(_HOST.replace("?P<host>", ""), url)
    return found[1] if found else ""


def _one(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def parse_target(text: str) -> tuple[Kind, str]:
    """What a person means by an id, a URL or a domain. Raises ConfigError for anything else."""
    if _ID.fullmatch(text):
        return "id", text
    if "://" in text:
        url = canonical_url(text)
        if url is None:
            raise ConfigError(f"{text}: no http or https address that a document could have")
        return "url", url
    url = canonical_url(f"http://{text}/")
    if url is None or netloc_of(url) + "/" != url.removeprefix("http://") or ":" in text:
        raise ConfigError(
            f"{text}: expected an id (32 hex digits), a URL with http:// or https://, or a domain "
            "such as example.org"
        )
    host = netloc_of(url)
    if "." not in host:
        raise ConfigError(f"{text}: a whole top-level domain is too much; name one below it")
    return "domain", host


def read_list(store: Store) -> Takedowns:
    ref = store.find_ref(*LIST)
    if ref is None or ref.value["object"] is None:
        return Takedowns((), ref)
    rows = store.read_table(ObjectRef(**ref.value["object"]), TAKEDOWNS).to_pylist()
    return Takedowns(tuple(Entry(**row) for row in rows), ref)


def _table(entries: Iterable[Entry]) -> pa.Table:
    return TAKEDOWNS.table([asdict(entry) for entry in entries])


def _change(store: Store, changed: Callable[[Sequence[Entry]], Sequence[Entry]]) -> Takedowns:
    """Moves the list to what `changed` makes of its entries, whatever else moves it meanwhile."""
    while True:
        before = read_list(store)
        entries = sorted(changed(before.entries), key=lambda entry: (entry.kind, entry.target))
        if tuple(entries) == before.entries:
            return before
        ref = store.put_table(_table(entries), TAKEDOWNS)
        try:
            store.move_ref(*LIST, {"object": asdict(ref) if ref else None}, before.ref)
        except RefMoved:
            continue
        return read_list(store)


def record(store: Store, targets: Sequence[str], reason: str, by: str) -> Takedowns:
    """Adds targets to the list; one that is on it keeps its first reason."""
    wanted = [Entry(*parse_target(target), reason, now(), by) for target in targets]

    def added(entries: Sequence[Entry]) -> list[Entry]:
        there = {(entry.kind, entry.target): entry for entry in (*wanted, *entries)}
        return list(there.values())

    return _change(store, added)


def find_entries(taken: Takedowns, targets: Sequence[str]) -> tuple[Entry, ...]:
    """The entries of those targets. Raises ConfigError for one that is not on the list."""
    wanted = [parse_target(target) for target in targets]
    there = {(entry.kind, entry.target): entry for entry in taken.entries}
    for key in wanted:
        if key not in there:
            raise ConfigError(f"{key[1]} is not taken down; `loam takedown --list` shows what is")
    return tuple(there[key] for key in wanted)


def undo(store: Store, targets: Sequence[str]) -> Takedowns:
    """Takes targets off the list. Raises ConfigError for one that is not on it, or was erased."""
    gone = find_entries(read_list(store), targets)
    for entry in gone:
        if entry.erased_at is not None:
            raise ConfigError(
                f"{entry.target} was erased at {entry.erased_at}: its text is gone, and an empty "
                "document must not come back; it stays on the list"
            )
    keys = {(entry.kind, entry.target) for entry in gone}
    return _change(store, lambda entries: [e for e in entries if (e.kind, e.target) not in keys])


def note_erased(store: Store, targets: Sequence[str]) -> tuple[Entry, ...]:
    """Notes that the text of these entries is being erased, which cannot be undone."""
    keys = {(entry.kind, entry.target) for entry in find_entries(read_list(store), targets)}

    def noted(entries: Sequence[Entry]) -> list[Entry]:
        return [
            replace(e, erased_at=e.erased_at or now()) if (e.kind, e.target) in keys else e
            for e in entries
        ]

    return find_entries(_change(store, noted), targets)


def taken_from_heldout(store: Store, pipeline: str) -> list[str]:
    """The ids in a pipeline's held-out set that the list names: nothing is measured on them."""
    taken, pin = read_list(store), find_pin(store, pipeline, "heldout")
    if not taken.entries or pin is None:
        return []
    rows = store.read_table(pin.object, HELDOUT, ["id", "url"])
    return sorted(taken.named(rows)["id"].to_pylist())


def takedown_request(corpus: Manifest, taken: Takedowns) -> Request:
    """What decides who leaves: the documents and the list."""
    return Request(STAGE, {}, {"corpus": corpus}, taken.pins)


@as_task("takedown")
def takedown(run: Run, corpus: Manifest) -> Manifest:
    """Drops what the store's takedown list names."""
    taken = read_list(run.store)
    request = takedown_request(corpus, taken)
    if done := reuse(run, request):
        return done
    shards = open_corpus(run.store, corpus).shards
    drops = [DROPS.empty()]
    for shard in shards if taken.entries else ():
        drops.append(_drops(live_rows(run.store, shard, columns=["id", "url"]), taken))
    receipts = verdict_receipts(run, request, shards, pa.concat_tables(drops))
    return commit_stage(run, request, receipts, shards)


def _drops(rows: pa.Table, taken: Takedowns) -> pa.Table:
    found = taken.find(rows)
    entries = [taken.entries[index] for index in found.drop_null().to_pylist()]
    ids = rows["id"].filter(pc.is_valid(found)).to_pylist()
    return DROPS.table(
        [
            {"id": id_, "stage": STAGE.name, "reason": REASON, "detail": f"{e.target}: {e.reason}"}
            for id_, e in zip(ids, entries, strict=True)
        ]
    )


@dataclass(frozen=True)
class MarkedModel:
    """A version of a model, and how many documents of its training and of its held-out set are
    taken down."""

    name: str
    version: int
    trained_on: int
    held_out: int


@dataclass(frozen=True)
class Affected:
    """What an entry of the list names: live documents (id, url) by corpus, how many documents the
    store ever held, and the models whose data holds any of them."""

    entry: Entry
    live: dict[str, tuple[tuple[str, str | None], ...]]
    documents: int
    models: tuple[MarkedModel, ...]


def affected(store: Store, entries: Sequence[Entry]) -> list[Affected]:
    """What each entry names, in every corpus and every registered model of the store.

    A document that several of them name counts for one: as `Takedowns.find` tells.
    """
    taken = Takedowns(tuple(entries))
    live = {
        f"corpus/{name}": _by_entry(taken, _live_of(store, store.manifest(ref.manifest), taken))
        for _, name in store.list_refs("corpus")
        if (ref := store.find_ref("corpus", name)) is not None
    }
    ever = _by_entry(taken, _ever(store, taken))
    return [
        Affected(
            entry,
            {
                name: tuple(zip(*(c.to_pylist() for c in found[i].columns), strict=True))
                for name, found in live.items()
            },
            ever[i].num_rows,
            tuple(_models_with(store, ever[i]["id"])),
        )
        for i, entry in enumerate(taken.entries)
    ]


def mark_models(store: Store) -> None:
    """Notes with every registered model how many documents it was trained on that the list names
    as it stands now."""
    ids = _ever(store, read_list(store))["id"]
    counts = {(m.name, m.version): m.trained_on for m in _models_with(store, ids)}
    for name in registry.names(store):
        for version in registry.versions(store, name):
            registry.mark_taken_down(store, version, counts.get((name, version.version), 0))


def _by_entry(taken: Takedowns, rows: pa.Table) -> list[pa.Table]:
    """The rows (columns id, url) that each entry names."""
    found = taken.find(rows)
    return [rows.filter(pc.equal(found, index)) for index in range(len(taken.entries))]


_IDENTITY = pa.schema([("id", pa.string()), ("url", pa.string())])


def _live_of(store: Store, corpus: Manifest, taken: Takedowns) -> pa.Table:
    """The live documents (id, url) of a corpus that the list names."""
    found = [_IDENTITY.empty_table()]
    for shard in open_corpus(store, corpus).shards:
        held = store.read_table(shard.text, DOCUMENTS, _IDENTITY.names)
        if taken.named(held).num_rows:
            found.append(taken.named(live_rows(store, shard, columns=_IDENTITY.names)))
    return pa.concat_tables(found)


def _ever(store: Store, taken: Takedowns) -> pa.Table:
    """The documents (id, url), each once, that the list names among all that anything in the store
    reaches."""
    schemas = {schema.kind: schema for schema in (DOCUMENTS, PAGES, HELDOUT)}
    found = [_IDENTITY.empty_table()]
    for ref in reach(store).objects.values() if taken.entries else ():
        if ref.kind in schemas:
            rows = store.read_table(ref, schemas[ref.kind], _IDENTITY.names)
            found.append(taken.named(rows))
    return (
        pa.concat_tables(found)
        .group_by("id")
        .aggregate([("url", "max")])
        .select(["id", "url_max"])
        .rename_columns(_IDENTITY.names)
    )


def _models_with(store: Store, ids: pa.ChunkedArray) -> Iterator[MarkedModel]:
    """The versions whose dataset holds any of the documents."""
    for name in registry.names(store) if len(ids) else ():
        for version in registry.versions(store, name):
            ref = store.manifest(version.manifests["dataset"]).object("dataset")
            rows = store.read_table(ref, DATASET, ["id", "split"])
            splits = rows.filter(pc.is_in(rows["id"], value_set=ids.combine_chunks()))[
                "split"
            ].to_pylist()
            trained = splits.count("train") + splits.count(f"{ERASED_SPLIT}train")
            if splits:
                yield MarkedModel(name, version.version, trained, len(splits) - trained)
