"""What trace, diff and replay found, as lines on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from textwrap import wrap
from typing import Any

from flows.showing import counted, say, show_table
from tasks.diff import Diff
from tasks.replay import Replay
from tasks.report_page import format_size
from tasks.takedown import ERASED_SPLIT
from tasks.trace import InDataset, Member, Origin, Trace

_WIDTH, SHOWN = 14, 8
_LINE = 92


def show_trace(trace: Trace) -> None:
    """A document from its source to the models trained on it."""
    say(f"document {trace.id}, found {trace.how}")
    if trace.others:
        more = ", ".join(trace.others[:SHOWN]) + (", …" if len(trace.others) > SHOWN else "")
        say(f"also said by {counted(len(trace.others), 'other document')}: {more}")
    say(f"{_fate(trace)} {trace.corpus}")
    document = trace.document
    _section("who", _lines_of(document, ("url", "source", "license", "language", "fetched_at")))
    _section("", ((name, value) for name, value in document.get("meta", {}).items()))
    if trace.origin is not None:
        _section("where from", _origin(trace.origin))
    if trace.text:
        _section("what it says", [("", " ".join(trace.text.split()))])
    _section("signals", _signals(trace.signals))
    _section("decisions", [(one.stage, _decision(vars(one))) for one in trace.decisions])
    _section("duplicates", [_member(member, trace.id) for member in trace.cluster])
    _section("personal data", _redactions(trace))
    _section("benchmarks", _benchmarks(trace))
    if trace.takedown:
        entry = trace.takedown
        _section("taken down", [(entry["target"], f"{entry['reason']} ({entry['at']})")])
    if trace.split:
        _section("split", [("", trace.split)])
    _section("tokens", _tokens(trace))


def _fate(trace: Trace) -> str:
    if trace.origin is None:
        return "held out, and no longer at the source of"
    return f"dropped by {trace.left} on the way to" if trace.left else "live in"


def _section(title: str, lines: Iterable[tuple[str, object]]) -> None:
    """A title and the lines below it; nothing where there are none."""
    told = [(name, value) for name, value in lines if value is not None]
    if not told:
        return
    if title:
        say(f"\n{title}")
    width = max(_WIDTH, *(len(name) for name, _ in told))
    for name, value in told:
        say(f"  {name:<{width}}  {value}".rstrip() if name else f"  {value}")


def _lines_of(row: Mapping[str, Any], names: Sequence[str]) -> list[tuple[str, object]]:
    return [(name.replace("_", " "), row.get(name)) for name in names]


def _origin(origin: Origin) -> list[tuple[str, object]]:
    times = f", given {origin.versions} times" if origin.versions > 1 else ""
    lines: list[tuple[str, object]] = [
        (origin.kind, f"{origin.source} ({origin.state}{times})"),
        ("fetched", origin.fetched_at),
    ]
    if origin.warc is not None:
        size = format_size(origin.payload_bytes)
        lines += [
            ("answer", f"HTTP {origin.status}, {origin.content_type}, {size}"),
            ("WARC object", origin.warc),
            ("at byte", f"{origin.warc_offset:,}"),
            ("payload", f"sha256 {origin.payload_sha256}"),
        ]
    return lines + [("file", file) for file in origin.files]


def _signals(signals: Mapping[str, Any]) -> list[tuple[str, object]]:
    """What was measured, a few to a line, and the names of what is 0."""
    told = {name: value for name, value in signals.items() if value is not None}
    words = [f"{n}={v:g}" if isinstance(v, float) else f"{n}={v}" for n, v in told.items() if v]
    zeros = ", ".join(name for name, value in told.items() if not value)
    lines = wrap("  ".join(words), _LINE)
    return [("", line) for line in (*lines, *wrap(f"0: {zeros}" if zeros else "", _LINE))]


def _decision(row: Mapping[str, Any]) -> str:
    """`dropped as near_duplicate: 0.91, threshold 0.8; detail`."""
    reason = f" as {row['reason']}" if row["reason"] else ""
    told = [] if row["value"] is None else [f"{row['value']:g}"]
    if row["threshold"] is not None:
        told.append(f"threshold {row['threshold']:g}")
    measured = f": {', '.join(told)}" if told else ""
    detail = f"; {row['detail']}" if row["detail"] else ""
    return f"{row['outcome']}{reason}{measured}{detail}"


def _member(member: Member, this: str) -> tuple[str, object]:
    """A document of the cluster, and how similar it is to the survivor."""
    what = "survives" if member.survived else str(member.reason)
    like = "" if member.similarity is None else f"  {member.similarity:g}"
    where = "this one" if member.id == this else member.url or member.source
    return what, f"{member.id}{like}  {where}"


def _redactions(trace: Trace) -> list[tuple[str, object]]:
    """How much of each type was replaced, and by what."""
    lines: list[tuple[str, object]] = []
    for type_, n in trace.redactions.items():
        names = [one["placeholder"] for one in trace.redacted_spans if one["type"] == type_]
        lines.append((type_, f"{counted(n, 'time')}: {', '.join(dict.fromkeys(names))}"))
    return lines


def _benchmarks(trace: Trace) -> list[tuple[str, object]]:
    """What stands in it of each benchmark; what condemned it says so."""
    why = {(leak["benchmark"], leak["item"]): leak["reason"] for leak in trace.leaks}
    return [
        (
            f"{row['benchmark']}:{row['item']}",
            f"{row['matched']} of {row['n_ngrams']} n-grams, words {row['start']} to {row['end']}"
            + (f": {reason}" if (reason := why.get((row["benchmark"], row["item"]))) else ""),
        )
        for row in trace.matches
    ]


def _tokens(trace: Trace) -> list[tuple[str, object]]:
    lines: list[tuple[str, object]] = []
    if trace.token is not None:
        place = trace.token
        lines.append(
            ("this one", f"token {place.in_document:,} of row {place.row:,}, id {place.token}")
        )
    for dataset in trace.datasets:
        lines += _dataset(dataset)
    return lines if trace.datasets else [*lines, ("", "no dataset holds the document")]


def _dataset(dataset: InDataset) -> list[tuple[str, object]]:
    split = dataset.split.removeprefix(ERASED_SPLIT)
    verb = "trained on by" if split == "train" else "measured on by"
    erased = " (erased since)" if split != dataset.split else ""
    return [
        (dataset.name, f"{split}{erased}, {counted(dataset.tokens, 'token')}"),
        ("  shard", dataset.object),
        ("  place", f"row {dataset.row:,}, from token {dataset.offset:,}"),
        (f"  {verb}", ", ".join(dataset.models) or "no model yet"),
    ]


def show_diff(found: Diff) -> None:
    """Two corpora, and what leads from the one to the other."""
    columns = ("", "corpus", "made", ">documents", ">trained tokens")
    sides = [
        (what, side.name, side.at, side.documents, side.tokens)
        for what, side in (("from", found.before), ("to", found.after))
    ]
    show_table(columns, sides)
    say()
    if not found.changes:
        say("they hold the same documents")
        return
    size = "trained tokens" if found.unit == "tokens" else "bytes of text"
    rows = [
        (c.kind, c.source, c.reason, c.documents, _signed(c.after - c.before))
        for c in found.changes
    ]
    show_table(("", "source", "reason", ">documents", f">{size}"), rows, wide=("reason",))
    sums = {kind: [c for c in found.changes if c.kind == kind] for kind in ("gained", "lost")}
    gained, lost = (sum(c.documents for c in some) for some in sums.values())
    say(
        f"\n{found.before.documents:,} + {gained:,} gained - {lost:,} lost = "
        f"{found.after.documents:,} documents"
        + ("; the digests of all texts add up too" if found.proven else "")
    )
    for sample in found.samples:
        say(f"\n{sample.kind}  {sample.id}  {sample.source}: {sample.reason}")
        for line in (sample.url, sample.excerpt):
            if line:
                say(f"    {line}")


def _signed(n: int) -> str:
    return f"{n:+,}" if n else "0"


def show_replay(found: Replay) -> None:
    """What a stage with other settings would keep and drop."""
    say(f"{found.stage} over {found.corpus}, {'; '.join(found.changed) or 'nothing changed'}\n")
    rows: list[tuple[object, ...]] = [
        (r.reason, r.before, r.after, _signed(r.after - r.before)) for r in found.reasons
    ]
    kept = (found.kept_before, found.kept_after)
    rows.append(("kept", *kept, _signed(kept[1] - kept[0])))
    show_table(("reason", ">documents", ">would be", ">change"), rows)
    for what, flips in (("dropped", found.newly_dropped), ("kept", found.newly_kept)):
        if not flips.documents:
            continue
        live = f", {flips.live:,} of them live now" if what == "dropped" else ""
        say(
            f"\n{counted(flips.documents, 'document')} would be {what}{live}: "
            f"{format_size(flips.text_bytes)} of text"
        )
        for sample in flips.samples:
            row = {**vars(sample), "outcome": ""}
            say(f"    {sample.id} {_decision(row)}")
            for line in (sample.url, sample.excerpt):
                if line:
                    say(f"        {line}")
    if found.newly_kept.documents:
        say("\nwhat it would keep, the stages after it may still drop")
