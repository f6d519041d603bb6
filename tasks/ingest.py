"""Ingest: a source's snapshot brought up to date, by crawling or importing. The impure boundary.

A source is looked at again only when its `max_age_s` has passed, its config changed, or the run was
told to refresh. Everything after a snapshot is a pure function of it.
"""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from llm.errors import DataError, StorageError
from llm.files import NO_ROOM
from llm.progress import tally
from tasks.as_task import as_task
from tasks.crawling.config import CrawlConfig
from tasks.import_files import file_marks, import_files
from tasks.importing.files import read_files
from tasks.journal import StoreJournal, open_session
from tasks.payloads import PayloadReader
from tasks.snapshot import (
    Ingest,
    append,
    check_losses,
    find_snapshot,
    live_index,
    refreshed_within,
    shards_of,
)
from tasks.sources import CrawlSource, ImportSource, PydocSource, Source
from tasks.store.fingerprint import canonical, differences
from tasks.store.records import Manifest
from tasks.store.run import Run, WouldRun
from tasks.store.schema import PAGES, QUARANTINE
from tasks.store.stage import Stage
from tasks.store.store import Ref, Store, now

CRAWL_STAGE = Stage("crawl", 1)

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
        with _temporary_folder() as folder:
            return import_files(run, source, config, seen, previous, folder)
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
    marks = file_marks(read_files(source), source)
    return differences(previous.summary["files"], marks)


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
            # A page that was erased says nothing any more.
            lambda row: reader.read(*known[row][1:]) or b"",
            show,
        )
    if journal.resumed:
        run.say(f"crawl {source.name}: {journal.resumed} batches were fetched before the stop")
    gone = set(result.gone)
    if result.complete:
        gone |= known.keys() - result.seen_ids
    rows = pa.concat_tables([PAGES.empty(), *(batch.pages for batch in result.batches)])
    try:
        check_losses(source.name, len(gone), len(known), source.max_loss, run.accept_losses)
        if not known and not rows.num_rows:
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
    touched = pa.array(sorted({*rows["id"].to_pylist(), *gone}), pa.string())
    live = live_index(run.store, previous, PAGES, touched)
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
    for shard in shards_of(store, previous, PAGES):
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
