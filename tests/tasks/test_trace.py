"""Every figure of a trace is held against the store, read by a program that shares no code with it
(`Reader`, written from docs/format.md alone)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest
from warcio.archiveiterator import ArchiveIterator

from llm.errors import DataError
from llm.tokenizer import Tokenizer
from tasks import registry
from tasks.locating import Found, corpora, find_id, find_text, find_token
from tasks.registry import ModelVersion
from tasks.store.rows import document_id
from tasks.store.store import Store
from tasks.takedown import record
from tasks.trace import Trace, trace
from tests.flows.small_pipeline import NAME, Place
from tests.tasks.small_corpus import WHOLE, url_of
from tests.tasks.store.test_format import Reader

COPY, COPIED = document_id("notes", "copy"), document_id("notes", "n02")


@pytest.fixture(scope="module")
def store(grown_once: Place) -> Store:
    return Store.at(grown_once.root)


@pytest.fixture(scope="module")
def reader(grown_once: Place) -> Reader:
    return Reader(Path(grown_once.root))


def traced(store: Store, id_: str) -> Trace:
    return trace(store, find_id(store, corpora(store), id_))


def line_of(reader: Reader) -> list[dict[str, Any]]:
    return [reader.manifest(pin) for pin in reader.ref("corpus", NAME)["line"]]  # type: ignore[arg-type]


def outputs(reader: Reader, stage: str, kind: str) -> Iterator[dict[str, Any]]:
    """All rows of a kind that a stage of the line wrote."""
    (manifest,) = [one for one in line_of(reader) if one["stage"] == stage]
    for receipt in reader.receipts(manifest):
        for ref in receipt["outputs"]:
            if ref["kind"] == kind:
                yield from reader.table(ref)


def sources(reader: Reader) -> dict[str, dict[str, Any]]:
    """Every row that a source gave, by id."""
    rows = [*outputs(reader, "crawl", "pages"), *outputs(reader, "import", "documents")]
    return {row["id"]: row for row in rows}


def dataset(reader: Reader) -> list[dict[str, Any]]:
    manifest = reader.manifest(reader.ref("dataset", NAME))
    return reader.table(manifest["objects"]["dataset"][0])


def token_rows(reader: Reader, path: str) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(reader.root / path).to_pylist()


def page(path: str) -> str:
    return document_id("site", url_of(path))


def test_of_every_document_it_says_who_dropped_it_why_and_where_its_tokens_are(
    store: Store, reader: Reader
) -> None:
    known = sources(reader)
    dropped = {
        row["id"]: row
        for stage in ("extract", "select", "takedown", "dedup", "decontaminate")
        for row in outputs(reader, stage, "drops")
    }
    signals = {row["id"]: row for row in outputs(reader, "annotate", "signals")}
    labels = {row["id"]: row["split"] for row in outputs(reader, "split", "labels")}
    rows = {row["id"]: row for row in dataset(reader)}
    alive = {row["id"] for row in reader.live(reader.manifest(reader.ref("corpus", NAME)))}
    assert len(known) == len(alive) + len(dropped)
    assert len(dropped) >= 7
    for id_, row in known.items():
        story = traced(store, id_)
        assert (story.left is None) == (id_ in alive)
        last = vars(story.decisions[-1])
        for name in ("stage", "reason", "value", "threshold", "detail") if id_ in dropped else ():
            assert last[name] == dropped[id_][name]
        assert (story.document["url"], story.document["source"]) == (row["url"], row["source"])
        assert {**story.signals, "id": id_} == {
            k: v for k, v in signals[id_].items() if k != "digest"
        }
        assert story.split == (labels[id_] if id_ in alive else None)
        assert story.origin is not None
        assert story.origin.fetched_at == row["fetched_at"]
        (held,) = story.datasets or (None,)
        assert (held is not None) == (id_ in rows)
        if held is not None:
            lengths = [one["length"] for one in token_rows(reader, rows[id_]["object"])]
            expected = [rows[id_][name] for name in ("split", "object", "row", "length")]
            assert [held.split, held.object, held.row, held.tokens] == expected
            assert held.offset == sum(lengths[: held.row])


def test_the_stages_of_a_live_document_are_those_of_the_line_in_order(
    store: Store, reader: Reader
) -> None:
    decided = [one.stage for one in traced(store, page("/p02.html")).decisions]
    chain = reader.chain(reader.manifest(reader.ref("corpus", NAME)))
    assert decided == ["crawl site", *(one["stage"] for one in chain)]


def test_every_token_leads_to_its_document_and_is_what_the_shard_holds(
    store: Store, reader: Reader
) -> None:
    path = next(row["object"] for row in dataset(reader) if row["split"] == "train")
    rows = token_rows(reader, path)
    flat = [(row["id"], at, token) for row in rows for at, token in enumerate(row["tokens"])]
    ends = [0, *accumulate(row["length"] for row in rows)]
    for offset in {*ends[:-1], *(end - 1 for end in ends[1:]), 7}:
        found, place = find_token(store, path, offset)
        assert (found.id, place.in_document, place.token) == flat[offset]
    found, place = find_token(store, Path(path).stem[:8], ends[1] + 5)
    story = trace(store, found, place)
    assert [one.stage for one in story.decisions][-2:] == ["split", "tokenise"]
    manifest = reader.manifest(reader.ref("dataset", NAME))
    body = (reader.root / "objects").rglob(f"{manifest['objects']['tokenizer'][0]['sha256']}.*")
    tokenizer = Tokenizer.from_bytes(next(body).read_bytes())
    before = tokenizer.decode(rows[1]["tokens"][:5])
    assert story.text.startswith(f"{before}[[{tokenizer.decode([place.token])}]]")


def test_the_record_in_the_warc_object_is_the_page(store: Store, reader: Reader) -> None:
    origin = traced(store, page("/p04.html")).origin
    assert origin is not None
    assert origin.warc is not None
    assert origin.warc_offset is not None
    path = reader.root / "objects" / origin.warc[:2] / f"{origin.warc}.warc.gz"
    with path.open("rb") as file:
        file.seek(origin.warc_offset)
        record_ = next(iter(ArchiveIterator(file)))
        assert record_.rec_headers.get_header("WARC-Target-URI") == url_of("/p04.html")
        assert WHOLE.pages["/p04.html"] in record_.content_stream().read().decode()


def test_an_imported_document_names_its_file(store: Store) -> None:
    origin = traced(store, document_id("notes", "n03")).origin
    assert origin is not None
    assert (origin.kind, origin.files, origin.warc) == ("import", ("notes.jsonl",), None)


def test_a_duplicate_names_its_cluster_and_who_survived(store: Store, reader: Reader) -> None:
    drops = {row["id"]: row for row in outputs(reader, "dedup", "drops")}
    for id_ in (COPY, COPIED):
        members = traced(store, id_).cluster
        assert {one.id for one in members} == {COPY, COPIED}
        assert [one.survived for one in members] == [True, False]
        assert drops[members[1].id]["detail"] == members[0].id
    near = traced(store, document_id("notes", "near")).cluster
    (lost,) = [one for one in near if not one.survived]
    assert lost.similarity == drops[lost.id]["value"]
    assert {one.url for one in near} == {url_of("/p05.html"), None}
    assert traced(store, page("/p02.html")).cluster == ()


def test_personal_data_is_counted_and_never_shown(store: Store) -> None:
    story = trace(store, find_text(store, corpora(store), "jane.doe@example.com"))
    assert story.id == page("/person.html")
    assert "before it was scrubbed" in story.how
    assert story.redactions == {"EMAIL_ADDRESS": 1}
    (span,) = story.redacted_spans
    assert span["placeholder"] == "<EMAIL_1>"
    assert "jane.doe" not in str(story)


def test_a_dropped_document_that_was_never_scrubbed_is_scrubbed_when_shown(store: Store) -> None:
    story = traced(store, document_id("notes", "short"))
    assert (story.left, story.text) == ("select", "Bring the kettle.")


def test_a_leak_tells_the_item_and_the_words(store: Store, reader: Reader) -> None:
    story = traced(store, page("/leaked.html"))
    (leak,) = story.leaks
    (found,) = [row for row in outputs(reader, "matches", "matches") if row["id"] == story.id]
    assert (leak["benchmark"], leak["item"], leak["reason"]) == (
        "quiz",
        "1.question",
        "contaminated",
    )
    told = {name: found[name] for name in ("kind", "benchmark", "item", "matched", "start", "end")}
    assert told.items() <= dict(story.matches[0]).items()


def test_a_text_is_found_in_live_documents_before_dropped_ones(store: Store) -> None:
    found = find_text(store, corpora(store), WHOLE.notes["copy"])
    dropped = {COPY, COPIED} - {found.id}
    assert found.how == "in the text of a live document"
    assert dropped.isdisjoint(found.others)
    found = find_text(store, corpora(store), "Bring  the\nkettle.")
    assert found.id == document_id("notes", "short")


def test_a_dropped_text_is_told_as_dropped(store: Store) -> None:
    # Its last sentence, which the page that it is a near-duplicate of does not have.
    text = WHOLE.notes["near"].removeprefix(WHOLE.pages["/p05.html"])
    story = traced(store, document_id("notes", "near"))
    found = find_text(store, corpora(store), text)
    assert found.id == story.id
    assert ("dropped" in found.how) == (story.left is not None)


@pytest.mark.parametrize("text", ["(", "a\\", "[[*", "ünïcode — ²", "\u00a0(?i)"])
def test_any_text_can_be_looked_for(store: Store, text: str) -> None:
    with pytest.raises(DataError, match="holds this text"):
        find_text(store, corpora(store), f"no document says {text}")


def test_a_document_that_is_taken_down_says_so_and_shows_no_text(place: Place) -> None:
    store = Store.at(place.root)
    record(store, [url_of("/p02.html")], "asked by the author", "me")
    story = traced(store, page("/p02.html"))
    assert story.takedown is not None
    assert story.takedown["reason"] == "asked by the author"
    assert story.text == ""


def test_the_models_trained_on_a_document_are_named(place: Place) -> None:
    store = Store.at(place.root)
    ref = store.find_ref("dataset", NAME)
    assert ref is not None
    weights = store.put_bytes(b"weights", "weights", "safetensors")
    described = ModelVersion(
        "m", 0, weights.sha256, {}, {"dataset": ref.manifest}, "h" * 64, {}, "2025-01-01T00:00:00Z"
    )
    registry.register(store, described)
    (held,) = traced(store, page("/p02.html")).datasets
    assert held.models == ("m@1",)
    assert traced(store, document_id("notes", "short")).datasets == ()


def test_what_is_not_there_is_told_with_what_is(store: Store, reader: Reader) -> None:
    one = dataset(reader)[0]
    shard = Path(one["object"]).stem
    n = sum(row["length"] for row in token_rows(reader, one["object"]))
    there = corpora(store)
    known = sorted(sources(reader))
    shared = next(a[0] for a, b in pairwise(known) if a[0] == b[0])
    with pytest.raises(DataError, match=f"{n:,} tokens, 0 to {n - 1}"):
        find_token(store, shard, n)
    with pytest.raises(DataError, match="no token shard begins with zz"):
        find_token(store, "zz", 0)
    with pytest.raises(DataError, match=rf"begins with {shared}: .*give more digits"):
        find_id(store, there, shared)
    with pytest.raises(DataError, match="no document of corpus/small"):
        find_id(store, there, "f" * 32)
    with pytest.raises(DataError, match="hex digits"):
        find_id(store, there, "xyz")
    with pytest.raises(DataError, match="did you mean corpus/small"):
        corpora(store, "corpus/smalls")
    with pytest.raises(DataError, match="nothing in the store tells"):
        trace(store, Found("0" * 32, there[0], ""))


def test_the_beginning_of_an_id_is_enough(store: Store, reader: Reader) -> None:
    known = sources(reader)
    id_ = page("/p02.html")
    n = next(n for n in range(1, 33) if sum(one.startswith(id_[:n]) for one in known) == 1)
    assert find_id(store, corpora(store), id_[:n]).id == id_
