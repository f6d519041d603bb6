"""Byte-pair encoding, to be read: what `llm.tokenizer` leaves to a library, in some hundred lines.

Text is cut into words, and a word is bytes. Learning looks for the pair of neighbours that occurs
most often, makes a token of it wherever it stands, and begins again (Gage 1994; Sennrich et al.
2016; over bytes: Radford et al. 2019). Encoding repeats what was learned, in the order in which it
was learned. In the spirit of karpathy/minbpe, and token for token what Hugging Face's tokenizers
does with the same text, down to which of two equally frequent pairs comes first.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

from tokenizers import Regex, pre_tokenizers

from llm.bpe_fast import WORD_PATTERN, byte_characters
from llm.config_tokenizer import N_BYTES
from llm.errors import ConfigError

Pair = tuple[int, int]

# By the library's regex engine: Python's `regex` knows letters of a later Unicode.
_WORDS = pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated")

# Bytes have the first ids after the reserved tokens, in the order of the characters that stand for
# them in a tokenizer.json.
_BYTES_IN_ORDER = sorted(range(N_BYTES), key=byte_characters().__getitem__)


def split_words(text: str) -> list[str]:
    """The words of a text, each with the space or sign before it: joined, they are the text."""
    return [word for word, _ in _WORDS.pre_tokenize_str(text)]


@dataclass(frozen=True)
class Bpe:
    """What was learned: all that encoding and decoding need."""

    tokens: tuple[bytes, ...]
    """The bytes of each id. Reserved tokens come first and are empty: they stand for no text."""
    merges: dict[Pair, int]
    """What each pair becomes: ids that rise in the order in which the pairs were learned."""

    @cached_property
    def byte_ids(self) -> dict[int, int]:
        """The id of each single byte."""
        return {token[0]: i for i, token in enumerate(self.tokens) if len(token) == 1}

    def encode(self, text: str) -> list[int]:
        """The ids of a text, word by word. No text spells a reserved token."""
        return [token for word in split_words(text) for token in self._encode_word(word)]

    def _encode_word(self, word: str) -> list[int]:
        """The bytes of a word, with the pair that was learned first merged until none is left."""
        ids = [self.byte_ids[byte] for byte in word.encode()]
        while learned := [self.merges[pair] for pair in pairwise(ids) if pair in self.merges]:
            first = min(learned)
            place = next(
                i for i, pair in enumerate(pairwise(ids)) if self.merges.get(pair) == first
            )
            ids[place : place + 2] = [first]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are no UTF-8 as U+FFFD."""
        return b"".join(self.tokens[i] for i in ids).decode(errors="replace")


def train_bpe(
    texts: Iterable[str], vocab_size: int, *, min_frequency: int = 2, n_reserved: int = 0
) -> Bpe:
    """Learns the tokens of `texts`: `n_reserved` empty ones, 256 bytes, then merges while there is
    room and a pair that occurs `min_frequency` times.

    Raises ConfigError for a `vocab_size` that does not hold the bytes.
    """
    if vocab_size < n_reserved + N_BYTES:
        raise ConfigError(
            f"vocab_size is {vocab_size}, but {N_BYTES} bytes and {n_reserved} reserved tokens "
            f"need {n_reserved + N_BYTES}: choose that or more"
        )
    tokens = [b""] * n_reserved + [bytes([byte]) for byte in _BYTES_IN_ORDER]
    ids = {byte: i for i, byte in enumerate(_BYTES_IN_ORDER, n_reserved)}
    counted = Counter(word for text in texts for word in split_words(text))
    words = [[ids[byte] for byte in word.encode()] for word in counted]
    pairs = _Pairs(words, list(counted.values()))

    # No two pairs come to the same bytes: what is between two borders that no merge has crossed is
    # split alike wherever it stands, so that the first merge that joins it joins all of it.
    merges: dict[Pair, int] = {}
    while len(tokens) < vocab_size:
        most = pairs.pop_most_frequent()
        if most is None or most.count < min_frequency:
            break
        left, right = most.pair
        merges[most.pair] = len(tokens)
        pairs.merge(most, len(tokens))
        tokens.append(tokens[left] + tokens[right])
    return Bpe(tuple(tokens), merges)


@dataclass(frozen=True, order=True)
class _Found:
    """A pair in the queue: the most frequent is the smallest, then the one of the lowest ids."""

    minus_count: int
    pair: Pair
    places: frozenset[int] = field(compare=False)
    """Numbers of the words that hold it."""

    @property
    def count(self) -> int:
        return -self.minus_count


class _Pairs:
    """How often each two neighbours occur, kept up to date from merge to merge.

    Only the words that hold a merged pair are looked at. A count in the queue may be too high by
    now: it is corrected when it comes to the top.
    """

    def __init__(self, words: list[list[int]], counts: Sequence[int]) -> None:
        self.words, self.word_counts = words, counts
        self.counts: Counter[Pair] = Counter()
        self.queue: list[_Found] = []
        places: defaultdict[Pair, set[int]] = defaultdict(set)
        for i, word in enumerate(words):
            for pair in pairwise(word):
                self.counts[pair] += counts[i]
                places[pair].add(i)
        self._push(places)

    def _push(self, places: Mapping[Pair, set[int]]) -> None:
        for pair, where in places.items():
            if self.counts[pair] > 0:
                heapq.heappush(self.queue, _Found(-self.counts[pair], pair, frozenset(where)))

    def pop_most_frequent(self) -> _Found | None:
        """The next pair to merge; None where no pair is left."""
        while self.queue:
            top = heapq.heappop(self.queue)
            now = self.counts[top.pair]
            if top.count == now:
                return top
            heapq.heappush(self.queue, _Found(-now, top.pair, top.places))
        return None

    def merge(self, found: _Found, token: int) -> None:
        """Puts `token` in the place of the pair, and counts what has new neighbours."""
        places: defaultdict[Pair, set[int]] = defaultdict(set)
        for i in found.places:
            for pair, change in _merge(self.words[i], found.pair, token):
                self.counts[pair] += change * self.word_counts[i]
                if change > 0:
                    places[pair].add(i)
        self._push(places)


def _merge(word: list[int], pair: Pair, token: int) -> list[tuple[Pair, int]]:
    """Merges a pair in a word, from left to right; which pairs come (1) and go (-1) by it.

    That the pair itself goes is not said: it has left the queue.
    """
    changes, i = [], 0
    while i < len(word) - 1:
        if (word[i], word[i + 1]) == pair:
            word[i : i + 2] = [token]
            if i > 0:
                changes += [((word[i - 1], pair[0]), -1), ((word[i - 1], token), 1)]
            if i < len(word) - 1:
                changes += [((pair[1], word[i + 1]), -1), ((token, word[i + 1]), 1)]
        i += 1
    return changes
