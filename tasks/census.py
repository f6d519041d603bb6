"""Census: what a labelled corpus is made of, counted once for the alarms and the dataset card.

What reads texts is measured shard by shard and is reused as long as a shard's text is the same;
what is counted over live rows comes from narrow columns, so that a verdict that flips reads no text
again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache

import pyarrow as pa
import pyarrow.compute as pc

from llm.errors import DataError
from tasks.as_task import as_task
from tasks.signals import SIGNALS
from tasks.store.corpus import Shard, kept_rows, live_rows, open_corpus
from tasks.store.executors import run_all
from tasks.store.records import Manifest, ManifestRef, ObjectRef
from tasks.store.rows import data_digest, digest_hex
from tasks.store.run import Action, Outcome, Request, Run, check_books, reuse, run_actions
from tasks.store.schema import LABELS, Schema
from tasks.store.stage import Stage
from tasks.store.store import Store, now

# pyarrow brings the Unicode tables that tell NFC, tldextract the public suffix list.
STAGE = Stage("census", 1, ("pyarrow", "tldextract"))

# Values of a dimension that the manifest's summary names, the most frequent first.
NAMED = 20

_TEXT, _INT = pa.string(), pa.int64()

# What is measured of a document. `domain` is null without a web address; `format` is "clean",
# "control characters" or "not NFC".
PROFILES = Schema(
    "profiles",
    pa.schema([("id", _TEXT), ("n_bytes", _INT), ("domain", _TEXT), ("format", _TEXT)]),
    ("id", "n_bytes", "domain", "format"),
)

# Live documents by one of their properties. `value` is null where it is not known.
COUNTS = Schema(
    "counts",
    pa.schema(
        [
            ("dimension", _TEXT),
            ("source", _TEXT),
            ("value", _TEXT),
            ("documents", _INT),
            ("n_bytes", _INT),
            ("words", _INT),
        ]
    ),
    ("dimension", "source", "value", "documents", "n_bytes", "words"),
)

DIMENSIONS = (
    "source", "license", "language", "topic", "domain", "split", "format", "provenance", "length",
)  # fmt: skip
"""What documents are counted by. `provenance` is which of a URL and a time of fetching is known,
`length` a number of words."""

WATCHED = ("topic", "domain", "language", "source")
"""The dimensions of which the summary keeps the most frequent values."""

CLEAN, CONTROL, NOT_NFC = "clean", "control characters", "not NFC"
URL_AND_TIME, URL_ONLY, TIME_ONLY = "URL and time", "URL only", "time only"

# Control characters but tab and line feed: a form feed or carriage return is gone after `extract`.
_CONTROL = r"[\x00-\x08\x0b-\x1f\x7f]"
_HOST = r"^[a-z]+://(?P<host>[^/?#:]+)"


def profile_shard(documents: pa.Table) -> pa.Table:
    """PROFILES of documents (columns id, url, text) in their order, sorted by id."""
    texts = documents["text"].combine_chunks()
    columns = [
        documents["id"],
        pc.binary_length(texts).cast(_INT),
        _domains(documents["url"].combine_chunks()),
        _formats(texts),
    ]
    return pa.table(columns, schema=PROFILES.arrow)


def _formats(texts: pa.Array) -> pa.Array:
    controlled = pc.match_substring_regex(texts, _CONTROL)
    # ASCII is in normal form, and normalizing costs more than all else here.
    in_ascii = pc.string_is_ascii(texts)
    others = texts.filter(pc.invert(in_ascii))
    composed = pc.replace_with_mask(
        in_ascii, pc.invert(in_ascii), pc.equal(pc.utf8_normalize(others, "NFC"), others)
    )
    return pc.if_else(controlled, CONTROL, pc.if_else(composed, CLEAN, NOT_NFC))


def _domains(urls: pa.Array) -> pa.Array:
    """The registrable domain of each URL, such as `bbc.co.uk`; the host where it has none."""
    hosts = pc.struct_field(pc.extract_regex(urls, _HOST), "host").dictionary_encode()
    known = [registrable(host) for host in hosts.dictionary.to_pylist()]
    return pa.array(known, _TEXT).take(hosts.indices)


@cache
def _suffixes() -> object:
    from tldextract import TLDExtract

    # The list that comes with the library: nothing is fetched, so the answer is the same anywhere.
    return TLDExtract(suffix_list_urls=(), cache_dir=None)


def registrable(host: str) -> str:
    """What of a host is registered: the public suffix and one label more, by publicsuffix.org."""
    found: str = _suffixes()(host).top_domain_under_public_suffix  # type: ignore[operator]
    return found or host


def count_rows(rows: pa.Table) -> pa.Table:
    """COUNTS of documents (columns of DIMENSIONS, n_bytes, words)."""
    parts = [
        pa.table(
            {
                "source": rows["source"],
                "value": rows[dimension],
                "documents": pa.repeat(1, rows.num_rows),
                "n_bytes": rows["n_bytes"],
                "words": rows["words"],
                "dimension": pa.repeat(dimension, rows.num_rows),
            }
        )
        for dimension in DIMENSIONS
    ]
    return add_up(parts)


def add_up(parts: Iterable[pa.Table]) -> pa.Table:
    """COUNTS, each dimension, source and value once, sorted by them."""
    sums = ("documents", "n_bytes", "words")
    keys = ["dimension", "source", "value"]
    table = pa.concat_tables([COUNTS.empty(), *(part.select(COUNTS.arrow.names) for part in parts)])
    table = table.group_by(keys).aggregate([(name, "sum") for name in sums])
    table = table.rename_columns([name.removesuffix("_sum") for name in table.column_names])
    table = table.select(COUNTS.arrow.names).sort_by([(key, "ascending") for key in keys])
    return table.cast(COUNTS.arrow).combine_chunks()


def count_shard(
    store: Store, shard: Shard, profiles: ObjectRef | None
) -> tuple[pa.Table, dict[str, tuple[str, str]]]:
    """COUNTS of a shard's live documents, and the first and last time of fetching by source."""
    columns = ["id", "source", "license", "url", "fetched_at"]
    rows = live_rows(store, shard, columns=columns)
    for ref, schema, wanted in (
        (profiles, PROFILES, ["n_bytes", "domain", "format"]),
        (shard.extras.get(SIGNALS.kind), SIGNALS, ["language", "topic", "word_count"]),
        (shard.extras.get(LABELS.kind), LABELS, ["split"]),
    ):
        measured = live_rows(store, shard, ref, schema, ["id", *wanted])
        if not measured["id"].equals(rows["id"]):
            raise DataError(
                f"{schema.kind} and text of a shard tell of other documents: found "
                f"{measured.num_rows} and {rows.num_rows}; run again with another store"
            )
        for name in wanted:
            rows = rows.append_column(name, measured[name])
    words = rows["word_count"].cast(_INT)
    known = {"url": pc.is_valid(rows["url"]), "time": pc.is_valid(rows["fetched_at"])}
    provenance = pc.case_when(
        pc.make_struct(pc.and_(*known.values()), *known.values()),
        *(pa.scalar(value, _TEXT) for value in (URL_AND_TIME, URL_ONLY, TIME_ONLY, None)),
    )
    rows = rows.append_column("words", words).append_column("length", words.cast(_TEXT))
    return count_rows(rows.append_column("provenance", provenance)), _fetched(rows)


def _fetched(rows: pa.Table) -> dict[str, tuple[str, str]]:
    times = rows.group_by("source").aggregate([("fetched_at", "min"), ("fetched_at", "max")])
    return {
        row["source"]: (row["fetched_at_min"], row["fetched_at_max"])
        for row in times.to_pylist()
        if row["fetched_at_min"] is not None
    }


@dataclass(frozen=True)
class Count:
    """Live documents that have a value in common, None being unknown; bytes of their texts."""

    value: str | None
    documents: int
    n_bytes: int
    words: int


@dataclass(frozen=True)
class Census:
    """A corpus, counted. `fetched` are the first and last time of fetching by source."""

    counts: pa.Table
    documents: int
    n_bytes: int
    words: int
    fetched: Mapping[str, tuple[str, str]]

    def by(self, dimension: str, source: str | None = None) -> list[Count]:
        """The values of a dimension, of one source or all, the most frequent first."""
        rows = self.counts.filter(pc.equal(self.counts["dimension"], dimension))
        if source is not None:
            rows = rows.filter(pc.equal(rows["source"], source))
        sums = [(name, "sum") for name in ("documents", "n_bytes", "words")]
        found = rows.group_by("value").aggregate(sums).select(
            ["value", "documents_sum", "n_bytes_sum", "words_sum"]
        )  # fmt: skip
        counts = [Count(*row.values()) for row in found.to_pylist()]
        return sorted(counts, key=lambda one: (-one.documents, one.value or ""))

    def documents_with(self, dimension: str, value: str | None) -> int:
        """How many documents have that value."""
        return sum(one.documents for one in self.by(dimension) if one.value == value)


def read_census(store: Store, counted: Manifest) -> Census:
    """The census of a `census` manifest."""
    refs = counted.objects.get(COUNTS.kind, ())
    parts = [store.read_table(ref, COUNTS) for ref in refs]
    told = counted.summary
    return Census(
        counts=pa.concat_tables([COUNTS.empty(), *parts]),
        documents=told["documents"],
        n_bytes=told["text_bytes"],
        words=told["words"],
        fetched={source: (first, last) for source, (first, last) in told["fetched"].items()},
    )


def census_work(store: Store, shard: Shard) -> Outcome:
    documents = kept_rows(store, shard, ["id", "url", "text"])
    return Outcome(
        ((PROFILES, profile_shard(documents)),), documents.num_rows, documents.num_rows
    )  # fmt: skip


@as_task("census")
def census(run: Run, labelled: Manifest) -> Manifest:
    """Counts the live documents of a labelled corpus by everything that is known of them."""
    annotated = next(visit.result for visit in run.visits if visit.name == "annotate")
    request = Request(STAGE, {}, {"labelled": labelled, "annotated": annotated})
    if done := reuse(run, request):
        return done
    shards, regrouped = _with_signals(run.store, labelled, annotated)
    actions = [Action(shard.inputs, (shard,)) for shard in shards]
    receipts = run_actions(run, request, census_work, actions)
    calls = [
        (run.store, shard, receipt.output(PROFILES.kind))
        for shard, receipt in zip(shards, receipts, strict=True)
    ]
    parts, fetched = [], dict[str, tuple[str, str]]()
    for _, (counted, times) in run_all(run.executor, count_shard, calls):
        parts.append(counted)
        for source, (first, last) in times.items():
            before = fetched.get(source, (first, last))
            fetched[source] = (min(first, before[0]), max(last, before[1]))
    table = add_up(parts)
    ref = run.store.put_table(table, COUNTS)
    found = Census(table, *_totals(table), fetched)
    check_books(STAGE.name, labelled.rows_out, found.documents, {})
    return run.store.commit(
        Manifest(
            stage=STAGE.name,
            fingerprint=request.ref.fingerprint,
            payload=request.payload,
            inputs={"labelled": labelled.ref, "annotated": annotated.ref},
            rows_in=labelled.rows_out,
            rows_out=found.documents,
            drops={},
            data_digest=digest_hex(data_digest(table, COUNTS)),
            receipts=run.store.put_receipts(receipts),
            objects={COUNTS.kind: (ref,) if ref else (), SIGNALS.kind: regrouped},
            summary=_summary(found),
            provenance={
                **run.provenance,
                "run_id": run.run_id,
                "at": now(),
                "seconds": round(sum(receipt.seconds for receipt in receipts), 3),
            },
        )
    )


def _with_signals(
    store: Store, labelled: Manifest, annotated: Manifest
) -> tuple[list[Shard], tuple[ObjectRef, ...]]:
    """The shards with the signals of this run, and what was written for it.

    Where signals changed and no verdict did, the labelled corpus is an older run's, with its
    signals. Its text may be too, in other shards; then the new signals are written in their order.
    """
    shards, fresh = open_corpus(store, labelled).shards, open_corpus(store, annotated).shards
    found = [shard.extras.get(SIGNALS.kind) for shard in fresh]
    regrouped: tuple[ObjectRef, ...] = ()
    if _text_of(store, labelled) != _text_of(store, annotated):
        # Live ones only: an edited document's earlier text, dead in another shard, has its id too.
        tables = [live_rows(store, *pair, SIGNALS) for pair in zip(fresh, found, strict=True)]
        signals = pa.concat_tables([SIGNALS.empty(), *tables]).combine_chunks()
        found = []
        for shard in shards:
            ids = store.read_table(shard.extras.get(SIGNALS.kind), SIGNALS, ["id"])["id"]
            place = pc.index_in(ids, value_set=signals["id"].combine_chunks())
            found.append(store.put_table(signals.take(place.drop_null()), SIGNALS))
        regrouped = tuple(ref for ref in found if ref is not None)
    return [
        replace(shard, extras={**shard.extras, SIGNALS.kind: ref}) if ref else shard
        for shard, ref in zip(shards, found, strict=True)
    ], regrouped


def _text_of(store: Store, corpus: Manifest) -> ManifestRef:
    """The text that a stage's corpus goes back to."""
    while corpus.stage != "extract":
        corpus = store.manifest(corpus.inputs["corpus"])
    return corpus.ref


def _totals(table: pa.Table) -> tuple[int, int, int]:
    """Documents, bytes and words: every document has one source."""
    rows = table.filter(pc.equal(table["dimension"], "source"))
    documents, n_bytes, words = (
        pc.sum(rows[name]).as_py() or 0 for name in ("documents", "n_bytes", "words")
    )
    return documents, n_bytes, words


def _summary(found: Census) -> dict[str, object]:
    """The totals, and the most frequent values of what alarms watch."""
    return {
        "documents": found.documents,
        "text_bytes": found.n_bytes,
        "words": found.words,
        "fetched": {source: list(times) for source, times in sorted(found.fetched.items())},
        "frequent": {
            dimension: {
                one.value: {"documents": one.documents, "text_bytes": one.n_bytes}
                for one in found.by(dimension)[:NAMED]
                if one.value is not None
            }
            for dimension in WATCHED
        },
    }
