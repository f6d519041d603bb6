"""Rotary positions: each pair of channels of a head turns by an angle of its own per token."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from llm.config_model import ModelConfig, RopeScaling

LLAMA3_TURNS = (1.0, 4.0)
"""Channels that turn fewer times than the first within the original context are slowed, more often
than the second kept, and blended between (Dubey et al. 2024; Llama 3.1's `config.json`)."""
YARN_TURNS = (1.0, 32.0)
"""The same for YaRN, whose blend goes by channel (Peng et al. 2023, section 3.2, for Llama)."""


def rotary_tables(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotation at each position (Su et al. 2021), each [context, E].

    Channel i turns together with channel i + E/2, by `position * theta^(-2i/E)` radians: the
    layout of transformers' weights, not the interleaved one of the paper.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies, sharpness = 1.0 / config.rope_theta**exponents, 1.0
    if config.rope_scaling is not None:
        frequencies, sharpness = _scaled(frequencies, config, config.rope_scaling)
    positions = torch.arange(config.context_length, dtype=torch.float32)
    angles = torch.outer(positions, frequencies)
    angles_SE = torch.cat([angles, angles], dim=-1)
    return angles_SE.cos() * sharpness, angles_SE.sin() * sharpness


def rotate(x_BTHE: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each head by the angle of its position; `cos` and `sin` are [B or 1, T, 1, E]."""
    turned: Tensor = _Rotation.apply(x_BTHE, cos.type_as(x_BTHE), sin.type_as(x_BTHE))
    return turned


class _Rotation(torch.autograd.Function):
    """Its gradient is the rotation back, for which nothing but the angles has to be kept."""

    @staticmethod
    def forward(ctx: Any, x_BTHE: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x_BTHE, cos, sin)

    @staticmethod
    def backward(ctx: Any, dy_BTHE: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(dy_BTHE, cos, -sin), None, None


def _turned(x_BTHE: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x_BTHE.shape[-1] // 2
    y_BTHE = x_BTHE * cos
    y_BTHE[..., :half].addcmul_(x_BTHE[..., half:], sin[..., :half], value=-1)
    y_BTHE[..., half:].addcmul_(x_BTHE[..., :half], sin[..., half:])
    return y_BTHE


def original_context_length(config: ModelConfig, scaling: RopeScaling) -> int:
    """Longest sequence before the rotation was slowed."""
    return scaling.original_context_length or round(config.context_length / scaling.factor)


def _scaled(frequencies: Tensor, config: ModelConfig, scaling: RopeScaling) -> tuple[Tensor, float]:
    """Frequencies for a longer context, and how much sharper attention has to be."""
    if scaling.kind == "linear":
        return frequencies / scaling.factor, 1.0
    length = original_context_length(config, scaling)
    if scaling.kind == "llama3":
        fewest, most = LLAMA3_TURNS
        turns = length * frequencies / (2 * math.pi)
        kept = ((turns - fewest) / (most - fewest)).clamp(0, 1)
        sharpness = 1.0
    else:
        # Channels (not whole ones) that turn as often as that within the original context.
        slowest, fastest = (
            config.head_dim * math.log(length / (turns * 2 * math.pi))
            / (2 * math.log(config.rope_theta))
            for turns in YARN_TURNS
        )  # fmt: skip
        first, last = max(math.floor(fastest), 0), min(math.ceil(slowest), config.head_dim - 1)
        channels = torch.arange(len(frequencies), dtype=torch.float32)
        kept = 1 - ((channels - first) / max(last - first, 0.001)).clamp(0, 1)
        sharpness = 0.1 * math.log(scaling.factor) + 1.0
    return frequencies * kept + frequencies / scaling.factor * (1 - kept), sharpness
