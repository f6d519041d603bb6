from __future__ import annotations

import gzip
import itertools
import time
from collections.abc import Iterator

import pytest

from tasks.crawling.crawl import crawl
from tasks.crawling.warc import read_payload
from tasks.store.rows import data_digest, document_id
from tasks.store.schema import PAGES
from tests.tasks.crawling.site import (
    NOW,
    Answer,
    DictJournal,
    Store,
    outcomes_of,
    page,
    quick_config,
    rows_of,
    serving,
)


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path)


def kept_paths(result, site) -> set[str]:
    return {row["url"].removeprefix(site.url) for row in rows_of(result)}


def tree(width: int, levels: int) -> dict[str, Answer]:
    """A site of `levels` levels under `/`, each page linking to `width` more."""
    routes = {}
    for depth in range(levels + 1):
        for path in itertools.product(range(width), repeat=depth):
            name = "/" + "/".join(map(str, path))
            below = [f"{name.rstrip('/')}/{i}" for i in range(width)] if depth < levels else []
            routes[name] = page(*below, text=f"page {name}")
    return routes


def test_a_site_is_crawled_whole_and_each_row_leads_to_what_the_server_sent(store):
    routes = tree(3, 2)
    with serving(routes) as site:
        result = store.crawl(quick_config(site))
        assert kept_paths(result, site) == set(routes)
        assert result.complete
        assert result.counts == {"new": 13}
        assert sorted(site.pages_asked_for()) == sorted(routes)
    for row in rows_of(result):
        path, offset = store.where[row["id"]]
        status, headers, payload = read_payload(path, offset)
        assert payload == routes[row["url"].removeprefix(site.url)].body
        assert (status, dict(headers)["Content-Type"]) == (200, "text/html")
        assert row["id"] == document_id("site", row["url"])
        assert (row["source"], row["fetched_at"], row["status"]) == ("site", NOW, 200)


def test_a_second_crawl_of_an_unchanged_site_finds_nothing_new(store):
    def with_etag(path: str, *links: str):
        def answer(handler):
            if handler.headers.get("If-None-Match") == f'"{path}"':
                return Answer(b"", 304, {"ETag": f'"{path}"'})
            whole = page(*links)
            whole.headers["ETag"] = f'"{path}"'
            return whole

        return answer

    routes = {"/": with_etag("/", "/a"), "/a": with_etag("/a", "/b"), "/b": page()}
    with serving(routes) as site:
        first = store.crawl(quick_config(site))
        second = store.crawl(quick_config(site))
        assert first.counts == {"new": 3}
        assert outcomes_of(second, site) == {
            "/": "not_modified",
            "/a": "not_modified",
            "/b": "unchanged",
        }
        assert rows_of(second) == []
        assert second.complete
        assert second.seen_ids == first.seen_ids == set(store.known)


def test_a_changed_page_is_a_row_and_a_vanished_one_is_gone(store):
    with serving({"/": page("/a", "/b"), "/a": page(text="old"), "/b": page()}) as site:
        store.crawl(quick_config(site))
        site.routes |= {"/a": page(text="new"), "/b": Answer(b"", 410)}
        second = store.crawl(quick_config(site))
        assert outcomes_of(second, site) == {"/": "unchanged", "/a": "changed", "/b": "gone"}
        assert kept_paths(second, site) == {"/a"}
        assert second.gone == (document_id("site", f"{site.url}/b"),)


def test_a_page_no_longer_linked_is_absent_from_a_complete_crawl(store):
    with serving({"/": page("/a"), "/a": page()}) as site:
        store.crawl(quick_config(site))
        site.routes["/"] = page()
        second = store.crawl(quick_config(site))
        assert second.complete
        assert set(store.known) - second.seen_ids == {document_id("site", f"{site.url}/a")}


def test_pages_behind_a_page_in_error_are_still_seen_through_its_last_version(store):
    with serving({"/": page("/a"), "/a": page("/b"), "/b": page()}) as site:
        store.crawl(quick_config(site))
        site.routes["/a"] = Answer(b"", 500)
        second = store.crawl(quick_config(site, retries=0))
        assert outcomes_of(second, site)["/a"] == "error:http_500"
        assert second.complete
        assert second.seen_ids == set(store.known)


@pytest.mark.parametrize("budget", [1, 2, 5, 7])
def test_a_page_budget_cuts_in_url_order_whatever_the_timing(tmp_path, budget):
    def slow(answer: Answer, seconds: float):
        def later(handler):
            time.sleep(seconds)
            return answer

        return later

    found = []
    for attempt, batch_size in enumerate((1, 3, 128)):
        routes: dict = dict(tree(3, 2))
        for position, name in enumerate(sorted(routes, reverse=bool(attempt % 2))):
            routes[name] = slow(routes[name], 0.002 * position)
        routes["/0/1"] = Answer(b"", 404)
        with serving(routes) as site:
            store = Store(tmp_path / str(attempt))
            result = store.crawl(quick_config(site, max_pages=budget, batch_size=batch_size))
            assert not result.complete
            assert "budget" in result.incomplete_because[0]
            found.append(kept_paths(result, site))
    level_order = ["/", "/0", "/1", "/2", "/0/0", "/0/2", "/1/0"]
    assert found == [set(level_order[:budget])] * 3


def test_a_budget_that_is_just_enough_leaves_the_crawl_complete(store):
    with serving(tree(2, 1)) as site:
        assert store.crawl(quick_config(site, max_pages=3)).complete


class KilledError(BaseException):
    """Stands for kill -9: nothing that runs after it may be relied on."""


class DyingJournal(DictJournal):
    def save(self, key, batch):
        if len(self.batches) == 2:
            raise KilledError
        return super().save(key, batch)


def test_a_killed_crawl_resumes_from_its_journal_and_fetches_only_the_rest(tmp_path):
    routes = tree(3, 2)
    with serving(routes) as site:
        config = quick_config(site, batch_size=4)
        undisturbed = Store(tmp_path / "whole").crawl(config)
        site.requests.clear()
        journal = DyingJournal()
        with pytest.raises(KilledError):
            Store(tmp_path / "killed").crawl(config, journal)
        survivors = {outcome.url for batch in journal.batches.values() for outcome in batch.seen}
        assert len(survivors) == 4

        site.requests.clear()
        rest = DictJournal()
        rest.batches = dict(journal.batches)
        resumed = Store(tmp_path / "resumed").crawl(config, rest)
        assert len(site.pages_asked_for()) == len(routes) - len(survivors)

    def digest(result) -> int:
        return sum(data_digest(batch.pages, PAGES) for batch in result.batches)

    assert digest(resumed) == digest(undisturbed)
    assert resumed.outcomes == undisturbed.outcomes
    assert resumed.complete


def test_two_redirects_to_one_page_give_one_row(store):
    routes = {
        "/": page("/old", "/older", "/new"),
        "/old": Answer(b"", 301, {"Location": "/new"}),
        "/older": Answer(b"", 302, {"Location": "old#part"}),
        "/new": page(text="here"),
    }
    with serving(routes) as site:
        result = store.crawl(quick_config(site))
        assert kept_paths(result, site) == {"/", "/new"}
        assert site.requests.count("/new") == 1
        ends = {o.url: o.final_url for o in result.outcomes if o.outcome == "redirect"}
        assert ends == {f"{site.url}/{name}": f"{site.url}/new" for name in ("old", "older")}


def test_redirect_loops_chains_and_dead_ends_say_what_they_are(store):
    def to(location: str) -> Answer:
        return Answer(b"", 307, {"Location": location})

    routes = {
        "/": page("/loop", "/self", "/dead", "/away", "/bad", "/chain/0"),
        "/loop": to("/pool"),
        "/pool": to("/loop"),
        "/self": to("/self"),
        "/dead": to("/gone"),
        "/away": to("http://elsewhere.example/"),
        "/bad": to("http://user@127.0.0.1/"),
    } | {f"/chain/{i}": to(f"/chain/{i + 1}") for i in range(9)}
    with serving(routes) as site:
        result = store.crawl(quick_config(site, max_redirects=3))
        found = outcomes_of(result, site)
    expected = {
        "/loop": "error:redirect_loop",
        "/pool": "error:redirect_loop",
        "/self": "error:redirect_loop",
        "/dead": "gone",
        "/away": "out_of_scope",
        "/bad": "error:redirect",
        "/chain/0": "error:too_many_redirects",
    }
    assert {path: found[path] for path in expected} == expected
    assert "/chain/4" not in site.requests
    assert result.counts["new"] == 1


def test_a_long_response_is_cut_off_early_and_set_aside(store):
    def half_a_gigabyte() -> Iterator[bytes]:
        piece = bytes(1 << 20)
        for _ in range(500):
            yield piece

    routes = {
        "/": page("/endless", "/declared"),
        "/endless": lambda _: Answer(half_a_gigabyte()),
        "/declared": lambda _: Answer(
            half_a_gigabyte(), headers={"Content-Length": str(500 << 20)}
        ),
    }
    with serving(routes) as site:
        result = store.crawl(quick_config(site, max_bytes=1_000_000))
        assert outcomes_of(result, site) == {
            "/": "new",
            "/endless": "too_large",
            "/declared": "too_large",
        }
        assert site.bytes_sent < 50 << 20


@pytest.mark.parametrize("coding", ["gzip", "br"])
def test_a_decompression_bomb_is_set_aside_at_the_same_limit(store, coding):
    brotli = pytest.importorskip("brotli")
    compress = {"gzip": gzip.compress, "br": brotli.compress}[coding]
    bomb = compress(bytes(50_000_000))
    fine = compress(b"<p>small")
    routes = {
        "/": page("/bomb", "/fine", "/torn", "/odd"),
        "/bomb": Answer(bomb, headers={"Content-Encoding": coding}),
        "/fine": Answer(fine, headers={"Content-Encoding": coding}),
        "/torn": Answer(fine[:-5], headers={"Content-Encoding": coding}),
        "/odd": Answer(b"x", headers={"Content-Encoding": "rot13"}),
    }
    assert len(bomb) < 100_000
    with serving(routes) as site:
        result = store.crawl(quick_config(site, max_bytes=1_000_000))
        found = outcomes_of(result, site)
        assert found["/bomb"] == "too_large"
        assert found["/fine"] == "new"
        assert found["/torn"] == found["/odd"] == "error:content_encoding"
        assert store.payload(document_id("site", f"{site.url}/fine")) == b"<p>small"


def test_a_calendar_without_end_is_bounded_by_depth_and_by_queries_per_path(store):
    def calendar(path: str) -> Answer:
        month = int(path.removeprefix("/").removeprefix("?month=") or 0)
        return page(*(f"/?month={month + step}" for step in (1, 2, 3)), text=path)

    with serving({"/robots.txt": Answer(b"", 404)}, calendar) as site:
        result = store.crawl(quick_config(site, max_query_urls_per_path=7, max_depth=50))
        assert kept_paths(result, site) == {"/"} | {f"/?month={i}" for i in range(1, 8)}
        site.requests.clear()
        result = Store(store.workdir / "deep").crawl(quick_config(site, max_depth=4))
        assert kept_paths(result, site) == {"/"} | {f"/?month={i}" for i in range(1, 13)}


def test_relative_links_that_nest_without_end_are_not_followed_far(store):
    def nested(path: str) -> Answer:
        return page("more/", text=path)

    with serving({"/robots.txt": Answer(b"", 404)}, nested) as site:
        result = store.crawl(quick_config(site))
        assert kept_paths(result, site) == {"/", "/more/", "/more/more/", "/more/more/more/"}


def test_a_site_that_answers_503_all_night_is_given_up_and_keeps_its_pages(store):
    routes = tree(5, 2)
    with serving(routes) as site:
        first = store.crawl(quick_config(site))
        site.requests.clear()
        robots = Answer(b"User-agent: *\nAllow: /\n", content_type="text/plain")
        site.routes = {"/robots.txt": robots}
        site.fallback = lambda _: Answer(b"", 503)
        config = quick_config(site, retries=2, give_up_after=3, per_host=1)
        journal = DictJournal()
        second = store.crawl(config, journal)
        assert len(site.pages_asked_for()) == 3 * 3
        assert not second.complete
        assert "3 URLs in a row failed" in second.incomplete_because[0]
        assert second.gone == ()
        assert rows_of(second) == []
        assert second.counts == {"error:host_given_up": 28, "error:http_503": 3}
        assert second.seen_ids == first.seen_ids
        resumed = store.crawl(config, journal)
        assert resumed.incomplete_because == second.incomplete_because


def test_a_host_that_asks_for_too_long_a_pause_is_given_up_at_once(store):
    busy = Answer(b"", 429, {"Retry-After": "3600"})
    with serving({"/": page("/a", "/b"), "/a": busy, "/b": page()}) as site:
        result = store.crawl(quick_config(site, per_host=1))
        assert outcomes_of(result, site) == {
            "/": "new",
            "/a": "error:http_429",
            "/b": "error:host_given_up",
        }
        assert "3600 s" in result.incomplete_because[0]


def test_retry_after_is_respected_and_the_page_is_had_in_the_end(store):
    asked: list[float] = []

    def busy_once(_):
        asked.append(time.monotonic())
        return page() if len(asked) > 1 else Answer(b"", 503, {"Retry-After": "1"})

    with serving({"/": busy_once}) as site:
        result = store.crawl(quick_config(site))
        assert result.counts == {"new": 1}
        assert asked[1] - asked[0] >= 1.0


def test_a_body_that_drips_is_ended_by_the_total_timeout(store):
    def drip() -> Iterator[bytes]:
        for _ in range(100):
            time.sleep(0.05)
            yield b"."

    routes = {"/": page("/drip"), "/drip": lambda _: Answer(drip())}
    with serving(routes) as site:
        start = time.monotonic()
        result = store.crawl(quick_config(site, timeout_s=0.5, retries=0))
        assert time.monotonic() - start < 3
        assert outcomes_of(result, site)["/drip"] == "error:timeout"
        assert not result.complete


def test_requests_to_a_host_keep_the_crawl_delay_up_to_its_cap(store):
    starts: list[float] = []

    def timed(_):
        starts.append(time.monotonic())
        return page("/a", "/b")

    robots = b"User-agent: *\nCrawl-delay: 1000\n"
    routes = {"/robots.txt": Answer(robots), "/": timed, "/a": timed, "/b": timed}
    with serving(routes) as site:
        store.crawl(quick_config(site, max_crawl_delay_s=0.2))
    gaps = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert len(gaps) == 2
    assert min(gaps) > 0.19


def test_loopback_is_refused_unless_the_config_allows_it(store):
    with serving({"/": page()}) as site:
        for url in (site.url, site.url.replace("127.0.0.1", "localhost")):
            config = quick_config(site, seeds=(url,), allow_private=())
            result = Store(store.workdir / "refused").crawl(config)
            assert result.counts == {"error:private_address": 1}
            assert "allow_private" in result.outcomes[0].detail
        assert site.requests == []


def test_a_page_of_invalid_utf_8_is_kept_as_it_is_and_its_links_are_followed(store):
    broken = b"\xff\xfe\x00 <p>caf\xe9 \x80 <a href='/caf%E9'>x</a> <a href=\"/\xc3\x28\">y</a>"
    routes = {"/": Answer(broken, content_type="text/html; charset=utf-8")}
    with serving(routes, lambda _: page()) as site:
        result = store.crawl(quick_config(site))
        assert store.payload(document_id("site", f"{site.url}/")) == broken
        assert "/caf%E9" in kept_paths(result, site)


def test_what_is_no_page_of_a_wanted_type_is_not_read(store):
    routes = {
        "/": page("/a.png", "/b.txt", "/c"),
        "/a.png": Answer(b"png", content_type="image/png"),
        "/b.txt": Answer(b"text", content_type="Text/Plain; charset=latin-1"),
        "/c": Answer(b"bare", content_type=None),
    }
    with serving(routes) as site:
        result = store.crawl(quick_config(site))
        assert outcomes_of(result, site) == {
            "/": "new",
            "/a.png": "content_type",
            "/b.txt": "new",
            "/c": "new",
        }


def test_noindex_pages_are_followed_but_not_kept_and_nofollow_pages_the_reverse(store):
    def meta(content: str) -> str:
        return f'<meta name="ROBOTS" content="{content}">'

    routes = {
        "/": page("/noindex", "/nofollow", "/header"),
        "/noindex": page("/a", head=meta("NoIndex")),
        "/nofollow": page("/b", head=meta("index, nofollow")),
        "/header": Answer(b"x", headers={"X-Robots-Tag": "otherbot: nofollow, loam: none"}),
        "/a": page(),
    }
    with serving(routes) as site:
        result = store.crawl(quick_config(site))
        assert outcomes_of(result, site) == {
            "/": "new",
            "/noindex": "noindex",
            "/nofollow": "new",
            "/header": "noindex",
            "/a": "new",
        }


def test_a_mirror_is_fetched_but_the_recorded_address_is_kept(store):
    routes = {
        "/robots.txt": Answer(b"User-agent: *\nDisallow: /private\n"),
        "/": page("/a", "http://docs.example/b", "/private"),
        "/a": Answer(b"", 302, {"Location": "/c"}),
        "/b": page(),
        "/c": page(),
    }
    with serving(routes) as site:
        config = quick_config(
            site, seeds=("http://docs.example/",), mirror={"http://docs.example/": f"{site.url}/"}
        )
        result = store.crawl(config)
        assert {row["url"] for row in rows_of(result)} == {
            "http://docs.example/",
            "http://docs.example/b",
            "http://docs.example/c",
        }
        assert result.counts == {"new": 3, "redirect": 1, "robots": 1}
        assert str(site.server_port) not in " ".join(o.url + o.final_url for o in result.outcomes)


def test_only_what_is_allowed_and_not_denied_is_fetched(store):
    routes = {path: page("/docs/a", "/docs/b.pdf", "/other") for path in ("/", "/docs/a")}
    with serving(routes) as site:
        config = quick_config(
            site, seeds=(f"{site.url}/docs/a",), allow=(f"{site.url}/docs/",), deny=(r"\.pdf$",)
        )
        result = store.crawl(config)
        assert set(outcomes_of(result, site)) == {"/docs/a"}


def test_progress_counts_every_url_once(store):
    said = []
    with serving(tree(3, 1)) as site:
        crawl(
            quick_config(site),
            "site",
            {},
            DictJournal(),
            store.workdir,
            lambda: NOW,
            store.payload,
            said.append,
        )
    assert [step.fetched for step in said] == [1, 2, 3, 4]
    assert (said[-1].pages, said[-1].queued, said[-1].depth) == (4, 0, 1)
