from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.crawling.links import read_page
from tasks.crawling.urls import Mirror, canonical_url

URL = "https://example.com/dir/page.html"


def notes(html: str | bytes, content_type: str | None = "text/html", tag: str | None = None):
    payload = html.encode() if isinstance(html, str) else html
    return read_page(payload, content_type, URL, Mirror({}), "loam", tag)


def links(html: str | bytes, content_type: str | None = "text/html") -> list[str]:
    return [link.removeprefix("https://example.com") for link in notes(html, content_type).links]


def test_links_are_what_a_browser_would_go_to():
    html = """<a href="a">x</a><AREA HREF="/b"><iframe src="d"></iframe>
    <a name="here">x</a><a href="#top">x</a><a href="javascript:f()">x</a><img src="e.png">
    <link href="f.css" rel="stylesheet"><a href="a#part">x</a><a href="g" rel="NoFollow x">x</a>
    <meta http-equiv="Refresh" content="0; URL='h'">"""
    assert links(html) == ["/dir/h", "/dir/a", "/b", "/dir/d", "/dir/page.html"]
    assert links("<frameset><frame src='c'></frameset>") == ["/dir/c"]


def test_base_href_is_honored_wherever_it_points():
    assert links("<base href='/other/'><a href=a>x</a>") == ["/other/a"]
    assert links("<base href='sub/'><base href='/late/'><a href=a>x</a>") == ["/dir/sub/a"]
    assert links("<base href='mailto:x'><a href=a>x</a>") == ["/dir/a"]


def test_links_are_read_in_the_encoding_the_page_declares():
    anchor = "<a href='/é'>x</a>"
    assert links(anchor.encode("latin-1"), "text/html; charset=ISO-8859-1") == ["/%C3%A9"]
    meta = "<meta charset='iso-8859-1'>"
    assert links((meta + anchor).encode("latin-1")) == ["/%C3%A9"]
    assert links(anchor, "text/html; charset=no-such-charset") == ["/%C3%A9"]


def test_text_that_is_no_html_has_no_links():
    assert links("<a href='/a'>x</a>", "text/plain") == []
    assert links("<a href='/a'>x</a>", None) == ["/a"]


@pytest.mark.parametrize(
    "meta, tag, noindex, nofollow",
    [
        ("robots:noindex", None, True, False),
        ("ROBOTS: NoFollow , x", None, False, True),
        ("loam:none", None, True, True),
        ("otherbot:none", None, False, False),
        ("description:noindex", None, False, False),
        ("", "noindex, nofollow", True, True),
        ("", "loam: noindex", True, False),
        ("", "otherbot: noindex, nofollow", False, False),
        ("", "otherbot: nofollow, loam: noindex", True, False),
        ("", "unavailable_after: 25 Jun 2010 15:00:00 PST, noindex", True, False),
    ],
)
def test_robots_directives_count_where_they_are_addressed_to_us(meta, tag, noindex, nofollow):
    name, _, content = meta.partition(":")
    found = notes(f"<meta name='{name}' content='{content}'><a href=a>x</a>", tag=tag)
    assert (found.noindex, not found.links) == (noindex, nofollow)


@given(st.binary(max_size=300), st.sampled_from([None, "text/html", "text/html; charset=utf-16"]))
def test_no_page_is_unreadable_and_every_link_is_canonical(junk, content_type):
    for payload in (junk, b"<a href='" + junk + b"'>x</a><base href='" + junk + b"'>"):
        for link in notes(payload, content_type).links:
            assert canonical_url(link) == link


def test_links_back_to_a_mirror_are_recorded_under_its_name():
    mirror = Mirror({"https://example.com/": "http://127.0.0.1:8000/"})
    html = b"<a href='http://127.0.0.1:8000/a'>x</a>"
    assert read_page(html, "text/html", URL, mirror, "loam").links == ("https://example.com/a",)
