"""A tokenizer of whole words, to be read: the most frequent ones get an id, the rest are unknown.

The step below `llm.bpe`, and what it was invented against: a text with a word that training did
not see does not come back. Id for id what the WordLevel model of Hugging Face's tokenizers gives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from llm.bpe import split_words
from llm.config_tokenizer import UNKNOWN
from llm.errors import ConfigError

UNKNOWN_ID = 0


@dataclass(frozen=True)
class WordTokenizer:
    """Words by id. The first stands for every word that is none of the others."""

    words: tuple[str, ...]

    @cached_property
    def ids(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    def encode(self, text: str) -> list[int]:
        """An id for each word, with the space or sign before it."""
        return [self.ids.get(word, UNKNOWN_ID) for word in split_words(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """The words of `ids`; those that were unknown are lost, and stand as `<|unknown|>`."""
        return "".join(self.words[i] for i in ids)


def train_word_tokenizer(
    texts: Iterable[str], vocab_size: int, *, min_frequency: int = 1
) -> WordTokenizer:
    """The most frequent words of `texts`, the first by code points of those that are as frequent.

    `vocab_size` counts the unknown one too. Raises ConfigError where there is room for no other.
    """
    if vocab_size < 2:
        raise ConfigError(f"vocab_size is {vocab_size}: choose 2 or more, for one word at least")
    counted = Counter(word for text in texts for word in split_words(text))
    ordered = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    frequent = [word for word, count in ordered if count >= min_frequency]
    return WordTokenizer((UNKNOWN, *frequent[: vocab_size - 1]))
