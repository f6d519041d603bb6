"""Tokens of documents, the tokenizer a pipeline holds, and how well it fits the held-out text."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import tasks.tokenise
from llm.config_tokenizer import TokenizerConfig
from llm.errors import ConfigError, DataError
from llm.tokenizer import Tokenizer, train_tokenizer
from tasks.report_model import _fertility as told_fertility
from tasks.store.corpus import Shard
from tasks.store.pins import Pin
from tasks.store.records import Manifest, ObjectRef
from tasks.store.run import Request, Run, WouldRun
from tasks.store.schema import DOCUMENTS, LABELS, TOKENS
from tasks.store.store import Store
from tasks.takedown import Takedowns
from tasks.tokenise import (
    TokeniseConfig,
    _fertility,
    _training_texts,
    dataset_request,
    hold_compared,
    learn_tokenizer,
    tokens_of,
)

TEXTS = ["The wheel turns, the river runs.", "Die Mühle mahlt. 水车 🌾", "print(1887)\n"] * 3
SMALL = train_tokenizer(TEXTS, TokenizerConfig(vocab_size=300))
TOKENIZER = Tokenizer.from_bytes(SMALL)


def with_far_token() -> Tokenizer:
    """The same tokenizer with ids above 2^16."""
    file = json.loads(SMALL)
    extra = {f"<|far_{i}|>": i for i in range(300, 70_000)}
    file["model"]["vocab"] |= extra
    return Tokenizer.from_bytes(json.dumps(file).encode())


LARGE = with_far_token()


def documents(texts: list[str]) -> pa.Table:
    ids = [f"{place:032x}" for place in range(len(texts))]
    return pa.table({"id": pa.array(ids, pa.string()), "text": pa.array(texts, pa.large_string())})


@given(st.lists(st.text(), max_size=12), st.integers(1, 40), st.integers(1, 5))
def test_tokens_are_each_documents_own_however_they_are_batched(
    texts: list[str], batch_bytes: int, chunk: int
) -> None:
    table = documents(texts)
    if texts:
        table = pa.concat_tables([table.slice(i, chunk) for i in range(0, len(texts), chunk)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks.tokenise, "BATCH_BYTES", batch_bytes)
        tokens = tokens_of(table, TOKENIZER)
    assert tokens.column_names == TOKENS.arrow.names
    rows = tokens.to_pylist()
    assert len(rows) == len(texts)
    for place, (text, row) in enumerate(zip(texts, rows, strict=True)):
        (ids,) = TOKENIZER.encode_batch([text])
        assert row == {
            "id": f"{place:032x}",
            "digest": xxhash.xxh3_128_hexdigest(ids.astype("<u4").tobytes()),
            "length": len(ids),
            "n_bytes": len(text.encode()),
            "tokens": ids.tolist(),
        }


def test_tokens_take_two_bytes_where_the_vocabulary_allows_it() -> None:
    for tokenizer, width in ((TOKENIZER, pa.uint16()), (LARGE, pa.uint32())):
        assert tokens_of(documents(TEXTS), tokenizer)["tokens"].type == pa.large_list(width)
        assert tokens_of(documents([]), tokenizer)["tokens"].type == pa.large_list(width)
    same = [tokens_of(documents(TEXTS), one)["digest"] for one in (TOKENIZER, LARGE)]
    assert LARGE.vocab_size == 70_000
    assert same[0] == same[1]


def a_run(tmp_path: Path, **changes: Any) -> Run:
    return Run(
        Store.at(f"file://{tmp_path / 'store'}"), "main", "run-1", say=lambda text: None, **changes
    )


def test_a_tokenizer_from_outside_is_held_by_its_content(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_bytes(SMALL)
    config = TokeniseConfig(path=str(file))
    with pytest.raises(WouldRun, match="not pinned yet"):
        learn_tokenizer(a_run(tmp_path, planning=True), None, config)
    pin = learn_tokenizer(a_run(tmp_path), None, config)
    file.write_bytes(b"another")
    run = a_run(tmp_path)
    assert learn_tokenizer(run, None, config) == pin
    assert run.store.read_bytes(pin.object) == SMALL
    with pytest.raises(ConfigError, match=r"path.*loam repin tokenizer"):
        learn_tokenizer(run, None, TokeniseConfig(path="elsewhere.json"))
    with pytest.raises(ConfigError, match="loam repin tokenizer"):
        learn_tokenizer(run, None, TokeniseConfig())


def test_what_a_tokenizer_is_compared_with_decides_nothing_of_it(tmp_path: Path) -> None:
    assert TokeniseConfig(compare="x.json").origin == TokeniseConfig().origin
    # So that pins made before there were such settings stay what they are.
    assert set(TokeniseConfig().origin) == {
        "kind", "vocab_size", "min_frequency", "n_spare_tokens", "train_bytes",
    }  # fmt: skip
    assert hold_compared(a_run(tmp_path), TokeniseConfig()) is None


def test_a_tokenizer_is_learnt_or_taken_from_outside() -> None:
    with pytest.raises(ValidationError, match="vocab_size and path: a tokenizer from outside"):
        TokeniseConfig(path="x.json", vocab_size=500)
    with pytest.raises(ValidationError, match="give that too"):
        TokeniseConfig(end_of_text="</s>")
    given = TokeniseConfig(path="x.model", end_of_text="</s>", compare="y.json")
    assert TokeniseConfig.model_validate(given.model_dump()) == given


def test_fertility_counts_the_held_out_text_with_both_tokenizers(tmp_path: Path) -> None:
    characters = train_tokenizer(TEXTS, TokenizerConfig(kind="characters"))
    (tmp_path / "characters.json").write_bytes(characters)
    run = a_run(tmp_path)
    compared = hold_compared(run, TokeniseConfig(compare=str(tmp_path / "characters.json")))
    held = documents(["The wheel turns.", "Die Mühle"])
    counts = _fertility(run.store, held, tokens_of(held, TOKENIZER), compared)
    n_tokens = sum(map(len, TOKENIZER.encode_batch(held["text"].to_pylist())))
    assert counts == {
        "words": 5,
        "text_bytes": 26,
        "tokens": n_tokens,
        "compared": {"path": str(tmp_path / "characters.json"), "tokens": 25},
    }
    told = {fact.name: fact.value for fact in told_fertility(counts)}
    assert told == {
        "held-out tokens per word": round(n_tokens / 5, 3),
        "held-out bytes per token": round(26 / n_tokens, 3),
        "held-out tokens per word, characters.json": 5.0,
        "held-out bytes per token, characters.json": 1.04,
    }
    assert told_fertility({"words": 0, "text_bytes": 0, "tokens": 0}) == ()


def shards_of(store: Store, rows: list[tuple[int, str, str]]) -> tuple[Shard, ...]:
    """Shards of three of these documents each (id, text, split)."""
    found = []
    for start in range(0, len(rows), 3):
        part = [
            {"id": f"{id_:032x}", "text": text, "split": split}
            for id_, text, split in sorted(rows[start : start + 3])
        ]
        text = store.put_table(DOCUMENTS.table([_without(row, "split") for row in part]), DOCUMENTS)
        labels = store.put_table(LABELS.table([_without(row, "text") for row in part]), LABELS)
        found.append(Shard(text, extras={LABELS.kind: labels}))
    return tuple(found)


def _without(row: dict[str, str], key: str) -> dict[str, str]:
    return {name: value for name, value in row.items() if name != key}


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(st.integers(0, 99), st.text(max_size=9), st.sampled_from(["train", "test"])),
        unique_by=lambda row: row[0],
        max_size=15,
    ),
    st.integers(1, 60),
)
def test_a_tokenizer_learns_from_the_first_training_texts_by_id_whatever_the_shards(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, str, str]], most_bytes: int
) -> None:
    expected: list[str] = []
    for _, text, split in sorted(rows):
        if split == "train" and sum(len(one.encode()) for one in expected) < most_bytes:
            expected.append(text)
    store = Store.at(f"file://{tmp_path_factory.getbasetemp()}/learning")
    corpus = SimpleNamespace(shards=shards_of(store, rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks.tokenise, "open_corpus", lambda *_: corpus)
        if expected:
            assert list(_training_texts(store, None, most_bytes)) == expected
        else:
            with pytest.raises(DataError, match="no document is left"):
                _training_texts(store, None, most_bytes)


def test_no_text_is_read_that_comes_after_what_a_tokenizer_learns_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.at(f"file://{tmp_path / 'store'}")
    corpus = SimpleNamespace(shards=shards_of(store, [(i, "four", "train") for i in range(30)]))
    read: list[int] = []

    def spied(self: Store, ref: Any, schema: Any, *arguments: Any) -> pa.Table:
        table = read_table(self, ref, schema, *arguments)
        read.append(table.num_rows if schema is DOCUMENTS else 0)
        return table

    read_table = Store.read_table
    monkeypatch.setattr(Store, "read_table", spied)
    monkeypatch.setattr(tasks.tokenise, "open_corpus", lambda *_: corpus)
    assert len(list(_training_texts(store, None, 10))) == 3
    assert sum(read) == 3


def test_a_dataset_is_another_one_with_another_tokenizer_that_gives_the_same_tokens() -> None:
    def request(tokenizer: str) -> Request:
        ref = ObjectRef("tokenizer", tokenizer * 64, "json", 0, 9)
        objects = {"tokenizer": (ref,)}
        tokens = Manifest("tokenise", "", {}, {}, 1, 1, {}, "0" * 64, None, objects)
        heldout = Pin("heldout", ObjectRef("documents", "0" * 64, "parquet", 1, 9), {})
        return dataset_request(tokens, heldout, Takedowns())

    assert request("a").ref == request("a").ref
    assert request("a").ref != request("b").ref


def test_offsets_lead_to_each_documents_tokens() -> None:
    tokens = tokens_of(documents(TEXTS), TOKENIZER)["tokens"].combine_chunks()
    lengths = np.diff(tokens.offsets.to_numpy())
    assert lengths.tolist() == [len(ids) for ids in TOKENIZER.encode_batch(TEXTS)]
