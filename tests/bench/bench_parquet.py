"""Documents into the store and out of it: Loam's accounting against Parquet alone, by pyarrow."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.bench.harness import Result, cpu_seconds
from tests.bench.inputs import documents, english, multilingual, size_mb, web_text

TARGET = 0.9


def run(quick: bool) -> Result:
    """One shard of real documents, zstd level 3 on both sides, to and from a local folder.

    `ratio` is the lower one of writing and reading. Loam also hashes each object's bytes (its
    name) and each row (the data digest), and reads back what it wrote.
    """
    from tasks.store.schema import DOCUMENTS
    from tasks.store.store import Store

    part = 4.0 if quick else 5.0
    texts = english(part) + web_text(part) + multilingual(part)
    table, megabytes = documents(texts), size_mb(texts)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "raw.parquet"

        def write() -> None:
            pq.write_table(table, path, compression="zstd", compression_level=3)

        seconds: dict[str, float] = {}

        def timed(name: str, call: Callable[[], Any]) -> Any:
            once, returned = cpu_seconds(call, 1)
            seconds[name] = min(seconds.get(name, once), once)
            return returned

        for repeat in range(4 if quick else 8):
            store = Store.at((Path(folder) / str(repeat)).as_uri())
            timed("write_raw", write)
            ref = timed("write", partial(store.put_table, table, DOCUMENTS))
            timed("read_raw", lambda: pq.read_table(path))
            found = timed("read", partial(store.read_table, ref, DOCUMENTS))
        same = found.combine_chunks().equals(table.combine_chunks().cast(DOCUMENTS.arrow))
    ratios = {kind: seconds[f"{kind}_raw"] / seconds[kind] for kind in ("write", "read")}
    return Result(
        ratio=min(ratios.values()),
        target=TARGET,
        ok=same,
        figures={
            **{f"{kind}_ratio": ratio for kind, ratio in ratios.items()},
            **{f"{name}_mb_s": megabytes / spent for name, spent in seconds.items()},
            "input_mb": megabytes,
        },
        quality={"rows": table.num_rows, "same_table": same},
    )
