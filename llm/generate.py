"""Text from a model, one token at a time, for a batch of prompts of unequal lengths."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from llm.decoder import Decoder, KVCache
from llm.errors import DataError


@torch.inference_mode()
def generate(
    model: Decoder,
    prompt_tokens: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | Sequence[int] = 0,
    stop_tokens: Collection[int] = (),
) -> list[list[int]]:
    """What the model adds to each prompt: at most `max_new_tokens` ids, without the prompt.

    A row ends before the first of `stop_tokens`, which is left out: so a row shorter than
    `max_new_tokens` is one that stopped. Temperature 0 takes the likeliest token and draws nothing.

    Each row draws from a generator of its own, begun at its own seed (or at the one seed given),
    so that what a prompt gets does not depend on the prompts beside it.

    Past `context_length` the model sees the last `context_length` tokens, encoded anew for each
    token, since their positions all move by one: a token then costs a whole window.

    Raises DataError for an empty prompt, an id outside the vocabulary, or seeds that are not one
    for each prompt.
    """
    _check_prompts(model, prompt_tokens)
    seeds = [seed] * len(prompt_tokens) if isinstance(seed, int) else list(seed)
    if len(seeds) != len(prompt_tokens):
        raise DataError(f"{len(seeds)} seeds for {len(prompt_tokens)} prompts: give one for each")
    generators = [torch.Generator().manual_seed(row_seed) for row_seed in seeds]
    texts = [list(prompt) for prompt in prompt_tokens]
    continuations: list[list[int]] = [[] for _ in texts]
    reader = _Reader(model, max_new_tokens)
    going = list(range(len(texts))) if max_new_tokens > 0 else []
    while going:
        logits = reader.next_logits({row: texts[row] for row in going})
        still_going = []
        for row, logits_V in zip(going, logits, strict=True):
            token = sample(logits_V, generators[row], temperature, top_k, top_p)
            if token in stop_tokens:
                continue
            texts[row].append(token)
            continuations[row].append(token)
            if len(continuations[row]) < max_new_tokens:
                still_going.append(row)
        going = still_going
    return continuations


def sample(
    logits_V: Tensor, generator: torch.Generator, temperature: float, top_k: int, top_p: float
) -> int:
    """One token id: temperature first, then `top_k`, then `top_p` of what is left.

    `top_k` 0 keeps every token. `top_p` keeps the fewest likeliest tokens whose probabilities reach
    it (nucleus sampling, Holtzman et al. 2020), never fewer than one.
    """
    if temperature == 0:
        return int(logits_V.argmax())
    return int(
        torch.multinomial(filtered(logits_V / temperature, top_k, top_p), 1, generator=generator)
    )


def filtered(logits_V: Tensor, top_k: int, top_p: float) -> Tensor:
    """Probabilities after `top_k` and `top_p`, summing to one."""
    if 0 < top_k < len(logits_V):
        least = logits_V.topk(top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < least, -torch.inf)
    probabilities_V = logits_V.softmax(-1)
    if top_p < 1:
        sorted_V, order_V = probabilities_V.sort(descending=True, stable=True)
        before_V = sorted_V.cumsum(-1) - sorted_V
        beyond = before_V >= top_p
        beyond[0] = False
        probabilities_V = probabilities_V.index_fill(0, order_V[beyond], 0.0)
    return probabilities_V / probabilities_V.sum()


def _check_prompts(model: Decoder, prompt_tokens: Sequence[Sequence[int]]) -> None:
    for number, prompt in enumerate(prompt_tokens):
        if not prompt:
            raise DataError(f"prompt {number} is empty: begin it with the end-of-text token")
        if not 0 <= min(prompt) <= max(prompt) < model.config.vocab_size:
            raise DataError(
                f"prompt {number} has ids from {min(prompt)} to {max(prompt)}, but the model knows "
                f"0 to {model.config.vocab_size - 1}: use the tokenizer it was trained with"
            )


class _Reader:
    """Next-token logits of growing texts, through a cache as long as the context has room."""

    def __init__(self, model: Decoder, max_new_tokens: int) -> None:
        self.model = model
        self.max_new_tokens = max_new_tokens
        self.device = model.embed_tokens.weight.device
        self.cache: KVCache | None = None
        self.cached: list[int] = []

    def next_logits(self, texts: dict[int, list[int]]) -> Tensor:
        """[len(texts), V] on the CPU in fp32. A text has grown by one token since the last call."""
        if self.cache is None:
            self.cache = self._new_cache(texts)
            return self._encode(texts, self.cache)
        context = self.model.config.context_length
        short = {
            row: text for row, text in texts.items() if row in self.cached and len(text) <= context
        }
        full = {row: text for row, text in texts.items() if row not in short}
        logits: dict[int, Tensor] = {}
        if short:
            logits.update(zip(short, self._step(short, self.cache), strict=True))
        if full:
            logits.update(zip(full, self._encode(full), strict=True))
        return torch.stack([logits[row] for row in texts])

    def _new_cache(self, texts: dict[int, list[int]]) -> KVCache:
        self.cached = list(texts)
        longest = max(map(len, texts.values())) + self.max_new_tokens
        capacity = min(longest, self.model.config.context_length)
        weight = self.model.embed_tokens.weight
        return KVCache(self.model.config, len(texts), capacity, like=weight)

    def _encode(self, texts: dict[int, list[int]], cache: KVCache | None = None) -> Tensor:
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

    def _step(self, texts: dict[int, list[int]], cache: KVCache) -> Tensor:
        """Read the newest token of each text after what the cache holds of it."""
        if list(texts) != self.cached:
            places = [self.cached.index(row) for row in texts]
            cache.keep(torch.tensor(places, device=self.device))
            self.cached = list(texts)
        tokens_B1 = torch.tensor([[text[-1]] for text in texts.values()], device=self.device)
        return self.model(tokens_B1, cache)[:, -1].float().cpu()
