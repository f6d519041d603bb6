"""A lease has one holder at a time, and outlives none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from llm import files
from llm.errors import StorageError
from tasks.store import lease as lease_module
from tasks.store.lease import held


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "POLL_S", 0.05)
    monkeypatch.setattr(lease_module, "BEAT_S", 0.1)


def quiet(text: str) -> None:
    pass


def test_the_second_waits_until_the_first_lets_go(store_root: str) -> None:
    url = f"{store_root}/lease.json"
    told: list[str] = []
    order: list[str] = []

    def second() -> None:
        with held(url, told.append):
            order.append("second")

    with held(url, quiet):
        thread = threading.Thread(target=second)
        thread.start()
        deadline = time.monotonic() + 20
        while not told and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]
    assert told == ["another run is at it; waiting for it to finish or to let go"]


def test_never_two_hold_it(store_root: str) -> None:
    url = f"{store_root}/lease.json"
    inside: list[int] = []
    most: list[int] = []

    def work(n: int) -> None:
        with held(url, quiet):
            inside.append(n)
            most.append(len(inside))
            time.sleep(0.02)
            inside.remove(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == [1] * 6


HOLD = """
import sys, time
from tasks.store.lease import held
with held(sys.argv[1], print):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("waited_for", [True, False])
def test_a_lease_whose_holder_was_killed_here_is_free_at_once(
    store_root: str, waited_for: bool
) -> None:
    url = f"{store_root}/lease.json"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, url],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    holder.send_signal(signal.SIGKILL)
    if waited_for:
        holder.wait()
    else:
        time.sleep(0.2)
    began = time.monotonic()
    with held(url, quiet):
        assert time.monotonic() - began < lease_module.EXPIRY_S / 3
    holder.communicate()


def elsewhere(beat: int) -> bytes:
    holder = {"host": "another-host", "pid": 1, "started": 0.0, "token": "t"}
    return json.dumps({"holder": holder, "beat": beat}).encode()


def test_a_silent_holder_on_another_host_is_given_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "EXPIRY_S", 1.0)
    url = f"{tmp_path}/lease.json"
    files.put(url, elsewhere(0))
    began = time.monotonic()
    with held(url, quiet):
        assert time.monotonic() - began > 1.0


def test_a_holder_that_beats_is_not_robbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "EXPIRY_S", 0.6)
    url = f"{tmp_path}/lease.json"
    with held(url, quiet) as lease:
        thread = threading.Thread(target=lambda: held(url, quiet).__enter__(), daemon=True)
        # To the waiter this process is on another host, so that only the beats count.
        monkeypatch.setattr(lease_module, "_gone", lambda holder: holder is None)
        thread.start()
        time.sleep(1.5)
        assert not lease.lost.is_set()
        assert holder_of(url) == lease.holder
    thread.join(20)


def holder_of(url: str) -> Any:
    return json.loads(files.read_bytes(url))["holder"]


def test_a_holder_that_was_robbed_knows_and_leaves_the_robber_be(tmp_path: Path) -> None:
    url = f"{tmp_path}/lease.json"
    with held(url, quiet) as lease:
        files.put(url, elsewhere(7))
        assert lease.lost.wait(20)
    assert holder_of(url)["host"] == "another-host"


def test_a_storage_that_is_away_for_a_moment_loses_no_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{tmp_path}/lease.json"
    read = files.read_versioned
    failures = 3

    def away(url: str) -> Any:
        nonlocal failures
        if failures:
            failures -= 1
            raise StorageError("away")
        return read(url)

    with held(url, quiet) as lease:
        monkeypatch.setattr(files, "read_versioned", away)
        deadline = time.monotonic() + 20
        while failures and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        assert not lease.lost.is_set()
        assert holder_of(url) == lease.holder
    assert holder_of(url) is None
