"""What the models below the transformer have in common with it.

A rung takes the tokens that a `llm.decoder.Decoder` takes and gives what it gives: logits of the
next token, a loss in nats, the roles of its parameters. So the same step trains both, and the same
function evaluates them. Letters at the end of a tensor's name are `llm.decoder`'s.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from llm.config_optim import OptimConfig
from llm.decoder import IGNORED_TARGET, Role


class Rung(nn.Module, ABC):
    """A language model: the tokens so far to the next one's logits."""

    optim = OptimConfig(head_learning_rate=1e-2)
    """How it is best trained, as tried on tinyshakespeare by characters."""

    @abstractmethod
    def forward(self, tokens_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """Logits [B, T, V]: those at a position see no later token.

        `documents_BT` numbers the documents of a window, from 0 and never falling: what a position
        sees of the past is then its own document alone.
        """

    @abstractmethod
    def roles(self) -> dict[str, Role]:
        """What each parameter is, by its name in `named_parameters`."""

    def loss(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        reduction: Literal["mean", "sum", "none"] = "mean",
        documents_BT: Tensor | None = None,
    ) -> Tensor:
        """Cross-entropy in nats over targets other than -100, as `Decoder.loss`."""
        return F.cross_entropy(
            self(tokens_BT, documents_BT).flatten(0, 1).float(),
            targets_BT.flatten(),
            ignore_index=IGNORED_TARGET,
            reduction=reduction,
        )
