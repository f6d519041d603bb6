"""What every family of decoder-only transformer has in common, from tokens to logits and loss.

Letters at the end of a tensor's name say its shape, here and in the families' modules:

    B  sequences in the batch        D  width of the residual stream    V  token ids
    T  positions in this call        F  hidden width of feed-forward    L  layers
    S  positions attended to         H  query heads, K key/value heads, E  width of a head
    N  experts
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llm.attention import attend, attention_weights
from llm.config_model import ModelConfig
from llm.errors import ConfigError, DataError

IGNORED_TARGET = -100
"""Target that counts for nothing in the loss (torch's own default)."""

Role = Literal["embedding", "head", "vector", "matrix", "experts"]
"""What a parameter is to an optimizer: `vector` is a norm, a bias or a number, `matrix` a 2-D one
inside a block, `experts` a 3-D stack of such matrices."""


class Linear(nn.Linear):
    """A matrix, which `initialize` fills: building draws no random numbers."""

    def __init__(self, width_in: int, width_out: int, bias: bool = False) -> None:
        super().__init__(width_in, width_out, bias=bias)

    def reset_parameters(self) -> None:
        pass


class Embedding(nn.Embedding):
    """One vector for each token id or position, which `initialize` fills."""

    def reset_parameters(self) -> None:
        pass


class KVCache:
    """Keys and values of the positions seen so far, for sequences that may differ in length.

    A position that `lengths_B` does not count is free: it is never attended to, and overwritten
    by the next call. So a batch of unequal prompts is encoded padded on the right, and `lengths_B`
    is then set to the prompts' own lengths.
    """

    def __init__(self, config: ModelConfig, batch_size: int, capacity: int, like: Tensor) -> None:
        shape = (batch_size, capacity, config.n_kv_heads, config.head_dim)
        self.keys_BSKE = [like.new_zeros(shape) for _ in range(config.n_layers)]
        self.values_BSKE = [like.new_zeros(shape) for _ in range(config.n_layers)]
        self.lengths_B = torch.zeros(batch_size, dtype=torch.long, device=like.device)

    def keep(self, rows: Tensor) -> None:
        """Forget every sequence but these, and put these in this order."""
        self.keys_BSKE = [keys[rows] for keys in self.keys_BSKE]
        self.values_BSKE = [values[rows] for values in self.values_BSKE]
        self.lengths_B = self.lengths_B[rows]


class Positions:
    """Where the tokens of one call stand and what they see, worked out once for all layers."""

    index_BT: Tensor
    """Position of each token in its document; [1, T] where all sequences have the same."""
    mask_B1TS: Tensor | None = None
    """Where a query may look; None: at its own position and those before it."""

    def __init__(
        self,
        tokens_BT: Tensor,
        context_length: int,
        cache: KVCache | None = None,
        documents_BT: Tensor | None = None,
    ) -> None:
        n_tokens, device = tokens_BT.shape[1], tokens_BT.device
        self.cache = cache
        self.weights_BHTS: list[Tensor] | None = None
        self.end = n_tokens if cache is None else n_tokens + int(cache.lengths_B.max())
        if self.end > context_length:
            raise DataError(
                f"a sequence of {self.end} tokens, but context_length is {context_length}: "
                f"give at most that many, or train with a longer context"
            )
        self.index_BT = torch.arange(n_tokens, device=device)[None]
        if cache is not None:
            self.rows_B1 = torch.arange(len(tokens_BT), device=device)[:, None]
            self.index_BT = cache.lengths_B[:, None] + self.index_BT
            index_S = torch.arange(self.end, device=device)
            self.mask_B1TS = (index_S <= self.index_BT[:, :, None])[:, None]
        elif documents_BT is not None:
            earlier_TS = torch.ones(n_tokens, n_tokens, dtype=torch.bool, device=device).tril()
            seen_BTS = (documents_BT[:, :, None] == documents_BT[:, None, :]) & earlier_TS
            self.mask_B1TS = seen_BTS[:, None]
            # A document is one piece: the tokens of it seen so far count its positions.
            self.index_BT = seen_BTS.sum(-1) - 1

    def attend(
        self, layer: int, q_BTHE: Tensor, k_BTKE: Tensor, v_BTKE: Tensor, dropout: float = 0.0
    ) -> Tensor:
        """A layer's heads side by side, [B, T, H * E], after what the cache holds of that layer."""
        k_BSKE, v_BSKE = self._extend(layer, k_BTKE, v_BTKE)
        if self.weights_BHTS is not None:
            self.weights_BHTS.append(attention_weights(q_BTHE, k_BSKE, self.mask_B1TS))
        return attend(q_BTHE, k_BSKE, v_BSKE, self.mask_B1TS, dropout).flatten(2)

    def _extend(self, layer: int, k_BTKE: Tensor, v_BTKE: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of everything to attend to: the cached positions, then this call's."""
        if self.cache is None:
            return k_BTKE, v_BTKE
        keys_BSKE, values_BSKE = self.cache.keys_BSKE[layer], self.cache.values_BSKE[layer]
        keys_BSKE[self.rows_B1, self.index_BT] = k_BTKE.type_as(keys_BSKE)
        values_BSKE[self.rows_B1, self.index_BT] = v_BTKE.type_as(values_BSKE)
        return keys_BSKE[:, : self.end], values_BSKE[:, : self.end]


class Decoder(nn.Module, ABC):
    """Tokens to logits. The same config and seed give the same bytes, whatever ran before."""

    def __init__(self, config: ModelConfig, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        if not config.vocab_size:
            raise ConfigError("vocab_size is 0: take it from the tokenizer before building a model")
        self.config = config
        self.checkpoint_activations = False
        """Whether a block keeps its input alone, and computes the rest again in the backward pass
        (Chen et al. 2016)."""
        self.embed_tokens = Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(blocks)
        self.lm_head = None if config.tie_embeddings else Linear(config.d_model, config.vocab_size)

    @abstractmethod
    def stream(self, tokens_BT: Tensor, positions: Positions) -> tuple[Tensor, Tensor | None]:
        """The stream after the last norm, [B, T, D], and how unevenly experts were loaded."""

    def through(self, block: nn.Module, *inputs: Any) -> Any:
        """What a block makes of its inputs."""
        if self.checkpoint_activations and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def hidden(
        self,
        tokens_BT: Tensor,
        cache: KVCache | None = None,
        documents_BT: Tensor | None = None,
    ) -> Tensor:
        """The stream after the last norm, [B, T, D]: what `logits` reads.

        With a cache the tokens continue what it holds, and are added to it. `documents_BT` numbers
        the documents of a window, from 0 and never falling: a token sees its own document alone,
        whose positions begin at 0. Raises DataError where a sequence would outgrow
        `context_length`.
        """
        positions = Positions(tokens_BT, self.config.context_length, cache, documents_BT)
        x_BTD, _ = self.stream(tokens_BT, positions)
        if cache is not None:
            cache.lengths_B = cache.lengths_B + tokens_BT.shape[1]
        return x_BTD

    def logits(self, x: Tensor) -> Tensor:
        """Scores of every token id as the next one: [..., D] to [..., V]."""
        if self.lm_head is not None:
            return self.lm_head(x)
        return F.linear(x, self.embed_tokens.weight)

    def forward(
        self,
        tokens_BT: Tensor,
        cache: KVCache | None = None,
        documents_BT: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, T, V]: those at a position see no later token. Arguments as of `hidden`."""
        return self.logits(self.hidden(tokens_BT, cache, documents_BT))

    def loss(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        reduction: Literal["mean", "sum", "none"] = "mean",
        documents_BT: Tensor | None = None,
    ) -> Tensor:
        """Cross-entropy in nats over targets other than -100, computed in fp32.

        `none` gives one number for each of the B * T targets, in order, zero where ignored. A
        mixture of experts in training mode adds its load-balancing loss to `mean`, and to `sum` as
        many times as there are targets.
        """
        positions = Positions(tokens_BT, self.config.context_length, None, documents_BT)
        x_BTD, imbalance = self.stream(tokens_BT, positions)
        loss = F.cross_entropy(
            self.logits(x_BTD).flatten(0, 1).float(),
            targets_BT.flatten(),
            ignore_index=IGNORED_TARGET,
            reduction=reduction,
        )
        if imbalance is None or not self.training or reduction == "none":
            return loss
        n_targets = (targets_BT != IGNORED_TARGET).sum() if reduction == "sum" else 1
        return loss + self.config.balance_coefficient * imbalance * n_targets

    @torch.no_grad()
    def attention_probabilities(self, tokens_BT: Tensor) -> Tensor:
        """What every head of every layer looks at, [L, B, H, T, T]: each row sums to one."""
        positions = Positions(tokens_BT, self.config.context_length)
        positions.weights_BHTS = []
        self.stream(tokens_BT, positions)
        return torch.stack(positions.weights_BHTS)

    def roles(self) -> dict[str, Role]:
        """What each parameter is, by its name in `named_parameters`."""
        return {name: _role(name, parameter) for name, parameter in self.named_parameters()}


def _role(name: str, parameter: Tensor) -> Role:
    if name == "lm_head.weight":
        return "head"
    if not name.startswith("layers."):
        return "vector" if parameter.ndim < 2 else "embedding"
    return "vector" if parameter.ndim < 2 else "matrix" if parameter.ndim == 2 else "experts"


@torch.no_grad()
def initialize(model: nn.Module, seed: int, spread: Callable[[str, Tensor], float | None]) -> None:
    """Fill every parameter from `seed`: normal about 0 with standard deviation `spread(name, p)`.

    Zero for a spread of 0, and one for a spread of None.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        std = spread(name, parameter)
        if std:
            parameter.normal_(0.0, std, generator=generator)
        else:
            parameter.fill_(1.0 if std is None else 0.0)
