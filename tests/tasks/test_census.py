"""What a corpus is counted to hold is what a count of its live documents gives, one by one."""

from __future__ import annotations

import unicodedata
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.census import (
    CONTROL,
    COUNTS,
    DIMENSIONS,
    PROFILES,
    Census,
    add_up,
    count_rows,
    profile_shard,
    read_census,
    registrable,
)
from tasks.signals import SIGNALS
from tasks.store.corpus import live_rows, open_corpus
from tasks.store.records import Manifest
from tasks.store.schema import LABELS
from tasks.store.store import Store
from tasks.takedown import record
from tests.flows.small_pipeline import NAME, Place
from tests.shared_data import shared_data
from tests.tasks.small_corpus import copy_of, grow, served, store_of


def counted(place: Place) -> tuple[Store, Manifest, Manifest]:
    """The store, the labelled corpus and its census."""
    store = store_of(place)
    ref = store.find_ref("corpus", NAME)
    assert ref is not None
    (found,) = [store.manifest(pin) for pin in ref.line if pin.stage == "census"]
    return store, store.manifest(ref.manifest), found


def documents(*texts: str, url: str | None = None) -> pa.Table:
    rows = [{"id": f"{n:032x}", "url": url, "text": text} for n, text in enumerate(texts)]
    types = [("id", pa.string()), ("url", pa.string()), ("text", pa.large_string())]
    return pa.Table.from_pylist(rows, schema=pa.schema(types))


def test_the_counts_are_those_of_the_live_documents_one_by_one(grown_once: Place) -> None:
    store, labelled, made = counted(grown_once)
    census = read_census(store, made)
    expected: dict[str, Counter[str | None]] = {name: Counter() for name in DIMENSIONS}
    n_bytes = words = 0
    for shard in open_corpus(store, labelled).shards:
        rows = live_rows(store, shard).to_pylist()
        signals = live_rows(store, shard, shard.extras.get("signals"), SIGNALS).to_pylist()
        labels = live_rows(store, shard, shard.extras.get("labels"), LABELS).to_pylist()
        for row, signal, label in zip(rows, signals, labels, strict=True):
            n_bytes += len(row["text"].encode())
            words += int(signal["word_count"])
            expected["source"][row["source"]] += 1
            expected["license"][row["license"]] += 1
            expected["language"][signal["language"]] += 1
            expected["topic"][signal["topic"]] += 1
            expected["split"][label["split"]] += 1
            expected["length"][str(int(signal["word_count"]))] += 1
            expected["domain"]["site.test" if row["url"] else None] += 1
            both = "URL and time" if row["url"] else "time only"
            expected["provenance"][both] += 1
            nfc = unicodedata.is_normalized("NFC", row["text"])
            expected["format"]["clean" if nfc else "not NFC"] += 1
    for dimension in DIMENSIONS:
        found = {one.value: one.documents for one in census.by(dimension)}
        assert found == expected[dimension], dimension
        assert sum(one.n_bytes for one in census.by(dimension)) == n_bytes
    assert (census.documents, census.n_bytes, census.words) == (labelled.rows_out, n_bytes, words)


@pytest.mark.parametrize("more", ["", "[extract]\nmax_depth = 1999\n"], ids=["signals", "text too"])
def test_signals_measured_anew_are_counted_though_no_verdict_changed(
    grown_once: Place, tmp_path: Path, more: str
) -> None:
    place = copy_of(grown_once, tmp_path / "copy")
    model = shared_data("models/lid.176.ftz")
    config = place.folder / "loam.toml"
    before = counted(place)
    config.write_text(config.read_text() + f'\n[annotate]\nlanguage_model = "{model}"\n{more}')
    grow(place)
    store, labelled, made = counted(place)
    assert labelled.ref == before[1].ref, "no verdict changed"
    assert bool(made.objects["signals"]) == bool(more)
    expected: Counter[str | None] = Counter()
    ref = store.find_ref("corpus", NAME)
    assert ref is not None
    (annotated,) = [store.manifest(pin) for pin in ref.line if pin.stage == "annotate"]
    live = {
        id_
        for shard in open_corpus(store, labelled).shards
        for id_ in live_rows(store, shard, columns=["id"])["id"].to_pylist()
    }
    for shard in open_corpus(store, annotated).shards:
        for row in store.read_table(shard.extras["signals"], SIGNALS).to_pylist():
            if row["id"] in live:
                expected[row["language"]] += 1
    assert None not in expected
    found = {one.value: one.documents for one in read_census(store, made).by("language")}
    assert found == expected


def test_of_one_source_only_its_own_documents_count(grown_once: Place) -> None:
    store, _, made = counted(grown_once)
    census = read_census(store, made)
    sizes = {one.value: one.documents for one in census.by("source")}
    assert set(sizes) == {"site", "notes"}
    for source, n in sizes.items():
        assert sum(one.documents for one in census.by("license", source)) == n


def test_the_summary_names_the_most_frequent_values(grown_once: Place) -> None:
    _, labelled, made = counted(grown_once)
    sources = made.summary["frequent"]["source"]
    assert sum(one["documents"] for one in sources.values()) == labelled.rows_out
    assert sorted(made.summary["fetched"]) == ["notes", "site"]


def test_a_document_that_leaves_elsewhere_has_no_text_read_again(
    grown_once: Place, tmp_path: Path
) -> None:
    place = copy_of(grown_once, tmp_path / "copy")
    store, labelled, before = counted(place)
    first = live_rows(store, open_corpus(store, labelled).shards[0], columns=["id"])["id"][0]
    record(store, [first.as_py()], "asked to", "test")
    with served(place):
        after = grow(place)["census"]
    assert after.rows_out < before.rows_out
    assert {one.key for one in store.receipts(after)} == {one.key for one in store.receipts(before)}


def test_every_document_is_profiled_in_its_place() -> None:
    rows = documents("plain", "e\u0301", "bell \x07", "Grüße\n\tund mehr", "", url="http://a.de/x")
    found = profile_shard(rows)
    assert found["id"].equals(rows["id"])
    assert found["n_bytes"].to_pylist() == [5, 3, 6, 17, 0]
    assert found["format"].to_pylist() == ["clean", "not NFC", CONTROL, "clean", "clean"]
    assert profile_shard(rows.slice(0, 0)).schema == PROFILES.arrow


@given(texts=st.lists(st.text(), max_size=8))
def test_a_format_is_what_python_says_of_the_text(texts: list[str]) -> None:
    texts = [text.encode(errors="ignore").decode() for text in texts]
    for text, found in zip(texts, profile_shard(documents(*texts))["format"], strict=True):
        if any((c < " " and c not in "\t\n") or c == "\x7f" for c in text):
            assert found.as_py() == CONTROL
        elif all(unicodedata.category(c) != "Cn" for c in text):
            # What Python's tables do not know yet, pyarrow's may.
            nfc = unicodedata.is_normalized("NFC", text)
            assert found.as_py() == ("clean" if nfc else "not NFC")


@pytest.mark.parametrize(
    ("url", "domain"),
    [
        ("https://forums.bbc.co.uk/a?b", "bbc.co.uk"),
        ("https://example.org:8080/", "example.org"),
        ("http://192.0.2.7/", "192.0.2.7"),
        ("http://site.test/", "site.test"),
        ("http://localhost/", "localhost"),
        ("https://someone.github.io/", "github.io"),
        ("file:///somewhere", None),
        (None, None),
    ],
)
def test_the_domain_of_a_document_is_what_is_registered(url: str | None, domain: str) -> None:
    assert profile_shard(documents("text", url=url))["domain"].to_pylist() == [domain]


def test_a_host_without_a_public_suffix_stands_for_itself() -> None:
    assert registrable("localhost") == "localhost"


_VALUES = st.sampled_from([None, "a", "b"])
_ROWS = st.lists(st.tuples(_VALUES, _VALUES, st.integers(0, 9)), max_size=30)


@given(rows=_ROWS, cut=st.integers(0, 30))
def test_however_documents_are_sharded_they_add_up_alike(
    rows: list[tuple[str | None, str | None, int]], cut: int
) -> None:
    def table(part: list[tuple[str | None, str | None, int]]) -> pa.Table:
        values = {name: pa.array([row[1] for row in part], pa.string()) for name in DIMENSIONS}
        values["source"] = pa.array([row[0] or "s" for row in part], pa.string())
        sizes = pa.array([row[2] for row in part], pa.int64())
        return pa.table({**values, "n_bytes": sizes, "words": sizes})

    whole = count_rows(table(rows))
    assert add_up([count_rows(table(rows[:cut])), count_rows(table(rows[cut:]))]).equals(whole)
    census = Census(whole, len(rows), 0, 0, {})
    for dimension in DIMENSIONS:
        assert sum(one.documents for one in census.by(dimension)) == len(rows)
        assert sum(one.n_bytes for one in census.by(dimension)) == sum(row[2] for row in rows)
    assert whole.schema == COUNTS.arrow
