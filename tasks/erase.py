"""Erase: the text of what is taken down, removed from every object of the store.

An object that holds such a document is written anew with its row emptied: ids, digests and places
stay, so that whatever is aligned to it by position or counts its rows still fits. What stands in
its place is told by `objects/<aa>/<sha256>.erased.json`, which every reader follows; then the old
object is deleted. In that order, so that a kill at any moment loses nothing and the next erase goes
on. Every object is looked at, also those that nothing names. Models and the samples they wrote are
left: they are listed and marked by the takedown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llm import files
from llm.errors import DataError
from llm.progress import tally
from tasks.crawling.erasing import Wanted, erase_records
from tasks.crawling.urls import canonical_url
from tasks.planting import CANARIES
from tasks.split import HELDOUT
from tasks.store.lease import Lease, alone
from tasks.store.reach import ERASED, object_name
from tasks.store.records import Erased, ObjectRef, erased_from, parse, to_json
from tasks.store.schema import DATASET, DOCUMENTS, PAGES, TOKENS, Schema
from tasks.store.store import Store, now
from tasks.takedown import ERASED_SPLIT, Takedowns, note_erased, read_list

# Kinds of table that hold what a document says, or lead to it, and what is emptied of a row.
EMPTIED: dict[str, dict[str, pa.Scalar]] = {
    DOCUMENTS.kind: {
        "text": pa.scalar("", pa.large_string()),
        "meta": pa.scalar(None, pa.string()),
    },
    HELDOUT.kind: {"text": pa.scalar("", pa.large_string()), "meta": pa.scalar(None, pa.string())},
    # Without them the next crawl asks for the whole page, whose links are wanted.
    PAGES.kind: {
        "etag": pa.scalar(None, pa.string()),
        "last_modified": pa.scalar(None, pa.string()),
    },
    TOKENS.kind: {"tokens": pa.scalar([], pa.large_list(pa.uint32()))},
}
_KINDS = {tuple(s.arrow.names): s for s in (DOCUMENTS, HELDOUT, PAGES, TOKENS, DATASET, CANARIES)}
_WITH_URL = frozenset({DOCUMENTS.kind, HELDOUT.kind, PAGES.kind})


@dataclass(frozen=True)
class Erasure:
    """How many documents were found, in how many objects, and how many bytes were deleted."""

    documents: int
    objects: int
    bytes: int


def erase(store: Store, targets: Sequence[str], say: Callable[[str], None]) -> Erasure:
    """Erases the text of what the targets name, and finishes what a killed erase left.

    Raises ConfigError for a target that is not taken down, StoreInUse while a run is at work.
    """
    with alone(store.root, say) as lease:
        note_erased(store, targets)
        return _Eraser(store, erased_list(store), lease).run()


def erased_list(store: Store) -> Takedowns:
    """The part of the takedown list whose text must not be in the store."""
    entries = read_list(store).entries
    return Takedowns(tuple(entry for entry in entries if entry.erased_at is not None))


def emptied(rows: pa.Table, schema: Schema, gone: pa.Array) -> pa.Table:
    """The rows, those at `gone` (bool) emptied of what they say."""
    for name, nothing in EMPTIED[schema.kind].items():
        at, type_ = rows.column_names.index(name), rows.schema.field(name).type
        values = rows.column(name).combine_chunks()
        rows = rows.set_column(
            at, rows.schema.field(name), pc.if_else(gone, nothing.cast(type_), values)
        )
    return rows


def without_erased(rows: pa.Table, schema: Schema, taken: Takedowns) -> pa.Table:
    """Rows that are about to enter the store, emptied where they were erased before."""
    if not taken.entries or not rows.num_rows:
        return rows
    return emptied(rows, schema, pc.is_valid(taken.find(rows)))


def take_out_of_file(path: Path, pages: pa.Table, taken: Takedowns) -> None:
    """Takes what was erased before out of a WARC file that is about to enter the store; `pages`
    are the rows of PAGES that lie in it."""
    if not taken.entries:
        return
    offsets = taken.named(pages)["warc_offset"].to_pylist()
    body, count = erase_records(path.read_bytes(), wanted_records(taken, offsets))
    if count:
        path.write_bytes(body)


def wanted_records(taken: Takedowns, offsets: Iterable[int]) -> Wanted:
    """Which records of a WARC file are to be erased: those at the offsets, and those about an
    address that is taken down."""
    at = frozenset(offsets)

    def wanted(address: str, offset: int) -> bool:
        if offset in at:
            return True
        url = canonical_url(address)
        return url is not None and taken.names(url)

    return wanted


class _Eraser:
    def __init__(self, store: Store, taken: Takedowns, lease: Lease) -> None:
        self.store, self.taken, self.lease = store, taken, lease
        self.targets = tuple(entry.target for entry in taken.entries)
        self.urls = files.list_urls(f"{store.root}/objects")
        marks = [url for url in self.urls if url.endswith(ERASED)]
        bodies = zip(marks, files.read_many(marks), strict=True)
        self.erased = {object_name(u): erased_from(parse(body or b"", u), u) for u, body in bodies}

    def run(self) -> Erasure:
        tables = {url: schema for url in self._whole("parquet") if (schema := _schema_of(url))}
        ids, places = self._find(tables)
        with tally("erase", "objects", len(tables)) as progress:
            for url, schema in tables.items():
                if schema.kind in EMPTIED:
                    self._empty(url, schema, ids)
                progress.advance()
        for url in self._whole("warc", "warc.gz"):
            self._empty_warc(url, places.get(object_name(url), ()))
        for url, schema in tables.items():
            if schema is DATASET:
                self._point_anew(url, ids)
        return self._delete(len(ids))

    def _whole(self, *extensions: str) -> list[str]:
        """The objects of those extensions in whose place no other stands."""
        return [
            url
            for url in self.urls
            if url.rsplit("/", 1)[1].partition(".")[2] in extensions
            and object_name(url) not in self.erased
        ]

    def _find(self, tables: dict[str, Schema]) -> tuple[pa.Array, dict[str, list[int]]]:
        """The ids that are taken down, and where their pages lie: offsets by WARC object."""
        ids: set[str] = set()
        places: dict[str, list[int]] = {}
        for url, schema in tables.items():
            if schema.kind not in _WITH_URL:
                continue
            where = ["warc", "warc_offset"] if schema is PAGES else []
            for row in self.taken.named(_read(url, ["id", "url", *where])).to_pylist():
                ids.add(row["id"])
                if schema is PAGES:
                    places.setdefault(self._end(row["warc"]), []).append(row["warc_offset"])
        for url in (url for url, schema in tables.items() if schema is CANARIES):
            ids |= _copies(_read(url, ["id", "host", "twin"]), ids)
        return pa.array(sorted(ids), pa.string()), places

    def _end(self, name: str) -> str:
        """The object that stands in the place of another by now."""
        while (erased := self.erased.get(name)) is not None and erased.successor is not None:
            name = erased.successor.sha256
        return name

    def _empty(self, url: str, schema: Schema, ids: pa.Array) -> None:
        """Puts an object in the place of a table that still says something of those documents."""
        held = pc.is_in(_read(url, ["id"])["id"], value_set=ids)
        if not pc.any(held).as_py():
            return
        rows = _read(url).combine_chunks()
        gone = held.combine_chunks()
        anew = emptied(rows, schema, gone)
        if not anew.equals(rows):
            self._replace(url, self.store.put_table(anew, schema), pc.sum(gone).as_py())

    def _empty_warc(self, url: str, offsets: Sequence[int]) -> None:
        if not offsets and all(entry.kind == "id" for entry in self.taken.entries):
            return
        try:
            body, count = erase_records(files.read_bytes(url), wanted_records(self.taken, offsets))
        except DataError as error:
            raise DataError(f"{url}: {error}") from None
        if count:
            extension = url.rsplit("/", 1)[1].partition(".")[2]
            self._replace(url, self.store.put_bytes(body, "warc", extension), count)

    def _point_anew(self, url: str, ids: pa.Array) -> None:
        """Takes the documents out of a dataset's splits, and names the token shards that are there
        now. Their rows stay, so that it can be told which models were trained on them."""
        rows = _read(url).combine_chunks()
        split = rows["split"].combine_chunks()
        gone = pc.and_(
            pc.is_in(rows["id"], value_set=ids).combine_chunks(),
            pc.invert(pc.starts_with(split, ERASED_SPLIT)),
        )
        names = rows["object"].combine_chunks().dictionary_encode()
        ends = [self._end_of_path(path) for path in names.dictionary.to_pylist()]
        columns = {
            "split": pc.if_else(gone, pc.binary_join_element_wise(ERASED_SPLIT, split, ""), split),
            "object": pa.array(ends, pa.string()).take(names.indices),
        }
        anew = rows
        for name, column in columns.items():
            anew = anew.set_column(anew.column_names.index(name), name, column)
        if not anew.equals(rows):
            self._replace(url, self.store.put_table(anew, DATASET), pc.sum(gone).as_py())

    def _end_of_path(self, path: str) -> str:
        end = self._end(object_name(path))
        return f"objects/{end[:2]}/{end}.parquet"

    def _replace(self, url: str, successor: ObjectRef | None, rows: int) -> None:
        self.lease.check()
        erased = Erased(successor, rows, self.targets, now())
        name = object_name(url)
        files.create(self.store.erased_url(name), to_json(erased))
        self.erased[name] = erased

    def _delete(self, documents: int) -> Erasure:
        """Deletes every object in whose place another stands; also one that came back, because it
        was made anew from a source that still has the document."""
        gone = [
            url
            for url in files.list_urls(f"{self.store.root}/objects")
            if object_name(url) in self.erased and not url.endswith(ERASED)
        ]
        size = sum(files.size(url) for url in gone)
        for url in gone:
            self.lease.check()
            files.delete(url)
        return Erasure(documents, len(gone), size)


def _copies(canaries: pa.Table, ids: set[str]) -> set[str]:
    """The ids of the canaries that are copies of those documents."""
    rows = canaries.filter(pc.is_in(canaries["host"], value_set=pa.array(sorted(ids), pa.string())))
    return {id_ for name in ("id", "twin") for id_ in rows[name].to_pylist() if id_}


def _read(url: str, columns: list[str] | None = None) -> pa.Table:
    filesystem, path = files.arrow_filesystem(url)
    with files.explained(url, "reading"):
        return pq.read_table(path, columns=columns, filesystem=filesystem)


def _schema_of(url: str) -> Schema | None:
    """The kind of a table that may hold documents, told by its columns; None for any other."""
    filesystem, path = files.arrow_filesystem(url)
    with files.explained(url, "reading"):
        return _KINDS.get(tuple(pq.read_schema(path, filesystem=filesystem).names))
