"""Bigrams: the next token as likely as it was after the same token before. Counted, and learned."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.config_optim import OptimConfig
from llm.data import Prepared
from llm.decoder import Embedding, Role
from llm.errors import ConfigError
from llm.ladder.rung import Rung

MOST_TOKENS = 8192
"""Largest vocabulary: a table of its square takes a quarter of a GiB, and learning it four."""

STRENGTHS = tuple(2.0**power for power in range(-6, 15))
"""Of the prior, from next to nothing to more than most tokens are seen."""

HELD_OUT = 0.1
"""Share of the training split that the strength is chosen on."""

_CHUNK = 1 << 22  # Pairs counted at a time.

Counts = npt.NDArray[np.int64]


class CountBigram(Rung):
    """Counted in one pass: nothing is learned by gradient."""

    def __init__(self, probabilities_VV: npt.NDArray[np.float64]) -> None:
        super().__init__()
        log_VV = torch.from_numpy(np.log(probabilities_VV).astype(np.float32))
        self.log_VV = nn.Parameter(log_VV, requires_grad=False)

    def forward(self, tokens_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        return F.embedding(tokens_BT, self.log_VV)

    def roles(self) -> dict[str, Role]:
        return {"log_VV": "embedding"}


def count_bigram(train: Prepared, vocab_size: int) -> CountBigram:
    """Counts the pairs of a split, the `<|endoftext|>` before each document among them.

    A token's counts are joined by a prior in the proportions of single tokens: the more often it
    was seen, the less that matters (MacKay and Peto 1995). How strong the prior is, is chosen on
    the last tenth of the split, given the counts of the rest.
    """
    check_table(vocab_size)
    tokens_S = train.tokens_S
    cut = max(2, round(len(tokens_S) * (1 - HELD_OUT)))
    counts_VV = _count_pairs(tokens_S[:cut], vocab_size)
    held_out_VV = _count_pairs(tokens_S[cut - 1 :], vocab_size)
    costs = [_nats(counts_VV, held_out_VV, strength) for strength in STRENGTHS]
    strength = STRENGTHS[int(np.argmin(costs))]
    return CountBigram(_smoothed(counts_VV + held_out_VV, strength))


def check_table(vocab_size: int) -> None:
    """Raises ConfigError for a vocabulary whose pairs make no table."""
    if vocab_size > MOST_TOKENS:
        raise ConfigError(
            f"a vocabulary of {vocab_size:,} has {vocab_size**2:,} pairs, too many for a table of "
            f"a bigram: at most {MOST_TOKENS:,} tokens can be climbed from; try the text by "
            "characters, with --text"
        )


def _count_pairs(tokens_S: np.ndarray, vocab_size: int) -> Counts:
    """[V, V]: how often each token follows each."""
    counts = np.zeros(vocab_size**2, np.int64)
    for first in range(0, len(tokens_S) - 1, _CHUNK):
        chunk = tokens_S[first : first + _CHUNK + 1].astype(np.int64)
        pairs, times = np.unique(chunk[:-1] * vocab_size + chunk[1:], return_counts=True)
        counts[pairs] += times
    return counts.reshape(vocab_size, vocab_size)


def _prior(counts_VV: Counts) -> npt.NDArray[np.float64]:
    """[V]: each token's share, as if each had been seen once more (Laplace)."""
    counts_V = counts_VV.sum(0) + 1
    return counts_V / counts_V.sum()


def _smoothed(counts_VV: Counts, strength: float) -> npt.NDArray[np.float64]:
    totals_V1 = counts_VV.sum(1, keepdims=True)
    return (counts_VV + strength * _prior(counts_VV)) / (totals_V1 + strength)


def _nats(counts_VV: Counts, held_out_VV: Counts, strength: float) -> float:
    """What the held-out pairs cost, in all."""
    first, second = held_out_VV.nonzero()
    seen = counts_VV[first, second] + strength * _prior(counts_VV)[second]
    probabilities = seen / (counts_VV.sum(1)[first] + strength)
    return -float(held_out_VV[first, second] @ np.log(probabilities))


class NeuralBigram(Rung):
    """The same table learned from random batches (Karpathy's makemore, part 1): a network of one
    layer, whose input is the last token alone. It begins with all tokens equally likely."""

    optim = OptimConfig(optimizer="adamw", embedding_learning_rate=0.03, warmup_steps=0)

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        check_table(vocab_size)
        self.table = Embedding(vocab_size, vocab_size)
        nn.init.zeros_(self.table.weight)

    def forward(self, tokens_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        return self.table(tokens_BT)

    def roles(self) -> dict[str, Role]:
        return {"table.weight": "embedding"}
