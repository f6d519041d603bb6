"""Text out of pages and imported records: decoding, main content, repair, normal form.

`extract_shard` turns crawled pages into documents, `normalize_shard` does the same for records
that were imported as text. Both give every input row back exactly once: as a document, or as a
drop that says why it is none. Nothing on a page can make them raise.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from llm.config import Config
from tasks.decoding import CONTROL, decode, looks_binary, parse_content_type

if TYPE_CHECKING:
    from resiliparse.parse.html import HTMLTree, Node


class ExtractConfig(Config):
    """How text is taken from pages and brought to normal form."""

    min_main_share: float = Field(0.1, ge=0, le=1)
    """Below this share of a page's visible characters, resiliparse's main content is taken for a
    failure and trafilatura is asked too; the longer text wins. On Debian's documentation 0.1
    sends link lists alone to trafilatura, which costs twenty times as much (Bevendorff et al.,
    "An empirical comparison of web content extraction algorithms", SIGIR 2023, compare the two)."""

    max_page_bytes: int = Field(16_000_000, ge=1)
    """A larger HTML page is dropped as `too_large`: its tree takes some twenty times its size."""

    max_depth: int = Field(2000, ge=1)
    """HTML elements nested deeper are dropped as `too_complex`, since the cost of finding the main
    content grows as the square of the depth: 0.07 s here, minutes at 100,000. Blink stops at 512
    (kMaximumHTMLParserDOMTreeDepth)."""

    max_bad_share: float = Field(0.05, ge=0, le=1)
    """An encoding is believed while at most this share of the non-ASCII characters it yields are
    undecodable: a truncated or damaged page passes, a wrong encoding fails nearly everywhere."""

    max_control_share: float = Field(0.01, ge=0, le=1)
    """Above this share of control characters a text is `undecodable`: random bytes hold 11 %."""

    repair_encoding: bool = True
    """Whether ftfy repairs mojibake (text that was once decoded with the wrong encoding)."""


@dataclass(frozen=True)
class Extracted:
    """What a page says: normalised text, title, primary language subtag, SPDX-like license."""

    text: str
    title: str | None
    language: str | None
    license: str | None


@dataclass(frozen=True)
class Rejected:
    """Why a page is no document; `value` broke `threshold` where the reason is a number."""

    reason: str
    detail: str | None = None
    value: float | None = None
    threshold: float | None = None


def extract_page(
    payload: bytes, content_type: str | None, url: str, config: ExtractConfig
) -> Extracted | Rejected:
    """The main text of one page, its title, language attribute and license link.

    HTML and XHTML are extracted; text/plain and text/markdown pass through, normalised; without a
    content type the first bytes decide. Reasons to reject: `not_html`, `too_large`, `undecodable`,
    `too_complex`, `extractor_failed`, `no_text`. `url` is where relative links start.
    """
    kind, charset = parse_content_type(content_type)
    if looks_binary(payload, charset):
        return Rejected("not_html", f"binary content served as {kind or 'no type'}")
    if kind is None:
        kind = "text/html" if _HTML_START.match(payload[:1024]) else "text/plain"
    if kind not in _HTML_TYPES and kind not in _TEXT_TYPES:
        return Rejected("not_html", kind)
    if len(payload) > config.max_page_bytes:
        limit = config.max_page_bytes
        return Rejected("too_large", "bytes in the page", float(len(payload)), float(limit))
    decoded = decode(payload, charset, config.max_bad_share, config.max_control_share)
    if decoded is None:
        return Rejected("undecodable", f"no encoding fits (declared: {charset or 'none'})")
    if kind in _HTML_TYPES:
        return _extract_html(decoded, url, config)
    text = checked(normalize_text(decoded, config))
    return text if isinstance(text, Rejected) else Extracted(text, None, None, None)


_HTML_TYPES = frozenset({"text/html", "application/xhtml+xml"})
_TEXT_TYPES = frozenset({"text/plain", "text/markdown", "text/x-markdown"})
_HTML_START = re.compile(rb"\s*(?:<\?xml|<!--|<!doctype\s+html|<(?:html|head|body|title)\b)", re.I)


def _extract_html(html: str, url: str, config: ExtractConfig) -> Extracted | Rejected:
    from resiliparse.parse.html import HTMLTree

    if _HUGE_TAG.search(html):
        return Rejected("too_complex", "a tag with more than 5000 attributes")
    try:
        tree = HTMLTree.parse(html)
        if _may_be_deep(html, config.max_depth) and _is_deep(tree, config.max_depth):
            limit = config.max_depth
            return Rejected("too_complex", "nested elements", float(limit + 1), float(limit))
        # Read before `_main_text`, which changes the tree.
        title = _title(tree, config)
        language = _language(tree)
        license_ = _license(tree, url)
        main = _main_text(tree, html, config)
    except MemoryError:
        raise
    except Exception as error:
        # Two parsers of foreign input: whatever a page does to them, it is that page's drop.
        return Rejected("extractor_failed", type(error).__name__)
    text = checked(normalize_text(main, config))
    return text if isinstance(text, Rejected) else Extracted(text, title, language, license_)


# resiliparse takes time quadratic in the number of attributes of one tag: 5 s for 50,000.
_HUGE_TAG = re.compile(r"<[a-zA-Z](?:[^<>=]*=){5001}")


def _may_be_deep(html: str, limit: int) -> bool:
    """Whether start tags ever outnumber end tags by `limit`: a cheap bound on the depth, too
    high where end tags are left out."""
    import numpy as np

    if html.count("<") <= limit:
        return False
    data = np.frombuffer(html.encode("utf-8", "replace") + b" ", dtype=np.uint8)
    after = data[np.flatnonzero(data[:-1] == ord("<")) + 1] | 0x20
    steps = ((after >= ord("a")) & (after <= ord("z"))).astype(np.int64)
    steps -= after == ord("/")
    return bool(np.cumsum(steps).max() > limit)


def _is_deep(tree: HTMLTree, limit: int) -> bool:
    node: Node | None = tree.document
    depth = 0
    while node is not None:
        if node.first_child is not None:
            node, depth = node.first_child, depth + 1
            if depth > limit:
                return True
            continue
        while node is not None and node.next_sibling is None:
            node, depth = node.parent, depth - 1
        node = node.next_sibling if node is not None else None
    return False


def _main_text(tree: HTMLTree, html: str, config: ExtractConfig) -> str:
    from resiliparse.extract.html2text import extract_plain_text

    visible = _visible_length(extract_plain_text(tree))
    _deepen_lists(tree)
    main = _CELL_BREAK.sub("\t", _EMPTY_CELL.sub("", extract_plain_text(tree, main_content=True)))
    if _visible_length(main) >= config.min_main_share * visible:
        return main
    import trafilatura

    other = trafilatura.extract(html, include_comments=False, include_tables=True) or ""
    return other if _visible_length(other) > _visible_length(main) else main


# resiliparse parts table cells with two tabs; empty cells before the first word are layout.
_EMPTY_CELL = re.compile(r"^(?:[ \xa0]+\t\t)+[ \xa0]*", re.M)
_CELL_BREAK = re.compile(r"(?<=\S)[ \xa0]*\t\t[ \xa0]*")


def _deepen_lists(tree: HTMLTree) -> None:
    """Wrap the lists near the body in three more elements.

    resiliparse drops every `ul` less than four levels below the root as navigation, and judges
    deeper ones by their share of links; a plain page keeps its lists there.
    """
    if tree.body is None:
        return
    for found in tree.body.query_selector_all("body > ul, body > * > ul, body > * > * > ul")[:]:
        place: Node = found
        for _ in range(3):
            wrapper = tree.create_element("div")
            if wrapper is None or place.parent is None:
                break
            place.parent.insert_before(wrapper, place)
            wrapper.append_child(place)
            place = wrapper


def _visible_length(text: str) -> int:
    return sum(map(len, text.split()))


def _title(tree: HTMLTree, config: ExtractConfig) -> str | None:
    title = tree.title or ""
    if not title.strip() and tree.body is not None:
        heading = tree.body.query_selector("h1")
        title = (heading.text or "") if heading is not None else ""
    return " ".join(normalize_text(title, config).split()) or None


def _language(tree: HTMLTree) -> str | None:
    document = tree.document
    root = document.query_selector("html") if document is not None else None
    if root is None:
        return None
    return primary_language(root.getattr("lang") or root.getattr("xml:lang"))


def primary_language(tag: str | None) -> str | None:
    """The primary subtag of a BCP 47 language tag, lower-case: `en-GB` is `en`; None if none."""
    found = re.match(r"\s*([A-Za-z]{2,3})(?:[-_]|\s*$)", tag or "")
    return found.group(1).lower() if found else None


def _license(tree: HTMLTree, url: str) -> str | None:
    """The license the page links to: by rel=license, else by the one Creative Commons link.

    Links to several licenses, as on a page about licenses, tell nothing of the page's own.
    """
    from urllib.parse import urljoin

    document = tree.document
    if document is None:
        return None
    for selector in ("[rel~=license]", "a[href*='creativecommons.org/']"):
        links = document.query_selector_all(selector)[:]
        found = {license_id(urljoin(url, link.getattr("href") or "")) for link in links} - {None}
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def license_id(url: str) -> str | None:
    """The SPDX identifier of a license's URL, e.g. `CC-BY-SA-4.0`; None where it is not known."""
    for pattern, name in _LICENSES:
        found = pattern.search(url)
        if found:
            return "-".join([*name, *(part.upper() for part in found.groups() if part)])
    return None


_LICENSES = tuple(
    (re.compile(pattern, re.I), name)
    for pattern, *name in (
        (r"creativecommons\.org/licenses/(by(?:-nc)?(?:-nd|-sa)?)/(\d\.\d)(?:/(\w\w)\b)?", "CC"),
        (r"creativecommons\.org/publicdomain/zero/(\d\.\d)", "CC0"),
        (r"creativecommons\.org/publicdomain/mark/(\d\.\d)", "CC-PDM"),
        (r"apache\.org/licenses/LICENSE-(2\.0)", "Apache"),
        (r"opensource\.org/licenses?/(mit)\b",),
        (r"gnu\.org/(?:licenses|copyleft)/(gpl|lgpl|agpl)-(\d\.\d)",),
        (r"gnu\.org/(?:licenses|copyleft)/fdl-(\d\.\d)", "GFDL"),
    )
)


def normalize_text(text: str, config: ExtractConfig) -> str:
    """`text` with its encoding repaired, in NFC, its white space plain and its lines kept.

    ftfy (Speer 2019) runs with its defaults but for three options: `uncurl_quotes`, since curly
    quotes are what the author wrote; `unescape_html`, since an entity that is left after parsing is
    meant; and `fix_character_width`, since it makes Latin punctuation of Chinese and Japanese. That
    is: unescape_html=False, remove_terminal_escapes=True, fix_encoding=`repair_encoding`,
    restore_byte_a0=True, replace_lossy_sequences=True, decode_inconsistent_utf8=True,
    fix_c1_controls=True, fix_latin_ligatures=True, fix_character_width=False, uncurl_quotes=False,
    fix_line_breaks=True, fix_surrogates=True, remove_control_chars=True, normalization="NFC",
    max_decode_length=1000000.

    Then: every space separator of Unicode (Zs) becomes a space, soft hyphens go, lines end where
    their text ends, at most one line stays blank between two, and the text starts with its first
    line (indentation kept) and ends with its last. The result holds no lone surrogates.
    """
    import ftfy

    options = ftfy.TextFixerConfig(
        unescape_html=False,
        fix_encoding=config.repair_encoding,
        fix_character_width=False,
        uncurl_quotes=False,
        explain=False,
    )
    fixed = ftfy.fix_text(text.translate(_LINE_BREAKS), options).translate(_SPACES)
    lines = (line.rstrip(" \t") for line in CONTROL.sub("", fixed).split("\n"))
    fixed = _BLANK_LINES.sub("\n\n", "\n".join(lines)).strip("\n")
    return unicodedata.normalize("NFC", fixed)


_LINE_BREAKS = {0x0B: "\n", 0x0C: "\n"}
_SPACES: dict[int, str | None] = dict.fromkeys(
    (0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000), " "
)
_SPACES[0xAD] = None
_BLANK_LINES = re.compile(r"\n{3,}")


def checked(text: str) -> str | Rejected:
    if not text.strip():
        return Rejected("no_text", "no main text was found", 0.0, 1.0)
    return text
