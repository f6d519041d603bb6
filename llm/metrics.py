"""The log of a run: one JSON row per logged step, in segments that a checkpoint closes.

A segment is named after its first step and rewritten whole while it grows. Whoever resumes at
step N takes away what was logged after N, so that each step stands in the log exactly once and
the log reads as if nothing had happened; only timings tell.
"""

from __future__ import annotations

import json
import re
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from llm import files

FLUSH_SECONDS = 5.0
"""How long a row may wait before a reader can see it; a kill loses no row a checkpoint covers."""

PLAIN_SECONDS = 5.0
"""The least time between two lines of progress where the output is no terminal."""

TIMINGS = frozenset({"tokens_per_second", "mfu", "memory_mib"})
"""Fields of a row that say what a step took; all others are the same in any undisturbed run."""

_FIRST_STEP = re.compile(r"/(\d{8,})\.jsonl$")

Row = dict[str, Any]


class MetricsLog:
    """Appends rows to `{run_url}/metrics/`, beginning after `step` finished updates."""

    def __init__(self, run_url: str, step: int) -> None:
        self._root = f"{run_url}/metrics"
        for first, url in _segments(self._root):
            if first > step:
                files.delete(url)
        self._first = step + 1
        self._rows: list[str] = []
        self._flushed_at = time.monotonic()

    def append(self, row: Row) -> None:
        self._rows.append(json.dumps(row, separators=(",", ":")) + "\n")
        if time.monotonic() - self._flushed_at > FLUSH_SECONDS:
            self._flush()

    def close_segment(self, step: int) -> None:
        """Makes every row so far durable; the next segment begins after `step`."""
        self._flush()
        self._first, self._rows = step + 1, []

    def _flush(self) -> None:
        if self._rows:
            files.put(f"{self._root}/{self._first:08d}.jsonl", "".join(self._rows).encode())
        self._flushed_at = time.monotonic()


def read_metrics(run_url: str) -> list[Row]:
    """Every row logged so far, by step."""
    bodies = [files.read_bytes(url) for _, url in _segments(f"{run_url}/metrics")]
    return [json.loads(line) for body in bodies for line in body.decode().splitlines()]


def _segments(root: str) -> list[tuple[int, str]]:
    found = ((_FIRST_STEP.search(url), url) for url in files.list_urls(root))
    return sorted((int(match[1]), url) for match, url in found if match)


class Display:
    """Progress with rate and time left: a bar on a terminal, plain lines elsewhere."""

    def __init__(
        self, steps: int, step: int, console: Console | None = None, quiet: bool = False
    ) -> None:
        self._console = console or Console(stderr=True, soft_wrap=True, quiet=quiet)
        self._steps, self._begun_at, self._begun_with = steps, time.monotonic(), step
        self._line_at = float("-inf")
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=steps, completed=step, facts="")

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False)

    def update(self, row: Row) -> None:
        facts = _facts(row)
        self._bar.update(self._task, completed=row["step"], facts=facts)
        now = time.monotonic()
        worth_a_line = "validation_loss" in row or now - self._line_at >= PLAIN_SECONDS
        if self._console.is_terminal or not worth_a_line:
            return
        self._line_at = now
        per_step = (now - self._begun_at) / max(1, row["step"] - self._begun_with)
        left = per_step * (self._steps - row["step"])
        self.say(f"step {row['step']}/{self._steps}  {facts}  {left / 60:.1f} min left")


def _facts(row: Row) -> str:
    facts = f"loss {row['loss']:.4f}  {row['tokens_per_second']:,.0f} tokens/s"
    if "validation_loss" in row:
        bits = row["bits_per_byte"]
        facts += f"  validation {row['validation_loss']:.4f} ({bits:.4f} bits per byte)"
    return facts
