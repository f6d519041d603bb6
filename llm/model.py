"""The `llama` family: the decoder-only transformer that every serving stack reads.

Rotary positions, RMSNorm before each half of a block, SwiGLU, grouped queries, and by choice norms
on queries and keys (then it is Qwen3's shape), and one matrix for both embedding and output.
Parameters carry the names and shapes of transformers' Llama and Qwen3, less the prefix `model.`.
`llm/decoder.py` holds what it shares with the other families, and the legend of shapes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.config_model import ModelConfig
from llm.decoder import IGNORED_TARGET, Decoder, KVCache, Linear, Positions, initialize

__all__ = ["IGNORED_TARGET", "KVCache", "Model", "Positions"]


class RMSNorm(nn.Module):
    """Divide by the root mean square over the last dimension, in fp32 (Zhang and Sennrich 2019)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x_fp32 = x.float()
        scale = torch.rsqrt(x_fp32.square().mean(-1, keepdim=True) + self.eps)
        return (x_fp32 * scale).type_as(x) * self.weight


def rotary_tables(length: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotation at each position (Su et al. 2021), each [length, E].

    Channel i turns together with channel i + E/2, by `position * theta^(-2i/E)` radians: the
    layout of transformers' weights, not the interleaved one of the paper.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    angles = torch.outer(torch.arange(length, dtype=torch.float32), 1.0 / theta**exponents)
    angles_SE = torch.cat([angles, angles], dim=-1)
    return angles_SE.cos(), angles_SE.sin()


def rotate(x_BTHE: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each head by the angle of its position; `cos` and `sin` are [B or 1, T, 1, E]."""
    first, second = x_BTHE.chunk(2, dim=-1)
    cos, sin = cos.type_as(x_BTHE), sin.type_as(x_BTHE)
    return x_BTHE * cos + torch.cat([-second, first], dim=-1) * sin


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
        self.mlp = FeedForward(config)
        self.dropout = config.dropout

    def forward(
        self, x_BTD: Tensor, positions: Positions, rotation: tuple[Tensor, Tensor]
    ) -> Tensor:
        y_BTD = self.self_attn(self.input_layernorm(x_BTD), positions, rotation)
        x_BTD = x_BTD + F.dropout(y_BTD, self.dropout, self.training)
        y_BTD = self.mlp(self.post_attention_layernorm(x_BTD))
        return x_BTD + F.dropout(y_BTD, self.dropout, self.training)


class Model(Decoder):
    """The `llama` family."""

    cos_SE: Tensor
    sin_SE: Tensor

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__(config, (Block(config, layer) for layer in range(config.n_layers)))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        cos_SE, sin_SE = rotary_tables(config.context_length, config.head_dim, config.rope_theta)
        self.register_buffer("cos_SE", cos_SE, persistent=False)
        self.register_buffer("sin_SE", sin_SE, persistent=False)
        initialize(self, seed, _spread(config))

    def stream(self, tokens_BT: Tensor, positions: Positions) -> tuple[Tensor, Tensor | None]:
        x_BTD = self.embed_tokens(tokens_BT)
        x_BTD = F.dropout(x_BTD, self.config.dropout, self.training)
        rotation = self.cos_SE[positions.index_BT, None], self.sin_SE[positions.index_BT, None]
        for block in self.layers:
            x_BTD = self.through(block, x_BTD, positions, rotation)
        return self.norm(x_BTD), None


def _spread(config: ModelConfig) -> Callable[[str, Tensor], float | None]:
    """How a new model is drawn.

    | tensor                          | init                | why                               |
    |---------------------------------|---------------------|-----------------------------------|
    | `embed_tokens`, untied          | normal, std 1       | a stream of unit size             |
    | `embed_tokens`, tied to output  | normal, std 1/D     | first logits of unit size         |
    | `lm_head`                       | normal, std 0.001   | first guess is uniform (nanochat) |
    | `q_proj`, `k_proj`, `v_proj`    | normal, std D^-1/2  | keeps the size of its input       |
    | `gate_proj`, `up_proj`          | normal, std D^-1/2  | likewise                          |
    | `o_proj`, `down_proj`           | zero                | a block starts as the identity    |
    | every norm                      | one                 |                                   |
    """

    def spread(name: str, parameter: Tensor) -> float | None:
        if parameter.ndim == 1:
            return None
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            return 0.0
        if name == "embed_tokens.weight":
            return 1 / config.d_model if config.tie_embeddings else 1.0
        return 0.001 if name == "lm_head.weight" else config.d_model**-0.5

    return spread
