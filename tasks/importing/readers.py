"""File formats as records: what a file holds, one by one, and what of it could not be read.

Every reader takes an open binary file and yields a `Record`, or a `Reject` that says why there is
none. Memory is bounded by the largest record allowed. A file that breaks off raises `Broken`
after everything before the break was yielded.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import hashlib
import lzma
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO, Any

import orjson
import pyarrow as pa

from llm.errors import DataError
from tasks.crawling.content import decode_body
from tasks.importing.languages import TWO_LETTERS

BLOCK = 1 << 20
GZIP_MAGIC, ZSTD_MAGIC, PARQUET_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"
BZIP2_MAGIC, XZ_MAGIC = b"BZh", b"\xfd7zXZ\0"
# What a window of the largest preset takes, 64 MiB (xz(1), -9), four times over.
XZ_MEMORY = 256 << 20
# One compressed block of zstd becomes 128 KiB at most (RFC 8878, 3.1.1.2) and takes 4 bytes at
# least, so that this much input never becomes more than 128 MiB.
ZSTD_STEP = 4096
# Stands for a line over the limit; UTF-8 cannot hold it, so no file can.
OVERLONG = "\ud800"
PAGE_TYPES = ("text/html", "application/xhtml+xml", "text/plain", "text/markdown", "")


@dataclass(frozen=True)
class Record:
    """The fields of one record. `position` is its line, row (from 1) or byte offset."""

    position: int | None
    fields: Mapping[str, Any]
    fetched_at: str | None = None


@dataclass(frozen=True)
class Page:
    """A response in a WARC file: the columns of `PAGES` that it decides."""

    position: int
    url: str
    columns: Mapping[str, Any]


@dataclass(frozen=True)
class Reject:
    """What could not become a record, and why. Without a position it is the whole file."""

    position: int | None
    reason: str
    detail: str


class Broken(Exception):
    """The file cannot be read on from here; what came before is sound."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def blocks(file: IO[bytes]) -> Iterator[bytes]:
    """The content of a file, decompressed where its first bytes say gzip, bzip2, xz or
    Zstandard."""
    head = file.read(BLOCK)
    content = _all_of(head, file)
    try:
        if head.startswith(GZIP_MAGIC):
            yield from _gunzip(content)
        elif head.startswith(ZSTD_MAGIC):
            yield from _unzstd(content)
        elif head.startswith(BZIP2_MAGIC):
            yield from _bunzip2(content)
        elif head.startswith(XZ_MAGIC):
            yield from _unxz(content)
        else:
            yield from content
    except zlib.error as error:
        raise Broken("unreadable", f"damaged gzip data ({error})") from error


def _all_of(head: bytes, file: IO[bytes]) -> Iterator[bytes]:
    while head:
        yield head
        head = file.read(BLOCK)


def _gunzip(content: Iterable[bytes]) -> Iterator[bytes]:
    """The members of a gzip file one after the other (RFC 1952); zeros may pad its end."""
    member = zlib.decompressobj(wbits=31)
    for block in content:
        while block:
            if member.eof:
                block = block.lstrip(b"\0")
                if not block:
                    break
                member = zlib.decompressobj(wbits=31)
            data = member.decompress(block, BLOCK)
            block = member.unused_data if member.eof else member.unconsumed_tail
            if data:
                yield data
    if rest := member.flush():
        yield rest
    if not member.eof:
        raise Broken("truncated", "the gzip data breaks off")


def _bunzip2(content: Iterable[bytes]) -> Iterator[bytes]:
    """The streams of a bzip2 file one after the other, as Wikipedia's multistream dumps have."""
    stream = bz2.BZ2Decompressor()
    try:
        for block in content:
            while block or not (stream.needs_input or stream.eof):
                if stream.eof:
                    stream = bz2.BZ2Decompressor()
                data = stream.decompress(block, BLOCK)
                block = stream.unused_data if stream.eof else b""
                if data:
                    yield data
    except OSError as error:
        raise Broken("unreadable", f"damaged bzip2 data ({error})") from error
    if not stream.eof:
        raise Broken("truncated", "the bzip2 data breaks off")


def _unxz(content: Iterable[bytes]) -> Iterator[bytes]:
    """The streams of an xz file one after the other; zeros may stand between and after them."""
    stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, XZ_MEMORY)
    try:
        for block in content:
            while block or not (stream.needs_input or stream.eof):
                if stream.eof:
                    block = block.lstrip(b"\0")
                    if not block:
                        break
                    stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, XZ_MEMORY)
                data = stream.decompress(block, BLOCK)
                block = stream.unused_data if stream.eof else b""
                if data:
                    yield data
    except lzma.LZMAError as error:
        raise Broken("unreadable", f"damaged xz data ({error})") from error
    if not stream.eof:
        raise Broken("truncated", "the xz data breaks off")


def _unzstd(content: Iterable[bytes]) -> Iterator[bytes]:
    """The frames of a Zstandard file one after the other."""
    import zstandard

    decompressor = zstandard.ZstdDecompressor()
    frame = decompressor.decompressobj()
    for block in content:
        for start in range(0, len(block), ZSTD_STEP):
            part = block[start : start + ZSTD_STEP]
            while part:
                if frame.eof:
                    frame = decompressor.decompressobj()
                try:
                    data = frame.decompress(part)
                except zstandard.ZstdError as error:
                    raise Broken("unreadable", f"damaged Zstandard data ({error})") from error
                part = frame.unused_data if frame.eof else b""
                if data:
                    yield data
    if not frame.eof:
        raise Broken("truncated", "the Zstandard data breaks off")


def lines(content: Iterable[bytes], limit: int) -> Iterator[tuple[int, bytes | None]]:
    """Lines with their numbers, without `\\n` and a byte order mark; None for one over `limit`.

    Of a stream that breaks off, the line it breaks off in is not yielded.
    """
    number, pending, overlong = 1, bytearray(), False
    for block in content:
        *ended, rest = block.split(b"\n")
        for piece in ended:
            pending += piece
            yield number, _line(number, pending, overlong, limit)
            number, overlong = number + 1, False
            pending.clear()
        pending += rest
        if len(pending) > limit + len(codecs.BOM_UTF8):
            overlong = True
            pending.clear()
    if pending or overlong:
        yield number, _line(number, pending, overlong, limit)


def _line(number: int, pending: bytearray, overlong: bool, limit: int) -> bytes | None:
    line = bytes(pending).removeprefix(codecs.BOM_UTF8) if number == 1 else bytes(pending)
    return None if overlong or len(line) > limit else line


def jsonl_records(content: Iterable[bytes], limit: int) -> Iterator[Record | Reject]:
    """One JSON object a line; blank lines are passed over."""
    for number, line in lines(content, limit):
        if line is None:
            yield _too_large(number, limit)
        elif line.strip():
            try:
                value = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                yield not_utf8(number, line) or Reject(number, "not_json", str(error))
                continue
            if isinstance(value, dict):
                yield Record(number, value)
            else:
                kind = type(value).__name__
                yield Reject(number, "wrong_type", f"a {kind} where an object was expected")


def _too_large(position: int | None, limit: int) -> Reject:
    detail = f"over {limit:,} bytes; max_bytes_per_record allows no more"
    return Reject(position, "too_large", detail)


def not_utf8(position: int | None, data: bytes) -> Reject | None:
    """The reject that says where `data` stops being UTF-8; None where it does not."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        byte = data[error.start]
        detail = f"byte 0x{byte:02x} at offset {error.start:,} is not UTF-8"
        return Reject(position, "not_utf8", detail)
    return None


def csv_records(content: Iterable[bytes], limit: int, text_field: str) -> Iterator[Record | Reject]:
    """Rows by the names in the first one, quoted as RFC 4180 says; positions are first lines."""
    csv.field_size_limit(limit)
    rows = csv.reader(_csv_lines(content, limit), strict=True)
    try:
        header = next(rows, None)
    except csv.Error as error:
        raise Broken("not_csv", f"the header: {error}") from error
    if header is None:
        return
    if text_field not in header:
        yield Reject(None, "no_text", no_column(text_field, header))
        return
    while True:
        first = rows.line_num + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield Reject(first, "too_large" if "limit" in str(error) else "not_csv", str(error))
            continue
        if row:
            yield _csv_record(first, header, row, limit)


def _csv_lines(content: Iterable[bytes], limit: int) -> Iterator[str]:
    for _, line in lines(content, limit):
        yield OVERLONG if line is None else line.decode("utf-8", "surrogateescape") + "\n"


def _csv_record(position: int, header: list[str], row: list[str], limit: int) -> Record | Reject:
    joined = ",".join(row)
    if OVERLONG in joined:
        return _too_large(position, limit)
    if bad := not_utf8(position, joined.encode("utf-8", "surrogateescape")):
        return bad
    if len(row) != len(header):
        detail = f"{len(row)} fields where the header names {len(header)}"
        return Reject(position, "not_csv", detail)
    return Record(position, dict(zip(header, row, strict=True)))


def no_column(name: str, found: Iterable[str]) -> str:
    return f"no {name!r} among {', '.join(sorted(found)) or 'nothing'}; set text_field"


def parquet_records(
    file: IO[bytes], wanted: Sequence[str], text_field: str
) -> Iterator[Record | Reject]:
    """Rows of a Parquet file, of which only the columns `wanted` are read."""
    import pyarrow.parquet as pq

    starts_well = file.read(len(PARQUET_MAGIC)) == PARQUET_MAGIC
    file.seek(0)
    try:
        parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=BLOCK)
        names = parquet.schema_arrow.names
        columns = [name for name in wanted if name in names or name.split(".")[0] in names]
        if text_field not in columns:
            yield Reject(None, "no_text", no_column(text_field, names))
            return
        position = 0
        for batch in parquet.iter_batches(_batch_rows(parquet.metadata), columns=columns):
            for row in _rows(batch):
                position += 1
                bad = Reject(position, "not_utf8", "a column holds text that is not UTF-8")
                yield bad if row is None else Record(position, row)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the storage's, where Arrow's own OSError has no number
        reason = "truncated" if starts_well else "unreadable"
        raise Broken(reason, f"Parquet: {error}".splitlines()[0]) from error


def _batch_rows(metadata: Any) -> int:
    """Rows of about 16 MB on average."""
    groups = range(metadata.num_row_groups)
    size = sum(metadata.row_group(group).total_byte_size for group in groups)
    return max(1, min(4096, (metadata.num_rows << 24) // max(size, 1)))


def _rows(batch: pa.RecordBatch) -> list[dict[str, Any] | None]:
    """The rows of a batch; None for one whose text is not UTF-8, which Arrow does not check."""
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            return [None]
        half = batch.num_rows // 2
        return _rows(batch.slice(0, half)) + _rows(batch.slice(half))


def text_record(content: Iterable[bytes], limit: int) -> Iterator[Record | Reject]:
    """The whole file as one record, with the text under `text`."""
    body = bytearray()
    for block in content:
        body += block
        if len(body) > limit:
            yield _too_large(None, limit)
            return
    data = bytes(body).removeprefix(codecs.BOM_UTF8)
    yield not_utf8(None, data) or Record(None, {"text": data.decode()})


def warc_records(file: IO[bytes], limit: int) -> Iterator[Record | Page | Reject]:
    """The responses of a WARC file as pages, the conversions of a WET file as records.

    Positions are byte offsets in the file as it lies, at which a reader can start.
    """
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    last, damage = None, None
    try:
        for record in ArchiveIterator(file, parse_http=False):
            last = record.stream_pos
            if record.record_type == WarcRecordType.response:
                yield _whole(record, limit) or _page(record, limit)
            elif record.record_type == WarcRecordType.conversion:
                yield _whole(record, limit) or _conversion(record)
    except OSError as error:
        if error.errno is not None:
            raise
        damage = error
    if last is not None:
        # A file that breaks off in a record's header ends silently for fastwarc, or as damaged.
        file.seek(last)
        for _ in blocks(file):
            pass
    if damage is not None or last is None:
        raise Broken("unreadable", f"WARC: {damage or 'no record in it'}") from damage


def _whole(record: Any, limit: int) -> Reject | None:
    """Takes the record's block into memory; the reason why that was not possible, if any."""
    length = record.content_length
    if not record.headers.get("Content-Length"):
        return Reject(record.stream_pos, "truncated", "the record's header breaks off")
    if length > limit:
        return _too_large(record.stream_pos, limit)
    record.freeze()
    found = len(record.reader.read())
    record.reader.seek(0)
    if found < length:
        return Reject(record.stream_pos, "truncated", f"{found:,} of {length:,} bytes")
    return None


def _page(record: Any, limit: int) -> Page | Reject:
    """The page of a response, with its body decoded as `read_payload` of the crawler does it."""
    offset = record.stream_pos
    try:
        record.parse_http(auto_decode="transfer")
        if record.http_headers is None or record.http_headers.status_code is None:
            raise DataError("it has no status line")
        status, headers = record.http_headers.status_code, record.http_headers
        payload, more = decode_body(record.reader.read(), headers.get("Content-Encoding"), limit)
    except (OSError, DataError) as error:
        return Reject(offset, "unreadable", f"no HTTP response: {error}")
    if more:
        return _too_large(offset, limit)
    if status != 200:
        return Reject(offset, "http_status", f"status {status}")
    if (record.http_content_type or "").lower() not in PAGE_TYPES:
        return Reject(offset, "content_type", record.http_content_type)
    columns = {
        "status": status,
        "content_type": headers.get("Content-Type"),
        "payload_sha256": hashlib.sha256(payload).hexdigest(),
        "payload_bytes": len(payload),
        "fetched_at": _date(record),
        "etag": headers.get("ETag"),
        "last_modified": headers.get("Last-Modified"),
    }
    return Page(offset, record.headers.get("WARC-Target-URI") or "", columns)


def _conversion(record: Any) -> Record | Reject:
    data = record.reader.read()
    if bad := not_utf8(record.stream_pos, data):
        return bad
    fields = {
        "text": data.decode(),
        "url": record.headers.get("WARC-Target-URI"),
        # Common Crawl names several, the likeliest first, with the three letters of ISO 639-3.
        "language": _first_language(record.headers.get("WARC-Identified-Content-Language")),
    }
    return Record(record.stream_pos, fields, _date(record))


def _first_language(named: str | None) -> str | None:
    first = named.split(",")[0].strip() if named else ""
    return TWO_LETTERS.get(first, first) or None


def _date(record: Any) -> str | None:
    return iso_utc(record.record_date) if record.record_date else None


def iso_utc(moment: datetime) -> str:
    """A moment as ISO 8601 in UTC, to the second; one without a zone is taken for UTC."""
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
