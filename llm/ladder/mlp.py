"""A network over the last few tokens at once (Bengio et al. 2003; Karpathy's makemore, part 2)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from llm.decoder import Embedding, Linear, Role, initialize
from llm.ladder.rung import Rung

N_TOKENS = 8
"""Tokens that it sees; makemore's, from part 5 on."""


class Mlp(Rung):
    """Tokens become vectors that lie side by side, one hidden layer mixes them."""

    def __init__(self, vocab_size: int, width: int, seed: int = 0) -> None:
        super().__init__()
        self.nothing = vocab_size
        """Id that stands where there is no token yet."""
        self.embed = Embedding(vocab_size + 1, width)
        self.hidden = Linear(N_TOKENS * width, 2 * width, bias=True)
        self.head = Linear(2 * width, vocab_size, bias=True)
        initialize(self, seed, _spread)

    def forward(self, tokens_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        seen_BTn = _last(tokens_BT, self.nothing)
        if documents_BT is not None:
            same_BTn = _last(documents_BT, -1) == documents_BT[:, :, None]
            seen_BTn = seen_BTn.where(same_BTn, self.nothing)
        x_BTF = self.hidden(self.embed(seen_BTn).flatten(2)).tanh()
        return self.head(x_BTF)

    def roles(self) -> dict[str, Role]:
        return {
            "embed.weight": "embedding",
            "hidden.weight": "matrix",
            "hidden.bias": "vector",
            "head.weight": "head",
            "head.bias": "vector",
        }


def _last(x_BT: Tensor, before: int) -> Tensor:
    """[B, T, n]: each position's own and those before it, `before` where the window begins."""
    return F.pad(x_BT, (N_TOKENS - 1, 0), value=before).unfold(1, N_TOKENS, 1)


def _spread(name: str, parameter: Tensor) -> float:
    """Vectors of unit size, a hidden layer that tanh neither squashes nor passes on as it is
    (He et al. 2015), a first guess that is uniform."""
    if name == "embed.weight":
        return 1.0
    return 5 / 3 * parameter.shape[1] ** -0.5 if name == "hidden.weight" else 0.0
