"""A small, real HTTP server on loopback that can be told to misbehave, and a crawl of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tasks.crawling.config import CrawlConfig
from tasks.crawling.crawl import crawl
from tasks.crawling.result import Batch, CrawlResult, KnownPage
from tasks.crawling.warc import read_payload

NOW = "2026-01-31T12:00:00Z"


@dataclass
class Answer:
    """What the server says to one path. `body` may be an iterator, sent piece by piece."""

    body: bytes | Iterator[bytes] = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str | None = "text/html"


Route = Answer | Callable[["Handler"], Answer]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Site

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        self.server.seen_headers.append(dict(self.headers))
        route = self.server.route(self.path)
        answer = route(self) if callable(route) else route
        self.send_response(answer.status)
        headers = dict(answer.headers)
        if answer.content_type is not None:
            headers.setdefault("Content-Type", answer.content_type)
        whole = isinstance(answer.body, bytes)
        if whole:
            headers.setdefault("Content-Length", str(len(answer.body)))
        else:
            headers.setdefault("Connection", "close")
            self.close_connection = True
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            for piece in [answer.body] if whole else answer.body:
                self.wfile.write(piece)
                self.server.bytes_sent += len(piece)
        except OSError:  # the crawler hung up
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


class Site(ThreadingHTTPServer):
    """Serves `routes` (path with query -> answer); `fallback` says what else there is."""

    daemon_threads = True
    block_on_close = False

    def __init__(
        self, routes: Mapping[str, Route], fallback: Callable[[str], Route] | None
    ) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.routes = dict(routes)
        self.fallback = fallback
        self.requests: list[str] = []
        self.seen_headers: list[dict[str, str]] = []
        self.bytes_sent = 0

    def handle_error(self, *_: object) -> None:
        """A crawler that hangs up is no error of the server."""

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def route(self, path: str) -> Route:
        if path in self.routes:
            return self.routes[path]
        return self.fallback(path) if self.fallback else Answer(b"no such page", 404)

    def pages_asked_for(self) -> list[str]:
        return [path for path in self.requests if path != "/robots.txt"]


@contextmanager
def serving(
    routes: Mapping[str, Route], fallback: Callable[[str], Route] | None = None
) -> Iterator[Site]:
    site = Site(routes, fallback)
    thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield site
    finally:
        site.shutdown()
        site.server_close()
        thread.join()


def page(*links: str, text: str = "words", head: str = "") -> Answer:
    anchors = "".join(f'<p><a href="{link}">{link}</a>' for link in links)
    return Answer(f"<html><head>{head}</head><body>{text}{anchors}</body></html>".encode())


class DictJournal:
    """The journal the crawl is given in tests: a dictionary, WARC files left where they are."""

    def __init__(self) -> None:
        self.batches: dict[str, Batch] = {}

    def load(self, key: str) -> Batch | None:
        return self.batches.get(key)

    def save(self, key: str, batch: Batch) -> Batch:
        self.batches[key] = batch
        return batch


def quick_config(site: Site, **changes: object) -> CrawlConfig:
    """A config without waiting, allowed to fetch `site`, whose pages are recorded as its own."""
    settings: dict[str, object] = {
        "seeds": (f"{site.url}/",),
        "allow_private": (site.host,),
        "delay_s": 0.0,
        "backoff_s": 0.0,
        "per_host": 4,
        "timeout_s": 5.0,
    }
    return CrawlConfig.model_validate(settings | changes)


@dataclass
class Store:
    """The pages a test keeps between two crawls of one source."""

    workdir: Path
    known: dict[str, KnownPage] = field(default_factory=dict)
    where: dict[str, tuple[Path, int]] = field(default_factory=dict)
    n_crawls: int = 0

    def crawl(
        self, config: CrawlConfig, journal: DictJournal | None = None, **more: object
    ) -> CrawlResult:
        self.n_crawls += 1
        result = crawl(
            config,
            "site",
            self.known,
            journal or DictJournal(),
            self.workdir / str(self.n_crawls),
            lambda: NOW,
            self.payload,
            **more,
        )
        for row in rows_of(result):
            fields = KnownPage.__dataclass_fields__
            self.known[row["id"]] = KnownPage(**{name: row[name] for name in fields})
            self.where[row["id"]] = (Path(row["warc"]), row["warc_offset"])
        for page_id in result.gone:
            self.known.pop(page_id)
        return result

    def payload(self, page_id: str) -> bytes:
        path, offset = self.where[page_id]
        return read_payload(path, offset)[2]

    def forget_validators(self) -> None:
        self.known = {
            key: replace(page, etag=None, last_modified=None) for key, page in self.known.items()
        }


def rows_of(result: CrawlResult) -> list[dict]:
    return [row for batch in result.batches for row in batch.pages.to_pylist()]


def outcomes_of(result: CrawlResult, site: Site) -> dict[str, str]:
    """Path -> outcome."""
    return {o.url.removeprefix(site.url): o.outcome for o in result.outcomes}
