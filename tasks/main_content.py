"""What of a page is its text: the page's own HTML without navigation, adverts and the like.

The rules are those on which extractors agree (Bevendorff et al., "An empirical comparison of web
content extraction algorithms", SIGIR 2023): a block that is nearly all links is navigation, so is
one that its element, role, class or id calls so, and `main` is what it says. They are applied to
the bytes of the page, which costs a fraction of what walking its tree does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Survey:
    """What one pass over a page finds.

    `blocks` is int64 (blocks, 6) and `marks` int64 (marks, 2), as `tasks.kernels.markup` describes;
    `letters` counts the page's, `linked` those in links; `depth` is an upper bound of its elements'
    nesting, `attributes` the most of one tag, `body` where the body's content starts.
    """

    blocks: npt.NDArray[np.int64]
    marks: npt.NDArray[np.int64]
    letters: int
    linked: int
    depth: int
    attributes: int
    body: int


def survey(html: bytes) -> Survey:
    """One pass over a page in UTF-8."""
    from tasks.kernels.markup import scan_markup

    blocks, marks, totals = scan_markup(np.frombuffer(html, np.uint8), html.count(b"<"))
    return Survey(blocks, marks, *totals.tolist())


def prune(html: bytes, page: Survey, max_link_share: float) -> tuple[bytes, int]:
    """`html` without the blocks that are no main content, and the unlinked letters it still holds.

    Left out are blocks of which links make up `max_link_share` or more (above 1: none), and those
    that are called navigation or hidden. Where there is one `main` with a quarter of the page's
    text or more, the rest of the body is left out too. Comments, scripts and the tags of inline
    elements, which are no text, go as well.
    """
    from tasks.kernels.markup import END, LETTERS, LINKED, START, copy_without

    columns = page.blocks.T
    drop = (columns[LINKED] >= max_link_share * columns[LETTERS]) & (columns[LINKED] > 0)
    drop |= _called_navigation(html, page)
    found = page.blocks[drop][:, (START, END, LETTERS, LINKED)]
    found = found[found[:, 0].argsort()]
    first, last, letters, linked = _main(page, len(html))
    inside = (found[:, 0] >= first) & (found[:, 1] <= last)
    at, unlinked = first, letters - linked
    # Without a body tag nobody knows where the head ends.
    cuts = [[min(page.body or first, first), first]]
    for start, end, letters, linked in found[inside].tolist():
        if start >= at:
            cuts.append([start, end])
            at, unlinked = end, unlinked - letters + linked
    cuts.append([last, len(html)])
    data = np.frombuffer(html, np.uint8)
    return copy_without(data, np.array(cuts, np.int64), page.marks).tobytes(), unlinked


def _main(page: Survey, size: int) -> tuple[int, int, int, int]:
    """Where the only `main` starts and ends, its letters and linked letters; or else the page's."""
    from tasks.kernels.markup import END, KIND, LETTERS, LINKED, MAIN, START

    found = page.blocks[page.blocks[:, KIND] == MAIN]
    if len(found) == 1:
        start, end, letters, linked = found[0, [START, END, LETTERS, LINKED]].tolist()
        if 4 * (letters - linked) >= page.letters - page.linked:
            return start, end, letters, linked
    return 0, size, page.letters, page.linked


def _called_navigation(html: bytes, page: Survey) -> npt.NDArray[np.bool_]:
    """Which blocks are navigation or the like by their element or the attributes of its tag.

    A block that holds half of the page or more is the page, whatever it is called.
    """
    from tasks.kernels.markup import DIALOG, KIND, LETTERS, NAV, START, TAG_END

    columns = page.blocks.T
    called = (columns[KIND] >= NAV) & (columns[KIND] <= DIALOG)
    named = np.flatnonzero(columns[TAG_END] - columns[START] >= len("<p id=ad>"))
    starts, ends = columns[START][named].tolist(), columns[TAG_END][named].tolist()
    tags = (html[start : min(end, start + _TAG)] for start, end in zip(starts, ends, strict=True))
    called[named] |= np.fromiter(map(_is_named, tags), bool, len(named))
    called &= 2 * columns[LETTERS] < page.letters
    return called


# What is read of a tag, since many are kept.
_TAG = 512


@lru_cache(maxsize=65536)
def _is_named(tag: bytes) -> bool:
    """Whether a start tag's role, class or id says that its element is no main content, or another
    attribute hides it."""
    if _HIDDEN.search(tag):
        return True
    for name, *values in _NAMING.findall(tag):
        value = b"".join(values).lower()
        if name.lower() == b"role":
            if value in _ROLES:
                return True
        elif _BOILERPLATE.search(value):
            return True
    return False


_HIDDEN = re.compile(
    rb"\s(?:hidden(?=[\s=/>])|aria-hidden\s*=\s*[\"']?true|"
    rb"style\s*=\s*(?:\"[^\"]*?|'[^']*?)(?:display\s*:\s*none|visibility\s*:\s*hidden))",
    re.I,
)
_NAMING = re.compile(
    rb"""\s(role|class|id)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""", re.I
)  # fmt: skip
_ROLES = frozenset(
    b"navigation banner contentinfo search complementary menu menubar dialog alertdialog".split()
)
"""Landmarks of WAI-ARIA 1.2 beside the main one, and what opens over it."""
_BOILERPLATE = re.compile(
    rb"(?:^|\s)(?!(?:has|no|with|without)[_-])(?:\w+[_-])*?"
    rb"(?:ads?|advert(?:s|ise(?:ment)?s?|ising)?|bread-?crumbs?|consent|cookies?|copyright|footer|"
    rb"hidden|invisible|lightbox|login|menu|modal|nav|nav-?(?:bar|footer|header)|navigation|"
    rb"newsletter|pager|pagination|popup|promo(?:ted|tion)?|recommended|related|search|share|"
    rb"sharing|side-?bar|sign-?(?:in|up)|skip|social|sponsor(?:ed|s)?|subscribe|toolbar)"
    rb"(?:[_-](?:area|banner|bar|block|box|buttons?|container|form|inner|items?|links?|list|notice|"
    rb"outer|panel|section|widgets?|wrap(?:per)?))?(?=$|\s)"
)
"""A name whose last word is one of these, but for what only says how such a part is laid out."""
