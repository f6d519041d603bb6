"""A snapshot is a log; its live rows and their digest are those of a rebuild."""

from __future__ import annotations

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
from tasks.snapshot import Ingest, append, check_losses, find_snapshot, live_index
from tasks.store.corpus import snapshot_shards
from tasks.store.records import Manifest
from tasks.store.rows import data_digest, digest_hex, document_id
from tasks.store.run import Run
from tasks.store.schema import DEAD, DOCUMENTS, QUARANTINE
from tasks.store.store import Store
from tests.tasks.store import chain

STATES = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from("xyz"), max_size=6)


def a_run(root: str | Path, **settings: object) -> Run:
    run = Run(Store.at(str(root)), "main", "run-1", say=lambda text: None)
    return replace(run, **settings)  # type: ignore[arg-type]


@contextmanager
def fresh_run(**settings: object) -> Iterator[Run]:
    with TemporaryDirectory() as folder:
        yield a_run(folder, **settings)


def read_live(store: Store, snapshot: Manifest) -> pa.Table:
    """The live rows as docs/format.md tells another program to find them."""
    dead = {
        (row["shard"], row["id"])
        for ref in snapshot.objects.get("dead", ())
        for row in store.read_table(ref, DEAD).to_pylist()
    }
    rows = [
        row
        for shard, receipt in enumerate(store.receipts(snapshot))
        for row in store.read_table(receipt.output("documents"), DOCUMENTS).to_pylist()
        if (shard, row["id"]) not in dead
    ]
    return DOCUMENTS.table(sorted(rows, key=lambda row: row["id"]))


@settings(max_examples=15)
@given(st.lists(STATES, min_size=1, max_size=5), st.integers(1, 4))
def test_any_history_of_adds_edits_and_removals_is_a_rebuild(
    history: list[dict[str, str]], shard_rows: int
) -> None:
    with fresh_run(shard_rows=shard_rows) as run:
        for state in history:
            snapshot = chain.ingest(run, "s", state)
            rebuilt = chain.documents("s", state)
            assert read_live(run.store, snapshot).equals(rebuilt)
            assert snapshot.data_digest == digest_hex(data_digest(rebuilt, DOCUMENTS))
            assert snapshot.rows_out == len(state)
            assert snapshot.rows_in == snapshot.rows_out + sum(snapshot.drops.values())


def test_the_log_only_grows_and_its_shards_keep_their_places(tmp_path: Path) -> None:
    run = a_run(tmp_path, shard_rows=2)
    first = chain.ingest(run, "s", {"a": "x", "b": "x", "c": "x"})
    second = chain.ingest(run, "s", {"a": "y", "b": "x", "d": "x"})
    before, after = run.store.receipts(first), run.store.receipts(second)
    assert after[: len(before)] == before
    assert second.drops == {"gone": 1, "superseded": 1}
    assert all(
        table.column("id").to_pylist() == sorted(table.column("id").to_pylist())
        for table in (
            run.store.read_table(shard.extras["documents"], DOCUMENTS)
            for shard in snapshot_shards(run.store, second)
        )
    )


def test_an_ingest_that_finds_nothing_new_is_the_same_snapshot(store_root: str) -> None:
    run = a_run(store_root)
    first = chain.ingest(run, "s", {"a": "x"})
    assert chain.ingest(run, "s", {"a": "x"}) == first
    ref, _ = find_snapshot(run, "s")
    assert ref is not None
    assert ref.history == ()


def test_shards_hold_no_more_rows_and_bytes_than_asked(tmp_path: Path) -> None:
    state = {str(n): "x" * 100 for n in range(50)}
    by_rows = chain.ingest(a_run(tmp_path / "rows", shard_rows=7), "s", state)
    by_bytes = chain.ingest(a_run(tmp_path / "bytes", shard_bytes=1000), "s", state)
    assert max(r.rows_out for r in Store.at(f"{tmp_path}/rows").receipts(by_rows)) <= 7
    assert max(r.rows_out for r in Store.at(f"{tmp_path}/bytes").receipts(by_bytes)) <= 11
    assert by_rows.data_digest == by_bytes.data_digest


def an_ingest(rows: list[str], gone: list[str]) -> Ingest:
    table = DOCUMENTS.table([chain.document("s", name, "text") for name in rows])
    gone_ids = [document_id("s", name) for name in gone]
    return Ingest(DOCUMENTS, [table], gone_ids, QUARANTINE.empty(), {}, {})


@pytest.mark.parametrize("rows, gone", [(["b", "b"], []), (["a"], ["a"])])
@pytest.mark.parametrize("shard_rows", [1, 10])
def test_an_id_that_comes_twice_in_an_ingest_is_refused(
    tmp_path: Path, rows: list[str], gone: list[str], shard_rows: int
) -> None:
    run = a_run(tmp_path, shard_rows=shard_rows)
    previous = chain.ingest(run, "s", {"a": "x"})
    seen, _ = find_snapshot(run, "s")
    live = live_index(run.store, previous, DOCUMENTS)
    with pytest.raises(DataError, match="s: an ingest tells of one id twice"):
        append(run, chain.IMPORT, "s", {}, seen, previous, an_ingest(rows, gone), live)
    assert find_snapshot(run, "s")[1] == previous


def test_of_two_ingests_at_once_the_first_to_finish_stands(store_root: str) -> None:
    run = a_run(store_root)
    previous = chain.ingest(run, "s", {"a": "x"})
    seen, _ = find_snapshot(run, "s")
    live = live_index(run.store, previous, DOCUMENTS)
    winner = append(run, chain.IMPORT, "s", {}, seen, previous, an_ingest(["b"], []), live)
    loser = append(run, chain.IMPORT, "s", {}, seen, previous, an_ingest(["c"], []), live)
    assert loser == winner
    assert find_snapshot(run, "s")[1] == winner


def test_the_quarantine_is_that_of_the_latest_ingest(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    previous = chain.ingest(run, "s", {"a": "x"})
    for n in range(2):
        bad = QUARANTINE.table([{"source": "s", "locator": f"line {n}", "reason": "not JSON"}])
        seen, _ = find_snapshot(run, "s")
        found = replace(an_ingest([], []), quarantine=bad)
        live = live_index(run.store, previous, DOCUMENTS)
        previous = append(run, chain.IMPORT, "s", {}, seen, previous, found, live)
        assert run.store.read_table(previous.object("quarantine"), QUARANTINE).equals(bad)


def test_an_unusual_loss_stops_and_asks() -> None:
    check_losses("s", 1, 10, 0.1, accepted=False)
    check_losses("s", 9, 10, 0.1, accepted=True)
    check_losses("s", 0, 0, 0.1, accepted=False)
    with pytest.raises(DataError, match=r"s: 2 of 10 .* more than 10%.*--accept-losses"):
        check_losses("s", 2, 10, 0.1, accepted=False)
