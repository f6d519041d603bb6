from __future__ import annotations

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models

from llm.config_tokenizer import TokenizerConfig
from llm.text_stream import TextStream
from llm.tokenizer import Tokenizer, train_tokenizer

TEXTS = ["the quick abc brown fox, über 狐 and 🦊🦊 ends; the END. the end"] * 3


def trained(kind: str) -> Tokenizer:
    size = 200 if kind == "characters" else 300
    config = TokenizerConfig(kind=kind, vocab_size=size)  # type: ignore[arg-type]
    return Tokenizer.from_bytes(train_tokenizer(TEXTS, config))


BPE, CHARACTERS = trained("bpe"), trained("characters")


def byte_fallback() -> Tokenizer:
    """SentencePiece's way: a space is dropped at the beginning, unknown characters are bytes."""
    pieces = ["<|endoftext|>", "<unk>", "▁", "b", *(f"<0x{i:02X}>" for i in range(256))]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    model = models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return Tokenizer(tokenizer)


FALLBACK = byte_fallback()


def told(tokenizer: Tokenizer, prompt: list[int], ids: list[int], *stop: str) -> list[str]:
    stream = TextStream(tokenizer, prompt, stop)
    pieces = []
    for token in ids:
        pieces.append(stream.push(token))
        if stream.stopped:
            return pieces
    return [*pieces, stream.end()]


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_the_pieces_are_the_text_whatever_the_tokens(data: st.DataObject) -> None:
    """Random ids: reserved ones, stray bytes and halves of characters among them."""
    tokenizer = data.draw(st.sampled_from([BPE, CHARACTERS]))
    ids = st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30)
    prompt, following = data.draw(ids), data.draw(ids)
    before = tokenizer.decode(prompt).rstrip("\ufffd")
    pieces = told(tokenizer, prompt, following)
    assert before + "".join(pieces) == tokenizer.decode(prompt + following)


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="ab é狐🦊", max_size=20), st.text(alphabet="ab é狐🦊", max_size=20))
def test_characters_that_are_several_tokens_come_whole(prompt: str, following: str) -> None:
    for tokenizer, space in ((BPE, " "), (FALLBACK, "▁")):
        before, after = (
            tokenizer._tokenizer.encode(text.replace(" ", space)).ids
            for text in ("b" + prompt, following)
        )
        assert "".join(told(tokenizer, before, after)) == following


def test_a_piece_is_told_as_soon_as_it_is_certain() -> None:
    ids = [int(i) for i in CHARACTERS.encode_batch(["the end"])[0]]
    assert told(CHARACTERS, [0], ids) == [*"the end", ""]
    assert told(CHARACTERS, [0], ids, "nd!") == ["t", "h", "e", " ", "e", "", "", "nd"]


@pytest.mark.parametrize("tokenizer", [BPE, CHARACTERS], ids=["bpe", "characters"])
@pytest.mark.parametrize(
    "stop, expected",
    [
        (["END"], "fox ends; the "),
        (["; the E"], "fox ends"),
        (["🦊", "END"], "fox ends; the "),
        (["fox"], ""),
        (["never"], "fox ends; the END 🦊."),
        (["🦊."], "fox ends; the END "),
        (["ends; the", "nds"], "fox e"),
    ],
)
def test_a_text_ends_before_its_stop_string_wherever_tokens_part(
    stop: list[str], expected: str, tokenizer: Tokenizer
) -> None:
    ids = [int(i) for i in tokenizer.encode_batch(["fox ends; the END 🦊."])[0]]
    assert "".join(told(tokenizer, [0], ids, *stop)) == expected


@settings(max_examples=200, deadline=None)
@given(
    st.text(alphabet="abc", max_size=20),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=3), min_size=1, max_size=3),
)
def test_the_stop_string_that_is_complete_first_counts(text: str, stop: list[str]) -> None:
    """By definition: read until the text ends in a stop string, and cut the longest that it is."""
    expected = text
    for end in range(len(text) + 1):
        if found := [one for one in stop if text[:end].endswith(one)]:
            expected = text[: end - max(map(len, found))]
            break
    ids = [int(i) for i in CHARACTERS.encode_batch([text])[0]]
    assert "".join(told(CHARACTERS, [0], ids, *stop)) == expected
