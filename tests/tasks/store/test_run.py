"""Actions: reused where a receipt tells of them, refused where rows go missing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from llm import files
from llm.errors import ConfigError, LoamError
from tasks.store.fingerprint import fingerprint
from tasks.store.records import Manifest
from tasks.store.run import (
    Action,
    BooksDoNotBalance,
    Outcome,
    Request,
    Run,
    WouldRun,
    perform,
    reuse,
    run_actions,
)
from tasks.store.schema import DEAD, DROPS
from tasks.store.stage import Stage
from tasks.store.store import NondeterministicStage, Store

STAGE = Stage("number", 1)
calls: list[int] = []


def number(store: Store, n: int) -> Outcome:
    """A stage that makes n rows of two that came in for each, and drops the other half."""
    calls.append(n)
    kept = DEAD.table([{"shard": i, "id": str(i), "reason": "x"} for i in range(n)])
    dropped = DROPS.table([{"id": str(i), "stage": "number", "reason": "odd"} for i in range(n)])
    return Outcome(((DEAD, kept), (DROPS, dropped)), 2 * n, n, {"rows": n})


def dishonest(store: Store, n: int) -> Outcome:
    return replace(number(store, n), rows_in=2 * n + 1)


def failing(store: Store, n: int) -> Outcome:
    if n == 2:
        raise LoamError("the second one fails")
    return number(store, n)


def a_run(root: str | Path) -> Run:
    calls.clear()
    return Run(Store.at(str(root)), "main", "run-1", say=lambda text: None)


def actions(numbers: Iterable[int]) -> list[Action]:
    return [Action({"n": n}, (n,)) for n in numbers]


def request(**config: object) -> Request:
    return Request(STAGE, config, {})


def test_receipts_come_in_the_order_of_the_actions(store_root: str) -> None:
    run = a_run(store_root)
    receipts = run_actions(run, request(), number, actions([3, 1, 2]))
    assert [receipt.rows_out for receipt in receipts] == [3, 1, 2]
    assert [receipt.drops for receipt in receipts] == [{"odd": 3}, {"odd": 1}, {"odd": 2}]
    first = receipts[0].output("dead")
    assert first is not None
    assert run.store.read_table(first, DEAD).num_rows == 3


def test_what_was_done_is_not_done_again(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    before = run_actions(run, request(), number, actions([1, 2]))
    assert run_actions(run, request(), number, actions([2, 3, 1]))[::2] == [before[1], before[0]]
    assert calls == [1, 2, 3]


def test_the_previous_manifest_is_asked_before_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(tmp_path)
    receipts = run_actions(run, request(), number, actions([1, 2, 3]))
    manifest = a_manifest(run, receipts)
    asked: list[str] = []
    monkeypatch.setattr(files, "read_many", lambda urls: asked.extend(urls) or [None] * len(urls))
    run = replace(run, previous={"number": manifest})
    run_actions(run, request(), number, actions([3, 4]))
    assert asked == [run.store.receipt_url("number", request().action_key({"n": 4}))]
    assert calls == [1, 2, 3, 4]


def a_manifest(run: Run, receipts: list) -> Manifest:
    ref = request().ref
    return Manifest(
        stage=ref.stage, fingerprint=ref.fingerprint, payload=request().payload, inputs={},
        rows_in=0, rows_out=0, drops={}, data_digest="0" * 64,
        receipts=run.store.put_receipts(receipts),
    )  # fmt: skip


def test_equal_shards_are_worked_on_once(tmp_path: Path) -> None:
    receipts = run_actions(a_run(tmp_path), request(), number, actions([2, 2, 2]))
    assert calls == [2]
    assert len(receipts) == 3


def test_another_config_is_another_action(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    run_actions(run, request(), number, actions([1]))
    run_actions(run, request(threshold=1), number, actions([1]))
    assert calls == [1, 1]


def test_rows_that_go_missing_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    run = a_run(tmp_path / "store")
    with pytest.raises(BooksDoNotBalance, match="number: 5 rows in, but 2 out and 2 dropped"):
        run_actions(run, request(), dishonest, actions([2]))
    assert not (tmp_path / "store").exists()


def test_an_action_that_gives_other_data_the_second_time_is_told(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    first = perform(store, STAGE, {}, "k", "run-1", number, (5,))
    assert perform(store, STAGE, {}, "k", "run-2", number, (5,)) == first
    with pytest.raises(NondeterministicStage):
        perform(store, STAGE, {}, "k", "run-3", number, (7,))


def test_a_worker_with_other_libraries_than_the_key_says_refuses_the_work(tmp_path: Path) -> None:
    stage, store = Stage("number", 1, ("numpy",)), Store.at(str(tmp_path))
    with pytest.raises(ConfigError, match=r"numpy: 0\.9 -> .*install the same on every worker"):
        perform(store, stage, {"numpy": "0.9"}, "k", "run", number, (5,))
    assert store.find_receipts("number", ["k"]) == {}


def test_what_finished_before_a_failure_is_kept(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    with pytest.raises(LoamError, match="the second one fails"):
        run_actions(run, request(), failing, actions([1, 2, 3]))
    run_actions(run, request(), number, actions([1, 2, 3]))
    assert calls == [1, 2, 3], "the first was not done again"


def test_the_fingerprint_holds_what_decides_and_nothing_else(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    payload = request(threshold=0.5).payload
    assert payload == {
        "stage": "number", "version": 1, "libraries": {}, "config": {"threshold": 0.5},
        "inputs": {}, "pins": {},
    }  # fmt: skip
    assert request(threshold=0.5).ref.fingerprint == fingerprint(payload)
    manifest = a_manifest(run, [])
    renamed = replace(manifest, provenance={"run_id": "another"}, rows_in=9)
    of_one = Request(STAGE, {}, {"corpus": manifest})
    assert of_one.ref == Request(STAGE, {}, {"corpus": renamed}).ref, "inputs count by digest"
    raised = Request(Stage("number", 2), {}, {"corpus": manifest})
    pinned = Request(STAGE, {}, {"corpus": manifest}, {"tokenizer": "0" * 64})
    library = Request(Stage("number", 1, ("pyarrow",)), {}, {"corpus": manifest})
    assert len({r.ref.fingerprint for r in (of_one, raised, pinned, library)}) == 4
    assert set(library.payload["libraries"]) == {"pyarrow"}


def test_planning_says_which_field_makes_a_stage_run(tmp_path: Path) -> None:
    run = replace(a_run(tmp_path), planning=True)
    with pytest.raises(WouldRun, match="number would run: it never ran here"):
        reuse(run, request())
    committed = run.store.commit(a_manifest(run, []))
    assert reuse(run, request()) == committed
    run = replace(run, previous={"number": committed})
    with pytest.raises(WouldRun, match=r"config\.threshold: null -> 2"):
        reuse(run, request(threshold=2))
