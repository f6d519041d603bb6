"""Generated corpora of any size: real sentences in new orders, with what every stage looks for.

Documents come in blocks that depend on nothing but the seed and the block's number, so that a
corpus of a million is the corpus of ten thousand and more. Of a block's documents, about 8 % are
an earlier one with one sentence of twenty replaced, 3 % a copy of an earlier one, 1 % hold an
e-mail address and a phone number, 2 % are too short to be kept and 0.2 % quote a benchmark item.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tests.bench.inputs import english
from tests.shared_data import ROOT

BLOCK = 1000
SENTENCES = 20
Ints = npt.NDArray[np.int64]


N_QUESTIONS = 500


@lru_cache(maxsize=1)
def _sentences() -> list[str]:
    """Distinct sentences of real prose, of 40 to 240 characters, the longest first."""
    found = (s.strip() for text in english() for s in re.split(r"(?<=[.!?]) +", text))
    kept = dict.fromkeys(s for s in found if 40 <= len(s) <= 240)
    return sorted(kept, key=lambda s: (-len(s), s))


@lru_cache(maxsize=1)
def pool() -> pa.Array:
    """What documents are made of."""
    return pa.array(_sentences()[N_QUESTIONS:], pa.string())


@lru_cache(maxsize=1)
def questions() -> list[str]:
    """Benchmark items: the longest sentences, which no document holds unless it is a leak."""
    return [f"Asked in {1700 + n}: {s}" for n, s in enumerate(_sentences()[:N_QUESTIONS])]


def _fresh(block: int, seed: int) -> tuple[Ints, Ints]:
    """Sentence numbers (BLOCK, SENTENCES) of documents of their own, and how many each has."""
    rng = np.random.default_rng([seed, block])
    return (
        rng.integers(0, len(pool()), (BLOCK, SENTENCES)),
        rng.integers(10, SENTENCES + 1, BLOCK),
    )


def block_of(block: int, seed: int = 1) -> pa.Table:
    """Columns id, text, url of one block of documents."""
    numbers, lengths = _fresh(block, seed)
    rng = np.random.default_rng([seed, block, 1])
    kind = rng.random(BLOCK)
    earlier, earlier_lengths = _fresh(block // 2, seed)
    twin = rng.integers(0, BLOCK, BLOCK)
    copies = (kind < 0.11) & (block > 0)
    numbers[copies] = earlier[twin[copies]]
    lengths[copies] = earlier_lengths[twin[copies]]
    near = copies & (kind < 0.08)
    place = rng.integers(0, 10, BLOCK)
    numbers[near, place[near]] = rng.integers(0, len(pool()), BLOCK)[near]
    lengths[near] = SENTENCES
    lengths[(kind >= 0.11) & (kind < 0.13)] = 1
    flat = numbers[np.arange(SENTENCES) < lengths[:, None]]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(offsets), pool().take(pa.array(flat)))
    texts = pc.binary_join(lists, " ").to_pylist()
    items = questions()
    for row in np.flatnonzero((kind >= 0.13) & (kind < 0.14)):
        name = f"reader{block}x{row}"
        texts[row] += f" Write to {name}@letters.org or call +1 212 555 {row:04d}."
    for row in np.flatnonzero((kind >= 0.14) & (kind < 0.142)):
        texts[row] += " " + items[(block * 7 + row) % len(items)]
    ids = [f"{block:06d}-{row:03d}" for row in range(BLOCK)]
    urls = [f"https://site{block % 97}.example.org/{block}/{row}" for row in range(BLOCK)]
    return pa.table({"id": ids, "text": pa.array(texts, pa.large_string()), "url": urls})


def write(folder: Path, n_documents: int, *, first: int = 0, per_file: int = 10_000) -> int:
    """Writes documents `first` .. `first + n_documents` as Parquet files; returns text bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    size = 0
    blocks = range(first // BLOCK, (first + n_documents) // BLOCK)
    per_file = max(1, per_file // BLOCK)
    for start in range(0, len(blocks), per_file):
        part = blocks[start : start + per_file]
        table = pa.concat_tables([block_of(block) for block in part])
        size += pc.sum(pc.binary_length(table["text"])).as_py()
        pq.write_table(table, folder / f"part-{part[0]:06d}.parquet")
    return size


def write_benchmark(path: Path) -> None:
    path.write_text("\n".join(json.dumps({"question": item}) for item in questions()))


def config(root: Path, name: str = "scale", **store: object) -> dict[str, object]:
    """A pipeline's config over `root/documents` and the store at `root/store`."""
    return {
        "name": name,
        "store": {"root": str(root / "store"), "cache_dir": str(root / "cache"), **store},
        "sources": [
            {
                "kind": "import",
                "name": "documents",
                "paths": [str(root / "documents")],
                "language": "en",
            }
        ],
        "annotate": {"language_model": str(ROOT / "models/lid.176.ftz")},
        "decontaminate": {
            "benchmarks": [
                {"name": "quiz", "path": str(root / "quiz.jsonl"), "fields": ["question"]}
            ]
        },
        # As large corpora are held out: a twentieth of a million is more than anyone measures on.
        "split": {"validation": 0.002, "test": 0.002},
        "tokenizer": {"vocab_size": 16384, "train_bytes": 20_000_000},
    }
