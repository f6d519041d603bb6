"""MediaWiki XML dumps (Wikipedia's `pages-articles`) as records: one an article, as plain text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote

from tasks.importing.readers import Broken, Record, Reject

META = ("title", "revision")

# What is left of tables, references and files is no prose.
_DROPPED_TAGS = frozenset(["ref", "references", "gallery", "table", "math", "timeline", "imagemap"])
_NAMESPACED = re.compile(r"^\s*:?\s*[^:|\[\]{}]{2,24}:\S")
_AROUND_BREAKS = re.compile(r"[ \t]*\n[ \t]*")
# Bytes of a dump for one of text at most: six for an escaped quotation mark, and what is around.
_MARKUP_PER_TEXT = 8
_BLANK_LINES = re.compile(r"\n{3,}")


def mediawiki_records(content: Iterable[bytes], limit: int) -> Iterator[Record | Reject]:
    """The articles of a dump, streamed; positions count its pages.

    `id` is the page's number, `url` follows from the dump's `siteinfo`, `language` from its root.
    Set aside: pages of other namespaces (`namespace`), redirects (`redirect`), and those over the
    limit. Markup goes: templates, tables, references, files and categories with what they hold.

    Raises Broken for what is no such dump, breaks off, or declares a document type: dumps have
    none, and entities could be made to grow without bound.
    """
    from lxml import etree

    parser = etree.XMLPullParser(
        events=("start", "end"), resolve_entities=False, no_network=True, huge_tree=True
    )
    site: dict[str, str] = {}
    position = 0
    try:
        for element, event, name in _events(parser, content, _MARKUP_PER_TEXT * limit):
            if event == "start":
                _check_root(element, name, site)
            elif name == "base":
                site["base"] = (element.text or "").rsplit("/", 1)[0] + "/"
            elif name == "page":
                position += 1
                yield _page(position, element, site, limit)
                element.clear()
                while element.getprevious() is not None:
                    del element.getparent()[0]
    except etree.XMLSyntaxError as error:
        raise Broken("unreadable", f"XML: {error}") from error


def _events(parser: Any, content: Iterable[bytes], most: int) -> Iterator[tuple[Any, str, str]]:
    """Elements as they begin and end, with their names. Raises Broken where the parser would come
    to hold more than `most` bytes, since no page has ended for so long."""
    from lxml import etree

    held = 0
    for block in content:
        parser.feed(block)
        held += len(block)
        for event, element in parser.read_events():
            name = etree.QName(element).localname
            if event == "end" and name == "page":
                held = 0
            yield element, event, name
        if held > most:
            raise Broken("too_large", f"no page ends within {most:,} bytes")
    parser.close()


def _check_root(element: Any, name: str, site: dict[str, str]) -> None:
    if element.getparent() is not None:
        return
    if element.getroottree().docinfo.doctype:
        raise Broken("unreadable", "the dump declares a document type")
    if name != "mediawiki":
        raise Broken("unreadable", f"no MediaWiki dump: its root is <{name}>")
    site["language"] = element.get("{http://www.w3.org/XML/1998/namespace}lang") or ""


def _page(position: int, page: Any, site: dict[str, str], limit: int) -> Record | Reject:
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
        "url": site["base"] + address if site.get("base") else None,
        "language": site.get("language") or None,
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
