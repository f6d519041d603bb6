"""What leaked: each benchmark's counts, and the evidence, for a person to judge if it is a leak."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from llm.errors import DataError
from tasks.benchmarks import HELDOUT, load_benchmark
from tasks.decontaminate import LEDGER
from tasks.inspecting import urls_of
from tasks.store.corpus import open_corpus, texts_by_id
from tasks.store.records import Manifest
from tasks.store.schema import DOCUMENTS
from tasks.store.store import Store
from tasks.takedown import read_list

# Of each side, about what fits ten lines of a terminal; and what is shown around a span.
_SHOWN_CHARACTERS, _AROUND_CHARACTERS = 800, 60


@dataclass(frozen=True)
class BenchmarkCount:
    """What was looked for and found in live documents: `items` of the benchmark, those of which any
    n-gram was found, those that condemned a document, and the documents they condemned."""

    name: str
    items: int
    items_matched: int
    items_leaked: int
    documents_dropped: int


@dataclass(frozen=True)
class Leak:
    """A dropped document beside the gravest of what it holds: `passage` is the benchmark's text or
    the held-out document's, `span` what the document has from the first to the last word of it
    that was found, `before` and `after` what stands around it. `matched` n-grams of the passage
    were found, `overlap` of all it has (of a held-out document: of all the dropped one has)."""

    id: str
    url: str | None
    reason: str
    benchmark: str
    item: str
    matched: int
    overlap: float
    passage: str
    before: str
    span: str
    after: str


def benchmark_counts(line: Sequence[Manifest]) -> list[BenchmarkCount]:
    """The counts of a line's benchmarks by name, the held-out set last; none where none were looked
    for yet."""
    matched = next((one for one in line if one.stage == "matches"), None)
    decided = next((one for one in line if one.stage == "decontaminate"), None)
    if matched is None or decided is None:
        return []
    none = {"items_matched": 0, "items_leaked": 0, "documents_dropped": 0}
    found = decided.summary["benchmarks"]
    sizes = sorted(
        matched.summary["benchmarks"].items(), key=lambda one: (one[0] == HELDOUT, one[0])
    )
    return [BenchmarkCount(name, size["items"], **found.get(name, none)) for name, size in sizes]


def leak_samples(
    store: Store, line: Sequence[Manifest], benchmark: str | None, n: int
) -> list[Leak]:
    """The `n` first documents by id that a benchmark condemned; ids are hashes, so any sample is as
    good. Nothing is shown of what is taken down.

    Raises DataError, naming the benchmarks there are, when this one condemned no document.
    """
    decided = next((one for one in line if one.stage == "decontaminate"), None)
    ledger = LEDGER.empty()
    for ref in decided.objects.get(LEDGER.kind, ()) if decided else ():
        ledger = store.read_table(ref, LEDGER)
    known = sorted(pc.unique(ledger["benchmark"]).to_pylist())
    if benchmark is not None:
        ledger = ledger.filter(pc.equal(ledger["benchmark"], benchmark))
    if decided is not None:
        ledger = _without_taken_down(store, decided, ledger)
    if decided is None or not len(ledger):
        raise DataError(
            f"no document was dropped for {benchmark or 'any benchmark'}; benchmarks with leaks: "
            f"{', '.join(known) or 'none'}"
        )
    ids = pc.unique(ledger["id"])[:n]
    gravest: dict[str, dict[str, Any]] = {}
    for row in ledger.filter(pc.is_in(ledger["id"], value_set=ids)).to_pylist():
        gravest.setdefault(row["id"], row)
    rows = list(gravest.values())
    matched = store.manifest(decided.inputs["corpus"])
    passages = _passages(store, matched, {(row["benchmark"], row["item"]) for row in rows})
    texts = texts_by_id(store, open_corpus(store, matched).shards, ids.to_pylist())
    urls = urls_of(store, decided, ids.to_pylist())
    n = matched.payload["config"]["ngram"]
    return [
        _leak(row, urls.get(row["id"]), passages[row["benchmark"], row["item"]], text, n)
        for row, text in zip(rows, texts, strict=True)
    ]


def _without_taken_down(store: Store, decided: Manifest, ledger: pa.Table) -> pa.Table:
    """The ledger without documents that are taken down, on either side."""
    heldout = pc.equal(ledger["benchmark"], HELDOUT)
    sides = sorted({*ledger["id"].to_pylist(), *ledger["item"].to_pylist()})
    urls = urls_of(store, decided, sides)
    rows = pa.table(
        {"id": pa.array(sides, pa.string()), "url": pa.array(map(urls.get, sides), pa.string())}
    )
    shown = read_list(store).hide(rows)["id"].combine_chunks()
    allowed = pc.or_(pc.invert(heldout), pc.is_in(ledger["item"], value_set=shown))
    return ledger.filter(pc.and_(pc.is_in(ledger["id"], value_set=shown), allowed))


def _leak(row: Mapping[str, Any], url: str | None, passage: str, text: str, n: int) -> Leak:
    start, end = span_of_words(text, row["start"], row["end"])
    begins, _ = span_of_words(passage, _place(passage, text[start:end], n), len(passage))
    told = {name: row[name] for name in ("id", "reason", "benchmark", "item", "matched", "overlap")}
    return Leak(
        **told,
        url=url,
        passage=_shortened(passage[max(0, begins - _AROUND_CHARACTERS) :]),
        before=_one_line(text[max(0, start - _AROUND_CHARACTERS) : start]),
        span=_shortened(text[start:end]),
        after=_one_line(text[end : end + _AROUND_CHARACTERS]),
    )


def _place(passage: str, span: str, n: int) -> int:
    """The word of the passage at which the first n-gram of the span begins."""
    from tasks.kernels.words import words

    units, looked_for = words(passage), words(span)[:n]
    places = range(len(units) - len(looked_for) + 1)
    return next(at for at in places if units[at : at + len(looked_for)] == looked_for)


def span_of_words(text: str, start: int, end: int) -> tuple[int, int]:
    """Where in `text` its words `start` to `end` are, in characters."""
    from tasks.kernels.words import words

    def begins(word: int) -> int:
        """The first character by which there are more than `word` words."""
        places = range(len(text) + 1)
        return bisect_right(places, word, key=lambda place: len(words(text[:place]))) - 1

    first = begins(start)
    return first, first + len(text[first : begins(end)].rstrip())


def _passages(
    store: Store, matched: Manifest, wanted: Set[tuple[str, str]]
) -> dict[tuple[str, str], str]:
    """The texts of items (benchmark, item), as the corpus was matched against them."""
    found: dict[tuple[str, str], str] = {}
    pins: dict[str, str] = matched.payload["pins"]
    objects = {ref.sha256: ref for refs in matched.objects.values() for ref in refs}
    for name in sorted({benchmark for benchmark, _ in wanted}):
        items = [item for benchmark, item in wanted if benchmark == name]
        if name == HELDOUT:
            rows = store.read_table(objects[pins[HELDOUT]], DOCUMENTS, ["id", "text"])
            rows = rows.filter(pc.is_in(rows["id"], value_set=pa.array(items)))
            texts = dict(zip(rows["id"].to_pylist(), rows["text"].to_pylist(), strict=True))
        else:
            body = store.read_bytes(objects[pins[f"benchmark-{name}"]])
            fields = matched.payload["config"]["fields"][name]
            texts = dict(load_benchmark(body, name, fields).passages)
        found |= {(name, item): texts[item] for item in items}
    return found


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _shortened(text: str) -> str:
    """On one line, the middle left out where it is long."""
    text, half = _one_line(text), _SHOWN_CHARACTERS // 2
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:half]} … {text[-half:]}"
