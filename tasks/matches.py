"""Matches: what of each benchmark and of the held-out set stands in each document.

A benchmark is a set of passages: each named field of each item. A passage is known by its word
n-grams (13 words, Brown et al. 2020, appendix C); a shorter one by the whole of it. Every shard is
matched against one table of them; which n-grams are common phrases, and so which documents leave,
is decided over the matches of all live documents: `tasks/decontaminate.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tasks.as_task import as_task
from tasks.benchmarks import (
    HELDOUT,
    NGRAMS_KEPT,
    Benchmark,
    DecontaminateConfig,
    load_benchmark,
    pin_benchmarks,
)
from tasks.split import SplitConfig, hold_out_set
from tasks.store.corpus import Shard, commit_stage, kept_rows, open_corpus
from tasks.store.pins import Pin
from tasks.store.records import Manifest, ObjectRef
from tasks.store.run import Action, Outcome, Request, Run, reuse, run_actions
from tasks.store.schema import DOCUMENTS, Schema
from tasks.store.stage import Stage
from tasks.store.store import Store

if TYPE_CHECKING:
    from tasks.kernels.ngrams import Ints, NgramIndex
    from tasks.kernels.words import Hashes

STAGE = Stage("matches", 3, ("unicode",))

_TEXT, _INT = pa.string(), pa.int64()
_COLUMNS = [
    ("id", _TEXT), ("digest", _TEXT), ("kind", _TEXT), ("benchmark", _TEXT), ("item", _TEXT),
    ("n_ngrams", _INT), ("matched", _INT), ("start", _INT), ("end", _INT),
    ("ngrams", pa.binary()),
]  # fmt: skip

# One row per document and passage. kind: "ngram", "short" (a passage under one n-gram) or
# "heldout" (item: the held-out document's id). n_ngrams: distinct n-grams of the passage that count
# for it, or for "heldout" of the document. matched: how many of them were found. start, end: words
# of the document, from the first occurrence of the first to the end of the last. ngrams: the
# smallest hashes found, at most 16, little-endian uint64; empty for "heldout".
MATCHES = Schema("matches", pa.schema(_COLUMNS), tuple(name for name, _ in _COLUMNS))

# The same with the number of the document in a batch for its id and digest.
_FOUND = pa.schema([("document", _INT), *_COLUMNS[2:]])
_PASSAGES = pa.schema(_COLUMNS[2:5])

_PASSAGES_KEPT = 64


@dataclass(frozen=True)
class NgramTable:
    """What documents are matched against; it pickles, so that workers can be given it.

    Row p of `passages` (kind, benchmark, item) is passage p of the benchmarks; `too_short` counts
    passages left out as trivial. `heldout_ids` are sorted.
    """

    benchmarks: NgramIndex
    passages: pa.Table
    too_short: int
    heldout: NgramIndex
    heldout_ids: pa.Array


def build_table(
    benchmarks: Sequence[Benchmark], heldout: pa.Table | None, config: DecontaminateConfig
) -> NgramTable:
    """The table of all benchmarks and of the held-out documents (columns id, text).

    An n-gram in more than `max_common` held-out documents says nothing about any of them: it is
    a common phrase, such as a site's footer, and left out of account on both sides. One in more
    than 64 passages of benchmarks, such as an instruction that comes with every item, counts for
    the first 64 only: it condemns as before, but says of no other item that it leaked.
    """
    from tasks.kernels.ngrams import index_ngrams
    from tasks.kernels.words import word_hashes

    passages = [(b.name, item, text) for b in benchmarks for item, text in b.passages]
    names, items, texts = list(zip(*passages, strict=True)) or [()] * 3
    hashes, bounds = word_hashes(pa.array(texts, pa.large_string()))
    words = np.diff(bounds)
    kept = words >= min(config.min_short_words, config.ngram)
    kinds = np.where(words >= config.ngram, "ngram", "short").tolist()
    kept_bounds = np.concatenate([[0], np.cumsum(words[kept])])
    rows = (heldout if heldout is not None else DOCUMENTS.empty()).sort_by("id")
    heldout_hashes, heldout_bounds = word_hashes(rows["text"])
    return NgramTable(
        benchmarks=index_ngrams(
            hashes[np.repeat(kept, words)], kept_bounds, config.ngram, first_owners=_PASSAGES_KEPT
        ),
        passages=pa.table([kinds, names, items], schema=_PASSAGES).filter(kept),
        too_short=int(np.count_nonzero(~kept)),
        heldout=index_ngrams(
            heldout_hashes, heldout_bounds, config.ngram, config.max_common, whole=True
        ),
        heldout_ids=rows["id"].combine_chunks(),
    )


_BATCH_BYTES = 1 << 21  # text whose words are looked up together: their hashes fit a cache


def match_shard(documents: pa.Table, table: NgramTable, config: DecontaminateConfig) -> pa.Table:
    """MATCHES of a shard of documents (columns id, digest, text), in its order.

    At most 64 passages a document, those with the most n-grams found (n-grams of 64 passages or
    more count among equals only), then the held-out document that holds the most of its n-grams,
    unless it is itself held out. 16 n-grams a passage are kept for the decision; the smallest
    hashes, so that documents that copy one passage keep the same.
    """
    sizes = pc.fill_null(pc.binary_length(documents["text"]), 0).to_numpy()
    batches = np.cumsum(sizes) // _BATCH_BYTES
    starts = np.flatnonzero(np.diff(batches, prepend=-1)).tolist()
    held_out = pc.is_in(documents["id"], value_set=table.heldout_ids).to_numpy()
    tables = [
        _match_batch(documents.slice(start, end - start), held_out[start:end], table, config)
        for start, end in pairwise([*starts, len(documents)])
    ]
    return pa.concat_tables([MATCHES.empty(), *tables])


def _match_batch(
    documents: pa.Table,
    held_out: npt.NDArray[np.bool_],
    table: NgramTable,
    config: DecontaminateConfig,
) -> pa.Table:
    from tasks.kernels.words import word_hashes

    hashes, bounds = word_hashes(documents["text"])
    found = pa.concat_tables(
        [
            _benchmark_rows(hashes, bounds, table),
            _heldout_rows(hashes, bounds, held_out, table, config),
        ]
    )
    # A stable sort: a document's held-out row stays behind those of the benchmarks.
    found = found.take(np.argsort(found["document"].to_numpy(), kind="stable"))
    number = found["document"]
    who = [documents[name].take(number) for name in ("id", "digest")]
    return pa.table([*who, *found.columns[1:]], schema=MATCHES.arrow)


def _benchmark_rows(hashes: Hashes, bounds: Ints, table: NgramTable) -> pa.Table:
    """Rows of MATCHES, with the document's number for its id and digest."""
    from tasks.kernels.ngrams import by_owner, find_ngrams

    found = by_owner(find_ngrams(hashes, bounds, table.benchmarks), table.benchmarks)
    shared = np.diff(table.benchmarks.offsets)[found.keys] >= _PASSAGES_KEPT
    n_shared = np.add.reduceat(shared.astype(np.int64), np.cumsum(found.matched) - found.matched)
    own = found.matched - n_shared
    best = np.lexsort((found.owner, -found.matched, -own, found.document))
    rank = np.empty_like(best)
    rank[best] = np.arange(len(best)) - np.searchsorted(found.document, found.document)
    keys, counts = found.smallest(NGRAMS_KEPT)
    ends = np.cumsum(np.append(0, 8 * counts), dtype=np.int32)
    ngrams = table.benchmarks.keys[keys].astype("<u8")
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(ngrams)]
    rows = pa.table(
        [
            found.document,
            *table.passages.take(found.owner).columns,
            table.benchmarks.sizes[found.owner],
            found.matched,
            found.start,
            found.end,
            pa.Array.from_buffers(pa.binary(), len(counts), buffers),
        ],
        schema=_FOUND,
    )
    return rows.filter(rank < _PASSAGES_KEPT)


def _heldout_rows(
    hashes: Hashes,
    bounds: Ints,
    held_out: npt.NDArray[np.bool_],
    table: NgramTable,
    config: DecontaminateConfig,
) -> pa.Table:
    """At most one row of MATCHES a document, with the document's number for its id and digest."""
    from tasks.kernels.ngrams import by_owner, count_ngrams, find_ngrams

    hits = find_ngrams(hashes, bounds, table.heldout)
    hits = hits.where(~held_out[hits.document])
    common = np.diff(table.heldout.offsets)[hits.key] == 0
    n_common = np.bincount(hits.document[common], minlength=len(held_out))
    found = by_owner(hits.where(~common), table.heldout)
    best = np.lexsort((found.owner, -found.matched, found.document))
    best = best[np.diff(found.document[best], prepend=-1) != 0]
    number, n = found.document[best], len(best)
    return pa.table(
        [
            number,
            *[pa.repeat(HELDOUT, n)] * 2,
            table.heldout_ids.take(found.owner[best]),
            count_ngrams(hashes, bounds, number, config.ngram) - n_common[number],
            found.matched[best],
            found.start[best],
            found.end[best],
            pa.repeat(pa.scalar(b""), n),
        ],
        schema=_FOUND,
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
    return Request(STAGE, measured, {"corpus": corpus}, pins)


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
    looked_for = _what_was_read(run, config, refs)
    looked_for[HELDOUT] = {"items": heldout.object.rows}
    return commit_stage(
        run,
        request,
        receipts,
        shards,
        measured=MATCHES,
        objects={"benchmark": refs, HELDOUT: (heldout.object,)},
        summary={"benchmarks": looked_for},
    )


def _what_was_read(
    run: Run, config: DecontaminateConfig, refs: Sequence[ObjectRef]
) -> dict[str, dict[str, int]]:
    """Items and passages of each benchmark, and rows that could not be read, which are said aloud:
    nobody looks for those."""
    found = {}
    for ref, benchmark in zip(refs, config.benchmarks, strict=True):
        loaded = load_benchmark(run.store.read_bytes(ref), benchmark.name, benchmark.fields)
        found[benchmark.name] = {
            "items": len({item.split(".")[0] for item, _ in loaded.passages}),
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
