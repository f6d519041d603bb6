from __future__ import annotations

import threading

import pytest

from llm.ahead import Ahead


def test_what_is_likely_to_be_asked_for_next_is_made_meanwhile() -> None:
    made: list[tuple[int, bool]] = []
    done = threading.Semaphore(0)

    def make(key: int) -> int:
        made.append((key, threading.current_thread() is threading.main_thread()))
        done.release()
        return 10 * key

    ahead = Ahead(make)
    assert ahead.take(1, then=2) == 10
    assert all(done.acquire(timeout=30) for _ in range(2))
    assert made == [(1, True), (2, False)]
    assert ahead.take(2, then=3) == 20
    assert ahead.take(7, then=8) == 70
    assert [key for key, here in made if here] == [1, 7]


def test_what_fails_ahead_of_its_use_fails_when_it_is_asked_for_and_can_be_asked_for_again() -> (
    None
):
    failures = [OSError("the network is down")]

    def make(key: int) -> int:
        if key == 2 and failures:
            raise failures.pop()
        return key

    ahead = Ahead(make)
    assert ahead.take(1, then=2) == 1
    with pytest.raises(OSError, match="the network is down"):
        ahead.take(2, then=3)
    assert ahead.take(2, then=3) == 2
