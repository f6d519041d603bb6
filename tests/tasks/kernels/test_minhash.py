"""MinHash against datasketch, plain Python and Python sets."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from datasketch import MinHash
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.kernels.minhash import (
    band_keys,
    permutations,
    shingle_sets,
    sign,
    similarities,
)
from tasks.kernels.words import words
from tests.bench import inputs
from tests.shared_data import shared_data
from tests.tasks.kernels.test_words import FACTOR, hashed, mixed, texts, units

SIZES = {"ngram": 5, "by_letter": False}


def shingles(text: str, ngram: int, by_letter: bool) -> set[int]:
    """The hashes of the shingles of a text, by the definition."""
    hashes = list(map(hashed, units(text, by_letter)))
    if not hashes:
        raw = 0
        for byte in text.encode():
            raw = (raw ^ byte) * FACTOR % 2**64
        hashes = [mixed(raw)]
    ngram = min(ngram, len(hashes))
    found = set()
    for start in range(len(hashes) - ngram + 1):
        value = ngram
        for unit in hashes[start : start + ngram]:
            value = (value * FACTOR + unit) % 2**64
        found.add(value)
    return found


def signature(values: set[int], permuted: np.ndarray) -> list[int]:
    """The least value of each permutation over the upper halves of hashes, one by one."""
    least = []
    for factor, term in permuted.T.tolist():
        mixed_values = []
        for value in values:
            x = value >> 32
            for shift, multiplier in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
                x = (x ^ x >> shift) * multiplier % 2**32
            mixed_values.append(((x ^ x >> 16) * factor + term) % 2**32)
        least.append(min(mixed_values))
    return least


def column(some: list[str]) -> pa.Array:
    return pa.array(some, pa.large_string())


@cache
def real() -> list[str]:
    for name in ("lid/lingua-sentences-even.jsonl.gz", "pretrain/sotu-before-1960.jsonl.gz"):
        shared_data(name)
    return inputs.english(0.25) + inputs.multilingual()[::60]


def test_the_permutations_are_those_of_datasketch():
    for seed in (1, 7):
        expected = MinHash(112, seed=seed, scheme="affine32").permutations
        assert (permutations(112, seed) == expected).all()


@settings(deadline=None, max_examples=60)
@given(st.lists(texts, max_size=3), st.integers(1, 6), st.booleans())
def test_signatures_and_shingles_are_those_of_the_definition(some, ngram, by_letter):
    permuted = permutations(5, 3)
    expected = [shingles(text, ngram, by_letter) for text in some]
    matrix = sign(column(some), ngram, by_letter, permuted)
    assert matrix.tolist() == [signature(values, permuted) for values in expected]
    hashes, bounds = shingle_sets(column(some), ngram, by_letter)
    found = [hashes[start:end].tolist() for start, end in pairwise(bounds)]
    assert found == [sorted(values) for values in expected]


@pytest.mark.parametrize(("ngram", "by_letter"), [(5, False), (9, True)])
def test_signatures_of_real_text_are_those_of_datasketch(ngram, by_letter):
    some = real()
    matrix = sign(column(some), ngram, by_letter, permutations(112, 1))
    for text, row in zip(some, matrix, strict=True):
        expected = MinHash(112, seed=1, hashfunc=int, scheme="affine32")
        expected.update_batch([value >> 32 for value in shingles(text, ngram, by_letter)])
        assert row.tolist() == expected.hashvalues.tolist()


def test_signatures_estimate_the_jaccard_similarity_as_well_as_datasketch_does():
    originals = real()
    edited = []
    for number, text in enumerate(originals):
        every = 7 + 13 * (number % 12)
        edited.append(" ".join(w + "x" * (k % every == 0) for k, w in enumerate(text.split())))
    permuted = permutations(112, 1)
    a, b = (sign(column(some), **SIZES, permuted=permuted) for some in (originals, edited))
    ours, theirs = [], []
    for one, two, row_a, row_b in zip(originals, edited, a, b, strict=True):
        grams = [
            {" ".join(its[k : k + 5]).encode() for k in range(max(1, len(its) - 4))}
            for its in (words(one), words(two))
        ]
        true = len(grams[0] & grams[1]) / len(grams[0] | grams[1])
        sketches = list(MinHash.generator(grams, num_perm=112))
        ours.append(float(np.mean(row_a == row_b)) - true)
        theirs.append(sketches[0].jaccard(sketches[1]) - true)
    # The estimate of one pair has a standard deviation of at most 0.5 / sqrt(112) = 0.047.
    assert len(ours) > 100
    assert abs(float(np.mean(ours))) < 5 * 0.047 / len(ours) ** 0.5
    assert float(np.std(ours)) < 0.047
    assert float(np.std(ours)) < 1.3 * float(np.std(theirs))


def test_a_band_key_is_shared_where_a_whole_band_is_and_nowhere_else():
    drawn = np.random.default_rng(5)
    matrix = drawn.integers(0, 2, (200, 6), np.uint32)
    keys = band_keys(matrix, 3).reshape(200, 3)
    for one in range(200):
        for two in range(200):
            for band in range(3):
                alike = (matrix[one, 2 * band :][:2] == matrix[two, 2 * band :][:2]).all()
                assert (keys[one, band] == keys[two, band]) == alike
    assert not set(keys[:, 0]) & set(keys[:, 1])


@settings(deadline=None)
@given(st.lists(st.sets(st.integers(0, 12), min_size=1), min_size=1, max_size=5))
def test_similarities_are_those_of_python_sets(sets):
    hashes = np.array([value for some in sets for value in sorted(some)], np.uint64)
    bounds = np.cumsum([0, *map(len, sets)])
    one, two = (grid.ravel() for grid in np.meshgrid(*[np.arange(len(sets))] * 2))
    found = similarities(hashes, bounds, one, two)
    for a, b, value in zip(one, two, found, strict=True):
        assert value == len(sets[a] & sets[b]) / len(sets[a] | sets[b])


def test_repeated_shingles_count_once_and_short_texts_have_one():
    some = ["la la la la la la la", "one two", "?!", ""]
    _, bounds = shingle_sets(column(some), **SIZES)
    assert np.diff(bounds).tolist() == [1, 1, 1, 1]
    assert (
        len({row.tobytes() for row in sign(column(some), **SIZES, permuted=permutations(8, 1))})
        == 4
    )
