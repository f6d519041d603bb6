"""A decoder-only transformer of the `llama` family, from tokens to logits and loss.

Rotary positions, RMSNorm before each half of a block, SwiGLU, grouped queries, and by choice norms
on queries and keys (then it is Qwen3's shape), and one matrix for both embedding and output.
Parameters carry the names and shapes of transformers' Llama and Qwen3, less the prefix `model.`.

Letters at the end of a tensor's name say its shape:

    B  sequences in the batch        D  width of the residual stream    V  token ids
    T  positions in this call        F  hidden width of feed-forward    L  layers
    S  positions attended to         H  query heads, K key/value heads, E  width of a head
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.config_model import ModelConfig
from llm.errors import ConfigError, DataError

IGNORED_TARGET = -100
"""Target that counts for nothing in the loss (torch's own default)."""


class Linear(nn.Linear):
    """A matrix without bias, which `initialize` fills: building draws no random numbers."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__(width_in, width_out, bias=False)

    def reset_parameters(self) -> None:
        pass


class Embedding(nn.Embedding):
    """One vector for each token id, which `initialize` fills."""

    def reset_parameters(self) -> None:
        pass


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
    return x_BTHE * cos + torch.cat([-second, first], dim=-1) * sin


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
    """Where the tokens of one call stand, worked out once and shared by all layers."""

    def __init__(
        self, tokens_BT: Tensor, cos_SE: Tensor, sin_SE: Tensor, cache: KVCache | None
    ) -> None:
        n_tokens, device = tokens_BT.shape[1], tokens_BT.device
        self.cache = cache
        self.end = n_tokens if cache is None else n_tokens + int(cache.lengths_B.max())
        if self.end > len(cos_SE):
            raise DataError(
                f"a sequence of {self.end} tokens, but context_length is {len(cos_SE)}: "
                f"give at most that many, or train with a longer context"
            )
        self.mask_B1TS: Tensor | None = None
        if cache is None:
            self.cos, self.sin = cos_SE[None, :n_tokens, None], sin_SE[None, :n_tokens, None]
        else:
            self.rows_B1 = torch.arange(len(tokens_BT), device=device)[:, None]
            self.index_BT = cache.lengths_B[:, None] + torch.arange(n_tokens, device=device)
            index_S = torch.arange(self.end, device=device)
            self.mask_B1TS = (index_S <= self.index_BT[:, :, None])[:, None]
            self.cos, self.sin = cos_SE[self.index_BT, None], sin_SE[self.index_BT, None]

    def extend(self, layer: int, k_BTKE: Tensor, v_BTKE: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of everything to attend to: the cached positions, then this call's."""
        if self.cache is None:
            return k_BTKE, v_BTKE
        keys_BSKE, values_BSKE = self.cache.keys_BSKE[layer], self.cache.values_BSKE[layer]
        keys_BSKE[self.rows_B1, self.index_BT] = k_BTKE.type_as(keys_BSKE)
        values_BSKE[self.rows_B1, self.index_BT] = v_BTKE.type_as(values_BSKE)
        return keys_BSKE[:, : self.end], values_BSKE[:, : self.end]


class Attention(nn.Module):
    """Causal attention in which groups of query heads share a key and value head."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.grouped = config.n_kv_heads < config.n_heads
        self.q_proj = Linear(config.d_model, config.n_heads * config.head_dim)
        self.k_proj = Linear(config.d_model, config.n_kv_heads * config.head_dim)
        self.v_proj = Linear(config.d_model, config.n_kv_heads * config.head_dim)
        self.o_proj = Linear(config.n_heads * config.head_dim, config.d_model)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None

    def forward(self, x_BTD: Tensor, positions: Positions) -> Tensor:
        q_BTHE = self.q_proj(x_BTD).unflatten(-1, (-1, self.head_dim))
        k_BTKE = self.k_proj(x_BTD).unflatten(-1, (-1, self.head_dim))
        v_BTKE = self.v_proj(x_BTD).unflatten(-1, (-1, self.head_dim))
        if self.q_norm is not None and self.k_norm is not None:
            q_BTHE, k_BTKE = self.q_norm(q_BTHE), self.k_norm(k_BTKE)
        cos, sin = positions.cos.type_as(q_BTHE), positions.sin.type_as(q_BTHE)
        q_BTHE, k_BTKE = rotate(q_BTHE, cos, sin), rotate(k_BTKE, cos, sin)
        k_BSKE, v_BSKE = positions.extend(self.layer, k_BTKE, v_BTKE)
        y_BHTE = F.scaled_dot_product_attention(
            q_BTHE.transpose(1, 2),
            k_BSKE.transpose(1, 2),
            v_BSKE.transpose(1, 2),
            attn_mask=positions.mask_B1TS,
            is_causal=positions.mask_B1TS is None,
            enable_gqa=self.grouped,
        )
        return self.o_proj(y_BHTE.transpose(1, 2).flatten(2))


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

    def forward(self, x_BTD: Tensor, positions: Positions) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), positions)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class Model(nn.Module):
    """Tokens to logits. The same config and seed give the same bytes, whatever ran before."""

    cos_SE: Tensor
    sin_SE: Tensor

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        if not config.vocab_size:
            raise ConfigError("vocab_size is 0: take it from the tokenizer before building a model")
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.lm_head = None if config.tie_embeddings else Linear(config.d_model, config.vocab_size)
        cos_SE, sin_SE = rotary_tables(config.context_length, config.head_dim, config.rope_theta)
        self.register_buffer("cos_SE", cos_SE, persistent=False)
        self.register_buffer("sin_SE", sin_SE, persistent=False)
        initialize(self, seed)

    def hidden(self, tokens_BT: Tensor, cache: KVCache | None = None) -> Tensor:
        """The stream after the last norm, [B, T, D]: what `logits` reads.

        With a cache the tokens continue what it holds, and are added to it.
        Raises DataError where a sequence would outgrow `context_length`.
        """
        positions = Positions(tokens_BT, self.cos_SE, self.sin_SE, cache)
        x_BTD = self.embed_tokens(tokens_BT)
        for block in self.layers:
            x_BTD = block(x_BTD, positions)
        if cache is not None:
            cache.lengths_B = cache.lengths_B + tokens_BT.shape[1]
        return self.norm(x_BTD)

    def logits(self, x: Tensor) -> Tensor:
        """Scores of every token id as the next one: [..., D] to [..., V]."""
        return F.linear(x, (self.lm_head or self.embed_tokens).weight)

    def forward(self, tokens_BT: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits [B, T, V]: those at a position see no later token."""
        return self.logits(self.hidden(tokens_BT, cache))

    def loss(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> Tensor:
        """Cross-entropy in nats over targets other than -100, computed in fp32.

        `none` gives one number for each of the B * T targets, in order, zero where ignored.
        """
        logits_BTV = self(tokens_BT)
        return F.cross_entropy(
            logits_BTV.flatten(0, 1).float(),
            targets_BT.flatten(),
            ignore_index=IGNORED_TARGET,
            reduction=reduction,
        )


@torch.no_grad()
def initialize(model: Model, seed: int) -> None:
    """Fill every parameter, from `seed` and the config alone.

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
    generator = torch.Generator().manual_seed(seed)
    width_std = model.config.d_model**-0.5
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0)
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.zero_()
        elif name == "embed_tokens.weight":
            std = 1 / model.config.d_model if model.config.tie_embeddings else 1.0
            parameter.normal_(0.0, std, generator=generator)
        else:
            std = 0.001 if name == "lm_head.weight" else width_std
            parameter.normal_(0.0, std, generator=generator)
