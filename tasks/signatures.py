"""MinHash bands of every document, measured shard by shard: what duplicates are looked for in.

A document's shingles are hashed by `num_perm` permutations, the least values make its signature
(Broder 1997), and the signature is cut into bands. Two documents become candidates where they share
a band (Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", chapter 3), so that only the
bands' hashes are kept: 112 bytes a document instead of 448. They lie sorted, so that whoever looks
for equal ones reads a range of them from every shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from llm.config import Config
from tasks.as_task import as_task
from tasks.store.corpus import Shard, commit_stage, kept_rows, open_corpus
from tasks.store.records import Manifest, ObjectRef
from tasks.store.run import Action, Outcome, Request, Run, reuse, run_actions
from tasks.store.schema import BANDS, SIGNATURES, Schema
from tasks.store.stage import Stage
from tasks.store.store import Store

STAGE = Stage("signatures", 2, ("numpy", "unicode"))

Ints = npt.NDArray[np.int64]


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

    @property
    def by_letter(self) -> bool:
        """Whether shingles are made of characters: letters with their marks, and gaps."""
        return self.shingle == "character"


def signature_shard(documents: pa.Table, config: DedupConfig) -> tuple[pa.Table, pa.Table]:
    """SIGNATURES of a shard of documents (columns id, digest, text, source), in its order, and
    their BANDS."""
    from tasks.kernels.minhash import band_keys, permutations, sign

    texts = documents["text"]
    permuted = permutations(config.num_perm, config.seed)
    keys = band_keys(sign(texts, config.ngram, config.by_letter, permuted), config.bands)
    length = pc.fill_null(pc.utf8_length(texts), 0)
    columns = [documents["id"], documents["digest"], length, documents["source"]]
    table = pa.table(columns, schema=SIGNATURES.arrow)
    return table, band_slices(keys, np.repeat(np.arange(len(table)), config.bands))


_SLICE = 16384  # keys in a slice of BANDS: 196 kB, of which a range of keys wastes one or two


def band_slices(keys: Ints, rows: Ints) -> pa.Table:
    """BANDS of the keys and the rows they are of, which ascend."""
    order = np.argsort(keys, kind="stable")
    keys, rows = keys[order], rows[order]
    starts = range(0, len(keys), _SLICE)
    found = [slice(start, start + _SLICE) for start in starts]
    return slices([(keys[of][0], keys[of][-1], keys[of], rows[of]) for of in found], BANDS)


def slices(
    parts: Sequence[tuple[int, int, npt.NDArray[np.generic], npt.NDArray[np.integer]]],
    schema: Schema,
) -> pa.Table:
    """A table of slices (first, last, keys, rows); keys are any 8-byte integers."""
    first, last, keys, rows = list(zip(*parts, strict=True)) or [()] * 4
    columns = {
        "first": pa.array(map(int, first), pa.int64()),
        "last": pa.array(map(int, last), pa.int64()),
        "keys": pa.array([part.tobytes() for part in keys], pa.binary()),
        "rows": pa.array([part.astype("<u4").tobytes() for part in rows], pa.binary()),
    }
    return pa.table(columns, schema=schema.arrow)


def read_slices(
    store: Store, ref: ObjectRef | None, schema: Schema, low: int, high: int
) -> tuple[Ints, npt.NDArray[np.uint32]]:
    """(keys, rows) of the slices that may have keys from `low` to `high`, both included."""
    of_range = (pc.field("first") <= high) & (pc.field("last") >= low)
    table = store.read_table(ref, schema, ["keys", "rows"], of_range)
    keys, rows = (b"".join(table[name].to_pylist()) for name in ("keys", "rows"))
    return np.frombuffer(keys, "<i8"), np.frombuffer(rows, "<u4")


def signatures_request(corpus: Manifest, config: DedupConfig) -> Request:
    """What decides the bands: the text, and how shingles and permutations are made."""
    measured = {"bands", "rows", "ngram", "shingle", "seed"}
    return Request(STAGE, config.model_dump(include=measured), {"corpus": corpus})


def signatures_work(store: Store, shard: Shard, config: DedupConfig) -> Outcome:
    documents = kept_rows(store, shard, ["id", "digest", "text", "source"])
    signatures, bands = signature_shard(documents, config)
    tables = ((SIGNATURES, signatures), (BANDS, bands))
    return Outcome(tables, documents.num_rows, signatures.num_rows)


@as_task("signatures")
def signatures(run: Run, corpus: Manifest, config: DedupConfig) -> Manifest:
    """The MinHash bands of every document that the filters of its own shard kept."""
    request = signatures_request(corpus, config)
    if done := reuse(run, request):
        return done
    shards = open_corpus(run.store, corpus).shards
    actions = [Action(shard.inputs, (shard, config)) for shard in shards]
    receipts = run_actions(run, request, signatures_work, actions)
    return commit_stage(run, request, receipts, shards, measured=SIGNATURES)
