"""A checkpoint's wait in the training loop: an asynchronous save over a synchronous one."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path

from llm import files
from llm.checkpoint import Keep, Writer
from llm.checkpoint_layout import INDEX, folder_of
from llm.config_train import TrainConfig
from llm.run_state import Run
from llm.train import update
from tests.bench.harness import Result
from tests.bench.training import made_up, started

TARGET = 0.25


def run(quick: bool) -> Result:
    """Wall seconds, as a wait is what is measured; medians of saves in turn, after one of each.

    `ratio` is the asynchronous one's wait over the synchronous one's, so that less is better. The
    state is that of a run of 10.7 M parameters with Muon and AdamW after a step. Quality: both
    ways save the same bytes.
    """
    config = TrainConfig(device="cpu", threads=1, batch_size=1)
    run, environment = started(config)
    update(run, [made_up(1)], environment, config)
    n_saves = 5 if quick else 20
    with tempfile.TemporaryDirectory() as folder:
        urls = {way: (Path(folder) / way).as_uri() for way in ("asynchronous", "synchronous")}
        seconds = _seconds(run, urls, n_saves)
        saved = {way: _hashes(url, n_saves) for way, url in urls.items()}
        n_bytes = sum(entry["bytes"] for entry in saved["synchronous"].values())
    blocked, whole = (statistics.median(seconds[way][1:]) for way in urls)
    same = saved["asynchronous"] == saved["synchronous"]
    return Result(
        ratio=blocked / whole,
        target=TARGET,
        ok=same and blocked / whole <= TARGET,
        figures={
            "blocks_ms": blocked * 1e3,
            "synchronous_ms": whole * 1e3,
            "first_blocks_ms": seconds["asynchronous"][0] * 1e3,
            "checkpoint_mb": n_bytes / 1e6,
        },
        quality={"same_bytes": same, "saves": n_saves},
    )


def _seconds(run: Run, urls: dict[str, str], n_saves: int) -> dict[str, list[float]]:
    """What each save of each way kept its caller for."""
    seconds: dict[str, list[float]] = {way: [] for way in urls}
    keep = Keep(last=1)
    with (
        Writer(urls["asynchronous"], keep) as aside,
        Writer(urls["synchronous"], keep) as waiting,
    ):
        for step in range(1, n_saves + 1):
            state = run.state()
            start = time.perf_counter()
            aside.save(step, state)
            seconds["asynchronous"].append(time.perf_counter() - start)
            aside.wait()
            start = time.perf_counter()
            waiting.save(step, state)
            waiting.wait()
            seconds["synchronous"].append(time.perf_counter() - start)
    return seconds


def _hashes(url: str, step: int) -> dict[str, dict[str, object]]:
    index = json.loads(files.read_bytes(f"{folder_of(url, step)}/{INDEX}"))
    found: dict[str, dict[str, object]] = index["files"]
    return found
