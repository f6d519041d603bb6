"""Tokenizers: trained here or brought from outside, always held as one `tokenizer.json`.

- Two kinds are trained: byte-level BPE, and single characters.
- Training depends on the texts alone: not on their order, the run or the number of threads.
- Reserved tokens have the first ids and are out of reach of text: a page that spells
  `<|endoftext|>` gets the tokens of its letters, so no document can forge a boundary.
- The same file loads in transformers, vLLM and llama.cpp.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from llm.config_tokenizer import END_OF_TEXT, UNKNOWN, TokenizerConfig
from llm.errors import ConfigError, DataError

# Where BPE may not merge across: contractions, words with the sign before them, up to three
# digits, runs of signs, line breaks, spaces. This is Llama 3's pattern (itself GPT-4's
# cl100k_base), verbatim, because serving stacks recognise it.
WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> bytes:
    """Learns a tokenizer from `texts` and returns its `tokenizer.json`: equal texts, equal bytes.

    Raises ConfigError when there are more characters than `vocab_size` holds.
    """
    train = {"bpe": _train_bpe, "characters": _train_characters}[config.kind]
    return train(texts, config).to_str(pretty=False).encode()


def _train_bpe(texts: Iterable[str], config: TokenizerConfig) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=list(config.reserved_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
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
    def special_ids(self) -> dict[str, int]:
        """The tokens that text cannot produce, by name, in order of id."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {token.content: i for i, token in sorted(added.items()) if token.special}

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The token ids of each text as uint32, without any special token.

        Raises DataError when a text is not valid Unicode (it holds a lone surrogate).
        """
        try:
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError as error:  # All the library says of a lone surrogate.
            raise DataError(
                f"text {_first_broken(texts)} of {len(texts)} is not valid Unicode: it holds half "
                "of a surrogate pair; decode its source as UTF-8 with errors replaced"
            ) from error
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

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


def _first_broken(texts: Sequence[str]) -> int | None:
    """The index of the first text that cannot be written as UTF-8."""
    surrogate = re.compile("[\ud800-\udfff]")
    return next((i for i, text in enumerate(texts) if surrogate.search(text)), None)
