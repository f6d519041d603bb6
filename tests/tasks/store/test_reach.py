"""Verifying finds what is missing, changed or stray."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from llm import files
from llm.errors import DataError
from tasks.store.executors import InlineExecutor, executor_for
from tasks.store.gc import garbage
from tasks.store.pins import hold
from tasks.store.reach import Verdict, reach, verify
from tasks.store.records import Manifest, ObjectRef
from tasks.store.run import Run
from tasks.store.schema import DROPS
from tasks.store.store import Store
from tests.tasks.store import chain

SITE = {"a": "one two", "b": "hi", "c": "", "d": "three"}


@pytest.fixture
def run(store_root: str) -> Run:
    return Run(Store.at(store_root), "main", "run-1", say=lambda text: None)


def publish(run: Run, states: dict[str, chain.State]) -> Manifest:
    """Grows a corpus and points `corpus/main` at it, as a run does."""
    manifest = chain.grow(run, states)
    seen = run.store.find_ref("corpus", "main")
    run.store.move_ref("corpus", "main", asdict(manifest.ref), seen)
    return manifest


def check(run: Run) -> Verdict:
    return verify(run.store, InlineExecutor())


def objects(run: Run) -> list[str]:
    return files.list_urls(f"{run.store.root}/objects")


def test_a_store_that_is_whole_verifies(run: Run) -> None:
    publish(run, {"x": SITE})
    verdict = check(run)
    assert verdict.ok
    assert (verdict.missing, verdict.changed, verdict.stray) == ((), (), ())
    assert verdict.manifests == 6
    assert verdict.objects == len(objects(run)) > 6
    assert verdict.bytes == sum(files.size(url) for url in objects(run))


def test_missing_changed_and_stray_objects_are_all_reported(run: Run) -> None:
    publish(run, {"x": SITE})
    gone, damaged, *_ = sorted(
        run.store.object_url(ref)
        for ref in reach(run.store).objects.values()
        if ref.kind == DROPS.kind
    )
    files.delete(gone)
    files.put(damaged, files.read_bytes(damaged)[:-1] + b"?")
    stray = run.store.object_url(run.store.put_bytes(b"nobody knows me", "x", "bin"))
    verdict = check(run)
    assert not verdict.ok
    assert [line.split(" ")[0] for line in verdict.missing] == [gone]
    assert [line.split(" ")[0] for line in verdict.changed] == [damaged]
    assert verdict.stray == (stray,)
    assert "reached by corpus/main" in verdict.missing[0]


def test_a_pool_of_processes_finds_the_same(tmp_path: Path) -> None:
    run = Run(Store.at(str(tmp_path)), "main", "run-1", say=lambda text: None)
    publish(run, {"x": SITE})
    for url in objects(run)[:3]:
        files.delete(url)
    with executor_for(2) as pool:
        assert verify(run.store, pool) == check(run)


def test_every_object_counts(tmp_path: Path) -> None:
    run = Run(Store.at(str(tmp_path)), "main", "run-1", say=lambda text: None)
    publish(run, {"x": SITE})
    for url in objects(run):
        body = files.read_bytes(url)
        files.put(url, body + b"\0")
        verdict = check(run)
        assert any(url in line for line in (*verdict.changed, *verdict.missing)), url
        files.put(url, body)
    assert check(run).ok


def test_a_manifest_that_is_missing_or_edited_is_reported(run: Run) -> None:
    manifest = publish(run, {"x": SITE})
    url = run.store.manifest_url(manifest.inputs["corpus"])
    body = files.read_bytes(url)
    for damage in (lambda: files.delete(url), lambda: files.put(url, body.replace(b"1", b"2"))):
        damage()
        verdict = check(run)
        assert any(url in line for line in verdict.missing), verdict
        with pytest.raises(DataError, match="nothing can be called garbage"):
            garbage(run.store)
    files.put(url, body)
    assert check(run).ok


def test_damaged_records_are_reported_and_the_rest_is_verified(run: Run) -> None:
    publish(run, {"x": SITE})
    run.store.move_ref("pin", "main/tokenizer", {"object": None, "config": {}}, None)
    receipt = files.list_urls(f"{run.store.root}/actions")[0]
    ref = run.store.ref_url("pin", "main/tokenizer")
    for url in (receipt, ref):
        files.put(url, b'{"format": ')
    verdict = check(run)
    assert not verdict.ok
    assert [line.split(": ")[0] for line in verdict.missing] == sorted([receipt, ref])
    assert verdict.objects > 6


def test_one_ref_can_be_verified_alone(run: Run) -> None:
    publish(run, {"x": SITE})
    hold(run, "t", {}, lambda: run.store.put_bytes(b"pinned", "tokenizer", "json"))
    files.delete(run.store.object_url(ObjectRef("t", files.sha256(b"pinned"), "json", 0, 6)))
    assert not check(run).ok
    assert verify(run.store, InlineExecutor(), ("corpus", "main")).ok
    with pytest.raises(DataError, match="there is no ref corpus/other"):
        verify(run.store, InlineExecutor(), ("corpus", "other"))


def test_what_a_killed_run_leaves_is_no_stray(run: Run) -> None:
    """It committed stages and finished actions that no ref names yet: the next run reuses them."""
    publish(run, {"x": SITE})
    chain.extract(run, {"y": chain.ingest(run, "y", {"a": "never published", "b": ""})})
    assert check(run).ok
