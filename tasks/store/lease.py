"""A lease: one holder at a time, taken over when its holder is gone.

A store as a whole has two kinds of it. Runs hold `leases/runs/<run id>.json`, as many at a time as
there are; who takes things away (gc, erase) holds `leases/exclusive.json`, and no run beside it.
Each writes its own lease first and then looks at the other's, so that of two who begin at the same
moment at least one sees the other: the run waits, the other lets go and says so.

Time is judged by the one who waits: a lease whose file has not changed for `EXPIRY_S` of the
waiter's own clock is free, so that no two machines need agree on the hour.
"""

from __future__ import annotations

import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from llm import files
from llm.errors import LoamError, StorageError

BEAT_S, EXPIRY_S, POLL_S = 5.0, 30.0, 1.0
# A process's start is told from the machine's boot time, which moves when the clock is set.
CLOCK_SLACK_S = 10.0


class StoreInUse(LoamError):
    """Runs are at work in the store, and nothing may be taken away beside them."""


class LeaseLost(LoamError):
    """The holder did not stir for a while, and others went on without it."""


@dataclass(frozen=True)
class Lease:
    """A lease that is held; `lost` is set when somebody else has taken it."""

    url: str
    holder: dict[str, object]
    lost: threading.Event

    def check(self) -> None:
        """Raises LeaseLost where somebody else has taken it."""
        seen = None if self.lost.is_set() else files.read_versioned(self.url)
        if seen is None or json.loads(seen.body)["holder"] != self.holder:
            raise LeaseLost(
                f"{self.url} did not stir for {EXPIRY_S:g} s and was taken for dead, so that what "
                "this process relies on may be gone; run again to go on from here"
            )


def _body(holder: dict[str, object] | None, beat: int) -> bytes:
    return json.dumps({"holder": holder, "beat": beat}, sort_keys=True).encode()


def _holder() -> dict[str, object]:
    process = psutil.Process()
    return {
        "host": socket.gethostname(),
        "pid": process.pid,
        "started": process.create_time(),
        "token": secrets.token_hex(8),
    }


def _gone(holder: dict[str, object] | None) -> bool:
    """Whether the holder is known to be gone: it let go, or its process on this host ended."""
    if holder is None:
        return True
    if holder["host"] != socket.gethostname():
        return False
    try:
        process = psutil.Process(int(str(holder["pid"])))
        # One that was killed and that its parent has not waited for holds nothing either.
        if process.status() == psutil.STATUS_ZOMBIE:
            return True
        return abs(process.create_time() - float(str(holder["started"]))) > CLOCK_SLACK_S
    except psutil.NoSuchProcess:
        return True


@contextmanager
def held(url: str, say: Callable[[str], None]) -> Iterator[Lease]:
    """Waits for the lease at `url`, holds it and lets it go."""
    lease = _take(url, say)
    done = threading.Event()
    keeper = threading.Thread(target=_keep, args=(lease, done), daemon=True, name="lease")
    keeper.start()
    try:
        yield lease
    finally:
        done.set()
        keeper.join()
        _renew(lease, None, 0)


@contextmanager
def joined(root: str, name: str, say: Callable[[str], None]) -> Iterator[Lease]:
    """Holds a lease of a run's own on the store at `root`, beside those of other runs; waits while
    somebody holds the exclusive one."""
    url = f"{root}/leases/runs/{name}.json"
    try:
        with held(url, say) as lease:
            _wait_until_free(_exclusive(root), say)
            yield lease
    finally:
        _remove(url)


@contextmanager
def alone(root: str, say: Callable[[str], None]) -> Iterator[Lease]:
    """Holds the exclusive lease on the store at `root`.

    Runs that begin meanwhile wait. Raises StoreInUse while one is alive; what a dead one left is
    removed, which a host that only slept notices by its own lease.
    """
    with held(_exclusive(root), say) as lease:
        urls = files.list_urls(f"{root}/leases/runs")
        living = [holder for url in urls if (holder := _living(url)) is not None]
        if living:
            told = ", ".join(f"process {one['pid']} on {one['host']}" for one in living)
            raise StoreInUse(
                f"{root} is in use by {told}: nothing is deleted beside a run; try again when it "
                "is done"
            )
        for url in urls:
            _remove(url)
        yield lease


def _exclusive(root: str) -> str:
    return f"{root}/leases/exclusive.json"


def _wait_until_free(url: str, say: Callable[[str], None]) -> None:
    seen = files.read_versioned(url)
    if seen is not None and json.loads(seen.body)["holder"] is not None:
        # Taken and let go, so that a holder who only slept knows that it lost it.
        with held(url, lambda _: say("the store is being tidied; waiting for that to finish")):
            pass


def _living(url: str) -> dict[str, object] | None:
    """The holder of a lease, if it lives. One that cannot be asked, being on another host, is
    watched for as long as it takes to see it stir or expire."""
    first = files.read_versioned(url)
    since = time.monotonic()
    while (seen := files.read_versioned(url)) is not None and first is not None:
        holder: dict[str, object] | None = json.loads(seen.body)["holder"]
        if holder is None or _gone(holder):
            return None
        if holder["host"] == socket.gethostname() or seen.version != first.version:
            return holder
        if time.monotonic() - since > EXPIRY_S:
            return None
        time.sleep(POLL_S)
    return None


def _remove(url: str) -> None:
    files.delete(url)
    if not files.is_s3(url):
        files.delete(f"{url}.lock")


def _take(url: str, say: Callable[[str], None]) -> Lease:
    version, since, told = None, time.monotonic(), False
    holder = _holder()
    while True:
        seen = files.read_versioned(url)
        if seen is None or seen.version != version:
            version, since = (seen.version if seen else None), time.monotonic()
        expired = time.monotonic() - since > EXPIRY_S
        if seen is None or expired or _gone(json.loads(seen.body)["holder"]):
            if files.swap(url, seen, _body(holder, 0)):
                return Lease(url, holder, threading.Event())
            continue
        if not told:
            told = True
            say("another run is at it; waiting for it to finish or to let go")
        time.sleep(POLL_S)


def _keep(lease: Lease, done: threading.Event) -> None:
    beat = 0
    while not done.wait(BEAT_S):
        beat += 1
        try:
            if not _renew(lease, lease.holder, beat):
                lease.lost.set()
                return
        except StorageError:
            # The storage is away for a moment: the next beat tells whether the lease was taken.
            continue


def _renew(lease: Lease, holder: dict[str, object] | None, beat: int) -> bool:
    """Writes the next holder, us or nobody. False, and nothing written, when it is not ours."""
    seen = files.read_versioned(lease.url)
    if seen is None or json.loads(seen.body)["holder"] != lease.holder:
        return False
    return files.swap(lease.url, seen, _body(holder, beat))
