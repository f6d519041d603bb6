"""Grows a corpus and its tokens in a process of its own, and tells what that cost.

    python -m tests.bench.growing [WARM.json] CONFIG.json

The recipe runs as it is, stages as plain functions: no Prefect server is part of the figures.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

from flows.config import parse_config
from flows.corpus import grow_corpus
from flows.running import RunOptions, open_run
from tasks.publish import publish
from tasks.store.records import Manifest
from tasks.store.run import Run
from tasks.tokenise import dataset, tokenise


def grow(path: Path, warm: Path | None = None) -> dict[str, Any]:
    """What the growth of the config at `path` cost, from a child process.

    cpu_s: CPU seconds of all its processes; wall_s; main_mb, worker_mb: peak resident size of the
    main process and of the largest worker; stages: CPU seconds of the main process by stage; peaks:
    its peak MB after each; digests, rows, drops: by stage. With `warm`, that config is grown first,
    so that neither loading libraries nor compiled kernels is part of the seconds.
    """
    paths = [str(one) for one in (warm, path) if one is not None]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.growing", *paths],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _grow_here(path: Path) -> dict[str, Any]:
    config = parse_config(json.loads(path.read_text(encoding="utf-8")), str(path))
    began, main_began, all_began = time.monotonic(), time.process_time(), _cpu_of_all()
    stages: dict[str, float] = {}
    peaks: dict[str, float] = {}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(run: Run, *args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            result = function(run, *args, **kwargs)
            stages[name] = round(stages.get(name, 0) + time.process_time() - start, 3)
            peaks[name] = round(_peak_mb())
            return result

        return call

    with (
        _largest_child() as worker_mb,
        mock.patch("tasks.as_task.in_prefect", timed),
        open_run(config, RunOptions(), say=lambda text: print(text, file=sys.stderr)) as run,
    ):
        corpus = grow_corpus(run, config)
        tokens = tokenise(run, corpus, config.tokenizer)
        publish(run, dataset(run, tokens, config.tokenizer), "dataset")
    manifests = [visit for visit in run.visits if isinstance(visit.result, Manifest)]
    return {
        "cpu_s": _cpu_of_all() - all_began,
        "main_cpu_s": time.process_time() - main_began,
        "wall_s": time.monotonic() - began,
        "main_mb": _peak_mb(),
        "worker_mb": worker_mb[0],
        "stages": stages,
        "peaks": peaks,
        "digests": {visit.name: visit.result.data_digest for visit in manifests},
        "rows": {visit.name: visit.result.rows_out for visit in manifests},
        "drops": {visit.name: visit.result.drops for visit in manifests if visit.result.drops},
    }


def _cpu_of_all() -> float:
    """CPU seconds of this process and of its workers that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextmanager
def _largest_child() -> Iterator[list[float]]:
    """The most resident MB that a worker was seen with, looked at ten times a second: the system's
    own count of children holds what their parent had when it started them."""
    largest, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            for child in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    if "spawn_main" in " ".join(child.cmdline()):
                        largest[0] = max(largest[0], child.memory_info().rss / 1024 / 1024)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield largest
    finally:
        done.set()
        watcher.join()


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(json.dumps(_grow_here(Path(argument))))
