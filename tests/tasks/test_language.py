from __future__ import annotations

import gzip
import json
import re
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.errors import DataError
from tasks.language import WINDOW, FastTextModel, LanguageModel, language_windows
from tests.bench import inputs
from tests.shared_data import shared_data

SENTENCES = "lid/lingua-sentences-even.jsonl.gz"
COMMON = "de en es fr it nl pl pt ru uk cs hu fi sv tr el he ar fa hi ja ko zh vi th"


@pytest.fixture(scope="module")
def lid() -> LanguageModel:
    return LanguageModel(shared_data("models/lid.176.ftz").read_bytes())


def test_lid176_tells_the_languages_of_linguas_sentences(lid):
    with gzip.open(shared_data(SENTENCES), "rt") as lines:
        rows = [json.loads(line) for line in lines]
    # Languages of which lid.176 knows the code lingua uses; sentences long enough to tell by.
    common = re.findall(r"\w+", COMMON)
    rows = [row for row in rows if row["lang"] in common and len(row["text"]) >= 20][::3]
    codes, scores = lid.predict(pa.array([row["text"] for row in rows]))
    right = Counter(
        row["lang"] for row, code in zip(rows, codes, strict=True) if code == row["lang"]
    )
    assert len(rows) > 2000
    assert right.total() / len(rows) > 0.97
    assert all(0 <= score <= 1 for score in scores)


def windows(text: str) -> str:
    """The twin of the kernel: what of a text is read."""
    data = text.encode()
    middle = len(data) // 2
    while middle and middle < len(data) and data[middle] & 0xC0 == 0x80:
        middle -= 1
    center, half = len(data[:middle].decode()), WINDOW // 2
    first, last = min(WINDOW, len(text)), max(0, len(text) - WINDOW)
    left, right = max(0, center - half), min(len(text), center + half)
    if first < left and right < last:
        text = f"{text[:first]} {text[left:right]} {text[last:]}"
    return text.replace("\n", " ")


@st.composite
def long_texts(draw):
    """Texts around the length where the windows meet, of characters of 1 to 4 bytes."""
    parts = draw(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=6))
    return "".join(part * draw(st.integers(0, 90)) for part in parts)


@given(st.lists(long_texts() | st.text(), max_size=6), st.integers(0, 3))
def test_the_windows_are_those_of_the_scalar_twin(texts, skipped):
    assert language_windows(pa.array(texts, pa.large_string())).to_pylist() == [
        *map(windows, texts)
    ]
    part = pa.array(texts, pa.string()).slice(skipped)
    assert language_windows(part).to_pylist() == [*map(windows, texts[skipped:])]


def test_the_windows_of_real_text_are_those_of_the_scalar_twin():
    for name in ("pretrain/sotu-before-1960.jsonl.gz", SENTENCES):
        shared_data(name)
    texts = inputs.english(1) + inputs.multilingual(2)
    found = language_windows(pa.array(texts)).to_pylist()
    assert found == [*map(windows, texts)]
    assert max(map(len, found)) == 3 * WINDOW + 2


def test_what_lies_between_the_windows_does_not_count(lid):
    german = "Der Hund läuft durch den Garten und bellt die Katze an. "
    french = "Ceci est une phrase qui ne dit rien à personne. "
    text = german * 10 + french * 20 + german * 10 + french * 20 + german * 10
    other = german * 10 + "x" * 960 + german * 10 + "x" * 960 + german * 10
    codes, scores = lid.predict(pa.array([text, other]))
    assert codes == ["de", "de"]
    assert scores[0] == scores[1] > 0.9


def test_the_windows_tell_the_language_that_the_whole_text_tells(lid):
    shared_data(SENTENCES)
    pairs = inputs.multilingual_with_languages()
    languages, texts = zip(*[pair for pair in pairs if pair[0] in lid.labels][::3], strict=True)
    whole, _ = lid.top(pa.array(texts))
    cut, _ = lid.predict(pa.array(texts))
    right = [told == language for language, told in zip(languages, whole, strict=True)]
    same = [a == b for a, b, fits in zip(whole, cut, right, strict=True) if fits]
    assert len(same) > 450
    assert sum(same) / len(same) > 0.985
    assert sum(map(str.__eq__, languages, cut)) >= sum(right) - 3


def test_blank_text_has_no_language(lid):
    assert lid.predict(pa.array(["", " \n\t\u3000"])) == (["", ""], [0.0, 0.0])
    assert lid.predict(pa.array([], pa.large_string())) == ([], [])


def test_prediction_does_not_depend_on_company_or_model_object(lid):
    texts = pa.array(["Ceci est une phrase.", "This is a sentence.", "これは文です。", "a\0b é"])
    together = lid.predict(texts)
    assert [lid.predict(texts[i : i + 1])[0][0] for i in range(len(texts))] == together[0]
    again = LanguageModel(shared_data("models/lid.176.ftz").read_bytes())
    assert again.predict(texts) == together


def test_alemannic_has_its_iso_code(lid):
    text = "D Schwyz isch es Land in Mitteleuropa, wo vo de Nochberländer umgä isch."
    assert lid.top(pa.array([text]))[0] == ["als"]
    assert lid.predict(pa.array([text]))[0] == ["gsw"]


def test_the_probability_of_a_label_is_that_of_the_top_one_where_it_is_the_top(lid):
    texts = pa.array(["Ceci est une phrase.", "This is a sentence."])
    _, scores = lid.top(texts)
    assert lid.probability(texts, "fr")[0] == scores[0]
    assert lid.probability(texts, "fr")[1] < 0.01
    with pytest.raises(DataError, match="no label 'hq'"):
        lid.probability(texts, "hq")


def test_a_model_brought_from_outside_must_be_one():
    with pytest.raises(DataError, match="no fastText model"):
        FastTextModel(b"<html>not found</html>" * 100)
