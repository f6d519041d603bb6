"""Words of a text, folded so that spelling variants agree, and the hashes of their n-grams.

A table folds each code point by itself: compatibility decomposition and case folding, applied
until nothing changes, without Unicode's default ignorable code points (soft hyphens, zero-width
and bidirectional marks, variation selectors). So letters agree whatever their case, width or
composition; Hangul syllables stay whole. Of what is left, a letter is a letter, digit or other
number, and a mark belongs to the letter before it; everything else separates. A word is a run of
letters. In scripts written without spaces every letter is a word, so that n-grams mean something
there too.

Texts should be in NFC: then those that Unicode calls equal agree. Without it most do, but not
decomposed Hangul, nor several marks on a letter in an unusual order.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit

from tasks.kernels.characters import UNSPACED_SCRIPTS

Hashes = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

SEPARATOR, LETTER, MARK, UNSPACED = 0, 1, 2, 3

_IGNORABLE = (  # Default_Ignorable_Code_Point of Unicode's DerivedCoreProperties.txt
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_LAST_LETTER = 0x40000  # nothing behind it is a letter or a mark: unassigned, tags, private use
_SYLLABLES = range(0xAC00, 0xD7A4)

_UNITS_PER_BYTE = 6  # U+FDFA, three bytes, folds to 15 letters and 3 gaps


@dataclass(frozen=True, eq=False)
class Folding:
    """What each code point becomes.

    `entries` (0x110000,) hold its folded code point << 2 | kind; separators are 0. One that becomes
    none or several is ~(first << 5 | count): which of `expansions` (entries as well) it becomes.
    `kinds` (0x110000,) and `replaced` say the same for Python's texts: the kind of each folded code
    point, and what those that change become.
    """

    entries: npt.NDArray[np.int32]
    expansions: npt.NDArray[np.int32]
    kinds: Bytes
    replaced: Mapping[int, str]


@lru_cache(maxsize=1)
def folding() -> Folding:
    """The table, of the Unicode version of the Python that runs."""
    kinds = _kinds()
    points = np.arange(len(kinds), dtype=np.int32)
    plain = np.where(kinds != SEPARATOR, points << 2 | kinds, 0).astype(np.int32)
    replaced = _replaced()
    entries = plain.copy()
    expansions: list[np.int32] = []
    for point, text in replaced.items():
        if len(text) == 1:
            entries[point] = plain[ord(text)]
        else:
            entries[point] = ~(len(expansions) << 5 | len(text))
            expansions += [plain[ord(character)] for character in text]
    return Folding(entries, np.array(expansions, np.int32), kinds, replaced)


def _kinds() -> Bytes:
    """The kind of each code point that stays as it is."""
    text = "".join(map(chr, range(_LAST_LETTER)))
    kinds = np.zeros(0x110000, dtype=np.uint8)
    kinds[:_LAST_LETTER] = np.fromiter(map(str.isalnum, text), np.uint8, _LAST_LETTER)
    unspaced = [found.start() for found in re.finditer(f"[{UNSPACED_SCRIPTS}]", text)]
    kinds[unspaced] *= UNSPACED
    categories = map(unicodedata.category, text)
    kinds[[place for place, category in enumerate(categories) if category[0] == "M"]] = MARK
    return kinds


def _replaced() -> dict[int, str]:
    """What the code points that change become; Hangul syllables only decompose, and do not."""
    changing = [
        letter
        for letter in map(chr, range(_LAST_LETTER))
        if not letter == letter.casefold() == unicodedata.normalize("NFKD", letter)
        and ord(letter) not in _SYLLABLES
    ]
    everywhere = "".join(map(chr, (*range(_LAST_LETTER), *range(0xE0000, 0xE1000))))
    ignored = [found[0] for found in re.finditer(f"[{_IGNORABLE}]", everywhere)]
    return {ord(letter): _fold(letter) for letter in (*changing, *ignored)}


def _fold(text: str) -> str:
    before = ""
    while text != before:
        before = text
        text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
        text = re.sub(f"[{_IGNORABLE}]", "", text)
    return re.sub("[\u1100-\u11ff]+", lambda jamo: unicodedata.normalize("NFC", jamo[0]), text)


_WORD = re.compile(b"%c[%c%c]*|%c%c*" % (LETTER, LETTER, MARK, UNSPACED, MARK))


def words(text: str) -> list[str]:
    """The words of `text`, folded and decomposed: "Café, 12" has "cafe\u0301" and "12"."""
    table = folding()
    folded = text.translate(table.replaced)
    points = np.frombuffer(folded.encode("utf-32-le", "surrogatepass"), np.uint32)
    return [folded[slice(*found.span())] for found in _WORD.finditer(table.kinds[points].tobytes())]


def word_hashes(texts: pa.Array | pa.ChunkedArray) -> tuple[Hashes, Ints]:
    """The hashes of all words of the texts, one text after the other, and where each begins.

    A word's hash is h = (h XOR c) * MULTIPLIER mod 2^64 over its folded code points c, from h = 0,
    then MurmurHash3's 64-bit finalizer (Appleby). A null has no words.
    """
    return hash_units(texts, by_letter=False)


def hash_units(texts: pa.Array | pa.ChunkedArray, by_letter: bool) -> tuple[Hashes, Ints]:
    """As `word_hashes`; `by_letter`, every letter with its marks counts as a word, and so does a
    gap between words, as a space."""
    table = folding()
    return _hash_texts(*flat_texts(texts), table.entries, table.expansions, by_letter)


def flat_texts(texts: pa.Array | pa.ChunkedArray) -> tuple[Ints, Bytes]:
    """(offsets (texts + 1), UTF-8 bytes) of a column; a null is the empty text."""
    column = pc.fill_null(texts.cast(pa.large_string()), "")
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    _, starts, data = column.buffers()
    if not len(column) or data is None:
        return np.zeros(len(column) + 1, np.int64), np.empty(0, np.uint8)
    offsets = np.frombuffer(starts, np.int64)[column.offset : column.offset + len(column) + 1]
    return offsets, np.frombuffer(data, np.uint8)


MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd (Knuth, TAOCP 6.4)
_GAP = np.uint64(0x20 * int(MULTIPLIER) % (1 << 64))  # the raw hash of a space


def ngram_hashes(hashes: Hashes, n: int) -> Hashes:
    """The hash of each run of `n` words, in order: max(0, len(hashes) - n + 1) values.

    A polynomial in the words' hashes mod 2^64 (Karp and Rabin 1987) that starts from `n`, so that
    runs of different lengths may share one table.
    """
    count = max(0, len(hashes) - n + 1)
    result = np.full(count, n, dtype=np.uint64)
    for i in range(n):
        result *= MULTIPLIER
        result += hashes[i : i + count]
    return result


@njit(cache=True, nogil=True)
def _hash_texts(offsets, data, entries, expansions, by_letter):
    bounds = np.zeros(len(offsets), np.int64)
    hashes = np.empty(1024, np.uint64)
    for text in range(len(offsets) - 1):
        start, end = offsets[text], offsets[text + 1]
        hashes = with_room(hashes, bounds[text], end - start)
        bounds[text + 1] = hash_text(
            data, start, end, entries, expansions, by_letter, hashes, bounds[text]
        )
    return hashes[: bounds[-1]], bounds


@njit(cache=True, nogil=True)
def with_room(hashes, count, size):
    """`hashes`, or a longer array that begins with its first `count`, with room for the units of a
    text of `size` bytes behind them."""
    needed = count + size * _UNITS_PER_BYTE + 1
    if needed <= len(hashes):
        return hashes
    longer = np.empty(max(needed, 2 * len(hashes)), np.uint64)
    longer[:count] = hashes[:count]
    return longer


@njit(cache=True, nogil=True)
def hash_text(data, start, end, entries, expansions, by_letter, hashes, first):
    """Puts the hashes of the units of the UTF-8 text data[start:end] into `hashes` from `first`
    on, and returns where they end; `with_room` for one more than there may be."""
    count = first
    raw = np.uint64(0)
    before = SEPARATOR
    place = start
    while place < end:
        byte = data[place]
        if byte < 0x80 and not by_letter:
            if before == UNSPACED:
                hashes[count] = raw
                count += 1
                raw, before = np.uint64(0), SEPARATOR
            entry = entries[byte]
            kind = entry & 3  # a letter or a separator, 1 or 0
            # Noted in any case, and kept by counting on at the end of a word: no branch to guess.
            hashes[count] = raw
            count += before & (kind ^ 1)
            raw = ((raw ^ np.uint64(entry >> 2)) * MULTIPLIER) * np.uint64(kind)
            before = kind
            place += 1
            continue
        point, place = decode(data, place)
        entry = entries[point]
        if entry >= 0:
            raw, before, count = _add(entry, by_letter, raw, before, hashes, count)
        else:
            expansion = ~entry
            at = expansion >> 5
            for k in range(at, at + (expansion & 31)):
                raw, before, count = _add(expansions[k], by_letter, raw, before, hashes, count)
    if before != SEPARATOR:
        hashes[count] = raw
        count += 1
    elif by_letter and count > first:
        count -= 1  # a gap that no letter follows
    for k in range(first, count):
        hashes[k] = mixed(hashes[k])
    return count


@njit(cache=True, nogil=True)
def _add(entry, by_letter, raw, before, hashes, count):
    """One folded code point more: the raw hash of the unit it belongs to, its kind, the count."""
    kind = entry & 3
    if kind == LETTER and by_letter:
        kind = UNSPACED
    if kind == MARK:
        if before != SEPARATOR:
            raw = (raw ^ np.uint64(entry >> 2)) * MULTIPLIER
        return raw, before, count
    if before != SEPARATOR and (kind != LETTER or before != LETTER):
        hashes[count] = raw
        count += 1
        raw = np.uint64(0)
        if by_letter and kind == SEPARATOR:
            hashes[count] = _GAP
            count += 1
    if kind != SEPARATOR:
        raw = (raw ^ np.uint64(entry >> 2)) * MULTIPLIER
    return raw, np.int64(kind), count


@njit(cache=True, nogil=True)
def decode(data, place):
    """The code point, beyond ASCII or not, at `place` of valid UTF-8, and where the next begins."""
    byte = np.int64(data[place])
    if byte < 0x80:
        return byte, place + 1
    if byte < 0xE0:
        return (byte & 0x1F) << 6 | (data[place + 1] & 0x3F), place + 2
    point = (byte & 0x0F) << 12 | np.int64(data[place + 1] & 0x3F) << 6 | (data[place + 2] & 0x3F)
    if byte < 0xF0:
        return point, place + 3
    return (point & 0x7FFF) << 6 | (data[place + 3] & 0x3F), place + 4


@njit(cache=True, nogil=True)
def mixed(value):
    """MurmurHash3's 64-bit finalizer."""
    value = (value ^ (value >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    value = (value ^ (value >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return value ^ (value >> np.uint64(33))
