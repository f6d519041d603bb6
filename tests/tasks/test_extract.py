from __future__ import annotations

import gzip
import inspect
import io
import json
import re
import subprocess
import sys
import tarfile
import textwrap
import time
from collections import Counter
from functools import cache

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.errors import DataError
from tasks.extract import extract_shard, normalize_shard
from tasks.page_text import (
    ExtractConfig,
    Extracted,
    Rejected,
    extract_page,
    license_id,
    normalize_text,
    primary_language,
)
from tasks.store.rows import text_digest
from tasks.store.schema import DOCUMENTS, DROPS, PAGES
from tests.bench.inputs import html_pages
from tests.shared_data import shared_data

CONFIG = ExtractConfig()
PROSE = "<p>" + "This sentence says something about the world. " * 8 + "</p>"


def page(html: str | bytes, content_type: str | None = "text/html") -> Extracted:
    body = html.encode() if isinstance(html, str) else html
    found = extract_page(body, content_type, "http://site.test/a/b.html", CONFIG)
    assert isinstance(found, Extracted), found
    return found


def reason(payload: bytes, content_type: str | None = "text/html") -> str:
    found = extract_page(payload, content_type, "", CONFIG)
    assert isinstance(found, Rejected), found
    return found.reason


@cache
def package(name: str) -> dict[str, bytes]:
    """The files of a Debian package: an ar archive with data.tar.xz inside."""
    raw, files, at = shared_data(f"deb/{name}").read_bytes(), {}, 8
    while at < len(raw):
        member, size = raw[at : at + 16].decode().strip(" /"), int(raw[at + 48 : at + 58])
        body, at = raw[at + 60 : at + 60 + size], at + 60 + size + size % 2
        if member.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(body)) as archive:
                for item in archive:
                    if item.isfile():
                        files[item.name.removeprefix("./")] = archive.extractfile(item).read()
    return files


def overlap(found: str, wanted: str) -> tuple[float, float, float]:
    """Precision, recall and F1 of the words of `found` against those of `wanted`."""
    a, b = Counter(found.split()), Counter(wanted.split())
    both = (a & b).total()
    precision, recall = both / max(1, a.total()), both / max(1, b.total())
    return precision, recall, 2 * precision * recall / max(1e-9, precision + recall)


# Extraction


@pytest.mark.parametrize("language", ["", "-de", "-fr", "-ru"])
def test_the_debian_faq_reads_as_its_plain_text_does_and_no_worse_than_with_trafilatura(language):
    import trafilatura

    files = package(f"debian-faq{language}_11.1_all.deb")
    truth = next(gzip.decompress(b).decode() for n, b in files.items() if n.endswith(".txt.gz"))
    pages = [body for name, body in sorted(files.items()) if name.endswith(".html")]
    ours = " ".join(page(body).text for body in pages)
    theirs = " ".join(trafilatura.extract(body.decode()) or "" for body in pages)
    f1 = overlap(ours, truth)[2]
    assert f1 > 0.93
    assert f1 > overlap(theirs, truth)[2]


@pytest.mark.parametrize("name", ["debian-faq-ja", "debian-faq-zh-cn"])
def test_chinese_and_japanese_pages_lose_no_characters(name):
    files = package(f"{name}_11.1_all.deb")
    truth = next(gzip.decompress(b).decode() for n, b in files.items() if n.endswith(".txt.gz"))
    ours = "".join(page(b).text for n, b in sorted(files.items()) if n.endswith(".html"))
    assert overlap(" ".join(ours), " ".join(truth))[2] > 0.93


def test_real_pages_keep_what_trafilatura_keeps_and_little_more():
    import trafilatura

    shared_data("deb")
    pages = [body for _, body in html_pages()[::60]]
    found = [extract_page(body, "text/html", "", CONFIG) for body in pages]
    ours = " ".join(item.text for item in found if isinstance(item, Extracted))
    theirs = " ".join(trafilatura.extract(body) or "" for body in pages)
    ours, theirs = (" ".join(re.findall(r"\w+", text)) for text in (ours, theirs))
    precision, recall, _ = overlap(ours, theirs)
    assert recall >= 0.93
    assert precision >= 0.85


def test_a_pydoc_page_keeps_every_line_of_its_docstrings_with_indentation(tmp_path):
    command = [sys.executable, "-m", "pydoc", "-w", "textwrap"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    found = page((tmp_path / "textwrap.html").read_bytes())
    lines = found.text.split("\n")
    for thing in (textwrap, textwrap.TextWrapper, textwrap.TextWrapper.wrap, textwrap.dedent):
        for line in inspect.getdoc(thing).split("\n"):
            assert line.rstrip() in lines
    assert found.title == "Python: module textwrap"
    assert "\xa0" not in found.text
    assert not any(line.startswith("\t") for line in lines)


def test_navigation_and_scripts_are_left_out():
    html = (
        f"<body><nav><a href=/>Home</a></nav>{PROSE}<script>var x=1</script><footer>foot</footer>"
    )
    assert page(html).text == "This sentence says something about the world. " * 7 + (
        "This sentence says something about the world."
    )


def test_a_list_near_the_body_is_text_and_a_list_of_links_is_not():
    html = f"<body>{PROSE}<ul><li>one plain thing<li>another plain thing</ul><p>end"
    assert "another plain thing" in page(html).text
    html = f"<body>{PROSE}<ul><li><a href=a>Start</a><li><a href=b>News</a></ul><p>end"
    assert "News" not in page(html).text


@pytest.mark.parametrize(
    "tag",
    [
        "<nav>",
        "<footer>",
        "<div role=navigation>",
        "<div id='site-footer'>",
        '<ul class="list main-menu">',
        "<div class=breadcrumbs>",
        "<section class='cookie-banner big'>",
        "<div hidden>",
        '<div style="color: red; display:none">',
        "<table class=sidebar><td>",
    ],
)
def test_what_is_called_navigation_or_hidden_is_left_out(tag):
    name = tag[1:-1].split()[0]
    found = page(f"<body>{PROSE}{tag}<p>Not of this page</p></{name}><p>The end.").text
    assert "Not of this page" not in found
    assert found.endswith("The end.")


@pytest.mark.parametrize(
    "tag",
    ["<div class='with-sidebar'>", "<div class=searching>", "<p class=note>", "<div id=menus>"],
)
def test_a_name_that_only_resembles_navigation_keeps_its_text(tag):
    assert "Of this page" in page(f"<body>{PROSE}{tag}Of this page</{tag[1:4]}><p>end").text


def test_half_of_a_page_is_text_whatever_it_is_called():
    assert page(f"<body><div class=modal>{PROSE}</div><p>end").text.startswith("This sentence")


def test_a_block_of_links_is_left_out_and_a_text_with_links_is_not():
    links = "<a href=1>First steps</a> | <a href=2>Second steps</a>"
    assert "steps" not in page(f"<body>{PROSE}<div>{links}</div>").text
    assert "Second steps" in page(f"<body>{PROSE}<p>Read about {links} before you go on.").text


def test_a_page_that_is_a_list_of_links_keeps_it():
    rows = "".join(f"<li><a href={i}>Chapter {i}</a>" for i in range(50))
    assert "Chapter 49" in page(f"<body><h1>Contents</h1><ul>{rows}</ul>").text


def test_where_there_is_one_main_element_the_rest_is_left_out():
    html = f"<html lang=en><title>T</title><body><p>above</p><main>{PROSE}</main><p>below"
    found = page(html)
    assert (found.text.split(". ")[0], found.title, found.language) == (
        "This sentence says something about the world",
        "T",
        "en",
    )
    assert "above" not in found.text
    assert "below" not in found.text
    assert page(f"<title>T</title><main>{PROSE}</main><p>below").title == "T"
    assert "below" in page(f"<body><main>x</main>{PROSE}<p>below").text


def test_trafilatura_is_asked_only_where_hardly_a_letter_comes_out(monkeypatch):
    import trafilatura

    asked: list[str] = []
    monkeypatch.setattr(trafilatura, "extract", lambda html, **_: asked.append(html) or "found")
    assert page(f"<body><select><option>{PROSE}</select>").text == "found"
    assert len(asked) == 1
    for path, body in package("debian-faq_11.1_all.deb").items():
        if path.endswith(".html"):
            page(body)
    assert len(asked) == 1


def test_marks_inside_a_line_leave_no_trace_in_the_text():
    html = f"<body>{PROSE}<p>a<b>b</b> <!-- no --><a href=x><i>c</i></a><script>d</script>e</p>"
    assert page(html).text.endswith("ab ce")


def test_preformatted_code_keeps_its_indentation_and_tables_one_tab_a_cell():
    html = f"<body>{PROSE}<pre>def f():\n    return 1\n\tx</pre><table><tr><td>a<td>b</table>"
    text = page(html).text
    assert "def f():\n    return 1\n\tx" in text
    assert "a\tb" in text


def test_title_language_and_license_are_read():
    html = f"""<html lang="pt-BR"><title> On\n Salt </title><body>{PROSE}
        <a rel="nofollow license" href="//creativecommons.org/licenses/by-sa/4.0/deed.pt">c</a>"""
    found = page(html)
    assert (found.title, found.language, found.license) == ("On Salt", "pt", "CC-BY-SA-4.0")


def test_a_page_without_a_title_is_called_by_its_first_heading():
    assert page(f"<body><h1>On <em>Salt</em></h1>{PROSE}").title == "On Salt"


def test_a_license_in_a_footer_counts():
    html = f'<body>{PROSE}<footer><a REL = "nofollow license" href="https://opensource.org/license/mit/">'
    assert page(html + "MIT</a></footer>").license == "MIT"


def test_a_license_link_that_is_no_address_costs_no_page():
    found = page(f'<body>{PROSE}<a rel="license" href="http://[example.org/">terms</a>')
    assert found.license is None
    assert found.text.startswith("This sentence")


def test_links_to_several_licenses_name_none():
    links = [
        f'<a href="https://creativecommons.org/licenses/{k}/4.0/">l</a>' for k in ("by", "by-nc")
    ]
    assert page(f"<body>{PROSE}{''.join(links)}").license is None
    assert page(f"<body>{PROSE}{links[0]}").license == "CC-BY-4.0"


@pytest.mark.parametrize(
    "url, name",
    [
        ("http://creativecommons.org/licenses/by-nc-nd/3.0/us/", "CC-BY-NC-ND-3.0-US"),
        ("https://creativecommons.org/publicdomain/zero/1.0/deed.de", "CC0-1.0"),
        ("https://www.apache.org/licenses/LICENSE-2.0", "Apache-2.0"),
        ("https://opensource.org/license/mit/", "MIT"),
        ("https://www.gnu.org/licenses/gpl-3.0.html", "GPL-3.0"),
        ("https://www.gnu.org/licenses/fdl-1.3.html", "GFDL-1.3"),
        ("https://example.org/licenses/by/4.0", None),
    ],
)
def test_license_urls_become_spdx_identifiers(url, name):
    assert license_id(url) == name


def test_language_tags_keep_their_primary_subtag():
    tags = {"en": "en", "EN-gb": "en", "zh_Hant": "zh", "fil": "fil", "english": None, "": None}
    assert {tag: primary_language(tag) for tag in tags} == tags
    assert primary_language(None) is None


def test_plain_text_and_markdown_pass_through():
    assert page("a <b> c\n\n\n\n* d", "text/plain").text == "a <b> c\n\n* d"
    assert page("# T\r\n\r\n&amp;", "text/markdown; charset=utf-8").text == "# T\n\n&amp;"


def test_without_a_content_type_the_first_bytes_decide():
    assert page(f"\n<!DOCTYPE html><body>{PROSE}", None).text.startswith("This sentence")
    assert page("no <b>html</b>", None).text == "no <b>html</b>"
    assert page(f"\ufeff<!DOCTYPE html><body>{PROSE}", None).text.startswith("This sentence")


def test_what_is_no_page_says_why():
    assert reason(b"%PDF-1.4 ...") == "not_html"
    assert reason(b"{}", "application/json") == "not_html"
    assert reason(b"\x00\x01\x02", None) == "not_html"
    assert reason(b"") == "no_text"
    assert reason(b"<html><body><script>1</script>") == "no_text"
    assert reason(bytes(range(1, 256)) * 9) == "undecodable"
    small = ExtractConfig(max_page_bytes=10)
    assert extract_page(b"<p>" + b"x" * 8, "text/html", "", small) == Rejected(
        "too_large", "bytes in the page", 11.0, 10.0
    )


@pytest.mark.parametrize(
    "html",
    [
        "<div>" * 200_000 + "x",
        "<p " + " ".join(f"a{i}=1" for i in range(60_000)) + ">x",
        "<" * 500_000,
        "x" + "\t" * 500_000 + "x",
        "<a href='" * 50_000,
        "<table>" * 1_500 + "x",
    ],
)
def test_hostile_markup_takes_no_long_time(html):
    start = time.process_time()
    extract_page(html.encode(), "text/html", "", CONFIG)
    assert time.process_time() - start < 5


def test_a_deep_page_says_how_deep_and_a_long_one_without_end_tags_is_read():
    deep = extract_page(b"<div>" * 3000 + b"x", "text/html", "", CONFIG)
    assert deep == Rejected("too_complex", "nested elements", 2001.0, 2000.0)
    assert "hello" in page("<body>" + "<p>hello there<br>" * 3000).text


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.text("<>/abdiulp &;=\"'-!\n\xa0é", max_size=200).map(str.encode),
    ),
    st.sampled_from([None, "text/html", "text/html; charset=shift_jis", "text/plain", "a/b"]),
)
def test_nothing_on_a_page_raises(payload, content_type):
    found = extract_page(payload, content_type, "http://[", CONFIG)
    if isinstance(found, Extracted):
        assert found.text.strip()
        found.text.encode()


# Normal form


def cases() -> list[tuple[str, str]]:
    """ftfy's own cases: the original and what repairing its encoding alone makes of it."""
    found = []
    with tarfile.open(shared_data("clean/ftfy-test-cases.tar.gz")) as archive:
        for item in archive:
            if item.isfile():
                rows = json.loads(archive.extractfile(item).read())
                passing = [row for row in rows if row["expect"] == "pass"]
                found += [(r["original"], r.get("fixed-encoding", r["fixed"])) for r in passing]
    return found


def test_ftfys_own_cases_come_out_as_ftfy_says():
    found = cases()
    assert len(found) > 70
    for original, fixed in found:
        # Of white space and controls there is one form here, in which ftfy leaves what it finds.
        wanted = fixed.replace("\xa0", " ").replace("\x1a", "").rstrip()
        assert normalize_text(original, CONFIG) == wanted


def test_repair_can_be_turned_off():
    assert normalize_text("schÃ¶n", CONFIG) == "schön"
    assert normalize_text("schÃ¶n", ExtractConfig(repair_encoding=False)) == "schÃ¶n"


def test_special_characters_go_by_family():
    text = "a\u200bb \U0001f469\u200d\U0001f52c \ue000 x\ufe0f│y"
    assert normalize_text(text, CONFIG) == text
    chosen = ExtractConfig(remove_characters=("zero_width", "private_use", "box_drawing"))
    assert normalize_text(text, chosen) == "ab \U0001f469\u200d\U0001f52c  x\ufe0f y"


def test_what_authors_meant_is_left_alone():
    for text in ("“curly” ‘quotes’", "&amp; &lt;b&gt;", "全角，标点！", "1³ ½", "क्‍ष"):
        assert normalize_text(text, CONFIG) == text


def test_white_space_is_plain_and_lines_stay():
    text = "\n\n  a\xa0b\u2009c\u3000d \t\r\n\r\n\r\n\r\ne\x0cf\u2028g soft\xadhyphen\x00\x07 \n"
    assert normalize_text(text, CONFIG) == "  a b c d\n\ne\nf\ng softhyphen"


def test_composition_is_canonical():
    assert normalize_text("e\u0301 \u1100\u1161", CONFIG) == "é 가"


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters()))
def test_normal_text_has_no_odd_space_control_or_surrogate(text):
    found = normalize_text(text, CONFIG)
    found.encode("utf-8")
    assert not set(found) & set("\r\x0b\x0c\xa0\u2028\u3000\x00\x1b\x7f")
    assert "\n\n\n" not in found
    assert all(line == line.rstrip(" \t") for line in found.split("\n"))


def test_text_in_normal_form_stays_as_it_is():
    for name in ("", "-ja", "-ru"):
        files = package(f"debian-faq{name}_11.1_all.deb")
        for path in sorted(files)[-8:]:
            if path.endswith(".html"):
                text = page(files[path]).text
                assert normalize_text(text, CONFIG) == text


# Shards


def pages_table(rows: list[dict[str, object]]) -> pa.Table:
    return PAGES.table(
        [{"source": "s", "status": 200, "content_type": "text/html"} | r for r in rows]
    )


def test_every_page_is_a_document_or_a_drop_and_both_are_sorted():
    bodies = [
        f"<body>{PROSE}".encode(),
        b"",
        None,
        b"%PDF-",
        f"<title>T</title>{PROSE}".encode(),
        b"x",
    ]
    rows: list[dict[str, object]] = [{"id": f"{9 - i:02}", "fetched_at": f"t{i}"} for i in range(5)]
    pages = pages_table([*rows, {"id": "00", "status": 404}])
    documents, drops = extract_shard(pages, bodies, CONFIG)
    assert (documents.schema, drops.schema) == (DOCUMENTS.arrow, DROPS.arrow)
    assert documents["id"].to_pylist() == ["05", "09"]
    assert documents["fetched_at"].to_pylist() == ["t4", "t0"]
    assert documents["meta"].to_pylist() == ['{"title":"T"}', None]
    assert documents["digest"].to_pylist() == [
        text_digest(t) for t in documents["text"].to_pylist()
    ]
    assert drops["id"].to_pylist() == ["00", "06", "07", "08"]
    assert drops["reason"].to_pylist() == ["http_status", "not_html", "no_payload", "no_text"]
    assert set(drops["stage"].to_pylist()) == {"extract"}


def test_the_license_of_the_source_outranks_that_of_the_page():
    html = f'{PROSE}<a rel=license href="https://creativecommons.org/licenses/by/4.0/">c</a>'
    pages = pages_table([{"id": "1", "license": "MIT"}, {"id": "2"}])
    documents, _ = extract_shard(pages, [html.encode()] * 2, CONFIG)
    assert documents["license"].to_pylist() == ["MIT", "CC-BY-4.0"]


def test_payloads_and_pages_must_be_as_many():
    pages = pages_table([{"id": "1"}, {"id": "2"}])
    for bodies in ([b"x"], [b"x"] * 3):
        with pytest.raises(DataError, match="payloads"):
            extract_shard(pages, bodies, CONFIG)


def test_an_empty_shard_gives_empty_tables():
    for tables in (
        extract_shard(PAGES.empty(), [], CONFIG),
        normalize_shard(DOCUMENTS.empty(), CONFIG),
    ):
        assert [t.num_rows for t in tables] == [0, 0]
        assert [t.schema for t in tables] == [DOCUMENTS.arrow, DROPS.arrow]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=6),
    st.randoms(),
)
def test_imported_rows_balance_in_any_order(texts, rng):
    rows: list[dict[str, object]] = [
        {"id": f"{i}", "text": text, "source": "s", "language": "en-GB", "meta": "{}"}
        for i, text in enumerate(texts)
    ]
    table = DOCUMENTS.table(rows)
    rng.shuffle(rows)
    documents, drops = normalize_shard(DOCUMENTS.table(rows), CONFIG)
    ids = documents["id"].to_pylist() + drops["id"].to_pylist()
    assert sorted(ids) == sorted(str(i) for i in range(len(texts)))
    assert normalize_shard(table, CONFIG) == (documents, drops)
    assert set(drops["reason"].to_pylist()) <= {"no_text"}
    assert documents["digest"].to_pylist() == [
        text_digest(t) for t in documents["text"].to_pylist()
    ]
    assert set(documents["language"].to_pylist()) <= {"en"}
