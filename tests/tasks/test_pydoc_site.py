"""The quickstart's site: the same bytes every time, every link works, nothing local in it."""

from __future__ import annotations

import email.utils
import http.client
import os
import re
import sys
import sysconfig
import urllib.error
import urllib.request
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit
from xml.etree import ElementTree

import pytest
from protego import Protego

from llm.errors import ConfigError, DataError
from tasks.pydoc_render import cleaner
from tasks.pydoc_site import (
    MODULES,
    PRIVATE,
    TOPICS,
    SiteSummary,
    content_type,
    render_site,
    serve,
)

HOST = "http://python.loam.test/"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> SiteSummary:
    return render_site(tmp_path_factory.mktemp("first") / "site")


@pytest.fixture(scope="module")
def base(site: SiteSummary) -> Iterator[str]:
    with serve(site.directory) as url:
        yield url


class Page(HTMLParser):
    """What a browser would find: links and anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "a":
            self.links += [found["href"]] if found.get("href") else []
            self.anchors |= {found["name"]} if found.get("name") else set()


def files(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def get(url: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request) as reply:
            return reply.status, dict(reply.headers), reply.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def test_the_site_has_about_500_pages_and_6_mb_of_text(site: SiteSummary) -> None:
    expected = len(MODULES) + len(PRIVATE) + len(TOPICS) + 1
    assert site.n_pages == expected - len(site.left_out)
    assert 450 <= site.n_pages <= 550
    assert 5_000_000 <= site.text_bytes <= 8_000_000
    assert site.n_private == len(PRIVATE)
    pages = [name for name in files(site.directory) if name.endswith(".html")]
    assert len(pages) == site.n_pages


# Pages that hold addresses, paths, the environment or the time unless they are stripped.
REVEALING = [
    "asyncio", "configparser", "ctypes", "ctypes._endian", "difflib", "doctest", "ftplib",
    "http.client", "logging", "os", "pathlib", "platform", "posix", "random", "site", "subprocess",
    "sys", "sysconfig", "tempfile", "threading", "time", "typing",
]  # fmt: skip


def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes this process another person's, in another place; the folder for a site there."""
    settings = {"HOME": str(tmp_path), "TZ": "Asia/Tokyo", "LANG": "de_DE.UTF-8", "USER": "else"}
    for name, value in {**settings, "PYTHONHASHSEED": "7", "PYTHONDOCS": "/docs"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    alias = tmp_path / "another-name"
    alias.symlink_to(os.path.realpath(sys.executable))
    monkeypatch.setattr(sys, "executable", str(alias))
    return tmp_path / "a" / "deeper" / "place"


def test_two_renders_in_other_places_by_other_people_are_equal_byte_for_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = render_site(tmp_path / "first", modules=REVEALING)
    second = render_site(elsewhere(tmp_path, monkeypatch), modules=REVEALING)
    assert first.n_pages > len(REVEALING) + len(TOPICS) - len(first.left_out)
    assert files(second.directory) == files(first.directory)


@pytest.mark.slow
def test_two_renders_of_the_whole_site_are_equal_byte_for_byte(
    site: SiteSummary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = render_site(elsewhere(tmp_path, monkeypatch))
    assert files(second.directory) == files(site.directory)
    assert second.left_out == site.left_out


def test_no_page_tells_of_this_machine(site: SiteSummary) -> None:
    stdlib, work = sysconfig.get_path("stdlib"), str(site.directory.parent)
    local = {sys.prefix, sys.base_prefix, stdlib, work, os.getcwd()}
    secrets = [path.encode() for path in local if path not in ("/", "/usr", "/usr/local")]
    for name, body in files(site.directory).items():
        assert not [secret for secret in secrets if secret in body], name
        assert not re.search(rb"at(?: |&nbsp;)0x[0-9a-f]{6}|href=\"file:", body), name


def test_local_paths_and_addresses_are_cut_out_of_text_and_html() -> None:
    clean = cleaner(["/home/a&b/my lib", "/home/a&amp;b/my&nbsp;lib", "/home/ann"])
    for text, cleaned in {
        "from '/home/ann/x.py' and '/home/ann'": "from 'x.py' and ''",
        "of /home/anna/x.py": "of /home/anna/x.py",
        "in /home/a&amp;b/my&nbsp;lib/os.py": "in os.py",
        "&lt;lock&nbsp;at&nbsp;0x7f00Aa&gt;": "&lt;lock&gt;",
        "look at 0 and 0x7f": "look at 0 and 0x7f",
    }.items():
        assert clean(text) == cleaned


@pytest.mark.parametrize("module", ["os", "posix", "sys", "time"])
def test_data_that_describe_the_machine_are_left_out(site: SiteSummary, module: str) -> None:
    page = (site.directory / f"{module}.html").read_text(encoding="utf-8")
    assert ">Functions</strong>" in page
    assert ">Data</strong>" not in page
    assert ">Data</strong>" in (site.directory / "math.html").read_text(encoding="utf-8")


def test_every_internal_link_leads_to_a_page_and_an_anchor(site: SiteSummary) -> None:
    pages = {
        str(path.relative_to(site.directory)): Page(path) for path in site.directory.rglob("*.html")
    }
    n_links = 0
    for name, page in pages.items():
        for link in page.links:
            target, anchor = urldefrag(urljoin(HOST + name, link))
            if not target.startswith(HOST):
                assert urlsplit(target).scheme in ("http", "https", "ftp"), (name, link)
                continue
            to = unquote(target.removeprefix(HOST))
            assert to in pages, (name, link)
            assert not anchor or anchor in pages[to].anchors, (name, link)
            n_links += 1
    assert n_links > 10_000
    reached = {unquote(link) for link in pages["index.html"].links}
    assert reached == set(pages) - {"index.html"}


def test_robots_txt_forbids_pages_that_are_there_and_linked(site: SiteSummary) -> None:
    robots = Protego.parse((site.directory / "robots.txt").read_text())
    assert list(robots.sitemaps) == [f"{HOST}sitemap.xml"]
    forbidden = [name for name in files(site.directory) if not robots.can_fetch(HOST + name, "*")]
    assert forbidden == [f"private/{name}.html" for name in PRIVATE]


def test_the_sitemap_lists_every_public_page_by_its_address(site: SiteSummary) -> None:
    tree = ElementTree.parse(site.directory / "sitemap.xml")
    found = [element.text for element in tree.iter() if element.tag.endswith("}loc")]
    public = {
        HOST + name.replace("index.html", "")
        for name in files(site.directory)
        if name.endswith(".html") and not name.startswith("private/")
    }
    assert set(found) == public
    assert len(found) == len(public)


def test_a_module_that_does_not_import_is_left_out_and_counted(tmp_path: Path) -> None:
    site = render_site(tmp_path / "site", modules=["json", "no_such_module"])
    assert site.left_out == {"no_such_module": "ModuleNotFoundError: No module named "
                             "'no_such_module'"}  # fmt: skip
    names = [name for name in files(site.directory) if name.endswith(".html")]
    assert "json.html" in names
    assert len(names) == site.n_pages
    # What would lead to the pages of other modules is text.
    assert not [link for link in Page(site.directory / "json.html").links if "decoder" in link]


def test_a_render_that_takes_too_long_is_stopped_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"longer than 0\.01 s"):
        render_site(tmp_path / "site", timeout_s=0.01)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_files_in_it_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds files already"):
        render_site(tmp_path, modules=["json"])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_server_sends_files_with_their_type_and_nothing_else(base: str, site) -> None:
    assert urlsplit(base).hostname == "127.0.0.1"
    status, headers, body = get(base)
    assert (status, headers["Content-Type"]) == (200, "text/html")
    assert body == (site.directory / "index.html").read_bytes()
    assert get(base + "json.html?x=1")[2] == (site.directory / "json.html").read_bytes()
    assert get(base + "robots.txt")[1]["Content-Type"] == "text/plain"
    assert get(base + "sitemap.xml")[1]["Content-Type"] in ("text/xml", "application/xml")
    for missing in ("nothing.html", "private/", "private", "json.html/", "%00", "x" * 5000):
        assert get(base + missing)[0] == 404


def test_a_copy_that_is_still_good_is_answered_with_304(base: str) -> None:
    etag = get(base + "json.html")[1]["ETag"]
    for header in (etag, f'"other", W/{etag}', "*"):
        status, headers, body = get(base + "json.html", **{"If-None-Match": header})
        assert (status, headers["ETag"], body) == (304, etag, b"")
    assert get(base + "json.html", **{"If-None-Match": '"other"'})[0] == 200
    assert get(base + "os.html")[1]["ETag"] != etag
    assert "Last-Modified" not in get(base)[1]


@pytest.mark.parametrize("path", ["/../secret", "/%2e%2e/secret", "//../secret", "/link"])
def test_nothing_outside_the_folder_is_served(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "link").symlink_to(tmp_path / "secret")
    with serve(tmp_path / "site") as base:
        connection = http.client.HTTPConnection("127.0.0.1", urlsplit(base).port)
        connection.putrequest("GET", path)
        connection.endheaders()
        reply = connection.getresponse()
        assert reply.status == 404
        assert b"secret" not in reply.read()
        connection.close()


def test_a_folder_without_its_slash_is_redirected_and_head_has_no_body(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "index.html").write_text("here")
    with serve(tmp_path) as base:
        connection = http.client.HTTPConnection("127.0.0.1", urlsplit(base).port)
        connection.request("GET", "//a%20b")
        reply = connection.getresponse()
        assert (reply.status, reply.headers["Location"], reply.read()) == (301, "/a%20b/", b"")
        connection.request("HEAD", "/a%20b/")
        reply = connection.getresponse()
        assert (reply.status, reply.headers["Content-Length"], reply.read()) == (200, "4", b"")
        assert email.utils.parsedate_to_datetime(reply.headers["Date"])
        connection.close()
        assert get(base + "a%20b")[2] == b"here"


def test_the_type_of_a_file_is_told_by_its_last_extension_that_has_one() -> None:
    for name, kind in {
        "a.html": "text/html",
        "index.html.ja.utf8": "text/html",
        "A.HTM": "text/html",
        "debian-faq.en.txt.gz": "application/gzip",
        "style.css": "text/css",
        "README": "application/octet-stream",
    }.items():
        assert content_type(Path(name)) == kind
