"""Shape of a model. No torch here: planning reads these."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from llm.config import Config
from llm.errors import ConfigError


def _default_head_dim(data: dict[str, Any]) -> int:
    return max(1, data["d_model"] // data["n_heads"])


def _default_d_ff(data: dict[str, Any]) -> int:
    return -(-8 * data["d_model"] // (3 * 64)) * 64


class ModelConfig(Config):
    """Shape of a decoder-only transformer. What is left out follows from what is given."""

    family: Literal["llama"] = "llama"
    """Kind of model: `llama` loads in transformers as Llama, or as Qwen3 with `qk_norm`."""
    vocab_size: int = Field(default=0, ge=0)
    """Number of token ids; 0 means that it is taken from the tokenizer."""
    context_length: int = Field(default=256, ge=1)
    """Longest sequence in tokens. 256 is what a small corpus on a CPU can afford."""
    n_layers: int = Field(default=6, ge=1)
    """Number of blocks. Six of width 384 make the 10 M parameters of nanoGPT's character model."""
    d_model: int = Field(default=384, ge=2)
    """Width of the residual stream."""
    n_heads: int = Field(default=6, ge=1)
    """Number of query heads."""
    n_kv_heads: int = Field(default_factory=lambda data: data["n_heads"], ge=1)
    """Key and value heads, shared by groups of query heads (Ainslie et al. 2023); `n_heads` if
    left out."""
    head_dim: int = Field(default_factory=_default_head_dim, ge=2)
    """Width of a head; `d_model / n_heads` if left out. Only with `qk_norm` may it differ from
    that, as in Qwen3 (Yang et al. 2025)."""
    d_ff: int = Field(default_factory=_default_d_ff, ge=1)
    """Hidden width of the feed-forward layer; if left out, 8/3 of `d_model` (Shazeer 2020: as many
    parameters as an ungated layer of four times the width), rounded up to a multiple of 64."""
    qk_norm: bool = False
    """Normalize queries and keys by head before rotation (Henry et al. 2020; Qwen3)."""
    tie_embeddings: bool = False
    """Use the embedding as the output layer too (Press and Wolf 2017)."""
    rope_theta: float = Field(default=10000.0, gt=0)
    """Base of the rotary frequencies (Su et al. 2021)."""
    norm_eps: float = Field(default=1e-5, gt=0)
    """Added to the mean square before its root (Llama: Touvron et al. 2023)."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of numbers set to zero in training: of the embedding, of the attention weights and of
    what each half of a block adds, as in GPT-2 (Radford et al. 2019). 0: one look at each token
    overfits nothing."""
    balance_coefficient: float = Field(default=0.001, ge=0)
    """Weight of the load-balancing loss of a mixture of experts (Qwen3-MoE's, Yang et al. 2025)."""

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.head_dim % 2:
            nearest = self.head_dim + 1
            raise ValueError(
                f"head_dim is {self.head_dim}, but rotary positions turn pairs of numbers: "
                f"choose an even one, such as {nearest} (d_model = {nearest * self.n_heads})"
            )
        if not self.qk_norm and self.d_model != self.n_heads * self.head_dim:
            step = 2 * self.n_heads
            nearest = max(1, round(self.d_model / step)) * step
            raise ValueError(
                f"d_model is {self.d_model}, but n_heads x head_dim is {self.n_heads} x "
                f"{self.head_dim} = {self.n_heads * self.head_dim}: the nearest d_model that "
                f"{self.n_heads} heads divide is {nearest}, with head_dim left out (or set "
                f"qk_norm = true, which allows any head_dim)"
            )
        if self.n_heads % self.n_kv_heads:
            divisors = [n for n in range(1, self.n_heads + 1) if self.n_heads % n == 0]
            nearest = min(divisors, key=lambda n: abs(n - self.n_kv_heads))
            raise ValueError(
                f"n_kv_heads is {self.n_kv_heads}, which does not divide n_heads = {self.n_heads}: "
                f"the nearest that does is {nearest}"
            )
        return self


def n_parameters(config: ModelConfig) -> int:
    """Number of trainable numbers in a model of this shape.

    Raises ConfigError while `vocab_size` is still to be taken from a tokenizer.
    """
    if not config.vocab_size:
        raise ConfigError("vocab_size is 0: take it from the tokenizer before counting parameters")
    embeddings = config.vocab_size * config.d_model * (1 if config.tie_embeddings else 2)
    attention = 2 * config.d_model * config.head_dim * (config.n_heads + config.n_kv_heads)
    feed_forward = 3 * config.d_model * config.d_ff
    norms = 2 * config.d_model + (2 * config.head_dim if config.qk_norm else 0)
    return embeddings + config.n_layers * (attention + feed_forward + norms) + config.d_model
