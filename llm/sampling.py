"""How one token is drawn from a model's logits: the settings of a request, and their arithmetic.

The settings mean what they mean in transformers, and act in its order: penalty, temperature,
`top_k`, `top_p`, `min_p`.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from llm.config import Config
from llm.errors import DataError

StopString = Annotated[str, Field(min_length=1)]


class SamplingConfig(Config):
    """How one text is continued. As it stands: drawn from the model's own probabilities."""

    max_new_tokens: int = Field(default=200, ge=0)
    """Tokens to add at most; 200, a paragraph or two, is our choice."""
    temperature: float = Field(default=1.0, ge=0)
    """What logits are divided by. 1 draws from the model's own probabilities; 0 takes the
    likeliest token and draws nothing."""
    top_k: int = Field(default=0, ge=0)
    """Draw from the k likeliest tokens (Fan et al. 2018); 0: from all."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw from the fewest likeliest tokens that together have this probability (nucleus sampling,
    Holtzman et al. 2020); 1: from all."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    """Draw from tokens that have at least this share of the likeliest one's probability (Nguyen et
    al. 2024, who use 0.05 to 0.1); 0: from all."""
    repetition_penalty: float = Field(default=1.0, gt=0)
    """What the logits of tokens that the prompt or the text has already are divided by where they
    are positive, and multiplied by where negative (Keskar et al. 2019, who use 1.2); 1: none."""
    stop: tuple[StopString, ...] = ()
    """Strings before which the text ends."""
    stop_tokens: tuple[int, ...] = ()
    """Ids before which the text ends, besides the tokenizer's end of text."""
    logprobs: int | None = Field(default=None, ge=0)
    """Tell the log-probability of each token, and of this many likeliest ones beside it; None:
    tell none."""
    seed: int = Field(default=0, ge=0)
    """Where the draws begin. The same seed gives the same text, whatever is made beside it."""


def scores(logits_V: Tensor, seen_V: Tensor | None, config: SamplingConfig) -> Tensor:
    """Logits after the penalty on tokens in `seen_V` (booleans) and the temperature, if not 0."""
    if seen_V is not None and config.repetition_penalty != 1:
        penalty = config.repetition_penalty
        penalized_V = torch.where(logits_V < 0, logits_V * penalty, logits_V / penalty)
        logits_V = torch.where(seen_V, penalized_V, logits_V)
    return logits_V / config.temperature if config.temperature not in (0, 1) else logits_V


def probabilities(scores_V: Tensor, config: SamplingConfig) -> Tensor:
    """What to draw from: `top_k`, then `top_p` of what is left, then `min_p` of that.

    Sums to one. The likeliest token is always left. Of equally likely ones, `top_k` keeps all that
    are level with the k-th, and `top_p` those of lower id first.
    """
    if 0 < config.top_k < len(scores_V):
        least = scores_V.topk(config.top_k).values[-1]
        scores_V = scores_V.masked_fill(scores_V < least, -torch.inf)
    probabilities_V = scores_V.softmax(-1)
    if config.top_p < 1:
        # A token in the nucleus has more than 1 - top_p at and after it, in at most V shares that
        # are no larger than its own: what has less than its part of that need not be sorted.
        least_share = (1 - config.top_p) / len(probabilities_V)
        (candidates,) = (probabilities_V >= least_share).nonzero(as_tuple=True)
        sorted_V, order_V = probabilities_V[candidates].sort(descending=True, stable=True)
        within = sorted_V.cumsum(-1) - sorted_V < config.top_p
        within[0] = True
        kept = candidates[order_V[within]]
        probabilities_V = torch.zeros_like(probabilities_V).index_copy(0, kept, sorted_V[within])
    if config.min_p > 0:
        low = probabilities_V < config.min_p * probabilities_V.max()
        probabilities_V = probabilities_V.masked_fill(low, 0.0)
    return probabilities_V / probabilities_V.sum()


def sample(
    logits_V: Tensor,
    generator: torch.Generator,
    config: SamplingConfig,
    seen_V: Tensor | None = None,
) -> int:
    """One token id. Raises DataError where the scores are no finite numbers."""
    scores_V = scores(logits_V, seen_V, config)
    if not (highest := scores_V.max()).isfinite():
        raise DataError(
            f"the highest score of a next token is {highest}: the model's weights are damaged, or "
            f"a temperature of {config.temperature:g} or a repetition_penalty of "
            f"{config.repetition_penalty:g} is too close to 0"
        )
    if config.temperature == 0:
        return int(scores_V.argmax())
    sums_V = probabilities(scores_V, config).cumsum(-1, dtype=torch.float64)
    # One number instead of `multinomial`'s V; at a border the token after it, which has a share.
    at = torch.rand(1, dtype=torch.float64, generator=generator) * sums_V[-1]
    return int(torch.searchsorted(sums_V, at, right=True))
