from __future__ import annotations

import gzip
import hashlib
import io
import random

import pytest
from warcio.archiveiterator import ArchiveIterator
from warcio.checker import Checker

from llm.errors import DataError
from tasks.crawling.fetch import Response
from tasks.crawling.warc import WarcWriter, read_payload

DATE = "2026-01-31T12:00:00Z"


def response(payload: bytes, coding: str | None = None) -> Response:
    raw = gzip.compress(payload, mtime=0) if coding == "gzip" else payload
    headers = [("Content-Type", "text/html"), ("Set-Cookie", "a=1"), ("set-cookie", "b=2")]
    headers += [("Transfer-Encoding", "chunked")]
    if coding:
        headers += [("Content-Encoding", coding)]
    return Response(
        url="http://127.0.0.1:8000/a;b?c",
        status=200,
        reason="Fine",
        http_version="HTTP/1.1",
        headers=tuple(headers),
        request_headers=(("Host", "127.0.0.1:8000"), ("User-Agent", "loam/0.1")),
        ip="127.0.0.1",
        raw=raw,
        body=payload,
    )


def noise(n_bytes: int) -> bytes:
    return random.Random(n_bytes).randbytes(n_bytes)


@pytest.mark.parametrize("coding", [None, "gzip"])
def test_a_payload_comes_back_decoded_from_a_path_a_file_and_bytes(tmp_path, coding):
    payloads = [b"", b"<p>one", noise(100_000)]
    with WarcWriter(tmp_path, "w") as warc:
        places = [
            warc.add(response(payload, coding), f"https://example.com/{i}", DATE)
            for i, payload in enumerate(payloads)
        ]
    for payload, (path, offset) in zip(payloads, places, strict=True):
        for source in (path, path.read_bytes(), io.BytesIO(path.read_bytes())):
            status, headers, found = read_payload(source, offset)
            assert (status, found) == (200, payload)
            assert dict(headers)["Content-Type"] == "text/html"


def test_another_reader_finds_what_was_sent_and_valid_digests(tmp_path):
    with WarcWriter(tmp_path, "w") as warc:
        path, _ = warc.add(response(b"<p>one", "gzip"), "https://example.com/a", DATE)
    with path.open("rb") as file:
        records = [
            (record.rec_type, record.rec_headers, record.http_headers, record.raw_stream.read())
            for record in ArchiveIterator(file)
        ]
    assert [kind for kind, *_ in records] == ["response", "request"]
    (_, about, http, body), (_, about_request, request, _) = records
    assert about.get_header("WARC-Target-URI") == "https://example.com/a"
    assert about.get_header("WARC-IP-Address") == "127.0.0.1"
    assert about.get_header("WARC-Date") == DATE
    assert about_request.get_header("WARC-Concurrent-To") == about.get_header("WARC-Record-ID")
    assert gzip.decompress(body) == b"<p>one"
    assert http.statusline == "200 Fine"
    assert http.headers[1:4] == [
        ("Set-Cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("X-Crawler-Transfer-Encoding", "chunked"),
    ]
    assert (request.protocol, request.statusline) == ("GET", "/a;b?c HTTP/1.1")
    assert request.get_header("User-Agent") == "loam/0.1"

    class Arguments:
        inputs, verbose = [str(path)], False

    checker = Checker(Arguments)
    checker.process_all()
    assert checker.exit_value == 0


def test_a_file_stays_under_its_limit_and_the_next_one_begins(tmp_path):
    limit = 1_000_000
    with WarcWriter(tmp_path, "w", max_bytes=limit) as warc:
        places = [
            warc.add(response(noise(200_000 + i)), f"https://example.com/{i}", DATE)
            for i in range(12)
        ]
    assert len(warc.files) == 4
    assert max(path.stat().st_size for path in warc.files) <= limit
    for i, (path, offset) in enumerate(places):
        assert read_payload(path, offset)[2] == noise(200_000 + i)


def test_the_same_exchanges_give_the_same_bytes(tmp_path):
    digests = set()
    for folder in ("a", "b"):
        with WarcWriter(tmp_path / folder, "w") as warc:
            path, _ = warc.add(response(b"<p>one"), "https://example.com/a", DATE)
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_a_writer_without_records_leaves_no_file(tmp_path):
    with WarcWriter(tmp_path / "none", "w") as warc:
        pass
    assert warc.files == []
    assert not (tmp_path / "none").exists()


def test_what_is_no_response_record_is_said_to_be_none(tmp_path):
    with WarcWriter(tmp_path, "w") as warc:
        path, _ = warc.add(response(noise(5000)), "https://example.com/a", DATE)
    whole = path.read_bytes()
    request = whole.rindex(b"\x1f\x8b\x08")
    for body, offset in [
        (whole, 3),
        (whole, request),
        (whole, len(whole)),
        (whole[:3000], 0),
        (whole[:100], 0),
        (b"", 0),
        (b"WARC is not this", 0),
    ]:
        with pytest.raises(DataError, match=f"offset {offset}"):
            read_payload(body, offset)
