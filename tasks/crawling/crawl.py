"""The crawl: breadth-first, in an order that timing cannot change, saved batch by batch.

A level is all URLs that are equally many links from a seed. It is taken in URL order, so that a
budget cuts at the same page every time; a redirect's target joins the level it was found in, so
that each URL is fetched once, whoever led to it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tasks.crawling.address import Resolver, resolve
from tasks.crawling.config import CrawlConfig
from tasks.crawling.fetch import OVERLOADED, REDIRECTS, Fetcher, FetchError, Headers, Response
from tasks.crawling.frontier import Frontier, interleaved
from tasks.crawling.links import PageNotes, read_page
from tasks.crawling.result import (
    ALIVE,
    Batch,
    CrawlResult,
    Journal,
    KnownPage,
    Outcome,
    Progress,
    resolve_redirects,
)
from tasks.crawling.robots import RobotsCache
from tasks.crawling.sitemaps import read_sitemaps
from tasks.crawling.urls import Mirror, canonical_url, netloc_of, origin_of
from tasks.crawling.warc import WarcWriter
from tasks.store.rows import document_id
from tasks.store.schema import PAGES

# Errors that blame the server, not the page: another day may tell.
_SERVER_TROUBLE = frozenset(
    {"error:timeout", "error:network", *(f"error:http_{status}" for status in OVERLOADED)}
)
_HOST_SHUT = frozenset({"error:host_given_up", "error:robots"})


def crawl(
    config: CrawlConfig,
    source: str,
    known: Mapping[str, KnownPage],
    journal: Journal,
    workdir: Path,
    now: Callable[[], str],
    read_known: Callable[[str], bytes],
    on_progress: Callable[[Progress], None] = lambda _: None,
    resolver: Resolver = resolve,
) -> CrawlResult:
    """Crawls `config.seeds` and all they lead to, for the source named `source`.

    `known` maps ids to the pages of earlier crawls, and `read_known(id)` gives the payload of one:
    a page that did not change is not sent again, yet its links count. `now()` gives the time of a
    fetch as ISO 8601 in UTC (`2026-01-31T12:00:00Z`). WARC files are written to `workdir`.

    The pages found are a function of the site and the config, not of timing, unless a server or
    the network fails, which the outcomes say.
    """
    return asyncio.run(
        _Crawl(config, source, known, journal, workdir, now, read_known, on_progress).run(resolver)
    )


@dataclass(frozen=True)
class _Visit:
    outcome: Outcome
    links: tuple[str, ...] = ()
    row: dict[str, object] | None = None


class _Crawl:
    def __init__(
        self,
        config: CrawlConfig,
        source: str,
        known: Mapping[str, KnownPage],
        journal: Journal,
        workdir: Path,
        now: Callable[[], str],
        read_known: Callable[[str], bytes],
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.config = config
        self.source = source
        self.known = known
        self.journal = journal
        self.workdir = workdir
        self.now = now
        self.read_known = read_known
        self.on_progress = on_progress
        self.mirror = Mirror(config.mirror)
        self.frontier = Frontier(config)
        self.batches: list[Batch] = []
        self.sitemap_outcomes: list[Outcome] = []
        self.budget_ended = False
        self.n_pages = 0
        self.n_fetched = 0
        self.n_queued = 0
        self.fetcher: Fetcher
        self.robots: RobotsCache

    async def run(self, resolver: Resolver) -> CrawlResult:
        async with Fetcher(self.config, resolver) as self.fetcher:
            self.robots = RobotsCache(self.fetcher, self.config)
            starts, problems = await self._starts()
            await self._levels(starts)
        if self.budget_ended:
            problems.append(f"the budget of {self.config.max_pages} pages ended it")
        return self._result(problems)

    async def _starts(self) -> tuple[list[str], list[str]]:
        """Seeds and the pages of sitemaps, and what went wrong with the latter."""
        seeds = [self.mirror.recorded(seed) for seed in self.config.seeds]
        if not self.config.sitemaps:
            return seeds, []
        named: list[str] = []
        for origin in sorted({origin_of(self.mirror.real(seed)) for seed in seeds}):
            rules = await self.robots.rules(origin)
            found = (canonical_url(url, f"{origin}/robots.txt") for url in rules.sitemaps)
            named += [self.mirror.recorded(url) for url in found if url is not None]
        pages, failures = await read_sitemaps(self.fetcher, named, self.mirror)
        self.sitemap_outcomes = [
            Outcome(url, url, "error:sitemap", detail=str(why)) for url, why in failures.items()
        ]
        problems = [f"sitemap {url}: {why}" for url, why in failures.items() if why.transient]
        return seeds + pages, problems

    async def _levels(self, starts: Iterable[str]) -> None:
        """Fetches level after level, until the links or the budget end."""
        found = set(starts)
        for depth in range(self.config.max_depth + 1):
            links: set[str] = set()
            for _ in range(self.config.max_redirects + 1):
                batches = await self._fetch_within_budget(self.frontier.admit(found), depth)
                if self.budget_ended:
                    return
                links.update(link for batch in batches for link in batch.links)
                seen = (outcome for batch in batches for outcome in batch.seen)
                found = {outcome.final_url for outcome in seen if outcome.outcome == "redirect"}
            found = links

    async def _fetch_within_budget(self, urls: list[str], depth: int) -> list[Batch]:
        """The batches of `urls`; never more URLs at a time than there may yet be pages."""
        done = []
        while urls and not self.budget_ended:
            room = self.config.max_pages - self.n_pages
            chosen, urls = urls[:room], urls[room:]
            turns = interleaved(chosen)
            for start in range(0, len(turns), self.config.batch_size):
                self.n_queued = len(urls) + len(turns) - start
                done.append(await self._batch(turns[start : start + self.config.batch_size], depth))
            self.budget_ended = bool(urls) and self.n_pages >= self.config.max_pages
        self.batches += done
        return done

    async def _batch(self, urls: list[str], depth: int) -> Batch:
        """One batch, from the journal where it has it."""
        key = self._key(depth, urls)
        batch = self.journal.load(key)
        if batch is None:
            return self.journal.save(key, await self._fetch_batch(urls, key, depth))
        self.n_fetched += len(urls)
        self.n_pages += sum(outcome.outcome in ALIVE for outcome in batch.seen)
        return batch

    def _key(self, depth: int, urls: list[str]) -> str:
        parts = [self.config.semantic(), self.source, depth, urls]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    async def _fetch_batch(self, urls: list[str], key: str, depth: int) -> Batch:
        async def visit(url: str) -> _Visit:
            result = await self._visit(url, warc)
            self.n_pages += result.outcome.outcome in ALIVE
            self.n_fetched += 1
            self.n_queued -= 1
            self.on_progress(Progress(depth, self.n_fetched, self.n_pages, self.n_queued))
            return result

        with WarcWriter(self.workdir, key[:16]) as warc:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(visit(url)) for url in urls]
            except BaseExceptionGroup as failures:  # the store or the disk, said plainly
                raise failures.exceptions[0] from None
        visits = [task.result() for task in tasks]
        rows = [visit.row for visit in visits if visit.row is not None]
        return Batch(
            pages=PAGES.table(sorted(rows, key=lambda row: str(row["id"]))),
            seen=tuple(visit.outcome for visit in visits),
            links=tuple(sorted({link for visit in visits for link in visit.links})),
        )

    async def _visit(self, url: str, warc: WarcWriter) -> _Visit:
        """Fetches one recorded URL, where robots.txt allows it."""
        known = self.known.get(document_id(self.source, url))
        real = self.mirror.real(url)
        rules = await self.robots.rules(origin_of(real))
        if rules.error is not None:
            reason = rules.error.reason if not rules.error.transient else "robots"
            return self._failed(url, known, reason, f"robots.txt: {rules.error}")
        if not rules.allows(real):
            return _Visit(Outcome(url, url, "robots"))
        try:
            response = await self.fetcher.fetch(
                real,
                limit=self.config.max_bytes,
                conditional=self._validators(known),
                media_types=self.config.content_types,
            )
        except FetchError as error:
            return self._failed(url, known, error.reason, error.detail)
        return self._judge(url, known, response, warc)

    def _judge(
        self, url: str, known: KnownPage | None, response: Response, warc: WarcWriter
    ) -> _Visit:
        status = response.status
        if status == 304 and known is not None and self._validators(known):
            notes = self._notes(url, self.read_known(known.id), known.content_type, response)
            return _Visit(Outcome(url, url, "not_modified", status), notes.links)
        if status in (404, 410):
            return _Visit(Outcome(url, url, "gone", status))
        if status in REDIRECTS:
            return _Visit(self._redirect(url, response))
        if status != 200:
            return self._failed(url, known, f"http_{status}", response.reason, status)
        if response.media_type not in (None, *self.config.content_types):
            return _Visit(Outcome(url, url, "content_type", status, response.media_type or ""))
        if response.truncated:
            detail = f"more than {self.config.max_bytes} bytes"
            return _Visit(Outcome(url, url, "too_large", status, detail))
        return self._keep(url, known, response, warc)

    def _keep(
        self, url: str, known: KnownPage | None, response: Response, warc: WarcWriter
    ) -> _Visit:
        content_type = response.header("content-type")
        notes = self._notes(url, response.body, content_type, response)
        if notes.noindex:
            return _Visit(Outcome(url, url, "noindex", response.status), notes.links)
        sha256 = hashlib.sha256(response.body).hexdigest()
        said = (sha256, content_type, self.config.license)
        if known and said == (known.payload_sha256, known.content_type, known.license):
            return _Visit(Outcome(url, url, "unchanged", response.status), notes.links)
        date = self.now()
        path, offset = warc.add(response, url, date)
        row: dict[str, object] = {
            "id": document_id(self.source, url),
            "url": url,
            "source": self.source,
            "license": self.config.license,
            "status": response.status,
            "content_type": content_type,
            "payload_sha256": sha256,
            "fetched_at": date,
            "warc": str(path),
            "warc_offset": offset,
            "payload_bytes": len(response.body),
            "etag": response.header("etag"),
            "last_modified": response.header("last-modified"),
        }
        outcome = Outcome(url, url, "changed" if known else "new", response.status)
        return _Visit(outcome, notes.links, row)

    def _validators(self, known: KnownPage | None) -> Headers:
        """Headers that let a server answer 304; none where the row would change all the same."""
        if known is None or known.license != self.config.license:
            return ()
        pairs = (("If-None-Match", known.etag), ("If-Modified-Since", known.last_modified))
        return tuple((name, value) for name, value in pairs if value)

    def _redirect(self, url: str, response: Response) -> Outcome:
        target = canonical_url(response.header("location") or "", response.url)
        if target is None:
            detail = f"to {response.header('location')!r}"
            return Outcome(url, url, "error:redirect", response.status, detail)
        target = self.mirror.recorded(target)
        scope = "redirect" if self.frontier.holds(target) else "out_of_scope"
        return Outcome(url, target, scope, response.status)

    def _failed(
        self, url: str, known: KnownPage | None, reason: str, detail: str, status: int | None = None
    ) -> _Visit:
        """An error hides what a page says now; the links of its last version still count."""
        links: tuple[str, ...] = ()
        if known is not None:
            links = self._notes(url, self.read_known(known.id), known.content_type).links
        return _Visit(Outcome(url, url, f"error:{reason}", status, detail), links)

    def _notes(
        self, url: str, payload: bytes, content_type: str | None, response: Response | None = None
    ) -> PageNotes:
        tag = response.header("x-robots-tag") if response else None
        notes = read_page(payload, content_type, url, self.mirror, self.config.product_token, tag)
        return replace(notes, links=tuple(filter(self.frontier.holds, notes.links)))

    def _result(self, problems: list[str]) -> CrawlResult:
        fetched = [outcome for batch in self.batches for outcome in batch.seen]
        outcomes = [
            *resolve_redirects(fetched, self.config.max_redirects),
            *self.sitemap_outcomes,
        ]
        alive = [o for o in outcomes if o.outcome in ALIVE or o.outcome.startswith("error:")]
        gone = self._ids(o for o in outcomes if o.outcome == "gone")
        problems = problems + self._troubles(fetched)
        return CrawlResult(
            batches=tuple(self.batches),
            outcomes=tuple(sorted(outcomes, key=lambda outcome: outcome.url)),
            gone=tuple(sorted(gone & self.known.keys())),
            seen_ids=frozenset(self._ids(alive)),
            counts=dict(sorted(Counter(o.outcome for o in outcomes).items())),
            incomplete_because=tuple(problems),
        )

    def _troubles(self, fetched: list[Outcome]) -> list[str]:
        """Why pages may have been missed; from outcomes alone, so that a resumed crawl agrees."""
        shut = {netloc_of(o.url): o.detail for o in fetched if o.outcome in _HOST_SHUT}
        troubles = [f"{host}: {detail}" for host, detail in sorted(shut.items())]
        # What an unknown URL led to is lost with it; a known page's links are still at hand.
        lost = [o.url for o in fetched if o.outcome in _SERVER_TROUBLE]
        lost = [url for url in lost if document_id(self.source, url) not in self.known]
        if lost:
            troubles.append(f"{len(lost)} URLs not known before failed, such as {lost[0]}")
        return troubles

    def _ids(self, outcomes: Iterable[Outcome]) -> set[str]:
        return {document_id(self.source, outcome.url) for outcome in outcomes}
