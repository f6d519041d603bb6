from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import regex
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from llm.bpe_fast import WORD_PATTERN
from llm.config_tokenizer import RESERVED, UNKNOWN, TokenizerConfig
from llm.errors import ConfigError, DataError
from llm.tokenizer import LONGEST_WORD, Tokenizer, train_tokenizer
from tests.shared_data import shared_data

TEXTS = [
    "The wheel turns, the river runs, and the miller's wheel turns again.\n\nIt's 1887.",
    "Die Mühle am Fluß mahlt Körner; наша мельница тоже. 水车在转动 🌾🌾",
    "for i in range(10):\n    print(i, 'grain')\n",
] * 3
SMALL = TokenizerConfig(vocab_size=400)
RESERVED_NAMES = SMALL.reserved_tokens

BPE = Tokenizer.from_bytes(train_tokenizer(TEXTS, SMALL))
CHARACTERS = Tokenizer.from_bytes(train_tokenizer(TEXTS, TokenizerConfig(kind="characters")))
UNIGRAM = Tokenizer.from_bytes(
    train_tokenizer(TEXTS, TokenizerConfig(kind="unigram", vocab_size=300))
)
WORDPIECE = Tokenizer.from_bytes(
    train_tokenizer(TEXTS, TokenizerConfig(kind="wordpiece", vocab_size=400))
)
BYTE_LEVEL = (BPE, UNIGRAM, WORDPIECE)

texts_with_reserved = st.lists(st.sampled_from(RESERVED_NAMES) | st.text()).map("".join)


def shakespeare() -> list[str]:
    with gzip.open(shared_data("pretrain/tinyshakespeare.txt.gz"), "rt") as file:
        return file.read().split("\n\n")


def sentences() -> list[str]:
    """One sentence in twenty of each of 75 languages."""
    with gzip.open(shared_data("lid/lingua-sentences-even.jsonl.gz"), "rt") as file:
        return [json.loads(line)["text"] for line in file][::20]


def gpt2() -> Tokenizer:
    vocab = json.loads(gzip.decompress(shared_data("tokenizer/gpt2-vocab.json.gz").read_bytes()))
    lines = gzip.decompress(shared_data("tokenizer/gpt2-merges.txt.gz").read_bytes()).decode()
    merges = [tuple(line.split(" ")) for line in lines.split("\n")[1:] if line]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    return Tokenizer.from_bytes(tokenizer.to_str().encode())


@given(st.lists(texts_with_reserved, max_size=4))
def test_what_is_learnt_from_bytes_gives_any_text_back(texts: list[str]) -> None:
    for tokenizer in BYTE_LEVEL:
        assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(texts)] == texts


def test_wordpiece_gives_back_all_but_words_of_over_1000_bytes() -> None:
    long, longer = "水" * (LONGEST_WORD // 3), "x" * (LONGEST_WORD + 1)
    one, other = WORDPIECE.encode_batch([long, f"a {longer} b"])
    assert WORDPIECE.decode(one) == long
    assert WORDPIECE.special_ids[UNKNOWN] in other
    assert WORDPIECE.decode(other) == f"a{UNKNOWN} b"


@given(texts_with_reserved)
def test_no_text_spells_a_reserved_token(text: str) -> None:
    for tokenizer in (*BYTE_LEVEL, CHARACTERS):
        forbidden = set(tokenizer.special_ids.values()) - {tokenizer.special_ids.get(UNKNOWN)}
        assert not forbidden & set(tokenizer.encode_batch([text])[0].tolist())


@given(texts_with_reserved)
def test_the_bytes_of_the_tokens_add_up_to_the_bytes_of_the_text(text: str) -> None:
    for tokenizer in BYTE_LEVEL:
        ids = tokenizer.encode_batch([text])[0]
        assert tokenizer.token_bytes()[ids].sum() == len(text.encode())


@given(st.text(alphabet=sorted(set("".join(TEXTS)))))
def test_characters_give_back_any_text_of_known_characters(text: str) -> None:
    ids = CHARACTERS.encode_batch([text])[0]
    assert len(ids) == len(text)
    assert CHARACTERS.decode(ids) == text
    assert CHARACTERS.token_bytes()[ids].sum() == len(text.encode())


@pytest.mark.parametrize("tokenizer", [*BYTE_LEVEL, CHARACTERS])
def test_reserved_tokens_have_the_first_ids_whatever_the_corpus(tokenizer: Tokenizer) -> None:
    names = list(tokenizer.special_ids)
    assert names[:4] == list(RESERVED)
    assert names[: len(RESERVED_NAMES)] == list(RESERVED_NAMES)
    assert list(tokenizer.special_ids.values()) == list(range(len(names)))
    assert tokenizer.eot_id == 0
    assert tokenizer.token_bytes()[: len(names)].sum() == 0
    assert tokenizer.decode([0, 2]) == "<|endoftext|><|user|>"


def test_characters_are_sorted_by_code_point_after_the_reserved_tokens() -> None:
    known = "".join(sorted(set("".join(TEXTS))))
    first = len(RESERVED_NAMES) + 1
    assert CHARACTERS.encode_batch([known])[0].tolist() == list(range(first, first + len(known)))
    assert CHARACTERS.vocab_size == first + len(known)


def test_a_character_never_seen_is_unknown() -> None:
    assert CHARACTERS.encode_batch(["ÿ"])[0].tolist() == [CHARACTERS.special_ids[UNKNOWN]]


def test_ids_are_uint32_and_an_empty_text_has_none() -> None:
    (ids,) = BPE.encode_batch([""])
    assert ids.dtype == np.uint32
    assert len(ids) == 0
    assert BPE.encode_batch([]) == []


TRAIN = """
import hashlib, json, sys
from llm.config_tokenizer import TokenizerConfig
from llm.tokenizer import train_tokenizer
texts = json.load(sys.stdin)
print(hashlib.sha256(train_tokenizer(texts, TokenizerConfig(vocab_size=2000))).hexdigest())
"""


def test_training_gives_the_same_bytes_in_any_run_order_and_number_of_threads() -> None:
    texts = shakespeare()
    here = train_tokenizer(iter(texts[::-1]), TokenizerConfig(vocab_size=2000))
    digests = {hashlib.sha256(here).hexdigest()}
    for threads in ("1", "2", "5"):
        child = subprocess.run(
            [sys.executable, "-c", TRAIN],
            input=json.dumps(texts),
            env=os.environ | {"RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true"},
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
        )
        digests.add(child.stdout.strip())
    assert len(digests) == 1


def naive_bpe(words: list[bytes], n_merges: int) -> list[tuple[bytes, bytes]]:
    """The merges by the book: the most frequent pair first, ties to the smaller pair of ids."""
    ids = {bytes([byte]): rank for rank, byte in enumerate(byte_of().values())}
    parts = [[bytes([byte]) for byte in word] for word in words]
    merges: list[tuple[bytes, bytes]] = []
    while len(merges) < n_merges:
        counts: dict[tuple[bytes, bytes], int] = {}
        for part in parts:
            for pair in pairwise(part):
                counts[pair] = counts.get(pair, 0) + 1
        best = min(counts, key=lambda pair: (-counts[pair], ids[pair[0]], ids[pair[1]]))
        if counts[best] < 2:
            break
        merges.append(best)
        ids.setdefault(best[0] + best[1], len(ids))
        parts = [merge(part, best) for part in parts]
    return merges


def merge(part: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    merged: list[bytes] = []
    i = 0
    while i < len(part):
        if tuple(part[i : i + 2]) == pair:
            merged.append(part[i] + part[i + 1])
            i += 2
        else:
            merged.append(part[i])
            i += 1
    return merged


def words_of(texts: list[str]) -> list[bytes]:
    return [word.encode() for text in texts for word in regex.findall(WORD_PATTERN, text)]


def byte_of() -> dict[str, int]:
    """GPT-2's map from characters of a byte-level vocabulary to bytes, in order of character."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [i for i in range(256) if i not in printable]
    return {chr(i): i for i in printable} | {chr(256 + k): i for k, i in enumerate(rest)}


def merges_of(body: bytes) -> list[tuple[bytes, bytes]]:
    table = byte_of()
    merges = json.loads(body)["model"]["merges"]
    return [(bytes(table[c] for c in a), bytes(table[c] for c in b)) for a, b in merges]


def test_training_merges_what_byte_pair_encoding_by_the_book_merges() -> None:
    texts = shakespeare()[:150]
    body = train_tokenizer(texts, TokenizerConfig(vocab_size=20 + 256 + 150))
    assert merges_of(body) == naive_bpe(words_of(texts), 150)


def test_encoding_equals_byte_pair_encoding_by_the_book_in_75_languages() -> None:
    body = train_tokenizer(shakespeare(), TokenizerConfig(vocab_size=1000))
    tokenizer, texts = Tokenizer.from_bytes(body), sentences()
    ranks = {pair: rank for rank, pair in enumerate(merges_of(body))}
    expected: dict[bytes, list[bytes]] = {}
    for word in set(words_of(texts)):
        part = [bytes([byte]) for byte in word]
        while pairs := [pair for pair in pairwise(part) if pair in ranks]:
            part = merge(part, min(pairs, key=ranks.__getitem__))
        expected[word] = part
    sizes = tokenizer.token_bytes()
    assert len(texts) > 500
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        parts = [len(part) for word in words_of([text]) for part in expected[word]]
        assert sizes[ids].tolist() == parts


def test_gpt2_from_its_own_files_encodes_as_openai_published() -> None:
    tokenizer = gpt2()
    # The example of OpenAI's tokenizer page and of the GPT-2 model card.
    assert tokenizer.encode_batch(["Hello world"])[0].tolist() == [15496, 995]
    assert tokenizer.encode_batch(["Replace me by any text you'd like."])[0].tolist() == [
        3041, 5372, 502, 416, 597, 2420, 345, 1549, 588, 13,
    ]  # fmt: skip
    assert (tokenizer.vocab_size, tokenizer.eot_id) == (50257, 50256)
    texts = sentences()
    encoded = tokenizer.encode_batch(texts)
    assert [tokenizer.decode(ids) for ids in encoded] == texts
    sizes = tokenizer.token_bytes()
    assert [sizes[ids].sum() for ids in encoded] == [len(text.encode()) for text in texts]


def test_a_tokenizer_from_outside_is_held_to_the_same_rules() -> None:
    body = gzip.decompress(shared_data("tokenizer/pythia-20B_tokenizer.json.gz").read_bytes())
    tokenizer = Tokenizer.from_bytes(body)
    assert tokenizer.special_ids == {"<|endoftext|>": 0, "<|padding|>": 1}
    assert tokenizer.vocab_size == 50277
    text = "a<|endoftext|>b" + " " * 40 + "c"
    (ids,) = tokenizer.encode_batch([text])
    assert 0 not in ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes()[ids].sum() == len(text)


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece", "characters"])
def test_transformers_loads_the_file_and_encodes_alike(tmp_path, kind: str) -> None:
    from transformers import PreTrainedTokenizerFast

    texts = [text for text in shakespeare()[:300] if text]
    body = train_tokenizer(texts, TokenizerConfig(kind=kind, vocab_size=1000))
    (tmp_path / "tokenizer.json").write_bytes(body)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.from_bytes(body)
    texts += ["a <|user|> b"]
    assert [ids.tolist() for ids in ours.encode_batch(texts)] == theirs(
        texts, add_special_tokens=False, split_special_tokens=True
    )["input_ids"]
    assert theirs("<|user|>", add_special_tokens=False)["input_ids"] == [
        ours.special_ids["<|user|>"]
    ]


def test_a_vocabulary_too_small_for_the_bytes_or_the_characters_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"vocab_size is 275, but .* at least 276"):
        TokenizerConfig(vocab_size=275)
    with pytest.raises(ValidationError, match=r"but wordpiece needs at least 277: .* 21 reserved"):
        TokenizerConfig(kind="wordpiece", vocab_size=276)
    with pytest.raises(ConfigError, match="3 different characters; set it to at least 24"):
        train_tokenizer(["abc"], TokenizerConfig(kind="characters", vocab_size=23))


def test_what_is_no_tokenizer_is_refused() -> None:
    with pytest.raises(DataError, match=r"not a tokenizer\.json"):
        Tokenizer.from_bytes(b"{}")
    plain = tokenizers.Tokenizer(models.BPE({"a": 0}, []))
    with pytest.raises(DataError, match=r"no token <\|endoftext\|>"):
        Tokenizer.from_bytes(plain.to_str().encode())


def test_a_text_with_half_a_surrogate_pair_is_named() -> None:
    with pytest.raises(DataError, match="text 1 of 2 is not valid Unicode"):
        BPE.encode_batch(["fine", "broken \ud800"])


def test_a_text_that_tiktoken_cannot_take_comes_in_its_place_among_the_others() -> None:
    texts = ["first", " " * 300_000 + "x", "last"]
    encoded = BPE.encode_batch(texts)
    assert BPE.fast is not None
    assert [BPE.decode(ids) for ids in encoded] == texts
    assert {ids.dtype for ids in encoded} == {np.dtype(np.uint32)}


def test_the_unknown_token_is_known_by_its_id() -> None:
    assert (BPE.unknown_id, UNIGRAM.unknown_id) == (None, None)
    assert CHARACTERS.unknown_id == CHARACTERS.special_ids[UNKNOWN]
    assert WORDPIECE.unknown_id == WORDPIECE.special_ids[UNKNOWN]


def test_sizes_of_tokens_that_are_no_bytes_are_refused() -> None:
    tokenizer = tokenizers.Tokenizer(models.BPE({"a": 0}, []))
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(DataError, match="expected a ByteLevel or Fuse decoder"):
        Tokenizer.from_bytes(tokenizer.to_str().encode()).token_bytes()
