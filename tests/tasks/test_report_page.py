"""The report is one HTML file that shows what it was given and nothing it was not told to run."""

from __future__ import annotations

import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks.report_charts import Series, bar, line_chart, linear_ticks, log_ticks, thin
from tasks.report_page import (
    SECTIONS,
    ReportData,
    format_duration,
    format_number,
    format_percent,
    format_size,
    render_report,
)

HOSTILE = "</blockquote><script>alert(1)</script><img src=//evil.example onerror='x()'> & \"q\""

FULL = {
    "title": "Quickstart",
    "run": "run-7",
    "ref": "corpus/main",
    "when": "2026-04-18 14:02 UTC",
    "verdict": "2 of 3 documents became 60 tokens.",
    "alarms": [f"select removes far more as {HOSTILE}"],
    "highlights": [{"name": "tokens", "value": 1234567}],
    "funnel": [
        {"stage": "crawl", "rows_in": 3, "rows_out": 3, "dropped": 0, "share": 1.0},
        {
            "stage": "select",
            "rows_in": 3,
            "rows_out": 2,
            "dropped": 1,
            "share": 2 / 3,
            "text_bytes": 5_800_000,
            "work_seconds": 95.0,
        },
    ],
    "drops": [
        {
            "stage": "select",
            "reason": "too_few_words",
            "count": 1,
            "examples": [
                {
                    "id": "d" * 32,
                    "url": "https://example.com/a?b=1&c=2",
                    "value": 12.0,
                    "threshold": 50.0,
                    "excerpt": HOSTILE,
                },
                {"id": "e" * 32, "url": "javascript:alert(1)", "excerpt": "quiet"},
            ],
        }
    ],
    "quarantine": [
        {
            "stage": "import",
            "reason": "not_json",
            "count": 2,
            "examples": [{"source": "local", "locator": "lines.jsonl#3", "detail": HOSTILE}],
        }
    ],
    "pii": [{"type": "EMAIL_ADDRESS", "findings": 4, "documents": 2}],
    "benchmarks": [
        {
            "name": "gsm8k",
            "items": 10,
            "items_matched": 2,
            "items_leaked": 1,
            "documents_dropped": 1,
        }
    ],
    "contaminations": [
        {
            "benchmark": "gsm8k",
            "item": "7.question",
            "id": "f" * 32,
            "reason": "contaminated",
            "n_ngrams": 3,
            "overlap": 0.75,
        }
    ],
    "n_contaminations": 3456,
    "canaries": [
        {
            "kind": "pii",
            "detail": "EMAIL_ADDRESS",
            "stage": "scrub",
            "planted": 50,
            "reached": 49,
            "caught": 48,
            "wanted": True,
        },
        {
            "kind": "untouched",
            "detail": "",
            "stage": "dedup",
            "planted": 50,
            "reached": 50,
            "caught": 1,
            "wanted": False,
        },
    ],
    "sources": [{"source": "docs", "licenses": ["PSF-2.0"], "documents": 3, "n_bytes": 2048}],
    "languages": [{"language": "en", "documents": 2}, {"language": None, "documents": 1}],
    "tokens": [
        {
            "source": "docs",
            "split": "train",
            "documents": 2,
            "tokens": 60,
            "words": 40,
            "n_bytes": 240,
        }
    ],
    "tokenizer": [{"name": "vocabulary", "value": 8192}],
    "reserved_tokens": ["<|endoftext|>"],
    "model": [{"name": "family", "value": "llama"}],
    "recipe": [{"name": "optimizer", "value": "muon"}],
    "machine": [{"name": "processor", "value": "abacus"}],
    "training": [
        {
            "step": 1,
            "loss": 9.0,
            "learning_rate": 0.001,
            "grad_norm": 2.0,
            "tokens_per_second": 9e3,
        },
        {"step": 2, "loss": 8.0},
    ],
    "validation": [{"step": 2, "loss": 8.5}],
    "samples": [{"step": 2, "prompt": "Once", "text": HOSTILE}],
    "evaluation": [
        {"split": "test", "name": "uniform", "bits_per_byte": 8.0, "perplexity": 256.0},
        {"split": "test", "name": "quickstart v1", "bits_per_byte": 1.432, "baseline": False},
    ],
    "registration": {
        "model": "quickstart",
        "version": 1,
        "aliases": ["champion"],
        "gate_passed": True,
    },
    "lineage": [
        {
            "stage": "select",
            "version": 1,
            "fingerprint": "a1" * 32,
            "inputs": ["extract"],
            "data_digest": "b2" * 32,
            "libraries": {"pyarrow": "22.0.0"},
        }
    ],
    "timings": [
        {"stage": "crawl", "seconds": 83.0},
        {"stage": "scrub", "seconds": 0, "reused": True},
    ],
    "versions": {"python": "3.11.7"},
    "config_toml": 'name = "quickstart"  # <not markup>',
    "notes": ["No language-id model was given."],
}


class Page(HTMLParser):
    """Tags with their attributes, the text, and a check that elements close in order."""

    VOID = frozenset({"meta", "br", "link", "img", "hr"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def html() -> str:
    return render_report(ReportData.model_validate(FULL))


@pytest.fixture(scope="module")
def page(html) -> Page:
    return Page(html)


def test_every_section_is_there_and_linked_from_the_contents(page):
    ids = [attrs["id"] for tag, attrs in page.tags if tag == "section"]
    links = [attrs["href"] for tag, attrs in page.tags if (attrs.get("href") or "").startswith("#")]
    assert ids == [anchor for anchor, _, _ in SECTIONS]
    assert links == [f"#{anchor}" for anchor in ids]


def test_what_was_given_is_shown(page):
    for shown in (
        *("run-7", "corpus/main", "2 of 3 documents became 60 tokens.", "1,234,567"),
        *("too_few_words", "measured 12, threshold 50", "lines.jsonl#3", "EMAIL_ADDRESS"),
        *("gsm8k", "PSF-2.0", "2.0 kB", "unknown", "1.50", "4.00", "8,192", "llama", "1.432"),
        *(
            "67 %",
            "5.8 MB",
            "1 min 35 s",
            "7.question",
            "75 %",
            "3,456",
            "The first 1.",
            "<|endoftext|>",
            "muon",
            "abacus",
        ),
        *("quickstart version 1", "Gate passed", "champion", "a1" * 6, "1 min 23 s", "reused"),
        *("pyarrow\xa022.0.0", 'name = "quickstart"  # <not markup>', "No language-id model"),
    ):
        assert shown in page.text, shown


def test_alarms_stand_above_everything_else(page):
    alarm = page.text.index("Alarm: select removes far more")
    assert alarm < page.text.index("1,234,567") < page.text.index("Funnel")


def test_a_hostile_text_stays_text(page):
    assert page.text.count(HOSTILE) == 4
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "img", "iframe", "object", "form"})
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)


def test_the_page_asks_for_nothing_outside_itself(html, page):
    for tag, attrs in page.tags:
        assert "src" not in attrs
        assert tag != "link"
        assert tag == "a" or "href" not in attrs
    assert "@import" not in html
    assert "url(" not in html
    policies = [attrs["content"] for _, attrs in page.tags if "http-equiv" in attrs]
    assert policies == [
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    ]


def test_only_web_addresses_become_links(page):
    links = {attrs["href"] for tag, attrs in page.tags if tag == "a"}
    assert {link for link in links if not link.startswith("#")} == {"https://example.com/a?b=1&c=2"}
    assert "javascript:alert(1)" in page.text


def test_an_absent_part_is_left_out():
    empty = Page(render_report(ReportData(title="Nothing yet", run="r")))
    assert not any(tag in ("section", "nav") for tag, _ in empty.tags)
    for anchor, _, fields in SECTIONS:
        given = {name: FULL[name] for name in ("title", "run", fields[0])}
        one = Page(render_report(ReportData.model_validate(given)))
        assert [attrs["id"] for tag, attrs in one.tags if tag == "section"] == [anchor]


def test_zeros_do_not_break_a_report():
    zeros = {
        "title": "t",
        "run": "r",
        "funnel": [{"stage": "crawl", "rows_in": 0, "rows_out": 0, "dropped": 0, "share": 0}],
        "benchmarks": [
            {
                "name": "b",
                "items": 0,
                "items_matched": 0,
                "items_leaked": 0,
                "documents_dropped": 0,
            }
        ],
        "evaluation": [{"split": "s", "name": "gzip", "bits_per_byte": 0.0}],
        "languages": [{"language": "en", "documents": 0}],
        "pii": [{"type": "t", "findings": 0, "documents": 0}],
        "tokens": [
            {"source": "s", "split": "p", "documents": 0, "tokens": 0, "words": 0, "n_bytes": 0}
        ],
        "timings": [{"stage": "s", "seconds": 0.0, "reused": True}],
        "training": [{"step": 0, "loss": math.inf, "grad_norm": 0.0}],
    }
    assert "nan" not in Page(render_report(ReportData.model_validate(zeros))).text


def test_data_survives_json_and_refuses_what_it_does_not_know():
    data = ReportData.model_validate(FULL)
    assert ReportData.model_validate(json.loads(data.model_dump_json())) == data
    with pytest.raises(ValidationError, match="surprise"):
        ReportData.model_validate(FULL | {"surprise": 1})


def test_the_same_data_gives_the_same_bytes(html):
    assert render_report(ReportData.model_validate(FULL)) == html


finite = st.floats(-1e9, 1e9, allow_subnormal=False)


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=30).map(sorted), st.booleans())
def test_a_chart_stays_inside_its_plot(points, from_zero):
    chart = line_chart("t", [Series("s", points)], from_zero=from_zero)
    Page(chart)
    places = re.findall(r"(-?\d+),(-?\d+)", re.search(r'points="([^"]*)"', chart).group(1))
    assert all(0 <= int(place) <= 10_000 for pair in places for place in pair)


def test_a_chart_maps_values_to_places():
    points = [(0, 10.0), (5, 5.0), (10, 0.0)]
    assert 'points="0,0 5000,5000 10000,10000"' in line_chart("t", [Series("s", points)])
    decades = [(0, 1.0), (1, 10.0), (2, 100.0)]
    logged = line_chart("t", [Series("s", decades)], log_y=True)
    assert 'points="0,10000 5000,5000 10000,0"' in logged


def test_a_chart_names_itself_and_its_curves():
    curves = [Series("train <1>", [(0, 3.0), (1, 2.0)]), Series("held", [(0, 4.0)], dashed=True)]
    chart = Page(line_chart("Loss & more", curves))
    labels = [attrs.get("aria-label") for _, attrs in chart.tags if attrs.get("role") == "img"]
    assert labels == ["Loss & more: train <1> from 3 to 2; held from 4 to 4"]
    assert sum(tag == "li" for tag, _ in chart.tags) == 2


def test_nothing_to_draw_is_no_chart():
    assert line_chart("t", [Series("s", [])]) == ""
    assert line_chart("t", [Series("s", [(0, math.nan)])]) == ""
    assert line_chart("t", [Series("s", [(0, -1.0)])], log_y=True) == ""


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_rising_and_inside(low, width):
    ticks = linear_ticks(low, low + width, 5)
    assert 1 <= len(ticks) <= 7
    assert ticks == sorted(ticks)
    assert all(low - 1e-3 * width <= tick <= low + 1.001 * width for tick in ticks)


def test_log_ticks_are_decades_where_the_range_is_wide():
    assert log_ticks(0.01, 1000) == pytest.approx([0.01, 0.1, 1, 10, 100, 1000])
    assert log_ticks(1, 10) == pytest.approx([1, 2, 5, 10])


def test_thinning_keeps_the_ends_and_the_level():
    thinned = thin([(float(x), 7.0) for x in range(10_000)], 400)
    assert len(thinned) == 400
    assert (thinned[0], thinned[-1]) == ((0.0, 7.0), (9999.0, 7.0))
    assert all(y == pytest.approx(7) for _, y in thinned)


def test_a_bar_is_clamped_to_its_box():
    assert 'class="fill" width="100.00%"' in bar(1.7, "x")
    assert 'class="fill" width="0.00%"' in bar(-1, "x")
    assert "&lt;b&gt;" in bar(0.5, "<b>")


def test_figures_read_as_people_write_them():
    assert [format_number(value) for value in (None, 8192, 0.00312345, 1234.5, "tied")] == [
        *("–", "8,192", "0.003123", "1,234", "tied")
    ]
    assert [format_percent(share) for share in (0, 0.003, 0.5, 1)] == [
        *("0 %", "0.3 %", "50 %", "100 %")
    ]
    assert [format_size(size) for size in (12, 2048, 5_800_000)] == ["12 B", "2.0 kB", "5.8 MB"]
    assert [format_duration(seconds) for seconds in (0.04, 42, 200, 3599.9, 7500)] == [
        *("0.0 s", "42 s", "3 min 20 s", "1 h 00 min", "2 h 05 min")
    ]


@pytest.mark.browser
def test_a_browser_loads_it_whole_without_overflow(html, tmp_path: Path):
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or pytest.skip("no chromium on this machine")
    path = tmp_path / "report.html"
    path.write_text(html, encoding="utf-8")
    asked, complaints = [], []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for width in (390, 1280):
            tab = browser.new_page(viewport={"width": width, "height": 900})
            tab.on("request", lambda request: asked.append(request.url))
            tab.on("console", lambda message: complaints.append(message.text))
            tab.goto(path.as_uri())
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
        browser.close()
    assert asked == [path.as_uri()] * 2
    assert complaints == []
