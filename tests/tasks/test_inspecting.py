from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.errors import DataError
from tasks.inspecting import drop_samples, drops_by_reason, funnel, line_of, lineage
from tasks.store.records import Manifest
from tasks.store.rows import document_id
from tasks.store.run import Run, Visit
from tasks.store.store import Store
from tests.tasks.store import chain

TEXTS = st.sampled_from(["", " ", "é", "ab", "same", "same", "longer text", "ünïcode"])
STATES = st.dictionaries(st.sampled_from("abcdef"), TEXTS, min_size=1)


def run_in(folder: str | Path) -> Run:
    return Run(Store.at(str(folder)), "main", "run-1", shard_rows=2, say=lambda _: None)


def grown(run: Run, *history: Mapping[str, str]) -> Manifest:
    for state in history:
        manifest = chain.grow(run, {"web": state})
    return manifest


@settings(max_examples=8)
@given(st.lists(STATES, min_size=1, max_size=2))
def test_after_any_history_the_funnel_ends_with_the_text_of_the_survivors(
    history: list[dict[str, str]],
) -> None:
    with TemporaryDirectory() as folder:
        run = run_in(folder)
        rows = funnel(run.store, lineage(run.store, grown(run, *history)))
    left = chain.expected({"web": history[-1]})
    assert rows[-1].rows_out == left.num_rows
    assert rows[-1].text_bytes == sum(len(text.encode()) for text in left["text"].to_pylist())
    for before, after in pairwise(rows):
        assert after.rows_in == before.rows_out


@settings(max_examples=15)
@given(st.lists(STATES, min_size=1, max_size=3))
def test_after_any_history_the_samples_of_a_reason_are_its_live_drops(
    history: list[dict[str, str]],
) -> None:
    with TemporaryDirectory() as folder:
        run = run_in(folder)
        for state in history:
            manifest = chain.extract(run, {"web": chain.ingest(run, "web", state)})
        line = lineage(run.store, manifest)
        counts = {drop.reason: drop.count for drop in drops_by_reason(line)}
        blank = {document_id("web", at) for at, text in history[-1].items() if not text.strip()}
        assert counts.get("blank", 0) == len(blank)
        if blank:
            samples = drop_samples(run.store, line, "blank", 100)
            assert [sample.id for sample in samples] == sorted(blank)
            assert {sample.excerpt for sample in samples} == {""}


def test_a_dropped_document_is_shown_as_it_is_now_and_once(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    manifest = grown(run, {"a": "before", "b": "before"}, {"a": "after", "b": "after"})
    (sample,) = drop_samples(run.store, lineage(run.store, manifest), "exact", 5)
    assert (sample.reason, sample.excerpt) == ("exact", "AFTER")


def test_a_text_that_was_not_scrubbed_yet_is_scrubbed_when_it_is_shown(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    manifest = grown(run, dict.fromkeys("ab", "write to jane.doe@example.com"))
    (sample,) = drop_samples(run.store, lineage(run.store, manifest), "exact", 5)
    assert sample.excerpt == "WRITE TO <EMAIL_1>"


def test_a_long_text_is_shortened_to_one_line(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    text = "word\n\n" * 500
    manifest = grown(run, {"a": text, "b": text})
    (sample,) = drop_samples(run.store, lineage(run.store, manifest), "exact", 5)
    assert sample.excerpt.startswith("WORD WORD WORD")
    assert len(sample.excerpt) == 240
    assert sample.excerpt.endswith("…")


def test_a_run_s_own_line_is_what_it_came_through_each_manifest_once(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    manifest = grown(run, {"a": "long enough"})
    line = lineage(run.store, manifest)
    visits = [Visit(one.stage, one, 0.0, True) for one in (*line, manifest)]
    assert line_of([*visits, Visit("register", "a version", 0.0, True)]) == line


def test_a_reason_that_dropped_nothing_names_those_that_did(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    manifest = grown(run, {"a": "", "b": "ab", "c": "long enough"})
    with pytest.raises(DataError, match="there are: blank, short"):
        drop_samples(run.store, lineage(run.store, manifest), "exact", 5)


def test_lineage_names_every_manifest_once_with_inputs_before_what_they_led_to(
    tmp_path: Path,
) -> None:
    run = run_in(tmp_path)
    manifest = chain.grow(run, {"web": {"a": "first"}, "books": {"b": "second"}})
    line = lineage(run.store, manifest)
    stages = [one.stage for one in line]
    assert stages == ["import", "import", "extract", "annotate", "select", "dedup", "scrub"]
    assert line[-1] == manifest
    seen = set()
    for one in line:
        assert set(one.inputs.values()) <= seen
        seen.add(one.ref)
