from __future__ import annotations

import re
import tarfile

import pytest
from protego import Protego

from tasks.crawling.robots import MAX_ROBOTS_BYTES, Robots, parse_robots
from tests.shared_data import shared_data
from tests.tasks.crawling.site import Answer, Store, outcomes_of, page, quick_config, serving


def real_files() -> list[tuple[str, bytes]]:
    with tarfile.open(shared_data("robots/robots-txt-600.tar.gz")) as archive:
        files = [member for member in archive if member.isfile()]
        return [(file.name, archive.extractfile(file).read()) for file in files]


def urls_about(text: str) -> list[str]:
    """Addresses on both sides of the rules of a robots.txt: its own paths, and what is near."""
    paths = re.findall(r"(?im)^\s*(?:dis)?allow\s*:\s*(/\S*)", text)[:40]
    near = [variant for path in paths for variant in (path, path + "x", path[:-1], path.upper())]
    filled = [path.replace("*", "any").rstrip("$") for path in near]
    return [f"https://example.com/{path.lstrip('/')}" for path in ["", "index.html?a=1", *filled]]


def test_the_verdicts_on_600_real_files_are_protegos():
    files = real_files()
    assert len(files) == 600
    refused = 0
    for name, body in files:
        text = body.decode("utf-8", errors="replace").removeprefix("\ufeff")
        oracle = Protego.parse(text)
        for token in ("loam", "Googlebot"):
            robots = Robots(parse_robots(body), token)
            assert robots.delay_s == (oracle.crawl_delay(token) or 0)
            assert list(robots.sitemaps) == list(oracle.sitemaps)
            for url in urls_about(text):
                verdict = robots.allows(url)
                assert verdict == oracle.can_fetch(url, token), (name, url)
                refused += not verdict
    assert refused > 1000


# RFC 9309, 5.1 and 5.2: its own examples.
SIMPLE = b"""User-Agent: *
Disallow: *.gif$
Disallow: /example/
Allow: /publications/

User-Agent: foobot
Disallow:/
Allow:/example/page.html
Allow:/example/allowed.gif

User-Agent: barbot
User-Agent: bazbot
Disallow: /example/page.html

User-Agent: quxbot
"""
LONGEST = b"""User-Agent: foobot
Allow: /example/page/
Disallow: /example/page/disallowed.gif
"""


@pytest.mark.parametrize(
    "body, token, path, allowed",
    [
        (SIMPLE, "otherbot", "/a.gif", False),
        (SIMPLE, "otherbot", "/example/a", False),
        (SIMPLE, "otherbot", "/publications/", True),
        (SIMPLE, "foobot", "/", False),
        (SIMPLE, "foobot", "/example/page.html", True),
        (SIMPLE, "foobot", "/example/allowed.gif", True),
        (SIMPLE, "bazbot", "/example/page.html", False),
        (SIMPLE, "bazbot", "/example/a.gif", True),
        (SIMPLE, "quxbot", "/example/page.html", True),
        (LONGEST, "foobot", "/example/page/allowed.gif", True),
        (LONGEST, "foobot", "/example/page/disallowed.gif", False),
    ],
)
def test_the_examples_of_rfc_9309_hold(body, token, path, allowed):
    assert Robots(parse_robots(body), token).allows(f"https://example.com{path}") is allowed


def test_rules_beyond_500_kib_are_left_out_and_no_line_is_read_in_half():
    start = b"User-agent: *\nDisallow: /near\n"
    filler = b"# nothing\n" * ((MAX_ROBOTS_BYTES - len(start)) // 10)
    cut = b"Disallow: /a-path-that-the-limit-cuts\nDisallow: /far\n"
    robots = Robots(parse_robots(start + filler + cut), "loam")
    assert not robots.allows("https://example.com/near")
    assert robots.allows("https://example.com/a-path-that-the-limit-cuts")
    assert robots.allows("https://example.com/a")
    assert robots.allows("https://example.com/far")


def test_bytes_that_are_no_utf_8_leave_the_other_rules_standing():
    robots = Robots(parse_robots(b"\xef\xbb\xbfUser-agent: *\n\xff\xfe\nDisallow: /a\n"), "loam")
    assert not robots.allows("https://example.com/a")


FORBID = b"User-agent: *\nDisallow: /a\n"


def to_rules(handler) -> Answer:
    return Answer(b"", 301, {"Location": "/rules.txt"})


@pytest.mark.parametrize(
    "robots, outcome",
    [
        (Answer(FORBID, content_type="text/plain"), "robots"),
        (Answer(FORBID, content_type=None), "robots"),
        (to_rules, "robots"),
        (Answer(b"<html><body><p>User-agent: *<p>Disallow: /</body></html>"), "new"),
        (Answer(b"", 404), "new"),
        (Answer(b"", 403), "new"),
        (Answer(b"", 302, {"Location": "/robots.txt"}), "new"),
        (Answer(b"", 500), "error:robots"),
        (Answer(b"", 503), "error:robots"),
        (Answer(b"", 429), "error:robots"),
    ],
)
def test_each_way_a_robots_txt_may_answer_decides_as_the_rfc_says(tmp_path, robots, outcome):
    routes = {"/robots.txt": robots, "/rules.txt": Answer(FORBID), "/": page("/a"), "/a": page()}
    with serving(routes) as site:
        config = quick_config(site, seeds=(f"{site.url}/a",), retries=1)
        result = Store(tmp_path).crawl(config)
        assert outcomes_of(result, site) == {"/a": outcome}
        assert result.complete is (outcome != "error:robots")
        assert ("/a" in site.requests) is (outcome == "new")


def test_a_robots_txt_is_asked_for_once_per_crawl(tmp_path):
    routes = {f"/{i}": page(*(f"/{j}" for j in range(8))) for i in range(8)}
    with serving(routes) as site:
        Store(tmp_path).crawl(quick_config(site, seeds=(f"{site.url}/0",)))
        assert site.requests.count("/robots.txt") == 1
        assert all(headers["User-Agent"].startswith("loam/") for headers in site.seen_headers)
