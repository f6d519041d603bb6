"""Tokenizers: trained here or brought from outside, always held as one `tokenizer.json`.

- Four kinds are trained: byte-level BPE, byte-level Unigram and WordPiece, and single characters.
- Training depends on the texts alone: not on their order, the run or the number of threads. Only
  Unigram's does, so that the file it gives is held and never made again.
- Reserved tokens have the first ids and are out of reach of text: a page that spells
  `<|endoftext|>` gets the tokens of its letters, so no document can forge a boundary.
- The same file loads in transformers; that of byte-level BPE also in vLLM and llama.cpp.
- Text is encoded by tiktoken where it provably gives the same ids (`llm.bpe_fast`), and else by
  the library that the file is of.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from llm.bpe_fast import WORD_PATTERN, FastBpe, fast_bpe
from llm.config_tokenizer import END_OF_TEXT, UNKNOWN, TokenizerConfig
from llm.errors import ConfigError, DataError

# Bytes of a word, above which WordPiece does not try.
LONGEST_WORD = 1000


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> bytes:
    """Learns a tokenizer from `texts` and returns its `tokenizer.json`: equal texts, equal bytes,
    but for `unigram`.

    Raises ConfigError when there are more characters than `vocab_size` holds.
    """
    train = {
        "bpe": _train_bpe,
        "unigram": _train_unigram,
        "wordpiece": _train_wordpiece,
        "characters": _train_characters,
    }[config.kind]
    return train(texts, config).to_str(pretty=False).encode()


def _train_bpe(texts: Iterable[str], config: TokenizerConfig) -> tokenizers.Tokenizer:
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=list(config.reserved_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _train_unigram(texts: Iterable[str], config: TokenizerConfig) -> tokenizers.Tokenizer:
    """A unigram language model of pieces (Kudo 2018) over the bytes that BPE works on, instead of
    characters: there is no text that it cannot spell. The library's trainer gives another file
    each time, with one thread too."""
    tokenizer = _byte_level(models.Unigram())
    trainer = trainers.UnigramTrainer(
        vocab_size=config.vocab_size,
        special_tokens=list(config.reserved_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _train_wordpiece(texts: Iterable[str], config: TokenizerConfig) -> tokenizers.Tokenizer:
    """The longest piece first (Wu et al. 2016), over bytes, and without the `##` before what
    continues a word, so that all bytes are pieces everywhere: any text comes back, but for words
    of over 1,000 bytes, which are unknown. (Longest first takes time with the square of a word's
    length; the library's own limit of 100 would lose many a sentence written without spaces.)"""
    model = models.WordPiece(unk_token=UNKNOWN, max_input_chars_per_word=LONGEST_WORD)
    tokenizer = _byte_level(model)
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=[*config.reserved_tokens, UNKNOWN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        continuing_subword_prefix="",
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _byte_level(model: models.Model) -> tokenizers.Tokenizer:
    """An untrained tokenizer whose pieces are of the bytes of words."""
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _train_characters(texts: Iterable[str], config: TokenizerConfig) -> tokenizers.Tokenizer:
    """BPE without merges: every character is a word's symbol, an unseen one is unknown."""
    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    reserved = [*config.reserved_tokens, UNKNOWN]
    tokens = reserved + sorted(characters)
    if len(tokens) > config.vocab_size:
        raise ConfigError(
            f"vocab_size is {config.vocab_size}, but the texts hold {len(characters)} different "
            f'characters; set it to at least {len(tokens)}, or kind to "bpe"'
        )
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges=[], unk_token=UNKNOWN))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in reserved])
    return tokenizer


class Tokenizer:
    """Text to token ids and back. Made by `from_bytes`, and not changed after."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        """Raises DataError when the tokenizer has no `<|endoftext|>`."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # Spelled out, a reserved token is plain text.
        self._tokenizer = tokenizer
        eot_id = tokenizer.token_to_id(END_OF_TEXT)
        if eot_id is None:
            raise DataError(
                f"the tokenizer has no token {END_OF_TEXT}, which separates documents; "
                "add it to its added_tokens as a special token"
            )
        self.eot_id: int = eot_id

    @classmethod
    def from_bytes(cls, body: bytes) -> Tokenizer:
        """Reads a `tokenizer.json`. Raises DataError when it is not one."""
        try:
            return cls(tokenizers.Tokenizer.from_str(body.decode()))
        except DataError:
            raise
        except Exception as error:  # The library raises plain Exception.
            raise DataError(
                f"not a tokenizer.json of Hugging Face's tokenizers: {error}"
            ) from error

    @cached_property
    def vocab_size(self) -> int:
        """The number of ids: one more than the largest, so that a model has a row for each."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def known_ids(self) -> frozenset[int]:
        """The ids that have a token."""
        return frozenset(self._tokenizer.get_vocab(with_added_tokens=True).values())

    @cached_property
    def special_ids(self) -> dict[str, int]:
        """The tokens that text cannot produce, by name, in order of id."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {token.content: i for i, token in sorted(added.items()) if token.special}

    @cached_property
    def unknown_id(self) -> int | None:
        """The id of what the tokenizer cannot spell, where there is such a thing."""
        model = json.loads(self._tokenizer.to_str())["model"]
        if model["type"] == "Unigram":
            number: int | None = model["unk_id"]
            return number
        return self._tokenizer.token_to_id(model["unk_token"]) if model["unk_token"] else None

    @cached_property
    def fast(self) -> FastBpe | None:
        """tiktoken's encoder of the same ids, where there is one."""
        return fast_bpe(self._tokenizer)

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """The token ids of each text as uint32, without any special token.

        Raises DataError when a text is not valid Unicode (it holds a lone surrogate).
        """
        _check_unicode(texts)
        if self.fast is None:
            return list(self._encode(texts))
        encoded = [self.fast.encode(text) for text in texts]
        others = self._encode(
            [text for text, ids in zip(texts, encoded, strict=True) if ids is None]
        )
        return [next(others) if ids is None else ids for ids in encoded]

    def _encode(self, texts: Sequence[str]) -> Iterator[npt.NDArray[np.uint32]]:
        for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False):
            yield np.array(encoding.ids, dtype=np.uint32)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special tokens appear by name, broken UTF-8 as U+FFFD."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

    def token_bytes(self) -> np.ndarray:
        """How many UTF-8 bytes each token stands for, as int64 by id; special tokens have 0.

        The sum over a text's tokens is the text's size, unless an unknown token is among them
        or a normalizer changed the text. Raises DataError for other kinds of decoder.
        """
        decoder = json.loads(self._tokenizer.to_str())["decoder"]
        if decoder is None or decoder["type"] not in ("ByteLevel", "Fuse"):
            raise DataError(f"expected a ByteLevel or Fuse decoder in the tokenizer, not {decoder}")
        # In a byte-level vocabulary each character of a token stands for one byte.
        byte_level = decoder["type"] == "ByteLevel"
        sizes = np.zeros(self.vocab_size, dtype=np.int64)
        for token, i in self._tokenizer.get_vocab(with_added_tokens=False).items():
            sizes[i] = len(token) if byte_level else len(token.encode())
        for i, added in self._tokenizer.get_added_tokens_decoder().items():
            sizes[i] = 0 if added.special else len(added.content.encode())
        return sizes


def _check_unicode(texts: Sequence[str]) -> None:
    for place, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"text {place} of {len(texts)} is not valid Unicode: it holds half of a surrogate "
                "pair; decode its source as UTF-8 with errors replaced"
            ) from error
