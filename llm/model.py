"""The `llama` family: the decoder-only transformer that every serving stack reads.

Rotary positions, RMSNorm before each half of a block, SwiGLU, grouped queries; by choice norms on
queries and keys (then it is Qwen3's shape), experts as well (Qwen3-MoE's), and one matrix for both
embedding and output. Parameters carry the names and shapes of transformers' own, less the prefix
`model.`; but experts, which are one file entry each there, are stacks here.
`llm/decoder.py` holds what it shares with the other families, and the legend of shapes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.config_model import ModelConfig
from llm.decoder import Decoder, Linear, Positions, initialize
from llm.experts import MixtureOfExperts
from llm.rms_norm import rms_norm
from llm.rotary import rotary_tables, rotate


class RMSNorm(nn.Module):
    """Divide by the root mean square over the last dimension, in fp32 (Zhang and Sennrich 2019)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """Causal attention in which groups of query heads share a key and value head."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.dropout = config.dropout
        self.q_proj = Linear(config.d_model, config.n_heads * config.head_dim)
        self.k_proj = Linear(config.d_model, config.n_kv_heads * config.head_dim)
        self.v_proj = Linear(config.d_model, config.n_kv_heads * config.head_dim)
        self.o_proj = Linear(config.n_heads * config.head_dim, config.d_model)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None

    def forward(
        self, x_BTD: Tensor, positions: Positions, rotation: tuple[Tensor, Tensor]
    ) -> Tensor:
        q_BTHE = self.q_proj(x_BTD).unflatten(-1, (-1, self.head_dim))
        k_BTKE = self.k_proj(x_BTD).unflatten(-1, (-1, self.head_dim))
        v_BTKE = self.v_proj(x_BTD).unflatten(-1, (-1, self.head_dim))
        if self.q_norm is not None and self.k_norm is not None:
            q_BTHE, k_BTKE = self.q_norm(q_BTHE), self.k_norm(k_BTKE)
        q_BTHE, k_BTKE = rotate(q_BTHE, *rotation), rotate(k_BTKE, *rotation)
        dropout = self.dropout if self.training else 0.0
        return self.o_proj(positions.attend(self.layer, q_BTHE, k_BTKE, v_BTKE, dropout))


class FeedForward(nn.Module):
    """SwiGLU: a gate decides how much of each hidden channel passes (Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.d_model, config.d_ff)
        self.up_proj = Linear(config.d_model, config.d_ff)
        self.down_proj = Linear(config.d_ff, config.d_model)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))


class Block(nn.Module):
    """Attention, then feed-forward, each on the normalized stream and added to it."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.d_model, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.d_model, config.norm_eps)
        self.mlp = MixtureOfExperts(config) if config.n_experts else FeedForward(config)
        self.dropout = config.dropout

    def forward(
        self, x_BTD: Tensor, positions: Positions, rotation: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """The stream with both halves added, and how unevenly experts were chosen."""
        y_BTD = self.self_attn(self.input_layernorm(x_BTD), positions, rotation)
        x_BTD = x_BTD + F.dropout(y_BTD, self.dropout, self.training)
        made = self.mlp(self.post_attention_layernorm(x_BTD))
        y_BTD, uneven = made if isinstance(made, tuple) else (made, None)
        return x_BTD + F.dropout(y_BTD, self.dropout, self.training), uneven


class Model(Decoder):
    """The `llama` family."""

    cos_SE: Tensor
    sin_SE: Tensor

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__(config, (Block(config, layer) for layer in range(config.n_layers)))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        cos_SE, sin_SE = rotary_tables(config)
        self.register_buffer("cos_SE", cos_SE, persistent=False)
        self.register_buffer("sin_SE", sin_SE, persistent=False)
        initialize(self, seed, _spread(config))

    def stream(self, tokens_BT: Tensor, positions: Positions) -> tuple[Tensor, Tensor | None]:
        x_BTD = self.embed_tokens(tokens_BT)
        x_BTD = F.dropout(x_BTD, self.config.dropout, self.training)
        rotation = self.cos_SE[positions.index_BT, None], self.sin_SE[positions.index_BT, None]
        imbalances = []
        for block in self.layers:
            x_BTD, imbalance = self.through(block, x_BTD, positions, rotation)
            imbalances += [] if imbalance is None else [imbalance]
        return self.norm(x_BTD), torch.stack(imbalances).mean() if imbalances else None


def _spread(config: ModelConfig) -> Callable[[str, Tensor], float | None]:
    """How a new model is drawn.

    | tensor                          | init                | why                               |
    |---------------------------------|---------------------|-----------------------------------|
    | `embed_tokens`, untied          | normal, std 1       | a stream of unit size             |
    | `embed_tokens`, tied to output  | normal, std 1/D     | first logits of unit size         |
    | `lm_head`                       | normal, std 0.001   | first guess is uniform (nanochat) |
    | `q_proj`, `k_proj`, `v_proj`    | normal, std D^-1/2  | keeps the size of its input       |
    | `gate_proj`, `up_proj`          | normal, std D^-1/2  | likewise                          |
    | `gate` of experts               | normal, std D^-1/2  | choices differ from the start     |
    | `o_proj`, `down_proj`           | zero                | a block starts as the identity    |
    | every norm                      | one                 |                                   |
    """

    def spread(name: str, parameter: Tensor) -> float | None:
        if parameter.ndim == 1:
            return None
        if "o_proj" in name or "down_proj" in name:
            return 0.0
        if name == "embed_tokens.weight":
            return 1 / config.d_model if config.tie_embeddings else 1.0
        return 0.001 if name == "lm_head.weight" else config.d_model**-0.5

    return spread
