from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llm.buckets import LEVELS, lay_out, n_buckets
from llm.config_data import DataConfig
from tests.llm.small_datasets import Document, made_up, prepared_from


@pytest.mark.parametrize(
    "n_tokens, buckets", [(1, 1), (1 << 24, 1), ((1 << 24) + 1, 2), (10**9, 64), (10**12, 65536)]
)
def test_buckets_are_a_power_of_two_of_at_most_16_mi_tokens(n_tokens: int, buckets: int) -> None:
    assert n_buckets(n_tokens) == buckets
    assert n_tokens / buckets <= 1 << 24


@pytest.mark.parametrize("curriculum", ["none", "length", "difficulty"])
@pytest.mark.parametrize("weights", [{}, {"web": 1, "books": 0}])
def test_each_document_is_in_one_bucket_of_its_source_and_level(
    tmp_path: Path, curriculum: str, weights: dict[str, float]
) -> None:
    documents = [
        Document(d.id, d.tokens, source="books" if k % 4 else "web", bytes_per_token=1 + k % 5)
        for k, d in enumerate(made_up(300, seed=2))
    ]
    prepared = prepared_from(tmp_path, documents)
    parts = lay_out(prepared, DataConfig(curriculum=curriculum, weights=weights), 500)
    assert [part.source for part in parts] == (["books", "web"] if weights else [""])
    chosen = [part.bucket(number) for part in parts for number in range(len(part))]
    assert sorted(np.concatenate(chosen).tolist()) == list(range(300))
    for part in parts:
        assert set(part.levels.tolist()) == set(range(1 if curriculum == "none" else LEVELS))
        assert (np.diff(part.levels) >= 0).all()
        if part.source:
            found = {prepared.sources[code] for code in prepared.source[part.documents].tolist()}
            assert found == {part.source}
        for level in set(part.levels.tolist()):
            of_level = [part.bucket(n) for n in np.flatnonzero(part.levels == level).tolist()]
            assert (np.diff(np.concatenate(of_level)) > 0).all()
