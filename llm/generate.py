"""Text from a model, one token at a time, for a batch of prompts of unequal lengths.

Each prompt has settings and a seed of its own, and what it gets does not depend on the prompts
beside it: rows are padded out of each other's sight and drawn from generators of their own. The
arithmetic of a product may differ in its last bits with the number of its rows, though, so that
between two tokens that are level to six digits the choice may fall otherwise in a larger batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from llm.decode import OneText, can_decode
from llm.decoder import Decoder, KVCache
from llm.errors import ConfigError, DataError
from llm.sampling import SamplingConfig, sample
from llm.text_stream import TextStream
from llm.tokenizer import Tokenizer

Finish = Literal["stop", "length"]
"""Why a text ended: at a stop, or at `max_new_tokens`."""


@dataclass(frozen=True)
class Piece:
    """What one step adds to one text."""

    row: int
    """Which prompt it follows."""
    token: int | None
    """None where the text ended before a stop token."""
    text: str
    """Characters that are certain now; "" without a tokenizer."""
    logprob: float | None = None
    """Natural logarithm of the token's probability in the model itself, before any setting."""
    likeliest: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens and their log-probabilities, the likeliest first."""
    finish: Finish | None = None
    """Set on the last piece of a text."""


@dataclass(frozen=True)
class Completion:
    """What followed one prompt."""

    tokens: tuple[int, ...]
    """Without stop tokens, but with those that make up a stop string."""
    text: str
    """Ends before the stop string. "" without a tokenizer."""
    finish: Finish
    logprobs: tuple[float, ...]
    """Of each token, where they were asked for."""
    likeliest: tuple[tuple[tuple[int, float], ...], ...]
    """The likeliest tokens in the place of each, likewise."""


def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    settings: SamplingConfig | Sequence[SamplingConfig],
    tokenizer: Tokenizer | None = None,
) -> list[Completion]:
    """What the model adds to each prompt. Arguments and errors as of `stream`."""
    pieces: list[list[Piece]] = [[] for _ in prompts]
    for piece in stream(model, prompts, settings, tokenizer):
        pieces[piece.row].append(piece)
    return [_joined(row) for row in pieces]


def _joined(pieces: Sequence[Piece]) -> Completion:
    return Completion(
        tokens=tuple(piece.token for piece in pieces if piece.token is not None),
        text="".join(piece.text for piece in pieces),
        finish=(pieces[-1].finish if pieces else None) or "length",
        logprobs=tuple(piece.logprob for piece in pieces if piece.logprob is not None),
        likeliest=tuple(piece.likeliest for piece in pieces if piece.logprob is not None),
    )


@torch.inference_mode()
def stream(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    settings: SamplingConfig | Sequence[SamplingConfig],
    tokenizer: Tokenizer | None = None,
) -> Iterator[Piece]:
    """Continues every prompt (token ids), and yields each token as it comes: row by row, in steps.

    `settings` are one for all prompts, or one for each. With a tokenizer, pieces have text, stop
    strings are found, a text ends before the end-of-text token, and `unwritten_ids` are never
    drawn. The model is in evaluation mode meanwhile.

    Past `context_length` the model sees the last `context_length` tokens, encoded anew for each
    token, since their positions all move by one: a token then costs a whole window.

    Raises DataError for an empty prompt, an id outside the vocabulary, settings that are not one
    for each prompt, or scores that are no numbers; ConfigError for stop strings without a
    tokenizer.
    """
    _check_prompts(model, prompts)
    each = [settings] * len(prompts) if isinstance(settings, SamplingConfig) else list(settings)
    if len(each) != len(prompts):
        raise DataError(f"{len(each)} settings for {len(prompts)} prompts: give one for each")
    vocab_size = model.config.vocab_size
    banned_V = None
    if tokenizer is not None:
        banned_V = torch.zeros(vocab_size, dtype=torch.bool)
        banned_V[unwritten_ids(tokenizer, vocab_size)] = True
    rows = [_Row(*row, vocab_size, tokenizer, banned_V) for row in zip(prompts, each, strict=True)]
    reader = _Reader(model, max((one.max_new_tokens for one in each), default=0))
    going = {number: row for number, row in enumerate(rows) if row.settings.max_new_tokens > 0}
    was_training = model.training
    model.eval()
    try:
        while going:
            logits = reader.next_logits({number: row.tokens for number, row in going.items()})
            for (number, row), logits_V in zip(list(going.items()), logits, strict=True):
                piece = row.step(number, logits_V)
                yield piece
                if piece.finish:
                    del going[number]
    finally:
        model.train(was_training)


def prompt_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text as training saw one begin: after the end of another."""
    return [tokenizer.eot_id, *map(int, tokenizer.encode_batch([text])[0])]


def unwritten_ids(tokenizer: Tokenizer, vocab_size: int) -> list[int]:
    """Ids below `vocab_size` that no text has, so that training never rewarded them: reserved
    tokens but end of text, the unknown one, and ids without a token."""
    special = set(tokenizer.special_ids.values()) | {tokenizer.unknown_id}
    known = tokenizer.known_ids - (special - {tokenizer.eot_id})
    return sorted(set(range(vocab_size)) - known)


def _check_prompts(model: Decoder, prompts: Sequence[Sequence[int]]) -> None:
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise DataError(f"prompt {number} is empty: begin it with the end-of-text token")
        if not 0 <= min(prompt) <= max(prompt) < model.config.vocab_size:
            raise DataError(
                f"prompt {number} has ids from {min(prompt)} to {max(prompt)}, but the model knows "
                f"0 to {model.config.vocab_size - 1}: use the tokenizer it was trained with"
            )


class _Row:
    """One prompt, what follows it by now, and what its next token depends on."""

    def __init__(
        self,
        prompt: Sequence[int],
        settings: SamplingConfig,
        vocab_size: int,
        tokenizer: Tokenizer | None,
        banned_V: Tensor | None,
    ) -> None:
        if settings.stop and tokenizer is None:
            raise ConfigError(f"stop strings {settings.stop} need a tokenizer to be found by")
        self.tokens = list(prompt)
        self.settings = settings
        self.end = len(prompt) + settings.max_new_tokens
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.banned_V = banned_V
        self.stop_tokens = set(settings.stop_tokens)
        self.text: TextStream | None = None
        if tokenizer is not None:
            self.stop_tokens.add(tokenizer.eot_id)
            self.text = TextStream(tokenizer, self.tokens, settings.stop)
        self.seen_V: Tensor | None = None
        if settings.repetition_penalty != 1:
            self.seen_V = torch.zeros(vocab_size, dtype=torch.bool)
            self.seen_V[self.tokens] = True

    def step(self, number: int, logits_V: Tensor) -> Piece:
        """Draws a token and adds it."""
        allowed_V = logits_V
        if self.banned_V is not None:
            allowed_V = logits_V.masked_fill(self.banned_V, -torch.inf)
        token = sample(allowed_V, self.generator, self.settings, self.seen_V)
        if token in self.stop_tokens:
            return Piece(number, None, self._rest(), finish="stop")
        self.tokens.append(token)
        if self.seen_V is not None:
            self.seen_V[token] = True
        text = self.text.push(token) if self.text else ""
        finish: Finish | None = "length" if len(self.tokens) == self.end else None
        if finish:
            text += self._rest()
        if self.text and self.text.stopped:
            finish = "stop"
        return Piece(number, token, text, *self._logprobs(logits_V, token), finish)

    def _rest(self) -> str:
        return self.text.end() if self.text else ""

    def _logprobs(
        self, logits_V: Tensor, token: int
    ) -> tuple[float | None, tuple[tuple[int, float], ...]]:
        if self.settings.logprobs is None:
            return None, ()
        logprobs_V = logits_V.log_softmax(-1)
        top = logprobs_V.topk(min(self.settings.logprobs, len(logprobs_V)))
        likeliest = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        return float(logprobs_V[token]), tuple(likeliest)


class _Reader:
    """Next-token logits of growing texts, through a cache as long as the context has room."""

    def __init__(self, model: Decoder, max_new_tokens: int) -> None:
        self.model = model
        self.max_new_tokens = max_new_tokens
        self.device = model.embed_tokens.weight.device
        self.cached: list[int] = []
        self.cache: KVCache | OneText

    def next_logits(self, texts: Mapping[int, list[int]]) -> Tensor:
        """[len(texts), V] on the CPU in fp32. A text has grown by one token since the last call."""
        if not self.cached:
            return self._begin(texts)
        context = self.model.config.context_length
        short = {
            row: text for row, text in texts.items() if row in self.cached and len(text) <= context
        }
        full = {row: text for row, text in texts.items() if row not in short}
        logits: dict[int, Tensor] = {}
        if short:
            logits.update(zip(short, self._step(short), strict=True))
        if full:
            logits.update(zip(full, self._encode(full), strict=True))
        return torch.stack([logits[row] for row in texts])

    def _begin(self, texts: Mapping[int, list[int]]) -> Tensor:
        """Read the prompts; a single one goes on in fewer operations, where the model can."""
        self.cached = list(texts)
        longest = max(map(len, texts.values())) + self.max_new_tokens
        capacity = min(longest, self.model.config.context_length)
        weight = self.model.embed_tokens.weight
        self.cache = cache = KVCache(self.model.config, len(texts), capacity, like=weight)
        logits = self._encode(texts, cache)
        if len(texts) == 1 and can_decode(self.model):
            self.cache = OneText(self.model, cache)
        return logits

    def _encode(self, texts: Mapping[int, list[int]], cache: KVCache | None = None) -> Tensor:
        """Read the last window of each text from its beginning, into the cache if there is one."""
        windows = [text[-self.model.config.context_length :] for text in texts.values()]
        longest = max(map(len, windows))
        padded = [window + [0] * (longest - len(window)) for window in windows]
        lengths_B = torch.tensor([len(window) for window in windows], device=self.device)
        x_BTD = self.model.hidden(torch.tensor(padded, device=self.device), cache)
        if cache is not None:
            cache.lengths_B = lengths_B
        rows_B = torch.arange(len(windows), device=self.device)
        return self.model.logits(x_BTD[rows_B, lengths_B - 1]).float().cpu()

    def _step(self, texts: Mapping[int, list[int]]) -> Tensor:
        """Read the newest token of each text after what the cache holds of it."""
        newest = [text[-1] for text in texts.values()]
        if isinstance(self.cache, OneText):
            return self.cache.next_logits(newest[0])[None]
        if list(texts) != self.cached:
            places = [self.cached.index(row) for row in texts]
            self.cache.keep(torch.tensor(places, device=self.device))
            self.cached = list(texts)
        tokens_B1 = torch.tensor(newest, device=self.device)[:, None]
        return self.model(tokens_B1, self.cache)[:, -1].float().cpu()
