"""What a crawl is told, what it finds, and what it hands over for keeping."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import pyarrow as pa

ALIVE = frozenset({"new", "changed", "unchanged", "not_modified"})
"""The outcomes of a URL that is a page of the site; all others yield none."""


@dataclass(frozen=True)
class KnownPage:
    """What an earlier crawl kept of a page: the PAGES columns a new fetch is compared with."""

    id: str
    payload_sha256: str
    etag: str | None
    last_modified: str | None
    content_type: str | None
    license: str | None


@dataclass(frozen=True)
class Outcome:
    """What became of one URL that was fetched, or would have been.

    `outcome`: `new`, `changed`, `unchanged` and `not_modified` (a 304) are pages of the site;
    `gone` (404, 410), `redirect`, `robots` (its rules forbid it), `noindex`, `too_large`,
    `content_type` and `out_of_scope` (a redirect that leaves the scope) are not; `error:REASON`
    says nothing about the page, whose last version stays. `final_url` is where redirects led.
    """

    url: str
    final_url: str
    outcome: str
    status: int | None = None
    detail: str = ""


@dataclass(frozen=True)
class Batch:
    """Some URLs of a level, fetched.

    `pages` is a PAGES table, sorted by id, of the pages that are new or changed; its `warc` is a
    local path until the journal saved the batch, then the object's sha256. `links` are canonical
    URLs in scope, in URL order.
    """

    pages: pa.Table
    seen: tuple[Outcome, ...]
    links: tuple[str, ...]


class Journal(Protocol):
    """Keeps the batches of a crawl in progress, so that a killed one goes on where it was.

    A journal belongs to one crawl over one set of known pages: once that crawl is committed, a
    new crawl needs an empty one, or it would not look at the site again.
    """

    def load(self, key: str) -> Batch | None:
        """The batch saved under `key`, if any."""

    def save(self, key: str, batch: Batch) -> Batch:
        """Keeps `batch` and its WARC files; returns it with `warc` naming the kept objects."""


@dataclass(frozen=True)
class Progress:
    """How far a crawl is: URLs fetched, pages of the site among them, URLs of the level left."""

    depth: int
    fetched: int
    pages: int
    queued: int


@dataclass(frozen=True)
class CrawlResult:
    """What a crawl found.

    `seen_ids` are the ids that are pages of the site or whose fate an error hides; `gone` those of
    known pages that answered 404 or 410. A known page in neither is no longer reachable: it dies
    if the crawl is `complete`, which `incomplete_because` denies with reasons. `outcomes` has a
    line for every URL, redirects resolved to where they end, in URL order.
    """

    batches: tuple[Batch, ...]
    outcomes: tuple[Outcome, ...]
    gone: tuple[str, ...]
    seen_ids: frozenset[str]
    counts: dict[str, int]
    incomplete_because: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether every page that the site shows and the config allows was looked at."""
        return not self.incomplete_because


def resolve_redirects(outcomes: Iterable[Outcome], max_redirects: int) -> list[Outcome]:
    """`outcomes` with every `redirect` told to its end.

    One that ends at a page, or at an address that yields none, stays `redirect` and names that
    address; one that ends in `gone` or an error is that itself; a loop is
    `error:redirect_loop`, a chain that is too long `error:too_many_redirects`.
    """
    by_url = {outcome.url: outcome for outcome in outcomes}
    return [
        _told_to_end(outcome, by_url, max_redirects) if outcome.outcome == "redirect" else outcome
        for outcome in by_url.values()
    ]


def _told_to_end(outcome: Outcome, by_url: Mapping[str, Outcome], max_redirects: int) -> Outcome:
    chain = [outcome.url]
    end: Outcome | None = outcome
    while end is not None and end.outcome == "redirect":
        if end.final_url in chain:
            detail = " -> ".join([*chain, end.final_url])
            return replace(outcome, outcome="error:redirect_loop", detail=detail)
        if len(chain) > max_redirects:
            detail = f"more than {max_redirects}, the last one to {end.final_url}"
            return replace(outcome, outcome="error:too_many_redirects", detail=detail)
        chain.append(end.final_url)
        end = by_url.get(end.final_url)
    if end is not None and (end.outcome == "gone" or end.outcome.startswith("error:")):
        return replace(end, url=outcome.url)
    return replace(outcome, final_url=chain[-1])
