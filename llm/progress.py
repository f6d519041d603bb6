"""Progress a person can watch: a bar with its rate on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SHOWN_AFTER_S, LINE_EVERY_S = 2.0, 15.0


@dataclass
class Tally:
    """How far one piece of work has come. `total` is None while it is not known."""

    label: str
    unit: str
    total: int | None
    done: int = 0
    note: str = ""

    def advance(self, by: int = 1, note: str = "") -> None:
        self.done += by
        self.note = note or self.note
        self.show()

    def show(self) -> None:
        """Replaced by whoever shows the tally."""


@contextmanager
def tally(label: str, unit: str, total: int | None = None) -> Iterator[Tally]:
    """Shows the work done inside, if it takes longer than two seconds."""
    console = Console(stderr=True)
    watch = _bar if console.is_terminal else _lines
    with watch(console, Tally(label, unit, total)) as counted:
        yield counted


@contextmanager
def _bar(console: Console, counted: Tally) -> Iterator[Tally]:
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=True,
    )
    task = bar.add_task(counted.label, total=counted.total, rate="", note="")
    began = time.monotonic()
    started = False

    def show() -> None:
        nonlocal started
        seconds = time.monotonic() - began
        if not started and seconds > SHOWN_AFTER_S:
            started = True
            bar.start()
        rate = f"{counted.done / max(seconds, 1e-3):,.1f} {counted.unit}/s"
        bar.update(task, completed=counted.done, total=counted.total, rate=rate, note=counted.note)

    counted.show = show  # type: ignore[method-assign]
    try:
        yield counted
    finally:
        if started:
            bar.stop()


@contextmanager
def _lines(console: Console, counted: Tally) -> Iterator[Tally]:
    began = last = time.monotonic()

    def show() -> None:
        nonlocal last
        moment = time.monotonic()
        if moment - last < LINE_EVERY_S:
            return
        last = moment
        of = f" of {counted.total:,}" if counted.total else ""
        rate = counted.done / max(moment - began, 1e-3)
        note = f" ({counted.note})" if counted.note else ""
        print(
            f"{counted.label}: {counted.done:,}{of} {counted.unit}, {rate:,.1f}/s{note}",
            file=sys.stderr,
            flush=True,
        )

    counted.show = show  # type: ignore[method-assign]
    yield counted
