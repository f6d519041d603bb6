"""The quality classifier: learnt from real speeches against a real novel, then pinned."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from flows.config import parse_config
from llm.errors import ConfigError, DataError
from tasks.annotate import AnnotateConfig, annotate
from tasks.extract import extract
from tasks.ingest import ingest
from tasks.language import FastTextModel
from tasks.page_text import ExtractConfig
from tasks.quality import GOOD, QualityConfig, figures, learn_quality
from tasks.select import SelectConfig, select
from tasks.signals import SIGNALS
from tasks.sources import ImportSource
from tasks.store.corpus import live_rows, open_corpus
from tasks.store.pins import let_go
from tasks.store.records import Manifest
from tasks.store.run import Run, WouldRun
from tasks.store.store import Store
from tests.shared_data import shared_data

N = 300
CONFIG = QualityConfig(good=("speeches",), ordinary=("novel",), buckets=50_000)


@pytest.fixture(scope="module")
def texts() -> dict[str, list[str]]:
    """The first 600 characters of parts of presidents' speeches and of Moby-Dick."""
    found = {}
    for name, file in (("speeches", "sotu-before-1960"), ("novel", "moby-dick")):
        with gzip.open(shared_data(f"pretrain/{file}.jsonl.gz"), "rt") as lines:
            rows = [json.loads(line) for line in lines]
        whole = "\n".join(row["text"] if name == "speeches" else row["doc"]["text"] for row in rows)
        found[name] = [whole[at : at + 600] for at in range(0, N * 1000, 1000)]
    return found


def written(folder: Path, texts: dict[str, list[str]]) -> tuple[ImportSource, ...]:
    """Sources with these texts."""
    folder.mkdir(exist_ok=True)
    for name, rows in texts.items():
        lines = (json.dumps({"id": f"{i}", "text": text}) for i, text in enumerate(rows))
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return tuple(
        ImportSource(kind="import", name=name, paths=(f"{folder}/{name}.jsonl",)) for name in texts
    )


def extracted(run: Run, sources: tuple[ImportSource, ...]) -> Manifest:
    return extract(run, {s.name: ingest(run, s) for s in sources}, ExtractConfig())


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr("tasks.as_task.in_prefect", lambda name, function: function)
    return Run(Store.at(str(tmp_path / "store")), "main", "run-1", say=lambda text: None)


def scores(run: Run, annotated: Manifest) -> dict[str, list[float]]:
    """The quality of live documents by source."""
    found: dict[str, list[float]] = {}
    for shard in open_corpus(run.store, annotated).shards:
        sources = live_rows(run.store, shard, columns=["id", "source"])["source"].to_pylist()
        signals = live_rows(run.store, shard, shard.extras[SIGNALS.kind], SIGNALS)
        for source, score in zip(sources, signals["quality"].to_pylist(), strict=True):
            found.setdefault(source, []).append(score)
    return found


def test_a_classifier_learns_two_sources_is_pinned_and_scores_with_it(run, texts, tmp_path):
    corpus = extracted(run, written(tmp_path / "in", texts))
    with pytest.raises(WouldRun, match="quality would run: it is not pinned yet"):
        annotate(replace(run, planning=True), corpus, AnnotateConfig(), CONFIG)
    annotated = annotate(run, corpus, AnnotateConfig(), CONFIG)
    pin = learn_quality(run, corpus, CONFIG)
    assert annotated.payload["pins"] == {"quality": pin.object.sha256}
    assert annotated.summary["classifier"] == pin.facts
    assert pin.facts["documents"] == 2 * 0.9 * N
    assert pin.facts["heldout"] == 2 * 0.1 * N
    assert pin.facts["accuracy"] > 0.9
    assert pin.facts["auc"] > 0.97
    found = scores(run, annotated)
    assert np.median(found["speeches"]) > 0.6
    assert np.median(found["novel"]) < 0.4
    # What is stored is what the pinned model says.
    shard = open_corpus(run.store, annotated).shards[0]
    rows = live_rows(run.store, shard, columns=["id", "text"])["text"].combine_chunks()
    model = FastTextModel(run.store.read_bytes(pin.object))
    signals = live_rows(run.store, shard, shard.extras[SIGNALS.kind], SIGNALS)
    assert signals["quality"].to_pylist() == model.probability(rows, GOOD).tolist()


def test_later_documents_are_scored_with_the_classifier_that_is_pinned(run, texts, tmp_path):
    first = {name: rows[:150] for name, rows in texts.items()}
    old = annotate(run, extracted(run, written(tmp_path / "in", first)), AnnotateConfig(), CONFIG)
    corpus = extracted(run, written(tmp_path / "in", texts))
    new = annotate(run, corpus, AnnotateConfig(), CONFIG)
    assert new.payload["pins"] == old.payload["pins"]
    assert set(scores(run, old)["novel"]) < set(scores(run, new)["novel"])
    with pytest.raises(ConfigError, match="dim: 10 -> 4"):
        annotate(run, corpus, AnnotateConfig(), CONFIG.model_copy(update={"dim": 4}))
    assert let_go(run.store, "main", "quality")
    again = annotate(run, corpus, AnnotateConfig(), CONFIG)
    assert again.summary["classifier"]["documents"] == 2 * 0.9 * N
    assert again.payload["pins"] != old.payload["pins"]


def test_the_lowest_share_leaves_and_the_score_it_was_cut_at_stays(run, texts, tmp_path):
    rules = dict.fromkeys(("gopher_quality", "gopher_repetition", "c4", "fineweb"), False)
    config = SelectConfig(quality_quantile=0.3, **rules)
    first = {"speeches": texts["speeches"], "novel": texts["novel"][:150]}
    corpus = extracted(run, written(tmp_path / "in", first))
    with pytest.raises(ConfigError, match="documents have no quality"):
        select(run, annotate(run, corpus, AnnotateConfig()), config)
    annotated = annotate(run, corpus, AnnotateConfig(), CONFIG)
    chosen = select(run, annotated, config)
    lowest = sorted(chain(*scores(run, annotated).values()))
    cut = chosen.summary["quality_cut"]
    assert cut == lowest[135]
    assert chosen.drops["quality"] == sum(score < cut for score in lowest) > 130
    assert select(run, annotated, config) == chosen

    more = annotate(run, extracted(run, written(tmp_path / "in", texts)), AnnotateConfig(), CONFIG)
    later = select(run, more, config)
    assert later.summary["quality_cut"] == cut
    assert later.drops["quality"] == sum(s < cut for s in chain(*scores(run, more).values()))
    with pytest.raises(ConfigError, match=r"0.3 -> 0.4.*loam repin quality_cut"):
        select(run, more, config.model_copy(update={"quality_quantile": 0.4}))

    let_go(run.store, "main", "quality")
    anew = annotate(run, extracted(run, written(tmp_path / "in", texts)), AnnotateConfig(), CONFIG)
    with pytest.raises(ConfigError, match=r"model: .*loam repin quality_cut"):
        select(run, anew, config)
    let_go(run.store, "main", "quality_cut")
    assert select(run, anew, config).drops["quality"] <= 0.3 * 2 * N


def test_files_that_are_no_source_can_be_learnt_from(run, texts, tmp_path):
    corpus = extracted(run, written(tmp_path / "in", {"novel": texts["novel"][:20]}))
    written(tmp_path / "files", {"a": texts["speeches"][:90], "b": texts["speeches"][90:]})
    written(tmp_path / "files", {"novel": texts["novel"] + texts["speeches"][:50] + ["  "]})
    files = {"good": (f"{tmp_path}/files/[ab].jsonl",), "ordinary": (f"{tmp_path}/files/n*",)}
    pin = learn_quality(run, corpus, CONFIG.model_copy(update={**files, "max_documents": 200}))
    # What is in both sets is good; of each as many.
    assert (pin.facts["documents"], pin.facts["heldout"]) == (360, 40)
    assert pin.facts["auc"] > 0.9
    let_go(run.store, "main", "quality")
    with pytest.raises(ConfigError, match="nowhere"):
        learn_quality(run, corpus, CONFIG.model_copy(update={"good": (f"{tmp_path}/nowhere",)}))
    (tmp_path / "page.warc").write_bytes(_warc())
    with pytest.raises(ConfigError, match="holds web pages; import them as a source"):
        learn_quality(run, corpus, CONFIG.model_copy(update={"good": (f"{tmp_path}/page.warc",)}))


def test_sets_that_are_too_small_are_refused_and_nothing_is_pinned(run, texts, tmp_path):
    few = {"speeches": texts["speeches"][:60] * 3, "novel": texts["novel"]}
    corpus = extracted(run, written(tmp_path / "in", few))
    with pytest.raises(DataError, match=r"quality.good \(speeches\) holds 60 distinct documents"):
        annotate(run, corpus, AnnotateConfig(), CONFIG)
    assert not let_go(run.store, "main", "quality")


def test_a_text_that_speaks_of_labels_is_text(run, texts, tmp_path):
    marked = [f"__label__hq __label__other {text}" for text in texts["novel"]]
    both = {"speeches": texts["speeches"], "novel": marked}
    pin = learn_quality(run, extracted(run, written(tmp_path / "in", both)), CONFIG)
    model = FastTextModel(run.store.read_bytes(pin.object))
    assert sorted(model.labels) == ["hq", "ordinary"]
    assert pin.facts["auc"] > 0.97


def test_a_classifier_is_learnt_or_brought_but_not_both():
    source = {"kind": "import", "name": "novel", "paths": ["novel.jsonl"]}
    sets = {"good": ["good.jsonl"], "ordinary": ["novel"]}
    config = {"sources": [source], "quality": sets}
    assert parse_config(config, "my.toml").quality == QualityConfig(**sets)
    with pytest.raises(ConfigError, match="keep one of the two"):
        parse_config({**config, "annotate": {"quality_model": "m.bin"}}, "my.toml")


@given(*[st.lists(st.integers(0, 10).map(lambda n: n / 10), min_size=1, max_size=30)] * 2)
def test_the_area_under_the_curve_is_that_of_the_rank_test(good, ordinary):
    found = figures(np.array(good), np.array(ordinary))
    u = mannwhitneyu(good, ordinary).statistic
    assert found["auc"] == pytest.approx(u / len(good) / len(ordinary), abs=1e-4)
    right = [score >= 0.5 for score in good] + [score < 0.5 for score in ordinary]
    assert found["accuracy"] == pytest.approx(np.mean(right), abs=1e-4)


def _warc() -> bytes:
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html><p>A page.</p></html>"
    head = (
        "WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: https://example.org/\r\n"
        "WARC-Date: 2024-01-01T00:00:00Z\r\nWARC-Record-ID: <urn:uuid:0>\r\n"
        f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(http)}\r\n\r\n"
    )
    return head.encode() + http + b"\r\n\r\n"
