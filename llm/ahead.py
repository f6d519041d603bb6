"""One thing made ahead of its use, by a thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Key = TypeVar("Key")
Made = TypeVar("Made")


class Ahead(Generic[Key, Made]):
    """What a pure function makes of keys that mostly follow each other, the next while one is used.

    The function must be safe to call in two threads at once. What it raises is raised by `take`.
    """

    def __init__(self, make: Callable[[Key], Made]) -> None:
        self._make = make
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._next: tuple[Key, Future[Made]] | None = None

    def take(self, key: Key, then: Key) -> Made:
        """What is made of `key`, and a start with `then`, which is likely to be asked for next."""
        ready, self._next = self._next, None
        if ready is not None and ready[0] == key:
            made = ready[1].result()
        else:
            if ready is not None:
                ready[1].cancel()
            made = self._make(key)
        self._next = (then, self._thread.submit(self._make, then))
        return made
