"""One polite request at a time: rate, back-off, size, time and addresses are all bounded here."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from types import TracebackType

import httpcore

from llm.errors import DataError, LoamError
from tasks.crawling.address import GuardedBackend, PrivateAddressError, Resolver, resolve
from tasks.crawling.config import CrawlConfig
from tasks.crawling.content import ACCEPT_ENCODING, decode_body
from tasks.crawling.urls import canonical_url, netloc_of

Headers = tuple[tuple[str, str], ...]
REDIRECTS = frozenset({301, 302, 303, 307, 308})
# Answers that say the server, not the page, is in trouble (RFC 9110, 15.6; RFC 6585, 4).
OVERLOADED = frozenset({429, 502, 503, 504})
_RETRIED = OVERLOADED | {500}
_ACCEPT = "text/html,application/xhtml+xml;q=0.9,text/plain;q=0.8,*/*;q=0.1"
_KEEPALIVE_S = 15.0
# A short body that nobody wants is read all the same: the connection can then be used again.
_DRAINED_BYTES = 64 * 1024


class FetchError(LoamError):
    """A URL that gave no response. `reason` is one word; `transient` if another day may do."""

    def __init__(self, reason: str, detail: str, *, transient: bool = False) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.transient = transient


@dataclass(frozen=True)
class Response:
    """What a server said to one request, redirects not followed.

    `raw` is the body as sent, but for a transfer encoding; `body` is `raw` without its content
    encoding. Both are empty unless the status is 200 and the media type was wanted. `truncated`:
    the body is longer than the limit.
    """

    url: str
    status: int
    reason: str
    http_version: str
    headers: Headers
    request_headers: Headers
    ip: str
    raw: bytes = b""
    body: bytes = b""
    truncated: bool = False

    def header(self, name: str) -> str | None:
        """The values of header `name`, joined as RFC 9110, 5.2 allows; None without one."""
        values = [value for key, value in self.headers if key.lower() == name]
        return ", ".join(values) if values else None

    @property
    def media_type(self) -> str | None:
        """`text/html` of `text/html; charset=utf-8`, in lower case."""
        return media_type(self.header("content-type"))


def media_type(content_type: str | None) -> str | None:
    """The media type of a Content-Type header, in lower case; None without one."""
    return (content_type or "").split(";")[0].strip().lower() or None


@dataclass(frozen=True)
class _Ask:
    """The arguments of `Fetcher.fetch`, on their way to the wire."""

    url: str
    limit: int
    prefix: bool
    conditional: Headers
    media_types: Collection[str] | None


class _Host:
    """What politeness has to remember of one host. Times are of the event loop's clock."""

    def __init__(self, config: CrawlConfig) -> None:
        self.slots = asyncio.Semaphore(config.per_host)
        self.delay_s = config.delay_s
        self.failures = 0
        self.given_up: str | None = None
        self._turnstile = asyncio.Lock()
        self._next_at = 0.0

    async def turn(self) -> None:
        """Waits until the next request may start."""
        clock = asyncio.get_running_loop().time
        async with self._turnstile:
            while (wait := self._next_at - clock()) > 0:
                await asyncio.sleep(wait)
            self._next_at = clock() + self.delay_s

    def pause(self, seconds: float) -> None:
        self._next_at = max(self._next_at, asyncio.get_running_loop().time() + seconds)


class Fetcher:
    """Fetches URLs for one crawl; use as an async context manager.

    No proxy and no credentials are taken from the environment, and no cookies are kept.
    """

    def __init__(self, config: CrawlConfig, resolver: Resolver = resolve) -> None:
        self._config = config
        self._hosts: dict[str, _Host] = {}
        self._slots = asyncio.Semaphore(config.concurrency)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpcore.default_ssl_context(),
            max_connections=config.concurrency,
            keepalive_expiry=_KEEPALIVE_S,
            network_backend=GuardedBackend(config.allow_private, resolver),
        )

    async def __aenter__(self) -> Fetcher:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._pool.aclose()

    def raise_delay(self, netloc: str, seconds: float) -> None:
        """Honors a Crawl-Delay, up to the configured cap."""
        host = self._host(netloc)
        host.delay_s = max(host.delay_s, min(seconds, self._config.max_crawl_delay_s))

    async def follow(self, url: str, *, limit: int, prefix: bool = False) -> Response:
        """As `fetch`, with redirects followed; for robots.txt and sitemaps, on any public host."""
        seen = [url]
        while True:
            response = await self.fetch(seen[-1], limit=limit, prefix=prefix)
            if response.status not in REDIRECTS:
                return response
            target = canonical_url(response.header("location") or "", seen[-1])
            if target is None or target in seen or len(seen) > self._config.max_redirects:
                raise FetchError("redirects", f"{len(seen)} redirects from {url} lead nowhere")
            seen.append(target)

    async def fetch(
        self,
        url: str,
        *,
        limit: int,
        prefix: bool = False,
        conditional: Headers = (),
        media_types: Collection[str] | None = None,
    ) -> Response:
        """The response to a GET of a canonical URL, after as many attempts as the config allows.

        A body is read up to `limit` bytes; with `prefix` a longer one is read that far, without
        it is not kept at all. Raises FetchError where there is no response.
        """
        ask = _Ask(url, limit, prefix, conditional, media_types)
        host = self._host(netloc_of(url))
        # The slot is held through all attempts, so that few URLs find out that a host is down.
        async with host.slots:
            for attempt in range(self._config.retries + 1):
                await host.turn()
                if host.given_up:
                    raise FetchError("host_given_up", host.given_up)
                result = await self._attempt(ask)
                if isinstance(result, FetchError):
                    if not result.transient:
                        raise result
                elif result.status not in _RETRIED:
                    host.failures = 0
                    return result
                await self._back_off(host, result, attempt)
                if host.given_up:
                    break
            self._count_failure(host, result)
        if isinstance(result, FetchError):
            raise result
        return result

    def _host(self, netloc: str) -> _Host:
        if netloc not in self._hosts:
            self._hosts[netloc] = _Host(self._config)
        return self._hosts[netloc]

    async def _back_off(self, host: _Host, result: Response | FetchError, attempt: int) -> None:
        """Waits before the next attempt; the whole host waits where the server asked for it."""
        asked = None if isinstance(result, FetchError) else retry_after(result)
        if asked is not None and asked > self._config.max_wait_s:
            host.given_up = f"it asked to be left alone for {asked:.0f} s"
        elif asked is not None:
            host.pause(asked)
        elif attempt < self._config.retries:
            wait = min(self._config.backoff_s * 2**attempt, self._config.max_wait_s)
            if isinstance(result, FetchError) or result.status in OVERLOADED:
                host.pause(wait)
            else:
                await asyncio.sleep(wait)

    def _count_failure(self, host: _Host, result: Response | FetchError) -> None:
        if isinstance(result, Response) and result.status not in OVERLOADED:
            return
        host.failures += 1
        if host.failures >= self._config.give_up_after and not host.given_up:
            last = result.reason if isinstance(result, FetchError) else f"HTTP {result.status}"
            host.given_up = f"{host.failures} URLs in a row failed, the last one with {last}"

    async def _attempt(self, ask: _Ask) -> Response | FetchError:
        async with self._slots:
            try:
                async with asyncio.timeout(self._config.timeout_s):
                    return await self._get(ask)
            except PrivateAddressError as error:
                return FetchError("private_address", str(error))
            except DataError as error:
                return FetchError("content_encoding", str(error))
            except (TimeoutError, httpcore.TimeoutException):
                detail = f"no whole response within {self._config.timeout_s:g} s"
                return FetchError("timeout", detail, transient=True)
            except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
                detail = str(error) or type(error).__name__
                return FetchError("network", detail, transient=True)

    async def _get(self, ask: _Ask) -> Response:
        request = self._request_headers(ask)
        url = _httpcore_url(ask.url)
        async with self._pool.stream("GET", url, headers=list(request)) as answer:
            head = _head(ask.url, request, answer)
            wanted = ask.media_types is None or head.media_type in (None, *ask.media_types)
            if head.status != 200 or not wanted:
                with suppress(httpcore.ProtocolError, httpcore.NetworkError):
                    await _read(answer, head, _DRAINED_BYTES, False)
                return head
            raw, cut = await _read(answer, head, ask.limit, ask.prefix)
        if cut and not ask.prefix:
            return replace(head, truncated=True)
        encoding = head.header("content-encoding")
        body, more = decode_body(raw, encoding, ask.limit, prefix=ask.prefix)
        return replace(head, raw=raw, body=body, truncated=cut or more)

    def _request_headers(self, ask: _Ask) -> Headers:
        return (
            ("Host", netloc_of(ask.url)),
            ("User-Agent", self._config.user_agent),
            ("Accept", _ACCEPT),
            ("Accept-Encoding", ACCEPT_ENCODING),
            *ask.conditional,
        )


def retry_after(response: Response) -> float | None:
    """Seconds a server asks to wait (RFC 9110, 10.2.3); a date counts from the server's own."""
    value = (response.header("retry-after") or "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        until = parsedate_to_datetime(value)
        sent = parsedate_to_datetime(response.header("date") or "")
        return max(0.0, (until - sent).total_seconds())
    except (ValueError, TypeError):  # no date, or one with and one without a time zone
        return None


def _httpcore_url(url: str) -> httpcore.URL:
    """`url` with its target untouched; httpcore's own parser would drop `;parameters`."""
    scheme, _, netloc, target = url.split("/", 3)
    host, colon, port = netloc.rpartition(":")
    if not colon or netloc.endswith("]"):
        host, port = netloc, ""
    return httpcore.URL(
        scheme=scheme.removesuffix(":").encode(),
        host=host.strip("[]").encode(),
        port=int(port) if port else None,
        target=f"/{target}".encode(),
    )


def _head(url: str, request: Headers, answer: httpcore.Response) -> Response:
    server = answer.extensions["network_stream"].get_extra_info("server_addr")
    return Response(
        url=url,
        status=answer.status,
        reason=answer.extensions.get("reason_phrase", b"").decode("latin-1"),
        http_version=answer.extensions.get("http_version", b"HTTP/1.1").decode("latin-1"),
        headers=tuple((k.decode("latin-1"), v.decode("latin-1")) for k, v in answer.headers),
        request_headers=request,
        ip=str(server[0]) if server else "",
    )


async def _read(
    answer: httpcore.Response, head: Response, limit: int, prefix: bool
) -> tuple[bytes, bool]:
    """The body as sent, of `limit` bytes at most, and whether it is longer."""
    declared = head.header("content-length") or ""
    if not prefix and declared.isdigit() and int(declared) > limit:
        return b"", True
    raw = bytearray()
    async for chunk in answer.aiter_stream():
        raw += chunk
        if len(raw) > limit:
            return bytes(raw[:limit]), True
    return bytes(raw), False
