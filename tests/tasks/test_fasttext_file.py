"""Models read and applied without the library say what the library says."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path
from typing import Any

import fasttext
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.errors import DataError
from tasks.fasttext_file import LABEL, read_fasttext
from tasks.language import FastTextModel
from tests.bench import inputs
from tests.shared_data import shared_data

THREADS = 12
LID = "models/lid.176.ftz"
# The library rounds on the way: it keeps logarithms in single precision.
CLOSE = 3e-6
# It looks sigmoids of independent labels up in a table of 512 steps from -8 to 8.
TABLE = 16 / 512 / 4

MODELS: dict[str, dict[str, Any]] = {
    "words": {},
    "runs of words": {"wordNgrams": 2},
    "long runs and n-grams": {"wordNgrams": 4, "minn": 1, "maxn": 3, "bucket": 1000},
    "tree": {"loss": "hs", "minn": 2, "maxn": 5, "bucket": 20_000},
    "labels apart": {"loss": "ova", "wordNgrams": 2, "bucket": 5000},
}
QUANTIZED: dict[str, dict[str, Any]] = {
    "codes": {},
    "pruned": {"cutoff": 900},
    "pruned, with norms": {"cutoff": 900, "qnorm": True},
    "output too": {"qnorm": True, "qout": True},
}


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training file: sentences of seven languages."""
    path = tmp_path_factory.mktemp("fasttext") / "train.txt"
    with gzip.open(shared_data("lid/lingua-sentences-even.jsonl.gz"), "rt") as file:
        rows = [json.loads(line) for line in file]
    kept = [row for row in rows if row["lang"] in ("de", "en", "es", "fr", "it", "ja", "ru")]
    kept = sorted(kept, key=lambda row: row["text"])
    path.write_text("".join(f"{LABEL}{row['lang']} {row['text']}\n" for row in kept))
    return path


def trained(lines: Path, **options: Any) -> Any:
    defaults = {"dim": 6, "epoch": 3, "bucket": 2000, "lr": 0.5}
    return fasttext.train_supervised(str(lines), thread=THREADS, verbose=0, **(defaults | options))


def reread(model: Any, folder: Path) -> FastTextModel:
    path = folder / "model.bin"
    model.save_model(str(path))
    return FastTextModel(path.read_bytes())


def assert_same(ours: FastTextModel, theirs: Any, texts: list[str], close: float) -> None:
    """All labels of all texts have the library's probabilities."""
    labels, scores = theirs.predict([text.replace("\n", " ") for text in texts], k=-1)
    column = pa.array(texts, pa.large_string())
    found = {label: ours.probability(column, label) for label in ours.labels}
    assert sorted(found) == sorted(label.removeprefix(LABEL) for label in theirs.labels)
    for place, row in enumerate(labels):
        expected = dict(zip(row, scores[place], strict=True))
        for label, column in found.items():
            if LABEL + label in expected:
                said = min(1.0, expected[LABEL + label])
                assert column[place] == pytest.approx(said, abs=close), (texts[place], label)
            else:
                # It leaves out what it finds no more probable than nothing.
                assert column[place] <= 1.2e-5


def real_texts(n: int) -> list[str]:
    for name in ("lid/lingua-sentences-even.jsonl.gz", "pretrain/sotu-before-1960.jsonl.gz"):
        shared_data(name)
    return (inputs.multilingual() + inputs.english(1))[::n]


ODD = [
    *("", " \n\t", "a\0b\x0bc", "</s> more", "so </s> more", f"{LABEL}de und {LABEL}xx"),
    *("猫😀é " * 9, "x" * 5000, f"one {'猫' * 3000} two", "word " * 3000),
]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_says_what_the_library_says(name, lines, tmp_path):
    theirs = trained(lines, **MODELS[name])
    close = TABLE if name == "labels apart" else CLOSE
    assert_same(reread(theirs, tmp_path), theirs, real_texts(20) + ODD, close)


@pytest.mark.parametrize("name", QUANTIZED)
def test_a_quantized_model_says_what_the_library_says(name, lines, tmp_path):
    options: dict[str, Any] = {"minn": 2, "maxn": 3, "loss": "hs"}
    if "qout" in QUANTIZED[name]:
        # The library quantizes no output of fewer than 256 labels.
        lines, options = _with_labels(lines, tmp_path / "train.txt", 300), {"dim": 7}
    theirs = trained(lines, **options)
    theirs.quantize(input=str(lines), thread=THREADS, verbose=0, **QUANTIZED[name])
    assert_same(reread(theirs, tmp_path), theirs, real_texts(40) + ODD, CLOSE)


def _with_labels(lines: Path, to: Path, count: int) -> Path:
    """The same lines under so many labels, which mean nothing."""
    texts = [line.partition(" ")[2] for line in lines.read_text().splitlines()]
    to.write_text("".join(f"{LABEL}{i % count} {text}\n" for i, text in enumerate(texts)))
    return to


@pytest.fixture(scope="module")
def lid() -> tuple[FastTextModel, Any]:
    path = shared_data(LID)
    return FastTextModel(path.read_bytes()), fasttext.load_model(str(path))


def test_lid176_says_what_the_library_says_of_real_text(lid):
    ours, theirs = lid
    texts = real_texts(1)
    names, scores = ours.top(pa.array(texts))
    labels, said = theirs.predict([text.replace("\n", " ") for text in texts])
    assert names == [row[0].removeprefix(LABEL) for row in labels]
    assert scores == pytest.approx([min(1, row[0]) for row in said], abs=CLOSE)


@given(st.lists(st.text() | st.sampled_from(ODD), max_size=4))
def test_lid176_says_what_the_library_says_of_any_text(lid, texts):
    ours, theirs = lid
    _, scores = ours.top(pa.array(texts, pa.string()))
    for text, score in zip(texts, scores, strict=True):
        _, said = theirs.predict(text.replace("\n", " "))
        assert score == pytest.approx(min(1, said[0]), abs=CLOSE)


def test_what_is_not_a_whole_supervised_model_is_refused(lines, tmp_path):
    body = shared_data(LID).read_bytes()
    for payload in (b"", b"<html>not found</html>" * 100, body[4:]):
        with pytest.raises(DataError, match="no fastText model"):
            read_fasttext(payload)
    for payload in (body[:5000], body[:-1], body + b"\0", body[:6] + b"\0"):
        with pytest.raises(DataError, match=r"is the file whole|format"):
            read_fasttext(payload)
    vectors = fasttext.train_unsupervised(str(lines), dim=4, epoch=1, thread=THREADS, verbose=0)
    vectors.save_model(str(tmp_path / "vectors.bin"))
    with pytest.raises(DataError, match="kind 2; expected a supervised"):
        read_fasttext((tmp_path / "vectors.bin").read_bytes())


def written(
    longest: int = 2,
    word_run: int = 2,
    buckets: int = 100,
    n_kept: int = -1,
    pairs: tuple[int, ...] = (),
    n_labels: int = 2,
    shapes: tuple[tuple[int, int], ...] = ((103, 4), (2, 4)),
) -> bytes:
    """A model of three words and two labels with 4 hidden units, as the library would write it."""
    entries = (b"</s>", b"a", b"b", b"__label__x", b"__label__y")
    body = struct.pack("<14i", 793712314, 12, 4, 5, 5, 1, 5, word_run, 3, 3, buckets, 1, longest, 0)
    body += struct.pack("<d3i2q", 1e-4, len(entries), 3, n_labels, 9, n_kept)
    for place, entry in enumerate(entries):
        body += entry + struct.pack("<bqb", 0, 5, place >= 3)
    body += struct.pack(f"<{len(pairs)}i", *pairs)
    for n_rows, dim in shapes:
        body += struct.pack("<b2q", 0, n_rows, dim) + bytes(4 * n_rows * dim)
    return body


@pytest.mark.parametrize(
    "damage",
    [
        {"shapes": ((102, 4), (2, 4))},
        {"shapes": ((103, 4), (2, 5))},
        {"shapes": ((103, 4), (3, 4))},
        {"n_labels": 3, "shapes": ((103, 4), (3, 4))},
        {"longest": -5},
        {"longest": 1 << 30},
        {"buckets": 0, "shapes": ((3, 4), (2, 4))},
        {"buckets": -1, "shapes": ((2, 4), (2, 4))},
        {"n_kept": 2, "pairs": (1, 0, 2, 2), "shapes": ((5, 4), (2, 4))},
        {"n_kept": 2, "pairs": (1, 0, 2, -1), "shapes": ((5, 4), (2, 4))},
        {"n_kept": 2, "pairs": (1, 0, 100, 1), "shapes": ((5, 4), (2, 4))},
        {"n_kept": 2, "pairs": (1, 0, 2, 1), "shapes": ((4, 4), (2, 4))},
    ],
)
def test_a_model_that_leads_outside_of_itself_is_refused(damage):
    """Compiled code would read there: whose model it is must not matter."""
    pruned = {"n_kept": 2, "pairs": (1, 0, 2, 1), "shapes": ((5, 4), (2, 4))}
    for whole in (
        {},
        pruned,
        {"longest": 0, "word_run": 1, "buckets": 0, "shapes": ((3, 4), (2, 4))},
    ):
        assert FastTextModel(written(**whole)).top(pa.array(["a b cd"])) == (["x"], [0.50001])
    with pytest.raises(DataError, match="the fastText model is damaged"):
        read_fasttext(written(**damage))


def test_a_text_of_which_the_model_knows_nothing_has_no_label(lid):
    found = read_fasttext(shared_data(LID).read_bytes())
    model = FastTextModel.__new__(FastTextModel)
    model._model = found.__class__(**{**vars(found), "input": found.input._replace(end_of_text=-1)})
    names, scores = model.top(pa.array(["", "some text"]))
    assert (names[0], scores[0]) == ("", 0.0)
    assert names[1]
    assert np.isfinite(scores[1])
