"""Datasets small enough to be looked through, from real files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from llm.data import Prepared, prepare

EOT = 0


@dataclass(frozen=True)
class Document:
    id: str
    tokens: list[int]
    split: str = "train"
    source: str = "test"
    bytes_per_token: int = 3


def write_dataset(
    folder: Path,
    documents: list[Document],
    *,
    n_shards: int = 1,
    tokens_type: pa.DataType | None = None,
) -> str:
    """Deals the documents out to token shards in the order given; returns the dataset's path."""
    tokens_type = tokens_type or pa.large_list(pa.uint32())
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for k in range(n_shards):
        shard = documents[k::n_shards]
        table = pa.table(
            {
                "id": pa.array([d.id for d in shard], pa.string()),
                "digest": pa.array(["" for _ in shard], pa.string()),
                "length": pa.array([len(d.tokens) for d in shard], pa.int64()),
                "n_bytes": pa.array([d.bytes_per_token * len(d.tokens) for d in shard], pa.int64()),
                "tokens": pa.array([d.tokens for d in shard], tokens_type),
            }
        )
        pq.write_table(table, folder / f"{n_shards}-{k}.parquet", row_group_size=3)
        rows += [
            {
                "object": f"{n_shards}-{k}.parquet",
                "row": row,
                "id": d.id,
                "length": len(d.tokens),
                "n_bytes": d.bytes_per_token * len(d.tokens),
                "split": d.split,
                "source": d.source,
            }
            for row, d in enumerate(shard)
        ]
    pq.write_table(pa.Table.from_pylist(rows), folder / f"dataset-{n_shards}.parquet")
    return str(folder / f"dataset-{n_shards}.parquet")


def prepared_from(folder: Path, documents: list[Document], **options) -> Prepared:
    url = write_dataset(folder, documents, **options)
    return prepare(url, "train", folder / "cache", str(folder))


def made_up(n: int, *, longest: int = 30, seed: int = 0) -> list[Document]:
    """Documents in which no token comes twice, so that a token tells its document and place."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(0, longest, n)
    firsts = 1 + np.cumsum(lengths) - lengths
    return [
        Document(generator.bytes(16).hex(), list(range(first, first + length)))
        for first, length in zip(firsts.tolist(), lengths.tolist(), strict=True)
    ]


@st.composite
def corpora(draw: st.DrawFn) -> list[Document]:
    ids = draw(st.lists(st.integers(0, 2**128 - 1), min_size=1, max_size=12, unique=True))
    top = draw(st.sampled_from([9, 65535, 65536, 2**32 - 1]))
    tokens = st.lists(st.integers(1, top), min_size=1, max_size=20)
    few = st.integers(1, 3)
    return [
        Document(f"{i:032x}", draw(tokens), source=f"source {draw(few)}", bytes_per_token=draw(few))
        for i in ids
    ]
