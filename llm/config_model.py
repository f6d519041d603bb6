"""Shape of a model. No torch here: planning reads these."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from llm.config import Config
from llm.errors import ConfigError

Family = Literal["llama", "gpt2", "speedrun"]

_FIXED: dict[Family, dict[str, object]] = {
    "llama": {"value_embeddings": False},
    "gpt2": {"qk_norm": False, "n_experts": 0, "rope_scaling": None, "value_embeddings": False},
    "speedrun": {"qk_norm": True, "n_experts": 0, "tie_embeddings": False},
}
"""What a family has no choice in."""


def _default_head_dim(data: dict[str, Any]) -> int:
    return max(1, data["d_model"] // data["n_heads"])


def _default_d_ff(data: dict[str, Any]) -> int:
    if data["family"] != "llama":
        return 4 * data["d_model"]
    shares = data["n_experts_per_token"] if data["n_experts"] else 1
    return -(-8 * data["d_model"] // (3 * 64 * shares)) * 64


class RopeScaling(Config):
    """Slower rotation, so that a model reads longer sequences than it was first trained on."""

    kind: Literal["linear", "llama3", "yarn"] = "yarn"
    """`linear`: all angles divided by `factor` (Chen et al. 2023); `llama3`: only those of long
    waves (Dubey et al. 2024); `yarn`: likewise by a ramp over channels, and sharper attention (Peng
    et al. 2023, who find it the best of these)."""
    factor: float = Field(ge=1)
    """How many times longer the sequences are."""
    original_context_length: int = Field(default=0, ge=0)
    """Longest sequence at first, for `llama3` and `yarn`; 0: `context_length / factor`."""


class ModelConfig(Config):
    """Shape of a decoder-only transformer. What is left out follows from what is given."""

    family: Family = "llama"
    """Kind of model. `llama` loads in transformers as Llama, as Qwen3 with `qk_norm`, and as
    Qwen3-MoE with experts; `gpt2` as GPT-2. `speedrun` has the parts of modded-nanogpt and
    nanochat (Jordan et al. 2024) that no other program can load."""
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
    n_experts: int = Field(default=0, ge=0)
    """Feed-forward layers to choose from in each block; 0: one, and no choice. Needs `qk_norm`, as
    Qwen3-MoE has both (Yang et al. 2025)."""
    n_experts_per_token: int = Field(default=2, ge=1)
    """How many of the experts each token goes to (GShard's two: Lepikhin et al. 2021)."""
    normalize_expert_weights: bool = True
    """Whether the weights of a token's experts are scaled to sum to one (Qwen3-MoE)."""
    balance_coefficient: float = Field(default=0.001, ge=0)
    """Weight of the load-balancing loss of experts (Qwen3-MoE's `router_aux_loss_coef`)."""
    d_ff: int = Field(default_factory=_default_d_ff, ge=1)
    """Hidden width of the feed-forward layer, or of one expert. If left out: in `llama` 8/3 of
    `d_model` (Shazeer 2020: as many parameters as an ungated layer of four times the width),
    shared by a token's experts and rounded up to a multiple of 64; else four times `d_model`
    (Vaswani et al. 2017)."""
    qk_norm: bool = Field(default_factory=lambda data: data["family"] == "speedrun")
    """Normalize queries and keys by head (Henry et al. 2020; Qwen3). `speedrun` always does."""
    tie_embeddings: bool = Field(default_factory=lambda data: data["family"] == "gpt2")
    """Use the embedding as the output layer too (Press and Wolf 2017), as GPT-2 does."""
    rope_theta: float = Field(default=10000.0, gt=0)
    """Base of the rotary frequencies (Su et al. 2021)."""
    rope_scaling: RopeScaling | None = None
    """Rotation for a longer context than the weights were first trained with."""
    norm_eps: float = Field(default=1e-5, gt=0)
    """Added to the mean square before its root (Llama: Touvron et al. 2023; GPT-2)."""
    value_embeddings: bool = Field(default_factory=lambda data: data["family"] == "speedrun")
    """In every other block, add an embedding of the token to its values (Zhou et al. 2024, as in
    modded-nanogpt): parameters that cost next to no arithmetic."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of numbers set to zero in training: of the embedding, of the attention weights and of
    what each half of a block adds, as in GPT-2 (Radford et al. 2019). 0, for text seen about
    once."""

    @model_validator(mode="after")
    def _check_family(self) -> Self:
        for name, value in _FIXED[self.family].items():
            if getattr(self, name) != value:
                others = [family for family in _FIXED if name not in _FIXED[family]]
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, but family {self.family!r} has only "
                    f"{value!r}: leave it out, or choose family {' or '.join(map(repr, others))}"
                )
        if self.n_experts and not self.qk_norm:
            raise ValueError("n_experts needs qk_norm = true: Qwen3-MoE, its shape, has both")
        if self.n_experts and self.n_experts_per_token > self.n_experts:
            raise ValueError(
                f"n_experts_per_token is {self.n_experts_per_token}, but n_experts is "
                f"{self.n_experts}: a token can go to {self.n_experts} at most"
            )
        return self

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.head_dim % 2 and self.family != "gpt2":
            nearest = self.head_dim + 1
            raise ValueError(
                f"head_dim is {self.head_dim}, but rotary positions turn pairs of numbers: "
                f"choose an even one, such as {nearest} (d_model = {nearest * self.n_heads})"
            )
        if not self.qk_norm and self.d_model != self.n_heads * self.head_dim:
            step = 2 * self.n_heads
            nearest = max(1, round(self.d_model / step)) * step
            free = " (or set qk_norm = true, which allows any head_dim)"
            raise ValueError(
                f"d_model is {self.d_model}, but n_heads x head_dim is {self.n_heads} x "
                f"{self.head_dim} = {self.n_heads * self.head_dim}: the nearest d_model that "
                f"{self.n_heads} heads divide is {nearest}, with head_dim left out"
                f"{free if self.family == 'llama' else ''}"
            )
        if self.family == "gpt2" and self.n_kv_heads != self.n_heads:
            raise ValueError(
                f"n_kv_heads is {self.n_kv_heads}, but every head of a gpt2 has its own keys: "
                f"leave it out, or choose family 'llama'"
            )
        if self.n_heads % self.n_kv_heads:
            divisors = [n for n in range(1, self.n_heads + 1) if self.n_heads % n == 0]
            nearest = min(divisors, key=lambda n: abs(n - self.n_kv_heads))
            raise ValueError(
                f"n_kv_heads is {self.n_kv_heads}, which does not divide n_heads = {self.n_heads}: "
                f"the nearest that does is {nearest}"
            )
        return self

    @property
    def value_layers(self) -> list[int]:
        """Blocks with value embeddings: the last, and every other before it."""
        return list(range(self.n_layers))[::-2][::-1] if self.value_embeddings else []


def n_parameters(config: ModelConfig) -> int:
    """Number of trainable numbers in a model of this shape.

    Raises ConfigError while `vocab_size` is still to be taken from a tokenizer.
    """
    if not config.vocab_size:
        raise ConfigError("vocab_size is 0: take it from the tokenizer before counting parameters")
    width = config.d_model
    embeddings = config.vocab_size * width * (1 if config.tie_embeddings else 2)
    attention = 2 * width * config.head_dim * (config.n_heads + config.n_kv_heads)
    if config.family == "gpt2":
        feed_forward = (2 * width + 1) * config.d_ff + width
        biases_and_norms = 4 * width + 4 * width
        positions_and_last_norm = config.context_length * width + 2 * width
        block = attention + feed_forward + biases_and_norms
        return embeddings + config.n_layers * block + positions_and_last_norm
    if config.family == "speedrun":
        values = config.vocab_size * config.n_kv_heads * config.head_dim + 1
        block = attention + 2 * width * config.d_ff + 2
        return embeddings + config.n_layers * block + len(config.value_layers) * values
    feed_forward = 3 * width * config.d_ff * max(1, config.n_experts) + config.n_experts * width
    norms = 2 * width + (2 * config.head_dim if config.qk_norm else 0)
    return embeddings + config.n_layers * (attention + feed_forward + norms) + width


def n_active_parameters(config: ModelConfig) -> int:
    """Number of them that a token meets: all, but for the experts it does not go to."""
    idle = max(0, config.n_experts - config.n_experts_per_token)
    return n_parameters(config) - config.n_layers * idle * 3 * config.d_model * config.d_ff
