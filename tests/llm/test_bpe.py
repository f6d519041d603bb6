from __future__ import annotations

import gzip
import json
from functools import cache

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.bpe import Bpe, split_words, train_bpe
from llm.bpe_fast import to_bytes
from llm.config_tokenizer import TokenizerConfig
from llm.errors import ConfigError
from llm.tokenizer import train_tokenizer
from tests.shared_data import shared_data

few_letters = st.lists(st.text("ab c", max_size=30), min_size=1, max_size=6)
any_text = st.lists(st.text(max_size=40), min_size=1, max_size=6)
random_bytes = st.lists(
    st.binary(max_size=60).map(lambda body: body.decode("latin-1")), min_size=1, max_size=6
)


def by_library(
    texts: list[str], vocab_size: int, min_frequency: int = 2
) -> tuple[tokenizers.Tokenizer, int]:
    """What Hugging Face's library learns, and how many of its ids are reserved."""
    config = TokenizerConfig(vocab_size=vocab_size, min_frequency=min_frequency, n_spare_tokens=0)
    body = train_tokenizer(texts, config)
    made = tokenizers.Tokenizer.from_str(body.decode())
    made.encode_special_tokens = True
    return made, len(config.reserved_tokens)


def assert_same(ours: Bpe, library: tokenizers.Tokenizer, n_reserved: int) -> None:
    """The same tokens by id, and the same pairs in the same order."""
    file = json.loads(library.to_str())["model"]
    vocabulary = {i: to_bytes(token) for token, i in file["vocab"].items() if i >= n_reserved}
    assert dict(enumerate(ours.tokens[n_reserved:], n_reserved)) == vocabulary
    merges = [(ours.tokens[left], ours.tokens[right]) for left, right in ours.merges]
    assert merges == [(to_bytes(left), to_bytes(right)) for left, right in file["merges"]]


@cache
def shakespeare() -> list[str]:
    with gzip.open(shared_data("pretrain/tinyshakespeare.txt.gz"), "rt") as file:
        return file.read().split("\n\n")


@cache
def sentences() -> list[str]:
    """A sentence in twenty of each of 75 languages."""
    with gzip.open(shared_data("lid/lingua-sentences-even.jsonl.gz"), "rt") as file:
        return [json.loads(line)["text"] for line in file][::20]


@pytest.mark.parametrize("vocab_size", [2048, 8192])
def test_shakespeare_is_learned_and_encoded_as_by_the_library(vocab_size: int) -> None:
    texts = shakespeare()
    library, n_reserved = by_library(texts, vocab_size)
    ours = train_bpe(texts, vocab_size, n_reserved=n_reserved)
    assert len(ours.tokens) == vocab_size
    assert_same(ours, library, n_reserved)
    for text in texts[::50]:
        assert ours.encode(text) == library.encode(text).ids
        assert ours.decode(ours.encode(text)) == text


def test_many_languages_are_learned_and_encoded_as_by_the_library() -> None:
    texts = sentences()
    library, n_reserved = by_library(texts, 4096)
    ours = train_bpe(texts, 4096, n_reserved=n_reserved)
    assert_same(ours, library, n_reserved)
    for text in texts[::10]:
        assert ours.encode(text) == library.encode(text).ids
        assert ours.decode(ours.encode(text)) == text


@settings(max_examples=300, deadline=None)
@given(few_letters | any_text | random_bytes, st.integers(1, 3), any_text)
def test_any_texts_are_learned_and_encoded_as_by_the_library(
    texts: list[str], min_frequency: int, others: list[str]
) -> None:
    """Few letters make long runs of one, and many pairs that are equally frequent."""
    library, n_reserved = by_library(texts, 300, min_frequency)
    ours = train_bpe(texts, 300, min_frequency=min_frequency, n_reserved=n_reserved)
    assert_same(ours, library, n_reserved)
    for text in texts + others:
        assert ours.encode(text) == library.encode(text).ids
        assert ours.decode(ours.encode(text)) == text


def test_the_first_merges_are_those_of_the_textbook() -> None:
    """Of aaabdaaabac: aa; then ab, whose ids are lower than those of aa + a, which is as frequent;
    then both together."""
    made = train_bpe(["aaabdaaabac"], 259, min_frequency=1)
    assert list(made.tokens[256:]) == [b"aa", b"ab", b"aaab"]
    assert [made.tokens[i] for i in made.encode("aaabdaaabac")] == [
        b"aaab", b"d", b"aaab", b"a", b"c",
    ]  # fmt: skip


def test_a_reserved_token_cannot_be_spelled() -> None:
    made = train_bpe(shakespeare()[:50], 300, n_reserved=4)
    assert min(made.encode("<|endoftext|>")) >= 4
    assert made.decode([0, 1, *made.encode("worm"), 3]) == "worm"


def test_words_joined_are_the_text() -> None:
    text = "It's 1887:\n\n  the mill's wheel   turns — наша мельница тоже"
    assert "".join(split_words(text)) == text


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(ConfigError, match="need 260"):
        train_bpe(["a"], 259, n_reserved=4)
