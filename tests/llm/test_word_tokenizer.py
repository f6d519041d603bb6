from __future__ import annotations

import gzip

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, models, pre_tokenizers, trainers

from llm.bpe_fast import WORD_PATTERN
from llm.config_tokenizer import UNKNOWN
from llm.errors import ConfigError
from llm.word_tokenizer import train_word_tokenizer
from tests.shared_data import shared_data

some_texts = st.lists(st.text("ab,\n 1ü", max_size=30) | st.text(max_size=20), max_size=6)


def by_library(texts: list[str], vocab_size: int, min_frequency: int) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated")
    trainer = trainers.WordLevelTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[UNKNOWN],
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    made.encode_special_tokens = True
    return made


def assert_same(texts: list[str], others: list[str], vocab_size: int, min_frequency: int) -> None:
    library = by_library(texts, vocab_size, min_frequency)
    ours = train_word_tokenizer(texts, vocab_size, min_frequency=min_frequency)
    assert ours.ids == library.get_vocab()
    for text in texts + others:
        assert ours.encode(text) == library.encode(text).ids


@settings(max_examples=200, deadline=None)
@given(some_texts, some_texts, st.integers(2, 12), st.integers(1, 3))
def test_any_texts_are_learned_and_encoded_as_by_the_library(
    texts: list[str], others: list[str], vocab_size: int, min_frequency: int
) -> None:
    assert_same(texts, others, vocab_size, min_frequency)


def test_shakespeare_is_learned_and_encoded_as_by_the_library() -> None:
    with gzip.open(shared_data("pretrain/tinyshakespeare.txt.gz"), "rt") as file:
        texts = file.read().split("\n\n")
    cut = len(texts) * 9 // 10
    assert_same(texts[:cut], texts[cut:], 5000, 2)


def test_a_known_text_comes_back_and_an_unknown_word_does_not() -> None:
    made = train_word_tokenizer(["the worm turns, the soil turns"], 20)
    assert made.decode(made.encode("the soil turns, the worm")) == "the soil turns, the worm"
    assert made.decode(made.encode("the mill turns")) == f"the{UNKNOWN} turns"


def test_a_vocabulary_without_room_for_a_word_is_refused() -> None:
    with pytest.raises(ConfigError, match="choose 2 or more"):
        train_word_tokenizer(["a"], 1)
