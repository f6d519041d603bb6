"""Text out of one page: decoding, main content, repair, normal form.

A page becomes text, title, language and license, or a reason why it is no document. Nothing on a
page can make it raise. Which blocks are main content, `tasks/main_content.py` says.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pydantic import Field

from llm.config import Config
from tasks.decoding import looks_binary, parse_content_type, to_utf8
from tasks.main_content import Survey, prune, survey
from tasks.repair import Family, filter_characters, repair_text

if TYPE_CHECKING:
    from resiliparse.parse.html import HTMLTree, Node


class ExtractConfig(Config):
    """How text is taken from pages and brought to normal form."""

    max_link_share: float = Field(0.8, gt=0, le=1)
    """A block with this share of its letters in links or more is navigation and left out
    (trafilatura's `link_density_test` has 0.8 too)."""

    min_main_share: float = Field(0.1, ge=0, le=1)
    """Below this share of a page's letters the main content is taken for a failure: lists of
    links are put back first, then trafilatura is asked too, and the longer text wins. It costs
    twenty times as much as the rest (Bevendorff et al., "An empirical comparison of web content
    extraction algorithms", SIGIR 2023, compare extractors); no page of Debian's documentation
    needs it."""

    max_page_bytes: int = Field(16_000_000, ge=1)
    """A larger HTML page is dropped as `too_large`: its tree takes some twenty times its size."""

    max_depth: int = Field(2000, ge=1)
    """HTML elements nested deeper are dropped as `too_complex`: nobody writes them, and trafilatura
    takes time that grows as their square. Blink stops at 512 (kMaximumHTMLParserDOMTreeDepth)."""

    max_bad_share: float = Field(0.05, ge=0, le=1)
    """An encoding is believed while at most this share of the non-ASCII characters it yields are
    undecodable: a truncated or damaged page passes, a wrong encoding fails nearly everywhere."""

    max_control_share: float = Field(0.01, ge=0, le=1)
    """Above this share of control characters a text is `undecodable`: random bytes hold 11 %."""

    repair_encoding: bool = True
    """Whether ftfy repairs mojibake (text that was once decoded with the wrong encoding)."""

    remove_characters: tuple[Family, ...] = ("noncharacters", "soft_hyphens")
    """Families of special characters that are taken out of every text (`tasks/repair.py` lists
    them). The two defaults never mean anything: Unicode reserves noncharacters for use inside
    programs (The Unicode Standard, 23.7), and a soft hyphen says where a line may break (UAX 14).
    The others can: zero-width spaces part words in Thai and Khmer, joiners shape Persian and Hindi
    and hold emoji together, private-use characters write what Unicode lacks."""


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
    utf8 = to_utf8(payload, charset, config.max_bad_share, config.max_control_share)
    if utf8 is None:
        return Rejected("undecodable", f"no encoding fits (declared: {charset or 'none'})")
    if kind in _HTML_TYPES:
        return _extract_html(utf8, url, config)
    text = checked(normalize_text(utf8.decode(), config))
    return text if isinstance(text, Rejected) else Extracted(text, None, None, None)


_HTML_TYPES = frozenset({"text/html", "application/xhtml+xml"})
_TEXT_TYPES = frozenset({"text/plain", "text/markdown", "text/x-markdown"})
_HTML_START = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml|<!--|<!doctype\s+html|<(?:html|head|body|title)\b)", re.I
)


def _extract_html(html: bytes, url: str, config: ExtractConfig) -> Extracted | Rejected:
    page = survey(html)
    if page.attributes > _MAX_ATTRIBUTES:
        return Rejected("too_complex", f"a tag with more than {_MAX_ATTRIBUTES} attributes")
    pruned, unlinked = prune(html, page, config.max_link_share)
    if unlinked <= config.min_main_share * page.letters:
        pruned, _ = prune(html, page, _ANY_LINKS)
    try:
        found = _parsed(html, pruned, page, url, config)
    except MemoryError:
        raise
    except Exception as error:
        # Two parsers of foreign input: whatever a page does to them, it is that page's drop.
        return Rejected("extractor_failed", type(error).__name__)
    if isinstance(found, Rejected):
        return found
    normal = checked(normalize_text(found.text, config))
    return normal if isinstance(normal, Rejected) else replace(found, text=normal)


# resiliparse takes time quadratic in the number of attributes of one tag: 5 s for 50,000.
_MAX_ATTRIBUTES = 5000
_ANY_LINKS = 2.0


def _parsed(
    html: bytes, pruned: bytes, page: Survey, url: str, config: ExtractConfig
) -> Extracted | Rejected:
    """What two parsers make of a page, its text not yet in normal form."""
    from resiliparse.parse.html import HTMLTree

    tree = HTMLTree.parse_from_bytes(pruned, "utf-8")
    limit = config.max_depth
    if page.depth > limit and _is_deep(tree, limit):
        return Rejected("too_complex", "nested elements", float(limit + 1), float(limit))
    main = _plain_text(tree)
    if page.letters and len(main) <= config.min_main_share * (page.letters - page.linked):
        import trafilatura

        other = trafilatura.extract(html.decode(), include_comments=False) or ""
        main = max(main, other, key=_visible_length)
    return Extracted(main, _title(tree, config), _language(tree), _license(html, url))


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


def _plain_text(tree: HTMLTree) -> str:
    """The visible text of a tree, cells of tables parted by one tab.

    resiliparse parts them by two, and keeps the empty ones that lay out a page.
    """
    from resiliparse.extract.html2text import extract_plain_text

    text = extract_plain_text(tree)
    if "\t\t" not in text:
        return text
    return "\n".join([_cells(line) if "\t\t" in line else line for line in text.split("\n")])


def _cells(row: str) -> str:
    first, *others = row.split("\t\t")
    while others and not first.strip():
        first = others.pop(0).lstrip(" \xa0")
    return "\t".join([first.rstrip(" \xa0"), *(cell.strip(" \xa0") for cell in others)])


def _visible_length(text: str) -> int:
    return sum(map(len, text.split()))


def _title(tree: HTMLTree, config: ExtractConfig) -> str | None:
    title = tree.title or ""
    if not title.strip() and tree.body is not None:
        heading = tree.body.query_selector("h1")
        title = (heading.text or "") if heading is not None else ""
    return " ".join(normalize_text(title, config).split()) or None


def _language(tree: HTMLTree) -> str | None:
    root = tree.document.document_element if tree.document is not None else None
    if root is None:
        return None
    return primary_language(root.getattr("lang") or root.getattr("xml:lang"))


def primary_language(tag: str | None) -> str | None:
    """The primary subtag of a BCP 47 language tag, lower-case: `en-GB` is `en`; None if none."""
    found = re.match(r"\s*([A-Za-z]{2,3})(?:[-_]|\s*$)", tag or "")
    return found.group(1).lower() if found else None


def _license(html: bytes, url: str) -> str | None:
    """The license the page links to: by rel=license, else by the one Creative Commons link.

    Links to several licenses, as on a page about licenses, tell nothing of the page's own. Only
    tags that hold one of two hints are parsed: such a link is often in a footer, which the
    tree of the main content has not.
    """
    lower = html.lower()
    places = [found.start() for hint in _LICENSE_HINTS for found in hint.finditer(lower)]
    tags = {_tag_around(html, place) for place in places} - {b""}
    if not tags:
        return None
    from resiliparse.parse.html import HTMLTree

    document = HTMLTree.parse_from_bytes(b"".join(sorted(tags)), "utf-8").document
    for selector in ("[rel~=license]", "a[href*='creativecommons.org/']"):
        links = document.query_selector_all(selector)[:] if document is not None else []
        found = {license_id(_joined(url, link.getattr("href") or "")) for link in links} - {None}
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def _joined(url: str, link: str) -> str:
    from urllib.parse import urljoin

    try:
        return urljoin(url, link)
    except ValueError:  # such as http://[: no address, and so no license's
        return ""


# Two, since each is sought by the letters it starts with, which is fast.
_LICENSE_HINTS = (
    re.compile(rb"rel\s*=\s*[\"']?[^\"'<>]*license"),
    re.compile(rb"creativecommons\.org/"),
)


def _tag_around(html: bytes, place: int) -> bytes:
    """The tag that holds the byte at `place`; nothing if that byte is in text."""
    start, end = html.rfind(b"<", 0, place), html.find(b">", place)
    inside = start >= 0 and end >= 0 and html.find(b">", start, place) < 0
    return html[start : end + 1] if inside else b""


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

    First what `tasks.repair.repair_text` says. Then `config.remove_characters` go, every space
    separator of Unicode (Zs) becomes a space, lines end where their text ends, at most one line
    stays blank between two, and the text starts with its first line (indentation kept) and ends
    with its last. The result holds no lone surrogates.
    """
    text = text.replace("\x0b", "\n").replace("\x0c", "\n")
    text = repair_text(text, config.repair_encoding).replace("\xa0", " ")
    text = filter_characters(text, (*config.remove_characters, "spaces"))
    if " \n" in text or "\t\n" in text:
        text = "\n".join([line.rstrip(" \t") for line in text.split("\n")])
    if "\n\n\n" in text:
        text = _BLANK_LINES.sub("\n\n", text)
    return text.strip("\n").rstrip(" \t\n")


_BLANK_LINES = re.compile(r"\n{3,}")


def checked(text: str) -> str | Rejected:
    if not text.strip():
        return Rejected("no_text", "no main text was found", 0.0, 1.0)
    return text
