"""Which URLs a crawl takes, and in which order."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from tasks.crawling.config import CrawlConfig
from tasks.crawling.urls import canonical_url, netloc_of


class Scope:
    """Whether a canonical, recorded URL may be part of the crawl; depends on nothing but it."""

    def __init__(self, config: CrawlConfig) -> None:
        allow = config.allow or tuple(netloc_of(seed) for seed in config.seeds)
        self._prefixes = tuple(entry for entry in allow if "://" in entry)
        # A host is one on either scheme, spelled as canonical URLs spell it.
        self._netlocs = {
            netloc_of(url)
            for entry in allow
            if "://" not in entry
            for scheme in ("http", "https")
            if (url := canonical_url(f"{scheme}://{entry}/")) is not None
        }
        self._deny = tuple(re.compile(pattern) for pattern in config.deny)
        self._max_path_depth = config.max_path_depth
        self._max_repeated = config.max_repeated_segments

    def holds(self, url: str) -> bool:
        if netloc_of(url) not in self._netlocs and not url.startswith(self._prefixes):
            return False
        if any(pattern.search(url) for pattern in self._deny):
            return False
        segments = url.partition("?")[0].split("/")[3:]
        most = max(Counter(filter(None, segments)).values(), default=0)
        return len(segments) <= self._max_path_depth and most <= self._max_repeated


class Frontier:
    """Lets every URL of the scope through once, and of one path only so many queries."""

    def __init__(self, config: CrawlConfig) -> None:
        self._scope = Scope(config)
        self._admitted: set[str] = set()
        self._queries: Counter[str] = Counter()
        self._max_queries = config.max_query_urls_per_path

    def holds(self, url: str) -> bool:
        """Whether `url` is in scope, admitted or not."""
        return self._scope.holds(url)

    def admit(self, urls: Iterable[str]) -> list[str]:
        """Those of `urls` that are new and in scope, in URL order, so that limits cut alike."""
        new = []
        for url in sorted(set(urls)):
            if url in self._admitted or not self._scope.holds(url):
                continue
            path, mark, _ = url.partition("?")
            if mark and self._queries[path] >= self._max_queries:
                continue
            self._queries[path] += bool(mark)
            self._admitted.add(url)
            new.append(url)
        return new


def interleaved(urls: Iterable[str]) -> list[str]:
    """`urls` with hosts taking turns, so that a batch keeps many hosts busy; order kept in each."""
    turns: Counter[str] = Counter()
    keyed = []
    for position, url in enumerate(urls):
        host = netloc_of(url)
        keyed.append((turns[host], position, url))
        turns[host] += 1
    return [url for _, _, url in sorted(keyed)]
