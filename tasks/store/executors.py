"""Where actions run: in this process, in a pool of spawned ones that die with it, or on Dask."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from llm.errors import ConfigError

Result = TypeVar("Result")

IN_FLIGHT_PER_WORKER = 4


class InlineExecutor(Executor):
    """Runs each call at once, in the caller's process."""

    _max_workers = 1

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


@contextmanager
def executor_for(workers: int) -> Iterator[Executor]:
    """An executor of that many processes; with one, the work is done right here."""
    if workers <= 1:
        yield InlineExecutor()
        return
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin_worker,
        initargs=(os.getpid(),),
    )
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


@contextmanager
def dask_executor(address: str | None, workers: int) -> Iterator[Executor]:
    """An executor over the Dask cluster at `address`; without one, over a local cluster.

    The call of a worker that dies is run again by another; a call that has killed several workers
    raises Dask's KilledWorker. A cluster elsewhere must reach the store, with its own credentials,
    and run this version of Loam.

    Raises:
        ConfigError: Dask is not installed, or nothing answers at the address.
    """
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise ConfigError(
            'store.executor is "dask", and Dask is not installed: pip install "loam[dask]"'
        ) from None
    with ExitStack() as stack:
        if address is None:
            cluster = stack.enter_context(
                LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    processes=True,
                    dashboard_address=None,
                    host="127.0.0.1",
                    memory_limit=0,
                )
            )
            client = stack.enter_context(Client(cluster))
        else:
            try:
                client = stack.enter_context(Client(address, timeout="10s"))
            except OSError as error:
                raise ConfigError(
                    f"store.dask_address: no Dask scheduler answers at {address} ({error})"
                ) from None
        executor = client.get_executor(pure=False)
        executor._max_workers = max(1, sum(client.nthreads().values()))
        yield executor


def run_all(
    executor: Executor, function: Callable[..., Result], calls: Sequence[tuple[Any, ...]]
) -> Iterator[tuple[int, Result]]:
    """Runs `function(*call)` for each call; yields (index, result) as they finish.

    No more than four calls per worker are in flight, so that a million of them do not pile up.
    """
    limit = IN_FLIGHT_PER_WORKER * int(getattr(executor, "_max_workers", 1))
    pending: dict[Future[Result], int] = {}
    queue = iter(enumerate(calls))
    while True:
        while len(pending) < limit and (item := next(queue, None)) is not None:
            pending[executor.submit(function, *item[1])] = item[0]
            if isinstance(executor, InlineExecutor):
                break
        if not pending:
            return
        done, _ = wait(pending, return_when=FIRST_COMPLETED)
        for future in done:
            yield pending.pop(future), future.result()


def _begin_worker(parent: int) -> None:
    """Sets a worker up: one thread, little memory kept, and it ends when its parent is gone,
    however it went."""
    import pyarrow as pa

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # It gives back what a shard took sooner than Arrow's first choice: at the peak of scrubbing
    # shards of 67 MB a worker has 770 MB, not 900.
    if "jemalloc" in pa.supported_memory_backends():
        pa.set_memory_pool(pa.jemalloc_memory_pool())

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="follow-parent").start()
