"""From the bytes of a page to its characters: content types, encodings, damage."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator

CONTROLS = bytes((*range(9), 0x0B, *range(0x0E, 0x20), 0x7F))
"""Control characters that mean nothing in text; tabs, line breaks and form feeds are not these."""


def parse_content_type(value: str | None) -> tuple[str | None, str | None]:
    """The media type and the charset of a Content-Type header, lower-case; None where absent."""
    if not value or not value.strip():
        return None, None
    kind, _, parameters = value.partition(";")
    found = re.search(r"charset\s*=\s*[\"']?([\w.:-]+)", parameters, re.I)
    return kind.strip().lower() or None, found.group(1).lower() if found else None


def looks_binary(payload: bytes, charset: str | None) -> bool:
    """Whether the first bytes are no text: PDF, or a NUL where no UTF-16 is marked or declared.

    1445 bytes are read, as WHATWG's MIME sniffing standard does (section 5.2).
    """
    head = payload[:1445]
    if head.startswith(b"%PDF-"):
        return True
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return False
    return b"\0" in head and not (charset or "").startswith(("utf-16", "utf16"))


def to_utf8(
    payload: bytes, charset: str | None, max_bad_share: float, max_control_share: float
) -> bytes | None:
    """The text of `payload` in UTF-8, or None where no encoding fits well enough.

    In order: a byte order mark; UTF-8, since text in another encoding hardly ever is valid UTF-8 by
    chance (Duerst, "The properties and promises of UTF-8", 1997); the HTTP charset; the one in a
    meta tag, else in an XML declaration (HTML standard, prescan of a byte stream); the one uchardet
    detects; windows-1252. Labels mean what WHATWG's encoding standard says they mean. Encodings
    that look like ASCII (UTF-16, ISO-2022-JP, HZ) come first where they are declared. What cannot
    be decoded becomes U+FFFD.

    An encoding fits while at most `max_bad_share` of its non-ASCII characters are undecodable and
    at most `max_control_share` of all characters are control characters.
    """
    encodings = _encodings(payload, charset)
    for mark, name in _MARKS:
        if payload.startswith(mark):
            payload, encodings = payload[len(mark) :], iter((name,))
            break
    for name in encodings:
        text = _decode_as(payload, name, max_bad_share)
        if text is None:
            continue
        as_it_was = name == "utf-8" and "\ufffd" not in text
        utf8 = payload if as_it_was else text.encode("utf-8", "replace")
        if len(utf8) - len(utf8.translate(None, CONTROLS)) <= max_control_share * len(text):
            return utf8
    return None


_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_META_CHARSET = re.compile(rb"<meta\b[^>]*?charset\s*=\s*[\"']?([\w.:-]+)", re.I)
_XML_ENCODING = re.compile(rb"<\?xml\b[^>]*?encoding\s*=\s*[\"']?([\w.:-]+)", re.I)
_LIKE_ASCII = ("utf-16", "iso2022", "iso-2022", "hz")


def _encodings(payload: bytes, charset: str | None) -> Iterator[str]:
    """Python names of the encodings to try; detection, which reads the payload, comes late."""
    from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

    head = payload[:1024]
    inside = _META_CHARSET.search(head) or _XML_ENCODING.search(head)
    labels = (charset, inside.group(1).decode() if inside else None)
    mapped = (map_encoding_to_html5(label, fallback_utf8=False) for label in labels if label)
    declared = [name for name in mapped if name]
    yield from (name for name in declared if name.startswith(_LIKE_ASCII))
    yield "utf-8"
    yield from declared
    yield detect_encoding(payload, from_html_meta=False) or "utf-8"
    yield "cp1252"


def _decode_as(payload: bytes, name: str, max_bad_share: float) -> str | None:
    try:
        text = payload.decode(name, "replace")
    except LookupError:
        return None
    bad = text.count("\ufffd")
    if bad:
        # A replacement character in the page itself is old damage and says nothing of `name`.
        bad -= payload.count("\ufffd".encode()) if name == "utf-8" else 0
        foreign = len(text) - len(text.encode("ascii", "ignore"))
        if bad > max_bad_share * foreign:
            return None
    return text
