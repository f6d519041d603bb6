from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.signals import SIGNAL_NAMES, text_signals


def measure(text: str) -> dict[str, float]:
    found = text_signals(pa.array([text], pa.large_string()))
    return {name: column[0].as_py() for name, column in found.items()}


@pytest.mark.parametrize(
    "text, words",
    [
        ("one, two\n three", ["one,", "two", "three"]),
        ("私は猫。OK です", ["私", "は", "猫", "。OK", "で", "す"]),
        ("ไป", ["ไ", "ป"]),
        ("우리는 간다", ["우리는", "간다"]),
    ],
)
def test_words_are_runs_of_non_space_and_single_characters_where_no_spaces_are_used(text, words):
    found = measure(text)
    assert found["word_count"] == len(words)
    assert found["mean_word_length"] == round(sum(map(len, words)) / len(words), 6)


# Gopher, Rae et al. 2021, A.1.1


def test_symbols_alone_are_no_words_to_count():
    found = measure("Ab -- cdef 12 …")
    assert found["word_count"] == 3
    assert found["mean_word_length"] == pytest.approx((2 + 4 + 2) / 3, abs=1e-6)
    assert found["alphabetic_word_share"] == 2 / 5


def test_hashes_and_ellipses_are_counted_per_word():
    found = measure("#a b... c… d ##")
    assert found["hash_ratio"] == 3 / 5
    assert found["ellipsis_ratio"] == 2 / 5


def test_bullets_and_ellipses_are_counted_over_lines_that_hold_something():
    found = measure("• a\n\n  - b\n \nc...\nd …")
    assert found["bullet_line_share"] == 0.5
    assert found["ellipsis_line_share"] == 0.5


def test_different_stop_words_count_once_each_in_any_case_and_beside_marks():
    assert measure('The the THE, (of) "and" other')["stop_word_count"] == 3
    assert measure("le la les")["stop_word_count"] == 0
    # U+746F has the bytes of "to" in its number.
    assert measure("\u746f thethe t\u200bo")["stop_word_count"] == 0


def test_the_share_of_scripts_without_spaces_is_of_words():
    assert measure("私は猫 and dog")["unspaced_share"] == 3 / 5
    assert measure("우리는 간다")["unspaced_share"] == 0


# Gopher, Rae et al. 2021, table A1


def test_repeated_lines_count_from_the_second_on():
    found = measure("ab\ncdef\nab\n\nab")
    assert found["duplicate_line_share"] == 2 / 4
    assert found["duplicate_line_char_share"] == round(4 / 14, 6)


def test_paragraphs_are_parted_by_blank_lines():
    found = measure("ab\ncd\n\nab\ncd\n\n\nef")
    assert found["duplicate_paragraph_share"] == round(1 / 3, 6)
    assert found["duplicate_paragraph_char_share"] == round(5 / 17, 6)


@pytest.mark.parametrize(
    "before, after", [("", ""), ("\n", "\n"), ("\n\n\n", "\n\n"), (" \n\n", "\n ")]
)
def test_line_breaks_around_a_text_are_of_no_paragraph(before, after):
    found = measure(f"{before}ab\n\n \n\nab{after}")
    assert found["duplicate_paragraph_share"] == (0.5 if after != "\n " else 0)


@pytest.mark.parametrize("text, share", [("ab\n\nab\n \nab", 0), ("ab\n \n\nab\n ", 0.5)])
def test_a_line_of_white_space_parts_no_paragraphs(text, share):
    assert measure(text)["duplicate_paragraph_share"] == share


def test_the_top_ngram_covers_its_occurrences_with_their_spaces():
    found = measure("a b c a b d a b")
    assert found["top_2gram_char_share"] == 9 / 15
    assert found["top_3gram_char_share"] == 0


def test_the_first_of_equally_frequent_ngrams_is_the_top_one():
    assert measure("aa b aa b")["top_2gram_char_share"] == round(8 / 9, 6)
    found = measure("aaa b x c d y aaa b z c d")
    assert found["top_2gram_char_share"] == round(10 / 25, 6)


def test_top_ngrams_of_unspaced_scripts_count_no_spaces():
    assert measure("私猫犬私猫")["top_2gram_char_share"] == 4 / 5


def test_characters_in_duplicate_ngrams_count_once():
    sentence = "a b c d e f "
    text = (sentence * 3).strip()
    found = measure(text)
    # 18 words: the second and third sentence are all duplicate, whatever n divides them into.
    assert found["duplicate_6gram_char_share"] == round(12 / 35, 6)
    assert found["duplicate_5gram_char_share"] == round(10 / 35, 6)
    assert measure("a b c d e f g h i j")["duplicate_5gram_char_share"] == 0


def gopher_duplicate_share(text: str, n: int) -> float:
    """Straight from the table's words: characters within duplicate n-grams, each once."""
    words = text.split()
    seen, chars, i = set(), 0, 0
    while i + n <= len(words):
        gram = tuple(words[i : i + n])
        if gram in seen:
            chars += sum(map(len, gram))
            i += n
        else:
            seen.add(gram)
            i += 1
    return float(np.round(chars / len(text), 6))


def gopher_top_share(text: str, n: int) -> float:
    words = text.split()
    grams = [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]
    top = max(grams, key=lambda gram: (grams.count(gram), -grams.index(gram)), default="")
    if grams.count(top) < 2:
        return 0.0
    return float(np.round(len(top) * grams.count(top) / len(text), 6))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(["a", "bb", "ccc", "d."]), min_size=1, max_size=60))
def test_ngram_signals_equal_a_reading_with_plain_tuples(words):
    text = " ".join(words)
    found = measure(text)
    for n in (5, 6, 7, 8, 9, 10):
        assert found[f"duplicate_{n}gram_char_share"] == gopher_duplicate_share(text, n)
    for n in (2, 3, 4):
        assert found[f"top_{n}gram_char_share"] == gopher_top_share(text, n)


# C4, Raffel et al. 2020, 2.2


def test_lines_end_in_terminal_marks_or_quotes_but_not_in_an_ellipsis():
    lines = [
        "It ends.",
        "Does it?",
        'He said "yes"',
        "Well...",
        "no mark",
        "そうです。",
        "(It does.)",
    ]
    assert measure("\n".join(lines))["terminal_line_share"] == round(5 / 7, 6)


def test_javascript_and_policy_lines_are_told_apart():
    found = measure("Please enable JavaScript now\nOur Privacy Policy is here\na b c\nd e f")
    assert found["javascript_line_share"] == 0.25
    assert found["policy_line_share"] == 0.25


@pytest.mark.parametrize(
    "line, is_policy",
    [
        ("our Terms of Use apply", True),
        ("the cookie policy", True),
        ("this site USES COOKIES.", True),
        ("the use of cookies", True),
        ("we reuse cookies", True),
        ("terms of\nuse", False),
        ("use  cookies", False),
        ("privacypolicy", False),
        ("use cookie", False),
        ("kies, we use coo", False),
    ],
)
def test_policies_are_told_by_their_phrases_within_a_line(line, is_policy):
    assert bool(measure(line)["policy_line_share"]) == is_policy


def test_lorem_ipsum_and_curly_brackets_are_counted():
    found = measure("Lorem Ipsum dolor { a } { b }")
    assert (found["lorem_ipsum_count"], found["curly_bracket_count"]) == (1, 2)


@pytest.mark.parametrize(
    "text, sentences",
    [
        ("One is here. Two is here! Is three? Yes, four", 4),
        ("Version 3.11 is out. Get it.", 2),
        ('She said "no." He left.', 2),
        ("私は猫である。名前はまだ無い。", 2),
        ("too short.\nthis has no mark\nthis one does.", 2),
        ("Enable JavaScript to read this. Please do so.\nWe use cookies here. Truly.", 0),
        ("Wait... what was that?", 2),
        (f"an endless {'x' * 1001} word.", 0),
    ],
)
def test_sentences_are_counted_in_the_lines_c4_keeps(text, sentences):
    assert measure(text)["sentence_count"] == sentences


# FineWeb, Penedo et al. 2024, 3.6


def test_fineweb_looks_at_line_ends_lengths_and_breaks():
    found = measure("A short one.\n\n" + "a long line of more than thirty characters\n" + "x" * 30)
    assert found["punctuated_line_share"] == round(1 / 3, 6)
    assert found["short_line_share"] == round(2 / 3, 6)
    assert found["newline_ratio"] == round(3 / 12, 6)


# All


def test_blank_text_measures_zero():
    for text in ("", " \n\n\t"):
        assert measure(text) == dict.fromkeys(SIGNAL_NAMES, 0.0)


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("ab猫 \n.{#-…\"'é。"), max_size=120))
def test_shares_lie_between_0_and_1_and_have_6_decimals(text):
    found = measure(text)
    assert list(found) == list(SIGNAL_NAMES)
    for name, value in found.items():
        assert value == round(value, 6)
        assert value >= 0
        assert value <= 1 or not name.endswith("_share")


@pytest.mark.parametrize(
    "text", ["'" * 200_000 + "x", "." * 200_000 + "x", "\"'.)" * 50_000, "{" * 200_000]
)
def test_long_runs_of_marks_take_no_long_time(text):
    start = time.process_time()
    measure(text)
    assert time.process_time() - start < 2
