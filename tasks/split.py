"""Which documents train and which are held out.

The first build draws validation and test documents by a hash of their cluster's smallest id and
pins them (`hold_out`). From then on a document is held out because its id is pinned
(`label_shard`), so that adding or removing others never moves it; later documents that resemble a
pinned one are decontaminated against it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal, Self

import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from pydantic import Field, model_validator

from llm.config import Config
from llm.errors import DataError
from tasks.as_task import as_task
from tasks.store.corpus import Shard, commit_stage, kept_rows, live_rows, open_corpus
from tasks.store.pins import Pin, hold
from tasks.store.records import Manifest, ObjectRef
from tasks.store.run import Action, Outcome, Request, Run, reuse, run_actions
from tasks.store.schema import CLUSTERS, DOCUMENTS, LABELS, Schema
from tasks.store.stage import Stage
from tasks.store.store import Store

STAGE = Stage("split", 1, ("xxhash",))
Split = Literal["train", "validation", "test"]

# The held-out set: documents with the split that each is pinned to.
HELDOUT = Schema(
    "heldout",
    DOCUMENTS.arrow.append(pa.field("split", pa.string())),
    (*DOCUMENTS.hashed, "split"),
)


class SplitConfig(Config):
    """How much is held out, and which sources decide for themselves."""

    validation: float = Field(0.05, ge=0, lt=1)
    """Part of the clusters held out for validation. A twentieth, so that a corpus of a few hundred
    pages still measures with tens of documents; large corpora want less."""

    test: float = Field(0.05, ge=0, lt=1)
    """Part of the clusters held out for the final test. As large as validation."""

    seed: int = 0
    """Chooses another draw."""

    sources: dict[str, Split] = Field(default_factory=dict)
    """Sources whose documents all go to one split, by name. A pinned document stays held out."""

    @model_validator(mode="after")
    def _leaves_something_to_train_on(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(
                f"validation {self.validation} and test {self.test} leave nothing to train on:"
                " together they must stay under 1"
            )
        return self


def split_of(roots: Sequence[str], config: SplitConfig) -> list[Split]:
    """The split of each cluster root, from all roots of a corpus; equal roots, equal split.

    xxh3-64 of "seed NUL root", scaled to [0, 1): the first `validation` of the range validates,
    the next `test` tests, the rest trains. Of two clusters or more at least one trains, the one of
    the largest hash, and, unless `validation` is 0, at least one validates, the one of the
    smallest hash.
    """
    place = {root: (_place(root, config.seed), root) for root in roots}
    splits = {root: _range_of(at, config) for root, (at, _) in place.items()}
    if len(place) >= 2:
        if config.validation and "validation" not in splits.values():
            splits[min(place, key=place.__getitem__)] = "validation"
        if "train" not in splits.values():
            splits[max(place, key=place.__getitem__)] = "train"
    return [splits[root] for root in roots]


def _place(root: str, seed: int) -> float:
    """Where in [0, 1) a root falls: the upper 53 bits of its hash, which a float holds exactly."""
    return (xxhash.xxh3_64_intdigest(f"{seed}\0{root}".encode()) >> 11) / (1 << 53)


def _range_of(place: float, config: SplitConfig) -> Split:
    if place < config.validation:
        return "validation"
    return "test" if place < config.validation + config.test else "train"


def hold_out(documents: pa.Table, clusters: pa.Table, config: SplitConfig) -> pa.Table:
    """The held-out set of a first build, to be pinned: LABELS of validation and test, by id.

    `documents` (columns id, source) are the live ones of the whole corpus, `clusters` name the
    root of each that has duplicates; any other is its own. Documents of one cluster share their
    split, unless their sources force another.
    """
    root_of = dict(zip(clusters["id"].to_pylist(), clusters["root"].to_pylist(), strict=True))
    labels: dict[str, Split] = {}
    roots: dict[str, str] = {}
    for id, source in _ids_and_sources(documents):
        if source in config.sources:
            labels[id] = config.sources[source]
        else:
            roots[id] = root_of.get(id, id)
    labels.update(zip(roots, split_of(list(roots.values()), config), strict=True))
    rows = sorted(item for item in labels.items() if item[1] != "train")
    return LABELS.table([{"id": id, "split": split} for id, split in rows])


def label_shard(documents: pa.Table, heldout: Mapping[str, str], config: SplitConfig) -> pa.Table:
    """LABELS of a shard of documents (columns id, source), in its order.

    A document whose id is in `heldout` (id to split, as pinned) keeps that split for good; else
    its source may force one; everything else trains.
    """
    splits = [
        heldout.get(id) or config.sources.get(source, "train")
        for id, source in _ids_and_sources(documents)
    ]
    return pa.table({"id": documents["id"], "split": splits}, schema=LABELS.arrow)


def _ids_and_sources(documents: pa.Table) -> list[tuple[str, str]]:
    ids, sources = documents["id"].to_pylist(), documents["source"].to_pylist()
    return list(zip(ids, sources, strict=True))


def hold_out_set(run: Run, corpus: Manifest, config: SplitConfig) -> Pin:
    """The pipeline's held-out set: drawn from this corpus the first time, then pinned.

    It is drawn after scrubbing and before decontamination, so that the corpus, this one and every
    later one, can be decontaminated against it.
    """

    def make() -> ObjectRef:
        if corpus.rows_out == 0:
            drops = [
                f"{visit.name} dropped {sum(visit.result.drops.values())} "
                f"({', '.join(visit.result.drops)})"
                for visit in run.visits
                if isinstance(visit.result, Manifest) and visit.result.drops
            ]
            raise DataError(
                f"no document is left to train on: {'; '.join(drops) or 'the sources are empty'}; "
                "loosen the rules of [select], or add documents (languages are known from "
                "annotate.language_model, or from what the source says)"
            )
        run.say("split: drawing the held-out set")
        written = _clustered(run.store, corpus).objects["clusters"]
        clusters = run.store.read_table(written[0] if written else None, CLUSTERS)
        shards = open_corpus(run.store, corpus).shards
        listed = [live_rows(run.store, shard, columns=["id", "source"]) for shard in shards]
        labels = hold_out(pa.concat_tables(listed), clusters, config)
        held = [DOCUMENTS.empty()]
        for shard in shards:
            rows = live_rows(run.store, shard)
            held.append(rows.filter(pc.is_in(rows.column("id"), value_set=labels.column("id"))))
        # Both sides hold each id once, and sorting by it aligns them.
        table = pa.concat_tables(held).sort_by("id")
        table = table.append_column("split", labels.sort_by("id").column("split"))
        ref = run.store.put_table(table.combine_chunks(), HELDOUT)
        if ref is None:
            raise DataError(
                f"no document of {sum(map(len, listed))} can be held out; a model needs some to be "
                "measured on: add documents, or name a source in split.sources"
            )
        return ref

    return hold(run, "heldout", config.model_dump(), make)


def split_request(corpus: Manifest, config: SplitConfig, heldout: Pin) -> Request:
    """What decides the labels: the corpus, the pinned held-out set, and forced sources."""
    pins = {"heldout": heldout.object.sha256}
    return Request(STAGE, {"sources": config.sources}, {"corpus": corpus}, pins)


def split_work(store: Store, shard: Shard, heldout: ObjectRef, config: SplitConfig) -> Outcome:
    documents = kept_rows(store, shard, ["id", "source"])
    labels = label_shard(documents, _pinned_labels(store, heldout), config)
    return Outcome(((LABELS, labels),), documents.num_rows, labels.num_rows)


@as_task("split")
def split(run: Run, corpus: Manifest, config: SplitConfig) -> Manifest:
    """Labels every document train, validation or test."""
    heldout = hold_out_set(run, corpus, config)
    request = split_request(corpus, config, heldout)
    if done := reuse(run, request):
        return done
    shards = open_corpus(run.store, corpus).shards
    actions = [Action(shard.inputs, (shard, heldout.object, config)) for shard in shards]
    receipts = run_actions(run, request, split_work, actions)
    return commit_stage(run, request, receipts, shards, measured=LABELS)


def _clustered(store: Store, manifest: Manifest) -> Manifest:
    """The manifest, upstream of this one, that holds the clusters of duplicates."""
    while "clusters" not in manifest.objects:
        manifest = store.manifest(manifest.inputs["corpus"])
    return manifest


@lru_cache(maxsize=2)
def _pinned_labels(store: Store, heldout: ObjectRef) -> dict[str, str]:
    rows = store.read_table(heldout, HELDOUT, ["id", "split"])
    return dict(zip(rows["id"].to_pylist(), rows["split"].to_pylist(), strict=True))
