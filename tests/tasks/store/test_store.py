"""Objects, receipts, manifests and refs: what is written once, what moves, and what is refused."""

from __future__ import annotations

import hashlib
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm import files
from llm.errors import DataError, StorageError
from tasks.store import store as store_module
from tasks.store.fingerprint import fingerprint
from tasks.store.records import Manifest, ManifestRef, ObjectRef, Receipt, manifest_from, to_json
from tasks.store.rows import data_digest, digest_hex
from tasks.store.schema import CLAIMS, DEAD, DROPS
from tasks.store.store import NondeterministicStage, RefMoved, Store

TABLE = DROPS.table(
    [
        {"id": "b", "stage": "select", "reason": "short", "value": 0.5, "threshold": 1.0},
        {"id": "a", "stage": "select", "reason": "ünï", "detail": "twin of b"},
    ]
)


def a_receipt(key: str = "k" * 64, digest: str = "0" * 64, **more: object) -> Receipt:
    receipt = Receipt(key, (), rows_in=2, rows_out=1, drops={"short": 1}, data_digest=digest)
    return replace(receipt, **more)  # type: ignore[arg-type]


def a_manifest(store: Store, digest: str = "0" * 64, **payload: object) -> Manifest:
    payload = {"stage": "select", "version": 1, **payload}
    return Manifest(
        stage="select",
        fingerprint=fingerprint(payload),
        payload=payload,
        inputs={"corpus": ManifestRef("extract", "e" * 64)},
        rows_in=2,
        rows_out=1,
        drops={"short": 1},
        data_digest=digest,
        receipts=store.put_receipts([a_receipt(seconds=0.5, host="h")]),
        objects={"dead": (ObjectRef("dead", "d" * 64, "parquet", 1, 10, "1" * 64),)},
        summary={"text": "Grüße"},
    )


def test_a_table_comes_back_as_it_was(store_root: str) -> None:
    store = Store.at(store_root)
    ref = store.put_table(TABLE, DROPS)
    assert ref is not None
    assert store.read_table(ref, DROPS).equals(TABLE)
    assert store.read_table(ref, DROPS, ["reason", "id"]).column_names == ["reason", "id"]
    assert (ref.kind, ref.ext, ref.rows) == ("drops", "parquet", 2)
    assert ref.data_digest == digest_hex(data_digest(TABLE, DROPS))


def test_an_object_is_named_after_its_content(store_root: str, tmp_path: Path) -> None:
    store = Store.at(store_root)
    source = tmp_path / "source"
    source.write_bytes(b"content")
    refs = [
        store.put_table(TABLE, DROPS),
        store.put_bytes(b"some bytes", "tokenizer", "json"),
        store.put_local_file(source, "warc", "warc.gz"),
    ]
    for ref in refs:
        assert ref is not None
        name = f"{store.root}/objects/{ref.sha256[:2]}/{ref.sha256}.{ref.ext}"
        assert store.object_url(ref) == name
        body = files.read_bytes(name)
        assert hashlib.sha256(body).hexdigest() == ref.sha256
        assert len(body) == ref.bytes
        assert store.read_bytes(ref) == body
    assert len(files.list_urls(store.root)) == 3


def test_equal_tables_are_one_object_however_they_were_built(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    pieces = pa.concat_tables([TABLE.slice(0, 1), TABLE.slice(1)])
    assert store.put_table(pieces, DROPS) == store.put_table(TABLE, DROPS)


def test_an_empty_table_writes_no_object_and_reads_as_empty(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path / "store"))
    assert store.put_table(DROPS.empty(), DROPS) is None
    assert not (tmp_path / "store").exists()
    assert store.read_table(None, DROPS).equals(DROPS.empty())
    assert store.read_table(None, DROPS, ["id"]).column_names == ["id"]


@given(st.lists(st.tuples(st.text(), st.binary(max_size=9), st.none() | st.text(max_size=9))))
def test_any_rows_survive_the_store(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, bytes, str | None]]
) -> None:
    store = Store.at(str(tmp_path_factory.getbasetemp() / "any-rows"))
    table = CLAIMS.table([{"id": a, "row_hash": b, "digest": c} for a, b, c in rows])
    assert store.read_table(store.put_table(table, CLAIMS), CLAIMS).equals(table)


def test_a_missing_object_is_told_by_its_url(store_root: str) -> None:
    store = Store.at(store_root)
    ref = ObjectRef("drops", "ab" * 32, "parquet", 1, 1)
    for read in (lambda: store.read_bytes(ref), lambda: store.read_table(ref, DROPS)):
        with pytest.raises(DataError, match=r"objects/ab/.* is missing.*loam store verify"):
            read()


def test_a_changed_object_is_refused(store_root: str) -> None:
    store = Store.at(store_root)
    ref = store.put_table(TABLE, DROPS)
    assert ref is not None
    files.put(store.object_url(ref), b"not Parquet at all")
    with pytest.raises(DataError, match="does not hold what its name says"):
        store.read_bytes(ref)
    with pytest.raises(DataError, match="is not the Parquet it was"):
        store.read_table(ref, DROPS)


def test_a_writer_that_loses_rows_gets_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = store_module.pq.write_table
    lossy = lambda table, *args, **more: write(table.slice(1), *args, **more)  # noqa: E731
    monkeypatch.setattr(store_module.pq, "write_table", lossy)
    with pytest.raises(StorageError, match="wrote 2 rows of drops, read 1 back"):
        Store.at(str(tmp_path / "store")).put_table(TABLE, DROPS)
    assert not (tmp_path / "store").exists()


def test_a_wrong_key_is_told_when_reading_a_table(
    s3_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.at(s3_root)
    ref = store.put_table(TABLE, DROPS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret")
    with pytest.raises(StorageError, match=r"s3://.*/objects/.*the AWS keys"):
        store.read_table(ref, DROPS)


def test_a_store_is_plain_data_that_crosses_processes(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    assert pickle.loads(pickle.dumps(store)) == store
    assert store.root == f"file://{tmp_path}"


def test_receipts_are_found_by_key_in_one_batch(
    store_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.at(store_root)
    keys = [f"{n:064x}" for n in range(20)]
    made = {key: store.put_receipt("select", a_receipt(key, stats={"n": 1.5})) for key in keys[::2]}
    batches = []
    read_many = files.read_many
    monkeypatch.setattr(files, "read_many", lambda urls: batches.append(urls) or read_many(urls))
    assert store.find_receipts("select", keys) == made
    assert [len(batch) for batch in batches] == [20]
    assert store.find_receipts("select", []) == {}


def test_the_first_receipt_of_an_action_stands(store_root: str) -> None:
    store = Store.at(store_root)
    first = store.put_receipt("select", a_receipt(host="first"))
    assert store.put_receipt("select", a_receipt(host="second")) == first


def test_an_action_with_two_results_is_nondeterministic(store_root: str) -> None:
    store = Store.at(store_root)
    store.put_receipt("select", a_receipt(digest="1" * 64))
    with pytest.raises(NondeterministicStage, match=r"select: action kkkk.*stage's version"):
        store.put_receipt("select", a_receipt(digest="2" * 64))


def test_a_manifest_comes_back_as_it_was(store_root: str) -> None:
    store = Store.at(store_root)
    manifest = store.commit(a_manifest(store))
    assert store.manifest(manifest.ref) == manifest
    assert store.receipts(manifest) == [a_receipt(seconds=0.5, host="h")]
    assert store.find_manifest(ManifestRef("select", "0" * 64)) is None


def test_of_two_runs_that_commit_the_same_the_first_stands(store_root: str) -> None:
    store = Store.at(store_root)
    first = store.commit(a_manifest(store))
    second = replace(first, provenance={"run_id": "second"})
    assert store.commit(second) == first


def test_a_stage_with_two_results_is_nondeterministic(store_root: str) -> None:
    store = Store.at(store_root)
    manifest = store.commit(a_manifest(store))
    with pytest.raises(NondeterministicStage, match=r"select .*raise the stage's version"):
        store.commit(replace(manifest, data_digest="9" * 64))
    assert store.manifest(manifest.ref) == manifest


def test_an_edited_payload_is_refused(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    manifest = store.commit(a_manifest(store))
    url = store.manifest_url(manifest.ref)
    files.put(url, files.read_bytes(url).replace(b'"version": 1', b'"version": 2'))
    with pytest.raises(DataError, match=r"select/.*the fingerprint is not that of the payload"):
        store.manifest(manifest.ref)


def test_a_manifest_under_another_name_is_refused(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    body = files.read_bytes(store.manifest_url(store.commit(a_manifest(store)).ref))
    other = ManifestRef("select", "f" * 64)
    files.put(store.manifest_url(other), body)
    with pytest.raises(DataError, match=r"f{64}\.json holds the manifest select"):
        store.manifest(other)


def test_another_format_is_refused(tmp_path: Path) -> None:
    newer = to_json(replace(a_manifest(Store.at(str(tmp_path))), format=2))
    with pytest.raises(DataError, match="m: format 2, this Loam reads 1"):
        manifest_from(newer, "m")


def test_a_ref_keeps_its_history_newest_first(store_root: str) -> None:
    store = Store.at(store_root)
    assert store.find_ref("corpus", "main") is None
    seen = None
    for n in range(3):
        seen = store.move_ref("corpus", "main", {"stage": "split", "fingerprint": str(n)}, seen)
    found = store.find_ref("corpus", "main")
    assert found == seen
    assert found is not None
    assert found.manifest == ManifestRef("split", "2")
    assert [entry["value"]["fingerprint"] for entry in found.history] == ["1", "0"]
    assert store.list_refs() == [("corpus", "main")]


def test_moving_a_ref_to_where_it_is_adds_no_history(store_root: str) -> None:
    store = Store.at(store_root)
    value = {"stage": "split", "fingerprint": "0"}
    first = store.move_ref("corpus", "main", value, None)
    assert store.move_ref("corpus", "main", value, first).history == ()


def test_a_ref_moves_only_from_where_it_was_seen(store_root: str) -> None:
    store = Store.at(store_root)
    old = store.move_ref("corpus", "main", {"n": 1}, None)
    new = store.move_ref("corpus", "main", {"n": 2}, old)
    for stale in (None, old):
        with pytest.raises(RefMoved, match=r"refs/corpus/main\.json was moved by another run"):
            store.move_ref("corpus", "main", {"n": 3}, stale)
    assert store.find_ref("corpus", "main") == new


def test_one_of_many_racing_runs_moves_a_ref(store_root: str) -> None:
    store = Store.at(store_root)
    seen = store.move_ref("corpus", "main", {"n": -1}, None)

    def move(n: int) -> bool:
        try:
            store.move_ref("corpus", "main", {"n": n}, seen)
        except RefMoved:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(move, range(8)))
    assert won.count(True) == 1
    found = store.find_ref("corpus", "main")
    assert found is not None
    assert found.value == {"n": won.index(True)}


def test_refs_are_listed_by_kind_and_a_name_may_hold_slashes(store_root: str) -> None:
    store = Store.at(store_root)
    for kind, name in [("snapshot", "main/site"), ("corpus", "main"), ("pin", "main/tokenizer")]:
        store.move_ref(kind, name, {"n": 1}, None)
    assert store.list_refs() == [
        ("corpus", "main"), ("pin", "main/tokenizer"), ("snapshot", "main/site"),
    ]  # fmt: skip
    assert store.list_refs("pin") == [("pin", "main/tokenizer")]


def test_the_json_on_disk_is_readable_and_sorted(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    url = store.manifest_url(store.commit(a_manifest(store)).ref)
    text = files.read_bytes(url).decode()
    data = json.loads(text)
    assert list(data) == sorted(data)
    assert "Grüße" in text
    assert data["format"] == 1


def test_dead_rows_are_a_table_like_any_other(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    table = DEAD.table([{"shard": 0, "id": "a", "reason": "gone"}])
    assert store.read_table(store.put_table(table, DEAD), DEAD).to_pylist() == table.to_pylist()
