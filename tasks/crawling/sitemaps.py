"""Sitemaps (sitemaps.org): more places to start from, read as the hostile XML they may be."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass

from llm.errors import DataError
from tasks.crawling.content import decode_body, is_gzip
from tasks.crawling.fetch import Fetcher, FetchError
from tasks.crawling.urls import Mirror, canonical_url

MAX_SITEMAP_BYTES = 50 * 1024 * 1024  # sitemaps.org: of one file, uncompressed
MAX_SITEMAP_URLS = 50_000  # sitemaps.org: of one file
MAX_SITEMAPS = 1000  # files read in one crawl; the protocol would allow an index 50,000


@dataclass(frozen=True)
class Sitemap:
    """What one file lists: pages, and in an index further sitemaps. Both as written."""

    pages: tuple[str, ...]
    sitemaps: tuple[str, ...]


def parse_sitemap(body: bytes) -> Sitemap:
    """The addresses in a sitemap: XML (`urlset` or `sitemapindex`) or text, gzipped or not.

    Entities are not expanded, nothing outside the file is read, and broken XML gives what stands
    before the break. Raises DataError where it does not even decompress, or is too large.
    """
    if is_gzip(body):
        body, more = decode_body(body, "gzip", MAX_SITEMAP_BYTES)
        if more:
            raise DataError(f"a sitemap of more than {MAX_SITEMAP_BYTES} bytes, uncompressed")
    text = body.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"<"):
        return _parse_xml(text)
    lines = text.decode("utf-8", errors="replace").split()
    pages = [line for line in lines if line.startswith(("http://", "https://"))]
    return Sitemap(tuple(pages[:MAX_SITEMAP_URLS]), ())


async def read_sitemaps(
    fetcher: Fetcher, starts: Iterable[str], mirror: Mirror
) -> tuple[list[str], dict[str, FetchError]]:
    """The pages that the sitemaps `starts` and their indexes list, and the sitemaps that failed.

    Addresses are canonical and recorded ones. Files are read breadth-first, in the order listed,
    each once, up to `MAX_SITEMAPS`.
    """
    queue = list(dict.fromkeys(starts))[:MAX_SITEMAPS]
    queued = set(queue)
    pages: dict[str, None] = {}
    failures: dict[str, FetchError] = {}
    for url in queue:  # it grows while it is read
        try:
            sitemap = await _fetch_sitemap(fetcher, mirror.real(url))
        except FetchError as error:
            failures[url] = error
            continue
        pages.update(dict.fromkeys(_recorded(sitemap.pages, url, mirror)))
        for child in _recorded(sitemap.sitemaps, url, mirror):
            if child not in queued and len(queue) < MAX_SITEMAPS:
                queued.add(child)
                queue.append(child)
    return list(pages), failures


async def _fetch_sitemap(fetcher: Fetcher, url: str) -> Sitemap:
    response = await fetcher.follow(url, limit=MAX_SITEMAP_BYTES)
    if response.status != 200:
        transient = response.status >= 500 or response.status == 429
        raise FetchError(f"http_{response.status}", url, transient=transient)
    if response.truncated:
        raise FetchError("too_large", f"{url} has more than {MAX_SITEMAP_BYTES} bytes")
    try:
        return parse_sitemap(response.body)
    except DataError as error:
        raise FetchError("unreadable", str(error)) from None


def _recorded(urls: Iterable[str], base: str, mirror: Mirror) -> list[str]:
    found = (canonical_url(url, base) for url in urls)
    return [mirror.recorded(url) for url in found if url is not None]


def _parse_xml(text: bytes) -> Sitemap:
    from lxml import etree

    listed: dict[str, list[str]] = {"url": [], "sitemap": []}
    events = etree.iterparse(
        io.BytesIO(text),
        events=("end",),
        tag="{*}loc",
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=False,
        recover=True,
    )
    try:
        for _, element in events:
            parent = element.getparent()
            kind = etree.QName(parent).localname if parent is not None else ""
            if kind in listed and element.text:
                listed[kind].append(element.text)
            if parent is not None and parent.getparent() is not None:
                parent.getparent().remove(parent)
            if len(listed["url"]) >= MAX_SITEMAP_URLS:
                break
    except etree.XMLSyntaxError:  # beyond recovery: what was read before it stands
        pass
    return Sitemap(tuple(listed["url"]), tuple(listed["sitemap"]))
