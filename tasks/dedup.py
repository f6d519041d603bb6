"""Exact and near-duplicates: one decision over all live documents.

Copies are told by digest; of what is left, pairs that share a band are checked against the true
Jaccard similarity of their texts, and joined into clusters of which one document survives. Every
result is a function of the set of live documents alone: not of their order, their shards, or of
what earlier runs found.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm import files
from tasks.as_task import as_task
from tasks.duplicates import (
    Documents,
    Floats,
    Pairs,
    Workers,
    candidate_pairs,
    live_documents,
    measured,
    to_hex,
)
from tasks.signatures import DedupConfig, Ints
from tasks.store.corpus import commit_stage, open_corpus, verdict_receipts
from tasks.store.records import Manifest
from tasks.store.run import Request, Run, reuse
from tasks.store.schema import CLUSTERS, DROPS, EDGES
from tasks.store.stage import Stage
from tasks.store.store import Store

STAGE = Stage("dedup", 2, ("numpy", "unicode"))


@dataclass(frozen=True)
class Duplicates:
    """DROPS of all but one document of every cluster, CLUSTERS of two documents or more, both in
    order of id, and EDGES: the pairs of texts that were compared, in order."""

    drops: pa.Table
    clusters: pa.Table
    edges: pa.Table


def find_duplicates(
    workers: Workers, config: DedupConfig, known: pa.Table | None = None
) -> Duplicates:
    """What the live documents of the shards decide.

    A cluster is a connected component of equal digests and of pairs at or above the threshold; its
    root is its smallest id. Its survivor comes from the best source, then is the longest, then has
    the smallest id. A drop's `detail` is the survivor's id and its `value` their similarity, which
    is under the threshold where only others join the two. `known` are EDGES of earlier runs with
    the same shingles; they only save work.
    """
    documents = live_documents(workers, config)
    pairs = candidate_pairs(workers, documents, config)
    similarity = measured(workers, documents, pairs, config, known)
    roots = _roots(documents, pairs, similarity, config.threshold)
    survivors = _survivors(documents, roots)
    apart = Pairs.of(documents.first, documents.first[survivors], len(documents))
    others = apart.where(~np.isin(apart.codes, pairs.codes))
    codes = np.append(pairs.codes, others.codes)
    order = np.argsort(codes)
    compared = Pairs(codes[order], len(documents))
    similarity = np.append(similarity, measured(workers, documents, others, config, known))[order]
    return Duplicates(
        drops=_drops(documents, survivors, compared, similarity, config),
        clusters=_clusters(documents, roots),
        edges=_edges(documents, compared, similarity),
    )


def _roots(documents: Documents, pairs: Pairs, similarity: Floats, threshold: float) -> Ints:
    """The first document of each document's cluster."""
    from tasks.kernels.banding import components

    close = similarity >= threshold
    return components(len(documents), pairs.one[close], pairs.two[close])[documents.first]


def _survivors(documents: Documents, roots: Ints) -> Ints:
    """The document that stays of each document's cluster."""
    order = np.lexsort((-documents.lengths, documents.ranks, roots))  # then by id, as they are
    starts = np.flatnonzero(np.diff(roots[order], prepend=-1))
    survivors = np.empty_like(roots)
    survivors[order] = np.repeat(order[starts], np.diff(starts, append=len(order)))
    return survivors


def _drops(
    documents: Documents, survivors: Ints, compared: Pairs, similarity: Floats, config: DedupConfig
) -> pa.Table:
    gone = np.flatnonzero(survivors != np.arange(len(documents)))
    text, kept = documents.first[gone], documents.first[survivors[gone]]
    near = text != kept
    value = np.ones(len(gone))
    value[near] = similarity[compared.find(text[near], kept[near])]
    columns = {
        "id": to_hex(documents.ids[gone]),
        "stage": pa.repeat(STAGE.name, len(gone)),
        "reason": pc.if_else(pa.array(near), "near_duplicate", "exact_duplicate"),
        "value": value,
        "threshold": np.where(near, config.threshold, 1.0),
        "detail": to_hex(documents.ids[survivors[gone]]),
    }
    return pa.table(columns, schema=DROPS.arrow)


def _clusters(documents: Documents, roots: Ints) -> pa.Table:
    members = np.flatnonzero(np.bincount(roots, minlength=len(roots))[roots] > 1)
    names = [to_hex(documents.ids[numbers]) for numbers in (members, roots[members])]
    return pa.table(names, schema=CLUSTERS.arrow)


def _edges(documents: Documents, pairs: Pairs, similarity: Floats) -> pa.Table:
    """EDGES of the pairs, in order of their digests."""
    a, b = pairs.digests(documents)
    order = np.lexsort((b[:, 1], b[:, 0], a[:, 1], a[:, 0]))
    columns = [to_hex(a[order]), to_hex(b[order]), similarity[order]]
    return pa.table(columns, schema=EDGES.arrow)


def dedup_request(corpus: Manifest, config: DedupConfig) -> Request:
    """What decides which duplicates go: the bands, the threshold and the priorities."""
    return Request(STAGE, config.model_dump(), {"corpus": corpus})


@as_task("dedup")
def dedup(run: Run, corpus: Manifest, config: DedupConfig) -> Manifest:
    """Drops all but one of each cluster of duplicates: one decision over all live documents."""
    request = dedup_request(corpus, config)
    if done := reuse(run, request):
        return done
    shards = open_corpus(run.store, corpus).shards
    known = _known_edges(run.store, run.previous.get(STAGE.name), request)
    # What a killed run leaves here is gc's.
    scratch = Store(f"{run.store.root}/runs/{run.run_id}")
    try:
        workers = Workers(run.store, shards, run.executor, scratch)
        found = find_duplicates(workers, config, known)
    finally:
        for url in files.list_urls(scratch.root):
            files.delete(url)
    receipts = verdict_receipts(run, request, shards, found.drops)
    objects = {
        "edges": run.store.put_table(found.edges, EDGES),
        "clusters": run.store.put_table(found.clusters, CLUSTERS),
    }
    written = {name: (ref,) if ref else () for name, ref in objects.items()}
    return commit_stage(run, request, receipts, shards, objects=written)


def _known_edges(store: Store, before: Manifest | None, request: Request) -> pa.Table | None:
    """The edges of the last run, where its shingles were made alike."""
    if before is None or not before.objects.get("edges"):
        return None
    then, now = before.payload, request.payload
    alike = all(then[name] == now[name] for name in ("version", "libraries")) and all(
        then["config"][name] == now["config"][name] for name in ("ngram", "shingle")
    )
    return store.read_table(before.object("edges"), EDGES) if alike else None
