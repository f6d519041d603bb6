from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.errors import DataError
from tasks.diff import EDITED as EDITED_THERE
from tasks.diff import GONE as GONE_THERE
from tasks.diff import NEW, NEW_SOURCE, NO_SOURCE, Diff, diff
from tasks.inspecting import lineage
from tasks.locating import corpora, find_id
from tasks.refs import Named, find_named
from tasks.store.records import Manifest
from tasks.store.rows import document_id
from tasks.store.run import BooksDoNotBalance, Run
from tasks.store.schema import DOCUMENTS, Schema
from tasks.store.store import Store
from tasks.takedown import record
from tasks.trace import trace
from tests.flows.small_pipeline import Place
from tests.tasks.regrown import (
    EDITED,
    GONE,
    NEW_NOTE,
    NEW_PAGE,
    SHORTENED,
    regrown,
    second_content,
)
from tests.tasks.small_corpus import copy_of, live, url_of
from tests.tasks.store import chain
from tests.tasks.store.test_format import Reader

TEXTS = st.sampled_from(["", "ab", "same", "same", "longer text", "ünïcode"])
STATES = st.dictionaries(st.sampled_from("abcdef"), TEXTS, min_size=1)
SOURCES = st.fixed_dictionaries({"web": STATES}, optional={"books": STATES})


def named(store: Store, manifest: Manifest, name: str = "a") -> Named:
    return Named(name, manifest, tuple(lineage(store, manifest)))


def run_in(folder: str | Path) -> Run:
    return Run(Store.at(str(folder)), "main", "run-1", shard_rows=2, say=lambda _: None)


def by_id(states: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The surviving texts by id."""
    rows = chain.expected(states).to_pylist()
    return {row["id"]: row["text"] for row in rows}


@settings(max_examples=8)
@given(SOURCES, SOURCES, SOURCES)
def test_after_any_history_it_tells_what_two_rebuilds_do_not_have_in_common(
    first: dict[str, dict[str, str]],
    second: dict[str, dict[str, str]],
    third: dict[str, dict[str, str]],
) -> None:
    with TemporaryDirectory() as folder:
        run = run_in(folder)
        grown = [chain.grow(run, states) for states in (first, second, third)]
        for before, after in ((0, 2), (2, 1), (1, 1)):
            found = diff(
                run.store, named(run.store, grown[before]), named(run.store, grown[after]), 100
            )
            a, b = (by_id((first, second, third)[at]) for at in (before, after))
            kinds = {
                "gained": b.keys() - a.keys(),
                "lost": a.keys() - b.keys(),
                "changed": {id_ for id_ in a.keys() & b.keys() if a[id_] != b[id_]},
            }
            for kind, ids in kinds.items():
                assert {one.id for one in found.samples if one.kind == kind} == ids
                changes = [one for one in found.changes if one.kind == kind]
                assert sum(one.documents for one in changes) == len(ids)
                for told, texts in (("before", a), ("after", b)):
                    size = sum(len(texts.get(id_, "").encode()) for id_ in ids)
                    assert sum(getattr(one, told) for one in changes) == size
            assert found.proven


@pytest.mark.parametrize(
    ("before", "after", "kind", "reason"),
    [
        ({"x": {"a": "long"}}, {"x": {"a": "long", "b": "more"}}, "gained", NEW),
        ({"x": {"a": "long"}}, {"x": {"a": "long"}, "y": {"b": "more"}}, "gained", NEW_SOURCE),
        ({"x": {"a": "long", "b": "ab"}}, {"x": {"a": "long", "b": "abc"}}, "gained",
         "no longer short"),
        ({"x": {"a": "long", "b": "more"}}, {"x": {"a": "long"}}, "lost", GONE_THERE),
        ({"x": {"a": "long"}, "y": {"b": "more"}}, {"x": {"a": "long"}}, "lost", NO_SOURCE),
        ({"x": {"a": "long", "b": "more"}}, {"x": {"a": "long", "b": " "}}, "lost", "now blank"),
        ({"x": {"a": "long", "b": "more"}}, {"x": {"a": "long", "b": "long"}}, "lost", "now exact"),
        ({"x": {"a": "long"}}, {"x": {"a": "longer"}}, "changed", EDITED_THERE),
    ],
)  # fmt: skip
def test_each_way_to_come_and_go_has_its_reason(
    tmp_path: Path,
    before: dict[str, dict[str, str]],
    after: dict[str, dict[str, str]],
    kind: str,
    reason: str,
) -> None:
    run = run_in(tmp_path)
    sides = [named(run.store, chain.grow(run, states)) for states in (before, after)]
    (change,) = diff(run.store, *sides, 1).changes
    assert (change.kind, change.reason, change.documents) == (kind, reason, 1)


def test_a_shard_that_both_have_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_in(tmp_path)
    state = {f"d{n}": f"text number {n}" for n in range(12)}
    before = chain.grow(run, {"web": state})
    after = chain.grow(run, {"web": {**state, "new": "one more text"}})
    texts = {ref.sha256 for r in run.store.receipts(before) for ref in r.outputs}
    read: list[str] = []
    plainly = Store.read_table

    def noted(self: Store, ref: object, schema: Schema, *rest: object) -> object:
        if schema is DOCUMENTS and ref is not None:
            read.append(ref.sha256)  # type: ignore[attr-defined]
        return plainly(self, ref, schema, *rest)  # type: ignore[arg-type]

    sides = named(run.store, before), named(run.store, after)
    monkeypatch.setattr(Store, "read_table", noted)
    found = diff(run.store, *sides, 1)
    assert [one.documents for one in found.changes] == [1]
    assert read
    assert texts.isdisjoint(read)


def test_a_change_that_is_left_out_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_in(tmp_path)
    sides = [
        named(run.store, chain.grow(run, {"web": {"a": text, "b": "the same"}}))
        for text in ("before", "after")
    ]
    monkeypatch.setattr("tasks.diff._why_changed", lambda *_: {})
    monkeypatch.setattr("tasks.diff._differing", lambda *_: ({}, {}, True))
    with pytest.raises(BooksDoNotBalance, match="digests of text"):
        diff(run.store, *sides, 1)


# on the small pipeline, grown twice


@pytest.fixture(scope="module")
def twice(grown_once: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """To be looked at only."""
    return regrown(grown_once, tmp_path_factory.mktemp("twice") / "place")


def differing(place: Place, before: str, after: str) -> Diff:
    store = Store.at(place.root)
    return diff(store, find_named(store, before), find_named(store, after), 100)


def note(name: str) -> str:
    return document_id("notes", name)


def page(path: str) -> str:
    return document_id("site", url_of(path))


def test_the_real_pipeline_s_changes_are_those_of_its_sources(twice: Place) -> None:
    found = differing(twice, "corpus/small@1", "corpus/small")
    told = {one.id: (one.kind, one.source, one.reason) for one in found.samples}
    assert (
        told.items()
        >= {
            page(NEW_PAGE): ("gained", "site", NEW),
            note(NEW_NOTE): ("gained", "notes", NEW),
            note(GONE): ("lost", "notes", GONE_THERE),
            note(SHORTENED): ("lost", "notes", "now gopher_few_words"),
            page(EDITED): ("changed", "site", EDITED_THERE),
        }.items()
    )


def test_its_documents_and_tokens_are_those_of_the_two_datasets(twice: Place) -> None:
    reader, found = Reader(Path(twice.root)), differing(twice, "dataset/small@1", "dataset/small")
    entries = reader.json("refs/dataset/small.json")["entries"][:2]
    manifests = [reader.manifest(entry["value"]) for entry in reversed(entries)]
    tokens = [
        {
            row["id"]: row["length"]
            for row in reader.table(manifest["objects"]["dataset"][0])
            if row["split"] == "train"
        }
        for manifest in manifests
    ]
    assert found.unit == "tokens"
    assert [found.before.tokens, found.after.tokens] == [sum(one.values()) for one in tokens]
    for side, told in ((0, "before"), (1, "after")):
        for one in found.samples:
            assert getattr(one, told) == tokens[side].get(one.id, 0)
    same = tokens[0].keys() & tokens[1].keys() - {one.id for one in found.samples}
    assert {id_: tokens[0][id_] for id_ in same} == {id_: tokens[1][id_] for id_ in same}
    assert found.after.documents == len(live(twice))


def test_backwards_what_was_gained_is_lost(twice: Place) -> None:
    there = differing(twice, "corpus/small@1", "corpus/small")
    back = differing(twice, "corpus/small", "corpus/small@1")
    opposite = {"gained": "lost", "lost": "gained", "changed": "changed"}
    assert {(opposite[one.kind], one.id) for one in there.samples} == {
        (one.kind, one.id) for one in back.samples
    }


def test_the_examples_show_what_each_document_says(twice: Place) -> None:
    held = second_content()
    found = {one.id: one for one in differing(twice, "small@1", "small").samples}
    for id_, text in (
        (page(NEW_PAGE), held.pages[NEW_PAGE]),
        (note(NEW_NOTE), held.notes[NEW_NOTE]),
        (page(EDITED), held.pages[EDITED]),
    ):
        excerpt = found[id_].excerpt.removesuffix("…")
        assert excerpt
        assert excerpt in " ".join(text.split())


def test_a_manifest_is_named_by_its_fingerprint_too(twice: Place) -> None:
    store = Store.at(twice.root)
    newest = find_named(store, "corpus/small")
    assert find_named(store, newest.manifest.fingerprint[:16]).manifest == newest.manifest
    assert not differing(twice, newest.manifest.fingerprint[:16], "corpus/small").changes


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("corpus/small@2", "the oldest is corpus/small@1"),
        ("corpus/smell", "did you mean corpus/small?"),
        ("pin/small/tokenizer", "there are corpus/small, dataset/small"),
        ("0000000", "0 manifests have a fingerprint"),
    ],
)
def test_a_name_that_means_nothing_says_what_there_is(twice: Place, name: str, said: str) -> None:
    with pytest.raises(DataError, match=said.replace("?", r"\?")):
        find_named(Store.at(twice.root), name)


def test_what_is_taken_down_is_counted_and_not_shown(twice: Place, tmp_path: Path) -> None:
    place = copy_of(twice, tmp_path / "copy")
    record(Store.at(place.root), [url_of(NEW_PAGE)], "asked by the author", "me")
    found = {one.id: one for one in differing(place, "small@1", "small").samples}
    assert found[page(NEW_PAGE)].excerpt == ""
    assert found[note(NEW_NOTE)].excerpt


def test_a_trace_tells_of_what_its_source_has_replaced_or_lost(twice: Place) -> None:
    store = Store.at(twice.root)
    stories = [
        trace(store, find_id(store, corpora(store), id_)) for id_ in (note(GONE), page(EDITED))
    ]
    gone, edited = (story.origin for story in stories)
    assert gone is not None
    assert edited is not None
    assert (gone.state, gone.versions) == ("gone", 1)
    assert (edited.state, edited.versions) == ("live", 2)
    assert stories[0].decisions[-1].reason == "gone"
    assert stories[1].left is None
    assert stories[1].text[:40] == second_content().pages[EDITED][:40]
