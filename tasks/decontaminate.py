"""Benchmarks and held-out documents in the corpus: matches per shard, one decision over all.

A benchmark is a set of passages: each named field of each item. A passage is known by its word
n-grams (13 words, Brown et al. 2020, appendix C); a shorter one by the whole of it. Every shard is
matched against one table of them (`match_shard`); which n-grams are common phrases, and so which
documents leave, is decided over the matches of all live documents (`decide`).
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from llm.config import Config
from llm.errors import ConfigError, DataError
from tasks.as_task import as_task
from tasks.kernels.ngrams import (
    Hits,
    Ints,
    NgramIndex,
    WordStream,
    by_owner,
    distinct_ngrams,
    find_ngrams,
    index_ngrams,
)
from tasks.kernels.words import Hashes, hash_words, words
from tasks.split import SplitConfig, hold_out_set
from tasks.store.corpus import (
    Shard,
    commit_stage,
    kept_rows,
    live_rows,
    open_corpus,
    verdict_receipts,
)
from tasks.store.pins import Pin, hold_file
from tasks.store.records import Manifest, ObjectRef
from tasks.store.run import Action, Outcome, Request, Run, reuse, run_actions
from tasks.store.schema import DOCUMENTS, DROPS, Schema
from tasks.store.stage import Stage
from tasks.store.store import Store

_TEXT, _INT = pa.string(), pa.int64()


def _schema(kind: str, columns: list[tuple[str, pa.DataType]]) -> Schema:
    """A schema all of whose columns are data."""
    return Schema(kind, pa.schema(columns), tuple(name for name, _ in columns))


# One row per document and passage. kind: "ngram", "short" (a passage under one n-gram) or
# "heldout" (item: the held-out document's id). n_ngrams: distinct n-grams of the passage, or for
# "heldout" of the document. matched: how many of them were found. start, end: words of the
# document, from the first occurrence of the first to the end of the last. ngrams: the smallest
# hashes found, at most 16, little-endian uint64; empty for "heldout".
MATCHES = _schema(
    "matches",
    [("id", _TEXT), ("digest", _TEXT), ("kind", _TEXT), ("benchmark", _TEXT), ("item", _TEXT),
     ("n_ngrams", _INT), ("matched", _INT), ("start", _INT), ("end", _INT),
     ("ngrams", pa.binary())],
)  # fmt: skip

# What a dropped document held, passage by passage.
LEDGER = _schema(
    "ledger",
    [("id", _TEXT), ("reason", _TEXT), ("benchmark", _TEXT), ("item", _TEXT),
     ("matched", _INT), ("overlap", pa.float64()), ("start", _INT), ("end", _INT)],
)  # fmt: skip

HELDOUT = "heldout"
_NGRAMS_KEPT = 16
_PASSAGES_KEPT = 64


MATCHES_STAGE = Stage("matches", 1, ("numpy", "unicode", "xxhash"))
STAGE = Stage("decontaminate", 1, ("numpy",))


class BenchmarkConfig(Config):
    """A benchmark whose items must not be trained on."""

    name: str = Field(min_length=1)
    """What matches and drops call it."""

    path: str
    """Path or URL of its JSONL file, plain or gzipped; pinned by content."""

    fields: tuple[str, ...] = Field(min_length=1)
    """Keys of a row whose text must not be found in the corpus, such as question and answer.
    A list of texts counts as several passages."""


class DecontaminateConfig(Config):
    """What is looked for and how much of it condemns a document."""

    benchmarks: tuple[BenchmarkConfig, ...] = ()
    """Benchmarks to look for."""

    ngram: int = Field(13, ge=2)
    """Words in an n-gram (Brown et al. 2020, Language Models are Few-Shot Learners, appendix C)."""

    min_ngrams: int = Field(1, ge=1, le=_NGRAMS_KEPT)
    """Distinct n-grams of one passage, common phrases aside, that condemn a document. A single one
    does in Brown et al. 2020. A passage that has fewer must be found whole."""

    max_common: int = Field(10, ge=1)
    """An n-gram found in more than this many documents is a common phrase and ignored (10 in
    Brown et al. 2020)."""

    min_short_words: int = Field(8, ge=1)
    """Passages shorter than `ngram` words are matched whole, as consecutive words; those shorter
    than this too are trivial and not looked for (8 is the shortest in Brown et al. 2020)."""

    paragraph_overlap: float = Field(0.7, gt=0, le=1)
    """Part of the n-grams of one passage at or above which a document copies it, even where they
    are so widely copied that they look common; for passages of at least `ngram` n-grams. 0.7 as in
    PaLM (Chowdhery et al. 2022, section 8)."""

    heldout_overlap: float = Field(0.5, gt=0, le=1)
    """Part of a document's own n-grams at or above which one held-out document condemns it. Half,
    the share of a test text that Tulu 3 lets match (Lambert et al. 2024, section 3.2)."""

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        names = [benchmark.name for benchmark in self.benchmarks]
        for name in names:
            if names.count(name) > 1 or name == HELDOUT:
                raise ValueError(f"the benchmark name {name!r} is taken: give each its own name")
        return self


@dataclass(frozen=True)
class Rejected:
    """A row of a benchmark that could not be read: its 0-based line and why."""

    line: int
    reason: str


@dataclass(frozen=True)
class Benchmark:
    """Passages as (item, text); an item is "line.field", with ".position" inside a list."""

    name: str
    passages: tuple[tuple[str, str], ...]
    rejected: tuple[Rejected, ...]


def load_benchmark(data: bytes, name: str, fields: Sequence[str]) -> Benchmark:
    """Read a JSONL file, plain or gzipped. A row that does not parse is set aside with its reason.

    Raises:
        DataError: a damaged gzip stream, or no readable row.
        ConfigError: a field that no row has.
    """
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(
                f"benchmark {name} is a damaged gzip file ({error}): fetch it again"
            ) from error
    passages: list[tuple[str, str]] = []
    rejected: list[Rejected] = []
    keys: set[str] = set()
    for line, raw in enumerate(data.splitlines()):
        if not raw.strip():
            continue
        try:
            row = json.loads(raw.decode("utf-8-sig"))
            if not isinstance(row, dict):
                raise ValueError(f"found {type(row).__name__}, expected an object")
            found = [passage for key in fields for passage in _texts_of(row, key, line)]
        except (ValueError, RecursionError) as error:
            rejected.append(Rejected(line, str(error)))
            continue
        keys.update(row)
        passages += found
    if not keys:
        raise DataError(f"benchmark {name} has no readable row of {len(rejected)}; expected JSONL")
    if missing := sorted(set(fields) - keys):
        raise ConfigError(f"benchmark {name} has no field {missing}; its rows have {sorted(keys)}")
    return Benchmark(name, tuple(passages), tuple(rejected))


def _texts_of(row: dict[str, object], key: str, line: int) -> Iterator[tuple[str, str]]:
    value = row.get(key)
    if isinstance(value, str):
        yield f"{line}.{key}", value
    elif isinstance(value, list) and all(isinstance(part, str) for part in value):
        yield from ((f"{line}.{key}.{place}", part) for place, part in enumerate(value))
    elif value is not None:
        raise ValueError(f"found {type(value).__name__} in {key}, expected text or a list of text")


@dataclass(frozen=True)
class NgramTable:
    """What documents are matched against; it pickles, so that workers can be given it.

    Passage p of the benchmarks is `passages[p]` = (kind, benchmark, item, distinct n-grams).
    `too_short` counts passages left out as trivial.
    """

    benchmarks: NgramIndex
    passages: tuple[tuple[str, str, str, int], ...]
    too_short: int
    heldout: NgramIndex
    heldout_ids: tuple[str, ...]


def build_table(
    benchmarks: Sequence[Benchmark], heldout: pa.Table | None, config: DecontaminateConfig
) -> NgramTable:
    """The table of all benchmarks and of the held-out documents (columns id, text).

    An n-gram in more than `max_common` held-out documents says nothing about any of them: it is
    a common phrase, such as a site's footer, and left out of account on both sides.
    """
    found, passages, too_short = [], [], 0
    for benchmark in benchmarks:
        for item, text in benchmark.passages:
            hashes, n = distinct_ngrams(hash_words(words(text)), config.ngram)
            if n < min(config.min_short_words, config.ngram):
                too_short += 1
                continue
            kind = "ngram" if n == config.ngram else "short"
            passages.append((kind, benchmark.name, item, len(hashes)))
            found.append((hashes, n))
    rows = (heldout if heldout is not None else DOCUMENTS.empty()).sort_by("id")
    texts = (distinct_ngrams(hash_words(words(t)), config.ngram) for t in rows["text"].to_pylist())
    return NgramTable(
        benchmarks=index_ngrams(found, None),
        passages=tuple(passages),
        too_short=too_short,
        heldout=index_ngrams(list(texts), config.max_common),
        heldout_ids=tuple(rows["id"].to_pylist()),
    )


_BATCH_CHARACTERS = 1 << 23  # text whose words are looked up together: some 12 MB of hashes


def match_shard(documents: pa.Table, table: NgramTable, config: DecontaminateConfig) -> pa.Table:
    """MATCHES of a shard of documents (columns id, digest, text), in its order.

    At most 64 passages a document, those with the most n-grams found, then the held-out document
    that holds the most of its n-grams, unless it is itself held out. 16 n-grams a passage are kept
    for the decision; the smallest hashes, so that documents that copy one passage keep the same.
    """
    lengths = pc.fill_null(pc.utf8_length(documents["text"]), 0).to_numpy()
    batches = np.cumsum(lengths) // _BATCH_CHARACTERS
    starts = np.flatnonzero(np.diff(batches, prepend=-1)).tolist()
    tables = [
        _match_batch(documents.slice(start, end - start), table, config)
        for start, end in pairwise([*starts, len(documents)])
    ]
    return pa.concat_tables([MATCHES.empty(), *tables])


def _match_batch(documents: pa.Table, table: NgramTable, config: DecontaminateConfig) -> pa.Table:
    hashes = [hash_words(words(text or "")) for text in documents["text"].to_pylist()]
    stream = WordStream.of(hashes)
    held_out = np.isin(documents["id"].to_pylist(), table.heldout_ids)
    hits = find_ngrams(stream, table.heldout, whole_below=config.ngram)
    rows = _benchmark_rows(find_ngrams(stream, table.benchmarks), table)
    rows += _heldout_rows(hits.where(~held_out[hits.document]), hashes, table, config)
    rows.sort(key=lambda row: row[0])
    numbers, *columns = list(zip(*rows, strict=True)) or [()] * (len(MATCHES.arrow) - 1)
    place = pa.array(numbers, pa.int64())
    who = [documents[name].take(place) for name in ("id", "digest")]
    return pa.table([*who, *columns], schema=MATCHES.arrow)


# A row of MATCHES with the document's number in place of its id and digest.
_Row = tuple[int, str, str, str, int, int, int, int, bytes]


def _benchmark_rows(hits: Hits, table: NgramTable) -> list[_Row]:
    found = by_owner(hits, table.benchmarks)
    matched = np.array([len(keys) for keys in found.keys], dtype=np.int64)
    best = np.lexsort((found.owner, -matched, found.document))
    rank = np.empty_like(best)
    rank[best] = np.arange(len(best)) - np.searchsorted(found.document, found.document)
    rows: list[_Row] = []
    for at in np.flatnonzero(rank < _PASSAGES_KEPT).tolist():
        kind, benchmark, item, size = table.passages[found.owner[at]]
        ngrams = table.benchmarks.keys[found.keys[at][:_NGRAMS_KEPT]].astype("<u8").tobytes()
        span = int(matched[at]), int(found.start[at]), int(found.end[at])
        rows.append((int(found.document[at]), kind, benchmark, item, size, *span, ngrams))
    return rows


def _heldout_rows(
    hits: Hits, hashes: list[Hashes], table: NgramTable, config: DecontaminateConfig
) -> list[_Row]:
    common = np.diff(table.heldout.offsets)[hits.key] == 0
    n_common = np.bincount(hits.document[common], minlength=len(hashes))
    found = by_owner(hits.where(~common), table.heldout)
    matched = np.array([len(keys) for keys in found.keys], dtype=np.int64)
    best = np.lexsort((found.owner, -matched, found.document))
    best = best[np.diff(found.document[best], prepend=-1) != 0]
    rows: list[_Row] = []
    for at in best.tolist():
        number = int(found.document[at])
        own = len(distinct_ngrams(hashes[number], config.ngram)[0]) - int(n_common[number])
        span = int(matched[at]), int(found.start[at]), int(found.end[at])
        item = table.heldout_ids[found.owner[at]]
        rows.append((number, HELDOUT, HELDOUT, item, own, *span, b""))
    return rows


REASONS = ("contaminated", "contaminated_passage", "heldout_overlap")


def decide(matches: Iterable[pa.Table], config: DecontaminateConfig) -> tuple[pa.Table, pa.Table]:
    """DROPS, one per condemned document, and the LEDGER of every passage that condemned one.

    `matches` are the rows of the live documents, of all shards and in any order. A document goes
    for the first of these that it meets:

    - "contaminated": it has `min_ngrams` n-grams of a passage, or all of a passage that has fewer,
      not counting n-grams that more than `max_common` live documents have. value: how many of
      those kept (at most 16 a passage).
    - "contaminated_passage": it has `paragraph_overlap` of the n-grams of a passage of at least
      `ngram` of them. value: the part.
    - "heldout_overlap": one held-out document has `heldout_overlap` of its n-grams. value: the
      part.

    The detail is "benchmark:item" of the passage with the highest value. Both are sorted by id.
    """
    table = pa.concat_tables([MATCHES.empty(), *matches])
    size = table["n_ngrams"].to_numpy()
    overlap = np.round(table["matched"].to_numpy() / size, 6)
    uncommon = _uncommon(table, config.max_common)
    needed = np.minimum(config.min_ngrams, size)
    kind = np.array(table["kind"].to_pylist(), dtype=object)
    met = [
        (kind != HELDOUT) & (uncommon >= needed),
        (kind == "ngram") & (size >= config.ngram) & (overlap >= config.paragraph_overlap),
        (kind == HELDOUT) & (overlap >= config.heldout_overlap),
    ]
    verdict = np.select(met, range(len(met)), default=len(met))
    value = np.select(met, [uncommon, overlap, overlap])
    threshold = np.select(met, [needed, config.paragraph_overlap, config.heldout_overlap])

    rows = table.select(["id", "benchmark", "item", "matched", "start", "end"]).to_pylist()
    guilty = np.flatnonzero(verdict < len(met)).tolist()
    guilty.sort(
        key=lambda r: (rows[r]["id"], verdict[r], -value[r], rows[r]["benchmark"], rows[r]["item"])
    )
    ledger: list[dict[str, object]] = []
    drops: dict[str, dict[str, object]] = {}
    for r in guilty:
        row, reason = rows[r], REASONS[verdict[r]]
        ledger.append({**row, "reason": reason, "overlap": float(overlap[r])})
        drop = {
            "id": row["id"],
            "stage": "decontaminate",
            "reason": reason,
            "value": float(value[r]),
            "threshold": float(threshold[r]),
            "detail": f"{row['benchmark']}:{row['item']}",
        }
        drops.setdefault(row["id"], drop)
    return DROPS.table(list(drops.values())), LEDGER.table(ledger)


def _uncommon(table: pa.Table, max_common: int) -> Ints:
    """How many of each row's n-grams are in at most `max_common` documents of `table`."""
    kept = table["ngrams"].to_pylist()
    row = np.repeat(np.arange(len(kept)), [len(ngrams) // 8 for ngrams in kept])
    keys, key = np.unique(np.frombuffer(b"".join(kept), dtype="<u8"), return_inverse=True)
    _, document = np.unique(np.array(table["id"].to_pylist(), dtype=str), return_inverse=True)
    pairs = np.unique(np.stack([document[row], key], axis=1), axis=0)
    n_documents = np.bincount(pairs[:, 1], minlength=len(keys))
    return np.bincount(row[n_documents[key] <= max_common], minlength=len(kept))


def pin_benchmarks(run: Run, config: DecontaminateConfig) -> tuple[Pin, ...]:
    """Each benchmark's file, pinned by content the first time it is seen."""
    return tuple(
        hold_file(run, f"benchmark-{benchmark.name}", benchmark.path, "benchmark")
        for benchmark in config.benchmarks
    )


def matches_request(
    corpus: Manifest, config: DecontaminateConfig, benchmarks: Sequence[Pin], heldout: Pin
) -> Request:
    """What decides the matches: the text, what is looked for in it, and how n-grams are made."""
    measured = {
        "ngram": config.ngram,
        "min_short_words": config.min_short_words,
        "max_common": config.max_common,
        "fields": {benchmark.name: benchmark.fields for benchmark in config.benchmarks},
    }
    pins = {pin.name: pin.object.sha256 for pin in (*benchmarks, heldout)}
    return Request(MATCHES_STAGE, measured, {"corpus": corpus}, pins)


@lru_cache(maxsize=1)
def _table(
    store: Store,
    benchmarks: tuple[ObjectRef, ...],
    heldout: ObjectRef,
    config: DecontaminateConfig,
) -> NgramTable:
    """The n-gram table, built once per worker."""
    loaded = [
        load_benchmark(store.read_bytes(ref), benchmark.name, benchmark.fields)
        for ref, benchmark in zip(benchmarks, config.benchmarks, strict=True)
    ]
    return build_table(loaded, store.read_table(heldout, DOCUMENTS, ["id", "text"]), config)


def matches_work(
    store: Store,
    shard: Shard,
    benchmarks: tuple[ObjectRef, ...],
    heldout: ObjectRef,
    config: DecontaminateConfig,
) -> Outcome:
    documents = kept_rows(store, shard, ["id", "digest", "text"])
    found = match_shard(documents, _table(store, benchmarks, heldout, config), config)
    return Outcome(((MATCHES, found),), documents.num_rows, documents.num_rows)


@as_task("matches")
def matches(
    run: Run, corpus: Manifest, config: DecontaminateConfig, split_config: SplitConfig
) -> Manifest:
    """What of each benchmark and of the held-out set stands in each document."""
    benchmarks = pin_benchmarks(run, config)
    heldout = hold_out_set(run, corpus, split_config)
    request = matches_request(corpus, config, benchmarks, heldout)
    if done := reuse(run, request):
        return done
    shards = open_corpus(run.store, corpus).shards
    refs = tuple(pin.object for pin in benchmarks)
    actions = [Action(shard.inputs, (shard, refs, heldout.object, config)) for shard in shards]
    receipts = run_actions(run, request, matches_work, actions)
    summary = {"benchmarks": _what_was_read(run, config, refs)}
    return commit_stage(run, request, receipts, shards, measured=MATCHES, summary=summary)


def _what_was_read(
    run: Run, config: DecontaminateConfig, refs: Sequence[ObjectRef]
) -> dict[str, dict[str, int]]:
    """Passages of each benchmark and rows that could not be read, which are said aloud: nobody
    looks for those."""
    found = {}
    for ref, benchmark in zip(refs, config.benchmarks, strict=True):
        loaded = load_benchmark(run.store.read_bytes(ref), benchmark.name, benchmark.fields)
        found[benchmark.name] = {
            "passages": len(loaded.passages),
            "unreadable_rows": len(loaded.rejected),
        }
        if loaded.rejected:
            first = loaded.rejected[0]
            run.say(
                f"benchmark {benchmark.name}: {len(loaded.rejected)} rows cannot be read and are "
                f"not looked for, the first at line {first.line + 1}: {first.reason}"
            )
    return found


def decontaminate_request(corpus: Manifest, config: DecontaminateConfig) -> Request:
    """What decides which documents go: the matches and the thresholds."""
    thresholds = {"min_ngrams", "max_common", "paragraph_overlap", "heldout_overlap", "ngram"}
    return Request(STAGE, config.model_dump(include=thresholds), {"corpus": corpus})


@as_task("decontaminate")
def decontaminate(run: Run, corpus: Manifest, config: DecontaminateConfig) -> Manifest:
    """Drops what holds a benchmark's text: one decision over the matches of all live documents."""
    request = decontaminate_request(corpus, config)
    if done := reuse(run, request):
        return done
    shards = open_corpus(run.store, corpus).shards
    found = [
        live_rows(run.store, shard, shard.extras.get(MATCHES.kind), MATCHES) for shard in shards
    ]
    drops, ledger = decide(found, config)
    receipts = verdict_receipts(run, request, shards, drops)
    ledger_ref = run.store.put_table(ledger, LEDGER)
    objects = {"ledger": (ledger_ref,)} if ledger_ref else {}
    return commit_stage(run, request, receipts, shards, objects=objects)
