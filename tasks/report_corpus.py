"""The report's account of a corpus: its funnel, its drops, what was found in it and what is left.

Columns are read and not texts, but for the few examples and, up to a limit, for their sizes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tasks.benchmarks import HELDOUT
from tasks.canaries import canary_counts
from tasks.decontaminate import LEDGER
from tasks.inspecting import (
    MEASURED_BYTES,
    SNAPSHOT_STAGES,
    DropSample,
    drop_examples,
    drops_by_reason,
    funnel,
    quarantined,
    urls_of,
)
from tasks.leaks import benchmark_counts
from tasks.report_page import (
    Benchmark,
    CanaryResult,
    Contamination,
    DropExample,
    DropReason,
    LanguageCount,
    PiiCount,
    QuarantineExample,
    QuarantineReason,
    SourceCount,
    StageCount,
)
from tasks.signals import SIGNALS
from tasks.store.corpus import Corpus, live_rows
from tasks.store.records import Manifest
from tasks.store.schema import FINDINGS
from tasks.store.store import Store

EXAMPLES = 3
LEDGER_ROWS = 200
HELDOUT_SET = "held-out set"


def funnel_part(store: Store, line: Sequence[Manifest]) -> tuple[StageCount, ...]:
    """Each stage of the line that sees documents. The start is what all snapshots hold together."""
    rows = funnel(store, line)
    start = sum(row.rows_out for row in rows if row.stage.split()[0] in SNAPSHOT_STAGES)
    return tuple(
        StageCount(
            stage=row.stage,
            rows_in=row.rows_in,
            rows_out=row.rows_out,
            dropped=sum(row.drops.values()),
            share=row.rows_out / start if start else 0.0,
            text_bytes=row.text_bytes,
            work_seconds=row.seconds,
        )
        for row in rows
    )


def drops_part(store: Store, line: Sequence[Manifest]) -> tuple[DropReason, ...]:
    """Every reason a document was dropped for, with the first few by id."""
    examples: dict[tuple[str, str], list[DropExample]] = {}
    for sample in drop_examples(store, line, EXAMPLES):
        examples.setdefault((sample.stage, sample.reason), []).append(_example(sample))
    return tuple(
        DropReason(
            stage=drop.stage,
            reason=drop.reason,
            count=drop.count,
            examples=tuple(examples.get((drop.stage, drop.reason), ())),
        )
        for drop in drops_by_reason(line)
    )


def _example(sample: DropSample) -> DropExample:
    return DropExample(
        id=sample.id,
        url=sample.url,
        value=sample.value,
        threshold=sample.threshold,
        detail=sample.detail,
        excerpt=sample.excerpt,
    )


def quarantine_part(store: Store, line: Sequence[Manifest]) -> tuple[QuarantineReason, ...]:
    """What could not be read, by source, stage and reason."""
    return tuple(
        QuarantineReason(
            stage=group.stage,
            reason=group.reason,
            count=group.count,
            examples=tuple(
                QuarantineExample(source=group.source, locator=locator, detail=detail)
                for locator, detail in group.examples
            ),
        )
        for group in quarantined(store, line, EXAMPLES)
    )


def pii_part(store: Store, corpus: Corpus) -> tuple[PiiCount, ...]:
    """Findings in live documents by type, the most frequent first."""
    findings, documents = Counter[str](), Counter[str]()
    for shard in corpus.shards:
        rows = live_rows(store, shard, shard.extras.get(FINDINGS.kind), FINDINGS)
        for row in rows.select(["type", "count"]).to_pylist():
            findings[row["type"]] += row["count"]
            documents[row["type"]] += 1
    ranked = sorted(findings.items(), key=lambda item: (-item[1], item[0]))
    return tuple(PiiCount(type=t, findings=n, documents=documents[t]) for t, n in ranked)


def canaries_part(line: Sequence[Manifest]) -> tuple[CanaryResult, ...]:
    """What each stage caught of what was planted beside the corpus."""
    return tuple(CanaryResult(**asdict(one)) for one in canary_counts(line))


def contamination_part(
    store: Store, matched: Manifest, decided: Manifest
) -> tuple[tuple[Benchmark, ...], tuple[Contamination, ...], int]:
    """Each benchmark and the held-out set with what they condemned, the ledger's first rows, and
    how many it has."""
    ledger = [
        row
        for ref in decided.objects.get(LEDGER.kind, ())
        for row in store.read_table(ref, LEDGER).to_pylist()
    ]
    ledger.sort(key=lambda row: (row["benchmark"] == HELDOUT, row["benchmark"], row["id"]))
    shown = ledger[:LEDGER_ROWS]
    urls = urls_of(store, decided, sorted({row["id"] for row in shown}))
    found = tuple(_contamination(row, urls.get(row["id"])) for row in shown)
    benchmarks = tuple(
        Benchmark(**asdict(count) | ({"name": HELDOUT_SET} if count.name == HELDOUT else {}))
        for count in benchmark_counts([matched, decided])
    )
    return benchmarks, found, len(ledger)


def _contamination(row: dict[str, Any], url: str | None) -> Contamination:
    """A row of the ledger."""
    return Contamination(
        benchmark=HELDOUT_SET if row["benchmark"] == HELDOUT else row["benchmark"],
        item=row["item"],
        id=row["id"],
        url=url,
        reason=row["reason"],
        n_ngrams=row["matched"],
        overlap=row["overlap"],
    )


def sources_part(store: Store, corpus: Corpus) -> tuple[SourceCount, ...]:
    """Live documents by source, with their licenses and, unless it is too much, their bytes."""
    stored = sum(shard.text.bytes for shard in corpus.shards if shard.text)
    columns = ["source", "license", *(["text"] if stored <= MEASURED_BYTES else [])]
    parts = [_counted(live_rows(store, shard, columns=["id", *columns])) for shard in corpus.shards]
    rows = pa.concat_tables(parts).to_pylist() if parts else []
    found: dict[str, list[dict[str, int | str | None]]] = {}
    for row in rows:
        found.setdefault(row["source"], []).append(row)
    return tuple(
        SourceCount(
            source=source,
            licenses=tuple(sorted({str(row["license"]) for row in group if row["license"]})),
            documents=sum(int(row["documents"] or 0) for row in group),
            n_bytes=sum(int(row["bytes"] or 0) for row in group) if "text" in columns else None,
        )
        for source, group in sorted(found.items())
    )


def _counted(documents: pa.Table) -> pa.Table:
    """Documents and bytes of text by source and license."""
    if "text" in documents.column_names:
        sizes = pc.binary_length(documents["text"]).cast(pa.int64())
    else:
        sizes = pa.nulls(documents.num_rows, pa.int64())
    table = documents.select(["id", "source", "license"]).append_column("bytes", sizes)
    grouped = table.group_by(["source", "license"]).aggregate([("id", "count"), ("bytes", "sum")])
    return grouped.rename_columns({"id_count": "documents", "bytes_sum": "bytes"}).select(
        ["source", "license", "documents", "bytes"]
    )


def languages_part(store: Store, corpus: Corpus) -> tuple[tuple[LanguageCount, ...], bool]:
    """Live documents by language, the most frequent first; and whether a model told them."""
    languages, told_by = Counter[str | None](), Counter[str | None]()
    for signals in _live_signals(store, corpus, ["id", "language", "language_from"]):
        languages.update(signals["language"].to_pylist())
        told_by.update(signals["language_from"].to_pylist())
    ranked = sorted(languages.items(), key=lambda item: (-item[1], item[0] or ""))
    counts = tuple(LanguageCount(language=lang or None, documents=n) for lang, n in ranked)
    return counts, told_by["model"] > 0


def word_counts(store: Store, corpus: Corpus) -> pa.Table:
    """(id, words) of live documents, as counted when they were annotated."""
    parts = list(_live_signals(store, corpus, ["id", "word_count"]))
    table = pa.concat_tables([SIGNALS.empty().select(["id", "word_count"]), *parts])
    return table.rename_columns(["id", "words"])


def _live_signals(store: Store, corpus: Corpus, columns: list[str]) -> Iterator[pa.Table]:
    for shard in corpus.shards:
        yield live_rows(store, shard, shard.extras.get(SIGNALS.kind), SIGNALS, columns)
