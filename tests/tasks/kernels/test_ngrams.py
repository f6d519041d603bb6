"""The n-gram table against Python's own sets and dictionaries of word tuples."""

from __future__ import annotations

import random
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.kernels.ngrams import (
    Hits,
    Ints,
    NgramIndex,
    by_owner,
    count_ngrams,
    find_ngrams,
    index_ngrams,
)
from tasks.kernels.words import MULTIPLIER, Hashes

Words = list[int]
Gram = tuple[int, ...]

# A word's hash stands for the word; small values, too, to show that nothing leans on their bits.
_DRAWN = random.Random(3)
HASHES = [0, 1, 2**64 - 1, *(_DRAWN.getrandbits(64) for _ in range(5))]
texts = st.lists(st.lists(st.sampled_from(HASHES), max_size=14), max_size=6)


def flat(units: list[Words]) -> tuple[Hashes, Ints]:
    words = np.array([word for one in units for word in one], dtype=np.uint64)
    return words, np.cumsum([0, *map(len, units)])


def grams(words: Words, n: int) -> list[Gram]:
    """All n-grams of a text, in order; a shorter one is one as a whole."""
    n = min(n, len(words))
    return [tuple(words[at : at + n]) for at in range(len(words) - n + 1)] if n else []


def polynomial(gram: Gram) -> int:
    """The hash of an n-gram, in Python's integers."""
    value = len(gram)
    for word in gram:
        value = (value * int(MULTIPLIER) + word) % 2**64
    return value


def owners_of(passages: list[Words], n: int) -> dict[Gram, set[int]]:
    owners: dict[Gram, set[int]] = defaultdict(set)
    for number, passage in enumerate(passages):
        for gram in grams(passage, n):
            owners[gram].add(number)
    return owners


def entries(index: NgramIndex) -> dict[int, list[int]]:
    """Owners by hash."""
    spans = zip(index.keys.tolist(), index.offsets[:-1], index.offsets[1:], strict=True)
    return {key: index.owners[start:end].tolist() for key, start, end in spans}


@settings(deadline=None)
@given(texts, st.integers(1, 6), st.none() | st.integers(1, 2), st.booleans())
def test_the_table_holds_every_ngram_with_its_owners(
    passages: list[Words], n: int, max_owners: int | None, whole: bool
) -> None:
    index = index_ngrams(*flat(passages), n, max_owners, whole)
    expected = {
        polynomial(gram): sorted(owners) if max_owners is None or len(owners) <= max_owners else []
        for gram, owners in owners_of(passages, n).items()
    }
    assert entries(index) == expected
    assert index.keys.tolist() == sorted(expected)
    assert index.sizes.tolist() == [len(set(grams(passage, n))) for passage in passages]


@settings(deadline=None)
@given(texts, st.integers(1, 6), st.integers(1, 3))
def test_an_ngram_of_many_passages_is_one_of_the_first_of_them(
    passages: list[Words], n: int, most: int
) -> None:
    index = index_ngrams(*flat(passages), n, first_owners=most)
    expected = {
        polynomial(gram): sorted(owners)[:most] for gram, owners in owners_of(passages, n).items()
    }
    assert entries(index) == expected
    counted = Counter(number for owners in expected.values() for number in owners)
    assert index.sizes.tolist() == [counted[number] for number in range(len(passages))]


@settings(max_examples=300, deadline=None)
@given(texts, texts, st.integers(1, 6), st.booleans())
def test_what_is_found_is_what_a_search_through_word_tuples_finds(
    passages: list[Words], documents: list[Words], n: int, whole: bool
) -> None:
    index = index_ngrams(*flat(passages), n, whole=whole)
    wanted = owners_of(passages, n)
    expected: dict[tuple[int, int], tuple[int, int]] = {}
    for number, words in enumerate(documents):
        for gram in wanted:
            places = [at for at in range(len(words)) if tuple(words[at : at + len(gram)]) == gram]
            if places and (not whole or len(gram) == n or len(gram) == len(words)):
                expected[number, polynomial(gram)] = (places[0], places[0] + len(gram))
    hits = find_ngrams(*flat(documents), index)
    assert list(zip(hits.document, hits.key, strict=True)) == sorted(
        zip(hits.document, hits.key, strict=True)
    )
    found = zip(hits.document, index.keys[hits.key].tolist(), hits.start, hits.end, strict=True)
    assert {(d, key): (start, end) for d, key, start, end in found} == expected
    assert len(hits.document) == len(expected)


@settings(max_examples=200, deadline=None)
@given(texts, texts, st.integers(1, 6), st.integers(1, 3))
def test_what_is_found_is_gathered_by_document_and_owner(
    passages: list[Words], documents: list[Words], n: int, most: int
) -> None:
    index = index_ngrams(*flat(passages), n)
    hits = find_ngrams(*flat(documents), index)
    expected: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    owners = entries(index)
    for document, key, start, end in zip(*vars(hits).values(), strict=True):
        for owner in owners[int(index.keys[key])]:
            expected.setdefault((document, owner), []).append((key, start, end))
    found = by_owner(hits, index)
    pairs = list(zip(found.document.tolist(), found.owner.tolist(), strict=True))
    assert pairs == sorted(expected)
    groups = [expected[pair] for pair in pairs]
    assert found.start.tolist() == [min(start for _, start, _ in group) for group in groups]
    assert found.end.tolist() == [max(end for *_, end in group) for group in groups]
    assert found.matched.tolist() == [len(group) for group in groups]
    assert found.keys.tolist() == [key for group in groups for key, *_ in group]
    kept, counts = found.smallest(most)
    assert kept.tolist() == [key for group in groups for key, *_ in group[:most]]
    assert counts.tolist() == [min(most, len(group)) for group in groups]


@settings(deadline=None)
@given(texts, st.integers(1, 6))
def test_distinct_ngrams_are_counted(documents: list[Words], n: int) -> None:
    some = np.array([number for number, words in enumerate(documents) if words], dtype=np.int64)
    counts = count_ngrams(*flat(documents), some, n)
    assert counts.tolist() == [len(set(grams(documents[number], n))) for number in some]


def test_a_large_table_finds_each_of_its_ngrams_and_none_of_a_million_others() -> None:
    rng = np.random.default_rng(5)
    words = rng.integers(0, 2**64, 200_000, dtype=np.uint64)
    bounds = np.arange(0, 200_001, 40)
    index = index_ngrams(words, bounds, 13)
    assert len(index.keys) == 5000 * 28
    again = find_ngrams(words, bounds, index)
    assert len(again.document) == len(index.keys)
    assert np.array_equal(np.sort(again.key), np.arange(len(index.keys)))
    assert np.array_equal(index.owners[index.offsets[again.key]], again.document)
    others = rng.integers(0, 2**64, 1_000_000, dtype=np.uint64)
    assert len(find_ngrams(others, np.array([0, 1_000_000]), index).document) == 0


@pytest.mark.parametrize("units", [[], [[]], [[], []]])
def test_a_table_of_nothing_finds_nothing(units: list[Words]) -> None:
    index = index_ngrams(*flat(units), 13)
    hits = find_ngrams(*flat([[1, 2, 3] * 10, []]), index)
    assert isinstance(hits, Hits)
    assert len(hits.document) == 0
    assert len(by_owner(hits, index).owner) == 0
