from __future__ import annotations

import gzip

import pytest

from llm.errors import DataError
from tasks.crawling.sitemaps import MAX_SITEMAP_BYTES, MAX_SITEMAP_URLS, parse_sitemap
from tests.tasks.crawling.site import Answer, Store, outcomes_of, page, quick_config, serving

NS = 'xmlns="http://www.sitemaps.org/schemas/sitemap/0.9"'


def urlset(*urls: str) -> bytes:
    body = "".join(f"<url><loc> {u} </loc><lastmod>2026-01-01</lastmod></url>" for u in urls)
    return f'<?xml version="1.0" encoding="UTF-8"?><urlset {NS}>{body}</urlset>'.encode()


def index(*urls: str) -> bytes:
    body = "".join(f"<sitemap><loc>{u}</loc></sitemap>" for u in urls)
    return f"<sitemapindex {NS}>{body}</sitemapindex>".encode()


def listed(body: bytes) -> list[str]:
    return [page.strip() for page in parse_sitemap(body).pages]


def test_a_sitemap_lists_pages_and_an_index_lists_sitemaps():
    assert listed(urlset("http://a/1", "http://a/2?x=1&amp;y=2")) == [
        "http://a/1",
        "http://a/2?x=1&y=2",
    ]
    assert listed(gzip.compress(urlset("http://a/1"))) == ["http://a/1"]
    assert listed(b"\xef\xbb\xbfhttp://a/1\r\nnot a url\nhttp://a/2\n") == [
        "http://a/1",
        "http://a/2",
    ]
    assert parse_sitemap(index("http://a/s.xml")).sitemaps == ("http://a/s.xml",)
    assert parse_sitemap(index("http://a/s.xml")).pages == ()


def test_an_image_location_is_not_taken_for_a_page():
    image = "<image:image><image:loc>http://a/i.png</image:loc></image:image>"
    body = f'<urlset {NS} xmlns:image="http://i"><url><loc>http://a/1</loc>{image}</url></urlset>'
    assert listed(body.encode()) == ["http://a/1"]


def test_broken_xml_gives_what_stands_before_the_break():
    assert listed(urlset("http://a/1", "http://a/2")[:-40])[:1] == ["http://a/1"]
    assert listed(b"<html><p>Not found<br></html>") == []
    assert listed(b"<") == []


def test_entities_are_neither_expanded_nor_fetched(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("http://a/secret")
    laughs = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 12))
    declared = f'<!ENTITY l0 "http://a/"><!ENTITY f SYSTEM "file://{secret}">{laughs}'
    body = f"<!DOCTYPE u [{declared}]><urlset {NS}><url><loc>&f;</loc></url><url><loc>&l11;</loc>"
    found = listed(f"{body}</url></urlset>".encode())
    assert not any("secret" in url for url in found)
    assert sum(map(len, found)) < 100


def test_a_sitemap_that_is_a_bomb_or_a_flood_is_bounded():
    with pytest.raises(DataError, match="more than"):
        parse_sitemap(gzip.compress(bytes(MAX_SITEMAP_BYTES + 1), 1))
    flood = urlset(*(f"http://a/{i}" for i in range(MAX_SITEMAP_URLS + 10)))
    assert len(listed(flood)) == MAX_SITEMAP_URLS


def test_a_crawl_starts_from_the_sitemaps_that_robots_txt_names(tmp_path):
    with serving({"/": page(), "/a": page(), "/b": page(), "/c": page()}) as site:
        u = site.url
        site.routes |= {
            "/robots.txt": Answer(f"Sitemap: {u}/index.xml\nSitemap: /lost.xml\n".encode()),
            "/index.xml": Answer(index(f"{u}/one.xml.gz", f"{u}/two.txt", f"{u}/index.xml")),
            "/one.xml.gz": Answer(gzip.compress(urlset(f"{u}/a", "http://elsewhere.example/"))),
            "/two.txt": Answer(f"{u}/b\n".encode(), content_type="text/plain"),
        }
        result = Store(tmp_path).crawl(quick_config(site))
        assert outcomes_of(result, site) == {
            "/": "new",
            "/a": "new",
            "/b": "new",
            "/lost.xml": "error:sitemap",
        }
        assert result.complete
        assert site.requests.count("/index.xml") == 1

        site.routes["/two.txt"] = Answer(b"", 503)
        result = Store(tmp_path).crawl(quick_config(site, retries=0))
        assert "two.txt" in result.incomplete_because[0]

        result = Store(tmp_path).crawl(quick_config(site, sitemaps=False))
        assert outcomes_of(result, site) == {"/": "new"}
