"""Planting: a small corpus of made-up defects, to be sent through the stages beside the real one.

Copies of training documents are given personal data, leaked benchmark passages and spam, or are
paired with edited copies of themselves; others are left untouched. They are a snapshot like that of
a source, but under no ref, and what was planted is a table of it. `tasks/canaries.py` tells what
was caught.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from random import Random
from typing import Annotated, Any, Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from pydantic import Field

from llm.config import Config
from llm.errors import DataError
from tasks.as_task import as_task
from tasks.benchmarks import DecontaminateConfig, load_benchmark, pin_benchmarks
from tasks.defects import LEAKS, PERSONAL, SPAM, Shingles, edited, insert, shingles_of, spam_for
from tasks.scrub import ScrubConfig
from tasks.select import SelectConfig, rules
from tasks.signatures import DedupConfig
from tasks.store.corpus import Shard, live_rows, open_corpus
from tasks.store.fingerprint import fingerprint
from tasks.store.pins import Pin
from tasks.store.records import Manifest, Receipt
from tasks.store.rows import document_id, text_digest
from tasks.store.run import Request, Run, reuse
from tasks.store.schema import DOCUMENTS, LABELS, Schema
from tasks.store.stage import Stage
from tasks.store.store import Store, now

STAGE = Stage("plant", 1, ("unicode", "xxhash"))

SOURCE = "canaries"
"""The source that planted documents have."""

Kind = Literal["pii", "near_duplicate", "leak", "spam", "untouched"]
Catchable = Literal["pii", "near_duplicate", "leak", "spam"]
Share = Annotated[float, Field(ge=0, le=1)]

UNLIKE = 0.5
"""How similar pairs are that must not be taken for duplicates."""

_TEXT, _INT = pa.string(), pa.int64()
_COLUMNS = [
    ("id", _TEXT), ("kind", _TEXT), ("detail", _TEXT), ("host", _TEXT), ("twin", _TEXT),
    ("similarity", pa.float64()), ("item", _TEXT), ("start", _INT), ("end", _INT),
]  # fmt: skip

# What was planted, one row for each thing that is to be caught or left alone. host: the document of
# the corpus that it is a copy of. detail: the type of personal data, the least similarity, how the
# passage is written, the kind of spam. start, end: characters of the planted text.
CANARIES = Schema("canaries", pa.schema(_COLUMNS), tuple(name for name, _ in _COLUMNS))


class CanaryConfig(Config):
    """Made-up defects sent through the stages beside the corpus, and what must be caught of them.
    The section turns them on; they never reach the corpus."""

    n: int = Field(50, ge=1, le=10_000)
    """Documents of each kind: `pii` (one value of each type in each), `near_duplicate` (pairs),
    `leak`, `spam` and `untouched`. Fewer where the corpus has not so many to copy. At 50, a
    measured recall of 0.9 stands for one of 0.79 to 0.96 (95 %, Wilson 1927)."""

    seed: int = Field(0, ge=0)
    """Chooses other documents and other defects."""

    similarities: tuple[Annotated[float, Field(gt=UNLIKE, le=1)], ...] = Field(
        (1.0, 0.95, 0.9, 0.85, 0.8), min_length=1
    )
    """Least true Jaccard similarities of the pairs that dedup is to find: from 0.8, the default of
    `dedup.threshold` (Lee et al. 2022), up to exact copies. Some of 0.5 are planted too, which are
    to be left alone."""

    min_recall: dict[Catchable, Share] = Field(default_factory=dict)
    """Least share of a kind that must be caught, such as `{ pii = 0.95, leak = 1.0 }`; under it the
    run stops before it publishes. Empty by default: it measures only."""


@dataclass(frozen=True)
class Plan:
    """What is to be planted, as far as the stages of the pipeline are there to catch it."""

    entities: tuple[str, ...]
    similarities: tuple[float, ...]
    families: tuple[str, ...]
    passages: tuple[tuple[str, str], ...]
    shingles: Shingles

    def missing(self) -> dict[str, str]:
        """The kinds that cannot be planted, and why."""
        why: dict[str, str] = {}
        if not self.entities:
            why["pii"] = "scrub.entities names no type that can be made up"
        if not self.families:
            why["spam"] = "no rule of select is on that spam is made for"
        if not self.passages:
            why["leak"] = "no benchmark has a passage that is looked for"
        return why


def plant_documents(
    hosts: Sequence[Mapping[str, Any]], plan: Plan, config: CanaryConfig
) -> tuple[pa.Table, pa.Table]:
    """DOCUMENTS to send through the stages, and CANARIES; both sorted.

    `hosts` are rows of DOCUMENTS; each becomes one canary, its kinds in turn. A copy keeps its URL,
    license and language, which stages decide on, but has an id and a source of its own.
    """
    kinds = [kind for kind in get_args(Kind) if kind not in plan.missing()]
    similarities, writings = cycle(plan.similarities), cycle(LEAKS)
    passages = iter(plan.passages)
    documents: list[dict[str, Any]] = []
    truth: list[dict[str, Any]] = []
    for turn, host in enumerate(hosts[: config.n * len(kinds)]):
        kind, rng = kinds[turn % len(kinds)], Random(f"{config.seed} {host['id']}")
        text, rows = host["text"], [dict[str, Any]()]
        extra: list[dict[str, Any]] = []
        if kind == "pii":
            text, rows = _with_personal_data(text, plan.entities, rng)
        elif kind == "near_duplicate":
            extra, rows = _twin(host, next(similarities), plan, rng)
        elif kind == "leak":
            text, rows = _with_leak(text, next(passages, None), next(writings), rng)
        elif kind == "spam":
            family = spam_for(text, host["language"], plan.families, turn // len(kinds))
            text = SPAM[family].make(text, rng) if family else text
            rows = [{"detail": family}] if family else []
        id_ = document_id(SOURCE, f"{kind} {host['id']}")
        if rows:
            documents += [_document(host, id_, text), *extra]
            truth += [{"detail": "", **row, "id": id_, "kind": kind, "host": host["id"]}
                      for row in rows]  # fmt: skip
    order = [(name, "ascending") for name in ("id", "kind", "detail")]
    return DOCUMENTS.table(documents).sort_by("id"), CANARIES.table(truth).sort_by(order)


def _document(host: Mapping[str, Any], id_: str, text: str) -> dict[str, Any]:
    return {**host, "id": id_, "text": text, "digest": text_digest(text), "source": SOURCE,
            "meta": None}  # fmt: skip


def _with_personal_data(
    text: str, entities: Sequence[str], rng: Random
) -> tuple[str, list[dict[str, Any]]]:
    """One made-up value of each type, at random places."""
    types = rng.sample(entities, len(entities))
    planted, spans = insert(text, [PERSONAL[type_](rng) for type_ in types], rng)
    return planted, [
        {"detail": type_, "start": start, "end": end}
        for type_, (start, end) in zip(types, spans, strict=False)
    ]


def _twin(
    host: Mapping[str, Any], target: float, plan: Plan, rng: Random
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The edited copy of a text, and what is to become of the pair."""
    text, similarity = edited(host["text"], target, plan.shingles, rng)
    wanted = [one for one in plan.similarities if one != UNLIKE or target == UNLIKE]
    reached = [one for one in wanted if one <= similarity]
    if not reached:
        return [], []
    twin = document_id(SOURCE, f"twin {host['id']}")
    row = {"detail": f"{max(reached):g}", "twin": twin, "similarity": round(similarity, 6)}
    return [_document(host, twin, text)], [row]


def _with_leak(
    text: str, passage: tuple[str, str] | None, writing: str, rng: Random
) -> tuple[str, list[dict[str, Any]]]:
    """A passage (item, text) on lines of its own; each once, lest it become a common phrase."""
    if passage is None:
        return text, []
    item, leaked = passage
    planted, spans = insert(text, [f"\n{LEAKS[writing](leaked, rng)}\n"], rng)
    rows = [{"detail": writing, "item": item, "start": a, "end": b} for a, b in spans]
    return planted, rows


def plant_request(
    corpus: Manifest,
    config: CanaryConfig,
    families: Sequence[str],
    entities: Sequence[str],
    dedup: DedupConfig,
    decontaminate: DecontaminateConfig,
    benchmarks: Sequence[Pin],
) -> Request:
    """What decides the canaries: the corpus, and what there is to be caught by whom."""
    settings = {
        **config.model_dump(include={"n", "seed", "similarities"}),
        "families": families,
        "entities": entities,
        "shingles": dedup.model_dump(include={"ngram", "shingle"}),
        "unlike": dedup.threshold > UNLIKE,
        "least_words": min(decontaminate.min_short_words, decontaminate.ngram),
        "fields": {benchmark.name: benchmark.fields for benchmark in decontaminate.benchmarks},
    }
    pins = {pin.name: pin.object.sha256 for pin in benchmarks}
    return Request(STAGE, settings, {"labelled": corpus}, pins)


@as_task("plant")
def plant(
    run: Run,
    corpus: Manifest,
    config: CanaryConfig,
    select: SelectConfig,
    dedup: DedupConfig,
    scrub: ScrubConfig,
    decontaminate: DecontaminateConfig,
) -> Manifest:
    """A snapshot of canaries, made of copies of the labelled corpus' training documents.

    Raises DataError where the corpus has no document to copy.
    """
    benchmarks = pin_benchmarks(run, decontaminate)
    on = {rule.reason for rule in rules(select)}
    families = sorted(name for name, spam in SPAM.items() if not on.isdisjoint(spam.reasons))
    entities = sorted(PERSONAL.keys() & set(scrub.entities))
    request = plant_request(corpus, config, families, entities, dedup, decontaminate, benchmarks)
    if done := reuse(run, request):
        return done
    plan = Plan(
        tuple(entities),
        config.similarities + ((UNLIKE,) if dedup.threshold > UNLIKE else ()),
        tuple(families),
        _passages(run.store, benchmarks, decontaminate, config),
        shingles_of(dedup.ngram, dedup.shingle == "character"),
    )
    hosts = _hosts(run.store, open_corpus(run.store, corpus).shards, config, len(get_args(Kind)))
    documents, truth = plant_documents(hosts, plan, config)
    return _commit_snapshot(run, request, documents, truth, plan.missing())


def _hosts(
    store: Store, shards: Sequence[Shard], config: CanaryConfig, kinds: int
) -> list[dict[str, Any]]:
    """Training documents with the smallest hashes: a held-out one's copy would have to leave."""
    found: list[tuple[int, str, int]] = []
    for index, shard in enumerate(shards):
        labels = live_rows(store, shard, shard.extras.get(LABELS.kind), LABELS)
        ids = labels.filter(pc.equal(labels["split"], "train"))["id"].to_pylist()
        ranked = ((xxhash.xxh3_64_intdigest(f"{config.seed}\0{i}".encode()), i, index) for i in ids)
        found = heapq.nsmallest(config.n * kinds, (*found, *ranked))
    places: dict[int, list[str]] = {}
    for _, id_, index in found:
        places.setdefault(index, []).append(id_)
    rows: dict[str, dict[str, Any]] = {}
    for index, ids in places.items():
        table = store.read_table(shards[index].text, DOCUMENTS)
        table = table.filter(pc.is_in(table["id"], value_set=pa.array(ids, pa.string())))
        rows |= {row["id"]: row for row in table.to_pylist()}
    return [rows[id_] for _, id_, _ in found]


def _passages(
    store: Store,
    benchmarks: Sequence[Pin],
    decontaminate: DecontaminateConfig,
    config: CanaryConfig,
) -> tuple[tuple[str, str], ...]:
    """Different passages (item, text) of those that are looked for, in an order of their hashes."""
    from tasks.kernels.words import words

    found: dict[str, str] = {}
    for pin, benchmark in zip(benchmarks, decontaminate.benchmarks, strict=True):
        body = store.read_bytes(pin.object)
        for item, text in load_benchmark(body, benchmark.name, benchmark.fields).passages:
            found.setdefault(text, f"{benchmark.name}:{item}")
    ranked = sorted(
        (xxhash.xxh3_64_intdigest(f"{config.seed}\0{item}".encode()), item, text)
        for text, item in found.items()
    )
    least = min(decontaminate.min_short_words, decontaminate.ngram)
    chosen = ((item, text) for _, item, text in ranked if len(words(text)) >= least)
    return tuple(islice(chosen, config.n))


def _commit_snapshot(
    run: Run, request: Request, documents: pa.Table, truth: pa.Table, missing: Mapping[str, str]
) -> Manifest:
    """The canaries as a snapshot of one shard."""
    rows, known = run.store.put_table(documents, DOCUMENTS), run.store.put_table(truth, CANARIES)
    if rows is None or known is None:
        raise DataError(
            "canaries: the corpus has no training document with words to plant any in; add "
            "documents, or leave out the section canaries"
        )
    digest = fingerprint({"documents": rows.data_digest, "canaries": known.data_digest})
    receipt = Receipt(
        key=digest,
        outputs=(rows,),
        rows_in=rows.rows,
        rows_out=rows.rows,
        drops={},
        data_digest=rows.data_digest,
        run_id=run.run_id,
    )
    return run.store.commit(
        Manifest(
            stage=request.stage.name,
            fingerprint=request.ref.fingerprint,
            payload=request.payload,
            inputs={role: manifest.ref for role, manifest in request.inputs.items()},
            rows_in=rows.rows,
            rows_out=rows.rows,
            drops={},
            data_digest=digest,
            receipts=run.store.put_receipts([receipt]),
            objects={CANARIES.kind: (known,)},
            summary={"source": SOURCE, "missing": dict(missing)},
            provenance={**run.provenance, "run_id": run.run_id, "at": now()},
        )
    )
