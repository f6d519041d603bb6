"""How the CLI shows things: tables and lines on a terminal, plain text and JSON elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.planning import Plan, PlannedStage
from tasks.inspecting import DropCount, DropSample, FunnelRow, Quarantined
from tasks.report_page import format_count, format_duration, format_size

# A pipe has no width: lines are never broken for one.
_PIPED_WIDTH = 10_000

NOTHING = "–"


def console() -> Console:
    """Where results go: standard output."""
    out = Console(highlight=False, emoji=False)
    return out if out.is_terminal else Console(highlight=False, emoji=False, width=_PIPED_WIDTH)


def say(line: str = "") -> None:
    """A line of text as it is, without markup."""
    console().print(printable(line), markup=False, soft_wrap=True)


def say_json(value: Any) -> None:
    """A value as JSON, for scripts."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=_plain))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"a {type(value).__name__} is not shown as JSON")


def printable(text: str) -> str:
    """Text that came from anywhere, without the characters that command a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def show_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], wide: str = "", title: str = ""
) -> None:
    """Rows below their column names; `>name` is set to the right, only `wide` is broken to fit."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for name in columns:
        table.add_column(
            name.removeprefix(">"),
            justify="right" if name.startswith(">") else "left",
            no_wrap=name != wide,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    out = console()
    if title:
        out.print(Text(title, style="bold"))
    out.print(table)


def _cell(value: object) -> str:
    if value is None:
        return NOTHING
    if isinstance(value, int):
        return format_count(value)
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))


def counted(n: int, one: str, many: str = "") -> str:
    """`1 object`, `2 objects`, `2 entries`."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


# a corpus


def show_funnel(rows: Sequence[FunnelRow]) -> None:
    cells = [
        (
            row.stage,
            row.rows_in,
            row.rows_out,
            sum(row.drops.values()),
            format_size(row.text_bytes),
            NOTHING if row.seconds is None else format_duration(row.seconds),
        )
        for row in rows
    ]
    show_table(("stage", ">rows in", ">rows out", ">dropped", ">text left", ">work"), cells)


def show_drops(drops: Sequence[DropCount]) -> None:
    rows = [(drop.stage, drop.reason, drop.count) for drop in drops]
    show_table(("dropped by", "reason", ">documents"), rows)


def show_drop_samples(samples: Sequence[DropSample]) -> None:
    for sample in samples:
        measured = "" if sample.value is None else f"  {sample.value:g}"
        limit = "" if sample.threshold is None else f", threshold {sample.threshold:g}"
        say(f"{sample.id}  {sample.stage}  {sample.reason}{measured}{limit}")
        for line in (sample.url, sample.detail, sample.excerpt):
            if line:
                say(f"    {line}")


def show_quarantined(groups: Sequence[Quarantined]) -> None:
    for group in groups:
        n = counted(group.count, "record")
        say(f"{group.source}  {group.stage}  {group.reason}  {n}")
        for locator, detail in group.examples:
            say(f"    {locator}{f'  ({detail})' if detail else ''}")


# a plan


def show_plan(plan: Plan) -> None:
    rows = [
        (stage.stage, stage.action, "; ".join(stage.why), stage.rows, *_estimates(stage))
        for stage in plan.stages
    ]
    columns = ("stage", "does", "why", ">rows", ">time", ">writes")
    show_table(columns, rows, wide="why")
    say()
    if plan.nothing_to_do:
        say("nothing to do")
        return
    least = "" if plan.complete else "at least "
    say(
        f"to do: {counted(len(plan.to_run), 'stage')}, {least}{format_duration(plan.seconds)} of "
        f"one core, {least}{format_size(plan.bytes)} to write"
    )


def _estimates(stage: PlannedStage) -> tuple[str, str]:
    if stage.action == "reuse":
        return "", ""
    return (
        "?" if stage.seconds is None else format_duration(stage.seconds),
        "?" if stage.bytes is None else format_size(stage.bytes),
    )
