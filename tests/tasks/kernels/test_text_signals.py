"""Counting text signals against a plain reading of the same definitions, text by text."""

from __future__ import annotations

import re
import string
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.kernels.characters import (
    BULLETS,
    CLOSING_MARKS,
    MARKS_AROUND,
    PHRASES,
    SPACED_MARKS,
    STOP_WORDS,
    UNSPACED_MARKS,
    UNSPACED_SCRIPTS,
    character_kinds,
)
from tasks.kernels.text_signals import ALPHANUMERIC, LETTER, SPACE, UNSPACED
from tasks.signals import DUPLICATE_NGRAMS, SIGNAL_NAMES, TOP_NGRAMS, text_signals
from tests.bench import inputs
from tests.shared_data import shared_data

LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
WORD = re.compile(rf"[{UNSPACED_SCRIPTS}]|[^\s{UNSPACED_SCRIPTS}]+")
UNSPACED_CHARACTER = re.compile(rf"[{UNSPACED_SCRIPTS}]")
PARAGRAPH_BREAK = re.compile(r"\n{2,}")
END_RUN = re.compile(rf"[{SPACED_MARKS}{UNSPACED_MARKS}{re.escape(CLOSING_MARKS)}]+")
SPACED_MARK = re.compile(rf"[{SPACED_MARKS}]")
UNSPACED_MARK = re.compile(rf"[{UNSPACED_MARKS}]")
PUNCTUATED = re.compile(rf"[{SPACED_MARKS}{UNSPACED_MARKS}]$")


@dataclass(frozen=True)
class Words:
    """The words of a text: `ids[i]` is the i-th word's place in `vocabulary`, and `spans[i]` counts
    the characters of the first i words with one space for each gap of white space before a word."""

    vocabulary: list[str]
    ids: list[int]
    spans: list[int]
    gaps: list[bool]

    @classmethod
    def of(cls, text: str) -> Words:
        index: dict[str, int] = {}
        ids: list[int] = []
        lengths: list[int] = []
        gaps: list[bool] = []
        end = -1
        for found in WORD.finditer(text):
            word = found.group()
            ids.append(index.setdefault(word, len(index)))
            gaps.append(found.start() != end)
            lengths.append(len(word) + gaps[-1])
            end = found.end()
        return cls(list(index), ids, [0, *accumulate(lengths)], gaps)


def measure(text: str) -> dict[str, float]:
    words = Words.of(text)
    if not words.ids:
        return dict.fromkeys(SIGNAL_NAMES, 0.0)
    lines = [line for line in text.split("\n") if line.strip()]
    found = gopher_quality(text, words, lines) | gopher_repetition(text, words, lines)
    found |= c4(text, lines) | fineweb(text, words, lines)
    return {name: float(np.round(float(found[name]), 6)) for name in SIGNAL_NAMES}


def gopher_quality(text: str, words: Words, lines: list[str]) -> dict[str, float]:
    counts = Counter(words.ids)
    total = len(words.ids)
    plain = letters = plain_chars = unspaced = 0
    stop_words = set()
    for number, word in enumerate(words.vocabulary):
        count = counts[number]
        if not any(map(str.isalnum, word)):
            continue
        letters += count * any(map(str.isalpha, word))
        plain += count
        plain_chars += count * len(word)
        unspaced += count * bool(UNSPACED_CHARACTER.match(word))
        stop_words |= {word.strip(MARKS_AROUND).translate(LOWER)} & set(STOP_WORDS)
    return {
        "word_count": plain,
        "mean_word_length": plain_chars / plain if plain else 0.0,
        "hash_ratio": text.count("#") / total,
        "ellipsis_ratio": (text.count("...") + text.count("…")) / total,
        "bullet_line_share": share(line.lstrip().startswith(tuple(BULLETS)) for line in lines),
        "ellipsis_line_share": share(line.rstrip().endswith(("...", "…")) for line in lines),
        "alphabetic_word_share": letters / total,
        "stop_word_count": len(stop_words),
        "unspaced_share": unspaced / total,
    }


def gopher_repetition(text: str, words: Words, lines: list[str]) -> dict[str, float]:
    paragraphs = [part for part in PARAGRAPH_BREAK.split(text.strip("\n")) if part.strip()]
    size = len(text)
    line_count, line_chars = duplicates(lines)
    paragraph_count, paragraph_chars = duplicates(paragraphs)
    found = {
        "duplicate_line_share": line_count / len(lines),
        "duplicate_line_char_share": line_chars / size,
        "duplicate_paragraph_share": paragraph_count / len(paragraphs),
        "duplicate_paragraph_char_share": paragraph_chars / size,
    }
    for n in range(2, DUPLICATE_NGRAMS[-1] + 1):
        grams = list(zip(*(words.ids[i:] for i in range(n)), strict=False))
        if n in TOP_NGRAMS:
            found[f"top_{n}gram_char_share"] = top_chars(grams, words, n) / size
        else:
            found[f"duplicate_{n}gram_char_share"] = duplicate_chars(grams, words, n) / size
    return found


def duplicates(parts: list[str]) -> tuple[int, int]:
    seen: set[str] = set()
    count = chars = 0
    for part in parts:
        if part in seen:
            count += 1
            chars += len(part)
        seen.add(part)
    return count, chars


def top_chars(grams: list[tuple[int, ...]], words: Words, n: int) -> int:
    if not grams:
        return 0
    gram, count = Counter(grams).most_common(1)[0]
    if count == 1:
        return 0
    first = grams.index(gram)
    return count * (words.spans[first + n] - words.spans[first] - words.gaps[first])


def duplicate_chars(grams: list[tuple[int, ...]], words: Words, n: int) -> int:
    seen: set[tuple[int, ...]] = set()
    chars = place = 0
    while place < len(grams):
        gram = grams[place]
        if gram in seen:
            end = place + n
            chars += words.spans[end] - words.spans[place] - sum(words.gaps[place:end])
            place = end
        else:
            seen.add(gram)
            place += 1
    return chars


def c4(text: str, lines: list[str]) -> dict[str, float]:
    javascript = policy = terminal = sentence_count = 0
    for line in lines:
        lower = line.translate(LOWER)
        has_script = PHRASES[0] in lower
        has_policy = any(phrase in lower for phrase in PHRASES[2:])
        javascript += has_script
        policy += has_policy
        terminal += is_terminal(line)
        if not (has_script or has_policy) and is_sentence_like(line):
            sentence_count += sentences(line)
    return {
        "terminal_line_share": terminal / len(lines),
        "javascript_line_share": javascript / len(lines),
        "policy_line_share": policy / len(lines),
        "lorem_ipsum_count": text.translate(LOWER).count(PHRASES[1]),
        "curly_bracket_count": text.count("{"),
        "sentence_count": sentence_count,
    }


def is_sentence_like(line: str) -> bool:
    words = WORD.findall(line)
    return len(words) >= 3 and max(map(len, words)) <= 1000


def is_terminal(line: str) -> bool:
    line = line.rstrip()
    return line.endswith(('"', "'")) or (
        PUNCTUATED.search(line.rstrip(CLOSING_MARKS)) is not None and not line.endswith("...")
    )


def sentences(line: str) -> int:
    count = end = 0
    for run in END_RUN.finditer(line):
        at_space = run.end() == len(line) or line[run.end()].isspace()
        marks = run.group()
        if UNSPACED_MARK.search(marks) or (at_space and SPACED_MARK.search(marks)):
            count, end = count + 1, run.end()
    return count + bool(line[end:].strip())


def fineweb(text: str, words: Words, lines: list[str]) -> dict[str, float]:
    return {
        "punctuated_line_share": share(bool(PUNCTUATED.search(line)) for line in lines),
        "short_line_share": share(len(line) <= 30 for line in lines),
        "newline_ratio": text.count("\n") / len(words.ids),
    }


def share(flags: Iterable[bool]) -> float:
    values = list(flags)
    return sum(values) / len(values)


def assert_as_read(texts: list[str]) -> None:
    found = text_signals(pa.array(texts, pa.large_string()))
    columns = {name: column.to_pylist() for name, column in found.items()}
    for i, text in enumerate(texts):
        assert {name: columns[name][i] for name in SIGNAL_NAMES} == measure(text), text[:300]


# Few characters of each kind, so that lines, words and n-grams repeat, and pieces of phrases.
PIECES = st.sampled_from(
    [
        *"ab猫私ไé1 \n\n.!?。.…#{-•\"'”)\t\r\u00a0\u2028\x00\u0301\U0001f600\U00020000",
        *("the ", "To", "(of)", "...", "\n\n", "a b a b a b ", " İ", "K"),
        *("Javascript", "javas", "lorem ipsum", "Use Cookies", "use of cookies", "privacy policy"),
        "x" * 1001,
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.lists(PIECES, max_size=60).map("".join), max_size=6))
def test_counts_are_those_of_a_plain_reading_of_text_rich_in_marks(texts):
    assert_as_read(texts)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=200), max_size=4))
def test_counts_are_those_of_a_plain_reading_of_any_unicode(texts):
    assert_as_read(texts)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "cc", "cc", "\n", "猫"]), max_size=300), st.booleans())
def test_counts_are_those_of_a_plain_reading_of_text_that_repeats(words, spaced):
    assert_as_read([(" " if spaced else "").join(words)])


def test_counts_are_those_of_a_plain_reading_of_75_languages():
    shared_data("lid/lingua-sentences-even.jsonl.gz")
    assert_as_read(inputs.multilingual(1))


def test_counts_are_those_of_a_plain_reading_of_pages_and_prose():
    shared_data("deb")
    shared_data("pretrain/sotu-before-1960.jsonl.gz")
    assert_as_read(inputs.web_text(1) + inputs.english(0.3))


def test_every_character_has_the_kinds_that_python_gives_it():
    kinds = character_kinds()
    assert len(kinds) == sys.maxunicode + 1
    for code in range(sys.maxunicode + 1):
        char = chr(code)
        expected = SPACE * char.isspace() | LETTER * char.isalpha()
        expected |= ALPHANUMERIC * char.isalnum()
        expected |= UNSPACED * bool(UNSPACED_CHARACTER.match(char))
        assert kinds[code] & 15 == expected, hex(code)


def test_a_text_measures_the_same_whatever_stands_beside_it_and_however_it_is_cut():
    texts = ["a b c a b", "", "猫が好き。", "x " * 5000, "A line.\n\nA line."]
    together = text_signals(pa.array(texts))
    chunked = pa.chunked_array([pa.array(texts[:2]), pa.array(["skipped", *texts[2:]])[1:]])
    for name, column in together.items():
        assert text_signals(chunked)[name].equals(column)
        alone = [text_signals(pa.array([text]))[name][0].as_py() for text in texts]
        assert alone == column.to_pylist()


@pytest.mark.parametrize("texts", [pa.array([], pa.string()), pa.chunked_array([], pa.string())])
def test_no_texts_give_no_values(texts):
    found = text_signals(texts)
    assert list(found) == list(SIGNAL_NAMES)
    assert all(column.equals(pa.array([], pa.float64())) for column in found.values())
