"""Responses as they were sent, in WARC files, and the way back to one payload."""

from __future__ import annotations

import io
import uuid
from pathlib import Path
from typing import IO, BinaryIO

from llm.errors import DataError
from tasks.crawling.content import decode_body
from tasks.crawling.fetch import Headers, Response

MAX_WARC_BYTES = 256_000_000
# Room for what gzip and the headers may add to a body that does not compress.
_HEADROOM = 256 * 1024


# The content type of the record that stands in the place of an erased one.
ERASED_TYPE = "application/x-loam-erased"


class ErasedPayload(DataError):
    """The record was there, and has been erased."""


class WarcWriter:
    """Writes request and response pairs to `folder`, a file for every `max_bytes` at most.

    Every record is a gzip member of its own (WARC 1.1, annex D), so that one can be read without
    the rest. Use as a context manager; `files` lists the paths in order, none without a record.
    """

    def __init__(self, folder: Path, name: str, max_bytes: int = MAX_WARC_BYTES) -> None:
        self.files: list[Path] = []
        self._folder = folder
        self._name = name
        self._max_bytes = max_bytes
        self._out: BinaryIO | None = None

    def __enter__(self) -> WarcWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._out is not None:
            self._out.close()

    def add(self, response: Response, url: str, date: str) -> tuple[Path, int]:
        """Writes one exchange about the recorded address `url`; the file and the offset in it."""
        from warcio.statusandheaders import StatusAndHeaders
        from warcio.warcwriter import WARCWriter

        out = self._file_with_room(len(response.raw) + _HEADROOM)
        offset = out.tell()
        writer = WARCWriter(out, gzip=True, warc_version="1.1")
        about = {"WARC-Date": date, "WARC-IP-Address": response.ip}
        answer = writer.create_warc_record(
            url,
            "response",
            payload=io.BytesIO(response.raw),
            length=len(response.raw),
            warc_headers_dict={**about, "WARC-Record-ID": _record_id("response", url, date)},
            http_headers=StatusAndHeaders(
                f"{response.status} {response.reason}",
                _stored_headers(response.headers),
                protocol=response.http_version,
            ),
        )
        target = "/" + response.url.split("/", 3)[3]
        question = writer.create_warc_record(
            url,
            "request",
            warc_headers_dict={**about, "WARC-Record-ID": _record_id("request", url, date)},
            http_headers=StatusAndHeaders(
                f"GET {target} HTTP/1.1", list(response.request_headers), is_http_request=True
            ),
        )
        writer.write_request_response_pair(question, answer)
        return self.files[-1], offset

    def _file_with_room(self, n_bytes: int) -> BinaryIO:
        if self._out is not None and self._out.tell() + n_bytes > self._max_bytes:
            self._out.close()
            self._out = None
        if self._out is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self.files.append(self._folder / f"{self._name}-{len(self.files):05d}.warc.gz")
            self._out = self.files[-1].open("wb")
        return self._out


def read_payload(source: IO[bytes] | bytes | Path, offset: int) -> tuple[int, Headers, bytes]:
    """The HTTP status, the headers and the decoded body of the response record at `offset`.

    `source` is a WARC file, open for reading or as bytes or a path. Raises DataError where no
    response starts at `offset`, which is ErasedPayload where one did before it was erased.
    """
    if isinstance(source, Path):
        with source.open("rb") as file:
            return read_payload(file, offset)
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    stream.seek(offset)
    try:
        archive = ArchiveIterator(stream, parse_http=True, auto_decode="transfer")
        record = next(iter(archive), None)
        if record is not None and record.headers.get("Content-Type") == ERASED_TYPE:
            raise ErasedPayload("it was erased")
        if record is None or record.record_type != WarcRecordType.response:
            raise DataError("it is not the start of a response record")
        head = record.http_headers
        raw = record.reader.read()
        if head is None or head.status_code is None:
            raise DataError("the record holds no HTTP response")
        headers = head.to_tuples()
        named = {name.lower(): value for name, value in headers}
        # A body that was sent in chunks is shorter without their marks.
        if "transfer-encoding" not in named and len(raw) < record.content_length:
            raise DataError("the record is cut short")
        encoding = named.get("content-encoding")
        body, _ = decode_body(raw, encoding, MAX_WARC_BYTES)
    except ErasedPayload:
        raise
    except (OSError, ValueError, DataError) as error:
        raise DataError(f"no payload at offset {offset} of the WARC file: {error}") from None
    return head.status_code, headers, body


def _record_id(kind: str, url: str, date: str) -> str:
    return f"<urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'{kind} {date} {url}')}>"


def _stored_headers(headers: Headers) -> list[tuple[str, str]]:
    """The headers as sent; Transfer-Encoding, which is undone, under the name crawlers give it."""
    return [
        (f"X-Crawler-{name}" if name.lower() == "transfer-encoding" else name, value)
        for name, value in headers
    ]
