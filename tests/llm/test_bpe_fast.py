"""tiktoken over the same merges: equal to `tokenizers` on every text, or not used."""

from __future__ import annotations

import gzip
import json
from functools import cache
from typing import Any

import pytest
import tiktoken
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers

from llm.bpe_fast import (
    _WINDOW,
    GPT2_PATTERN,
    ONE_DIGIT_PATTERN,
    WORD_PATTERN,
    FastBpe,
    byte_characters,
    fast_bpe,
)
from llm.config_tokenizer import TokenizerConfig
from llm.tokenizer import train_tokenizer
from tests.bench import inputs
from tests.shared_data import shared_data

PATTERNS = (WORD_PATTERN, ONE_DIGIT_PATTERN, GPT2_PATTERN)

TEXTS = [
    "It's 1887, the miller'S wheel turns;\n\n  and turns\t again.",
    "Die Mühle am Fluß mahlt Körner; наша мельница тоже. 水车在转动 🌾🌾 १२३४",
    "for i in range(10):\n    print(i, 'grain')\r\n\r\n",
    "aaaa aaa aa abab ababab baba aabaabaab",
] * 3

# What the patterns distinguish, and what Unicode has of it far from ASCII.
MARKS = ["'", "s", "S", "ſ", "LL", "k", "\u212a", " ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u3000"]
MARKS += [
    "\u2028",
    "\x85",
    "\x1c",
    "1",
    "٣",
    "Ⅷ",
    "²",
    ".",
    "—",
    "\u0301",
    "水",
    "🌾",
    "\U00010d50",
]
texts = st.lists(st.text() | st.sampled_from([*MARKS, "aab", "aba", "wheel"])).map("".join)


def trained(pattern: str = WORD_PATTERN) -> tokenizers.Tokenizer:
    """A tokenizer with 300 merges, split by one of the patterns."""
    body = train_tokenizer(TEXTS, TokenizerConfig(vocab_size=576, min_frequency=1))
    tokenizer = tokenizers.Tokenizer.from_str(body.decode())
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    tokenizer.encode_special_tokens = True
    return tokenizer


def fast_of(tokenizer: tokenizers.Tokenizer) -> FastBpe:
    fast = fast_bpe(tokenizer)
    assert fast is not None
    return fast


def changed(tokenizer: tokenizers.Tokenizer, **model: Any) -> tokenizers.Tokenizer:
    file = json.loads(tokenizer.to_str())
    file["model"] |= model
    return tokenizers.Tokenizer.from_str(json.dumps(file))


SLOW = {pattern: trained(pattern) for pattern in PATTERNS}
FAST = {pattern: fast_of(slow) for pattern, slow in SLOW.items()}


def same(slow: tokenizers.Tokenizer, fast: FastBpe, some: list[str]) -> bool:
    expected = slow.encode_batch_fast(some, add_special_tokens=False)
    for text, one in zip(some, expected, strict=True):
        ids = fast.encode(text)
        if ids is None or ids.tolist() != one.ids:
            return False
    return True


@pytest.mark.parametrize("pattern", PATTERNS)
@given(texts)
def test_any_text_gets_the_tokens_of_tokenizers(pattern: str, text: str) -> None:
    assert same(SLOW[pattern], FAST[pattern], [text])


@given(st.binary())
def test_random_bytes_get_the_tokens_of_tokenizers(body: bytes) -> None:
    for text in (body.decode("utf-8", "replace"), body.decode("latin-1")):
        assert same(SLOW[WORD_PATTERN], FAST[WORD_PATTERN], [text])


@cache
def real_texts() -> list[str]:
    for name in ("lid/lingua-sentences-even.jsonl.gz", "pretrain/sotu-before-1960.jsonl.gz"):
        shared_data(name)
    return inputs.multilingual(1.5) + inputs.english(0.5) + inputs.web_text(0.5)


def test_real_text_in_75_languages_gets_the_tokens_of_tokenizers() -> None:
    texts = real_texts()
    body = train_tokenizer(texts[::10], TokenizerConfig(vocab_size=8192))
    slow = tokenizers.Tokenizer.from_str(body.decode())
    slow.encode_special_tokens = True
    assert len(texts) > 500
    assert same(slow, fast_of(slow), texts)


@pytest.mark.slow
def test_ten_megabytes_of_real_text_get_the_tokens_of_tokenizers_with_32k_tokens() -> None:
    texts = inputs.multilingual(5) + inputs.english(4) + inputs.web_text(3)
    assert inputs.size_mb(texts) > 10
    body = train_tokenizer(texts[::2], TokenizerConfig(vocab_size=32000))
    slow = tokenizers.Tokenizer.from_str(body.decode())
    slow.encode_special_tokens = True
    fast = fast_of(slow)
    for start in range(0, len(texts), 200):
        assert same(slow, fast, texts[start : start + 200])


# The planes of Unicode that hold letters, digits or spaces, or may take some; then the rest.
PLANES_IN_USE = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x40000)]))
OTHER_PLANES = "".join(map(chr, range(0x40000, 0x110000)))


@pytest.mark.parametrize(
    "characters",
    [PLANES_IN_USE, pytest.param(OTHER_PLANES, marks=pytest.mark.slow)],
    ids=["planes in use", "other planes"],
)
@pytest.mark.parametrize("one", [r"\p{L}", r"\p{N}", r"\s", "(?i:s|t|re|ve|m|ll|d)"])
def test_both_regex_engines_mean_the_same_characters(one: str, characters: str) -> None:
    """On every code point; a new version of either library may know newer letters."""
    split = pre_tokenizers.Split(Regex(f"(?:{one})+"), behavior="removed")
    others = {c for piece, _ in split.pre_tokenize_str(characters) for c in piece}
    single_bytes = {bytes([byte]): byte for byte in range(256)}
    engine = tiktoken.Encoding("x", pat_str=one, mergeable_ranks=single_bytes, special_tokens={})
    found = bytes(engine.encode_ordinary(characters)).decode()
    assert set(found) == set(characters) - others
    assert bool(found) == (characters == PLANES_IN_USE)


@pytest.mark.parametrize("space", [" ", "\t", "\u3000", "\n "])
def test_white_space_without_end_is_left_to_tokenizers(space: str) -> None:
    run = space * (1_200_000 // len(space))
    for text in (run, run + "x", "x" + run + "x"):
        assert FAST[WORD_PATTERN].encode(text) is None


def test_all_that_the_pattern_takes_for_white_space_is_looked_for() -> None:
    space = pre_tokenizers.Split(Regex(r"\S+"), behavior="removed")
    spaces = "".join(piece for piece, _ in space.pre_tokenize_str(PLANES_IN_USE))
    assert len(spaces) == 25  # Unicode's White_Space.
    assert spaces.isspace()


def test_as_much_white_space_as_is_let_through_does_not_stop_the_engine() -> None:
    """The longest run that can hide between two windows."""
    run = "x" + " " * (2 * _WINDOW - 2) + "x"
    assert same(SLOW[WORD_PATTERN], FAST[WORD_PATTERN], [run, run.replace(" ", "\u3000")])


def test_a_single_long_word_does_not_take_time_with_its_square() -> None:
    for word in ("a" * 300_000, "🌾" * 100_000, "'" * 300_000, "ab" * 150_000):
        assert same(SLOW[WORD_PATTERN], FAST[WORD_PATTERN], [word])


def test_the_characters_of_bytes_are_those_of_gpt2() -> None:
    assert sorted(byte_characters()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = json.loads(gzip.decompress(shared_data("tokenizer/gpt2-vocab.json.gz").read_bytes()))
    # Its first 256 ids are the bytes from "!" on, then those from "¡", then the rest.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    order = printable + [byte for byte in range(256) if byte not in printable]
    assert [vocab[byte_characters()[byte]] for byte in order] == list(range(256))


def test_merges_in_all_ways_of_splitting_are_merges_of_one_token() -> None:
    """As Llama 3's file has them, with words taken from the vocabulary as they are."""
    slow = SLOW[WORD_PATTERN]
    model = json.loads(slow.to_str())["model"]
    made = [left + right for left, right in model["merges"]]
    known = set(byte_characters()) | set(made)
    every = [
        (token[:i], token[i:])
        for token in made
        for i in range(1, len(token))
        if token[:i] in known and token[i:] in known
    ]
    assert len(every) > len(made)
    for more in ({"merges": every}, {"merges": every, "ignore_merges": True}):
        alike = changed(slow, **more)
        alike.encode_special_tokens = True
        assert same(alike, fast_of(alike), real_texts()[:200] + TEXTS)


def test_merges_that_tiktoken_would_do_otherwise_are_left_to_tokenizers() -> None:
    letters = byte_characters()
    ids = {letter: i for i, letter in enumerate(letters)}

    def bpe(*merges: tuple[str, str], **options: Any) -> FastBpe | None:
        vocab = dict(ids)
        for left, right in merges:
            vocab.setdefault(left + right, len(vocab))
        tokenizer = tokenizers.Tokenizer(models.BPE(vocab, list(merges), **options))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return fast_bpe(tokenizer)

    assert bpe(("a", "b"), ("ab", "c")) is not None
    # "bc" comes first, so that "abc" is never made of "ab" and "c", but tiktoken makes it.
    assert bpe(("b", "c"), ("a", "b"), ("ab", "c")) is None
    # A token with two places in the order.
    assert bpe(("a", "b"), ("b", "c"), ("ab", "c"), ("x", "y"), ("a", "bc")) is None
    # A merge before its part: here the only one of its token, there one that can never be.
    assert bpe(("ab", "c"), ("a", "b")) is None
    assert bpe(("a", "b"), ("ab", "c"), ("a", "bc"), ("b", "c")) is not None
    assert bpe(("a", "b"), dropout=0.5) is None


def test_whatever_else_changes_the_text_is_left_to_tokenizers() -> None:
    def with_(**parts: Any) -> FastBpe | None:
        tokenizer = trained()
        for name, part in parts.items():
            setattr(tokenizer, name, part)
        return fast_bpe(tokenizer)

    def sequence(*steps: pre_tokenizers.PreTokenizer) -> pre_tokenizers.Sequence:
        return pre_tokenizers.Sequence(list(steps))

    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated")
    assert with_(pre_tokenizer=sequence(split, bytes_)) is not None
    assert with_(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False)) is not None
    assert with_(normalizer=normalizers.NFC()) is None
    assert with_(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)) is None
    assert with_(pre_tokenizer=bytes_) is None
    assert with_(pre_tokenizer=sequence(pre_tokenizers.Digits(), split, bytes_)) is None
    removed = pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="removed")
    assert with_(pre_tokenizer=sequence(removed, bytes_)) is None
    other = pre_tokenizers.Split(Regex(r"\w+|\s+|."), behavior="isolated")
    assert with_(pre_tokenizer=sequence(other, bytes_)) is None
    word = trained()
    word.add_tokens([AddedToken("wheel", normalized=False)])
    assert fast_bpe(word) is None
