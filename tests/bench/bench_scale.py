"""Cost and memory against size: generated documents from import to token shards.

`ratio` is the cost per document at the smallest size over that at the largest: 1 where cost grows
as n. Wanted: at least 0.8, and no worker above 1 GB at any size. `--quick` takes 4,000 and 16,000
documents, otherwise 10,000, 100,000 and a million (LOAM_SCALE=100000 stops earlier).
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from tests.bench import generated
from tests.bench.growing import grow
from tests.bench.harness import Result

SIZES = (10_000, 100_000, 1_000_000)
WORKERS = 2


def run(quick: bool) -> Result:
    most = int(os.environ.get("LOAM_SCALE", SIZES[-1]))
    sizes = [4_000, 16_000] if quick else [size for size in SIZES if size < most] + [most]
    rows = {size: _grown(size) for size in sizes}
    least, largest = rows[min(sizes)], rows[max(sizes)]
    ratio = (least["cpu_s"] / min(sizes)) / (largest["cpu_s"] / max(sizes))
    worker_mb = max(row["worker_mb"] for row in rows.values())
    return Result(
        ratio=ratio,
        target=0.8,
        ok=worker_mb < 1024,
        figures={"largest_worker_mb": worker_mb},
        quality={str(size): row for size, row in rows.items()},
    )


def _grown(n_documents: int) -> dict[str, Any]:
    """What growing a corpus of that size cost, all stages run and nothing reused."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        size = generated.write(root / "documents", n_documents)
        generated.write_benchmark(root / "quiz.jsonl")
        path = root / "config.json"
        config = generated.config(root, workers=WORKERS, shard_rows=32768)
        path.write_text(json.dumps(config))
        found = grow(path)
        stored = sum(p.stat().st_size for p in (root / "store").rglob("*") if p.is_file())
        receipts = sum(1 for _ in (root / "store" / "actions").rglob("*.json"))
    return {
        "text_mb": size / 1e6,
        "cpu_s": found["cpu_s"],
        "main_cpu_s": found["main_cpu_s"],
        "wall_s": found["wall_s"],
        "cpu_s_per_mb": found["cpu_s"] / (size / 1e6),
        "main_mb": found["main_mb"],
        "worker_mb": found["worker_mb"],
        "store_mb": stored / 1e6,
        "receipts": receipts,
        "stages_s": found["stages"],
        "rows": found["rows"],
    }
