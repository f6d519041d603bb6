"""A corpus is text minus drops: live rows, books and digests along a chain of stages."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.errors import DataError
from tasks.store.corpus import (
    live_rows,
    open_corpus,
    texts_by_id,
    verdict_receipts,
)
from tasks.store.executors import executor_for
from tasks.store.records import Manifest, ManifestRef
from tasks.store.rows import data_digest, digest_hex, document_id
from tasks.store.run import BooksDoNotBalance, Request, Run
from tasks.store.schema import DOCUMENTS, DROPS
from tasks.store.store import Store
from tests.tasks.store import chain

STATES = st.dictionaries(
    st.sampled_from("abcde"), st.sampled_from(["", "hi", "one two", "ONE two", "three"]), max_size=5
)
HISTORIES = st.lists(st.fixed_dictionaries({"x": STATES, "y": STATES}), min_size=1, max_size=4)


def run_at(root: str, **settings: object) -> Run:
    run = Run(Store.at(root), "main", "test-run", say=lambda text: None)
    return replace(run, **settings)  # type: ignore[arg-type]


@contextmanager
def fresh_run(**settings: object) -> Iterator[Run]:
    """A run over an empty local store, for each example that hypothesis makes."""
    with TemporaryDirectory() as folder:
        yield run_at(folder, **settings)


def assert_is(run: Run, manifest: Manifest, states: dict[str, chain.State]) -> None:
    """The corpus holds exactly what plain Python says it should, and its digest says so too."""
    expected = chain.expected(states)
    assert chain.read_live(open_corpus(run.store, manifest), run.store).equals(expected)
    assert manifest.data_digest == digest_hex(data_digest(expected, DOCUMENTS))
    assert manifest.rows_out == expected.num_rows


SITE = {"a": "one two", "b": "hi", "c": "", "d": "three", "e": "One Two"}


def test_the_live_rows_are_what_a_rebuild_from_scratch_gives(store_root: str) -> None:
    run = run_at(store_root, shard_rows=2)
    states = {"x": SITE, "y": {"a": "three", "f": "four"}}
    manifest = chain.grow(run, states)
    assert_is(run, manifest, states)
    assert len(open_corpus(run.store, manifest).shards) == 4


@settings(max_examples=10)
@given(HISTORIES, st.integers(1, 3))
def test_any_history_of_ingests_ends_where_a_rebuild_ends(
    history: list[dict[str, dict[str, str]]], shard_rows: int
) -> None:
    with fresh_run(shard_rows=shard_rows) as run:
        for states in history:
            manifest = chain.grow(run, states)
            assert_is(run, manifest, states)


def test_going_back_to_an_earlier_state_runs_nothing_again(tmp_path: Path) -> None:
    run = run_at(str(tmp_path))
    first = chain.grow(run, {"x": SITE})
    changed = chain.grow(run, {"x": {**SITE, "a": "something else"}})
    assert changed.data_digest != first.data_digest
    back = chain.grow(run, {"x": SITE})
    assert back.ref == first.ref


def test_a_pool_of_processes_gives_the_same_as_one(tmp_path: Path) -> None:
    states = {"x": SITE, "y": {"a": "three", "f": "four"}}
    with executor_for(2) as pool:
        spread = chain.grow(run_at(str(tmp_path / "pool"), executor=pool, shard_rows=1), states)
    alone = chain.grow(run_at(str(tmp_path / "alone")), states)
    assert spread.data_digest == alone.data_digest
    assert (spread.rows_in, spread.rows_out, spread.drops) == (
        alone.rows_in, alone.rows_out, alone.drops,
    )  # fmt: skip


def test_every_manifest_of_the_chain_balances_and_continues_the_one_before(tmp_path: Path) -> None:
    run = run_at(str(tmp_path), shard_rows=2)
    chain.grow(run, {"x": {**SITE, "z": "gone soon"}})
    at = chain.grow(run, {"x": SITE})
    drops = {}
    while True:
        assert at.rows_in == at.rows_out + sum(at.drops.values())
        parents = [run.store.manifest(pin) for pin in at.inputs.values()]
        if not parents:
            break
        assert at.rows_in == sum(parent.rows_out for parent in parents)
        drops |= at.drops
        at = parents[0]
    assert drops == {"blank": 1, "short": 1, "exact": 1}
    assert at.drops == {"gone": 1}


def test_drops_of_dead_rows_are_not_counted(tmp_path: Path) -> None:
    run = run_at(str(tmp_path))
    chain.grow(run, {"x": {"a": "hi", "b": "long enough"}})
    at = chain.grow(run, {"x": {"b": "long enough"}})
    assert [at.rows_in, at.rows_out, at.drops] == [1, 1, {}]


def test_a_verdict_that_flips_costs_no_measurement(tmp_path: Path) -> None:
    run = run_at(str(tmp_path))
    # The one with the smaller id comes later, and turns the other into a duplicate.
    smaller, larger = sorted("ab", key=lambda locator: document_id("x", locator))
    first = chain.grow(run, {"x": {larger: "twin text"}})
    then = chain.grow(run, {"x": {larger: "twin text", smaller: "twin text"}})
    assert first.data_digest != then.data_digest
    assert len(list((tmp_path / "actions/scrub").iterdir())) == 2, "one for each shard"
    assert_is(run, then, {"x": {larger: "twin text", smaller: "twin text"}})


def test_an_addition_that_changes_nothing_stops_where_it_did_not(tmp_path: Path) -> None:
    run = run_at(str(tmp_path))
    smaller, larger = sorted("ab", key=lambda locator: document_id("x", locator))
    first = chain.grow(run, {"x": {smaller: "twin text"}})
    assert chain.grow(run, {"x": {smaller: "twin text", larger: "twin text"}}).ref == first.ref


def test_books_that_do_not_balance_are_refused(tmp_path: Path) -> None:
    run = run_at(str(tmp_path))
    parent = chain.extract(run, {"x": chain.ingest(run, "x", {"a": "one", "b": "two"})})
    lying = replace(parent, rows_out=parent.rows_out + 1)
    request = Request(chain.DEDUP, {}, {"corpus": lying})
    shards = open_corpus(run.store, parent).shards
    drop = {"id": document_id("x", "a"), "stage": "dedup", "reason": "exact_duplicate"}
    receipts = verdict_receipts(run, request, shards, DROPS.table([drop]))
    with pytest.raises(BooksDoNotBalance, match="dedup: 3 live rows in, 1 out, 1 dropped"):
        chain.commit_stage(run, request, receipts, shards)
    assert run.store.find_manifest(request.ref) is None


def test_texts_are_found_by_id_in_the_order_asked(tmp_path: Path) -> None:
    run = run_at(str(tmp_path), shard_rows=1)
    manifest = chain.grow(run, {"x": {"a": "first", "b": "second", "c": "no"}})
    shards = open_corpus(run.store, manifest).shards
    ids = [document_id("x", locator) for locator in "ba"]
    assert texts_by_id(run.store, shards, ids) == ["SECOND!", "FIRST!"]
    dropped = document_id("x", "c")
    with pytest.raises(DataError, match=dropped):
        texts_by_id(run.store, shards, [dropped])


def test_what_is_aligned_to_a_shard_is_read_without_its_dropped_rows(tmp_path: Path) -> None:
    run = run_at(str(tmp_path), shard_rows=2)
    manifest = chain.grow(run, {"x": SITE})
    for shard in open_corpus(run.store, manifest).shards:
        lengths = live_rows(run.store, shard, shard.extras.get("lengths"), chain.LENGTHS)
        assert lengths.column("id").equals(live_rows(run.store, shard).column("id"))


def test_readers_follow_pins_and_not_what_came_later(tmp_path: Path) -> None:
    run = run_at(str(tmp_path))
    old = chain.grow(run, {"x": SITE})
    chain.grow(run, {"x": {**SITE, "a": "something else", "n": "a new one"}})
    assert_is(run, old, {"x": SITE})


def test_what_is_no_part_of_a_corpus_is_told(tmp_path: Path) -> None:
    run = run_at(str(tmp_path))
    snapshot = chain.ingest(run, "x", SITE)
    with pytest.raises(DataError, match=r"import .* is not part of a corpus"):
        open_corpus(run.store, snapshot)
    missing = replace(snapshot, stage="dedup", inputs={"corpus": ManifestRef("extract", "0" * 64)})
    with pytest.raises(DataError, match="is missing, though something refers to it"):
        open_corpus(run.store, missing)


def test_the_order_of_sources_does_not_matter(tmp_path: Path) -> None:
    states = {"x": SITE, "y": {"a": "three"}, "z": {"q": "one two"}}
    digests = set()
    for index, order in enumerate(itertools.permutations(states)):
        run = run_at(str(tmp_path / str(index)))
        digests.add(chain.grow(run, {name: states[name] for name in order}).fingerprint)
    assert len(digests) == 1


def test_an_empty_source_beside_another_is_harmless(tmp_path: Path) -> None:
    run = run_at(str(tmp_path))
    manifest = chain.grow(run, {"x": SITE, "y": {}})
    assert_is(run, manifest, {"x": SITE})
    assert isinstance(chain.read_live(open_corpus(run.store, manifest), run.store), pa.Table)
