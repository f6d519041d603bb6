"""Words of a text, folded so that spelling variants agree, and the hashes of their n-grams."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

Hashes = npt.NDArray[np.uint64]


_INVISIBLE = re.compile("[\u00ad\u200b-\u200d\u2060\ufeff]")


# Scripts written without spaces: Thai, Lao, Myanmar, Khmer, kana and Han.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff"
)


# Vowel signs and accents that do not compose; they belong to the letter before.
_MARKS = "".join(chr(c) for c in range(0x300, 0xFE30) if unicodedata.category(chr(c))[0] == "M")


_WORD = re.compile(
    rf"[^\W_{_UNSPACED}]+(?:[{_MARKS}]+[^\W_{_UNSPACED}]*)*|[^\W_{_MARKS}][{_MARKS}]*"
)


def words(text: str) -> list[str]:
    """The words of `text`, folded so that case, punctuation and width make no difference.

    NFKC, case folding, runs of letters, marks and digits; everything else separates, but
    soft hyphens and zero-width characters vanish. In scripts written without spaces every letter
    is a word, so that n-grams mean something there too.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    if not folded.isascii():
        folded = unicodedata.normalize("NFKC", _INVISIBLE.sub("", folded))
    return _WORD.findall(folded)


def hash_words(units: Sequence[str]) -> Hashes:
    """xxh3-64 of each word (uint64, one per word)."""
    encoded = map(str.encode, units)
    return np.fromiter(map(xxhash.xxh3_64_intdigest, encoded), np.uint64, len(units))


MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd (Knuth, TAOCP 6.4)


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
