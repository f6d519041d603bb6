from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tasks.kernels.markup import copy_without, scan_markup
from tests.bench.inputs import html_pages
from tests.shared_data import shared_data


def names(text: str) -> set[str]:
    return set(text.split(" "))


BLOCKS = {"p": 1, "td": 2, "table": 3, "nav": 4, "aside": 5, "footer": 6, "dialog": 7, "main": 8}
BLOCKS |= {
    name: 9 + place
    for place, name in enumerate(
        ["article", "center", "details", "div", "dl", "form", "header", "menu", "ol", "section"]
    )
} | {"ul": 19}
VOID = names("area base br col embed hr img input link meta source track wbr")
UNSEEN = names("iframe noembed noframes script style")
RAW = UNSEEN | {"textarea", "title", "xmp"}
ENDS_TD = names("td tbody tfoot th thead tr")
ENDS_P = {*BLOCKS, *ENDS_TD, *RAW - UNSEEN, "hr", "pre", "address", "blockquote", "figure"}
ENDS_P |= {"fieldset", "h1", "h2", "h3", "h4", "h5", "h6"}
INLINE = names("a abbr b bdi bdo big cite code dfn em font i ins mark nobr s samp small span")
INLINE |= names("strike strong tt u var")
SHORT = {name[:8]: name for name in {*VOID, *RAW, *ENDS_P, *INLINE, *BLOCKS, "body"}}

COMMENT = re.compile(rb"<!--.*?-->|<!--.*|<[!?][^>]*>?", re.S)
TAG = re.compile(rb"<(?:(?=[A-Za-z])|(/))([^\x00-\x20>/]*)")
ATTRIBUTE = re.compile(
    rb"[\x00-\x20/]*([^\x00-\x20>/][^\x00-\x20>/=]*)[\x00-\x20]*"
    rb"(=[\x00-\x20]*(?:\"[^\"]*(?:\"|\Z)|'[^']*(?:'|\Z)|[^\x00-\x20>]*))?"
)
TEXT = re.compile(rb"&[0-9A-Za-z#]{0,10};|[0-9A-Za-z\xc3-\xe1\xe3-\xff]|.", re.S)


def letters_of(text: bytes) -> int:
    return sum(piece[:1] != b"&" and is_letter(piece[0]) for piece in TEXT.findall(text))


def is_letter(byte: int) -> bool:
    return chr(byte).isalnum() if byte < 128 else byte >= 0xC3 and byte != 0xE2


def in_python(html: bytes) -> tuple[list[list[int]], list[list[int]], list[int]]:
    """What `scan_markup` returns, by regular expressions."""
    blocks, marks, stack = [], [], []
    at = letters = linked = depth = deepest = attributes = body = 0
    link = None
    while at < len(html):
        start = html.find(b"<", at)
        start = len(html) if start < 0 else start
        found = letters_of(html[at:start])
        letters, linked, at = letters + found, linked + found * (link is not None), start
        if comment := COMMENT.match(html, start):
            # A comment may be as short as `<!-->`.
            at = start + 5 if html.startswith(b"<!-->", start) else comment.end()
            marks.append([start, at])
            continue
        tag = TAG.match(html, start)
        if tag is None:
            at += 1
            continue
        ends, name, at = (
            bool(tag[1]),
            SHORT.get(tag[2][:8].lower().decode("latin-1"), ""),
            tag.end(),
        )
        count, href = 0, False
        while attribute := ATTRIBUTE.match(html, at):
            count, href = count + 1, href or attribute[1].lower() == b"href"
            at = attribute.end()
        at = html.find(b">", at) + 1 if b">" in html[at:] else len(html)
        depth += -1 if ends else name not in VOID
        deepest, attributes = max(deepest, depth), max(attributes, count)
        keep = len(stack)
        if ends:
            for place in (
                range(len(stack) - 1, max(len(stack) - 65, -1), -1) if name in BLOCKS else ()
            ):
                if stack[place][0] == name:
                    keep = place
                    break
                if stack[place][0] == "table" or (stack[place][0] == "td" and name != "table"):
                    break
        else:
            keep -= bool(keep and stack[keep - 1][0] == "p" and name in ENDS_P)
            keep -= bool(keep and stack[keep - 1][0] == "td" and name in ENDS_TD)
            if name in RAW:
                end = re.compile(rb"</" + re.escape(tag[2][:8]) + rb"(?=[\x00-\x20>/]|\Z)", re.I)
                closing = end.search(html, at) if len(tag[2]) <= 8 else None
                at = closing.start() if closing else len(html)
        if name in INLINE | UNSEEN:
            marks.append([start, at])
        for place in range(len(stack) - 1, keep - 1, -1):
            kind, opened, opened_end, had, had_linked = stack[place]
            end_at = at if ends and place == keep else start
            row = [opened, opened_end, end_at, BLOCKS[kind], letters - had, linked - had_linked]
            blocks.append(row)
        del stack[keep:]
        if name == "a":
            link = len(stack) if href and not ends else None
        elif link is not None and len(stack) < link:
            link = None
        if name == "body" and not ends:
            body = at
        if name in BLOCKS and not ends and len(stack) < 1024:
            stack.append((name, start, at, letters, linked))
    return blocks, marks, [letters, linked, deepest, attributes, body]


def by_kernel(html: bytes) -> tuple[list[list[int]], list[list[int]], list[int]]:
    found = scan_markup(np.frombuffer(html, np.uint8), html.count(b"<"))
    blocks, marks, totals = (array.tolist() for array in found)
    return blocks, marks, totals


MARKUP = """<p> </p> <td> </td> <tr> <table> </table> <div> </div> <ul> </ul> <li> <a> </a> <b>
</b> <br> <hr> <h1> <body> <script> </script> <textarea> </textarea> <a\thref=x> <a\thref='>
<div\tclass="x> > < </ / = ' " & &amp; &eacute &#x3B1; <!-- --> <!--> <? <p/ <P\tid=a/> A z 7 . é
„ € 日 😀"""
PIECES = st.sampled_from([" ", "\n", *re.split("[ \n]", MARKUP)])


@settings(max_examples=500, deadline=None)
@given(st.lists(PIECES | st.text(max_size=3), max_size=40).map("".join))
@example("<table><td><p>a<td>b</p></table></td>c")
@example("<a href=x>a<div>b</div>c<p>d</a>e")
def test_the_kernel_agrees_with_plain_python_on_random_markup(text):
    html = text.encode("utf-8", "replace")
    assert by_kernel(html) == in_python(html)


def test_the_kernel_agrees_with_plain_python_on_real_pages():
    shared_data("deb")
    for path, html in html_pages(8)[::6]:
        assert by_kernel(html) == in_python(html), path


def test_a_block_knows_its_letters_and_those_in_links():
    html = b"<body><div>ab, <a href=x>cd&nbsp;1</a></div><p>no end tag"
    blocks, _, totals = by_kernel(html)
    assert blocks == [[6, 11, 44, BLOCKS["div"], 5, 3]]
    assert totals == [13, 3, 3, 1, 6]


@pytest.mark.parametrize("row", [b"<div>", b"<p>", b"</div>", b"<", b"</", b"<!--", b"<a b=", b"&"])
def test_time_is_linear_in_hostile_markup(row):
    scan_markup(np.frombuffer(row * 300_000, np.uint8), 300_000)


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=30),
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=5),
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=5),
)
def test_what_is_cut_is_left_out_and_nothing_else_even_where_rows_end_before_they_start(
    data, cuts, marks
):
    size = len(data)
    spans = [sorted((min(a, size), min(b, size)) for a, b in rows) for rows in (cuts, marks)]
    gone = {place for pairs in spans for a, b in pairs for place in range(a, b)}
    arrays = [np.array(pairs, np.int64).reshape(-1, 2) for pairs in spans]
    kept = copy_without(np.frombuffer(data, np.uint8), *arrays).tobytes()
    assert kept == bytes(byte for place, byte in enumerate(data) if place not in gone)
