"""How the CLI shows things: tables and lines on a terminal, plain text and JSON elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.planning import Plan, PlannedStage
from tasks import registry
from tasks.alarms import Alarm
from tasks.canaries import CanaryCount
from tasks.inspecting import DropCount, DropSample, FunnelRow, Quarantined
from tasks.leaks import BenchmarkCount, Leak
from tasks.registry import ModelVersion
from tasks.report_page import format_count, format_duration, format_size
from tasks.status import StoreStatus
from tasks.store.store import Store

# A pipe has no width: lines are never broken for one.
_PIPED_WIDTH = 10_000
_GAP, _LEAST_WIDE = 2, 24

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
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    wide: Sequence[str] = (),
    title: str = "",
) -> None:
    """Rows below their column names; `>name` is set to the right, and only those named in `wide`
    are broken to fit. Where that is not enough, lines run over rather than lose a figure."""
    cells = [[_cell(value) for value in row] for row in rows]
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    least = 0
    for name, *column in zip(columns, *cells, strict=True):
        justify: Literal["left", "right"] = "right" if name.startswith(">") else "left"
        heading = name.removeprefix(">")
        width = max(cell_len(text) for text in (heading, *column))
        if name in wide:
            width = min(width, _LEAST_WIDE)
        table.add_column(heading, justify=justify, no_wrap=name not in wide, min_width=width)
        least += width + _GAP
    for texts in cells:
        table.add_row(*map(Text, texts))
    out = console()
    out.width = max(out.width, least)
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


def show_alarms(alarms: Sequence[Alarm]) -> None:
    """What is unusual about a corpus, before everything else about it."""
    for alarm in alarms:
        say(f"ALARM {alarm}")
    if alarms:
        say()


def show_set_aside(groups: Sequence[Quarantined], command: str) -> None:
    """A line on what never became a document, which no funnel counts; none where there is none."""
    n = sum(group.count for group in groups)
    if n:
        say(f"\nset aside before the funnel: {counted(n, 'record')}; {command} --quarantined")


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


def show_benchmarks(counts: Sequence[BenchmarkCount]) -> None:
    show_table(
        ("benchmark", ">items", ">found", ">leaked", ">documents dropped"),
        [
            (row.name, row.items, row.items_matched, row.items_leaked, row.documents_dropped)
            for row in counts
        ],
    )


def show_canaries(counts: Sequence[CanaryCount]) -> None:
    show_table(
        ("canary", "detail", "stage", ">planted", ">reached", ">caught", ">recall",
         ">false alarms"),
        [
            (one.kind, one.detail or None, one.stage, one.planted, one.reached,
             *((one.caught, one.rate, None) if one.wanted else (None, None, one.caught)))
            for one in counts
        ],
    )  # fmt: skip


def show_leaks(found: Sequence[Leak]) -> None:
    for leak in found:
        say(f"{leak.id}  {leak.reason}  {leak.matched} n-grams, overlap {leak.overlap:g}")
        if leak.url:
            say(f"    {leak.url}")
        say(f"    {leak.benchmark}:{leak.item}")
        say(f"        {leak.passage}")
        say("    the document")
        say(f"        {leak.before} [[ {leak.span} ]] {leak.after}")


def show_quarantined(groups: Sequence[Quarantined]) -> None:
    for group in groups:
        n = counted(group.count, "record")
        say(f"{group.source}  {group.stage}  {group.reason}  {n}")
        for locator, detail in group.examples:
            say(f"    {locator}{f'  ({detail})' if detail else ''}")


# a plan


def show_plan(plan: Plan) -> None:
    rows = []
    told: tuple[str, ...] = ()
    for stage in plan.stages:
        why = "" if stage.why == told else "; ".join(stage.why)
        told = stage.why
        rows.append((stage.stage, stage.action, why, stage.rows, *_estimates(stage)))
    show_table(("stage", "does", "why", ">rows", ">time", ">writes"), rows, wide=("why",))
    say()
    if plan.nothing_to_do:
        say("nothing to do")
        return
    runs = sum(stage.action == "run" for stage in plan.stages)
    follow = len(plan.to_run) - runs
    unknown = "" if plan.complete else ", and what nobody knows yet (?)"
    say(
        f"{counted(runs, 'stage')} to run and {follow} that may follow: about "
        f"{format_duration(plan.seconds)} of one core and {format_size(plan.bytes)}{unknown}"
    )


def _estimates(stage: PlannedStage) -> tuple[str, str]:
    if stage.action == "reuse":
        return "", ""
    return (
        "?" if stage.seconds is None else format_duration(stage.seconds),
        "?" if stage.bytes is None else format_size(stage.bytes),
    )


# a store and its models


def show_status(status: StoreStatus, due: Mapping[str, str]) -> None:
    """`due` says of sources, by pipeline/source, why they are to be looked at again."""
    say(f"store {status.root}")
    sections = [
        (
            "refs",
            ("ref", ">rows", "moved", ">entries", "names", "made by run"),
            [(r.name, r.rows, age(r.at), r.entries, r.names, r.run_id) for r in status.refs],
        ),
        (
            "snapshots",
            ("source", ">rows", "last looked at", *(("due",) if due else ())),
            [
                (s.name, s.rows, age(s.looked_at), *((due.get(s.name),) if due else ()))
                for s in status.snapshots
            ],
        ),
        (
            "pins",
            ("pin", "sha256", "since"),
            [(p.name, p.sha256[:12] if p.sha256 else "let go", age(p.at)) for p in status.pins],
        ),
        (
            "models",
            ("model", ">newest", "aliases"),
            [(m.name, m.newest, _aliases(m.aliases)) for m in status.models],
        ),
        (
            "under way",
            ("what", "how far", "who"),
            [(f"crawl {name}", "stopped or going on", None) for name in status.crawls]
            + [
                (f"training {t.run}", f"step {t.step:,} of {t.steps:,}", t.holder or "nobody")
                for t in status.trainings
            ],
        ),
    ]
    for title, columns, rows in sections:
        if rows:
            say()
            show_table(columns, rows, title=title)
    if not any(rows for _, _, rows in sections):
        say("it is empty; `loam run` fills it")


def _aliases(aliases: Mapping[str, int]) -> str:
    return ", ".join(f"{alias} {version}" for alias, version in sorted(aliases.items()))


def show_versions(store: Store, versions: Sequence[ModelVersion]) -> None:
    rows: list[tuple[object, ...]] = []
    for version in versions:
        aliases = registry.aliases(store, version.name)
        split = version.metrics.get("validation") or next(iter(version.metrics.values()), None)
        trained = store.manifest(version.manifests["train"]).summary
        rows.append(
            (
                version.name,
                version.version,
                ", ".join(sorted(a for a, n in aliases.items() if n == version.version)),
                age(version.created_at),
                None if split is None else f"{split['model']['bits_per_byte']:.4f}",
                trained["result"]["n_parameters"],
                trained["run"].removeprefix("runs/"),
                registry.last_verdict(store, version),
                _of_taken_down(registry.taken_down(store, version)),
            )
        )
    columns = ["model", ">version", "aliases", "made", ">bits per byte", ">parameters", "run"]
    columns += ["gate", "note"]
    if not any(row[-1] for row in rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    show_table(columns, rows, wide=("aliases", "gate", "note"))


def _of_taken_down(documents: int) -> str:
    """What to say of a model for the documents it was trained on that are taken down."""
    return f"trained on {counted(documents, 'document')} since taken down" if documents else ""


def age(at: str) -> str:
    """How long ago a time of the store was."""
    then = datetime.strptime(at, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    seconds = max(0, int((datetime.now(UTC) - then).total_seconds()))
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            return f"{counted(seconds // size, unit)} ago"
    return "just now"
