"""Ingest: a source's snapshot brought up to date, by crawling or importing. The impure boundary.

A source is looked at again only when its `max_age_s` has passed, its config changed, or the run was
told to refresh. Everything after a snapshot is a pure function of it.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llm.errors import ConfigError, DataError, StorageError
from llm.files import NO_ROOM
from tasks.as_task import as_task
from tasks.crawling.config import CrawlConfig
from tasks.importing.files import OPTIONS, FileRef, explained, read_files
from tasks.importing.rows import read_file
from tasks.journal import StoreJournal, open_session
from tasks.payloads import PayloadReader
from tasks.progress import tally
from tasks.snapshot import (
    Ingest,
    append,
    check_losses,
    find_snapshot,
    live_index,
    refreshed_within,
    touch,
)
from tasks.sources import CrawlSource, ImportSource, PydocSource, Source
from tasks.store.corpus import snapshot_shards
from tasks.store.fingerprint import canonical, differences
from tasks.store.records import Manifest, ObjectRef
from tasks.store.rows import row_hashes
from tasks.store.run import Run, WouldRun
from tasks.store.schema import DOCUMENTS, PAGES, QUARANTINE, Schema
from tasks.store.stage import Stage
from tasks.store.store import Ref, Store, now

CRAWL_STAGE = Stage("crawl", 1)
IMPORT_STAGE = Stage("import", 1)

PYDOC_HOST = "http://python.loam.test/"
_NOT_MEANT = frozenset({"kind", "name", "max_loss", "max_age_s"})


@as_task("ingest")
def ingest(run: Run, source: Source) -> Manifest:
    """The source's snapshot, looked at anew where that is due."""
    seen, previous = find_snapshot(run, source.name)
    config = _semantic(source, run.sample)
    why = _why_look(run, source, config, seen, previous)
    if not why and previous is not None:
        return previous
    if run.planning:
        raise WouldRun(f"ingest {source.name}", why)
    if isinstance(source, ImportSource):
        return _import(run, source, config, seen, previous)
    return _crawl(run, source, config, seen, previous)


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """A folder on the local disk that is gone afterwards. Raises StorageError where it fills up."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            yield Path(folder)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise StorageError(
                f"{folder}: there is no room for what is being read, the disk is full or a limit "
                f"is reached ({error}); free some room, or set TMPDIR to a folder with more, and "
                "run again"
            ) from error


def _semantic(source: Source, sample: int | None) -> dict[str, Any]:
    """The settings that decide what a source's snapshot holds."""
    if isinstance(source, CrawlSource):
        config = source.semantic()
    else:
        config = source.model_dump(mode="json")
    kept = {name: value for name, value in config.items() if name not in _NOT_MEANT}
    if isinstance(source, PydocSource):
        kept["python"] = platform.python_version()
    return canonical({**kept, "kind": source.kind, "sample": sample})


def _why_look(
    run: Run,
    source: Source,
    config: Mapping[str, Any],
    seen: Ref | None,
    previous: Manifest | None,
) -> list[str]:
    """Why the source is to be looked at again; empty when it is not."""
    if seen is None or previous is None:
        return ["it was never read"]
    if run.refresh:
        return ["--refresh"]
    if changed := differences(previous.payload["config"], config):
        return changed
    max_age_s = None if isinstance(source, PydocSource) else source.max_age_s
    if refreshed_within(seen, max_age_s):
        return []
    if not isinstance(source, ImportSource):
        return [f"last read at {seen.at}, more than {max_age_s:g} s ago"]
    tokens = {file.path: file.token for file in read_files(source)}
    return differences(previous.summary["files"], tokens)


# crawl


def _crawl(
    run: Run,
    source: CrawlSource | PydocSource,
    config: Mapping[str, Any],
    seen: Ref | None,
    previous: Manifest | None,
) -> Manifest:
    from tasks.crawling.crawl import crawl

    began = time.monotonic()
    live = live_index(run.store, previous, PAGES)
    known = _known_pages(run.store, previous)
    session = open_session(run, source.name, config, previous)
    with ExitStack() as stack:
        workdir = stack.enter_context(_temporary_folder())
        settings = _settings(source, run.sample, workdir, stack)
        reader = stack.enter_context(PayloadReader(run.store))
        progress = stack.enter_context(tally(f"crawl {source.name}", "pages"))
        journal = StoreJournal(run, session, source.name)

        def show(at: Any) -> None:
            progress.total = at.fetched + at.queued
            progress.advance(at.fetched - progress.done, f"depth {at.depth}")

        result = crawl(
            settings,
            source.name,
            {row: page for row, (page, _, _) in known.items()},
            journal,
            workdir / "warc",
            now,
            lambda row: reader.read(*known[row][1:]),
            show,
        )
    if journal.resumed:
        run.say(f"crawl {source.name}: {journal.resumed} batches were fetched before the stop")
    gone = set(result.gone)
    if result.complete:
        gone |= known.keys() - result.seen_ids
    rows = pa.concat_tables([PAGES.empty(), *(batch.pages for batch in result.batches)])
    try:
        check_losses(source.name, len(gone), len(live), source.max_loss, run.accept_losses)
        if not live and not rows.num_rows:
            counts = ", ".join(f"{n} {what}" for what, n in result.counts.items())
            raise DataError(
                f"{source.name}: the crawl found no page ({counts or 'no answer'}); check the "
                "seeds, and allow_private for a server on a private address"
            )
    except DataError:
        # The next run must ask the site again, not remember what it said today.
        session.close()
        raise
    if not result.complete:
        run.say(f"crawl {source.name}: not complete: {'; '.join(result.incomplete_because[:3])}")
    found = Ingest(
        schema=PAGES,
        rows=[_one_per_id(rows)],
        gone=sorted(gone),
        quarantine=_unread(source.name, result.outcomes),
        objects={"warc": tuple(journal.warcs)},
        summary={
            "outcomes": result.counts,
            "complete": result.complete,
            "incomplete_because": list(result.incomplete_because),
        },
        seconds=time.monotonic() - began,
    )
    manifest = append(run, CRAWL_STAGE, source.name, config, seen, previous, found, live)
    session.close()
    return manifest


def _settings(
    source: CrawlSource | PydocSource, sample: int | None, workdir: Path, stack: ExitStack
) -> CrawlConfig:
    """How to crawl; for the Python documentation, that of a site rendered and served here."""
    if isinstance(source, CrawlSource):
        settings: CrawlConfig = source
    else:
        from tasks import pydoc_site

        site = workdir / "site"
        pydoc_site.render_site(site, PYDOC_HOST, source.modules or None)
        base = stack.enter_context(pydoc_site.serve(site))
        settings = CrawlConfig(
            seeds=(PYDOC_HOST,),
            mirror={PYDOC_HOST: base},
            allow_private=(base.split("/")[2],),
            license="PSF-2.0",
            delay_s=0,
            per_host=8,
            max_pages=source.max_pages,
        )
    if sample is None:
        return settings
    return settings.model_copy(update={"max_pages": min(sample, settings.max_pages)})


def _known_pages(store: Store, previous: Manifest | None) -> dict[str, tuple[Any, str, int]]:
    """Live pages by id: what a new fetch is compared with, and where the payload lies."""
    from tasks.crawling.result import KnownPage

    known: dict[str, tuple[Any, str, int]] = {}
    for shard in snapshot_shards(store, previous) if previous else ():
        dead = frozenset(shard.dead)
        for row in store.read_table(shard.extras[PAGES.kind], PAGES).to_pylist():
            if row["id"] not in dead:
                page = KnownPage(
                    id=row["id"],
                    payload_sha256=row["payload_sha256"],
                    etag=row["etag"],
                    last_modified=row["last_modified"],
                    content_type=row["content_type"],
                    license=row["license"],
                )
                known[row["id"]] = (page, row["warc"], row["warc_offset"])
    return known


def _one_per_id(rows: pa.Table) -> pa.Table:
    """The rows with each id once; the crawl fetches a URL once, so this only guards the log."""
    ids = rows.column("id").to_pylist()
    if len(set(ids)) != len(ids):
        raise DataError("the crawl returned one page twice; this is a fault in Loam")
    return rows.sort_by("id")


_UNREAD = ("error:", "too_large", "content_type", "robots", "noindex", "out_of_scope")


def _unread(source: str, outcomes: tuple[Any, ...]) -> pa.Table:
    """What the crawl could not read or was not allowed to, as quarantine."""
    return QUARANTINE.table(
        [
            {
                "source": source,
                "locator": outcome.url,
                "stage": "crawl",
                "reason": outcome.outcome.removeprefix("error:"),
                "detail": outcome.detail or (str(outcome.status) if outcome.status else None),
            }
            for outcome in outcomes
            if outcome.outcome.startswith(_UNREAD)
        ]
    )


# import


def _import(
    run: Run,
    source: ImportSource,
    config: Mapping[str, Any],
    seen: Ref | None,
    previous: Manifest | None,
) -> Manifest:
    began = time.monotonic()
    files = read_files(source)
    tokens = {file.path: file.token for file in files}
    if seen is not None and previous is not None:
        same = previous.summary.get("files") == tokens
        if same and previous.payload["config"] == config and not run.refresh:
            return touch(run, source.name, previous, seen)
    with _temporary_folder() as folder:
        staged = _stage(run, source, files, folder)
        live = live_index(run.store, previous, staged.schema)
        chosen, quarantine = staged.winners(source.name)
        gone = sorted(live.keys() - chosen.keys())
        check_losses(source.name, len(gone), len(live), source.max_loss, run.accept_losses)
        if not chosen and not live:
            raise DataError(
                f"{source.name}: {len(files)} files hold no document that can be read "
                f"({quarantine.num_rows} records set aside); check paths, format and text_field"
            )
        fresh = {
            place
            for row, (place, row_hash) in chosen.items()
            if row not in live or live[row].row_hash != row_hash
        }
        found = Ingest(
            schema=staged.schema,
            rows=staged.rows(fresh),
            gone=gone,
            quarantine=quarantine,
            objects={"warc": staged.warcs},
            summary={"files": tokens},
            seconds=time.monotonic() - began,
        )
        return append(run, IMPORT_STAGE, source.name, config, seen, previous, found, live)


class _Staged:
    """The rows of an import, on local disk until it is known which of them are new."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.schema: Schema = DOCUMENTS
        self.parts: list[Path] = []
        self.quarantined: list[pa.Table] = []
        self.warcs: tuple[ObjectRef, ...] = ()
        self.best: dict[str, tuple[tuple[str, ...], int, int]] = {}
        self.lost: list[tuple[str, str]] = []
        self.n_rows = 0

    def add(self, table: pa.Table) -> None:
        """Stages rows and settles who wins where an id comes twice: the latest fetch, then the
        smallest digest."""
        digest = "digest" if self.schema is DOCUMENTS else "payload_sha256"
        columns = (table.column(name).to_pylist() for name in ("id", "fetched_at", digest, "url"))
        hashes = row_hashes(table, self.schema)
        for row, fetched_at, said, url, row_hash in zip(*columns, hashes, strict=True):
            claim = (_descending(fetched_at or ""), said, f"{row_hash:064x}")
            held = self.best.get(row)
            if held is None or claim < held[0]:
                self.best[row] = (claim, self.n_rows, row_hash)
            if held is not None:
                self.lost.append((row, url or row))
            self.n_rows += 1
        path = self.folder / f"{len(self.parts):06d}.parquet"
        pq.write_table(table, path, compression="lz4")
        self.parts.append(path)

    def winners(self, source: str) -> tuple[dict[str, tuple[int, int]], pa.Table]:
        """(place, row hash) of the live row of each id, and what was set aside."""
        twice = [
            {
                "source": source,
                "locator": url,
                "stage": "import",
                "reason": "duplicate_id",
                "detail": f"id {row} comes more than once; the latest is kept",
            }
            for row, url in sorted(self.lost)
        ]
        quarantine = pa.concat_tables([*self.quarantined, QUARANTINE.table(twice)])
        return {row: (place, h) for row, (_, place, h) in self.best.items()}, quarantine

    def rows(self, places: set[int]) -> Iterator[pa.Table]:
        """The staged rows at those places."""
        start = 0
        for path in self.parts:
            table = pq.read_table(path, schema=self.schema.arrow)
            mask = np.fromiter((start + i in places for i in range(table.num_rows)), np.bool_)
            start += table.num_rows
            yield table.filter(pa.array(mask))


def _descending(text: str) -> str:
    """A key under which later times sort first."""
    return "".join(chr(0x10FFFF - ord(c)) for c in text) + "\U0010ffff"


def _stage(run: Run, source: ImportSource, files: list[FileRef], folder: Path) -> _Staged:
    staged = _Staged(folder)
    left = run.sample
    warcs: dict[str, ObjectRef] = {}
    with tally(f"import {source.name}", "files", len(files)) as progress:
        for file in files:
            for chunk in read_file(file, source, source.name, now()):
                if chunk.pages.num_rows and not staged.n_rows:
                    staged.schema = PAGES
                pages = staged.schema is PAGES
                table = chunk.pages if pages else chunk.documents
                other = chunk.documents if pages else chunk.pages
                if other.num_rows:
                    raise ConfigError(
                        f"{source.name}: {file.url} and the files before it hold documents and "
                        "responses of a web server (WARC); make them two sources"
                    )
                if chunk.pages.num_rows:
                    table = _kept_warc(run.store, table, file, warcs, folder)
                staged.add(table if left is None else table.slice(0, left))
                left = None if left is None else max(0, left - table.num_rows)
                staged.quarantined.append(chunk.quarantine)
                if left == 0:
                    break
            progress.advance()
            if left == 0:
                break
    staged.warcs = tuple(warcs.values())
    return staged


def _kept_warc(
    store: Store, pages: pa.Table, file: FileRef, warcs: dict[str, ObjectRef], folder: Path
) -> pa.Table:
    """Pages of an imported WARC file, whose bytes become an object of ours."""
    import fsspec

    if file.url not in warcs:
        local = folder / "imported.warc"
        opened = fsspec.open(file.url, "rb", **OPTIONS)
        with explained(file.url), opened as source, local.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 24)
        extension = "warc.gz" if file.url.endswith(".gz") else "warc"
        warcs[file.url] = store.put_local_file(local, "warc", extension)
    name = warcs[file.url].sha256
    at = pages.schema.get_field_index("warc")
    return pages.set_column(at, "warc", pa.array([name] * pages.num_rows, pa.string()))
