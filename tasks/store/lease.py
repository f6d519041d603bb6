"""A lease: one holder at a time, taken over when its holder is gone.

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
from llm.errors import StorageError

BEAT_S, EXPIRY_S, POLL_S = 5.0, 30.0, 1.0
# A process's start is told from the machine's boot time, which moves when the clock is set.
CLOCK_SLACK_S = 10.0


@dataclass(frozen=True)
class Lease:
    """A lease that is held; `lost` is set when somebody else has taken it."""

    url: str
    holder: dict[str, object]
    lost: threading.Event


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
