"""Importers, against real corpora, other libraries' writers and readers, and broken files."""

from __future__ import annotations

import csv
import errno
import gzip
import hashlib
import io
import json
import lzma
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import zstandard
from fastwarc.warc import ArchiveIterator
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from llm.errors import ConfigError, StorageError
from tasks.importing import rows
from tasks.importing.config import ImportConfig
from tasks.importing.files import read_files
from tasks.importing.readers import blocks, lines
from tasks.importing.rows import Chunk, read_file
from tasks.store.rows import document_id, text_digest
from tasks.store.schema import DOCUMENTS, PAGES, QUARANTINE
from tests.shared_data import shared_data

NOW = "2026-01-02T03:04:05Z"
Rows = list[dict]


def imported(config: ImportConfig, source: str = "s") -> tuple[Rows, Rows]:
    """The documents and the quarantine of a whole source; checks that tables have their schema."""
    documents, quarantine = [], []
    for file in read_files(config):
        for chunk in read_file(file, config, source, NOW):
            assert chunk.documents.schema == DOCUMENTS.arrow
            assert chunk.quarantine.schema == QUARANTINE.arrow
            documents += chunk.documents.to_pylist()
            quarantine += chunk.quarantine.to_pylist()
    return documents, quarantine


def one_file(path: Path, body: bytes, **settings: object) -> tuple[Rows, Rows]:
    path.write_bytes(body)
    return imported(ImportConfig(paths=(str(path),), **settings))


def reasons(quarantine: Rows) -> list[tuple[str, str]]:
    return [(row["locator"], row["reason"]) for row in quarantine]


def jsonl(*records: object) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


# --- real corpora


def test_every_speech_of_a_real_jsonl_becomes_a_document() -> None:
    path = shared_data("pretrain/sotu-before-1960.jsonl.gz")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        speeches = [json.loads(line) for line in file]
    config = ImportConfig(paths=(str(path),), meta_fields=("year", "party"), license="PD")
    documents, quarantine = imported(config, "sotu")
    assert [row["text"] for row in documents] == [speech["text"] for speech in speeches]
    assert [row["id"] for row in documents] == [document_id("sotu", s["id"]) for s in speeches]
    assert json.loads(documents[0]["meta"]) == {"party": "none", "year": 1790}
    assert {(row["license"], row["source"]) for row in documents} == {("PD", "sotu")}
    assert all(row["digest"] == text_digest(row["text"]) for row in documents)
    assert quarantine == []


def test_dots_lead_into_nested_records_of_a_real_jsonl() -> None:
    path = shared_data("pretrain/moby-dick.jsonl.gz")
    config = ImportConfig(paths=(str(path),), text_field="doc.text", meta_fields=("doc.title",))
    documents, quarantine = imported(config)
    assert documents[0]["text"].startswith("Call me Ishmael.")
    assert json.loads(documents[0]["meta"]) == {"doc.title": "Loomings."}
    assert len(documents) > 130
    assert quarantine == []


def test_slices_of_a_text_file_are_those_of_nanogpt_and_join_to_the_whole() -> None:
    path = shared_data("pretrain/tinyshakespeare.txt.gz")
    data = gzip.decompress(path.read_bytes()).decode()
    parts = []
    for bounds in ((0, 0.9), (0.9, 1)):
        documents, _ = imported(ImportConfig(paths=(str(path),), slice=bounds))
        parts += [row["text"] for row in documents]
        assert documents[0]["id"] == document_id("s", "tinyshakespeare.txt.gz")
    assert parts == [data[: int(len(data) * 0.9)], data[int(len(data) * 0.9) :]]


# --- JSONL

any_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
    lambda text: text.strip()
)


@settings(max_examples=100, deadline=None)
@given(
    texts=st.lists(any_text, min_size=1, max_size=8),
    pack=st.sampled_from([bytes, gzip.compress, zstandard.compress]),
    ascii_only=st.booleans(),
    data=st.data(),
)
def test_what_json_writes_comes_back_as_it_was(texts, pack, ascii_only, data) -> None:
    body = "".join(json.dumps({"text": t}, ensure_ascii=ascii_only) + "\n" for t in texts)
    cut = data.draw(st.integers(0, len(body.encode())))
    raw = pack(body.encode()[:cut]) + pack(body.encode()[cut:])
    fsspec.filesystem("memory").pipe_file("/round/trip.jsonl", raw)
    documents, quarantine = imported(ImportConfig(paths=("memory://round/trip.jsonl",)))
    assert [row["text"] for row in documents] == texts
    assert quarantine == []


@given(body=st.lists(st.sampled_from([b"\n", b"ab", b"c", b"\r"])), sizes=st.integers(1, 5))
def test_lines_are_the_same_however_the_file_is_cut_into_blocks(body, sizes) -> None:
    data = b"".join(body)
    cut = [data[i : i + sizes] for i in range(0, len(data), sizes)]
    expected = data.split(b"\n") if data else []
    if expected and not expected[-1]:
        expected.pop()
    assert [line for _, line in lines(cut, 1000)] == expected
    kept = [line if len(line) <= 3 else None for line in expected]
    assert [line for _, line in lines(cut, 3)] == kept


def test_each_bad_line_is_set_aside_with_its_reason_and_the_rest_goes_on(tmp_path: Path) -> None:
    body = b"\n".join([
        b'\xef\xbb\xbf{"text": "first, after a byte order mark"}',
        b'{"text": "cut off',
        b"[1, 2]",
        b'{"id": "no text here"}',
        b'{"text": ""}',
        b'{"text": 7}',
        b'{"text": "\xff"}',
        b'{"text": "' + b"x" * 300 + b'"}',
        b'{"text": "id of a strange kind", "id": [1]}',
        b"",
        b'{"text": "lone \\ud800 surrogate"}',
        b'{"text": "last, without a line break"}',
    ])  # fmt: skip
    documents, quarantine = one_file(tmp_path / "a.jsonl", body, max_bytes_per_record=200)
    assert [row["text"] for row in documents] == [
        "first, after a byte order mark",
        "last, without a line break",
    ]
    assert reasons(quarantine) == [
        ("a.jsonl:2", "not_json"),
        ("a.jsonl:3", "wrong_type"),
        ("a.jsonl:4", "no_text"),
        ("a.jsonl:5", "no_text"),
        ("a.jsonl:6", "wrong_type"),
        ("a.jsonl:7", "not_utf8"),
        ("a.jsonl:8", "too_large"),
        ("a.jsonl:9", "wrong_type"),
        ("a.jsonl:11", "not_json"),
    ]
    assert "id" in quarantine[2]["detail"]
    assert "0xff at offset 10" in quarantine[5]["detail"]
    assert {row["stage"] for row in quarantine} == {"import"}


def test_a_line_of_many_blocks_is_refused_without_being_held(tmp_path: Path) -> None:
    body = b'{"text": "' + b"x" * 5_000_000 + b'"}\n' + jsonl({"text": "next"})
    documents, quarantine = one_file(
        tmp_path / "a.jsonl.gz", gzip.compress(body), max_bytes_per_record=1000
    )
    assert [row["text"] for row in documents] == ["next"]
    assert reasons(quarantine) == [("a.jsonl.gz:1", "too_large")]


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_the_records_before_a_cut_are_kept(tmp_path: Path, pack) -> None:
    texts = [hashlib.sha256(bytes([i])).hexdigest() for i in range(200)]
    first = pack(jsonl(*({"text": text} for text in texts[:100])))
    second = pack(jsonl(*({"text": text} for text in texts[100:])))
    documents, quarantine = one_file(tmp_path / "a.jsonl", first + second[:-3])
    found = [row["text"] for row in documents]
    assert found == texts[: len(found)]
    assert len(found) >= 100
    assert reasons(quarantine) == [("a.jsonl", "truncated")]


def test_gzip_data_damaged_in_the_middle_is_unreadable_from_there(tmp_path: Path) -> None:
    good = gzip.compress(jsonl({"text": "before"}))
    documents, quarantine = one_file(tmp_path / "a.jsonl.gz", good + b"\x1f\x8bgarbage" * 9)
    assert [row["text"] for row in documents] == ["before"]
    assert reasons(quarantine) == [("a.jsonl.gz", "unreadable")]


def test_zeros_may_pad_a_gzip_file() -> None:
    assert b"".join(blocks(io.BytesIO(gzip.compress(b"a") + bytes(999)))) == b"a"


def test_highly_compressed_data_is_unpacked_in_small_blocks() -> None:
    zeros = bytes(200 << 20)
    for pack in (lambda data: gzip.compress(data, 1), zstandard.compress):
        sizes = [len(block) for block in blocks(io.BytesIO(pack(zeros)))]
        assert sum(sizes) == len(zeros)
        assert max(sizes) <= 128 << 20


# --- who a record is


def test_a_record_is_named_by_its_id_else_its_address_else_its_content(tmp_path: Path) -> None:
    url = "HTTP://Example.org:80/a/../b#top"
    body = jsonl(
        {"text": "one", "id": 7, "url": url},
        {"text": "two", "id": "", "url": url},
        {"text": "three", "url": "not an address"},
        {"text": "four"},
    )
    documents, quarantine = one_file(tmp_path / "a.jsonl", body)
    locators = ["7", "http://example.org/b", text_digest("three"), text_digest("four")]
    assert [row["id"] for row in documents] == [document_id("s", name) for name in locators]
    assert [row["url"] for row in documents] == [
        "http://example.org/b", "http://example.org/b", "not an address", None,
    ]  # fmt: skip
    assert quarantine == []


def test_the_records_own_license_and_language_come_before_the_sources(tmp_path: Path) -> None:
    body = jsonl({"text": "a", "license": "MIT", "language": "de"}, {"text": "b"})
    documents, _ = one_file(tmp_path / "a.jsonl", body, license="CC0", language="en")
    found = [(row["license"], row["language"]) for row in documents]
    assert found == [("MIT", "de"), ("CC0", "en")]


# --- CSV


def test_rows_of_a_csv_are_those_that_arrow_reads(tmp_path: Path) -> None:
    rows = [("1", 'a "quoted" line,\nand another'), ("2", "plain"), ("3", "ünï\r\ncode")]
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows([("id", "text"), *rows])
    body = buffer.getvalue().encode()
    documents, quarantine = one_file(tmp_path / "a.csv.gz", gzip.compress(body))
    options = pyarrow.csv.ParseOptions(newlines_in_values=True)
    oracle = pyarrow.csv.read_csv(io.BytesIO(body), parse_options=options)
    assert [row["text"] for row in documents] == oracle["text"].to_pylist()
    assert [row["id"] for row in documents] == [document_id("s", row[0]) for row in rows]
    assert quarantine == []


def test_bad_rows_of_a_csv_are_set_aside_by_their_line(tmp_path: Path) -> None:
    body = (
        b"id,text\n"
        b"1,first\n"
        b"2,too,many\n"
        b"3\n"
        b'4,"two\nlines"\n'
        b"5,\xff\n"
        b'6,"' + b"x" * 300 + b'"\n'
        b"7,\n"
        b"8,last\n"
        b'9,"never closed\n'
    )
    documents, quarantine = one_file(tmp_path / "a.csv", body, max_bytes_per_record=200)
    assert [row["text"] for row in documents] == ["first", "two\nlines", "last"]
    assert reasons(quarantine) == [
        ("a.csv:3", "not_csv"),
        ("a.csv:4", "not_csv"),
        ("a.csv:7", "not_utf8"),
        ("a.csv:8", "too_large"),
        ("a.csv:9", "no_text"),
        ("a.csv:11", "not_csv"),
    ]


def test_a_quoted_record_with_an_overlong_line_is_refused_as_a_whole(tmp_path: Path) -> None:
    body = b'id,text\n1,"begins\n' + b"x" * 300 + b'\nends"\n2,next\n'
    documents, quarantine = one_file(tmp_path / "a.csv", body, max_bytes_per_record=200)
    assert [row["text"] for row in documents] == ["next"]
    assert reasons(quarantine) == [("a.csv:2", "too_large")]


# --- Parquet


def test_rows_of_parquet_come_with_nested_fields_and_plain_meta(tmp_path: Path) -> None:
    table = pa.table({
        "doc": [{"text": "one"}, {"text": None}, {"text": "three"}],
        "id": [1, 2, 3],
        "score": [0.5, float("nan"), float("nan")],
        "when": pa.array([0, 1, 86_400], pa.timestamp("s")),
        "unused": ["x" * 1000] * 3,
    })  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    config = ImportConfig(
        paths=(str(tmp_path),), text_field="doc.text", meta_fields=("score", "when")
    )
    documents, quarantine = imported(config)
    assert [row["text"] for row in documents] == ["one", "three"]
    assert [row["id"] for row in documents] == [document_id("s", "1"), document_id("s", "3")]
    assert [json.loads(row["meta"]) for row in documents] == [
        {"score": 0.5, "when": "1970-01-01T00:00:00"},
        {"when": "1970-01-02T00:00:00"},
    ]
    assert reasons(quarantine) == [("a.parquet:2", "no_text")]


def test_a_table_without_the_text_column_names_the_columns_it_has(tmp_path: Path) -> None:
    pq.write_table(pa.table({"content": ["a"], "id": [1]}), tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text("body,title\nx,y\n")
    documents, quarantine = imported(ImportConfig(paths=(str(tmp_path),)))
    assert documents == []
    assert reasons(quarantine) == [("a.parquet", "no_text"), ("b.csv", "no_text")]
    assert "'text' among content, id" in quarantine[0]["detail"]
    assert "'text' among body, title" in quarantine[1]["detail"]


def test_a_parquet_file_cut_short_or_of_another_kind_is_set_aside_whole(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a" * 1000]}), tmp_path / "a.parquet")
    body = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(body[:-20])
    (tmp_path / "b.parquet").write_bytes(b"this is no Parquet")
    (tmp_path / "c.parquet").write_bytes(b"")
    documents, quarantine = imported(ImportConfig(paths=(str(tmp_path),)))
    assert documents == []
    assert reasons(quarantine) == [
        ("a.parquet", "truncated"), ("b.parquet", "unreadable"), ("c.parquet", "unreadable"),
    ]  # fmt: skip


def test_a_parquet_row_that_is_not_utf8_is_set_aside_alone(tmp_path: Path) -> None:
    raw = pa.array([b"good", b"bad \xff", b"fine"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    documents, quarantine = imported(ImportConfig(paths=(str(tmp_path),)))
    assert [row["text"] for row in documents] == ["good", "fine"]
    assert reasons(quarantine) == [("a.parquet:2", "not_utf8")]


# --- plain text and Markdown


def test_text_is_stored_as_it_is_but_for_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.md").write_bytes(b"\xef\xbb\xbf# T\xc3\xa9st\r\n\r\nline  \n")
    documents, _ = imported(ImportConfig(paths=(str(tmp_path),)))
    assert [row["text"] for row in documents] == ["# Tést\r\n\r\nline  \n"]
    assert documents[0]["id"] == document_id("s", "sub/a.md")


def test_text_files_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    (tmp_path / "b.txt").write_bytes(b" \n")
    (tmp_path / "c.txt").write_bytes(b"x" * 101)
    (tmp_path / "d.txt").write_bytes(gzip.compress(b"whole")[:-2])
    (tmp_path / "e.docx").write_bytes(b"PK")
    config = ImportConfig(paths=(str(tmp_path),), max_bytes_per_record=100)
    documents, quarantine = imported(config)
    assert documents == []
    assert reasons(quarantine) == [
        ("a.txt", "not_utf8"),
        ("b.txt", "no_text"),
        ("c.txt", "too_large"),
        ("d.txt", "truncated"),
        ("e.docx", "unreadable"),
    ]
    assert "0xe9 at offset 3" in quarantine[0]["detail"]


def test_xz_is_read_stream_by_stream_to_its_end_or_to_its_cut(tmp_path: Path) -> None:
    streams = [lzma.compress(jsonl({"text": text})) for text in ("one", "two")]
    body = bytes(4).join(streams) + bytes(8)
    documents, quarantine = one_file(tmp_path / "a.jsonl.xz", body)
    assert ([row["text"] for row in documents], quarantine) == (["one", "two"], [])
    documents, quarantine = one_file(tmp_path / "a.jsonl.xz", body[:-20])
    assert documents[0]["text"] == "one"
    assert [row["reason"] for row in quarantine] == ["truncated"]
    damaged = bytearray(body)
    damaged[len(streams[0]) + 4 + 30] ^= 255
    documents, quarantine = one_file(tmp_path / "a.jsonl.xz", bytes(damaged))
    assert documents[0]["text"] == "one"
    assert [row["reason"] for row in quarantine] == ["unreadable"]


# --- WARC and WET


def warc(*pages: tuple[str, str, list[tuple[str, str]], bytes]) -> bytes:
    """A WARC file as warcio writes it: (url, status line, headers, body) each, gzipped."""
    buffer = io.BytesIO()
    writer = WARCWriter(buffer, gzip=True)
    writer.write_record(writer.create_warcinfo_record("a.warc.gz", {"software": "test"}))
    for url, status, headers, body in pages:
        http = StatusAndHeaders(status, headers, protocol="HTTP/1.1")
        dated = {"WARC-Date": "2024-05-06T07:08:09Z"}
        record = writer.create_warc_record(
            url, "response", io.BytesIO(body), http_headers=http, warc_headers_dict=dated
        )
        writer.write_record(record)
    return buffer.getvalue()


HTML = [("Content-Type", "text/html; charset=utf-8"), ("ETag", '"e"')]


def warc_chunk(path: Path, body: bytes) -> Chunk:
    path.write_bytes(body)
    config = ImportConfig(paths=(str(path),), license="CC0", max_bytes_per_record=1_000_000)
    (file,) = read_files(config)
    (chunk,) = read_file(file, config, "s", NOW)
    return chunk


def test_responses_of_a_warc_become_pages_that_can_be_found_again(tmp_path: Path) -> None:
    body = b"<p>hello</p>"
    packed = [*HTML, ("Content-Encoding", "gzip")]
    chunked = [*HTML, ("Transfer-Encoding", "chunked")]
    path = tmp_path / "a.warc.gz"
    chunk = warc_chunk(path, warc(
        ("http://Example.org/a#top", "200 OK", HTML, body),
        ("http://example.org/b", "200 OK", packed, gzip.compress(body)),
        ("http://example.org/c", "404 Not Found", HTML, b"gone"),
        ("http://example.org/d", "200 OK", [("Content-Type", "image/png")], b"png"),
        ("dns:example.org", "200 OK", HTML, body),
        ("http://example.org/e", "garbage", [], b""),
        ("http://example.org/f", "200 OK", packed, gzip.compress(bytes(2_000_000))),
        ("http://example.org/g", "200 OK", packed, body),
        ("http://example.org/h", "200 OK", chunked, b"c\r\n" + body + b"\r\n0\r\n\r\n"),
    ))  # fmt: skip
    assert chunk.pages.schema == PAGES.arrow
    pages = chunk.pages.to_pylist()
    assert [page["url"] for page in pages] == [f"http://example.org/{name}" for name in "abh"]
    assert {page["payload_sha256"] for page in pages} == {hashlib.sha256(body).hexdigest()}
    assert pages[0] | {"warc_offset": 0, "payload_sha256": ""} == {
        "id": document_id("s", "http://example.org/a"),
        "url": "http://example.org/a",
        "source": "s",
        "license": "CC0",
        "status": 200,
        "content_type": "text/html; charset=utf-8",
        "payload_sha256": "",
        "fetched_at": "2024-05-06T07:08:09Z",
        "warc": path.as_uri(),
        "warc_offset": 0,
        "payload_bytes": len(body),
        "etag": '"e"',
        "last_modified": None,
    }
    for page in pages:
        record = next(iter(ArchiveIterator(io.BytesIO(path.read_bytes()[page["warc_offset"] :]))))
        assert record.headers["WARC-Target-URI"].lower().startswith(page["url"])
    found = [row["reason"] for row in chunk.quarantine.to_pylist()]
    assert found == [
        "http_status", "content_type", "wrong_type", "unreadable", "too_large", "unreadable",
    ]  # fmt: skip


def test_the_pages_before_the_cut_of_a_warc_are_kept(tmp_path: Path) -> None:
    noise = hashlib.shake_128(b"noise").hexdigest(3000).encode()
    pages = [(f"http://example.org/{i}", "200 OK", HTML, noise) for i in range(3)]
    whole = warc(*pages)
    starts = warc_chunk(tmp_path / "a.warc.gz", whole).pages["warc_offset"].to_pylist()
    for cut in (len(whole) - 9, len(whole) - 1500, starts[2] + 30):
        chunk = warc_chunk(tmp_path / "a.warc.gz", whole[:cut])
        assert chunk.pages["warc_offset"].to_pylist()[:2] == starts[:2]
        assert "truncated" in chunk.quarantine["reason"].to_pylist()
    chunk = warc_chunk(tmp_path / "a.warc.gz", b"no WARC at all")
    assert reasons(chunk.quarantine.to_pylist()) == [("a.warc.gz", "unreadable")]


def test_conversions_of_a_wet_become_documents(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    writer = WARCWriter(buffer, gzip=True)
    for url, text in (("http://example.org/a?utm_source=x", "Grüße"), ("http://e.org/", "")):
        writer.write_record(
            writer.create_warc_record(
                url, "conversion", io.BytesIO(text.encode()), warc_content_type="text/plain",
                warc_headers_dict={"WARC-Date": "2024-05-06T07:08:09Z"},
            )
        )  # fmt: skip
    path = tmp_path / "CC-MAIN.warc.wet.gz"
    documents, quarantine = one_file(path, buffer.getvalue(), text_field="body")
    assert [(row["text"], row["url"], row["fetched_at"]) for row in documents] == [
        ("Grüße", "http://example.org/a", "2024-05-06T07:08:09Z")
    ]
    assert documents[0]["id"] == document_id("s", "http://example.org/a")
    assert [row["reason"] for row in quarantine] == ["no_text"]


def test_a_wet_cut_anywhere_is_truncated_and_no_more(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    writer = WARCWriter(buffer, gzip=True)
    ends = []
    for n in range(2):
        writer.write_record(
            writer.create_warc_record(
                f"http://example.org/{n}", "conversion", io.BytesIO(f"Text {n}.".encode()),
                warc_content_type="text/plain",
            )
        )  # fmt: skip
        ends.append(buffer.tell())
    whole = buffer.getvalue()
    for cut in range(ends[0] + 30, ends[1]):
        documents, quarantine = one_file(tmp_path / "a.warc.wet.gz", whole[:cut])
        assert documents[0]["text"] == "Text 0."
        assert {row["reason"] for row in quarantine} == {"truncated"}


# --- files


def test_folders_and_globs_are_read_recursively_in_the_order_of_their_paths() -> None:
    memory = fsspec.filesystem("memory")
    for name in ("b/2.txt", "b/1.txt", "a.txt", ".git/x.txt", "b/_SUCCESS", "c.md"):
        memory.pipe_file(f"/tree/{name}", b"x")
    paths = [file.path for file in read_files(ImportConfig(paths=("memory://tree",)))]
    assert paths == ["a.txt", "b/1.txt", "b/2.txt", "c.md"]
    files = read_files(ImportConfig(paths=("memory://tree/**/*.txt", "memory://tree/c.md")))
    assert [file.path for file in files] == ["a.txt", "b/1.txt", "b/2.txt", "c.md"]
    assert files[0].url == "memory:///tree/a.txt"


def test_a_linked_file_is_read_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "real.txt").write_text("text")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.txt").symlink_to(tmp_path / "real.txt")
    (tmp_path / "source" / "loop").symlink_to(tmp_path / "source")
    (tmp_path / "source" / "nowhere.txt").symlink_to(tmp_path / "nothing")
    for path in ("source", "source/a.txt", "source/*.txt"):
        documents, _ = imported(ImportConfig(paths=(str(tmp_path / path),)))
        assert [row["id"] for row in documents] == [document_id("s", "a.txt")]


def test_the_token_of_a_file_changes_when_the_file_does(tmp_path: Path) -> None:
    path, config = tmp_path / "a.txt", ImportConfig(paths=(str(tmp_path),))
    path.write_text("one")
    first = read_files(config)
    assert read_files(config) == first
    assert first[0].modified is not None
    path.write_text("three")
    assert read_files(config)[0].token != first[0].token


def test_a_path_that_does_not_exist_names_the_nearest_that_does(tmp_path: Path) -> None:
    (tmp_path / "speeches").mkdir()
    (tmp_path / "speeches" / "all.jsonl").write_text("")
    with pytest.raises(ConfigError, match=r"did you mean .*speeches\?"):
        read_files(ImportConfig(paths=(str(tmp_path / "speches" / "all.jsonl"),)))
    with pytest.raises(ConfigError, match=r"did you mean .*all\.jsonl\?"):
        read_files(ImportConfig(paths=(str(tmp_path / "speeches" / "al.jsonl"),)))
    with pytest.raises(ConfigError, match="holds no file to read"):
        read_files(ImportConfig(paths=(str(tmp_path / "speeches" / "*.csv"),)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no file to read"):
        read_files(ImportConfig(paths=(str(tmp_path / "empty"),)))


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").write_text(folder)
    apart = ImportConfig(paths=(str(tmp_path / "a"), str(tmp_path / "b")))
    with pytest.raises(ConfigError, match=r"both be named 'x\.txt'"):
        read_files(apart)
    together = ImportConfig(paths=(f"{tmp_path}/*/x.txt", f"{tmp_path}/a/x.txt"))
    assert [file.path for file in read_files(together)] == ["a/x.txt", "b/x.txt"]


def test_a_failing_storage_stops_the_import_and_loses_no_document(tmp_path, monkeypatch) -> None:
    (tmp_path / "a.txt").write_text("text")
    config = ImportConfig(paths=(str(tmp_path),))
    (file,) = read_files(config)

    def fail(opened: object) -> None:
        raise OSError(errno.EIO, "the line is dead")

    monkeypatch.setattr(rows.readers, "blocks", fail)
    with pytest.raises(StorageError, match=r"a\.txt: reading failed: .*the line is dead"):
        list(read_file(file, config, "s", NOW))
    monkeypatch.undo()
    (tmp_path / "a.txt").unlink()
    with pytest.raises(StorageError, match="went away"):
        list(read_file(file, config, "s", NOW))


def test_a_large_file_comes_in_chunks(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(rows, "CHUNK_BYTES", 1000)
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(*({"text": str(i) * 300} for i in range(10))))
    config = ImportConfig(paths=(str(path),))
    (file,) = read_files(config)
    counts = [chunk.documents.num_rows for chunk in read_file(file, config, "s", NOW)]
    assert counts == [4, 4, 2]


@pytest.mark.parametrize(
    "wrong", [{"paths": ()}, {"slice": (0.9, 0.1)}, {"slice": (0, 0.9), "format": "csv"}]
)
def test_impossible_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        ImportConfig(**{"paths": ("a",), **wrong})
