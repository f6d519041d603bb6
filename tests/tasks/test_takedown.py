"""What is taken down leaves every corpus, comes back with nothing, and every model says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows import cli
from flows.cli_options import find_line
from flows.config import read_config
from flows.planning import make_plan
from flows.running import RunOptions
from llm.errors import ConfigError
from tasks import registry, takedown
from tasks.export import export_corpus
from tasks.inspecting import drop_samples
from tasks.registry import ModelVersion
from tasks.split import HELDOUT
from tasks.store.pins import find_pin
from tasks.store.records import Manifest
from tasks.store.rows import document_id
from tasks.store.schema import DATASET, DROPS
from tasks.store.store import Store
from tasks.takedown import Entry, Takedowns, parse_target, read_list, record, undo
from tests.flows.small_pipeline import NAME, Place, check
from tests.tasks.small_corpus import WHOLE, copy_of, grow, live, served, store_of, url_of

ID = "0123456789abcdef0123456789abcdef"
WHY = "asked by the author"


@pytest.mark.parametrize(
    ("text", "kind", "target"),
    [
        (ID, "id", ID),
        ("HTTPS://Example.ORG:443/a/../b?utm_source=x#top", "url", "https://example.org/b"),
        ("Example.org.", "domain", "example.org"),
        ("bücher.example", "domain", "xn--bcher-kva.example"),
    ],
)
def test_a_target_is_spelled_as_documents_are(text: str, kind: str, target: str) -> None:
    assert parse_target(text) == (kind, target)


@pytest.mark.parametrize("text", ["", "com", "ftp://example.org/", "example.org/page", "a b.org",
                                  "example.org:80", "user@example.org", ID[:-1] + "/"])  # fmt: skip
def test_what_names_no_document_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_target(text)


hosts = st.lists(st.sampled_from(["a", "b", "com", "org"]), min_size=1, max_size=4).map(".".join)
paths = st.sampled_from(["/", "/x", "/x?y=http://a.com/", "/a.com"])
urls = st.builds("http{}://{}{}{}".format, st.sampled_from(["", "s"]), hosts,
                 st.sampled_from(["", ":81"]), paths)  # fmt: skip
ids = st.sampled_from([f"{n:032x}" for n in range(5)])
rows = st.lists(st.tuples(ids, st.none() | urls), max_size=12)
lists = st.lists(
    st.builds(Entry, st.just("id"), ids, st.just(WHY))
    | st.builds(Entry, st.just("url"), urls, st.just(WHY))
    | st.builds(Entry, st.just("domain"), hosts, st.just(WHY)),
    max_size=6,
    unique_by=lambda entry: (entry.kind, entry.target),
)


def plainly(entries: tuple[Entry, ...], id_: str, url: str | None) -> int | None:
    """The entry that names a document, one comparison at a time."""
    host = (urlsplit(url).hostname or "") if url else ""
    for kind in ("id", "url"):
        for index, entry in enumerate(entries):
            if entry.kind == kind and entry.target == (id_ if kind == "id" else url):
                return index
    above = [
        (len(entry.target), index)
        for index, entry in enumerate(entries)
        if entry.kind == "domain" and f".{host}".endswith(f".{entry.target}")
    ]
    return max(above)[1] if above else None


@given(rows=rows, entries=lists)
def test_matching_is_by_id_then_by_url_then_by_the_nearest_domain(
    rows: list[tuple[str, str | None]], entries: list[Entry]
) -> None:
    taken = Takedowns(tuple(entries))
    table = pa.table(
        {
            "id": pa.array([row[0] for row in rows], pa.string()),
            "url": pa.array([row[1] for row in rows], pa.string()),
        }
    )
    expected = [plainly(taken.entries, *row) for row in rows]
    assert taken.find(table).to_pylist() == expected
    named = [row for row, entry in zip(rows, expected, strict=True) if entry is not None]
    assert [tuple(row.values()) for row in taken.named(table).to_pylist()] == named
    assert taken.hide(table).num_rows == len(rows) - len(named)
    for _, url in rows:
        if url is not None:
            assert taken.names(url) == (plainly(taken.entries, "", url) is not None)


@pytest.mark.parametrize(
    "url",
    ["http://me:secret@Example.org/x", "ftp://files.example.org/x", "//example.org/x",
     "example.org", "www.example.org:99999/x", "HTTP://EXAMPLE.ORG./", "mailto:me@example.org"],
)  # fmt: skip
def test_a_domain_is_found_in_addresses_that_are_no_canonical_url(url: str) -> None:
    taken = Takedowns((Entry("domain", "example.org", WHY), Entry("domain", "x", WHY)))
    rows = pa.table({"id": ["0" * 32], "url": [url]})
    assert taken.find(rows).to_pylist() == [0]
    other = pa.table({"id": ["0" * 32], "url": ["http://other.net/example.org"]})
    assert taken.find(other).to_pylist() == [None]


def test_a_list_is_its_content_whatever_the_order_and_the_time(store_root: str) -> None:
    one, other = Store.at(f"{store_root}/one"), Store.at(f"{store_root}/other")
    record(one, ["a.org", ID], WHY, "me")
    for target in (ID, "b.org", "a.org"):
        record(other, [target], WHY, "somebody else")
    undo(other, ["b.org"])
    assert read_list(one).pins == read_list(other).pins != {}
    ref = other.find_ref("takedown", "all")
    assert ref is not None
    assert len(ref.history) == 3


def test_a_target_keeps_its_first_reason_and_an_emptied_list_is_as_none(store_root: str) -> None:
    store = Store.at(store_root)
    assert read_list(store).pins == {}
    record(store, ["a.org"], WHY, "me")
    record(store, ["a.org"], "another", "me")
    assert [entry.reason for entry in read_list(store).entries] == [WHY]
    with pytest.raises(ConfigError, match=r"b\.org is not taken down"):
        undo(store, ["b.org"])
    undo(store, ["a.org"])
    assert read_list(store).pins == {}


# in a pipeline


def digests(manifests: dict[str, Manifest]) -> dict[str, str]:
    kept = {name: one for name, one in manifests.items() if name not in ("crawl", "import")}
    return {stage: manifest.data_digest for stage, manifest in kept.items()}


def test_the_next_of_a_cluster_takes_the_place_of_what_is_taken_down(place: Place) -> None:
    twins = {url_of("/p07.html"), url_of("/again.html")}
    (survivor,) = twins & live(place).keys()
    record(store_of(place), [survivor], WHY, "me")
    made = grow(place)
    assert twins & live(place).keys() == twins - {survivor}
    assert made["takedown"].drops == {"taken_down": 1}
    drops = [
        row
        for receipt in store_of(place).receipts(made["takedown"])
        for row in store_of(place).read_table(receipt.output(DROPS.kind), DROPS).to_pylist()
    ]
    assert [(row["stage"], row["detail"]) for row in drops] == [("takedown", f"{survivor}: {WHY}")]
    assert check(place).ok
    (sample,) = drop_samples(store_of(place), list(made.values()), "taken_down", 3)
    assert (sample.url, sample.excerpt) == (survivor, "")


def test_a_takedown_that_is_undone_leaves_all_as_it_was(place: Place) -> None:
    before, there = grow(place), live(place)
    record(store_of(place), ["site.test"], WHY, "me")
    made = grow(place)
    assert not any("site.test" in name for name in live(place))
    n_pages = sum("site.test" in name for name in there)
    assert made["takedown"].drops["taken_down"] >= n_pages > 15
    undo(store_of(place), ["site.test"])
    assert grow(place) == before
    assert live(place) == there


def test_taken_down_early_or_late_the_corpus_is_the_same(place: Place, tmp_path: Path) -> None:
    targets = [url_of("/p03.html"), document_id("notes", "n04"), url_of("/p07.html")]
    early = Place.at(tmp_path / "early")
    early.take_pins_of(place)
    record(store_of(early), targets[::-1], WHY, "me")
    with served(early):
        from_scratch = grow(early)
    record(store_of(place), targets, WHY, "me")
    assert digests(grow(place)) == digests(from_scratch)


def test_a_re_crawl_brings_nothing_back(place: Place) -> None:
    record(store_of(place), [url_of("/p03.html")], WHY, "me")
    edited = WHOLE.edited(
        pages={"/p03.html": WHOLE.pages["/p03.html"] + " And one more."}, notes={}
    )
    with served(place, edited):
        made = grow(place, refresh=True)
    assert made["takedown"].drops == {"taken_down": 1}
    assert url_of("/p03.html") not in live(place)


def test_what_is_taken_down_leaves_the_held_out_splits_while_their_pin_stays(place: Place) -> None:
    store = store_of(place)
    pin = find_pin(store, NAME, "heldout")
    assert pin is not None
    held = store.read_table(pin.object, HELDOUT).to_pylist()
    before = splits(store, grow(place)["dataset"])
    record(store, [held[0]["id"]], WHY, "me")
    after = splits(store, grow(place)["dataset"])
    assert before[held[0]["id"]] == held[0]["split"]
    assert after == {id_: split for id_, split in before.items() if id_ != held[0]["id"]}
    assert find_pin(store, NAME, "heldout") == pin


def splits(store: Store, dataset: Manifest) -> dict[str, str]:
    rows = store.read_table(dataset.object("dataset"), DATASET)
    return dict(zip(rows["id"].to_pylist(), rows["split"].to_pylist(), strict=True))


def test_a_corpus_published_before_is_exported_without_it(place: Place, tmp_path: Path) -> None:
    store = store_of(place)
    record(store, [url_of("/p03.html")], WHY, "me")
    written = export_corpus(store, NAME, str(tmp_path / "out"), "jsonl")
    lines = [
        json.loads(line)
        for path in sorted((tmp_path / "out").glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    assert len(lines) == written["rows"] == len(live(place)) - 1
    assert url_of("/p03.html") not in {line["url"] for line in lines}


def test_an_example_of_a_drop_shows_no_text_of_what_is_taken_down(
    grown_once: Place, tmp_path: Path
) -> None:
    store = store_of(copy_of(grown_once, tmp_path / "copy"))
    line = find_line(store, f"corpus/{NAME}")
    before = drop_samples(store, line, "near_duplicate", 1)[0]
    record(store, [before.id], WHY, "me")
    after = drop_samples(store, line, "near_duplicate", 1)[0]
    assert before.excerpt
    assert (after.id, after.excerpt) == (before.id, "")


def test_the_plan_names_the_list_and_nothing_upstream(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.folder)
    config = read_config("loam.toml").model_copy(update={"model": None})
    assert make_plan(config, RunOptions()).nothing_to_do
    record(store_of(place), ["nowhere.test"], WHY, "me")
    plan = make_plan(config, RunOptions())
    assert [stage.stage for stage in plan.stages if stage.action == "run"] == ["takedown"]
    assert "takedown" in plan.to_run[0].why[0]


# models


def with_model(place: Place) -> ModelVersion:
    """A registered version of a model trained on the dataset of the place."""
    store = store_of(place)
    made = grow(place)
    weights = store.put_bytes(b"weights", "weights", "safetensors")
    described = ModelVersion(
        "m", 0, weights.sha256, {"model.safetensors": weights}, {"dataset": made["dataset"].ref},
        "h" * 64, {}, "2025-01-01T00:00:00Z",
    )  # fmt: skip
    return registry.register(store, described)


def test_models_trained_on_it_are_marked_until_it_is_undone(place: Place) -> None:
    store, version = store_of(place), with_model(place)
    trained = [
        id_ for id_, split in splits(store, grow(place)["dataset"]).items() if split == "train"
    ]
    record(store, [*trained[:2], ID], WHY, "me")
    takedown.mark_models(store)
    assert registry.taken_down(store, version) == 2
    n_events = len(registry.events(store, "m"))
    takedown.mark_models(store)
    assert len(registry.events(store, "m")) == n_events
    found = takedown.affected(store, read_list(store).entries)
    marked = [(m.name, m.version, m.trained_on) for one in found for m in one.models]
    assert marked == [("m", 1, 1), ("m", 1, 1)]
    assert sorted(one.documents for one in found) == [0, 1, 1]
    undo(store, trained[:2])
    takedown.mark_models(store)
    assert registry.taken_down(store, version) == 0


# the command

Loam = Callable[..., tuple[int, str, str]]


@pytest.fixture
def loam(place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Loam:
    monkeypatch.setenv("LOAM_STORE", place.root)

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main(list(arguments))
        assert isinstance(left.value.code, int)
        return left.value.code, *capsys.readouterr()

    return call


def test_the_command_tells_what_leaves_and_which_models_knew_it(place: Place, loam: Loam) -> None:
    with_model(place)
    code, out, _ = loam("takedown", url_of("/p03.html"), "nowhere.test", "--reason", WHY)
    assert code == 0
    assert f"url {url_of('/p03.html')}: taken down ({WHY})" in out
    assert "corpus/small: 1 live document" in out
    assert "model m 1: trained on 1 of them" in out or "held out 1" in out
    assert "the store holds no such document" in out
    assert "loam run" in out
    code, out, _ = loam("takedown", "--list")
    assert code == 0
    assert url_of("/p03.html") in out
    assert "nowhere.test" in out
    assert loam("status")[0] == 0
    assert "there are corpus/small, dataset/small" in loam("show", "absent")[2]
    code, out, _ = loam("takedown", "nowhere.test", "--undo")
    assert code == 0
    assert "no longer taken down" in out
    assert len(read_list(store_of(place)).entries) == 1


def test_the_command_wants_a_reason_and_a_target_it_understands(loam: Loam) -> None:
    assert loam("takedown", "site.test")[2].startswith("error: say why")
    assert "top-level" in loam("takedown", "test", "--reason", WHY)[2]
