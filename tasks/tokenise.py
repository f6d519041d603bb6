"""Tokens: the tokenizer learnt from the corpus and pinned, token shards, and the dataset.

A dataset is tokens minus drops: a table of which rows of which token shards are trained on,
validated on and tested on. Training learns from the corpus; validation and test tokens come from
the pinned held-out set, so that every model of a pipeline is measured on the same text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from pydantic import Field, model_validator

from llm.config_tokenizer import TokenizerConfig
from llm.errors import DataError
from tasks.as_task import as_task
from tasks.split import HELDOUT
from tasks.store.corpus import Shard, commit_stage, kept_rows, live_rows, open_corpus
from tasks.store.pins import Pin, find_pin, hold
from tasks.store.records import Manifest, ObjectRef
from tasks.store.run import Action, Outcome, Request, Run, reuse, run_actions
from tasks.store.schema import DATASET, DOCUMENTS, LABELS, TOKENS
from tasks.store.stage import Stage
from tasks.store.store import Store, now
from tasks.takedown import REASON as TAKEN_DOWN
from tasks.takedown import Takedowns, read_list

if TYPE_CHECKING:
    from llm.tokenizer import Tokenizer

STAGE = Stage("tokenise", 1, ("tiktoken", "tokenizers"))
DATASET_STAGE = Stage("dataset", 2, STAGE.libraries)

# Text encoded in one go: enough for the libraries to be at work, little enough for what they keep
# of each text not to count.
BATCH_BYTES = 4_000_000


class TokeniseConfig(TokenizerConfig):
    """The tokenizer of a pipeline: how much text it learns from, or where it is taken from."""

    train_bytes: int = Field(256_000_000, gt=0)
    """Most UTF-8 bytes of training text the tokenizer learns from, taken in the order of ids,
    which are hashes: a uniform sample."""

    path: str | None = None
    """A tokenizer from outside, held by its content instead of learning one: a `tokenizer.json`,
    a SentencePiece model (`x.model`), or GPT-2's `merges.txt` with `vocab.json` beside it."""

    end_of_text: str | None = None
    """The special token of the tokenizer at `path` that ends a document; by default
    `<|endoftext|>`, or `</s>` where there is none, as in SentencePiece's models."""

    compare: str | None = None
    """A tokenizer, as in `path`, whose tokens per word on the held-out set the report shows beside
    this pipeline's. It decides nothing."""

    @model_validator(mode="after")
    def _learnt_or_given(self) -> Self:
        if self.path is None and self.end_of_text is not None:
            raise ValueError("end_of_text names a token of the tokenizer at `path`: give that too")
        fields = type(self).model_fields
        trained = (*TokenizerConfig.model_fields, "train_bytes")
        odd = [name for name in trained if getattr(self, name) != fields[name].default]
        if self.path is not None and odd:
            raise ValueError(f"{', '.join(odd)} and path: a tokenizer from outside is not trained")
        return self

    @property
    def origin(self) -> dict[str, Any]:
        """The settings that decide which tokenizer it is."""
        if self.path is not None:
            return self.model_dump(include={"path", "end_of_text"})
        return self.model_dump(exclude={"path", "end_of_text", "compare"})


def learn_tokenizer(run: Run, corpus: Manifest, config: TokeniseConfig) -> Pin:
    """The pipeline's tokenizer, pinned: trained on the corpus's training documents, or imported.

    Made once: a file from outside is not looked at again.
    """

    def make() -> ObjectRef:
        from llm.tokenizer import train_tokenizer

        if config.path is not None:
            return _imported(run, config.path, config.end_of_text)
        run.say("tokenizer: learning one from the corpus")
        body = train_tokenizer(_training_texts(run.store, corpus, config.train_bytes), config)
        return run.store.put_bytes(body, "tokenizer", "json")

    return hold(run, "tokenizer", config.origin, make)


def hold_compared(run: Run, config: TokeniseConfig) -> Pin | None:
    """The tokenizer that `compare` names, pinned."""
    path = config.compare
    if path is None:
        return None
    return hold(run, "compared-tokenizer", {"path": path}, lambda: _imported(run, path, None))


def _imported(run: Run, path: str, end_of_text: str | None) -> ObjectRef:
    from llm.tokenizer_import import import_tokenizer

    return run.store.put_bytes(import_tokenizer(path, end_of_text), "tokenizer", "json")


def _training_texts(store: Store, corpus: Manifest, most_bytes: int) -> Iterator[str]:
    """Texts of training documents in the order of their ids, until there are enough.

    Each shard is read once, and of a later one only what comes before the last text that is kept.
    """
    kept: dict[str, tuple[str, int]] = {}
    last: str | None = None
    for shard in open_corpus(store, corpus).shards:
        wanted = _training_ids(store, shard)
        if last is not None:
            wanted = wanted.filter(pc.less(wanted, last))
        if not len(wanted):
            continue
        where = (pc.field("id") <= pc.max(wanted)) & pc.field("id").isin(wanted)
        rows = store.read_table(shard.text, DOCUMENTS, ["id", "text"], where)
        sized = zip(
            rows["text"].to_pylist(), pc.binary_length(rows["text"]).to_pylist(), strict=True
        )
        kept.update(zip(rows["id"].to_pylist(), sized, strict=True))
        ids = sorted(kept)
        enough = int(np.searchsorted(np.cumsum([kept[key][1] for key in ids]), most_bytes))
        kept = {key: kept[key] for key in ids[: enough + 1]}
        last = ids[enough] if enough < len(ids) else None
    if not kept:
        raise DataError("no document is left to train a tokenizer on; `loam show` tells why")
    return (text for text, _ in kept.values())


def _training_ids(store: Store, shard: Shard) -> pa.Array:
    """The ids of a shard's live documents that are trained on."""
    labels = live_rows(store, shard, shard.extras.get(LABELS.kind), LABELS)
    return labels.filter(pc.equal(labels["split"], "train"))["id"].combine_chunks()


def tokenise_request(corpus: Manifest, config: TokeniseConfig, tokenizer: Pin) -> Request:
    """What decides the tokens: the text and the pinned tokenizer."""
    return Request(STAGE, {}, {"corpus": corpus}, {"tokenizer": tokenizer.object.sha256})


@lru_cache(maxsize=2)
def _tokenizer(store: Store, ref: ObjectRef) -> Tokenizer:
    from llm.tokenizer import Tokenizer

    return Tokenizer.from_bytes(store.read_bytes(ref))


def tokens_of(documents: pa.Table, tokenizer: Tokenizer) -> pa.Table:
    """TOKENS of documents (columns id, text), row by row."""
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    sizes = pc.binary_length(documents.column("text")).to_numpy().astype(np.int64)
    flat, lengths = [np.empty(0, dtype)], [np.empty(0, np.int64)]
    digests: list[str] = []
    for batch in _batches(documents.column("text"), sizes):
        encoded = tokenizer.encode_batch(batch.to_pylist())
        lengths.append(np.fromiter(map(len, encoded), np.int64, len(encoded)))
        digests += [
            xxhash.xxh3_128_hexdigest(ids.astype("<u4", copy=False).data) for ids in encoded
        ]
        flat.append(np.concatenate(encoded).astype(dtype))
    length = np.concatenate(lengths)
    offsets = np.concatenate([[0], np.cumsum(length)])
    columns = {
        "id": documents.column("id"),
        "digest": pa.array(digests, pa.string()),
        "length": pa.array(length),
        "n_bytes": pa.array(sizes),
        "tokens": pa.LargeListArray.from_arrays(offsets, np.concatenate(flat)),
    }
    return pa.table(columns)


def _batches(texts: pa.ChunkedArray, sizes: np.ndarray) -> Iterator[pa.ChunkedArray]:
    """The texts in order, some `BATCH_BYTES` at a time."""
    ends = np.flatnonzero(np.diff(np.cumsum(sizes) // BATCH_BYTES, append=-1)) + 1
    start = 0
    for end in ends.tolist():
        yield texts.slice(start, end - start)
        start = end


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


def dataset_request(
    tokens: Manifest, heldout: Pin, taken: Takedowns, compared: Pin | None = None
) -> Request:
    """What decides the dataset and its figures: the live tokens, their tokenizer (another one may
    give the same), the pinned held-out set, what of both has been taken down since, and the
    tokenizer compared with."""
    pins = {
        "heldout": heldout.object.sha256,
        "tokenizer": tokens.object("tokenizer").sha256,
        **taken.pins,
    }
    if compared is not None:
        pins["compared-tokenizer"] = compared.object.sha256
    return Request(DATASET_STAGE, {}, {"corpus": tokens}, pins)


@as_task("dataset")
def dataset(run: Run, tokens: Manifest, config: TokeniseConfig = TokeniseConfig()) -> Manifest:
    """Which token rows are trained, validated and tested on, as one table sorted by id.

    Of `config` only `compare` counts.
    """
    store = run.store
    heldout = find_pin(store, run.name, "heldout")
    if heldout is None:
        raise DataError("there is no held-out set; `loam run` makes one with the corpus")
    taken = read_list(store)
    compared = hold_compared(run, config)
    request = dataset_request(tokens, heldout, taken, compared)
    if done := reuse(run, request):
        return done
    tokenizer = _tokenizer(store, tokens.object("tokenizer"))
    held = taken.hide(store.read_table(heldout.object, HELDOUT))
    held_tokens = tokens_of(held, tokenizer)
    held_ref = store.put_table(held_tokens, TOKENS)
    parts = [DATASET.empty()]
    if held_ref is not None:
        parts.append(_dataset_rows(held_tokens, held_ref, held))
    live = n_taken = 0
    for shard in open_corpus(store, tokens).shards:
        measured = shard.extras.get(TOKENS.kind)
        ref = store.current(measured) if measured else None
        if ref is None:
            continue
        sources = live_rows(store, shard, columns=["id", "source", "url"])
        allowed = taken.hide(sources)
        live += allowed.num_rows
        n_taken += sources.num_rows - allowed.num_rows
        labels = live_rows(store, shard, shard.extras.get(LABELS.kind), LABELS)
        train = labels.filter(pc.equal(labels.column("split"), "train"))
        joined = train.join(allowed, "id", join_type="inner")
        parts.append(_dataset_rows(store.read_table(ref, TOKENS, _MEASURES), ref, joined))
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
            drops={TAKEN_DOWN: n_taken} if n_taken else {},
            data_digest=dataset_ref.data_digest,
            receipts=None,
            objects={
                "dataset": (dataset_ref,),
                "heldout_tokens": (held_ref,) if held_ref else (),
                "tokenizer": tokens.objects["tokenizer"],
            },
            summary={
                "splits": _by(table, "split"),
                "sources": _by(table, "source"),
                "fertility": _fertility(store, held, held_tokens, compared),
            },
            provenance={**run.provenance, "run_id": run.run_id, "at": now()},
        )
    )


def _fertility(
    store: Store, held: pa.Table, held_tokens: pa.Table, compared: Pin | None
) -> dict[str, Any]:
    """Words (between white space), bytes and tokens of the held-out set, and the tokens of the
    tokenizer compared with."""
    counts: dict[str, Any] = {
        "words": sum(len(text.split()) for text in held.column("text").to_pylist()),
        "text_bytes": pc.sum(held_tokens.column("n_bytes")).as_py() or 0,
        "tokens": pc.sum(held_tokens.column("length")).as_py() or 0,
    }
    if compared is not None:
        theirs = tokens_of(held, _tokenizer(store, compared.object))
        counts["compared"] = {
            "path": compared.config["path"],
            "tokens": pc.sum(theirs.column("length")).as_py() or 0,
        }
    return counts


def dataset_url(store: Store, dataset: Manifest) -> str:
    """The dataset file for a reader who knows URLs only: what stands in its place, where documents
    were erased from it or from the token shards it names."""
    current = store.current(dataset.object("dataset"))
    if current is None:
        raise DataError("every document of the dataset was erased; `loam run` makes another")
    return store.object_url(current)


# What the dataset tells of a row of tokens.
_MEASURES = ["id", "digest", "length", "n_bytes"]


def _dataset_rows(tokens: pa.Table, ref: ObjectRef, labelled: pa.Table) -> pa.Table:
    """DATASET rows of a token shard for the documents in `labelled` (id, split, source)."""
    rows = tokens.select(_MEASURES)
    rows = rows.append_column("row", pa.array(np.arange(tokens.num_rows)))
    rows = rows.join(labelled.select(["id", "split", "source"]), "id", join_type="inner")
    # Relative to the store's root: a store can be copied or served from elsewhere.
    url = f"objects/{ref.sha256[:2]}/{ref.sha256}.{ref.ext}"
    rows = rows.append_column("object", pa.repeat(pa.scalar(url), rows.num_rows))
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
