"""Taking records out of a WARC file in place: every other record keeps its bytes and its offset.

An erased record leaves one of the same length that says so, under the same address, with spaces
where its content was. In a compressed file its gzip member keeps its length as well: what it takes
less is filled up with a comment in the member's header (RFC 1952, section 2.3). Where a file is cut
short or damaged, nothing behind that place can be read as a page; it is blanked where it begins
with what is to be erased, or where anything before it was.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from llm.errors import DataError
from tasks.crawling.warc import ERASED_TYPE

# Types of record whose content is that of a page (WARC 1.1, section 6).
_CONTENT = frozenset({"response", "resource", "conversion", "revisit", "continuation"})
_KEPT = ("WARC-Record-ID", "WARC-Date", "WARC-Target-URI")
_LENGTH_DIGITS, _CHUNK = 10, 1 << 16

Wanted = Callable[[str, int], bool]
"""Whether the record about an address, at an offset of the file, is to be erased."""


@dataclass(frozen=True)
class _Record:
    """A record of uncompressed WARC: where it lies, with the blank lines after it. One without
    headers is all that follows a damaged one."""

    start: int
    end: int
    headers: dict[str, str]


def erase_records(body: bytes, wanted: Wanted) -> tuple[bytes, int]:
    """A WARC file, compressed or not, without the content of the records wanted, and how many they
    were. A record that was erased before does not count.

    Raises DataError where a compressed record cannot be replaced without moving those after it.
    """
    if not body.startswith(b"\x1f\x8b"):
        return _erase_plain(body, wanted, 0)
    out, count = bytearray(body), 0
    for start, end, data, whole in _members(body):
        # Only the first record of a member has an offset by which it can be read.
        emptied, n = _erase_plain(data, wanted, start)
        if whole and n:
            out[start:end] = _member(emptied, end - start, start)
        elif not whole and (n or count) and any(out[start:end]):
            out[start:end] = bytes(end - start)
            n = max(1, n)
        elif not whole:
            n = 0
        count += n
    return bytes(out), count


def _erase_plain(data: bytes, wanted: Wanted, offset: int) -> tuple[bytes, int]:
    out, count = bytearray(data), 0
    for record in _records(data):
        headers = record.headers
        if not headers:
            if count:
                out[record.start : record.end] = bytes(record.end - record.start)
            break
        if headers.get("warc-type", "").lower() not in _CONTENT:
            continue
        if wanted(headers.get("warc-target-uri", "").strip("<>"), offset + record.start):
            out[record.start : record.end] = _tombstone(record, last=record.end == len(data))
            count += 1
    return bytes(out), count


def _records(data: bytes) -> Iterator[_Record]:
    at = 0
    while (found := re.compile(rb"WARC/\d").search(data, at)) is not None:
        start = found.start()
        head_end = data.find(b"\r\n\r\n", start)
        lines = data[start : max(start, head_end)].decode("utf-8", "replace").split("\r\n")[1:]
        headers = {
            name.strip().lower(): value.strip()
            for name, colon, value in (line.partition(":") for line in lines)
            if colon
        }
        if head_end < 0 or not headers.get("content-length", "").isdigit():
            yield _Record(start, len(data), {})
            return
        end = head_end + 4 + int(headers["content-length"])
        if data[end : end + 4] == b"\r\n\r\n":
            end += 4
        at = min(end, len(data))
        yield _Record(start, at, headers)


def _tombstone(record: _Record, last: bool) -> bytes:
    """A record of the same length that says that one was erased; nothing at all where the last one
    of a file is cut too short to say it."""
    kept = [f"{name}: {record.headers.get(name.lower(), '')}" for name in _KEPT]
    head = ["WARC/1.1", "WARC-Type: metadata", *kept, f"Content-Type: {ERASED_TYPE}"]
    start = ("\r\n".join(head) + "\r\nContent-Length: ").encode()
    room = record.end - record.start - len(start) - _LENGTH_DIGITS - 8
    if room < 0 and last:
        return bytes(record.end - record.start)
    if room < 0:
        raise DataError(f"the record at byte {record.start} is too short to say that it was erased")
    return start + f"{room:0{_LENGTH_DIGITS}d}".encode() + b"\r\n\r\n" + b" " * room + b"\r\n\r\n"


def _members(body: bytes) -> Iterator[tuple[int, int, bytes, bool]]:
    """(start, end, decompressed content, whether it is whole) of each gzip member; of one that is
    cut short or damaged what there is of it, and it reaches to the end of the file."""
    view, start = memoryview(body), 0
    while start < len(body):
        inflate, parts, at = zlib.decompressobj(31), [], start
        while not inflate.eof and at < len(body):
            try:
                parts.append(inflate.decompress(view[at : at + _CHUNK]))
            except zlib.error:
                break
            at += _CHUNK
        if not inflate.eof:
            yield start, len(body), b"".join(parts), False
            return
        end = min(at, len(body)) - len(inflate.unused_data)
        yield start, end, b"".join(parts), True
        start = end


def _member(data: bytes, length: int, offset: int) -> bytes:
    """`data` as a gzip member of exactly that length."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = deflate.compress(data) + deflate.flush()
    tail = packed + struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)
    head = b"\x1f\x8b\x08\x10\0\0\0\0\x02\xff"
    room = length - len(head) - len(tail) - 1
    if room < 0:
        raise DataError(
            f"the gzip member at byte {offset} does not fit in its place without the erased record"
        )
    return head + b" " * room + b"\0" + tail
