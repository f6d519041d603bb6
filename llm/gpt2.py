"""The `gpt2` family: the decoder-only transformer of Radford et al. 2019.

Learned positions, LayerNorm before each half of a block, GELU by tanh, and biases everywhere but in
the output layer, which is the embedding unless told otherwise. Parameters carry transformers' names
inside a block; its matrices are stored as torch does, [out, in], where GPT-2's files have [in,
out]. `llm/decoder.py` holds what it shares with the other families, and the legend of shapes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from llm.config_model import ModelConfig
from llm.decoder import Decoder, Embedding, Linear, Positions, initialize


class LayerNorm(nn.LayerNorm):
    """Subtract the mean and divide by the standard deviation, in fp32 (Ba et al. 2016)."""

    def reset_parameters(self) -> None:
        pass


class Attention(nn.Module):
    """Causal attention; one product makes queries, keys and values."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.dropout = config.dropout
        self.c_attn = Linear(config.d_model, 3 * config.d_model, bias=True)
        self.c_proj = Linear(config.d_model, config.d_model, bias=True)

    def forward(self, x_BTD: Tensor, positions: Positions) -> Tensor:
        qkv = self.c_attn(x_BTD).unflatten(-1, (3, -1, self.head_dim))
        q_BTHE, k_BTHE, v_BTHE = qkv.unbind(2)
        dropout = self.dropout if self.training else 0.0
        return self.c_proj(positions.attend(self.layer, q_BTHE, k_BTHE, v_BTHE, dropout))


class FeedForward(nn.Module):
    """Two layers with GELU between (Hendrycks and Gimpel 2016, its approximation by tanh)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.c_fc = Linear(config.d_model, config.d_ff, bias=True)
        self.c_proj = Linear(config.d_ff, config.d_model, bias=True)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x_BTD), approximate="tanh"))


class Block(nn.Module):
    """Attention, then feed-forward, each on the normalized stream and added to it."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.d_model, config.norm_eps)
        self.attn = Attention(config, layer)
        self.ln_2 = LayerNorm(config.d_model, config.norm_eps)
        self.mlp = FeedForward(config)
        self.dropout = config.dropout

    def forward(self, x_BTD: Tensor, positions: Positions) -> Tensor:
        y_BTD = self.attn(self.ln_1(x_BTD), positions)
        x_BTD = x_BTD + F.dropout(y_BTD, self.dropout, self.training)
        y_BTD = self.mlp(self.ln_2(x_BTD))
        return x_BTD + F.dropout(y_BTD, self.dropout, self.training)


class GPT2(Decoder):
    """The `gpt2` family."""

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__(config, (Block(config, layer) for layer in range(config.n_layers)))
        self.embed_positions = Embedding(config.context_length, config.d_model)
        self.ln_f = LayerNorm(config.d_model, config.norm_eps)
        initialize(self, seed, _spread(config))

    def stream(self, tokens_BT: Tensor, positions: Positions) -> tuple[Tensor, None]:
        x_BTD = self.embed_tokens(tokens_BT) + self.embed_positions(positions.index_BT)
        x_BTD = F.dropout(x_BTD, self.config.dropout, self.training)
        for block in self.layers:
            x_BTD = self.through(block, x_BTD, positions)
        return self.ln_f(x_BTD), None


def _spread(config: ModelConfig) -> Callable[[str, Tensor], float | None]:
    """How a new model is drawn: as GPT-2 was (Radford et al. 2019; nanoGPT).

    | tensor                             | init                      | why                         |
    |------------------------------------|---------------------------|-----------------------------|
    | `embed_tokens`, `lm_head`          | normal, std 0.02          | GPT-2                       |
    | `embed_positions`                  | normal, std 0.02          | as nanoGPT; the paper: 0.01 |
    | `c_attn`, `c_fc`                   | normal, std 0.02          | GPT-2                       |
    | `c_proj`, of both halves           | normal, std 0.02/(2L)^1/2 | what L blocks add stays put |
    | every bias                         | zero                      |                             |
    | every norm's weight                | one                       |                             |
    """

    def spread(name: str, parameter: Tensor) -> float | None:
        if name.endswith("bias"):
            return 0.0
        if parameter.ndim == 1:
            return None
        return 0.02 / (2 * config.n_layers) ** 0.5 if "c_proj" in name else 0.02

    return spread
