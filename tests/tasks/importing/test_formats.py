"""Formats a team meets in its first week: mail, source trees, wiki dumps, Common Crawl's text."""

from __future__ import annotations

import bz2
import io
import json
import mailbox
import re
import tarfile
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warcio.warcwriter import WARCWriter

from tasks.importing import mediawiki
from tasks.importing.config import ImportConfig
from tasks.importing.mediawiki import mediawiki_records, plain_text
from tasks.store.rows import document_id
from tests.tasks.importing.test_rows import Rows, imported, one_file


def reasons(quarantine: Rows) -> dict[str, str]:
    return {row["detail"].partition(":")[0]: row["reason"] for row in quarantine}


def meta(row: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(row["meta"])
    return found


# mbox


def message(text: str, name: str, **headers: str) -> EmailMessage:
    made = EmailMessage()
    made["Message-ID"] = f"<{name}@lists.test>"
    made["From"] = "Ann Example <ann@lists.test>"
    made["Date"] = "Tue, 03 Feb 2004 10:20:30 +0100"
    for header, value in headers.items():
        made[header.replace("_", "-")] = value
    made.set_content(text)
    return made


@pytest.fixture
def box(tmp_path: Path) -> Path:
    """Written by Python's own mailbox module."""
    path = tmp_path / "list.mbox"
    box = mailbox.mbox(path)
    answer = (
        "On Monday, Ann wrote:\n> From here on it is quoted.\n> All of it.\n"
        "From the start: no.\n\nYes, grüße.\n-- \nBob\nSales\n"
    )
    box.add(message(answer, "1", Subject="Re: =?utf-8?q?Gr=C3=BC=C3=9Fe?=", List_Id="<l.test>"))
    rich = message("Plain wins.", "2", Subject="Both")
    rich.add_alternative("<p>HTML loses.</p>", subtype="html")
    rich.add_attachment(b"\0\1", maintype="application", subtype="zip", filename="a.zip")
    box.add(rich)
    html = EmailMessage()
    html["Message-ID"] = "<3@lists.test>"
    html.set_content("<html><body><p>Only HTML here &amp; now.</p></body></html>", subtype="html")
    box.add(html)
    picture = EmailMessage()
    picture["Message-ID"] = "<4@lists.test>"
    picture.set_content(b"\x89PNG", maintype="image", subtype="png")
    box.add(picture)
    box.flush()
    box.close()
    return path


def test_each_message_of_an_mbox_is_a_document(box: Path) -> None:
    documents, quarantine = imported(ImportConfig(paths=(str(box),)))
    assert [row["id"] for row in documents] == [
        document_id("s", f"<{name}@lists.test>") for name in "123"
    ]
    assert documents[0]["text"].strip() == "From the start: no.\n\nYes, grüße."
    assert documents[0]["fetched_at"] == "2004-02-03T09:20:30Z"
    assert meta(documents[0]) == {
        "date": "2004-02-03T09:20:30Z",
        "list_id": "<l.test>",
        "subject": "Re: Grüße",
    }
    assert documents[1]["text"].strip() == "Plain wins."
    assert meta(documents[1])["attachments"] == 1
    assert documents[2]["text"].strip() == "Only HTML here & now."
    assert [row["reason"] for row in quarantine] == ["no_text"]
    assert "ann@" not in json.dumps(documents), "who wrote it is not kept"


def test_quotes_and_signatures_stay_where_they_are_asked_for(box: Path) -> None:
    documents, _ = imported(ImportConfig(paths=(str(box),), mail_quotes=True))
    assert "> All of it." in documents[0]["text"]
    assert "Sales" in documents[0]["text"]


def test_what_is_no_mbox_is_set_aside(tmp_path: Path) -> None:
    documents, quarantine = one_file(tmp_path / "a.mbox", b"Dear all,\nthis is a letter.\n")
    assert (documents, [row["reason"] for row in quarantine]) == ([], ["unreadable"])


def mail(tmp_path: Path, body: bytes, content_type: str = "text/plain") -> tuple[Rows, Rows]:
    """What comes of a message with this body."""
    head = f"From a Tue Feb  3 10:20:30 2004\nMIME-Version: 1.0\nContent-Type: {content_type}\n"
    return one_file(tmp_path / "a.mbox", head.encode() + b"Message-ID: <z@t>\n\n" + body)


@pytest.mark.parametrize(
    "body",
    [
        "For example:\n--\nThe important second part.\n",
        "A diff:\n-- \n" + "The long rest.\n" * 20,
    ],
)
def test_what_is_no_signature_is_kept(tmp_path: Path, body: str) -> None:
    documents, _ = mail(tmp_path, body.encode())
    assert documents[0]["text"] == body


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ("Yes.\n-- \nnot yet\n-- \nAnn\nSales\n", "Yes.\n-- \nnot yet"),
        ("Yes.\n-- \nAnn\n" + "> What was asked.\n" * 20, "Yes."),
        ("-- \nAnn\n", None),
    ],
)
def test_a_signature_follows_the_last_dashes(tmp_path: Path, body: str, kept: str | None) -> None:
    documents, _ = mail(tmp_path, body.encode())
    assert [row["text"] for row in documents] == ([kept] if kept else [])


@pytest.mark.parametrize(
    ("charset", "body", "text"),
    [
        ("us-ascii", "Grüße".encode(), "Grüße"),
        ("x-unknown", "Grüße".encode(), "Grüße"),
        ("gb2312", "朱镕基".encode("gb18030"), "朱镕基"),
        ("shift_jis", "①".encode("cp932"), "①"),
        ("us-ascii", "Grüße".encode("latin-1"), None),
        ("utf-8", "Привет".encode("koi8-r"), None),
    ],
)
def test_bytes_wrong_for_their_charset_are_never_replaced(
    tmp_path: Path, charset: str, body: bytes, text: str | None
) -> None:
    documents, quarantine = mail(tmp_path, body, f"text/plain; charset={charset}")
    assert [row["text"] for row in documents] == ([text] if text else [])
    assert [row["reason"] for row in quarantine] == ([] if text else ["wrong_charset"])


def test_half_a_character_in_a_message_is_set_aside(tmp_path: Path) -> None:
    documents, quarantine = mail(tmp_path, b"a \\ud800 b", "text/plain; charset=raw-unicode-escape")
    assert (documents, [row["reason"] for row in quarantine]) == ([], ["not_utf8"])
    assert "U+D800 at character 2" in quarantine[0]["detail"]


@given(st.binary(max_size=200))
def test_no_bytes_of_a_message_stop_the_mailbox(tmp_path_factory: Any, body: bytes) -> None:
    folder = tmp_path_factory.mktemp("mail")
    after = b"\n\nFrom a Tue Feb  3 10:20:30 2004\nMessage-ID: <z@t>\n\nThe last message.\n"
    data = b"From a Tue Feb  3 10:20:30 2004\n" + body.replace(b"\nFrom ", b"\n") + after
    documents, quarantine = one_file(folder / "a.mbox", data)
    assert documents[-1]["text"].strip() == "The last message."
    assert len(documents) + len(quarantine) == 2


# code

PYTHON = "# SPDX-License-Identifier: Apache-2.0\ndef grow(seed: int) -> int:\n    return seed + 1\n"
TREE = {
    "src/grow/__init__.py": PYTHON,
    "src/run": "#!/usr/bin/env python3\nprint('it runs without an extension')\n",
    "src/main.rs": 'fn main() {\n    println!("rust");\n}\n',
    "vendor/lib.c": "int vendored(void) { return 1; }\n",
    "src/tables.c": "/* Automatically generated by mk. Do not edit. */\nint t[1];\n",
    "web/app.js": "var a=1;" * 400,
    "logo.py": "\0\1\2",
    "notes.docx": "no code",
    "latin.c": "/* gr\xfc\xdfe */",
}
SET_ASIDE = {
    "vendor/lib.c": "vendored",
    "src/tables.c": "generated",
    "web/app.js": "minified",
    "logo.py": "binary",
    "notes.docx": "not_code",
    "latin.c": "not_utf8",
}


def encoded(text: str) -> bytes:
    return text.encode("latin-1" if "\xfc" in text else "utf-8")


def test_a_tree_and_its_archive_hold_the_same_code(tmp_path: Path) -> None:
    for name, text in TREE.items():
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(text))
    for kind in ("gz", "xz"):
        with tarfile.open(tmp_path / f"tree.tar.{kind}", f"w:{kind}") as archive:
            archive.add(tmp_path / "tree", ".")
    for place in ("tree", "tree.tar.gz", "tree.tar.xz"):
        config = ImportConfig(paths=(str(tmp_path / place),), format="code")
        documents, quarantine = imported(config)
        found = {row["id"]: row for row in documents}
        assert found.keys() == {
            document_id("s", name) for name in TREE.keys() - SET_ASIDE.keys()
        }, place
        python = found[document_id("s", "src/grow/__init__.py")]
        assert (python["license"], python["text"]) == ("Apache-2.0", PYTHON)
        languages = {meta(row)["programming_language"] for row in documents}
        assert languages == {"Python", "Rust"}
        assert reasons(quarantine) == SET_ASIDE


@pytest.mark.parametrize("name", ["README.md", "guide.rst", "paper.tex", "index.html"])
def test_prose_among_code_may_have_long_lines(tmp_path: Path, name: str) -> None:
    body = b"A paragraph is one line. " * 50 + b"\n"
    documents, quarantine = one_file(tmp_path / name, body, format="code")
    assert (len(documents), quarantine) == (1, [])


def test_a_name_that_is_not_utf8_stops_no_archive(tmp_path: Path) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("\udcff.zz"))
    body = sink.getvalue()[:512] + tar(b=1)
    documents, quarantine = one_file(tmp_path / "tree.tar", body, format="code")
    assert len(documents) == 1
    assert [row["reason"] for row in quarantine] == ["not_code"]


# MediaWiki

DUMP = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" xml:lang="en">
<siteinfo><sitename>Wiki</sitename><base>https://en.wiki.test/wiki/Main_Page</base></siteinfo>
<page><title>Oak tree</title><ns>0</ns><id>7</id><revision><id>99</id>
<timestamp>2024-05-06T07:08:09Z</timestamp>
<text>'''Oaks''' are [[tree|trees]].&lt;ref&gt;Book&lt;/ref&gt;
{{Infobox|name=Oak}}
== Use ==
* Wood for [[ship]]s
[[File:Oak.jpg|thumb|An oak]]
{| class="wikitable"
| cell
|}
[[Category:Trees]]</text></revision></page>
<page><title>Oaks</title><ns>0</ns><id>8</id><redirect title="Oak tree"/><revision><id>1</id>
<text>#REDIRECT [[Oak tree]]</text></revision></page>
<page><title>Talk:Oak</title><ns>1</ns><id>9</id><revision><id>2</id><text>Hi</text></revision></page>
</mediawiki>"""


def tar(**modified: int) -> bytes:
    """An archive of Python files by name, with when they were modified."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, moment in modified.items():
            info, body = tarfile.TarInfo(f"{name}.py"), f"print({name!r})\n".encode()
            info.size, info.mtime = len(body), moment
            archive.addfile(info, io.BytesIO(body))
    return sink.getvalue()


@pytest.mark.parametrize(
    ("damage", "reason"), [("header", "unreadable"), ("cut", "truncated"), ("half", "truncated")]
)
def test_no_damage_to_an_archive_goes_for_its_end(tmp_path: Path, damage: str, reason: str) -> None:
    body = bytearray(tar(a=1, b=1, c=1))
    third = body.index(b"c.py")
    if damage == "header":
        body[third + 20] ^= 1
    else:
        body = body[: third + (0 if damage == "cut" else 100)]
    documents, quarantine = one_file(tmp_path / "tree.tar", bytes(body), format="code")
    assert [row["text"] for row in documents] == ["print('a')\n", "print('b')\n"]
    assert [row["reason"] for row in quarantine] == [reason]


def test_a_date_that_no_calendar_has_costs_a_source_file_no_more_than_its_date(
    tmp_path: Path,
) -> None:
    documents, quarantine = one_file(tmp_path / "tree.tar", tar(a=1 << 60, b=0), format="code")
    assert len(documents) == 2
    assert not quarantine


def test_attributes_of_a_gigabyte_are_not_read(tmp_path: Path) -> None:
    attributes = tarfile.TarInfo("attributes")
    attributes.type, attributes.size = tarfile.XHDTYPE, 1 << 30
    body = tar(a=1)[:1024] + attributes.tobuf() + tar(b=1)
    documents, quarantine = one_file(tmp_path / "tree.tar", body, format="code")
    assert len(documents) == 1
    assert "1,073,741,824 bytes" in quarantine[0]["detail"]


@pytest.mark.parametrize("name", ["pages-articles.xml", "pages-articles.xml.bz2"])
def test_a_wiki_dump_gives_its_articles_as_plain_text(tmp_path: Path, name: str) -> None:
    body = DUMP.encode()
    if name.endswith("bz2"):  # in several streams, as Wikipedia's
        body = bz2.compress(body[:300]) + bz2.compress(body[300:])
    documents, quarantine = one_file(tmp_path / name, body)
    (oak,) = documents
    assert oak["text"] == "Oaks are trees.\n\nUse\nWood for ships"
    assert oak["url"] == "https://en.wiki.test/wiki/Oak_tree"
    assert (oak["language"], oak["fetched_at"]) == ("en", "2024-05-06T07:08:09Z")
    assert oak["id"] == document_id("s", "7")
    assert meta(oak) == {"revision": "99", "title": "Oak tree"}
    assert [(row["locator"], row["reason"]) for row in quarantine] == [
        (name, "namespace"),
        (name, "redirect"),
    ]


def test_a_dump_cut_off_keeps_what_came_before(tmp_path: Path) -> None:
    documents, quarantine = one_file(tmp_path / "a.xml", DUMP.encode()[:-60])
    assert len(documents) == 1
    assert [row["reason"] for row in quarantine] == ["redirect", "truncated"]


def dump(*pages: str) -> bytes:
    """A dump of these pages."""
    return (DUMP[: DUMP.index("<page>")] + "\n".join(pages) + "\n</mediawiki>\n").encode()


def page(number: int, *texts: str, ns: int = 0) -> str:
    """A page, whose revisions have these texts and are a day apart."""
    revisions = [
        f"<revision><id>{n}</id><timestamp>2024-01-{n:02}T00:00:00Z</timestamp>"
        f"<text>{text}</text></revision>"
        for n, text in enumerate(texts, start=1)
    ]
    head = f"<page><title>Page {number}</title><ns>{ns}</ns><id>{number}</id>"
    return "\n".join([head, *revisions, "</page>"])


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (b"caf\xe9", "not_utf8"),
        (b"&#xD800;", "unreadable"),
        (b"&amp;#xD800;", "not_utf8"),
        (b"&undeclared;", "unreadable"),
        (b"</text>", "unreadable"),
        (b"</page>", "unreadable"),
        (b"<page>", "unreadable"),
    ],
)
def test_a_bad_page_costs_a_dump_no_other(tmp_path: Path, wrong: bytes, reason: str) -> None:
    pages = [page(n, f"Text {n}.") for n in range(1, 6)]
    body = dump(*pages).replace(b"Text 3.", b"Text " + wrong + b" 3.")
    documents, quarantine = one_file(tmp_path / "a.xml", body)
    assert [row["text"] for row in documents] == [f"Text {n}." for n in (1, 2, 4, 5)]
    assert {row["reason"] for row in quarantine} == {reason}
    assert quarantine[0]["locator"] == "a.xml:3"


def test_a_page_that_the_markup_parser_fails_on_is_set_aside(tmp_path: Path, monkeypatch) -> None:
    parse = mediawiki.plain_text

    def failing(markup: str) -> str:
        if markup == "Text 2.":
            raise RecursionError("too deep")
        return parse(markup)

    monkeypatch.setattr(mediawiki, "plain_text", failing)
    body = dump(*(page(n, f"Text {n}.") for n in (1, 2, 3)))
    documents, quarantine = one_file(tmp_path / "a.xml", body)
    assert [row["text"] for row in documents] == ["Text 1.", "Text 3."]
    assert [row["detail"] for row in quarantine] == ["wikitext: RecursionError: too deep"]


@given(st.integers(1, 40))
def test_pages_are_found_wherever_blocks_of_a_dump_end(size: int) -> None:
    body = dump(page(1, "Old.", "New."), page(2, "Text 2."), page(3, "Talk", ns=1))
    content = [body[at : at + size] for at in range(0, len(body), size)]
    assert list(mediawiki_records(content, 1000)) == list(mediawiki_records([body], 1000))


def test_a_dump_cut_anywhere_gives_the_pages_before_the_cut(tmp_path: Path) -> None:
    body = dump(page(1, "Text 1."), page(2, "Text 2."))
    first, second = (found.end() for found in re.finditer(b"</page>", body))
    for cut in range(body.index(b"<page>"), body.index(b"</mediawiki>"), 7):
        documents, quarantine = one_file(tmp_path / "a.xml", body[:cut])
        assert len(documents) == (cut >= first) + (cut >= second)
        assert [row["reason"] for row in quarantine] == ["truncated"]


def test_the_latest_revision_of_a_page_is_taken(tmp_path: Path) -> None:
    old, new = page(1, "Old.", "New."), page(2, "Old.", "New.")
    start, between, end = (new.index(mark) for mark in ("<revision>", "<revision><id>2", "</page>"))
    backwards = new[:start] + new[between:end] + new[start:between] + new[end:]
    documents, _ = one_file(tmp_path / "a.xml", dump(old, backwards))
    assert [row["text"] for row in documents] == ["New.", "New."]
    assert [meta(row)["revision"] for row in documents] == ["2", "2"]


def test_a_history_may_be_larger_than_what_is_held_of_a_page(tmp_path: Path) -> None:
    texts = [f"Text {n}. " + "x" * 500 for n in range(1, 29)]
    documents, quarantine = one_file(
        tmp_path / "a.xml", dump(page(1, *texts)), max_bytes_per_record=1000
    )
    assert [row["text"] for row in documents] == [texts[-1]]
    assert not quarantine


def test_a_page_over_the_limit_costs_a_dump_no_other(tmp_path: Path) -> None:
    body = dump(page(1, "One."), page(2, "x" * 3_000_000), page(3, "Three."))
    documents, quarantine = one_file(tmp_path / "a.xml", body, max_bytes_per_record=1000)
    assert [row["text"] for row in documents] == ["One.", "Three."]
    assert [(row["locator"], row["reason"]) for row in quarantine] == [("a.xml:2", "too_large")]


def test_pages_that_are_no_articles_are_counted_in_one_row(tmp_path: Path) -> None:
    talk = (page(n, "Talk.", ns=1) for n in range(2, 1236))
    documents, quarantine = one_file(tmp_path / "a.xml", dump(page(1, "Text."), *talk))
    assert len(documents) == 1
    assert [(row["locator"], row["reason"]) for row in quarantine] == [("a.xml", "namespace")]
    assert quarantine[0]["detail"].endswith(": 1,234")


@pytest.mark.parametrize("body", [b"", b"no XML", b"<feed></feed>", DUMP.encode("utf-16")])
def test_what_is_no_dump_is_unreadable(tmp_path: Path, body: bytes) -> None:
    documents, quarantine = one_file(tmp_path / "a.xml", body)
    assert (documents, [row["reason"] for row in quarantine]) == ([], ["unreadable"])


def test_a_dump_that_declares_entities_is_refused(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE mediawiki [<!ENTITY a "aaaaaaaaaa">]>' + DUMP.replace("Oaks", "&a;", 1)
    documents, quarantine = one_file(tmp_path / "a.xml", bomb.encode())
    assert documents == []
    assert "document type" in quarantine[0]["detail"]


def test_a_dump_whose_page_never_ends_keeps_what_came_before(tmp_path: Path) -> None:
    endless = DUMP.replace("</mediawiki>", "<page><title>" + "x" * 40_000_000)
    body = bz2.compress(endless.encode())
    documents, quarantine = one_file(
        tmp_path / "d.xml.bz2", body, format="mediawiki", max_bytes_per_record=200_000
    )
    assert documents
    assert quarantine[-1]["reason"] == "too_large"
    assert "no page ends within 1,600,000 bytes" in quarantine[-1]["detail"]


def test_nested_templates_and_quote_marks_leave_nothing_behind() -> None:
    assert plain_text("A {{x|{{y|[[z]]}}}}''b''<!-- c --> <nowiki>[d]</nowiki>.") == "A b [d]."


# Common Crawl's text


def test_common_crawls_wet_files_tell_address_language_and_date(tmp_path: Path) -> None:
    path = tmp_path / "part-00000.warc.wet.gz"
    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        writer.write_record(writer.create_warcinfo_record("x", {"software": "test"}))
        for n, languages in enumerate(["deu,eng", "eng", "ceb"]):
            record = writer.create_warc_record(
                f"http://example.test/{n}",
                "conversion",
                payload=io.BytesIO(f"Text number {n}.\n".encode()),
                warc_content_type="text/plain",
                warc_headers_dict={
                    "WARC-Date": "2025-03-04T05:06:07Z",
                    "WARC-Identified-Content-Language": languages,
                },
            )
            writer.write_record(record)
    documents, quarantine = imported(ImportConfig(paths=(str(path),)))
    assert quarantine == []
    assert [(row["url"], row["language"], row["fetched_at"]) for row in documents] == [
        ("http://example.test/0", "de", "2025-03-04T05:06:07Z"),
        ("http://example.test/1", "en", "2025-03-04T05:06:07Z"),
        ("http://example.test/2", "ceb", "2025-03-04T05:06:07Z"),
    ]
