"""What every benchmark shares: CPU seconds, the peer's own process, and the line of the result.

A benchmark is a module `tests/bench/bench_NAME.py` whose docstring's first line says what it
compares, with one function `run(quick: bool) -> Result`. Each side times its own work in CPU
seconds of its own process, with one thread.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).parent
PEERS = HERE.parents[1] / ".venv-peers" / "bin" / "python"
_POOLS = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS")
ONE_THREAD = dict.fromkeys(_POOLS, "1") | {"TOKENIZERS_PARALLELISM": "false"}

Returned = TypeVar("Returned")


class PeersMissing(Exception):
    """The peer cannot be run here; the message says what to do."""


@dataclass(frozen=True)
class Result:
    """One benchmark's outcome.

    `ratio` is Loam's speed over the peer's (what else it is, the benchmark says), `target` what
    it should reach, `ok` whether the quality conditions hold. `figures` are measured speeds and
    costs by name with their unit, such as `ours_mb_s`; `quality` what was checked.
    """

    ratio: float | None
    target: float | None
    ok: bool
    figures: Mapping[str, float] = field(default_factory=dict)
    quality: Mapping[str, Any] = field(default_factory=dict)
    peers_missing: str | None = None

    def line(self, name: str) -> str:
        """The result as one line of JSON."""
        row: dict[str, Any] = {"bench": name, "ratio": _rounded(self.ratio), "target": self.target}
        row |= {key: _rounded(value) for key, value in self.figures.items()}
        row |= {"quality": {key: _rounded(value) for key, value in self.quality.items()}}
        if self.peers_missing:
            row["peers_missing"] = self.peers_missing
        return json.dumps(row | {"ok": self.ok}, ensure_ascii=False)


def cpu_seconds(function: Callable[[], Returned], repeats: int = 3) -> tuple[float, Returned]:
    """The least CPU seconds of this process over the repeats, and what the last one returned."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        returned = function()
        best = min(best, time.process_time() - start)
    return best, returned


def peer(script: str, table: pa.Table, *arguments: str) -> dict[str, Any]:
    """What `tests/bench/peers/SCRIPT.py` makes of a table, run in `.venv-peers`.

    The script gets the path of the table as Parquet, then `arguments`; the rest is as in `call`.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "input.parquet"
        pq.write_table(table, path)
        return call(script, str(path), *arguments)


def call(script: str, *arguments: str) -> dict[str, Any]:
    """What `tests/bench/peers/SCRIPT.py` says of its arguments, run in `.venv-peers`.

    Its last line of output is a JSON object, which is returned. Raises PeersMissing where there is
    no such environment.
    """
    if not PEERS.exists():
        raise PeersMissing("no .venv-peers: run `make bench-deps`")
    done = subprocess.run(
        [str(PEERS), str(HERE / "peers" / f"{script}.py"), *arguments],
        env=os.environ | ONE_THREAD,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def nanogpt() -> str:
    """The checkout of karpathy/nanoGPT that LOAM_NANOGPT names. Raises PeersMissing without one."""
    folder = os.environ.get("LOAM_NANOGPT", "")
    if not (Path(folder) / "train.py").is_file():
        raise PeersMissing("no checkout of karpathy/nanoGPT: name its folder in LOAM_NANOGPT")
    return folder


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value
