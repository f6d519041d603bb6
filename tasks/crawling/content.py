"""Undoing a Content-Encoding without ever holding more than asked for."""

from __future__ import annotations

import io
import zlib

from llm.errors import DataError

ACCEPT_ENCODING = "gzip, br"


def decode_body(
    raw: bytes, encoding: str | None, limit: int, *, prefix: bool = False
) -> tuple[bytes, bool]:
    """The first `limit` bytes of `raw` decoded, and whether there would have been more.

    `encoding` is the Content-Encoding header. With `prefix`, `raw` may stop in mid-stream.
    Raises DataError where the encoding is not one we accept, or the bytes are not of it.
    """
    name = (encoding or "identity").strip().lower()
    if not raw or name in ("", "identity"):
        return raw[:limit], len(raw) > limit
    if name in ("gzip", "x-gzip"):
        body, whole = _gunzip(raw, limit + 1)
    elif name == "br":
        body, whole = _unbrotli(raw, limit + 1)
    else:
        raise DataError(f"content encoding {encoding!r} was not asked for; only {ACCEPT_ENCODING}")
    if not whole and len(body) <= limit and not prefix:
        raise DataError(f"the {name} stream ends after {len(body)} bytes, before its end")
    return body[:limit], len(body) > limit


def is_gzip(raw: bytes) -> bool:
    """Whether `raw` starts as a gzip member does (RFC 1952, 2.3.1)."""
    return raw[:2] == b"\x1f\x8b"


def _gunzip(raw: bytes, limit: int) -> tuple[bytes, bool]:
    """The first member of `raw`, cut at `limit` bytes, and whether its end was reached."""
    stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        return stream.decompress(raw, limit), stream.eof
    except zlib.error as error:
        raise DataError(f"not a gzip stream: {error}") from None


def _unbrotli(raw: bytes, limit: int) -> tuple[bytes, bool]:
    """`raw` decoded, cut at `limit` bytes; a stream that stops early raises, as a bad one does."""
    from fastwarc.stream_io import BrotliReader

    try:
        return BrotliReader(io.BytesIO(raw)).read(limit), True
    except OSError as error:
        raise DataError(f"not a whole brotli stream: {error}") from None
