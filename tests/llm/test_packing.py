from __future__ import annotations

import gzip
import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.packing import Packing, best_fit, cut_stream
from tests.shared_data import shared_data


def windows_of(packing: Packing) -> list[list[tuple[int, int]]]:
    """(start, length) of the pieces of each window."""
    pieces = list(zip(packing.starts.tolist(), packing.lengths.tolist(), strict=True))
    bounds = packing.bounds.tolist()
    return [pieces[first:last] for first, last in pairwise(bounds)]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 24))
def test_every_pair_stands_in_one_of_the_fewest_windows_there_can_be(
    lengths: list[int], context: int
) -> None:
    n_pairs = sum(lengths)
    of = np.repeat(np.arange(len(lengths)), lengths)
    for pack in (best_fit, cut_stream):
        packing = pack(np.array(lengths), context)
        windows = windows_of(packing)
        pairs = [range(start, start + size) for window in windows for start, size in window]
        assert sorted(pair for piece in pairs for pair in piece) == list(range(n_pairs))
        assert len(windows) == -(-n_pairs // context)
        assert max(sum(size for _, size in window) for window in windows) <= context
        assert all(
            of[start] == of[start + size - 1] for window in windows for start, size in window
        )


def best_fit_decreasing(lengths: list[int], capacity: int) -> Counter[int]:
    """How full the bins get, as the textbook has it: the fullest bin that still has room."""
    bins: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [k for k, filled in enumerate(bins) if filled + length <= capacity]
        if fitting:
            bins[max(fitting, key=lambda k: bins[k])] += length
        else:
            bins.append(length)
    return Counter(bins)


@given(st.lists(st.integers(1, 24), min_size=1, max_size=60))
def test_whole_documents_are_placed_best_fit_decreasing(lengths: list[int]) -> None:
    found = best_fit(np.array(lengths), 24)
    expected = best_fit_decreasing(lengths, 24)
    if len(found) == expected.total():  # Else the emptiest bins were dealt out.
        held = [sum(size for _, size in window) for window in windows_of(found)]
        assert Counter(held) == expected
        assert sorted(found.lengths.tolist()) == sorted(lengths)


def test_best_fit_cuts_no_more_documents_than_it_must() -> None:
    # Of 16 places: three sevens and a five leave no way without a cut in two windows but one.
    packing = best_fit(np.array([7, 7, 7, 5, 6]), 16)
    assert len(packing) == 2
    assert len(packing.lengths) == 6


@pytest.mark.parametrize("context", [256, 1024, 2048])
def test_speeches_and_chapters_fill_their_windows(context: int) -> None:
    texts = []
    for name in ("sotu-before-1960", "moby-dick"):
        with gzip.open(shared_data(f"pretrain/{name}.jsonl.gz"), "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        texts += [row["doc"]["text"] if "doc" in row else row["text"] for row in rows]
    lengths = np.array([1 + len(text.split()) for text in texts])
    packing = best_fit(lengths, context)
    assert packing.lengths.sum() == lengths.sum()
    assert lengths.sum() / (len(packing) * context) > 0.999
    short = int((lengths <= context).sum())
    starts = (np.cumsum(lengths) - lengths)[lengths <= context]
    pieces = set(zip(packing.starts.tolist(), packing.lengths.tolist(), strict=True))
    whole = pieces & set(zip(starts.tolist(), lengths[lengths <= context].tolist(), strict=True))
    assert len(whole) >= 0.95 * short
