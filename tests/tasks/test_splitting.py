"""Sentences and paragraphs: nothing is lost, and boundaries are where a reader puts them."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.splitting import Span, paragraphs, sentences
from tests.shared_data import shared_data


def pieces(text: str, spans: list[Span]) -> list[str]:
    return [text[start:end].strip() for start, end in spans]


@given(st.text(alphabet='aB1.!?… \n。」"é', max_size=60) | st.text(max_size=60))
def test_spans_cover_the_text_without_loss(text: str) -> None:
    for spans in (sentences(text, "en"), paragraphs(text)):
        assert "".join(text[start:end] for start, end in spans) == text
        assert all(start < end for start, end in spans)


@pytest.mark.parametrize(
    "language, expected",
    [
        ("en", ["Dr. Smith paid 3.50 for it.", "He left at 5 p.m. and slept."]),
        ("en", ['"Is it so?" she asked.', "It was."]),
        ("en", ["See fig. 3, e.g. the line of J. R. R. Tolkien.", "Then go on…", "Or not!"]),
        ("en", ["Visit example.org today.", "(It is free.)", "Really?!"]),
        ("de", ["Am 3. Oktober war z. B. niemand da.", "Das 19. Jahrhundert endete."]),
        ("fr", ["M. Dupont est là.", "« Vraiment ? » demanda-t-il."]),
        ("ru", ["Он родился в 1900 г. в Москве.", "Потом уехал."]),
        ("hi", ["यह एक वाक्य है।", "यह दूसरा है।"]),
        ("ar", ["هل هذا صحيح؟", "نعم."]),
    ],
)
def test_sentences_end_where_a_reader_ends_them(language: str, expected: list[str]) -> None:
    text = " ".join(expected)
    assert pieces(text, sentences(text, language)) == expected


@pytest.mark.parametrize(
    "hostile",
    ["." * 50_000 + "x", " " * 50_000 + "x", "a." + "»" * 50_000 + "x", "a." + " »" * 9_000 + "x",
     "\n \x0b" * 20_000 + "x", '."' * 20_000 + "x"],
    ids=["dots", "spaces", "marks of quotation", "spaced ones", "breaks", "quoted dots"],
)  # fmt: skip
@pytest.mark.timeout(20)
def test_no_text_takes_more_than_linear_time(hostile: str) -> None:
    assert pieces(hostile, sentences(hostile)) == [hostile.strip()]
    assert pieces(hostile, paragraphs(hostile)) == [hostile.strip()]


def test_scripts_without_spaces_are_split_at_their_marks() -> None:
    text = "これは文です。「本当ですか？」はい！"
    assert pieces(text, sentences(text, "ja")) == ["これは文です。", "「本当ですか？」", "はい！"]


def test_a_line_break_is_no_end_and_a_blank_line_is_one() -> None:
    text = "One that goes\non here\n\nAnother. And a third.\n \nLast"
    assert pieces(text, sentences(text)) == [
        "One that goes\non here",
        "Another.",
        "And a third.",
        "Last",
    ]
    assert pieces(text, paragraphs(text)) == [
        "One that goes\non here",
        "Another. And a third.",
        "Last",
    ]


def test_an_empty_text_has_no_sentence() -> None:
    assert sentences("") == [] == paragraphs("")


def test_real_sentences_put_together_come_apart_again() -> None:
    by_language: dict[str, list[str]] = defaultdict(list)
    with gzip.open(shared_data("lid/lingua-sentences-even.jsonl.gz"), "rt") as lines:
        for row in map(json.loads, lines):
            text = row["text"].strip()
            if text[-1:] in ".!?。！？।" and text[:1].isalpha() and not text[:1].islower():
                by_language[row["lang"]].append(text)
    found = {}
    for language in ("en", "de", "fr", "es", "ru", "ja", "zh", "hi", "pl", "tr"):
        texts = by_language[language][:200]
        joiner = "" if language in ("ja", "zh") else " "
        hits = 0
        for one, two in pairwise(texts):
            ends = {end for _, end in sentences(one + joiner + two, language)}
            hits += len(one + joiner) in ends
        found[language] = hits / (len(texts) - 1)
    assert min(found.values()) > 0.9, found
    assert sum(found.values()) / len(found) > 0.96, found
