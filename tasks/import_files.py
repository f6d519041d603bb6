"""Importing: a source's files read, of which only the new and the changed ones are opened.

What each file was found to hold is kept beside the snapshot as *claims*: file, id, date, digest and
row hash of every record. So the live rows can be settled over all files, as if all had been read
again, while the unchanged ones stay closed; and only for the ids that some new, changed or vanished
file tells of, since for any other the claim that lives is the one that did.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llm.errors import ConfigError, DataError
from llm.progress import tally
from tasks.erase import erased_list, take_out_of_file, without_erased
from tasks.importing.files import OPTIONS, FileRef, explained, read_files
from tasks.importing.rows import LIBRARIES, format_of, read_file
from tasks.snapshot import Ingest, append, check_losses, live_index, shards_of, touch
from tasks.sources import ImportSource
from tasks.store.records import Manifest, ObjectRef
from tasks.store.rows import hashed_rows
from tasks.store.run import Run
from tasks.store.schema import CLAIMS, DOCUMENTS, PAGES, QUARANTINE, Schema
from tasks.store.stage import Stage
from tasks.store.store import Ref, Store, now

IMPORT_STAGE = Stage("import", 2)

# Claims of this ingest know where their rows are staged; the others' are in the snapshot.
_STAGED = CLAIMS.arrow.append(pa.field("place", pa.int64()))


def import_files(
    run: Run,
    source: ImportSource,
    config: Mapping[str, Any],
    seen: Ref | None,
    previous: Manifest | None,
    folder: Path,
) -> Manifest:
    """The snapshot of a source of files, brought up to date; `folder` holds what is being read."""
    began = time.monotonic()
    files = read_files(source)
    tokens = file_marks(files, source)
    closed: list[str] = []
    if seen and previous and previous.payload["config"] == config and not run.refresh:
        before = previous.summary["files"]
        if before == tokens:
            return touch(run, source.name, previous, seen)
        # Of a sample files were left out that a change may let in: it is small, and read anew.
        if "claims" in previous.objects and run.sample is None:
            closed = [path for path, token in tokens.items() if before.get(path) == token]
    earlier = _Earlier.of(run.store, previous, closed)
    staged = _Staged(run, source, folder, _schema_of(earlier.closed, previous, run.store))
    staged.read([file for file in files if file.path not in set(closed)])
    shards_of(run.store, previous, staged.schema)
    ids = earlier.touched(staged)
    live = earlier.live(staged.schema, ids)
    while True:
        claims = staged.over(earlier.closed)
        winners = _winners(_of_ids(claims, ids))
        fresh = _fresh(winners, live)
        opened = set(fresh["file"].to_pylist()) - staged.files
        if not opened:
            break
        # These files are as they were, but a row of theirs lost to another file's until now.
        staged.read([file for file in files if file.path in opened])
    gone = sorted(live.keys() - set(winners["id"].to_pylist()))
    n_live = previous.rows_out if previous else 0
    check_losses(source.name, len(gone), n_live, source.max_loss, run.accept_losses)
    still_closed = set(closed) - staged.files
    quarantine = pa.concat_tables(
        [
            *staged.quarantined,
            _quarantine_of(run.store, previous, still_closed),
            _duplicates(source.name, claims),
        ]
    )
    if not claims.num_rows and not n_live:
        raise DataError(
            f"{source.name}: {len(files)} files hold no document that can be read "
            f"({quarantine.num_rows} records set aside); check paths, format and text_field"
        )
    found = Ingest(
        schema=staged.schema,
        rows=staged.rows(fresh["place"].to_numpy()),
        gone=gone,
        quarantine=quarantine,
        objects={"warc": tuple(staged.warcs.values())},
        current={"claims": earlier.put_claims(claims, still_closed)},
        summary={"files": tokens},
        seconds=time.monotonic() - began,
    )
    changed = pa.array([*gone, *fresh["id"].to_pylist()], pa.string())
    superseded = live_index(run.store, previous, staged.schema, changed)
    return append(run, IMPORT_STAGE, source.name, config, seen, previous, found, superseded)


def file_marks(files: Sequence[FileRef], source: ImportSource) -> dict[str, str]:
    """What changes, by path, when a file is to be read again: its own token, and the versions of
    this stage and of the libraries that decide what comes of it."""
    formats = {file.path: format_of(file.path, source) for file in files}
    read_by = {
        known: [f"{name} {version(name)}" for name in LIBRARIES.get(known, ())]
        for known in set(formats.values())
    }
    return {
        file.path: " ".join([file.token, f"v{IMPORT_STAGE.version}", *read_by[formats[file.path]]])
        for file in files
    }


MOST_CLAIMS = 32
"""Objects of claims beside a snapshot at the most: more of them are written as one."""


@dataclass(frozen=True)
class _Earlier:
    """What earlier ingests found: `parts` are the objects of claims with what they hold, `all_` is
    what they hold together, and `closed` that part of it which is of files that stay closed."""

    store: Store
    snapshot: Manifest | None
    parts: tuple[tuple[ObjectRef, pa.Table], ...]
    all_: pa.Table
    closed: pa.Table

    @classmethod
    def of(cls, store: Store, snapshot: Manifest | None, closed: Sequence[str]) -> _Earlier:
        refs = snapshot.objects.get("claims", ()) if snapshot else ()
        parts = tuple((ref, store.read_table(ref, CLAIMS)) for ref in refs)
        all_ = pa.concat_tables([CLAIMS.empty(), *(table for _, table in parts)])
        kept = pc.is_in(all_["file"], pa.array(closed, pa.string()))
        return cls(store, snapshot, parts, all_, all_.filter(kept))

    def touched(self, staged: _Staged) -> pa.Array | None:
        """The ids of which another claim than before may live; None: it may be of any.

        That is so where rows were emptied by an erase since they were claimed.
        """
        if erased_list(self.store).entries:
            return None
        gone = self.all_.filter(pc.invert(pc.is_in(self.all_["file"], _names(self.closed))))
        opened = [claims["id"] for claims in staged.claims]
        ids = pa.chunked_array([*gone["id"].chunks, *(c for i in opened for c in i.chunks)])
        return ids.unique() if len(ids) else pa.array([], pa.string())

    def live(self, schema: Schema, ids: pa.Array | None) -> dict[str, int]:
        """The row hashes of the snapshot's live rows, of those ids or of all."""
        if ids is None or (self.snapshot is not None and "claims" not in self.snapshot.objects):
            live = live_index(self.store, self.snapshot, schema, ids)
            return {id_: row.row_hash for id_, row in live.items()}
        return _hashes(_winners(_of_ids(self.all_, ids)))

    def put_claims(self, claims: pa.Table, closed: set[str]) -> tuple[ObjectRef, ...]:
        """The objects that hold these claims: the earlier ones whose files all stayed `closed`, and
        one of the rest."""
        kept = [
            (ref, table)
            for ref, table in self.parts
            if closed.issuperset(table["file"].unique().to_pylist())
        ]
        if len(kept) >= MOST_CLAIMS:
            kept = []
        held = pa.concat_tables([CLAIMS.empty(), *(table for _, table in kept)])
        rest = claims.filter(pc.invert(pc.is_in(claims["file"], _names(held))))
        ref = self.store.put_table(rest.select(CLAIMS.arrow.names), CLAIMS)
        return (*(ref for ref, _ in kept), *((ref,) if ref else ()))


def _names(claims: pa.Table) -> pa.Array:
    """The files that the claims are of."""
    return claims["file"].unique()


def _of_ids(claims: pa.Table, ids: pa.Array | None) -> pa.Table:
    return claims if ids is None else claims.filter(pc.is_in(claims["id"], value_set=ids))


def _hashes(claims: pa.Table) -> dict[str, int]:
    hashes = (int.from_bytes(row_hash, "little") for row_hash in claims["row_hash"].to_pylist())
    return dict(zip(claims["id"].to_pylist(), hashes, strict=True))


def _schema_of(known: pa.Table, previous: Manifest | None, store: Store) -> Schema | None:
    """What the rows of the files that stay closed are; None where all are opened."""
    if previous is None or not known.num_rows:
        return None
    kinds = {ref.kind for receipt in store.receipts(previous) for ref in receipt.outputs}
    return PAGES if PAGES.kind in kinds else DOCUMENTS


def _quarantine_of(store: Store, previous: Manifest | None, closed: set[str]) -> pa.Table:
    """What earlier ingests set aside of the files that stay closed, but for lost duplicates."""
    rows = [
        row
        for ref in (previous.objects.get(QUARANTINE.kind, ()) if previous else ())
        for row in store.read_table(ref, QUARANTINE).to_pylist()
        if row["reason"] != _DUPLICATE
        and (row["locator"] in closed or row["locator"].rpartition(":")[0] in closed)
    ]
    return QUARANTINE.table(rows)


_DUPLICATE = "duplicate_id"


def _winners(claims: pa.Table) -> pa.Table:
    """The claim that lives, of each id: the latest date, then the smallest digest and row hash, and
    of equal ones that of the first file."""
    order = [
        ("id", "ascending"),
        ("fetched_at", "descending"),
        ("digest", "ascending"),
        ("row_hash", "ascending"),
        ("file", "ascending"),
    ]
    claims = claims.sort_by(order).combine_chunks()
    ids = claims["id"].combine_chunks()
    first = np.ones(len(ids), np.bool_)
    if len(ids) > 1:
        first[1:] = pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
    return claims.filter(pa.array(first))


def _fresh(winners: pa.Table, live: Mapping[str, int]) -> pa.Table:
    """The winners that the snapshot does not hold yet; `live` are its row hashes."""
    new = [live.get(id_) != row_hash for id_, row_hash in _hashes(winners).items()]
    return winners.filter(pa.array(new, pa.bool_()))


def _duplicates(source: str, claims: pa.Table) -> pa.Table:
    """The claims that lost, set aside."""
    counts = claims["id"].value_counts()
    several = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    rivals = _of_ids(claims, several)
    winners = _winners(rivals)
    held = dict(zip(winners["id"].to_pylist(), winners["file"].to_pylist(), strict=True))
    paths: dict[str, list[str]] = {}
    for id_, path in zip(rivals["id"].to_pylist(), rivals["file"].to_pylist(), strict=True):
        paths.setdefault(id_, []).append(path)
    rows = []
    for id_ in sorted(paths):
        lost = sorted(paths[id_])
        lost.remove(held[id_])
        rows += [(path, f"id {id_} comes more than once; the latest is kept") for path in lost]
    return QUARANTINE.table(
        [
            {
                "source": source,
                "locator": path,
                "stage": "import",
                "reason": _DUPLICATE,
                "detail": detail,
            }
            for path, detail in rows
        ]
    )


class _Staged:
    """The rows of the files that were opened, on local disk until it is known which are new."""

    def __init__(self, run: Run, source: ImportSource, folder: Path, schema: Schema | None) -> None:
        self.run, self.source, self.folder = run, source, folder
        self.schema: Schema = schema or DOCUMENTS
        self.files: set[str] = set()
        self.quarantined: list[pa.Table] = []
        self.warcs: dict[str, ObjectRef] = {}
        self._parts: list[Path] = []
        self.claims: list[pa.Table] = []
        self._n_rows = 0
        self._settled = schema is not None
        self._erased = erased_list(run.store)

    def read(self, files: Sequence[FileRef]) -> None:
        """Stages what the files hold; of a sample, no more than its share."""
        most = self.run.sample
        with tally(f"import {self.source.name}", "files", len(files)) as progress:
            for file in files:
                self.files.add(file.path)
                for chunk in read_file(file, self.source, self.source.name, now()):
                    if chunk.pages.num_rows and not self._settled:
                        self.schema = PAGES
                    self._settled = self._settled or bool(chunk.documents.num_rows)
                    self._settled = self._settled or bool(chunk.pages.num_rows)
                    pages = self.schema is PAGES
                    table = chunk.pages if pages else chunk.documents
                    if (chunk.documents if pages else chunk.pages).num_rows:
                        raise ConfigError(
                            f"{self.source.name}: {file.url} and the files before it hold "
                            "documents and responses of a web server (WARC); make them two sources"
                        )
                    if pages:
                        table = self._kept_warc(table, file)
                    left = None if most is None else most - self._n_rows
                    self._add(table.slice(0, left), file)
                    self.quarantined.append(chunk.quarantine)
                    if most is not None and self._n_rows >= most:
                        return
                progress.advance()

    def _add(self, table: pa.Table, file: FileRef) -> None:
        table = without_erased(table, self.schema, self._erased)
        digest = "digest" if self.schema is DOCUMENTS else "payload_sha256"
        n_rows = table.num_rows
        columns = {
            "file": pa.array([file.path] * n_rows, pa.string()),
            "id": table["id"],
            "fetched_at": pc.fill_null(table["fetched_at"], ""),
            "digest": table[digest],
            "row_hash": pa.array(hashed_rows(table, self.schema), pa.binary()),
            "place": pa.array(range(self._n_rows, self._n_rows + n_rows), pa.int64()),
        }
        self.claims.append(pa.table(columns, schema=_STAGED))
        path = self.folder / f"{len(self._parts):06d}.parquet"
        pq.write_table(table, path, compression="lz4")
        self._parts.append(path)
        self._n_rows += n_rows

    def over(self, known: pa.Table) -> pa.Table:
        """The claims of the opened files, and those known of the others."""
        opened = pa.array(sorted(self.files), pa.string())
        closed = known.filter(pc.invert(pc.is_in(known["file"], opened)))
        closed = closed.append_column("place", pa.array([-1] * closed.num_rows, pa.int64()))
        return pa.concat_tables([closed, *self.claims])

    def rows(self, places: npt.NDArray[np.int64]) -> Iterator[pa.Table]:
        """The staged rows at those places."""
        wanted = np.zeros(self._n_rows, np.bool_)
        wanted[places] = True
        start = 0
        for path in self._parts:
            table = pq.read_table(path, schema=self.schema.arrow)
            yield table.filter(pa.array(wanted[start : start + table.num_rows]))
            start += table.num_rows

    def _kept_warc(self, pages: pa.Table, file: FileRef) -> pa.Table:
        """Pages of an imported WARC file, whose bytes become an object of ours."""
        import fsspec

        if file.url not in self.warcs:
            local = self.folder / "imported.warc"
            opened = fsspec.open(file.url, "rb", **OPTIONS)
            with explained(file.url), opened as source, local.open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 24)
            take_out_of_file(local, pages, self._erased)
            extension = "warc.gz" if file.url.endswith(".gz") else "warc"
            self.warcs[file.url] = self.run.store.put_local_file(local, "warc", extension)
        name = self.warcs[file.url].sha256
        at = pages.schema.get_field_index("warc")
        return pages.set_column(at, "warc", pa.array([name] * pages.num_rows, pa.string()))
