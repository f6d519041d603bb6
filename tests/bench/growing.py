"""Grows a corpus and its tokens in a process of its own, and tells what that cost.

    python -m tests.bench.growing CONFIG.json

The recipe runs as it is, stages as plain functions: no Prefect server is part of the figures.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

from flows.config import parse_config
from flows.corpus import grow_corpus
from flows.running import RunOptions, open_run
from tasks.publish import publish
from tasks.store.records import Manifest
from tasks.tokenise import dataset, tokenise


def grow(path: Path) -> dict[str, Any]:
    """What the growth of the config at `path` cost, from a child process.

    cpu_s: CPU seconds of all its processes; wall_s; main_mb, worker_mb: peak resident size of the
    main process and of the largest worker; stages: wall seconds by stage; digests: data digest by
    stage; new_receipts is for the caller to count.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.growing", str(path)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _grow_here(path: Path) -> dict[str, Any]:
    config = parse_config(json.loads(path.read_text(encoding="utf-8")), str(path))
    began = time.monotonic()
    with (
        mock.patch("tasks.as_task.in_prefect", lambda name, function: function),
        open_run(config, RunOptions(), say=lambda text: print(text, file=sys.stderr)) as run,
    ):
        corpus = grow_corpus(run, config)
        tokens = tokenise(run, corpus, config.tokenizer)
        publish(run, dataset(run, tokens, config.tokenizer), "dataset")
    here = resource.getrusage(resource.RUSAGE_SELF)
    workers = resource.getrusage(resource.RUSAGE_CHILDREN)
    manifests = [visit for visit in run.visits if isinstance(visit.result, Manifest)]
    return {
        "cpu_s": here.ru_utime + here.ru_stime + workers.ru_utime + workers.ru_stime,
        "main_cpu_s": here.ru_utime + here.ru_stime,
        "wall_s": time.monotonic() - began,
        "main_mb": here.ru_maxrss / 1024,
        "worker_mb": workers.ru_maxrss / 1024,
        "stages": {visit.name: round(visit.seconds, 2) for visit in manifests},
        "digests": {visit.name: visit.result.data_digest for visit in manifests},
        "rows": {visit.name: visit.result.rows_out for visit in manifests},
        "drops": {visit.name: visit.result.drops for visit in manifests if visit.result.drops},
    }


if __name__ == "__main__":
    print(json.dumps(_grow_here(Path(sys.argv[1]))))
