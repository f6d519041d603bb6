"""E-mail in mbox files (RFC 4155) as records: one a message, by its Message-ID."""

from __future__ import annotations

import email
import email.policy
import re
from collections.abc import Iterable, Iterator
from email.message import EmailMessage
from email.utils import parsedate_to_datetime
from typing import Any

from tasks.importing.readers import Broken, Record, Reject, iso_utc

META = ("subject", "date", "list_id", "attachments")

_ESCAPED_FROM = re.compile(rb"^>(>*From )", re.M)
_QUOTED = re.compile(r"(?:^[^\n>]{1,200}:[ \t]*\n\s*)?(?:^[ \t]*>[^\n]*(?:\n|\Z))+", re.M)

# RFC 3676, 4.3, names the line; what is longer than anybody's address is no signature.
_DASHES, _SIGNATURE_LINES = "\n-- \n", 10
# What wrote a charset's larger sibling by its name, as browsers read it (WHATWG Encoding, 4.2).
_SIBLINGS = {
    "gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc-kr": "cp949",
    "ks_c_5601-1987": "cp949", "big5": "big5hkscs",
}  # fmt: skip


def mbox_records(content: Iterable[bytes], limit: int, quotes: bool) -> Iterator[Record | Reject]:
    """Each message's text, with its subject, date and mailing list; positions count messages.

    The plain text of a message is preferred, its HTML read like a web page where there is no other.
    Attachments are left out and counted. Without `quotes`, so are the signature and what is quoted
    of earlier messages, with the line that introduces it. Addresses and names are not kept. A text
    that its charset cannot hold is tried as UTF-8, then as the larger charset that goes by the same
    name; failing these it is set aside (`wrong_charset`), since a guess might import nonsense.
    """
    for position, body in enumerate(_messages(content, limit), start=1):
        if body is None:
            yield Reject(position, "too_large", f"a message is over {limit:,} bytes")
            continue
        try:
            yield _record(position, body, quotes)
        except Exception as error:
            # The parser of foreign mail: whatever a message does to it, it is that message's row.
            yield Reject(position, "unreadable", f"e-mail: {type(error).__name__}: {error}")


def _messages(content: Iterable[bytes], limit: int) -> Iterator[bytes | None]:
    """The bytes of each message; None for one over the limit."""
    pending: list[bytes] = []
    size, started, blank = 0, False, True
    for line in _lines(content, limit):
        if blank and line.startswith(b"From "):
            if started:
                yield b"".join(pending) if size <= limit else None
            pending, size, started, blank = [], 0, True, False
            continue
        if not started:
            raise Broken("unreadable", "no mbox: it does not begin with a line `From ...`")
        size += len(line)
        if size <= limit:
            pending.append(line)
        blank = not line.strip(b"\r\n")
    if started:
        yield b"".join(pending) if size <= limit else None


def _lines(content: Iterable[bytes], limit: int) -> Iterator[bytes]:
    """The lines with their ends; one over the limit comes in pieces."""
    rest = b""
    for block in content:
        *whole, rest = (rest + block).split(b"\n")
        yield from (line + b"\n" for line in whole)
        if len(rest) > limit:
            yield rest
            rest = b""
    if rest:
        yield rest


def _record(position: int, body: bytes, quotes: bool) -> Record | Reject:
    message = email.message_from_bytes(
        _ESCAPED_FROM.sub(rb"\1", body), _class=EmailMessage, policy=email.policy.default
    )
    part = message.get_body(("plain", "html"))
    if part is None:
        return Reject(position, "no_text", "a message without a text part")
    text = _content(part)
    if text is None:
        charset = part.get_content_charset("us-ascii")
        return Reject(position, "wrong_charset", f"the text is neither {charset} nor UTF-8")
    if part.get_content_type() == "text/html":
        text = _from_html(text)
    if not quotes:
        text = _without_signature(_QUOTED.sub("", text.replace("\r\n", "\n")))
    fields: dict[str, Any] = {
        "text": text,
        "id": _header(message, "Message-ID"),
        "subject": _header(message, "Subject"),
        "date": _date(message),
        "list_id": _header(message, "List-Id"),
        "attachments": sum(1 for _ in message.iter_attachments()) or None,
    }
    return Record(position, fields, fields["date"])


def _content(part: Any) -> str | None:
    """The part's text; None where its bytes are wrong for every charset that may be meant."""
    data = bytes(part.get_payload(decode=True) or b"")
    charset = part.get_content_charset("us-ascii")
    for name in (charset, "utf-8", _SIBLINGS.get(charset, "utf-8")):
        try:
            return data.decode(name)
        except (LookupError, UnicodeError):
            continue
    return None


def _without_signature(text: str) -> str:
    body, dashes, signature = f"\n{text}".rpartition(_DASHES)
    if not dashes or signature.rstrip().count("\n") >= _SIGNATURE_LINES:
        return text
    return body.removeprefix("\n")


def _from_html(html: str) -> str:
    from tasks.page_text import ExtractConfig, Extracted, extract_page

    page = extract_page(html.encode(), "text/html; charset=utf-8", "", ExtractConfig())
    return page.text if isinstance(page, Extracted) else ""


def _header(message: EmailMessage, name: str) -> str | None:
    return " ".join(str(message.get(name) or "").split()) or None


def _date(message: EmailMessage) -> str | None:
    try:
        return iso_utc(parsedate_to_datetime(str(message["Date"])))
    except (TypeError, ValueError, OverflowError):
        return None
