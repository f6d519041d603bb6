"""What text signals look for: the kinds of characters, the stop words and the phrases."""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np

from tasks.kernels import text_signals as ts

UNSPACED_SCRIPTS = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u0f00-\u0fff"  # Tibetan
    "\u1000-\u109f"  # Myanmar
    "\u1780-\u17ff"  # Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # kana and iteration marks
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
"""The scripts that put no space between words, as the inside of a character class."""

SPACED_MARKS = (
    ".!?\u037e\u0589\u061d\u061e\u061f\u06d4\u0964\u0965\u1362\u1367\u203c\u203d\u2047-\u2049"
)
UNSPACED_MARKS = "\u0f0d\u0f0e\u104a\u104b\u17d4\u17d5\u3002\uff01\uff0e\uff1f\uff61"
"""Terminal marks: Unicode's Sentence_Terminal (PropList.txt) for living scripts, with the Greek
question mark and the Tibetan shad; those of unspaced scripts apart."""

CLOSING_MARKS = "\"'”’»›」』）)]"
"""What may follow a terminal mark within its sentence."""

MARKS_AROUND = ".,;:!?\"'()[]“”‘’«»*_"
"""What a stop word may stand beside."""

BULLETS = "•‣◦▪●*-"

SYMBOLS = "\n#{.…"

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
"""Gopher's (Rae et al. 2021, appendix A.1.1)."""

PHRASES = (
    "javascript",
    "lorem ipsum",
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
"""C4's, looked for in each line whatever the case of their letters. From the third on they are of
policies, as the code that made C4 has them."""

RARE_LETTERS = "fjkp"
"""Letters of which each phrase has one, and other text few."""

_LAST_PLANE = 0x40000  # nothing behind it is of any kind: unassigned, tags and private use


@lru_cache(maxsize=1)
def tables() -> ts.Tables:
    """What the kernel looks for."""
    stop_words = [int.from_bytes(word.encode(), "big") for word in STOP_WORDS]
    longest = max(map(len, PHRASES))
    phrases = [list(phrase.ljust(longest, "\0").encode()) for phrase in PHRASES]
    rare = [min(map(phrase.index, set(RARE_LETTERS) & set(phrase))) for phrase in PHRASES]
    return ts.Tables(
        character_kinds(),
        np.array(stop_words, np.int64),
        np.array(phrases, np.int32),
        np.array(rare, np.int64),
    )


def character_kinds() -> ts.Kinds:
    """The kinds of each of the 0x110000 code points. Spaces, letters and digits are Python's
    `isspace`, `isalpha` and `isalnum`, so those of its Unicode version."""
    text = "".join(map(chr, range(_LAST_PLANE)))
    table = np.zeros(0x110000, dtype=np.uint16)
    known = table[:_LAST_PLANE]
    known |= ts.LETTER * np.fromiter(map(str.isalpha, text), np.uint16, len(text))
    known |= ts.ALPHANUMERIC * np.fromiter(map(str.isalnum, text), np.uint16, len(text))
    for kind, inside in (
        (ts.SPACE, r"\s"),
        (ts.UNSPACED, UNSPACED_SCRIPTS),
        (ts.SPACED_MARK, SPACED_MARKS),
        (ts.UNSPACED_MARK, UNSPACED_MARKS),
        (ts.CLOSING, re.escape(CLOSING_MARKS)),
        (ts.AROUND, re.escape(MARKS_AROUND)),
        (ts.BULLET, re.escape(BULLETS)),
        (ts.RARE, RARE_LETTERS + RARE_LETTERS.upper()),
        (ts.SYMBOL, re.escape(SYMBOLS)),
    ):
        known[[found.start() for found in re.finditer(f"[{inside}]", text)]] |= kind
    return table
