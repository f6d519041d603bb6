"""What a crawl may fetch, how politely, and when it stops."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from llm.config import Config
from tasks.crawling.urls import canonical_url

# How the pages are fetched, which decides nothing about what they are.
_OPERATIONAL = {
    "mirror",
    "allow_private",
    "delay_s",
    "max_crawl_delay_s",
    "per_host",
    "concurrency",
    "timeout_s",
    "retries",
    "backoff_s",
    "max_wait_s",
    "give_up_after",
    "batch_size",
    "max_age_s",
}


class CrawlConfig(Config):
    """A polite, bounded, breadth-first crawl of one or more sites."""

    seeds: tuple[str, ...] = Field(min_length=1)
    """Where to start: http or https URLs."""

    mirror: dict[str, str] = Field(default_factory=dict)
    """URL prefix as recorded -> prefix really fetched, for mirrors and loopback servers. Both end
    in `/`. Pages keep the recorded address everywhere, so that no port enters a locator."""

    allow: tuple[str, ...] = ()
    """What may be fetched: `host` or `host:port`, or a URL prefix with its scheme. Empty: the
    hosts of the seeds."""

    deny: tuple[str, ...] = ()
    """Regular expressions; a canonical URL in which one is found is not fetched."""

    allow_private: tuple[str, ...] = ()
    """Hosts, addresses or `host:port` that may be fetched though their address is private,
    loopback, link-local or reserved. All others of that kind are refused."""

    sitemaps: bool = True
    """Whether to start also from the sitemaps that the robots.txt of the seeds' hosts name."""

    license: str | None = None
    """The licence of every page, where the site as a whole has one."""

    user_agent: str = "loam/0.1 (crawler of text for language models)"
    """Sent with every request; add an address where you can be reached. What comes before the
    first `/` is the product token that robots.txt rules are matched with (RFC 9309, 2.2.1)."""

    max_pages: int = Field(10_000, ge=1)
    """Pages to keep at most. A crawl that stops here is not complete, so that no page is taken
    for gone because of it."""

    max_depth: int = Field(20, ge=0)
    """Links from a seed to a page at most; Heritrix 3 stops at 20 hops too."""

    max_path_depth: int = Field(20, ge=1)
    """Segments of a URL's path at most, against endless trees; 20 in Heritrix 3."""

    max_repeated_segments: int = Field(3, ge=1)
    """How often one segment may stand in a path (`/a/b/a/b/...` comes of broken relative links).
    Heritrix 3 refuses more than 2 repetitions in a row; this counts anywhere in the path."""

    max_query_urls_per_path: int = Field(1000, ge=0)
    """URLs with a query fetched per path, against calendars and sort orders without end. A chosen
    limit: a forum's or wiki's single script rarely holds more pages worth reading."""

    max_bytes: int = Field(10_000_000, ge=1)
    """Size of a response at most, as sent and decoded; a longer one is cut off and set aside."""

    content_types: tuple[str, ...] = (
        "text/html",
        "application/xhtml+xml",
        "text/plain",
        "text/markdown",
    )
    """Media types to keep; a response without one is kept too."""

    max_redirects: int = Field(10, ge=0)
    """Redirects followed one after the other; Googlebot follows 10 as well. RFC 9309 asks for at
    least 5 on robots.txt."""

    delay_s: float = Field(1.0, ge=0)
    """Seconds between the starts of two requests to one host; a Crawl-Delay raises it."""

    max_crawl_delay_s: float = Field(30.0, ge=0)
    """The longest Crawl-Delay honored, in seconds; a longer one counts as this."""

    per_host: int = Field(2, ge=1)
    """Requests to one host at a time."""

    concurrency: int = Field(16, ge=1)
    """Requests at a time, all hosts together."""

    timeout_s: float = Field(30.0, gt=0)
    """Seconds for one request, from connecting to the last byte."""

    retries: int = Field(3, ge=0)
    """Further attempts after a network error or one of 429, 500, 502, 503 and 504."""

    backoff_s: float = Field(1.0, ge=0)
    """Seconds before the first further attempt, doubled for each one after; the whole host waits.
    A Retry-After header says otherwise."""

    max_wait_s: float = Field(120.0, ge=0)
    """A host that asks for a longer wait than this is given up for this crawl, in seconds."""

    give_up_after: int = Field(10, ge=1)
    """A host is given up after this many URLs in a row that it failed to serve (network error,
    429, 502, 503, 504), retries included. Its pages keep their last versions."""

    batch_size: int = Field(128, ge=1)
    """URLs fetched and saved together; a killed crawl resumes at the batch it was in."""

    max_age_s: float | None = Field(None, ge=0)
    """A crawl younger than this, in seconds, is not repeated unless asked for. None: never."""

    @field_validator("seeds")
    @classmethod
    def _seeds_are_urls(cls, seeds: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_url(seed) for seed in seeds)

    @field_validator("mirror")
    @classmethod
    def _mirrors_are_folders(cls, mirror: dict[str, str]) -> dict[str, str]:
        for prefix in (*mirror, *mirror.values()):
            if not prefix.endswith("/"):
                raise ValueError(f"mirror prefix {prefix!r} must end in '/'")
        real = [_url(prefix) for prefix in mirror.values()]
        if len(set(real)) < len(real):
            raise ValueError("two mirror prefixes are fetched from one place")
        return {_url(name): _url(prefix) for name, prefix in mirror.items()}

    @field_validator("allow")
    @classmethod
    def _allowed_are_hosts_or_prefixes(cls, allow: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_url(entry) if "://" in entry else _host(entry) for entry in allow)

    @field_validator("deny")
    @classmethod
    def _denied_are_patterns(cls, deny: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in deny:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return deny

    @field_validator("user_agent")
    @classmethod
    def _user_agent_has_a_token(cls, user_agent: str) -> str:
        if not re.fullmatch(r"[A-Za-z_-]+(/[ -~]*)?", user_agent):
            raise ValueError(
                f"user agent {user_agent!r} must be 'name/version (contact)', the name of letters, "
                "'-' and '_', in ASCII"
            )
        return user_agent

    @property
    def product_token(self) -> str:
        """The name that rules in a robots.txt are matched with."""
        return self.user_agent.split("/")[0]

    def semantic(self) -> dict[str, object]:
        """The settings that decide which pages a crawl holds; the rest is how they are fetched."""
        return self.model_dump(mode="json", exclude=_OPERATIONAL)


def _url(text: str) -> str:
    url = canonical_url(text)
    if url is None:
        raise ValueError(f"{text!r} is no http or https URL without user or password")
    return url


def _host(text: str) -> str:
    if canonical_url(f"http://{text}/") is None or "/" in text:
        raise ValueError(f"{text!r} is neither a host nor a URL prefix (https://host/path)")
    return text.lower()
