"""Real texts the whole way to a corpus: a documentation in six languages, and Shakespeare's."""

from __future__ import annotations

import gzip
import io
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from flows import corpus as recipe
from flows.config import PipelineConfig, parse_config, read_config
from flows.running import RunOptions, open_run
from tasks import inspecting
from tasks.signals import SIGNALS
from tasks.store.corpus import live_rows, open_corpus
from tasks.store.records import Manifest
from tasks.store.schema import DOCUMENTS, DROPS, PAGES, Schema
from tasks.store.store import Store
from tests.flows.grown import REPOSITORY
from tests.flows.plainly import without_prefect
from tests.shared_data import shared_data

# debian-faq 11.1: the same 17 pages in each language. The package of the English one has no suffix.
LANGUAGES = ("en", "de", "fr", "ja", "ru", "zh-cn")
N_PAGES = 17
# What these pages were written in before UTF-8.
LEGACY = {"fr": "iso-8859-15", "ja": "euc-jp", "ru": "koi8-r", "zh-cn": "gb18030"}
HOST = "http://faq.test/"


@pytest.fixture(autouse=True)
def _plain_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    without_prefect(monkeypatch)


def grow(config: PipelineConfig, *, refresh: bool = False) -> Manifest:
    with open_run(config, RunOptions(refresh=refresh)) as run:
        return recipe.grow_corpus(run, config)


def rows_of(store: Store, corpus: Manifest, stage: str, schema: Schema) -> list[dict]:
    """What a stage on the way to the corpus wrote of a kind."""
    (made,) = (one for one in inspecting.lineage(store, corpus) if one.stage == stage)
    tables = (store.read_table(one.output(schema.kind), schema) for one in store.receipts(made))
    return [row for table in tables for row in table.to_pylist()]


# a site in six languages


def unpack(package: Path, folder: Path) -> None:
    """The files of a Debian package: an `ar` archive (deb(5)) with a tar file inside."""
    body, at = package.read_bytes(), 8
    while at < len(body):
        name, size = body[at : at + 16].decode().strip(), int(body[at + 48 : at + 58])
        at += 60
        if name.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(body[at : at + size])) as files:
                files.extractall(folder, filter="tar")
        at += size + size % 2


def build_site(folder: Path) -> None:
    """The pages below their language's code, and some again below `legacy/` in older encodings."""
    index = []
    for language in LANGUAGES:
        suffix = "" if language == "en" else f"-{language}"
        unpack(shared_data(f"deb/debian-faq{suffix}_11.1_all.deb"), folder / "unpacked")
        faq = folder / "unpacked/usr/share/doc/debian/FAQ"
        for page in sorted(
            (faq if language == "en" else faq / language).glob(f"*.{language}.html")
        ):
            text = page.read_text("utf-8")
            places = {f"{language}/{page.name}": "utf-8"}
            if language in LEGACY:
                places[f"legacy/{language}/{page.name}"] = LEGACY[language]
            for place, encoding in places.items():
                path = folder / "site" / place
                path.parent.mkdir(parents=True, exist_ok=True)
                declared = text.replace("charset=UTF-8", f"charset={encoding}")
                path.write_bytes(declared.encode(encoding, "xmlcharrefreplace"))
                index.append(f'<li><a href="{place}">{place}</a></li>')
    (folder / "site/index.html").write_text(f"<ul>{''.join(index)}</ul>")


@contextmanager
def static_server(folder: Path) -> Iterator[tuple[str, Counter[int]]]:
    """Python's own static server; its address, and how often it gave each status."""
    statuses: Counter[int] = Counter()

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            statuses[int(code)] += 1

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", statuses
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def site_config(folder: Path, address: str) -> PipelineConfig:
    return parse_config(
        {
            "name": "faq",
            "store": {"root": str(folder / "store"), "workers": 1, "shard_rows": 64},
            "sources": [
                {
                    "kind": "crawl",
                    "name": "faq",
                    "seeds": [HOST],
                    "mirror": {HOST: f"http://{address}/"},
                    "allow_private": [address],
                    "delay_s": 0,
                }
            ],
            "annotate": {"language_model": str(shared_data("models/lid.176.ftz"))},
        },
        "the test",
    )


def language_of(url: str) -> str:
    """The language of a page as lid.176 spells it, by its path."""
    return url.removeprefix(HOST).removeprefix("legacy/").split("/")[0].split("-")[0]


@pytest.mark.slow
def test_a_site_in_six_languages_is_told_apart_and_its_copies_in_other_encodings_are_found(
    tmp_path: Path,
) -> None:
    build_site(tmp_path)
    with static_server(tmp_path / "site") as (address, statuses):
        config = site_config(tmp_path, address)
        first = grow(config)
        n_fetched = statuses[200]
        statuses.clear()
        second = grow(config, refresh=True)
    store = Store.at(config.store.root)
    pages = {row["id"]: row["url"] for row in rows_of(store, first, "crawl", PAGES)}
    del pages[next(id for id, url in pages.items() if url == HOST)]
    assert len(pages) == N_PAGES * (len(LANGUAGES) + len(LEGACY)) == n_fetched - 1

    told = {row["id"]: row["language"] for row in rows_of(store, first, "annotate", SIGNALS)}
    assert {url: told[id] for id, url in pages.items()} == {
        url: language_of(url) for url in pages.values()
    }

    texts = {row["id"]: row["text"] for row in rows_of(store, first, "extract", DOCUMENTS)}
    by_url = {url: texts[id] for id, url in pages.items()}
    for url, text in by_url.items():
        assert text == by_url[url.replace("/legacy/", "/")]

    # A page and its copy break the same rules; where they break none, one of the two stays.
    drops = rows_of(store, first, "select", DROPS)
    chosen = pages.keys() - {row["id"] for row in drops}
    twins = Counter(pages[id].replace("/legacy/", "/") for id in chosen)
    kept = Counter(
        pages[row["id"]].replace("/legacy/", "/")
        for shard in open_corpus(store, first).shards
        for row in live_rows(store, shard, columns=["id"]).to_pylist()
        if row["id"] in pages
    )
    assert 0 < len(kept) < len(chosen)
    assert kept == dict.fromkeys(twins, 1)

    assert second.data_digest == first.data_digest
    assert statuses == {304: n_fetched, 404: 1}


# Shakespeare


@pytest.mark.slow
def test_shakespeare_comes_through_the_corpus_but_for_blanks_as_it_was(
    tmp_path: Path,
) -> None:
    raw = gzip.decompress(shared_data("pretrain/tinyshakespeare.txt.gz").read_bytes()).decode()
    config = read_config(REPOSITORY / "flows/configs/shakespeare.toml")
    place = config.store.model_copy(update={"root": str(tmp_path / "store")})
    sources = tuple(
        source.model_copy(update={"paths": (str(shared_data("pretrain/tinyshakespeare.txt.gz")),)})
        for source in config.sources
    )
    config = config.model_copy(update={"store": place, "sources": sources})
    corpus = grow(config)
    store = Store.at(config.store.root)
    texts = {
        row["source"]: row["text"]
        for shard in open_corpus(store, corpus).shards
        for row in live_rows(store, shard).to_pylist()
    }
    # nanoGPT, data/shakespeare_char/prepare.py: data[:int(n*0.9)] and data[int(n*0.9):].
    cut = int(len(raw) * 0.9)
    expected = {"shakespeare-train": raw[:cut], "shakespeare-validation": raw[cut:]}
    assert texts.keys() == expected.keys()
    for source, text in texts.items():
        assert text.split() == expected[source].split()
        # Two double blank lines of the training part become single ones; ends are trimmed.
        assert 0 < len(expected[source]) - len(text) < 10
    assert texts["shakespeare-validation"] == expected["shakespeare-validation"].rstrip("\n")
