"""A recurrent network with gates (Cho et al. 2014): a state that is carried from token to token."""

from __future__ import annotations

import torch
from torch import Tensor

from llm.decoder import Embedding, Linear, Role, initialize
from llm.ladder.rung import Rung


class Gru(Rung):
    """One layer. What it remembers of a window's beginning it has carried through every token
    since, one after the other: so it cannot be computed for all positions at once."""

    def __init__(self, vocab_size: int, width: int, seed: int = 0) -> None:
        super().__init__()
        self.width = 2 * width
        self.embed = Embedding(vocab_size, width)
        self.from_token = Linear(width, 3 * self.width, bias=True)
        self.from_state = Linear(self.width, 3 * self.width, bias=True)
        self.head = Linear(self.width, vocab_size, bias=True)
        initialize(self, seed, _spread)

    def forward(self, tokens_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        x_TBF = self.from_token(self.embed(tokens_BT)).transpose(0, 1)
        state_BD = x_TBF.new_zeros(len(tokens_BT), self.width)
        states = []
        for t, x_BF in enumerate(x_TBF):
            if documents_BT is not None and t:
                same_B1 = documents_BT[:, t, None] == documents_BT[:, t - 1, None]
                state_BD = state_BD * same_B1
            state_BD = self._next(x_BF, state_BD)
            states.append(state_BD)
        return self.head(torch.stack(states, dim=1))

    def _next(self, x_BF: Tensor, state_BD: Tensor) -> Tensor:
        """How much of the state the new one is made from, how much of it stays, and what is new."""
        reset_x, keep_x, new_x = x_BF.chunk(3, dim=-1)
        reset_s, keep_s, new_s = self.from_state(state_BD).chunk(3, dim=-1)
        reset_BD, keep_BD = (reset_x + reset_s).sigmoid(), (keep_x + keep_s).sigmoid()
        new_BD = (new_x + reset_BD * new_s).tanh()
        return torch.lerp(new_BD, state_BD, keep_BD)

    def roles(self) -> dict[str, Role]:
        return {
            "embed.weight": "embedding",
            "from_token.weight": "matrix",
            "from_token.bias": "vector",
            "from_state.weight": "matrix",
            "from_state.bias": "vector",
            "head.weight": "head",
            "head.bias": "vector",
        }


def _spread(name: str, parameter: Tensor) -> float:
    """Vectors of unit size, matrices that keep the size of their input, a uniform first guess."""
    if name == "embed.weight":
        return 1.0
    return parameter.shape[1] ** -0.5 if name.startswith("from_") and parameter.ndim == 2 else 0.0
