"""Where actions run: a bounded number in flight, and no worker outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks.store.executors import IN_FLIGHT_PER_WORKER, InlineExecutor, executor_for, run_all


def double(n: int) -> int:
    if n < 0:
        raise ValueError(f"{n} is negative")
    return 2 * n


def process_id(n: int) -> int:
    return os.getpid()


class Recorder(Executor):
    """Finishes the newest call each time somebody waits; remembers how many were in flight."""

    def __init__(self, workers: int) -> None:
        self._max_workers = workers
        self.waiting: list[tuple[Future[Any], Any]] = []
        self.most = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting.append((future, lambda: fn(*args)))
        self.most = max(self.most, len(self.waiting))
        if len(self.waiting) == IN_FLIGHT_PER_WORKER * self._max_workers:
            self.finish_newest()
        return future

    def finish_newest(self) -> None:
        future, call = self.waiting.pop()
        future.set_result(call())


def test_four_calls_per_worker_are_in_flight_and_no_more() -> None:
    executor = Recorder(workers=2)
    taken: list[int] = []

    def calls() -> Iterator[tuple[int]]:
        for n in range(1000):
            taken.append(n)
            yield (n,)

    results = run_all(executor, double, calls())  # type: ignore[arg-type]
    for _ in range(20):
        next(results)
    assert executor.most == IN_FLIGHT_PER_WORKER * 2
    assert len(taken) <= 20 + IN_FLIGHT_PER_WORKER * 2, "calls are drawn as they are needed"


def test_results_come_with_the_number_of_their_call() -> None:
    calls = [(n,) for n in range(30)]
    with executor_for(2) as pool:
        assert sorted(run_all(pool, double, calls)) == [(n, 2 * n) for n in range(30)]


def test_one_worker_is_this_process_and_more_are_others() -> None:
    with executor_for(1) as here:
        assert isinstance(here, InlineExecutor)
        assert dict(run_all(here, process_id, [(0,)])) == {0: os.getpid()}
    with executor_for(2) as pool:
        assert os.getpid() not in dict(run_all(pool, process_id, [(0,), (1,)])).values()


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_call_reaches_the_caller(workers: int) -> None:
    with pytest.raises(ValueError, match="-1 is negative"), executor_for(workers) as executor:
        list(run_all(executor, double, [(1,), (-1,), (2,)]))


def test_a_call_that_failed_keeps_later_ones_from_starting() -> None:
    started: list[int] = []

    def work(n: int) -> None:
        started.append(n)
        if n == 3:
            raise ValueError("stop here")

    with pytest.raises(ValueError, match="stop here"):
        list(run_all(InlineExecutor(), work, [(n,) for n in range(100)]))
    assert started == [0, 1, 2, 3]


PARENT = """
import time
from tasks.store.executors import executor_for, run_all
from tests.tasks.store.test_executors import process_id
if __name__ == "__main__":
    with executor_for(2) as pool:
        print(*sorted(set(dict(run_all(pool, process_id, [(n,) for n in range(8)])).values())))
        print(flush=True)
        time.sleep(600)
"""


def test_workers_die_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert parent.stdout is not None
    workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    assert workers
    assert all(worker.is_running() for worker in workers)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=10)
    # One whose new parent does not wait for it stays on the list, but runs no more.
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []
    parent.stdout.close()


def test_leaving_with_an_error_does_not_wait_for_what_is_queued() -> None:
    def fail_with_work_queued() -> None:
        with executor_for(2) as pool:
            pool.submit(double, 1).result()
            for _ in range(40):
                pool.submit(time.sleep, 0.5)
            double(-1)

    began = time.monotonic()
    with pytest.raises(ValueError, match="-1 is negative"):
        fail_with_work_queued()
    assert time.monotonic() - began < 8
