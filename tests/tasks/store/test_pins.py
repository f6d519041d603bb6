"""Pins: made once, held by content, let go of on purpose only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llm import files
from llm.errors import ConfigError, StorageError
from tasks.store.pins import find_pin, hold, hold_file, let_go
from tasks.store.records import ObjectRef
from tasks.store.run import Run, WouldRun
from tasks.store.store import Store


def a_run(root: str) -> Run:
    return Run(Store.at(root), "main", "run-1", say=lambda text: None)


def test_a_pin_is_made_once_and_stays(store_root: str) -> None:
    run = a_run(store_root)
    made: list[ObjectRef] = []

    def make() -> ObjectRef:
        made.append(run.store.put_bytes(b"%d" % len(made), "tokenizer", "json"))
        return made[-1]

    first = hold(run, "tokenizer", {"size": 1.0}, make)
    assert hold(run, "tokenizer", {"size": 1}, make) == first
    assert len(made) == 1
    assert find_pin(run.store, "main", "tokenizer") == first
    assert find_pin(run.store, "another", "tokenizer") is None


def test_other_settings_than_those_pinned_are_an_error_that_names_them(tmp_path: Path) -> None:
    run = a_run(str(tmp_path))
    hold(run, "tokenizer", {"size": 1}, lambda: run.store.put_bytes(b"x", "tokenizer", "json"))
    with pytest.raises(ConfigError, match=r"'tokenizer'.*size: 1 -> 2.*loam repin tokenizer"):
        hold(run, "tokenizer", {"size": 2}, lambda: pytest.fail("it is held"))


def test_letting_go_makes_the_next_run_learn_anew_and_keeps_the_history(store_root: str) -> None:
    run = a_run(store_root)
    old = hold(run, "t", {}, lambda: run.store.put_bytes(b"old", "t", "bin"))
    assert let_go(run.store, "main", "t")
    assert find_pin(run.store, "main", "t") is None
    assert not let_go(run.store, "main", "t")
    new = hold(run, "t", {"size": 2}, lambda: run.store.put_bytes(b"new", "t", "bin"))
    assert new.object != old.object
    ref = run.store.find_ref("pin", "main/t")
    assert ref is not None
    objects = [entry["value"]["object"] for entry in ref.history]
    assert [found and found["sha256"] for found in objects] == [None, old.object.sha256]


def test_of_two_runs_that_learn_at_once_one_result_is_held_by_both(store_root: str) -> None:
    run = a_run(store_root)

    def make_slowly() -> ObjectRef:
        """While this one learns, another run finishes."""
        hold(run, "t", {}, lambda: run.store.put_bytes(b"theirs", "t", "bin"))
        return run.store.put_bytes(b"ours", "t", "bin")

    pin = hold(run, "t", {}, make_slowly)
    assert run.store.read_bytes(pin.object) == b"theirs"
    assert find_pin(run.store, "main", "t") == pin


def test_planning_makes_nothing(tmp_path: Path) -> None:
    run = replace(a_run(str(tmp_path)), planning=True)
    with pytest.raises(WouldRun, match="t would run: it is not pinned yet"):
        hold(run, "t", {}, lambda: pytest.fail("a plan makes nothing"))


def test_a_file_is_pinned_by_its_content_and_not_looked_at_again(tmp_path: Path) -> None:
    run = a_run(str(tmp_path / "store"))
    source = tmp_path / "model.bin"
    source.write_bytes(b"weights")
    pin = hold_file(run, "lid", str(source), "model", files.sha256(b"weights"))
    source.unlink()
    assert hold_file(run, "lid", str(source), "model", files.sha256(b"weights")) == pin
    assert run.store.read_bytes(pin.object) == b"weights"
    assert pin.object.ext == "bin"
    with pytest.raises(ConfigError, match=r"'lid' is pinned with sha256 .*loam repin lid"):
        hold_file(run, "lid", str(source), "model", "0" * 64)


def test_a_folder_where_a_file_should_be_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="directory"):
        hold_file(a_run(str(tmp_path / "store")), "model", str(tmp_path), "model")


def test_a_file_that_is_not_there_or_not_the_one_expected_is_told(tmp_path: Path) -> None:
    run = a_run(str(tmp_path / "store"))
    with pytest.raises(ConfigError, match=r"lid: there is no file at .*/nothing"):
        hold_file(run, "lid", str(tmp_path / "nothing"), "model")
    (tmp_path / "model").write_bytes(b"other")
    with pytest.raises(ConfigError, match=r"has sha256 .*, the config expects 000"):
        hold_file(run, "lid", str(tmp_path / "model"), "model", "0" * 64)
    assert find_pin(run.store, "main", "lid") is None
