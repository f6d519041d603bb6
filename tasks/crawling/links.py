"""What a page says to a crawler: where it leads, and what may be done with it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tasks.crawling.fetch import media_type
from tasks.crawling.urls import Mirror, canonical_url

_HTML = ("text/html", "application/xhtml+xml")
_CHARSET = re.compile(r"charset\s*=\s*[\"']?([\w.:-]+)", re.IGNORECASE)
_REFRESH = re.compile(r"^\s*[\d.]+\s*[;,]\s*url\s*=\s*[\"']?([^\"']+)", re.IGNORECASE)
# Where a browser would go by itself or at a click; what it merely embeds is no page.
_LINKS = "a[href], area[href], frame[src], iframe[src]"


@dataclass(frozen=True)
class PageNotes:
    """Links in the order found, canonical and recorded, each once; empty under `nofollow`."""

    links: tuple[str, ...]
    noindex: bool


def read_page(
    payload: bytes,
    content_type: str | None,
    url: str,
    mirror: Mirror,
    token: str,
    x_robots_tag: str | None = None,
) -> PageNotes:
    """The links of the page at the recorded address `url`, and whether it may be kept.

    `noindex`, `nofollow` and `none` count in a `<meta>` named `robots` or as `token`, and in the
    X-Robots-Tag header. A link with `rel=nofollow` is not followed. `<base href>` is honored.
    Bytes that the page's encoding does not explain are replaced, so no page is unreadable.
    """
    directives = _header_directives(x_robots_tag or "", token.lower())
    if media_type(content_type) not in (None, *_HTML):
        return PageNotes((), _says(directives, "noindex"))
    from resiliparse.parse.html import HTMLTree

    document = HTMLTree.parse(_decoded(payload, content_type)).document
    if document is None:
        return PageNotes((), _says(directives, "noindex"))
    base, found = url, []
    # A slice is one pass; iterating the collection itself builds all of it again for each element.
    for meta in document.query_selector_all("meta[content]")[:]:
        content = meta.getattr("content") or ""
        if (meta.getattr("name") or "").strip().lower() in ("robots", token.lower()):
            directives |= {word.strip().lower() for word in content.split(",")}
        refresh = _REFRESH.match(content)
        if refresh and (meta.getattr("http-equiv") or "").strip().lower() == "refresh":
            found.append(refresh.group(1))
    first_base = document.query_selector("base[href]")
    if first_base is not None:
        base = canonical_url(first_base.getattr("href") or "", url) or url
    if _says(directives, "nofollow"):
        return PageNotes((), _says(directives, "noindex"))
    for element in document.query_selector_all(_LINKS)[:]:
        if "nofollow" not in (element.getattr("rel") or "").lower().split():
            found.append(element.getattr("href") or element.getattr("src") or "")
    targets = (canonical_url(link, base) for link in found)
    links = dict.fromkeys(mirror.recorded(link) for link in targets if link is not None)
    return PageNotes(tuple(links), _says(directives, "noindex"))


def _decoded(payload: bytes, content_type: str | None) -> str:
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding

    declared = _CHARSET.search(content_type or "")
    if declared:
        encoding = declared.group(1)
    else:
        encoding = detect_encoding(payload, from_html_meta=True) or "utf-8"
    try:
        return bytes_to_str(payload, encoding, errors="replace")
    except LookupError:  # a charset that nobody knows
        return payload.decode("utf-8", errors="replace")


def _header_directives(value: str, token: str) -> set[str]:
    """The words of an X-Robots-Tag header that are addressed to all, or to `token`.

    `otherbot: noindex, nofollow` names its reader once, for all words until the next name.
    """
    words: set[str] = set()
    addressed = True
    for part in value.lower().split(","):
        name, colon, rest = part.partition(":")
        if colon and name.strip() != "unavailable_after":
            addressed = name.strip() == token
        if addressed:
            words.add((rest if colon else part).strip())
    return words


def _says(directives: set[str], word: str) -> bool:
    return word in directives or "none" in directives
