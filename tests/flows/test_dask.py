"""The stages over the workers of a Dask cluster, with one store on S3 between them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from llm import files
from tests.flows.grown import REPOSITORY
from tests.flows.small_pipeline import (
    Place,
    check,
    ended,
    results,
    serving_site,
    wait_until,
    whole_content,
)

WHOLE = whole_content()


@dataclass(frozen=True)
class Cluster:
    """A scheduler's address, and its worker processes."""

    address: str
    workers: tuple[subprocess.Popen[bytes], ...]


@contextmanager
def running(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program of Dask's, from its command line, until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def cluster(folder: Path, n_workers: int) -> Iterator[Cluster]:
    """A scheduler and its workers, each a process of its own on loopback."""
    from distributed import Client

    folder.mkdir()
    told = folder / "scheduler.json"
    told_option = ("--scheduler-file", str(told), "--host", "127.0.0.1", "--no-dashboard")
    with ExitStack() as stack:
        stack.enter_context(
            running(folder, "distributed.cli.dask_scheduler", *told_option, "--port", "0")
        )
        workers = tuple(
            stack.enter_context(
                running(
                    folder,
                    "distributed.cli.dask_worker",
                    *told_option,
                    "--nthreads",
                    "1",
                    "--no-nanny",
                )
            )
            for _ in range(n_workers)
        )
        deadline = time.monotonic() + 60
        while not told.exists():
            assert time.monotonic() < deadline, "the scheduler did not start"
            time.sleep(0.05)
        with Client(scheduler_file=str(told), timeout="60s") as client:
            client.wait_for_workers(n_workers, timeout="60s")
            address = client.scheduler.address
        yield Cluster(address, workers)


@pytest.mark.slow
def test_stages_over_dask_and_s3_end_as_in_one_process_though_a_worker_is_killed_in_mid_dedup(
    undisturbed: Place, s3_root: str, tmp_path: Path
) -> None:
    place = replace(Place.at(tmp_path / "dask"), root=s3_root)
    with serving_site(WHOLE) as server, cluster(tmp_path / "cluster", 3) as dask:
        place.write(WHOLE, server, dask=dask.address)
        process = place.start()
        wait_until(process, lambda: bool(files.list_urls(f"{s3_root}/manifests/select")))
        # It goes on being given work, and never finishes any.
        dask.workers[0].send_signal(signal.SIGSTOP)
        time.sleep(2)
        assert not files.list_urls(f"{s3_root}/manifests/dedup"), "it is not needed for dedup"
        dask.workers[0].kill()
        ended(process)
    assert results(place) == results(undisturbed)
    assert check(place).ok


def test_a_scheduler_that_does_not_answer_is_named(tmp_path: Path) -> None:
    place = Place.at(tmp_path / "alone")
    place.write(WHOLE.first(0, 3), None, sources=("notes",), model=False, dask="tcp://127.0.0.1:9")
    process = place.start()
    said = process.communicate()[0]
    assert process.returncode != 0
    assert "store.dask_address: no Dask scheduler answers at tcp://127.0.0.1:9" in said
