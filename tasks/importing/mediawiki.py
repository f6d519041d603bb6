"""MediaWiki XML dumps (Wikipedia's `pages-articles`) as records: one an article, as plain text.

A dump is cut into pages by its bytes, and each page is parsed alone, so that a damaged one costs no
other. This is sound because `<` stands in a page's text only as `&lt;`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote

from tasks.importing.readers import Broken, Record, Reject, not_utf8

META = ("title", "revision")

# What is left of tables, references and files is no prose.
_DROPPED_TAGS = frozenset(["ref", "references", "gallery", "table", "math", "timeline", "imagemap"])
_NAMESPACED = re.compile(r"^\s*:?\s*[^:|\[\]{}]{2,24}:\S")
_AROUND_BREAKS = re.compile(r"[ \t]*\n[ \t]*")
# Bytes of a dump for one of text at most: six for an escaped quotation mark, and what is around.
_MARKUP_PER_TEXT = 8
_BLANK_LINES = re.compile(r"\n{3,}")
_TAG = re.compile(rb"<(?:page|revision)[\s>]|</(?:page|revision)>")
_LONGEST_TAG = len(b"</revision>")
_TIMESTAMP = re.compile(rb"<timestamp>([^<]*)</timestamp>")
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
# Most of the pages of a dump are neither: they are counted, since a row each would be millions.
_COUNTED = {"namespace": "pages of other namespaces than that of articles", "redirect": "redirects"}


def mediawiki_records(content: Iterable[bytes], limit: int) -> Iterator[Record | Reject]:
    """The articles of a dump, streamed; positions count its pages.

    `id` is the page's number, `url` follows from the dump's `siteinfo`, `language` from its root;
    the text is that of the latest revision. Set aside: pages that cannot be read and those over the
    limit, one by one; pages of other namespaces (`namespace`) and redirects (`redirect`), counted.
    Markup goes: templates, tables, references, files and categories with what they hold.

    Raises Broken for what is no such dump, breaks off, or declares a document type: dumps have
    none, and entities could be made to grow without bound.
    """
    counts: Counter[str] = Counter()
    try:
        pages = _pages(content, _MARKUP_PER_TEXT * limit)
        site = _Site(next(pages) or b"")
        for position, page in enumerate(pages, start=1):
            item = _item(position, page, site, limit)
            if isinstance(item, Reject) and item.reason in _COUNTED:
                counts[item.reason] += 1
            else:
                yield item
    except Broken:
        yield from _counted(counts)
        raise
    yield from _counted(counts)


def _counted(counts: Counter[str]) -> Iterator[Reject]:
    for reason, number in sorted(counts.items()):
        yield Reject(None, reason, f"{_COUNTED[reason]}: {number:,}")


def _pages(content: Iterable[bytes], most: int) -> Iterator[bytes | None]:
    """What is before the first page, then each page; None for one over `most` bytes.

    What is left where damage took a page's tag comes as a page does, and is none once parsed.
    Raises Broken where the dump breaks off.
    """
    cut, headed = _Cut(most), False
    for piece in _pieces(content, most):
        if piece is not None and piece.startswith(b"<page") and (cut.holds() or not headed):
            yield cut.taken()
            headed = True
        cut.add(piece)
        if headed and piece is not None and piece.endswith(b"</page>"):
            yield cut.taken()
    rest = cut.taken()
    if rest is None:
        raise Broken("too_large", f"no page ends within {most:,} bytes")
    if not headed:
        yield rest
    if b"</mediawiki>" not in rest:
        raise Broken("truncated", "the dump breaks off")
    if rest.startswith(b"<page"):
        yield rest


class _Cut:
    """A page as its pieces come, of which the latest revision is kept: a page's whole history may
    be larger than memory."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._clear()

    def _clear(self) -> None:
        self._around: list[bytes] = []
        self._revision, self._written, self._size, self._overlong = b"", b"", 0, False

    def holds(self) -> bool:
        return bool(self._around or self._revision or self._overlong)

    def add(self, piece: bytes | None) -> None:
        if piece is None or self._size > self._most:
            self._overlong = True
            self._around.clear()
        elif piece.startswith(b"<revision"):
            found = _TIMESTAMP.search(piece)
            written = found[1] if found else b""
            if written >= self._written:
                self._revision, self._written = piece, written
        elif piece.strip():
            self._around.append(piece)
            self._size += len(piece)

    def taken(self) -> bytes | None:
        """The page, after which the next one begins."""
        page = b"".join([*self._around[:1], self._revision, *self._around[1:]])
        overlong = self._overlong
        self._clear()
        return None if overlong else page


def _pieces(content: Iterable[bytes], most: int) -> Iterator[bytes | None]:
    """The content, cut before pages and revisions and after them; None for a piece over `most`."""
    held, overlong = bytearray(), False
    for block in content:
        start, searched = 0, max(0, len(held) - _LONGEST_TAG + 1)
        held += block
        for tag in _TAG.finditer(held, searched):
            end = tag.end() if tag[0].startswith(b"</") else tag.start()
            if end > start:
                yield None if overlong or end - start > most else bytes(held[start:end])
                start, overlong = end, False
        del held[:start]
        if len(held) > most:
            overlong = True
            del held[: 1 - _LONGEST_TAG]
    if held:
        yield None if overlong else bytes(held)


class _Site:
    """What a dump says of all its pages, and how they are parsed."""

    def __init__(self, head: bytes) -> None:
        from lxml import etree

        if head.startswith(_UTF_16):
            raise Broken("unreadable", "the dump is in UTF-16 where UTF-8 was expected")
        self.base = self.language = ""
        root = None
        reader = etree.XMLPullParser(
            events=("start", "end"), resolve_entities=False, no_network=True, huge_tree=True
        )
        try:
            reader.feed(head)
            for event, element in reader.read_events():
                if root is None:
                    root = element
                    _check_root(root)
                elif event == "end" and etree.QName(element).localname == "base":
                    self.base = (element.text or "").rsplit("/", 1)[0] + "/"
        except etree.XMLSyntaxError as error:
            raise Broken("unreadable", f"XML: {error}") from error
        if root is None:
            raise Broken("unreadable", "no MediaWiki dump: it has no root")
        self.language = root.get("{http://www.w3.org/XML/1998/namespace}lang") or ""
        # A page alone has lost the names of its root's namespaces.
        around = etree.Element(root.tag, nsmap=root.nsmap)
        around.text = "\n"
        self._before, self._after = etree.tostring(around).split(b"\n")
        self._parser = etree.XMLParser(
            encoding=root.getroottree().docinfo.encoding,
            resolve_entities=False,
            no_network=True,
            huge_tree=True,
        )

    def parsed(self, page: bytes) -> Any:
        """The element of a page; None where there is none. Raises XMLSyntaxError."""
        from lxml import etree

        whole = self._before + page + self._after
        return etree.fromstring(whole, self._parser).find("{*}page")


def _check_root(root: Any) -> None:
    from lxml import etree

    if root.getroottree().docinfo.doctype:
        raise Broken("unreadable", "the dump declares a document type")
    name = etree.QName(root).localname
    if name != "mediawiki":
        raise Broken("unreadable", f"no MediaWiki dump: its root is <{name}>")


def _item(position: int, page: bytes | None, site: _Site, limit: int) -> Record | Reject:
    from lxml import etree

    if page is None:
        return Reject(position, "too_large", f"a page is over {_MARKUP_PER_TEXT * limit:,} bytes")
    try:
        element = site.parsed(page)
        if element is None:
            return Reject(position, "unreadable", "what is left of a page without its beginning")
        return _page(position, element, site, limit)
    except etree.XMLSyntaxError as error:
        return not_utf8(position, page) or Reject(position, "unreadable", f"XML: {error}")
    except Exception as error:
        # The parser of foreign markup: whatever a page does to it, it is that page's row.
        return Reject(position, "unreadable", f"wikitext: {type(error).__name__}: {error}")


def _page(position: int, page: Any, site: _Site, limit: int) -> Record | Reject:
    title = _text(page, "title")
    if _text(page, "ns") not in ("", "0"):
        return Reject(position, "namespace", f"{title}: namespace {_text(page, 'ns')}")
    if page.find("{*}redirect") is not None:
        return Reject(position, "redirect", title)
    revision = page.find("{*}revision")
    if revision is None:
        return Reject(position, "no_text", f"{title}: no revision")
    markup = _text(revision, "text")
    if len(markup) > limit:
        return Reject(position, "too_large", f"{title} is over {limit:,} characters")
    address = quote(title.replace(" ", "_"), safe="/:@!$&'()*+,;=~")
    fields: dict[str, Any] = {
        "text": plain_text(markup),
        "id": _text(page, "id"),
        "url": site.base + address if site.base else None,
        "language": site.language or None,
        "title": title,
        "revision": _text(revision, "id"),
    }
    return Record(position, fields, _text(revision, "timestamp") or None)


def _text(element: Any, name: str) -> str:
    return element.findtext(f"{{*}}{name}") or ""


def plain_text(markup: str) -> str:
    """Wikitext as the text a reader sees, headings and list items on lines of their own."""
    import mwparserfromhell
    from mwparserfromhell.nodes import Tag, Template, Wikilink

    code = mwparserfromhell.parse(markup, skip_style_tags=True)
    for node in code.filter(recursive=False):
        file_link = isinstance(node, Wikilink) and _NAMESPACED.match(str(node.title))
        dropped = isinstance(node, Tag) and str(node.tag).strip().lower() in _DROPPED_TAGS
        if file_link or dropped or isinstance(node, Template):
            code.remove(node)
    text = code.strip_code(normalize=True, collapse=True).replace("'''", "").replace("''", "")
    return _BLANK_LINES.sub("\n\n", _AROUND_BREAKS.sub("\n", text)).strip()
