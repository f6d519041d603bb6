from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from llm import files
from llm.metrics import Display, MetricsLog, read_metrics


def row(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "loss": 1.0 / step, "tokens_per_second": 1000.0} | more


def log_of(url: str, steps: range, first: int = 0, close_every: int = 4) -> None:
    log = MetricsLog(url, first)
    for step in steps:
        log.append(row(step))
        if step % close_every == 0:
            log.close_segment(step)


def test_rows_come_back_in_order_and_exactly(tmp_path: Path) -> None:
    url = tmp_path.as_uri()
    log_of(url, range(1, 13))
    assert read_metrics(url) == [row(step) for step in range(1, 13)]
    assert len(list(files.list_urls(f"{url}/metrics"))) == 3


def test_rows_after_the_checkpoint_are_taken_back_by_whoever_resumes(tmp_path: Path) -> None:
    url = tmp_path.as_uri()
    log_of(url, range(1, 13))
    log_of(url, range(9, 11), first=8, close_every=1)
    assert [each["step"] for each in read_metrics(url)] == list(range(1, 11))


def test_a_row_can_be_seen_before_its_segment_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0.0, 6.0)
    monkeypatch.setattr("llm.metrics.time.monotonic", lambda: next(clock))
    log = MetricsLog(tmp_path.as_uri(), 0)
    log.append(row(1))
    assert read_metrics(tmp_path.as_uri()) == [row(1)]


def shown(rows: list[dict[str, Any]], terminal: bool = False, quiet: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120, quiet=quiet)
    with Display(100, 0, console, quiet) as display:
        for each in rows:
            display.update(each)
    return out.getvalue()


def test_without_a_terminal_a_line_tells_loss_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = itertools.count(0.0, 30.0)
    monkeypatch.setattr("llm.metrics.time.monotonic", lambda: next(clock))
    assert shown([row(10)]) == "step 10/100  loss 0.1000  1,000 tokens/s  4.5 min left\n"
    looked = row(10, validation_loss=2.5, bits_per_byte=1.25)
    assert "validation 2.5000 (1.2500 bits per byte)" in shown([looked])


def test_a_terminal_gets_a_bar_with_the_time_left() -> None:
    said = shown([row(step) for step in range(1, 51)], terminal=True)
    assert "50/100" in said
    assert "loss 0.0200" in said
