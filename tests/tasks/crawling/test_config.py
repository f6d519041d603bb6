from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from tasks.crawling.config import CrawlConfig
from tasks.crawling.fetch import Response, retry_after
from tasks.crawling.frontier import Scope, interleaved

SEEDS = ("https://Example.com",)


@pytest.mark.parametrize(
    "bad, said",
    [
        ({"seeds": ()}, "at least 1"),
        ({"seeds": ("ftp://example.com/",)}, "ftp://example.com/"),
        ({"mirror": {"http://a.example": "http://127.0.0.1:80/"}}, "must end in '/'"),
        ({"mirror": {"http://a/": "http://c/", "http://b/": "http://c/"}}, "one place"),
        ({"allow": ("example.com/docs",)}, "neither a host nor a URL prefix"),
        ({"deny": ("(",)}, "no regular expression"),
        ({"user_agent": "Mozilla 5.0"}, "name/version"),
        ({"max_pagse": 3}, "max_pagse"),
    ],
)
def test_an_impossible_setting_is_named(bad, said):
    with pytest.raises(ValidationError, match=said.replace("(", r"\(")):
        CrawlConfig.model_validate({"seeds": SEEDS} | bad)


def test_how_pages_are_fetched_is_no_part_of_what_a_crawl_is():
    plain = CrawlConfig(seeds=SEEDS)
    elsewhere = CrawlConfig(
        seeds=("https://example.com/",),
        mirror={"https://example.com/": "http://127.0.0.1:1234/"},
        allow_private=("127.0.0.1",),
        delay_s=0,
        concurrency=1,
    )
    assert plain.semantic() == elsewhere.semantic()
    assert plain.semantic() != CrawlConfig(seeds=SEEDS, max_depth=3).semantic()


def test_every_field_is_described():
    assert all(field.description for field in CrawlConfig.model_fields.values())


def test_importing_the_config_brings_no_http_client_or_parser_along():
    code = (
        "import sys, tasks.crawling.config, tasks.crawling.result;"
        "heavy = {'httpcore', 'lxml', 'resiliparse', 'fastwarc', 'protego', 'idna'};"
        "print(heavy & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


@pytest.mark.parametrize(
    "url, held",
    [
        ("https://example.com/a", True),
        ("http://example.com/a", True),
        ("https://example.com:8443/a", False),
        ("https://www.example.com/a", False),
        ("https://example.com/a.pdf", False),
        ("https://other.example/docs/a", True),
        ("https://other.example/blog", False),
        ("https://example.com" + "/a/b/c" * 3, True),
        ("https://example.com" + "/a/b/c" * 4, False),
        ("https://example.com/" + "/".join(map(str, range(20))), True),
        ("https://example.com/" + "/".join(map(str, range(21))), False),
        ("https://example.com////////", True),
    ],
)
def test_the_scope_is_hosts_prefixes_patterns_and_traps(url, held):
    config = CrawlConfig(
        seeds=SEEDS, allow=("EXAMPLE.com", "https://other.example/docs/"), deny=(r"\.pdf$",)
    )
    assert Scope(config).holds(url) is held


def test_hosts_take_turns_and_keep_their_own_order():
    urls = ["http://a/1", "http://a/2", "http://a/3", "http://b/1", "http://c/1", "http://c/2"]
    assert interleaved(urls) == [
        "http://a/1", "http://b/1", "http://c/1", "http://a/2", "http://c/2", "http://a/3",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "value, seconds",
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("Sat, 31 Jan 2026 12:01:30 GMT", 90.0),
        ("Sat, 31 Jan 2026 11:00:00 GMT", 0.0),
        ("soon", None),
        ("-5", None),
        ("", None),
    ],
)
def test_retry_after_is_seconds_or_a_date_by_the_servers_clock(value, seconds):
    headers = (("Retry-After", value), ("Date", "Sat, 31 Jan 2026 12:00:00 GMT"))
    assert retry_after(Response("u", 503, "", "HTTP/1.1", headers, (), "")) == seconds
