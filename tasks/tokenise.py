"""Tokens: the tokenizer learnt from the corpus and pinned, token shards, and the dataset.

A dataset is tokens minus drops: a table of which rows of which token shards are trained on,
validated on and tested on. Training learns from the corpus; validation and test tokens come from
the pinned held-out set, so that every model of a pipeline is measured on the same text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from pydantic import Field

from llm.config_tokenizer import TokenizerConfig
from llm.errors import DataError
from tasks.as_task import as_task
from tasks.split import HELDOUT
from tasks.store.corpus import Shard, commit_stage, kept_rows, live_rows, open_corpus
from tasks.store.pins import Pin, find_pin, hold
from tasks.store.records import Manifest, ObjectRef
from tasks.store.rows import data_digest, digest_hex
from tasks.store.run import Action, Outcome, Request, Run, reuse, run_actions
from tasks.store.schema import DATASET, DOCUMENTS, LABELS, TOKENS
from tasks.store.stage import Stage
from tasks.store.store import Store, now

if TYPE_CHECKING:
    from llm.tokenizer import Tokenizer

STAGE = Stage("tokenise", 1, ("tokenizers",))
DATASET_STAGE = Stage("dataset", 1)


class TokeniseConfig(TokenizerConfig):
    """The tokenizer of a pipeline, and how much text it learns from."""

    train_bytes: int = Field(256_000_000, gt=0)
    """Most UTF-8 bytes of training text the tokenizer learns from, taken in the order of ids,
    which are hashes: a uniform sample."""


def learn_tokenizer(run: Run, corpus: Manifest, config: TokeniseConfig) -> Pin:
    """The pipeline's tokenizer: trained on the corpus's training documents once, then pinned."""

    def make() -> ObjectRef:
        from llm.tokenizer import train_tokenizer

        run.say("tokenizer: learning one from the corpus")
        body = train_tokenizer(_training_texts(run.store, corpus, config.train_bytes), config)
        return run.store.put_bytes(body, "tokenizer", "json")

    return hold(run, "tokenizer", config.model_dump(), make)


def _training_texts(store: Store, corpus: Manifest, most_bytes: int) -> Iterator[str]:
    """Texts of training documents in the order of their ids, until there are enough."""
    shards = open_corpus(store, corpus).shards
    listed = []
    for shard in shards:
        rows = live_rows(store, shard, columns=["id"]).column("id")
        labels = store.read_table(shard.extras.get(LABELS.kind), LABELS)
        train = labels.filter(pc.equal(labels.column("split"), "train")).column("id")
        listed += rows.filter(pc.is_in(rows, value_set=train)).to_pylist()
    if not listed:
        raise DataError("no document is left to train a tokenizer on; `loam show` tells why")
    cutoff: Sequence[str] = sorted(listed)
    texts: dict[str, str] = {}
    for shard in shards:
        rows = live_rows(store, shard, columns=["id", "text"])
        rows = rows.filter(pc.is_in(rows.column("id"), value_set=pa.array(cutoff)))
        texts.update(zip(rows["id"].to_pylist(), rows["text"].to_pylist(), strict=True))
        # Once there is enough text, later ids can only be pushed out.
        sizes = np.cumsum([len(texts[key].encode()) for key in sorted(texts)])
        keep = sorted(texts)[: int(np.searchsorted(sizes, most_bytes)) + 1]
        texts = {key: texts[key] for key in keep}
    return (texts[key] for key in sorted(texts))


def tokenise_request(corpus: Manifest, config: TokeniseConfig, tokenizer: Pin) -> Request:
    """What decides the tokens: the text and the pinned tokenizer."""
    return Request(STAGE, {}, {"corpus": corpus}, {"tokenizer": tokenizer.object.sha256})


@lru_cache(maxsize=2)
def _tokenizer(store: Store, ref: ObjectRef) -> Tokenizer:
    from llm.tokenizer import Tokenizer

    return Tokenizer.from_bytes(store.read_bytes(ref))


def tokens_of(documents: pa.Table, tokenizer: Tokenizer) -> pa.Table:
    """TOKENS of documents (columns id, text), row by row."""
    texts = documents.column("text").to_pylist()
    encoded = tokenizer.encode_batch(texts)
    lengths = np.fromiter((len(ids) for ids in encoded), np.int64, len(encoded))
    flat = np.concatenate([np.empty(0, np.uint32), *encoded]).astype(np.uint32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    columns = {
        "id": documents.column("id"),
        "digest": [xxhash.xxh3_128_hexdigest(ids.astype("<u4").tobytes()) for ids in encoded],
        "length": pa.array(lengths),
        "n_bytes": pa.array([len(text.encode()) for text in texts], pa.int64()),
        "tokens": pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(flat.astype(dtype))),
    }
    return pa.table(columns)


def tokenise_work(store: Store, shard: Shard, tokenizer: ObjectRef) -> Outcome:
    documents = kept_rows(store, shard, ["id", "text"])
    tokens = tokens_of(documents, _tokenizer(store, tokenizer))
    stats = {"tokens": float(pc.sum(tokens.column("length")).as_py() or 0)}
    return Outcome(((TOKENS, tokens),), documents.num_rows, tokens.num_rows, stats)


@as_task("tokenise")
def tokenise(run: Run, corpus: Manifest, config: TokeniseConfig) -> Manifest:
    """Token shards of every document its shard's filters kept, and of the held-out set."""
    tokenizer = learn_tokenizer(run, corpus, config)
    request = tokenise_request(corpus, config, tokenizer)
    if done := reuse(run, request):
        return done
    shards = open_corpus(run.store, corpus).shards
    actions = [Action(shard.inputs, (shard, tokenizer.object)) for shard in shards]
    receipts = run_actions(run, request, tokenise_work, actions)
    return commit_stage(
        run, request, receipts, shards, measured=TOKENS, objects={"tokenizer": (tokenizer.object,)}
    )


def dataset_request(tokens: Manifest, heldout: Pin) -> Request:
    """What decides the dataset: the live tokens and the pinned held-out set."""
    return Request(DATASET_STAGE, {}, {"corpus": tokens}, {"heldout": heldout.object.sha256})


@as_task("dataset")
def dataset(run: Run, tokens: Manifest) -> Manifest:
    """Which token rows are trained, validated and tested on, as one table sorted by id."""
    store = run.store
    heldout = find_pin(store, run.name, "heldout")
    if heldout is None:
        raise DataError("there is no held-out set; `loam run` makes one with the corpus")
    request = dataset_request(tokens, heldout)
    if done := reuse(run, request):
        return done
    tokenizer = _tokenizer(store, tokens.object("tokenizer"))
    held = store.read_table(heldout.object, HELDOUT)
    held_tokens = tokens_of(held, tokenizer)
    held_ref = store.put_table(held_tokens, TOKENS)
    parts = [DATASET.empty()]
    if held_ref is not None:
        parts.append(_dataset_rows(held_tokens, held_ref, held))
    live = 0
    for shard in open_corpus(store, tokens).shards:
        ref = shard.extras.get(TOKENS.kind)
        if ref is None:
            continue
        labels = live_rows(store, shard, shard.extras.get(LABELS.kind), LABELS)
        live += labels.num_rows
        sources = store.read_table(shard.text, DOCUMENTS, ["id", "source"])
        train = labels.filter(pc.equal(labels.column("split"), "train"))
        joined = train.join(sources, "id")
        parts.append(_dataset_rows(store.read_table(ref, TOKENS), ref, joined))
    table = pa.concat_tables(parts).sort_by("id").combine_chunks()
    dataset_ref = store.put_table(table, DATASET)
    if dataset_ref is None:
        raise DataError("the dataset is empty; `loam show` tells what was dropped and why")
    return store.commit(
        Manifest(
            stage=DATASET_STAGE.name,
            fingerprint=request.ref.fingerprint,
            payload=request.payload,
            inputs={"corpus": tokens.ref},
            rows_in=tokens.rows_out,
            rows_out=live,
            drops={},
            data_digest=digest_hex(data_digest(table, DATASET)),
            receipts=None,
            objects={
                "dataset": (dataset_ref,),
                "heldout_tokens": (held_ref,) if held_ref else (),
                "tokenizer": tokens.objects["tokenizer"],
            },
            summary={"splits": _by(table, "split"), "sources": _by(table, "source")},
            provenance={**run.provenance, "run_id": run.run_id, "at": now()},
        )
    )


def _dataset_rows(tokens: pa.Table, ref: ObjectRef, labelled: pa.Table) -> pa.Table:
    """DATASET rows of a token shard for the documents in `labelled` (id, split, source)."""
    rows = tokens.select(["id", "digest", "length", "n_bytes"])
    rows = rows.append_column("row", pa.array(range(tokens.num_rows), pa.int64()))
    rows = rows.join(labelled.select(["id", "split", "source"]), "id", join_type="inner")
    # Relative to the store's root: a store can be copied or served from elsewhere.
    url = f"objects/{ref.sha256[:2]}/{ref.sha256}.{ref.ext}"
    rows = rows.append_column("object", pa.array([url] * rows.num_rows, pa.string()))
    return rows.select(DATASET.arrow.names).cast(DATASET.arrow)


def _by(table: pa.Table, column: str) -> Mapping[str, dict[str, int]]:
    """Documents, tokens and bytes of text per value of a column."""
    grouped = table.group_by(column).aggregate(
        [("id", "count"), ("length", "sum"), ("n_bytes", "sum")]
    )
    return {
        row[column]: {
            "documents": row["id_count"],
            "tokens": row["length_sum"],
            "text_bytes": row["n_bytes_sum"],
        }
        for row in sorted(grouped.to_pylist(), key=lambda row: str(row[column]))
    }
