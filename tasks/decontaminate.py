"""Decontaminate: documents that hold a benchmark's or a held-out document's text leave.

What stands in each document was measured shard by shard (`tasks/matches.py`); which n-grams are
common phrases, and so who leaves, is one decision over the matches of all live documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tasks.as_task import as_task
from tasks.benchmarks import HELDOUT, DecontaminateConfig
from tasks.matches import MATCHES
from tasks.store.corpus import commit_stage, live_rows, open_corpus, verdict_receipts
from tasks.store.records import Manifest
from tasks.store.run import Request, Run, reuse
from tasks.store.schema import DROPS, Schema
from tasks.store.stage import Stage
from tasks.takedown import taken_from_heldout

STAGE = Stage("decontaminate", 2, ("numpy",))

_TEXT, _INT = pa.string(), pa.int64()
_COLUMNS = [
    ("id", _TEXT), ("reason", _TEXT), ("benchmark", _TEXT), ("item", _TEXT), ("matched", _INT),
    ("overlap", pa.float64()), ("start", _INT), ("end", _INT),
]  # fmt: skip

# What a dropped document held, passage by passage, the gravest first.
LEDGER = Schema("ledger", pa.schema(_COLUMNS), tuple(name for name, _ in _COLUMNS))

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
    table = pa.concat_tables([MATCHES.empty(), *matches]).combine_chunks()
    size = table["n_ngrams"].to_numpy()
    overlap = np.round(table["matched"].to_numpy() / size, 6)
    uncommon = _uncommon(table, config.max_common)
    needed = np.minimum(config.min_ngrams, size)
    heldout = pc.equal(table["kind"], HELDOUT).to_numpy()
    long = pc.equal(table["kind"], "ngram").to_numpy() & (size >= config.ngram)
    met = [
        ~heldout & (uncommon >= needed),
        long & (overlap >= config.paragraph_overlap),
        heldout & (overlap >= config.heldout_overlap),
    ]
    limits = [needed, config.paragraph_overlap, config.heldout_overlap]
    verdict = np.select(met, range(len(met)), default=len(met))
    measured = {
        "verdict": verdict,
        "overlap": overlap,
        "value": np.select(met, [uncommon, overlap, overlap]),
        "threshold": np.select(met, limits),
    }
    for name, values in measured.items():
        table = table.append_column(name, pa.array(values))
    ledger = table.filter(verdict < len(met)).sort_by(
        [("id", "ascending"), ("verdict", "ascending"), ("value", "descending"),
         ("benchmark", "ascending"), ("item", "ascending")]
    )  # fmt: skip
    ledger = ledger.append_column("reason", pa.array(REASONS).take(ledger["verdict"]))
    return _drops(ledger), ledger.select(LEDGER.arrow.names).cast(LEDGER.arrow)


def _drops(ledger: pa.Table) -> pa.Table:
    """DROPS of the first row of each id of a ledger with value and threshold, sorted by id."""
    ids = ledger["id"].combine_chunks()
    fresh = np.ones(len(ids), dtype=np.bool_)
    fresh[1:] = pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
    first = ledger.filter(fresh)
    detail = pc.binary_join_element_wise(first["benchmark"], first["item"], ":")
    stage = pa.repeat(STAGE.name, len(first))
    columns = [first["id"], stage, first["reason"], first["value"], first["threshold"], detail]
    return pa.table(columns, schema=DROPS.arrow)


def _uncommon(table: pa.Table, max_common: int) -> npt.NDArray[np.int64]:
    """How many of each row's n-grams are in at most `max_common` documents of `table`."""
    counts = pc.binary_length(table["ngrams"]).to_numpy() // 8
    row = np.repeat(np.arange(len(counts)), counts)
    keys, key = np.unique(_hashes(table["ngrams"]), return_inverse=True)
    ids = table["id"].combine_chunks().dictionary_encode()
    document = ids.indices.to_numpy().astype(np.int64)[row]
    n = max(1, len(ids.dictionary))
    n_documents = np.bincount(np.unique(key * n + document) // n, minlength=len(keys))
    return np.bincount(row[n_documents[key] <= max_common], minlength=len(counts))


def _hashes(packed: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """All hashes of a column of little-endian uint64, one row after the other."""
    rows = packed.cast(pa.large_binary()).combine_chunks()
    _, offsets, values = rows.buffers()
    bounds = np.frombuffer(offsets, np.int64)[rows.offset : rows.offset + len(rows) + 1]
    return np.frombuffer(values or b"", np.uint8)[bounds[0] : bounds[-1]].view("<u8")


def count_by_benchmark(matches: pa.Table, ledger: pa.Table) -> dict[str, dict[str, int]]:
    """Of each benchmark that anything was found of: items_matched, those of which any n-gram was;
    items_leaked, those that condemned a document; documents_dropped, those so condemned."""
    matched, leaked = _distinct(matches, "item"), _distinct(ledger, "item")
    dropped = _distinct(ledger, "id")
    return {
        name: {
            "items_matched": matched[name],
            "items_leaked": leaked.get(name, 0),
            "documents_dropped": dropped.get(name, 0),
        }
        for name in sorted(matched)
    }


def _distinct(table: pa.Table, column: str) -> dict[str, int]:
    """How many items or ids there are by benchmark."""
    # An item is "line.field", with ".position" inside a list; a held-out one is an id.
    values = pc.replace_substring_regex(table[column], r"\..*", "")
    pairs = pa.table([table["benchmark"], values], ["benchmark", "value"])
    counted = pairs.group_by("benchmark").aggregate([("value", "count_distinct")])
    return dict(zip(*(counted[name].to_pylist() for name in counted.column_names), strict=True))


def decontaminate_request(
    corpus: Manifest, config: DecontaminateConfig, released: Sequence[str] = ()
) -> Request:
    """What decides which documents go: the matches, the thresholds, and which held-out documents
    are measured on no more, since they were taken down."""
    thresholds = {"min_ngrams", "max_common", "paragraph_overlap", "heldout_overlap", "ngram"}
    semantic = config.model_dump(include=thresholds)
    return Request(
        STAGE, {**semantic, "released": released} if released else semantic, {"corpus": corpus}
    )


@as_task("decontaminate")
def decontaminate(run: Run, corpus: Manifest, config: DecontaminateConfig) -> Manifest:
    """Drops what holds a benchmark's text: one decision over the matches of all live documents."""
    released = taken_from_heldout(run.store, run.name)
    request = decontaminate_request(corpus, config, released)
    if done := reuse(run, request):
        return done
    shards = open_corpus(run.store, corpus).shards
    found = pa.concat_tables(
        [
            MATCHES.empty(),
            *(live_rows(run.store, s, s.extras.get(MATCHES.kind), MATCHES) for s in shards),
        ]
    )
    resembles_released = pc.and_(
        pc.equal(found["kind"], HELDOUT),
        pc.is_in(found["item"], value_set=pa.array(released, pa.string())),
    )
    found = found.filter(pc.invert(resembles_released))
    drops, ledger = decide([found], config)
    receipts = verdict_receipts(run, request, shards, drops)
    ledger_ref = run.store.put_table(ledger, LEDGER)
    return commit_stage(
        run,
        request,
        receipts,
        shards,
        objects={LEDGER.kind: (ledger_ref,)} if ledger_ref else {},
        summary={"benchmarks": count_by_benchmark(found, ledger)},
    )
