"""Words and their hashes against the definition, applied letter by letter in plain Python."""

from __future__ import annotations

import re
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.kernels.characters import UNSPACED_SCRIPTS
from tasks.kernels.words import (
    _IGNORABLE,
    _UNITS_PER_BYTE,
    SEPARATOR,
    folding,
    hash_units,
    ngram_hashes,
    word_hashes,
    words,
)
from tests.bench import inputs
from tests.shared_data import shared_data

FACTOR = 0x9E3779B97F4A7C15
EDGES = (  # what a hasty rule gets wrong
    "aZ9_ \u0301\u00ad\u200d\u00df\u0130\u01c6\ufb01\uff76\uff9e\u3316\ufdfa"
    "\u4f60\u0e01\u0e34\ud55c\u1112\U0001d400\U00020000\U0001f600"
)
texts = st.text(st.one_of(st.sampled_from(EDGES), st.characters(exclude_categories=["Cs"])))


def folded(letter: str) -> str:
    """What one code point becomes: NFKC_Casefold of Unicode (chapter 3.13), but decomposed."""
    if "가" <= letter <= "힣":
        return letter
    before = None
    while letter != before:
        before = letter
        letter = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", letter).casefold())
        letter = re.sub(f"[{_IGNORABLE}]", "", letter)
    return re.sub("[\u1100-\u11ff]+", lambda jamo: unicodedata.normalize("NFC", jamo[0]), letter)


def units(text: str, by_letter: bool = False) -> list[str]:
    """Words, or letters and the gaps between words, by the definition."""
    found: list[str] = []
    apart = True  # whether the next letter begins a word
    for letter in "".join(map(folded, text)):
        if unicodedata.category(letter)[0] == "M":
            if found and found[-1] != " " and apart is not None:
                found[-1] += letter
        elif not letter.isalnum():
            if by_letter and found and found[-1] != " ":
                found.append(" ")
            apart = None
        else:
            alone = by_letter or bool(re.match(f"[{UNSPACED_SCRIPTS}]", letter))
            if alone or apart is not False or not found:
                found.append(letter)
            else:
                found[-1] += letter
            apart = alone
    return found[:-1] if found and found[-1] == " " else found


def mixed(value: int) -> int:
    """MurmurHash3's 64-bit finalizer."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        value = (value ^ value >> 33) * factor % 2**64
    return value ^ value >> 33


def hashed(unit: str) -> int:
    raw = 0
    for letter in unit:
        raw = (raw ^ ord(letter)) * FACTOR % 2**64
    return mixed(raw)


def test_the_finalizer_is_that_of_datasketch():
    from datasketch.minhash import _fmix

    values = np.array([0, 1, 2**64 - 1, 0x0123456789ABCDEF], np.uint64)
    assert [mixed(value) for value in values.tolist()] == _fmix(values.copy(), 64).tolist()


@settings(deadline=None, max_examples=300)
@given(st.lists(texts, max_size=4), st.booleans())
def test_hashes_are_those_of_the_units_of_each_text(some, by_letter):
    hashes, bounds = hash_units(pa.array(some, pa.string()), by_letter)
    assert len(bounds) == len(some) + 1
    for text, start, end in zip(some, bounds[:-1], bounds[1:], strict=True):
        assert hashes[start:end].tolist() == list(map(hashed, units(text, by_letter)))


@settings(deadline=None, max_examples=300)
@given(texts)
def test_the_words_are_those_of_the_definition(text):
    assert words(text) == units(text)


def have(*names: str) -> None:
    for name in names:
        shared_data(name)


def test_words_and_hashes_of_real_text_in_75_languages():
    have("lid/lingua-sentences-even.jsonl.gz", "deb")
    real = inputs.multilingual()[::30] + inputs.web_text(0.1)
    for by_letter in (False, True):
        hashes, bounds = hash_units(pa.array(real, pa.large_string()), by_letter)
        for text, start, end in zip(real, bounds[:-1], bounds[1:], strict=True):
            expected = units(text, by_letter)
            assert hashes[start:end].tolist() == list(map(hashed, expected))
            if not by_letter:
                assert words(text) == expected


def test_words_are_equal_whatever_their_case_width_punctuation_and_composition():
    assert words("Straße, don’t “STOP”_now") == words("STRASSE don't stop now")
    assert words("ｆｕｌｌ１２") == ["full12"]
    assert words("cafe\u0301 soft\u00adhyphen\ufeff") == words("CAFÉ softhyphen")
    assert words("ｶﾞﾗｽ") == words("ガラス")
    assert words("ﬁne ①② Ⅷ") == ["fine", "12", "viii"]
    assert words("ΟΔΟΣ") == words("οδος") == words("οδοσ")
    assert words("가각") == words("\uac00\uac01") == ["가각"]


def test_real_text_in_capitals_decomposed_or_wide_has_the_same_words():
    have("lid/lingua-sentences-even.jsonl.gz", "pretrain/sotu-before-1960.jsonl.gz")
    english = inputs.english(0.1)
    wide = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}
    for text in english:
        plain = unicodedata.normalize("NFC", text)
        assert words(plain.upper()) == words(plain)
        assert words(plain.translate(wide)) == words(plain)
    for text in inputs.multilingual()[::20]:
        if not re.search("[가-힣]", text):
            plain = unicodedata.normalize("NFC", text)
            assert words(unicodedata.normalize("NFD", plain)) == words(plain)


def test_scripts_without_spaces_give_a_word_for_each_letter_and_marks_stay_with_theirs():
    assert words("你好，世界") == ["你", "好", "世", "界"]
    assert words("हिन्दी में") == ["हिन्दी", "में"]
    assert words("กิน ok") == ["กิ", "น", "ok"]
    assert words("漢字kana") == ["漢", "字", "kana"]


def test_marks_without_a_letter_before_them_are_not_there():
    assert words("\u0301a, \u0301b") == ["a", "b"]


def test_nulls_have_no_words_and_slices_and_chunks_are_read_where_they_are():
    some = pa.chunked_array([["one two", None, ""], ["three", "four five six"]], pa.string())
    hashes, bounds = word_hashes(some)
    assert bounds.tolist() == [0, 2, 2, 2, 3, 6]
    sliced, its_bounds = word_hashes(some.slice(3))
    assert sliced.tolist() == hashes[2:].tolist()
    assert its_bounds.tolist() == [0, 1, 4]
    assert [len(part) for part in word_hashes(pa.array([], pa.string()))] == [0, 1]


def test_no_code_point_has_more_units_than_there_is_room_for():
    table = folding()
    changed = np.flatnonzero(table.entries < 0)
    assert len(changed) > 1000
    for point in changed.tolist():
        code = ~int(table.entries[point])
        entries = table.expansions[code >> 5 :][: code & 31]
        assert len(entries) == code & 31
        gaps = int((entries & 3 == SEPARATOR).sum())
        size = len(chr(point).encode())
        assert len(units(chr(point), True)) <= len(entries) + gaps
        assert len(entries) <= _UNITS_PER_BYTE * size


def test_ngram_hashes_equal_the_polynomial_in_whole_numbers():
    values = np.array([3, 2**64 - 1, 12345678901234567890, 7], dtype=np.uint64)
    expected = []
    for start in range(2):
        total = 3
        for value in values[start : start + 3].tolist():
            total = (total * FACTOR + value) % 2**64
        expected.append(total)
    assert ngram_hashes(values, 3).tolist() == expected
    assert ngram_hashes(values, 5).tolist() == []


@pytest.mark.parametrize("text", ["", " ", "...", "\u0301", "\u200b"])
def test_a_text_without_letters_has_no_words(text):
    assert words(text) == []
    assert len(word_hashes(pa.array([text]))[0]) == 0
