from __future__ import annotations

import pyarrow as pa
import pytest

from tasks.annotate import Classifiers, annotate_shard
from tasks.language import LanguageModel
from tasks.signals import SIGNAL_NAMES, SIGNALS, text_signals
from tasks.store.rows import data_digest
from tasks.store.schema import DOCUMENTS
from tests.shared_data import shared_data


@pytest.fixture(scope="module")
def lid() -> LanguageModel:
    return LanguageModel(shared_data("models/lid.176.ftz").read_bytes())


def documents(texts: list[str], language: str | None = None) -> pa.Table:
    rows: list[dict[str, object]] = [
        {"id": f"{i}", "digest": "d", "text": text, "language": language}
        for i, text in enumerate(texts)
    ]
    return DOCUMENTS.table(rows)


def test_one_row_of_signals_per_document_in_order():
    texts = [f"This is document number {i}." for i in range(2500)]
    found = annotate_shard(documents(texts, "en"), Classifiers())
    assert found.schema == SIGNALS.arrow
    assert found["id"].to_pylist() == [f"{i}" for i in range(2500)]
    assert set(found["language_from"].to_pylist()) == {"page"}
    for name in ("language_score", "quality", "topic", "topic_score"):
        assert found[name].null_count == 2500
    backwards = found.take(list(range(2499, -1, -1)))
    assert data_digest(found, SIGNALS) == data_digest(backwards, SIGNALS)


def test_the_heuristics_are_those_of_each_text():
    texts = ["One line.\nAnother line.", "", "私は猫。"]
    found = annotate_shard(documents(texts), Classifiers())
    expected = text_signals(pa.array(texts))
    assert found.select(SIGNAL_NAMES).to_pydict() == {
        name: expected[name].to_pylist() for name in SIGNAL_NAMES
    }


def test_without_model_and_page_language_there_is_none():
    for language in (None, ""):
        found = annotate_shard(documents(["some text"], language), Classifiers()).to_pylist()[0]
        assert (found["language"], found["language_from"]) == (None, "none")
    assert annotate_shard(DOCUMENTS.empty(), Classifiers()) == SIGNALS.empty()


def test_the_model_outranks_the_page_and_a_classifier_scores_its_label(lid):
    texts = ["Ceci est une phrase en français.", " "]
    models = Classifiers(language=lid, quality=lid, quality_label="fr")
    rows = annotate_shard(documents(texts, "en"), models).to_pylist()
    assert [row["language"] for row in rows] == ["fr", None]
    assert [row["language_from"] for row in rows] == ["model", "none"]
    assert rows[0]["language_score"] == rows[0]["quality"] > 0.9
    assert rows[1]["language_score"] is None


def test_the_topic_is_the_most_probable_label_of_a_model_of_ones_own(lid):
    texts = ["Ceci est une phrase en français.", "And this one is in English."]
    rows = annotate_shard(documents(texts), Classifiers(topic=lid)).to_pylist()
    assert [row["topic"] for row in rows] == ["fr", "en"]
    assert rows[0]["topic_score"] == lid.top(pa.array(texts))[1][0]
    assert {row["language_from"] for row in rows} == {"none"}
