"""One pass over the bytes of an HTML page: its blocks, how much of each is link, how deep it is.

No tree is built: end tags are matched to the nearest open block of their name, as the HTML
standard's "element in scope" does for well-formed pages and nearly does for others. So a page can
be relieved of its navigation, and one that is too deep refused, before a parser sees it.
"""

from __future__ import annotations

import numpy as np
from numba import njit

START, TAG_END, END, KIND, LETTERS, LINKED = range(6)
"""The columns of a block: the bytes where its start tag starts and ends and where it ends itself,
its kind, the letters and digits inside, and those of them in links."""

P, TD, TABLE, NAV, ASIDE, FOOTER, DIALOG, MAIN = range(1, 9)
"""The kinds of blocks that are told apart; those of _OTHERS follow."""

_OTHERS = [
    *("article", "center", "details", "div", "dl", "form"),
    *("header", "menu", "ol", "section", "ul"),
]
_OPEN_AT_ONCE = 1024
_LOOK_BACK = 64

# What else an element can be: empty, without markup inside, what ends an open paragraph as blocks
# do, what ends an open cell, what only marks words in a line.
_KIND, _VOID, _RAW, _ENDS_P, _ENDS_TD, _A, _BODY, _INLINE = 31, 32, 64, 128, 256, 512, 1024, 2048
_ELEMENTS = {
    P: "p",
    TD | _ENDS_TD: "td",
    TABLE: "table",
    NAV: "nav",
    ASIDE: "aside",
    FOOTER: "footer",
    DIALOG: "dialog",
    MAIN: "main",
    **dict(enumerate(_OTHERS, MAIN + 1)),
    _VOID: "area base br col embed img input link meta source track wbr",
    _VOID | _ENDS_P: "hr",
    _RAW: "iframe noembed noframes script style",
    _RAW | _ENDS_P: "textarea title xmp",
    _ENDS_P: "address blockquote figure fieldset h1 h2 h3 h4 h5 h6 pre",
    _ENDS_TD: "tbody tfoot th thead tr",
    _A | _INLINE: "a",
    _INLINE: "abbr b bdi bdo big cite code dfn em font i ins mark nobr s samp small span strike "
    "strong tt u var",
    _BODY: "body",
}


def _hashed(elements: dict[int, str], slots: int) -> tuple[np.ndarray, np.ndarray]:
    """An open-addressing table from tag names, packed as `_name` packs them, to what they are."""
    names, values = np.zeros(slots, np.uint64), np.zeros(slots, np.int64)
    for value, tags in elements.items():
        for tag in tags.split():
            name = int.from_bytes(tag.encode()[:8], "big")
            slot = name % slots
            while names[slot]:
                slot = (slot + 1) % slots
            names[slot], values[slot] = name, value
    return names, values


_NAMES, _VALUES = _hashed(_ELEMENTS, 251)


@njit(cache=True, nogil=True)
def _name(data: np.ndarray, at: int) -> tuple[np.uint64, int]:
    """The tag name at `at`, lower-case, its first eight bytes packed; and where it ends."""
    name = np.uint64(0)
    size = 0
    while at < data.size:
        byte = data[at]
        if byte <= 32 or byte == 62 or byte == 47:
            break
        if 65 <= byte <= 90:
            byte |= 32
        if size < 8:
            name = (name << np.uint64(8)) | np.uint64(byte)
        size += 1
        at += 1
    return name, at


@njit(cache=True, nogil=True)
def _end_of_tag(data: np.ndarray, at: int) -> tuple[int, int, bool]:
    """Behind the `>` of the tag whose name ends at `at`; its attributes; whether href is one."""
    attributes = 0
    href = False
    while at < data.size and data[at] != 62:
        if data[at] <= 32 or data[at] == 47:
            at += 1
            continue
        attributes += 1
        name, at = _attribute(data, at)
        href |= name == 0x68726566
        while at < data.size and data[at] <= 32:
            at += 1
        if at < data.size and data[at] == 61:
            at = _value(data, at + 1)
    return min(at + 1, data.size), attributes, href


@njit(cache=True, nogil=True)
def _attribute(data: np.ndarray, at: int) -> tuple[np.uint64, int]:
    name = np.uint64(0)
    first = at
    while at < data.size:
        byte = data[at]
        if byte <= 32 or byte == 62 or byte == 47 or (byte == 61 and at > first):
            break
        name = (name << np.uint64(8)) | np.uint64(byte | 32)
        at += 1
    return name, at


@njit(cache=True, nogil=True)
def _value(data: np.ndarray, at: int) -> int:
    """Where the attribute's value that follows `=` ends."""
    while at < data.size and data[at] <= 32:
        at += 1
    if at < data.size and (data[at] == 34 or data[at] == 39):
        quote = data[at]
        at += 1
        while at < data.size and data[at] != quote:
            at += 1
        return at + 1
    while at < data.size and data[at] > 32 and data[at] != 62:
        at += 1
    return at


@njit(cache=True, nogil=True)
def _end_of_raw(data: np.ndarray, at: int, raw: np.uint64) -> int:
    """Where the end tag of a script, style or other element without markup starts."""
    while at + 1 < data.size:
        if data[at] == 60 and data[at + 1] == 47 and _name(data, at + 2)[0] == raw:
            return at
        at += 1
    return data.size


@njit(cache=True, nogil=True)
def _end_of_comment(data: np.ndarray, at: int) -> int:
    """Behind the comment or declaration whose `<` is at `at`."""
    if at + 3 < data.size and data[at + 1] == 33 and data[at + 2] == 45 and data[at + 3] == 45:
        at += 2
        while at + 2 < data.size:
            if data[at] == 45 and data[at + 1] == 45 and data[at + 2] == 62:
                return at + 3
            at += 1
        return data.size
    while at < data.size and data[at] != 62:
        at += 1
    return min(at + 1, data.size)


@njit(cache=True, nogil=True)
def _element(name: np.uint64) -> int:
    """What _ELEMENTS says of a packed name; 0 for all others."""
    slot = np.int64(name % np.uint64(_NAMES.size))
    while _NAMES[slot]:
        if _NAMES[slot] == name:
            return _VALUES[slot]
        slot = (slot + 1) % _NAMES.size
    return 0


@njit(cache=True, nogil=True)
def _to_markup(data: np.ndarray, at: int) -> tuple[int, int]:
    """The place of the next `<`, and the letters before it."""
    letters = 0
    while at < data.size and data[at] != 60:
        byte = data[at]
        if byte == 38:
            at = _end_of_reference(data, at)
            continue
        if 97 <= (byte | 32) <= 122 or 48 <= byte <= 57 or (byte >= 195 and byte != 226):
            letters += 1
        at += 1
    return at, letters


@njit(cache=True, nogil=True)
def _end_of_reference(data: np.ndarray, at: int) -> int:
    """Behind the character reference whose `&` is at `at`, or behind the `&` if it is none."""
    for end in range(at + 1, min(at + 12, data.size)):
        byte = data[end]
        if byte == 59:
            return end + 1
        if not (48 <= byte <= 57 or 97 <= (byte | 32) <= 122 or byte == 35):
            break
    return at + 1


@njit(cache=True, nogil=True)
def _to_close(open_: np.ndarray, size: int, kind: int) -> int:
    """How many blocks stay open behind the end tag of a block; all of them if it closes none.

    Cells and tables bound the search, as in the standard; so does a fixed number of steps, for
    the sake of pages made to be slow.
    """
    if not kind:
        return size
    for k in range(size - 1, max(size - 1 - _LOOK_BACK, -1), -1):
        if open_[k, KIND] == kind:
            return k
        if open_[k, KIND] == TABLE or (open_[k, KIND] == TD and kind != TABLE):
            break
    return size


@njit(cache=True, nogil=True)
def _close(
    blocks: np.ndarray, count: int, open_: np.ndarray, size: int, keep: int,
    start: int, end: int, letters: int, linked: int,
) -> int:  # fmt: skip
    """Moves the open blocks from `keep` on to `blocks`; returns how many there are.

    The outermost ends at `end`, those inside it, whose end tags are missing, at `start`.
    """
    for k in range(size - 1, keep - 1, -1):
        blocks[count] = open_[k]
        blocks[count, END] = end if k == keep else start
        blocks[count, LETTERS] = letters - open_[k, LETTERS]
        blocks[count, LINKED] = linked - open_[k, LINKED]
        count += 1
    return count


@njit(cache=True, nogil=True)
def _ended_by(open_: np.ndarray, size: int, element: int) -> int:
    """How many blocks stay open when `element` starts: a paragraph and a cell may end."""
    if size and open_[size - 1, KIND] == P and element & (_KIND | _ENDS_P | _ENDS_TD):
        size -= 1
    if size and open_[size - 1, KIND] == TD and element & _ENDS_TD:
        size -= 1
    return size


@njit(cache=True, nogil=True)
def scan_markup(data: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The blocks of a page in the order in which they end, what is no text, and some totals.

    `data` is UTF-8 (uint8), `most` the number of `<` in it. Returns

    - int64 (blocks, 6), whose columns START to LINKED are named above. Blocks that never end are
      left out;
    - int64 (marks, 2), in order: where comments, scripts and the tags of inline elements start and
      end, without which the page has the same text;
    - int64 (5): the letters of the page, those in links, the most elements ever open if only end
      tags close them, the most attributes of one tag, and where the start tag of the body ends
      (0 if there is none).

    Letters are characters but for ASCII punctuation and blanks, character references, and
    characters that UTF-8 starts with C2 or E2, most of which are punctuation too.
    """
    blocks = np.empty((most + 1, 6), np.int64)
    marks = np.empty((most + 1, 2), np.int64)
    open_ = np.empty((_OPEN_AT_ONCE, 6), np.int64)
    count = marked = size = at = letters = linked = depth = deepest = attributes = body = 0
    link = -1  # how many blocks were open where the open link starts; -1 outside of links
    while at < data.size:
        at, found = _to_markup(data, at)
        letters += found
        linked += found * (link >= 0)
        start = at
        after = data[at + 1] if at + 1 < data.size else 0
        ends = after == 47
        if after == 33 or after == 63:
            at = _end_of_comment(data, at)
            marks[marked] = start, at
            marked += 1
            continue
        if not ends and not 97 <= (after | 32) <= 122:
            at += 1
            continue
        name, at = _name(data, at + 2 if ends else at + 1)
        at, found, href = _end_of_tag(data, at)
        element = _element(name)
        depth += -1 if ends else not element & _VOID
        deepest = max(deepest, depth)
        attributes = max(attributes, found)
        keep = _ended_by(open_, size, element)
        if ends:
            keep = _to_close(open_, size, element & _KIND)
        elif element & _RAW:
            at = _end_of_raw(data, at, name)
        if element & _INLINE or element == _RAW:
            marks[marked] = start, at
            marked += 1
        if keep < size:
            end = at if ends else start
            count = _close(blocks, count, open_, size, keep, start, end, letters, linked)
            size = keep
        if element & _A:
            link = size if href and not ends else -1
        elif size < link:
            link = -1
        if element == _BODY and not ends:
            body = at
        if element & _KIND and not ends and size < _OPEN_AT_ONCE:
            open_[size] = start, at, 0, element & _KIND, letters, linked
            size += 1
    return blocks[:count], marks[:marked], np.array((letters, linked, deepest, attributes, body))


@njit(cache=True, nogil=True)
def copy_without(data: np.ndarray, cuts: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """`data` without the bytes from start to end of each row of two int64 (rows, 2).

    Each is in order of its starts; rows may lie inside others. One that ends before it starts cuts
    nothing.
    """
    out = np.empty(data.size, np.uint8)
    size = at = i = j = 0
    while i < len(cuts) or j < len(marks):
        if j == len(marks) or (i < len(cuts) and cuts[i, 0] <= marks[j, 0]):
            start, end = cuts[i]
            i += 1
        else:
            start, end = marks[j]
            j += 1
        for k in range(at, start):
            out[size] = data[k]
            size += 1
        at = max(at, start, end)
    for k in range(at, data.size):
        out[size] = data[k]
        size += 1
    return out[:size]
