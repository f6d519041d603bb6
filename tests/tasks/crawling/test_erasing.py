"""A record taken out of a WARC file leaves every other where it is, byte for byte."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from contextlib import suppress
from pathlib import Path

import pytest
from fastwarc.warc import ArchiveIterator as FastWarc
from fastwarc.warc import WarcRecordType
from warcio.archiveiterator import ArchiveIterator

from tasks.crawling.erasing import erase_records
from tasks.crawling.warc import ErasedPayload, WarcWriter, read_payload
from tests.tasks.crawling.test_warc import DATE, noise, response

SECRET = b"<p>What nobody may read any more."
PAYLOADS = [b"<p>first", SECRET * 40, noise(70_000), b"", SECRET]


def url(i: int) -> str:
    return f"https://example.com/{i}"


def written(folder: Path, coding: str | None = None) -> tuple[bytes, list[int]]:
    with WarcWriter(folder, "w") as warc:
        places = [warc.add(response(p, coding), url(i), DATE)[1] for i, p in enumerate(PAYLOADS)]
    return warc.files[0].read_bytes(), places


def unpacked(body: bytes) -> bytes:
    """Every byte that a reader could get out of the file, the comments of its members too."""
    return gzip.decompress(body) + body if body[:2] == b"\x1f\x8b" else body


@pytest.mark.parametrize("coding", [None, "gzip"])
@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("by", ["address", "offset"])
def test_only_what_is_wanted_goes_and_all_else_stays_in_its_place(
    tmp_path: Path, coding: str | None, compressed: bool, by: str
) -> None:
    body, places = written(tmp_path, coding)
    if not compressed:
        body = gzip.decompress(body)
        marks = re.finditer(rb"WARC/1\.1\r\n([\w-]+: [^\r]*\r\n)*?WARC-Type: response", body)
        places = [mark.start() for mark in marks]
    gone = {1, 4}
    wanted = {
        "address": lambda address, offset: address in {url(i) for i in gone},
        "offset": lambda address, offset: offset in {places[i] for i in gone},
    }[by]
    left, count = erase_records(body, wanted)
    assert (count, len(left)) == (2, len(body))
    for i, payload in enumerate(PAYLOADS):
        if i in gone:
            with pytest.raises(ErasedPayload):
                read_payload(left, places[i])
        else:
            assert read_payload(left, places[i])[2] == payload
    assert b"nobody may read" not in unpacked(left)
    types = [record.rec_type for record in ArchiveIterator(io.BytesIO(left))]
    assert types.count("response") == 3
    assert types.count("metadata") == 2
    assert types.count("request") == 5
    assert erase_records(left, wanted) == (left, 0)


def test_the_record_left_behind_says_whose_it_was(tmp_path: Path) -> None:
    body, _ = written(tmp_path)
    left, _ = erase_records(body, lambda address, offset: address == url(1))
    (record,) = [r for r in ArchiveIterator(io.BytesIO(left)) if r.rec_type == "metadata"]
    assert record.rec_headers.get_header("WARC-Target-URI") == url(1)
    assert record.rec_headers.get_header("WARC-Date") == DATE
    assert record.raw_stream.read().strip() == b""


def test_records_that_share_a_member_are_told_apart(tmp_path: Path) -> None:
    body, _ = written(tmp_path)
    one = gzip.compress(gzip.decompress(body), mtime=0)
    left, count = erase_records(one, lambda address, offset: address == url(1))
    assert count == 1
    assert len(left) == len(one)
    records = FastWarc(io.BytesIO(left), record_types=WarcRecordType.response)
    assert [record.headers["WARC-Target-URI"] for record in records] == [
        url(i) for i in (0, 2, 3, 4)
    ]


@pytest.mark.parametrize("compressed", [True, False])
def test_what_a_broken_file_still_holds_goes_too(tmp_path: Path, compressed: bool) -> None:
    """The file is cut in its last record, which is one of those that are wanted."""
    body, places = written(tmp_path)
    if compressed:
        cut = body[: places[4] + (len(body) - places[4]) // 2]
    else:
        body = gzip.decompress(body)
        cut = body[: body.rindex(SECRET) + len(SECRET) // 2]
    left, count = erase_records(cut, lambda address, offset: address in {url(1), url(4)})
    assert (count, len(left)) == (2, len(cut))
    assert b"nobody may" in readable(cut)
    assert b"nobody may" not in readable(left)
    assert erase_records(left, lambda address, offset: address in {url(1), url(4)}) == (left, 0)


def test_what_is_damaged_is_left_where_nothing_of_the_file_is_wanted(tmp_path: Path) -> None:
    body, _ = written(tmp_path)
    middle = len(body) // 2
    for broken in (body[:-30], body[:middle] + b"\xff" * 40 + body[middle:], b"WARC/1.1\r\nx"):
        assert erase_records(broken, lambda *_: False) == (broken, 0)


def readable(body: bytes) -> bytes:
    """What can be decompressed of a file that may be cut, and its own bytes."""
    found, rest = [body], body
    while rest[:2] == b"\x1f\x8b":
        inflate = zlib.decompressobj(31)
        with suppress(zlib.error):
            found.append(inflate.decompress(rest))
        rest = inflate.unused_data
    return b"".join(found)
