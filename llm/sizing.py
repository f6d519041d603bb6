"""What training takes: operations, memory and time, from a model's shape alone. No torch here.

Everything is arithmetic on published rules; nothing is measured. Names: N parameters, D tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llm.config_model import ModelConfig, n_active_parameters, n_parameters
from llm.gpus import Gpu

FLOAT32, BFLOAT16 = 4, 2
"""Bytes of a number."""

USABLE = 0.9
"""Share of a device's memory that is ours to fill: the rest is the runtime and fragments."""

RECOMPUTED = 1.25
"""Times the activations of a block that its backward pass holds, with their gradients; measured on
the three families, as `tests/llm/test_sizing.py` does."""

Dtype = Literal["float32", "bfloat16"]
Optimizer = Literal["adamw", "muon"]


def embedding_parameters(config: ModelConfig) -> int:
    """Parameters of the embeddings of tokens and positions, and of an output layer of its own."""
    tokens = config.vocab_size * config.d_model * (1 if config.tie_embeddings else 2)
    positions = config.context_length * config.d_model if config.family == "gpt2" else 0
    return tokens + positions + value_parameters(config)


def value_parameters(config: ModelConfig) -> int:
    """Parameters of the value embeddings of a `speedrun`."""
    return len(config.value_layers) * config.vocab_size * config.n_kv_heads * config.head_dim


def law_parameters(config: ModelConfig) -> int:
    """Parameters that tokens and losses are reckoned by: those that a token meets.

    Of experts those count that it goes to (as in Ludziejewski et al. 2025), and value embeddings do
    not: they are looked up, and there are so many that they would ask for many times the tokens.
    """
    return n_active_parameters(config) - value_parameters(config)


def multiplied_parameters(config: ModelConfig) -> int:
    """Parameters that a token is multiplied by: those of the blocks, without the experts it does
    not go to, and the output layer, but no embedding that is only looked up."""
    blocks = n_active_parameters(config) - embedding_parameters(config)
    return blocks + config.vocab_size * config.d_model


def forward_flops_per_token(config: ModelConfig, attended: float | None = None) -> float:
    """Operations to read one token, `attended` tokens before it (the whole context by default).

    2 for each parameter and 4 L H Q T for the scores and the sum of values (Chowdhery et al. 2022,
    PaLM, appendix B, which counts the causal mask's empty half too).
    """
    length = config.context_length if attended is None else attended
    attention = 4 * config.n_layers * config.n_heads * config.head_dim * length
    return 2 * multiplied_parameters(config) + attention


def training_flops_per_token(config: ModelConfig) -> float:
    """Operations to learn from one token: 6 N + 12 L H Q T, as the backward pass costs two forward
    passes (Kaplan et al. 2020, section 2.1; Chowdhery et al. 2022, appendix B)."""
    return 3 * forward_flops_per_token(config)


@dataclass(frozen=True)
class Memory:
    """Bytes that training holds on one device."""

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations


def training_memory(
    config: ModelConfig,
    batch_size: int,
    *,
    optimizer: Optimizer = "muon",
    dtype: Dtype = "bfloat16",
    checkpointing: bool = False,
    n_devices: int = 1,
) -> Memory:
    """Memory of each of `n_devices`, among which weights, gradients and optimizer are split
    (ZeRO stage 3, Rajbhandari et al. 2020), for micro-batches of `batch_size` windows on each.

    Weights and gradients are float32. In bfloat16 autocast keeps a copy of the matrices, of all
    experts too, from the forward to the backward pass. AdamW keeps two numbers for each weight,
    Muon one for each in the blocks' matrices.
    """
    total = n_parameters(config)
    with_muon = total - embedding_parameters(config) if optimizer == "muon" else 0
    idle = total - n_active_parameters(config)
    copies = BFLOAT16 * (multiplied_parameters(config) + idle) if dtype == "bfloat16" else 0
    return Memory(
        weights=(FLOAT32 * total + copies) / n_devices,
        gradients=FLOAT32 * total / n_devices,
        optimizer=FLOAT32 * (2 * total - with_muon) / n_devices,
        activations=activation_bytes(config, batch_size, dtype, checkpointing),
    )


def activation_bytes(
    config: ModelConfig, batch_size: int, dtype: Dtype, checkpointing: bool = False
) -> int:
    """Bytes that one micro-batch takes at its peak, which is in the loss.

    Counted per token as in Korthikanti et al. 2022 (section 4.1), for this block instead of
    theirs: the inputs of every product, norm and activation are kept for the backward pass, the
    scores of attention are not. Norms and the loss work in float32 whatever the dtype of the
    products. With checkpointing (Chen et al. 2016) a block keeps its input alone, and beside these
    lies either the loss or one block that is computed again. Meant to be a little too much rather
    than too little.
    """
    product = FLOAT32 if dtype == "float32" else BFLOAT16
    heads = config.n_heads + config.n_kv_heads
    normed = config.qk_norm or config.family == "speedrun"
    in_products = (
        2 * config.d_model  # Inputs of the two halves of the block.
        + 2 * heads * config.head_dim  # Rotated queries and keys, values, and their mean.
        + (heads * config.head_dim if normed else 0)  # Queries and keys before their norms.
        + _feed_forward_numbers(config)
    )
    in_stream = 3 * config.d_model  # What norms and scales of the stream are given.
    values = len(config.value_layers) * config.n_kv_heads * config.head_dim * FLOAT32
    block = in_products * product + in_stream * FLOAT32
    logits = 3 * FLOAT32 + (product if dtype == "bfloat16" else 0)  # Softmax and gradient too.
    if config.family == "speedrun":
        logits += FLOAT32  # What the cap's tanh keeps.
    in_loss = config.vocab_size * logits
    peak: float = config.n_layers * block + in_loss
    if checkpointing:
        peak = config.n_layers * config.d_model * FLOAT32 + max(RECOMPUTED * block, in_loss)
    return round(batch_size * config.context_length * (peak + values))


def _feed_forward_numbers(config: ModelConfig) -> int:
    """Numbers kept inside the feed-forward layer for each token."""
    if config.family != "llama":
        return 2 * config.d_ff  # Before and after the activation.
    numbers = 4 * config.d_ff  # Gate, its activation, up, and what the two make.
    if config.n_experts:  # And what an expert is given and gives.
        return config.n_experts_per_token * (numbers + 2 * config.d_model)
    return numbers


def largest_batch(
    config: ModelConfig,
    gpu: Gpu,
    *,
    optimizer: Optimizer = "muon",
    dtype: Dtype = "bfloat16",
    checkpointing: bool = False,
    n_devices: int = 1,
) -> int:
    """Windows of the largest micro-batch, a power of two, that fits each device; 0 if none does."""
    batch_size = 0
    while batch_size < 1 << 16:
        tried = 2 * batch_size or 1
        memory = training_memory(
            config, tried, optimizer=optimizer, dtype=dtype, checkpointing=checkpointing,
            n_devices=n_devices,
        )  # fmt: skip
        if memory.total > USABLE * gpu.memory:
            break
        batch_size = tried
    return batch_size


def training_seconds(
    config: ModelConfig, tokens: float, gpu: Gpu, n_devices: int = 1, mfu: float = 0.4
) -> float:
    """Seconds to learn from so many tokens at that share of the devices' peak (model FLOPs
    utilization, Chowdhery et al. 2022)."""
    return training_flops_per_token(config) * tokens / (gpu.flops * n_devices * mfu)
