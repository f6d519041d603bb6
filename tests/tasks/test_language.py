from __future__ import annotations

import gzip
import json
import re
from collections import Counter

import pytest

from llm.errors import DataError
from tasks.language import FastTextModel, LanguageModel
from tests.shared_data import shared_data

COMMON = "de en es fr it nl pl pt ru uk cs hu fi sv tr el he ar fa hi ja ko zh vi th"


@pytest.fixture(scope="module")
def lid() -> LanguageModel:
    return LanguageModel(shared_data("models/lid.176.ftz").read_bytes())


def test_lid176_tells_the_languages_of_linguas_sentences(lid):
    with gzip.open(shared_data("lid/lingua-sentences-even.jsonl.gz"), "rt") as lines:
        rows = [json.loads(line) for line in lines]
    # Languages of which lid.176 knows the code lingua uses; sentences long enough to tell by.
    common = re.findall(r"\w+", COMMON)
    rows = [row for row in rows if row["lang"] in common and len(row["text"]) >= 20][::3]
    codes, scores = lid.predict([row["text"] for row in rows])
    right = Counter(
        row["lang"] for row, code in zip(rows, codes, strict=True) if code == row["lang"]
    )
    assert len(rows) > 2000
    assert right.total() / len(rows) > 0.97
    assert all(0 <= score <= 1 for score in scores)


def test_the_whole_text_counts_and_line_breaks_are_spaces(lid):
    german = "Der Hund läuft durch den Garten und bellt die Katze an. " * 20
    codes, scores = lid.predict(
        ["The cat.\n\n" + german.replace(". ", ".\n"), "The cat.  " + german]
    )
    assert codes == ["de", "de"]
    assert scores[0] == scores[1]


def test_blank_text_has_no_language(lid):
    assert lid.predict(["", " \n\t"]) == (["", ""], [0.0, 0.0])
    assert lid.predict([]) == ([], [])


def test_prediction_does_not_depend_on_company_or_model_object(lid):
    texts = ["Ceci est une phrase.", "This is a sentence.", "これは文です。", "a\0b é"]
    together = lid.predict(texts)
    assert [lid.predict([text])[0][0] for text in texts] == together[0]
    again = LanguageModel(shared_data("models/lid.176.ftz").read_bytes())
    assert again.predict(texts) == together


def test_alemannic_has_its_iso_code(lid):
    text = "D Schwyz isch es Land in Mitteleuropa, wo vo de Nochberländer umgä isch."
    assert lid.top([text])[0] == ["als"]
    assert lid.predict([text])[0] == ["gsw"]


def test_the_probability_of_a_label_is_that_of_the_top_one_where_it_is_the_top(lid):
    texts = ["Ceci est une phrase.", "This is a sentence."]
    _, scores = lid.top(texts)
    assert lid.probability(texts, "fr")[0] == scores[0]
    assert lid.probability(texts, "fr")[1] < 0.01
    with pytest.raises(DataError, match="no label 'hq'"):
        lid.probability(texts, "hq")


def test_bytes_that_are_no_model_are_refused():
    for payload in (b"", b"<html>not found</html>" * 100):
        with pytest.raises(DataError, match="no fastText model"):
            FastTextModel(payload)
