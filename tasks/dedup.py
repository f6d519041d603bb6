"""Exact and near-duplicates: MinHash signatures per shard, then one decision over the corpus.

Measured per shard: a MinHash signature of each document's set of shingles (Broder 1997). Decided
over the signatures of all live documents: pairs that share a band (Leskovec, Rajaraman and Ullman,
"Mining of Massive Datasets", chapter 3), checked against the true Jaccard similarity of their
texts, joined into clusters of which one document survives:

    pairs = candidate_pairs(signatures, config)
    edges = verify(pairs, text_of, config, known=edges_of_earlier_runs)
    drops, clusters = decide(signatures, edges, config)

Every result is a function of the set of live documents alone: not of their order, their shards,
or of what earlier runs found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from llm.config import Config
from llm.errors import DataError
from tasks.as_task import as_task
from tasks.kernels.words import MULTIPLIER, Hashes, hash_words, ngram_hashes, words
from tasks.store.corpus import (
    Shard,
    commit_stage,
    kept_rows,
    live_rows,
    open_corpus,
    texts_by_id,
    verdict_receipts,
)
from tasks.store.records import Manifest
from tasks.store.run import Action, Outcome, Request, Run, reuse, run_actions
from tasks.store.schema import CLUSTERS, DROPS, EDGES, SIGNATURES
from tasks.store.stage import Stage
from tasks.store.store import Store

# A pair of digests (a < b) that share a band, the smallest live id of each, and the length of
# both texts together in characters.
PAIRS = pa.schema(
    [
        ("a", pa.string()),
        ("b", pa.string()),
        ("id_a", pa.string()),
        ("id_b", pa.string()),
        ("characters", pa.int64()),
    ]
)


SIGNATURE_STAGE = Stage("signatures", 1, ("datasketch", "numpy", "unicode", "xxhash"))
STAGE = Stage("dedup", 1, ("numpy",))


class DedupConfig(Config):
    """Which documents count as duplicates, and which one of them stays."""

    bands: int = Field(14, ge=1)
    """Bands of a signature; documents that agree on one whole band become candidates. 14 bands of
    8 rows as in FineWeb (Penedo et al. 2024): 0.92 of the pairs at similarity 0.8
    become candidates, 0.99 of those at 0.85."""

    rows: int = Field(8, ge=1)
    """Hash values in a band (FineWeb, as above)."""

    ngram: int = Field(5, ge=1)
    """Words, or characters, in a shingle. 5 words as in FineWeb and Lee et al. 2022."""

    shingle: Literal["word", "character"] = "word"
    """What shingles are made of. Characters suit languages whose words are long and inflected."""

    threshold: float = Field(0.8, gt=0, le=1)
    """True Jaccard similarity of the shingle sets at or above which two documents are duplicates.
    0.8 is what Lee et al. 2022 (Deduplicating Training Data Makes Language Models Better) ask of a
    near-duplicate, there as edit similarity."""

    seed: int = Field(1, ge=0, lt=1 << 32)
    """Seed of the MinHash permutations; datasketch's own default."""

    priorities: tuple[str, ...] = ()
    """Sources, best first, whose document survives its duplicates; the unnamed come after the
    named, as equals."""

    @property
    def num_perm(self) -> int:
        """Hash values in a signature."""
        return self.bands * self.rows


def shingles(text: str, config: DedupConfig) -> Hashes:
    """The set of shingles of `text` as sorted distinct hashes; never empty.

    A text shorter than a shingle is one shingle; a text without words is its own only word.
    """
    units = words(text) or [text]
    if config.shingle == "character":
        units = list(" ".join(units)) or [text]
    return np.unique(ngram_hashes(hash_words(units), min(config.ngram, len(units))))


_CHUNK = 4096  # shingles at once: (4096, 112) uint32 is 1.8 MB, whatever the document's length


def signature_shard(documents: pa.Table, config: DedupConfig) -> pa.Table:
    """SIGNATURES of a shard of documents (columns id, digest, text, source), in its order.

    A signature is `config.num_perm` little-endian uint32 values, 448 bytes by default: for each of
    datasketch's `affine32` permutations the smallest value over the upper halves of the shingles'
    hashes. `length` counts characters.
    """
    from datasketch import MinHash

    blank = MinHash(config.num_perm, seed=config.seed, hashfunc=int, scheme="affine32")

    def signature(text: str) -> bytes:
        values = (shingles(text, config) >> np.uint64(32)).tolist()
        minhash = blank.copy()
        for start in range(0, len(values), _CHUNK):
            minhash.update_batch(values[start : start + _CHUNK])
        return minhash.hashvalues.astype("<u4").tobytes()

    texts = [text or "" for text in documents["text"].to_pylist()]
    columns = {
        "id": documents["id"],
        "digest": documents["digest"],
        "length": [len(text) for text in texts],
        "source": documents["source"],
        "signature": [signature(text) for text in texts],
    }
    return pa.table(columns, schema=SIGNATURES.arrow)


def signature_matrix(signatures: pa.Table, config: DedupConfig) -> npt.NDArray[np.uint32]:
    """The signatures as an array (rows, num_perm).

    Raises:
        DataError: a signature of another size, from another configuration.
    """
    values = signatures["signature"].to_pylist()
    sizes = {len(value) for value in values} - {4 * config.num_perm}
    if sizes:
        raise DataError(
            f"found signatures of {sorted(sizes)} bytes where {config.bands} bands of {config.rows}"
            f" rows make {4 * config.num_perm}: measure signatures again with this configuration"
        )
    return np.frombuffer(b"".join(values), dtype="<u4").reshape(-1, config.num_perm)


def candidate_pairs(signatures: pa.Table, config: DedupConfig) -> pa.Table:
    """Pairs of distinct texts that share a band, as PAIRS sorted by (id_a, id_b).

    Each text stands for all its exact copies under their smallest id. In a bucket every member is
    paired with the bucket's smallest id only, which joins the same texts as all pairs would, at a
    cost linear in the bucket.
    """
    table = _one_per_digest(signatures.sort_by("id"))
    values = signature_matrix(table, config)
    found = [np.empty((0, 2), dtype=np.int64)]
    for band in range(config.bands):
        columns = values[:, band * config.rows : (band + 1) * config.rows]
        keys = np.zeros(len(values), dtype=np.uint64)
        for column in columns.T:
            keys = keys * MULTIPLIER + column
        order = np.argsort(keys, kind="stable")  # rows are sorted by id: the smallest id leads
        starts = np.flatnonzero(np.diff(keys[order], prepend=~keys[order[:1]]))
        leaders = np.repeat(order[starts], np.diff(starts, append=len(order)))
        pairs = np.stack([leaders, order], axis=1)
        found.append(pairs[leaders != order])
    return _pairs(table, np.unique(np.concatenate(found), axis=0))


def _one_per_digest(table: pa.Table) -> pa.Table:
    """The first row of each digest."""
    first: dict[str, int] = {}
    for row, digest in enumerate(table["digest"].to_pylist()):
        first.setdefault(digest, row)
    return table.take(pa.array(first.values(), pa.int64()))


def _pairs(table: pa.Table, rows: npt.NDArray[np.int64]) -> pa.Table:
    """PAIRS from row numbers (pairs, 2), in their order, with the smaller digest as `a`."""
    ids, digests = table["id"].to_pylist(), table["digest"].to_pylist()
    lengths = table["length"].to_pylist()
    result = []
    for one, two in rows.tolist():
        a, b = (one, two) if digests[one] < digests[two] else (two, one)
        result.append((digests[a], digests[b], ids[a], ids[b], lengths[a] + lengths[b]))
    result.sort(key=lambda pair: pair[2:4])
    columns = list(zip(*result, strict=True)) or [()] * len(PAIRS)
    return pa.table(dict(zip(PAIRS.names, columns, strict=True)), schema=PAIRS)


_BATCH_CHARACTERS = 1 << 26


def verify(
    pairs: pa.Table,
    text_of: Callable[[list[str]], Sequence[str]],
    config: DedupConfig,
    known: pa.Table | None = None,
) -> pa.Table:
    """EDGES: the true Jaccard similarity of every pair, also below the threshold, by (a, b).

    `known` are edges of earlier runs with the same `ngram` and `shingle`; they only save work,
    since a pair of digests has one similarity. `text_of` gives the texts of distinct ids in their
    order; it is asked for at most about 64 M characters at a time. Similarities are rounded to 6
    decimals.
    """
    found: dict[tuple[str, str], float] = {}
    if known is not None:
        columns = (known[name].to_pylist() for name in EDGES.arrow.names)
        found = {(a, b): similarity for a, b, similarity in zip(*columns, strict=True)}
    wanted = list(zip(pairs["a"].to_pylist(), pairs["b"].to_pylist(), strict=True))
    fresh = pairs.filter(pa.array([pair not in found for pair in wanted], pa.bool_()))
    batches = np.cumsum(fresh["characters"].to_numpy()) // _BATCH_CHARACTERS
    starts = np.flatnonzero(np.diff(batches, prepend=-1))
    for start, end in pairwise([*starts.tolist(), len(batches)]):
        found.update(_similarities(fresh.slice(start, end - start), text_of, config))
    rows = [{"a": a, "b": b, "similarity": found[a, b]} for a, b in sorted(set(wanted))]
    return EDGES.table(rows)


def _similarities(
    pairs: pa.Table, text_of: Callable[[list[str]], Sequence[str]], config: DedupConfig
) -> Iterator[tuple[tuple[str, str], float]]:
    ids = sorted({*pairs["id_a"].to_pylist(), *pairs["id_b"].to_pylist()})
    sets = {id: shingles(text, config) for id, text in zip(ids, text_of(ids), strict=True)}
    for pair in pairs.to_pylist():
        one, two = sets[pair["id_a"]], sets[pair["id_b"]]
        common = len(np.intersect1d(one, two, assume_unique=True))
        similarity = common / (len(one) + len(two) - common)
        yield (pair["a"], pair["b"]), round(similarity, 6)


def decide(signatures: pa.Table, edges: pa.Table, config: DedupConfig) -> tuple[pa.Table, pa.Table]:
    """DROPS of all but one document of every cluster, and CLUSTERS of all; both sorted by id.

    `signatures` are those of the live documents, `edges` those that `verify` gave for their
    `candidate_pairs`. A cluster is a connected component of equal digests and of edges at or above
    the threshold; its root is its smallest id. Its survivor comes from the best source, then is the
    longest, then has the smallest id. A drop's `detail` is the survivor's id and its `value` their
    true similarity; where the two were never compared, being joined through others, the value is
    estimated from their signatures and the detail ends in " (estimated)".

    Raises:
        DataError: an id that comes twice, or an edge between documents that are not there.
    """
    table = signatures.sort_by("id")
    ids, digests = table["id"].to_pylist(), table["digest"].to_pylist()
    similarity = {(edge["a"], edge["b"]): edge["similarity"] for edge in edges.to_pylist()}
    roots = _components(ids, digests, similarity, config.threshold)
    clusters = pa.table({"id": ids, "root": [ids[root] for root in roots]}, CLUSTERS.arrow)

    members: dict[int, list[int]] = {}
    for row, root in enumerate(roots):
        members.setdefault(root, []).append(row)
    rank = {source: place for place, source in enumerate(config.priorities)}
    sources, lengths = table["source"].to_pylist(), table["length"].to_pylist()
    survivor_of: dict[int, int] = {}
    for rows in members.values():
        survivor = min(rows, key=lambda r: (rank.get(sources[r], len(rank)), -lengths[r], r))
        survivor_of.update({row: survivor for row in rows if row != survivor})

    matrix = signature_matrix(table, config)
    drops = []
    for row, survivor in sorted(survivor_of.items()):
        reason, value, threshold, detail = "near_duplicate", 1.0, config.threshold, ids[survivor]
        a, b = sorted((digests[row], digests[survivor]))
        if a == b:
            reason, threshold = "exact_duplicate", 1.0
        elif (a, b) in similarity:
            value = similarity[a, b]
        else:
            value = round(float(np.mean(matrix[row] == matrix[survivor])), 6)
            detail += " (estimated)"
        drops.append((ids[row], "dedup", reason, value, threshold, detail))
    names = DROPS.arrow.names
    return DROPS.table([dict(zip(names, drop, strict=True)) for drop in drops]), clusters


def _components(
    ids: list[str],
    digests: list[str],
    similarity: dict[tuple[str, str], float],
    threshold: float,
) -> list[int]:
    """Row number of the smallest id of each row's cluster; `ids` are sorted."""
    first: dict[str, int] = {}
    parent = [first.setdefault(digest, row) for row, digest in enumerate(digests)]
    for one, two in pairwise(ids):
        if one == two:
            raise DataError(f"the id {one} comes twice among the live documents, expected once")

    def find(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    for (a, b), value in similarity.items():
        if a not in first or b not in first:
            raise DataError(
                f"the edge {a}, {b} names a text that no live document has: pass the edges that"
                " were verified for these signatures"
            )
        if value >= threshold:
            low, high = sorted((find(first[a]), find(first[b])))
            parent[high] = low
    return [find(row) for row in range(len(parent))]


def signatures_request(corpus: Manifest, config: DedupConfig) -> Request:
    """What decides the signatures: the text, and how shingles and permutations are made."""
    measured = {"bands", "rows", "ngram", "shingle", "seed"}
    return Request(SIGNATURE_STAGE, config.model_dump(include=measured), {"corpus": corpus})


def signatures_work(store: Store, shard: Shard, config: DedupConfig) -> Outcome:
    documents = kept_rows(store, shard, ["id", "digest", "text", "source"])
    signatures = signature_shard(documents, config)
    return Outcome(((SIGNATURES, signatures),), documents.num_rows, signatures.num_rows)


@as_task("signatures")
def signatures(run: Run, corpus: Manifest, config: DedupConfig) -> Manifest:
    """A MinHash signature of every document that the filters of its own shard kept."""
    request = signatures_request(corpus, config)
    if done := reuse(run, request):
        return done
    shards = open_corpus(run.store, corpus).shards
    actions = [Action(shard.inputs, (shard, config)) for shard in shards]
    receipts = run_actions(run, request, signatures_work, actions)
    return commit_stage(run, request, receipts, shards, measured=SIGNATURES)


def dedup_request(corpus: Manifest, config: DedupConfig) -> Request:
    """What decides which duplicates go: the signatures, the threshold and the priorities."""
    return Request(STAGE, config.model_dump(), {"corpus": corpus})


@as_task("dedup")
def dedup(run: Run, corpus: Manifest, config: DedupConfig) -> Manifest:
    """Drops all but one of each cluster of duplicates: one decision over all live documents."""
    request = dedup_request(corpus, config)
    if done := reuse(run, request):
        return done
    store = run.store
    shards = open_corpus(store, corpus).shards
    per_shard = [
        live_rows(store, shard, shard.extras.get(SIGNATURES.kind), SIGNATURES) for shard in shards
    ]
    table = pa.concat_tables([SIGNATURES.empty(), *per_shard]).combine_chunks()
    pairs = candidate_pairs(table, config)
    before = run.previous.get(STAGE.name)
    known = _known_edges(store, before, request)
    edges = verify(pairs, partial(texts_by_id, store, shards), config, known)
    drops, clusters = decide(table, edges, config)
    receipts = verdict_receipts(run, request, shards, drops)
    objects = {
        name: (ref,)
        for name, ref in (
            ("edges", store.put_table(edges, EDGES)),
            ("clusters", store.put_table(clusters, CLUSTERS)),
        )
        if ref is not None
    }
    return commit_stage(run, request, receipts, shards, objects=objects)


def _known_edges(store: Store, before: Manifest | None, request: Request) -> pa.Table | None:
    """The edges of the last run, where its shingles were made alike."""
    if before is None or not before.objects.get("edges"):
        return None
    alike = all(
        before.payload["config"][name] == request.payload["config"][name]
        for name in ("ngram", "shingle")
    )
    return store.read_table(before.object("edges"), EDGES) if alike else None
