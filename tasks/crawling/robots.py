"""What a site allows: its robots.txt, read as RFC 9309 says."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from protego import Protego

from tasks.crawling.config import CrawlConfig
from tasks.crawling.fetch import OVERLOADED, Fetcher, FetchError
from tasks.crawling.urls import netloc_of

MAX_ROBOTS_BYTES = 500 * 1024  # RFC 9309, 2.5: what a crawler has to parse at least


@dataclass(frozen=True)
class Robots:
    """The rules of one origin for one product token; `error` where they could not be read."""

    rules: Protego
    token: str
    error: FetchError | None = None

    def allows(self, url: str) -> bool:
        """Whether `url` may be fetched; nothing may be where the rules could not be read."""
        return self.error is None and self.rules.can_fetch(url, self.token)

    @property
    def delay_s(self) -> float:
        """The Crawl-Delay in seconds, 0 without one."""
        return self.rules.crawl_delay(self.token) or 0.0

    @property
    def sitemaps(self) -> tuple[str, ...]:
        return tuple(self.rules.sitemaps)


def parse_robots(body: bytes) -> Protego:
    """The rules in a robots.txt, whatever it is.

    RFC 9309 asks to read what can be read: bytes that are no UTF-8 become replacement characters,
    lines that are no rule (a whole HTML page of them) are passed over, and what follows the first
    500 KiB is left out, with the line that the cut goes through.
    """
    if len(body) > MAX_ROBOTS_BYTES:
        body = body[:MAX_ROBOTS_BYTES].rpartition(b"\n")[0]
    return Protego.parse(body.decode("utf-8-sig", errors="replace"))


class RobotsCache:
    """The rules of each origin, fetched once per crawl, when first asked for."""

    def __init__(self, fetcher: Fetcher, config: CrawlConfig) -> None:
        self._fetcher = fetcher
        self._token = config.product_token
        self._tasks: dict[str, asyncio.Task[Robots]] = {}

    async def rules(self, origin: str) -> Robots:
        """The rules of `scheme://host[:port]`."""
        if origin not in self._tasks:
            self._tasks[origin] = asyncio.create_task(self._fetch(origin))
        return await self._tasks[origin]

    async def _fetch(self, origin: str) -> Robots:
        url = f"{origin}/robots.txt"
        try:
            response = await self._fetcher.follow(url, limit=MAX_ROBOTS_BYTES + 1, prefix=True)
        except FetchError as error:
            if error.reason == "redirects":  # RFC 9309, 2.3.1.2: may be taken for unavailable
                return Robots(Protego.parse(""), self._token)
            return Robots(Protego.parse(""), self._token, error)
        # 429 is a 4xx, but says "not now", not "no such file": it is read as the 5xx are.
        if response.status >= 500 or response.status in OVERLOADED:
            failure = FetchError(f"http_{response.status}", url, transient=True)
            return Robots(Protego.parse(""), self._token, failure)
        robots = Robots(parse_robots(response.body), self._token)
        self._fetcher.raise_delay(netloc_of(url), robots.delay_s)
        return robots
