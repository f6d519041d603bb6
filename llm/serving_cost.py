"""What serving a model takes, from its shape alone: the other half of what a model costs.

A decoded token reads every weight and its sequence's KV cache once, and costs 2 N operations; it
takes as long as the slower of the two (Pope et al. 2022, section 2). Of experts those are read that
some sequence's token goes to. No torch here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llm.config_model import ModelConfig, n_active_parameters, n_parameters
from llm.gpus import Gpu
from llm.sizing import USABLE, forward_flops_per_token

PRECISIONS = {"float32": (4.0, 4.0), "bfloat16": (2.0, 2.0), "int8": (1.0, 2.0), "int4": (0.5, 2.0)}
"""Bytes of a weight and of a number in the KV cache. Integer weights are multiplied as bfloat16."""

BANDWIDTH_USED = 0.6
"""Share of the memory's bandwidth that decoding reaches; Agarwal et al. 2023 ("LLM Inference
Performance Engineering", Databricks) measure 50 to 60 %."""
COMPUTE_USED = 0.4
"""Share of the peak that its products reach, as in training."""
MOST_SEQUENCES = 256
"""Sequences decoded at a time at most; vLLM's default."""

DAYS_PER_YEAR, HOURS_PER_DAY, SECONDS_PER_HOUR = 365, 24, 3600


@dataclass(frozen=True)
class Decoding:
    """How one replica of a model decodes."""

    precision: str
    weights: float
    """Bytes."""
    kv_per_token: float
    """Bytes of the KV cache for one token of one sequence."""
    devices: int
    """Devices that hold one replica, its weights split among them."""
    sequences: int
    """Sequences of full context at a time, as many as fit, up to `MOST_SEQUENCES`."""
    single: float
    """Tokens a second of one sequence alone."""
    full: float
    """Tokens a second of all sequences together."""

    def hours(self, tokens: float) -> float:
        """Device-hours to decode so many tokens with all places taken."""
        return tokens / self.full * self.devices / SECONDS_PER_HOUR


def kv_bytes_per_token(config: ModelConfig, bytes_per_number: float) -> float:
    """Bytes of one token's keys and values in all layers."""
    return 2 * config.n_layers * config.n_kv_heads * config.head_dim * bytes_per_number


def read_parameters(config: ModelConfig, n_tokens: int) -> float:
    """Parameters read to decode a token of each of so many sequences, all experts being as likely
    to be chosen as the others."""
    total, share = n_parameters(config), config.n_experts_per_token / max(1, config.n_experts)
    in_experts = (total - n_active_parameters(config)) / (1 - share) if share < 1 else 0.0
    return total - in_experts * (1 - share) ** n_tokens


def decoding(config: ModelConfig, gpu: Gpu, precision: str = "bfloat16") -> Decoding:
    """How a model is decoded on as few devices as hold it and one sequence of full context."""
    per_weight, per_number = PRECISIONS[precision]
    weights = n_parameters(config) * per_weight
    kv = kv_bytes_per_token(config, per_number)
    sequence = kv * config.context_length
    devices = math.ceil((weights + sequence) / (USABLE * gpu.memory))
    room = devices * USABLE * gpu.memory - weights
    sequences = max(1, min(MOST_SEQUENCES, int(room / sequence)))

    def rate(n: int) -> float:
        # On average a sequence is half as long as it may get.
        attended = config.context_length / 2
        parameters = read_parameters(config, n)
        read = (parameters * per_weight + n * kv * attended) / (
            devices * gpu.bandwidth * BANDWIDTH_USED
        )
        flops = n * forward_flops_per_token(config, attended)
        return n / max(read, flops / (devices * gpu.flops * COMPUTE_USED))

    return Decoding(precision, weights, kv, devices, sequences, rate(1), rate(sequences))


@dataclass(frozen=True)
class Lifetime:
    """What a model costs from its first to its last day of service."""

    tokens: float
    """Tokens served."""
    flops: float
    device_hours: float
    """Hours of work, all places taken."""
    devices: int
    """Devices that carry the load at an even rate, on all day."""
    cost: float | None
    """What those devices cost over the years, where an hour has a price."""


def lifetime(
    config: ModelConfig, served: Decoding, tokens_per_day: float, years: float, price: float | None
) -> Lifetime:
    """The cost of serving so many tokens a day for so many years."""
    tokens = tokens_per_day * DAYS_PER_YEAR * years
    replicas = math.ceil(tokens_per_day / (served.full * SECONDS_PER_HOUR * HOURS_PER_DAY))
    devices = replicas * served.devices
    hours_on = devices * HOURS_PER_DAY * DAYS_PER_YEAR * years
    return Lifetime(
        tokens=tokens,
        flops=tokens * forward_flops_per_token(config, config.context_length / 2),
        device_hours=served.hours(tokens),
        devices=devices,
        cost=None if price is None else hours_on * price,
    )
