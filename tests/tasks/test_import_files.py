"""Importing over time: unchanged files stay closed, and the result is that of reading them all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import import_files
from tasks.importing.files import FileRef
from tasks.ingest import ingest
from tasks.sources import ImportSource
from tasks.store.records import Manifest
from tasks.store.run import Run
from tasks.store.schema import QUARANTINE
from tasks.store.store import Store

# File -> its records: id -> (text, date).
Files = dict[str, dict[str, tuple[str, str]]]


@pytest.fixture(autouse=True)
def _plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.as_task.in_prefect", lambda name, function: function)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of the files that were read, in order."""
    paths: list[str] = []
    really = import_files.read_file

    def reading(file: FileRef, *rest: Any) -> Iterator[Any]:
        paths.append(file.path)
        return really(file, *rest)

    monkeypatch.setattr(import_files, "read_file", reading)
    return paths


def write(folder: Path, files: Files, step: int) -> None:
    """The folder as `files` says; a file that stays as it is keeps its time."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if path.name not in files:
            path.unlink()
    for name, records in files.items():
        lines = [
            json.dumps({"id": id_, "text": text, "date": date})
            for id_, (text, date) in records.items()
        ]
        body = "\n".join([*lines, "not JSON"])
        path = folder / name
        if not path.exists() or path.read_text() != body:
            path.write_text(body)
            os.utime(path, (1_000_000 + step, 1_000_000 + step))


def imported(folder: Path, store: Path, sample: int | None = None) -> tuple[Store, Manifest]:
    run = Run(
        store=Store.at(str(store)), name="t", run_id="r", accept_losses=True, sample=sample,
        say=lambda _: None,
    )  # fmt: skip
    source = ImportSource(kind="import", name="files", paths=(str(folder),))
    return run.store, ingest(run, source)


def set_aside(store: Store, manifest: Manifest) -> list[tuple[str, str]]:
    rows = [
        row
        for ref in manifest.objects["quarantine"]
        for row in store.read_table(ref, QUARANTINE).to_pylist()
    ]
    return sorted((row["locator"], row["reason"]) for row in rows)


A = {"1": ("one", ""), "2": ("two", "")}
B = {"3": ("three", "")}


def test_only_new_and_changed_files_are_opened(tmp_path: Path, opened: list[str]) -> None:
    folder, store = tmp_path / "in", tmp_path / "store"
    write(folder, {"a.jsonl": A, "b.jsonl": B}, 1)
    imported(folder, store)
    write(folder, {"a.jsonl": A, "b.jsonl": {**B, "4": ("four", "")}, "c.jsonl": {}}, 2)
    opened.clear()
    _, manifest = imported(folder, store)
    assert opened == ["b.jsonl", "c.jsonl"]
    assert (manifest.rows_out, manifest.summary["new_rows"]) == (4, 1)


def test_a_row_lives_again_when_the_file_that_hid_it_goes(
    tmp_path: Path, opened: list[str]
) -> None:
    folder, store = tmp_path / "in", tmp_path / "store"
    write(folder, {"a.jsonl": {"1": ("old", "")}}, 1)
    _, first = imported(folder, store)
    write(folder, {"a.jsonl": {"1": ("old", "")}, "b.jsonl": {"1": ("new", "")}}, 2)
    _, second = imported(folder, store)
    assert second.data_digest != first.data_digest
    write(folder, {"a.jsonl": {"1": ("old", "")}}, 3)
    opened.clear()
    _, third = imported(folder, store)
    assert opened == ["a.jsonl"], "it had lost, so that its text was nowhere but in its file"
    assert third.data_digest == first.data_digest


def test_another_version_of_what_reads_files_reads_them_all_again(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, store = tmp_path / "in", tmp_path / "store"
    write(folder, {"a.jsonl": {"1": ("x", "")}, "b.jsonl": {"2": ("y", "")}}, 1)
    imported(folder, store)
    opened.clear()
    imported(folder, store)
    assert opened == []
    later = replace(import_files.IMPORT_STAGE, version=import_files.IMPORT_STAGE.version + 1)
    monkeypatch.setattr(import_files, "IMPORT_STAGE", later)
    imported(folder, store)
    assert opened == ["a.jsonl", "b.jsonl"]
    opened.clear()
    monkeypatch.setitem(import_files.LIBRARIES, "jsonl", ("pyarrow",))
    imported(folder, store)
    assert opened == ["a.jsonl", "b.jsonl"]


def test_a_sample_holds_no_more_and_no_others_after_a_change_than_one_drawn_anew(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "in"
    write(folder, {"b.jsonl": {"1": ("x", ""), "2": ("y", ""), "3": ("z", "")}}, 1)
    imported(folder, tmp_path / "store", sample=2)
    write(folder, {"a.jsonl": {"4": ("v", "")}, "b.jsonl": {"2": ("y", ""), "3": ("z", "")}}, 2)
    _, grown = imported(folder, tmp_path / "store", sample=2)
    _, fresh = imported(folder, tmp_path / "fresh", sample=2)
    assert (grown.rows_out, grown.data_digest) == (2, fresh.data_digest)


RECORDS = st.dictionaries(
    st.sampled_from("123"), st.tuples(st.sampled_from(["x", "y", "z"]), st.just("")), max_size=3
)
FILES = st.dictionaries(st.sampled_from(["a.jsonl", "b.jsonl", "c.jsonl"]), RECORDS, min_size=1)


@settings(max_examples=25)
@given(st.lists(FILES.filter(lambda files: any(files.values())), min_size=2, max_size=4))
def test_any_history_of_files_ends_where_reading_them_all_does(history: list[Files]) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        for step, files in enumerate(history):
            write(root / "in", files, step)
            store, grown = imported(root / "in", root / "store")
        fresh_store, fresh = imported(root / "in", root / "fresh")
        assert grown.data_digest == fresh.data_digest
        assert grown.rows_out == fresh.rows_out
        assert set_aside(store, grown) == set_aside(fresh_store, fresh)
