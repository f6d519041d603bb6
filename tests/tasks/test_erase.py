"""What is erased is in no byte of the store any more, and all else is as it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import cli
from flows.config import read_config
from flows.planning import make_plan
from flows.running import RunOptions, open_run
from llm import files
from llm.data import prepare
from llm.errors import ConfigError
from tasks import registry
from tasks.erase import Erasure, erase
from tasks.extract import extract_work
from tasks.payloads import read_payloads
from tasks.split import HELDOUT
from tasks.store.corpus import snapshot_shards
from tasks.store.lease import StoreInUse
from tasks.store.pins import find_pin
from tasks.store.records import Manifest
from tasks.store.rows import document_id
from tasks.store.schema import DATASET, PAGES, TOKENS
from tasks.store.store import Store
from tasks.takedown import affected, mark_models, read_list, record, undo
from tasks.tokenise import dataset_url
from tests.flows.small_pipeline import NAME, Place, check
from tests.tasks.small_corpus import (
    REPOSITORY,
    WHOLE,
    copy_of,
    grow,
    live,
    served,
    store_of,
    url_of,
)
from tests.tasks.test_takedown import with_model

PAGE, NOTE = "/p03.html", "n04"
TARGETS = (url_of(PAGE), document_id("notes", NOTE))


def sentences(text: str) -> list[str]:
    return [sentence.strip() for sentence in text.split(".") if sentence.strip()]


ERASED = [sentences(WHOLE.pages[PAGE])[5], sentences(WHOLE.notes[NOTE])[5]]
KEPT = [sentences(WHOLE.pages["/p05.html"])[5], sentences(WHOLE.notes["n06"])[5]]


def quiet(text: str) -> None:
    pass


@pytest.fixture(scope="module")
def taken_once(grown_once: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = copy_of(grown_once, tmp_path_factory.mktemp("taken") / "copy")
    record(store_of(place), TARGETS, "asked by the author", "me")
    grow(place)
    return place


@pytest.fixture
def taken(taken_once: Place, tmp_path: Path) -> Place:
    """A place where the targets are taken down and the corpus is grown without them."""
    return copy_of(taken_once, tmp_path / "taken")


def unpacked(body: bytes) -> Iterator[bytes]:
    yield body
    while body[:2] == b"\x1f\x8b":
        inflate = zlib.decompressobj(31)
        yield inflate.decompress(body)
        body = inflate.unused_data


def holds(store: Store, sentence: str) -> list[str]:
    """The files of the store in which a sentence stands, whatever they are packed with."""
    found = []
    for path in sorted(files.local_path(store.root).rglob("*")):
        if not path.is_file():
            continue
        if path.suffix == ".parquet":
            parts = iter([json.dumps(pq.read_table(path).to_pylist(), default=repr).encode()])
        else:
            parts = unpacked(path.read_bytes())
        if any(sentence.encode() in part for part in parts):
            found.append(str(path))
    return found


def tokens_left(store: Store, id_: str) -> set[int]:
    """How many tokens the store holds of a document, over all its tables of tokens."""
    found = set()
    for url in files.list_urls(f"{store.root}/objects"):
        if url.endswith(".parquet") and pq.read_schema(files.local_path(url)).names == (
            TOKENS.arrow.names
        ):
            rows = pq.read_table(files.local_path(url), columns=["id", "tokens"]).to_pylist()
            found |= {len(row["tokens"]) for row in rows if row["id"] == id_}
    return found


def test_no_byte_of_the_store_holds_it_any_more(taken: Place) -> None:
    store = store_of(taken)
    ids = [document_id("site", url_of(PAGE)), TARGETS[1]]
    assert all(holds(store, sentence) for sentence in (*ERASED, *KEPT))
    assert all(max(tokens_left(store, id_)) > 50 for id_ in ids)
    done = erase(store, TARGETS, quiet)
    assert done.documents == 2
    assert [holds(store, sentence) for sentence in ERASED] == [[], []]
    assert [tokens_left(store, id_) for id_ in ids] == [{0}, {0}]
    assert all(holds(store, sentence) for sentence in KEPT)


def test_the_store_verifies_and_nothing_is_to_be_done(
    taken: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_of(taken)
    before, texts = grow(taken), live(taken)
    done = erase(store, TARGETS, quiet)
    verdict = check(taken)
    assert verdict.ok
    assert verdict.stray == ()
    assert len(verdict.erased) == done.objects > 3
    monkeypatch.chdir(taken.folder)
    config = read_config("loam.toml").model_copy(update={"model": None})
    assert make_plan(config, RunOptions()).nothing_to_do
    assert grow(taken) == before
    assert live(taken) == texts


def test_every_other_page_is_still_read_where_it_lies(taken: Place) -> None:
    store = store_of(taken)
    pages = pages_of(store)
    before = dict(zip(pages["id"].to_pylist(), read_payloads(store, pages), strict=True))
    erase(store, TARGETS, quiet)
    after = dict(zip(pages["id"].to_pylist(), read_payloads(store, pages), strict=True))
    gone = document_id("site", url_of(PAGE))
    assert before[gone] is not None
    assert after == {**before, gone: None}


def pages_of(store: Store) -> pa.Table:
    ref = store.find_ref("snapshot", f"{NAME}/site")
    assert ref is not None
    shards = snapshot_shards(store, store.manifest(ref.manifest))
    return pa.concat_tables([store.read_table(s.extras[PAGES.kind], PAGES) for s in shards])


def test_extracting_anew_drops_what_has_no_text_any_more(taken: Place) -> None:
    store = store_of(taken)
    erase(store, TARGETS, quiet)
    ref = store.find_ref("snapshot", f"{NAME}/site")
    assert ref is not None
    config = read_config(taken.folder / "loam.toml").extract
    drops = []
    for shard in snapshot_shards(store, store.manifest(ref.manifest)):
        outcome = extract_work(store, shard.extras[PAGES.kind], config)
        drops += outcome.tables[1][1].to_pylist()
    assert ("no_payload", document_id("site", url_of(PAGE))) in [
        (row["reason"], row["id"]) for row in drops
    ]


def test_training_reads_the_dataset_as_before(taken: Place, tmp_path: Path) -> None:
    store = store_of(taken)
    data = dataset_of(store)

    def digests(cache: str) -> dict[str, str]:
        url = dataset_url(store, data)
        splits = ("train", "validation", "test")
        return {s: prepare(url, s, tmp_path / cache, store.root).digest for s in splits}

    before = digests("before")
    erase(store, TARGETS, quiet)
    assert digests("after") == before


def dataset_of(store: Store) -> Manifest:
    ref = store.find_ref("dataset", NAME)
    assert ref is not None
    return store.manifest(ref.manifest)


def test_an_older_dataset_is_read_without_what_was_erased(place: Place, tmp_path: Path) -> None:
    store = store_of(place)
    older = dataset_of(store)
    before = prepare(dataset_url(store, older), "train", tmp_path, store.root)
    record(store, TARGETS, "asked by the author", "me")
    grow(place)
    erase(store, TARGETS, quiet)
    after = prepare(dataset_url(store, older), "train", tmp_path, store.root)
    assert 1 <= before.n_documents - after.n_documents <= 2


def test_models_that_were_trained_on_what_was_erased_stay_marked(place: Place) -> None:
    store, version = store_of(place), with_model(place)
    data = store.manifest(version.manifests["dataset"]).object("dataset")
    rows = store.read_table(data, DATASET, ["id", "split"]).to_pylist()
    gone = next(row["id"] for row in rows if row["split"] == "train")
    record(store, [gone], "asked by the author", "me")
    for _ in range(2):
        erase(store, [gone], quiet)
    mark_models(store)
    assert registry.taken_down(store, version) == 1
    (told,) = affected(store, read_list(store).entries)
    assert [(m.trained_on, m.held_out) for m in told.models] == [(1, 0)]


def test_a_held_out_document_is_erased_too(place: Place) -> None:
    store = store_of(place)
    pin = find_pin(store, NAME, "heldout")
    assert pin is not None
    held = store.read_table(pin.object, HELDOUT)
    gone = held.to_pylist()[0]
    record(store, [gone["id"]], "asked by the author", "me")
    grow(place)
    erase(store, [gone["id"]], quiet)
    assert holds(store, sentences(gone["text"])[4]) == []
    left = store.read_table(pin.object, HELDOUT)
    assert left["id"] == held["id"]
    assert left["text"].to_pylist() == ["", *held["text"].to_pylist()[1:]]
    grow(place)
    assert check(place).ok


def test_a_domain_is_erased_as_a_whole(place: Place) -> None:
    store = store_of(place)
    record(store, ["site.test"], "licence withdrawn", "me")
    grow(place)
    erase(store, ["site.test"], quiet)
    alone = [text for path, text in WHOLE.pages.items() if path < "/p05"]
    assert [holds(store, sentences(text)[3]) for text in alone] == [[]] * len(alone)
    assert check(place).ok


def test_the_canaries_made_of_a_document_are_erased_with_it(place: Place) -> None:
    config = place.folder / "loam.toml"
    config.write_text(config.read_text() + "\n[canaries]\nn = 3\n")
    grow(place)
    store = store_of(place)
    named = {document_id("site", url_of(path)) for path in WHOLE.pages}
    record(store, sorted(named), "asked by the author", "me")
    erase(store, sorted(named), quiet)
    notes = "\n".join(WHOLE.notes.values())
    spoken = [sentences(text) for text in WHOLE.pages.values()]
    alone = {said[5] for said in spoken if len(said) > 5 and said[5] not in notes}
    assert len(alone) > 5
    assert [holds(store, sentence) for sentence in sorted(alone)] == [[]] * len(alone)


def test_to_erase_twice_changes_nothing(taken: Place) -> None:
    store = store_of(taken)
    erase(store, TARGETS, quiet)
    before = files.list_urls(store.root)
    assert erase(store, TARGETS, quiet) == Erasure(2, 0, 0)
    assert files.list_urls(store.root) == before


KILLED = """
import os, signal, sys
from llm import files
from tasks.erase import erase
from tasks.store.store import Store
left = int(sys.argv[2])
def counted(act):
    def call(url, *rest):
        global left
        if "/objects/" in url:
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
        return act(url, *rest)
    return call
for name in ("put", "create", "delete"):
    setattr(files, name, counted(getattr(files, name)))
erase(Store.at(sys.argv[1]), sys.argv[3:], print)
"""


@pytest.mark.parametrize("after", [1, 4, 9])
def test_an_erase_killed_at_any_moment_loses_nothing_and_is_finished_by_the_next(
    taken: Place, after: int
) -> None:
    store = store_of(taken)
    before, texts = grow(taken), live(taken)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, store.root, str(after), *TARGETS],
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert killed.returncode == -signal.SIGKILL
    told = check(taken)
    assert (told.missing, told.changed) == ((), ())
    assert told.ok == (not told.unfinished)
    assert grow(taken) == before
    assert live(taken) == texts
    erase(store, TARGETS, quiet)
    assert [holds(store, sentence) for sentence in ERASED] == [[], []]
    assert check(taken).ok
    assert live(taken) == texts


def test_neither_a_re_crawl_nor_a_re_import_brings_it_back(taken: Place) -> None:
    store = store_of(taken)
    erase(store, TARGETS, quiet)
    texts = live(taken)
    with served(taken):
        grow(taken, refresh=True)
    assert [holds(store, sentence) for sentence in ERASED] == [[], []]
    more = {PAGE: WHOLE.pages[PAGE] + " And more.", "/p09.html": WHOLE.pages["/p09.html"] + " Yes."}
    notes = {NOTE: WHOLE.notes[NOTE] + " And more.", "new": WHOLE.notes["n05"][::-1]}
    with served(taken, WHOLE.edited(pages=more, notes=notes)):
        grow(taken, refresh=True)
    assert [holds(store, sentence) for sentence in ERASED] == [[], []]
    assert live(taken).keys() >= texts.keys()
    assert live(taken)[url_of("/p09.html")].endswith("Yes.")
    assert check(taken).ok


def test_only_what_is_taken_down_is_erased_and_it_does_not_come_back(place: Place) -> None:
    store = store_of(place)
    with pytest.raises(ConfigError, match="is not taken down"):
        erase(store, TARGETS, quiet)
    record(store, TARGETS, "asked by the author", "me")
    erase(store, TARGETS[:1], quiet)
    with pytest.raises(ConfigError, match="its text is gone"):
        undo(store, TARGETS[:1])
    undo(store, TARGETS[1:])
    assert holds(store, ERASED[1])


def test_nothing_is_erased_beside_a_run(taken: Place) -> None:
    store = store_of(taken)
    config = read_config(taken.folder / "loam.toml")
    with open_run(config, RunOptions(), say=quiet), pytest.raises(StoreInUse):
        erase(store, TARGETS, quiet)
    assert holds(store, ERASED[0])


def test_the_command_asks_whether_it_is_meant(
    taken: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOAM_STORE", taken.root)
    codes = []
    for arguments in (["erase", TARGETS[0]], ["erase", TARGETS[0], "--yes"], ["store", "verify"]):
        with pytest.raises(SystemExit) as left:
            cli.main(arguments)
        codes.append(left.value.code)
    said, wrong = capsys.readouterr()
    assert codes == [2, 0, 0]
    assert "--yes" in wrong
    assert "1 document erased" in said
    assert "erased  file://" in said
