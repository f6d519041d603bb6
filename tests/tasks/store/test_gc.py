"""Garbage is exactly what nothing reaches, and it goes without a race and without a loss."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from llm import files
from tasks import registry
from tasks.registry import ModelVersion
from tasks.store import lease as lease_module
from tasks.store.gc import collect, garbage
from tasks.store.lease import LeaseLost, StoreInUse, alone, joined
from tasks.store.pins import hold
from tasks.store.reach import reach
from tasks.store.records import Manifest, manifest_from
from tasks.store.run import Run
from tasks.store.store import Store
from tests.tasks.store import chain
from tests.tasks.store.test_reach import SITE, check, publish

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "POLL_S", 0.05)
    monkeypatch.setattr(lease_module, "BEAT_S", 0.1)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(Store.at(str(tmp_path)), "main", "run-1", say=quiet)


@pytest.fixture
def anywhere(store_root: str) -> Run:
    """A run on a local disk, and one on S3."""
    return Run(Store.at(store_root), "main", "run-1", say=quiet)


def quiet(text: str) -> None:
    pass


def state(i: int) -> dict[str, chain.State]:
    """A source whose text changes, and one that no other state has."""
    return {"x": {**SITE, "a": f"version {i}"}, f"y{i}": {"a": f"only here {i}", "b": "-", "c": ""}}


def histories(run: Run, n: int) -> list[Manifest]:
    """A corpus published so many times over, each time in another state."""
    return [publish(run, state(i)) for i in range(n)]


def content(run: Run) -> dict[str, bytes]:
    urls = files.list_urls(run.store.root)
    return {url: files.read_bytes(url) for url in urls if "/leases/" not in url}


def test_nothing_is_garbage_while_a_ref_reaches_it(run: Run) -> None:
    publish(run, {"x": SITE})
    publish(run, {"x": {**SITE, "a": "changed now"}})
    found = garbage(run.store)
    assert (found.receipts, found.manifests, found.objects, found.runs, found.bytes) == (
        (), (), (), (), 0,
    )  # fmt: skip


def test_garbage_is_exactly_what_no_ref_reaches(run: Run) -> None:
    publish(run, {"x": SITE})
    kept = set(files.list_urls(run.store.root))
    chain.extract(run, {"x": chain.ingest(run, "x", {**SITE, "a": "more to come"})})
    # The snapshot's ref reaches the new shard; only what extract made of it is left to nobody.
    snapshot = run.store.find_ref("snapshot", "main/x")
    assert snapshot is not None
    reached = reach(run.store, only=("snapshot", "main/x"))
    kept |= {run.store.object_url(ref) for ref in reached.objects.values()}
    kept |= {run.store.manifest_url(pin) for pin in reached.manifests}
    found = garbage(run.store)
    unreached = {url for url in files.list_urls(run.store.root) if url not in kept}
    assert {*found.receipts, *found.manifests, *found.objects} == unreached
    assert found.manifests
    assert found.objects
    assert found.receipts
    assert found.bytes == sum(files.size(url) for url in found.objects)


def test_removing_garbage_leaves_a_store_that_verifies(run: Run) -> None:
    publish(run, {"x": SITE})
    chain.extract(run, {"y": chain.ingest(run, "y", {"a": "never published"})})
    found = garbage(run.store)
    for url in (*found.receipts, *found.manifests, *found.objects):
        files.delete(url)
    assert check(run).ok
    chain.extract(run, {"y": chain.ingest(run, "y", {"a": "never published"})})


def test_only_the_last_entries_of_a_ref_are_kept(tmp_path: Path) -> None:
    run = Run(Store.at(str(tmp_path)), "main", "run-1", say=lambda text: None)
    seen = None
    for n in range(4):
        ref = run.store.put_bytes(b"%d" % n, "x", "bin")
        seen = run.store.move_ref("pin", "main/t", {"object": asdict(ref), "config": {}}, seen)
    assert len(garbage(run.store, keep=4).objects) == 0
    assert len(garbage(run.store, keep=1).objects) == 3
    assert check(run).ok, "verifying looks at the whole history"


def test_a_registered_model_keeps_its_files_and_what_they_came_from(run: Run) -> None:
    manifest = chain.grow(run, {"x": SITE})
    weights = run.store.put_bytes(b"weights", "weights", "safetensors")
    before = {*garbage(run.store).objects, *garbage(run.store).manifests}
    assert run.store.object_url(weights) in before
    described = ModelVersion(
        "m", 0, weights.sha256, {"model.safetensors": weights}, {"train": manifest.ref},
        "h" * 64, {}, "2025-01-01T00:00:00Z",
    )  # fmt: skip
    registry.register(run.store, described)
    after = garbage(run.store)
    assert (after.objects, after.manifests) == ((), ())
    assert check(run).ok


def test_the_run_of_a_kept_manifest_is_kept(tmp_path: Path) -> None:
    run = Run(Store.at(str(tmp_path)), "main", "run-1", say=lambda text: None)
    trained = replace(chain.grow(run, {"x": SITE}), stage="train", summary={"run": "runs/kept"})
    committed = run.store.commit(trained)
    run.store.move_ref("model", "main", asdict(committed.ref), None)
    for name in ("kept", "left"):
        files.put(f"{run.store.root}/runs/{name}/metrics/0.jsonl", b"{}")
    assert garbage(run.store).runs == ("runs/left",)


def test_collecting_leaves_what_the_last_entries_reach_and_nothing_else(anywhere: Run) -> None:
    run = anywhere
    *_, before, last = histories(run, 4)
    expected = garbage(run.store, 2)
    assert expected.receipts
    assert expected.manifests
    assert expected.objects
    listed = set(files.list_urls(run.store.root))
    assert collect(run.store, 2, quiet) == expected
    gone = {*expected.receipts, *expected.manifests, *expected.objects}
    left = {url for url in files.list_urls(run.store.root) if "/leases/" not in url}
    assert left == listed - gone
    assert check(run).ok
    assert check(run).stray == ()
    for manifest in (before, last):
        assert run.store.manifest(manifest.ref) == manifest
    assert collect(run.store, 2, quiet).objects == ()


def test_the_history_of_a_ref_says_what_was_collected(run: Run) -> None:
    histories(run, 3)
    collect(run.store, 1, quiet)
    ref = run.store.find_ref("corpus", "main")
    assert ref is not None
    assert [entry.get("collected") for entry in ref.history] == [True, True]
    publish(run, {"x": {**SITE, "a": "after it"}})
    assert check(run).ok


def test_nothing_is_done_again_after_a_collection(run: Run) -> None:
    last = histories(run, 3)[-1]
    collect(run.store, 1, quiet)
    before = content(run)
    assert chain.grow(run, state(2)) == last
    assert content(run).keys() == before.keys()


def test_what_was_collected_can_be_grown_again(run: Run) -> None:
    first = histories(run, 3)[0]
    collect(run.store, 1, quiet)
    again = publish(run, state(0))
    assert again.data_digest == first.data_digest
    assert check(run).ok


def test_pins_stay(run: Run) -> None:
    histories(run, 2)
    pin = hold(run, "t", {}, lambda: run.store.put_bytes(b"pinned", "tokenizer", "json"))
    collect(run.store, 1, quiet)
    assert run.store.read_bytes(pin.object) == b"pinned"


def test_the_pages_of_a_crawl_that_was_stopped_stay_until_it_is_over(run: Run) -> None:
    publish(run, {"x": SITE})
    page = run.store.put_bytes(b"a page", "warc", "warc.gz")
    receipt = replace(
        run.store.receipts(chain.ingest(run, "y", SITE))[0], key="k" * 64, outputs=(page,)
    )
    run.store.put_receipt("crawl", receipt)
    session = {"key": "k", "scope": "s", "open": True}
    ref = run.store.move_ref("crawl", "main/y", session, None)
    collect(run.store, 5, quiet)
    assert run.store.read_bytes(page) == b"a page"
    run.store.move_ref("crawl", "main/y", {**session, "open": False}, ref)
    collect(run.store, 5, quiet)
    assert not files.exists(run.store.object_url(page))


def test_a_training_on_data_that_is_kept_stays_and_any_other_goes(run: Run) -> None:
    kept, other = histories(run, 2)[::-1]
    refs = {
        name: run.store.put_bytes(name.encode(), "dataset", "parquet") for name in ("new", "old")
    }
    for manifest, name in ((kept, "new"), (other, "old")):
        dataset = run.store.commit(
            replace(manifest, stage="dataset", objects={"dataset": (refs[name],)})
        )
        if name == "new":
            run.store.move_ref("dataset", "main", asdict(dataset.ref), None)
        url = f"{run.store.root}/runs/{name}"
        spec = {"spec": {"dataset_url": run.store.object_url(refs[name])}}
        files.put(f"{url}/run.json", json.dumps(spec).encode())
        files.put(f"{url}/checkpoints/00000005/index.json", b"{}")
    assert collect(run.store, 1, quiet).runs == ("runs/old",)
    assert files.list_urls(f"{run.store.root}/runs/new")
    assert not files.list_urls(f"{run.store.root}/runs/old")


def test_no_manifest_is_left_without_what_it_was_made_of(run: Run) -> None:
    """Whichever file a kill leaves as the last one gone, what remains is whole."""
    histories(run, 2)
    for url in garbage(run.store, 1).manifests:
        files.delete(url)
        for left in files.list_urls(f"{run.store.root}/manifests"):
            manifest = manifest_from(files.read_bytes(left), left)
            for parent in manifest.inputs.values():
                assert run.store.find_manifest(parent) is not None, (url, left)


KILLED = """
import os, signal, sys
from llm import files
from tasks.store import gc
from tasks.store.store import Store
left, delete = int(sys.argv[2]), files.delete
def one_by_one(url):
    global left
    if "/leases/" not in url:
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
    delete(url)
files.delete = one_by_one
gc._DELETERS = 1
gc.collect(Store.at(sys.argv[1]), 1, print)
"""


@pytest.mark.parametrize("after", [0, 3, 9, 19])
def test_a_killed_collection_leaves_the_store_whole_and_the_next_finishes(
    run: Run, after: int
) -> None:
    last = histories(run, 3)[-1]
    expected = garbage(run.store, 1)
    total = len(expected.receipts) + len(expected.manifests) + len(expected.objects)
    assert total > 20
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, run.store.root, str(after)],
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert killed.returncode == -signal.SIGKILL
    assert check(run).ok
    assert chain.grow(run, state(2)) == last
    # What was begun is not to be reused: an older state is grown again from what is left of it.
    rest = collect(run.store, 1, quiet)
    assert len(rest.receipts) + len(rest.manifests) + len(rest.objects) == total - after
    assert check(run).ok
    assert check(run).stray == ()


@pytest.mark.parametrize("part", [0.2, 0.5, 0.9])
def test_a_state_that_was_partly_collected_is_grown_again_whole(run: Run, part: float) -> None:
    first = histories(run, 2)[0]
    found = garbage(run.store, 1)
    urls = (*found.receipts, *found.manifests, *found.objects)
    for url in urls[: int(part * len(urls))]:
        files.delete(url)
    again = publish(run, state(0))
    assert again.data_digest == first.data_digest
    assert reach(run.store, keep=1).problems == []


# beside runs


def test_nothing_is_collected_beside_a_run(anywhere: Run) -> None:
    run = anywhere
    histories(run, 2)
    before = content(run)
    with (
        joined(run.store.root, "r", quiet),
        pytest.raises(StoreInUse, match="is in use by process"),
    ):
        collect(run.store, 1, quiet)
    assert content(run) == before
    assert collect(run.store, 1, quiet).objects


def test_a_run_that_begins_meanwhile_waits_until_the_collection_is_over(anywhere: Run) -> None:
    run = anywhere
    histories(run, 2)
    order: list[str] = []

    def begin() -> None:
        with joined(run.store.root, "r", order.append):
            order.append("ran")

    thread = threading.Thread(target=begin)
    with alone(run.store.root, quiet):
        thread.start()
        deadline = time.monotonic() + 20
        while not order and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)
        order.append("collected")
    thread.join(20)
    assert order == ["the store is being tidied; waiting for that to finish", "collected", "ran"]


def test_runs_and_collections_that_begin_together_never_meet(anywhere: Run) -> None:
    run = anywhere
    histories(run, 1)
    at_work: set[str] = set()
    met: list[set[str]] = []
    refused: list[int] = []

    def go(name: str) -> None:
        try:
            context = alone if name.startswith("gc") else None
            with context(run.store.root, quiet) if context else joined(run.store.root, name, quiet):
                at_work.add(name)
                time.sleep(0.03)
                met.append(set(at_work))
                at_work.discard(name)
        except StoreInUse:
            refused.append(1)

    for _ in range(3):
        names = ["gc-1", "run-1", "run-2", "gc-2"]
        threads = [threading.Thread(target=go, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert met
    assert all(not any(n.startswith("gc") for n in one) or len(one) == 1 for one in met)
    assert sum(1 for one in met for n in one if n.startswith("run")) >= 6


def test_what_a_killed_run_holds_hinders_nobody(run: Run) -> None:
    histories(run, 2)
    script = (
        "import os, sys\nfrom tasks.store.lease import joined\n"
        "with joined(sys.argv[1], 'dead', print): os.kill(os.getpid(), 9)"
    )
    subprocess.run(
        [sys.executable, "-c", script, run.store.root],
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert files.list_urls(f"{run.store.root}/leases/runs")
    assert collect(run.store, 1, quiet).objects
    assert not files.list_urls(f"{run.store.root}/leases/runs")


def test_a_run_on_another_host_that_stirs_is_respected_and_a_silent_one_is_not(
    anywhere: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = anywhere
    monkeypatch.setattr(lease_module, "EXPIRY_S", 0.5)
    url = f"{run.store.root}/leases/runs/elsewhere.json"

    def beat(n: int) -> None:
        holder = {"host": "another-host", "pid": 1, "started": 0.0, "token": "t"}
        files.put(url, json.dumps({"holder": holder, "beat": n}).encode())

    beat(0)
    timer = threading.Timer(0.2, beat, [1])
    timer.start()
    with pytest.raises(StoreInUse, match="process 1 on another-host"), alone(run.store.root, quiet):
        pass
    timer.join()
    with alone(run.store.root, quiet):
        assert not files.exists(url)


def test_a_run_that_was_taken_for_dead_goes_no_further(run: Run) -> None:
    with joined(run.store.root, "sleepy", quiet) as lease:
        lease.check()
        files.delete(lease.url)
        with pytest.raises(LeaseLost, match="run again"):
            lease.check()


def test_a_run_leaves_no_file_of_its_lease(anywhere: Run) -> None:
    run = anywhere
    with joined(run.store.root, "r", quiet):
        time.sleep(0.3)
    if not files.is_s3(run.store.root):
        folder = files.local_path(f"{run.store.root}/leases/runs")
        assert list(folder.iterdir()) == []
    assert files.list_urls(f"{run.store.root}/leases/runs") == []
