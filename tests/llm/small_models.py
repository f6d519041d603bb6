"""Small models for tests, in several shapes and with no tensor left at zero or one."""

from __future__ import annotations

from typing import Any

import torch

from llm.config_model import ModelConfig
from llm.decoder import Decoder
from llm.families import build_model

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"n_kv_heads": 2},
    "one_kv_head_tied": {"n_kv_heads": 1, "tie_embeddings": True},
    "qk_norm": {"qk_norm": True},
    "qk_norm_grouped_tied_wide_heads": {
        "qk_norm": True,
        "n_kv_heads": 2,
        "tie_embeddings": True,
        "head_dim": 24,
    },
    "long_rotation": {"rope_theta": 500000.0, "norm_eps": 1e-3},
}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"n_kv_heads": 2},
    "qwen3": {"qk_norm": True, "tie_embeddings": True},
    "qwen3_moe": {"qk_norm": True, "n_experts": 5, "n_experts_per_token": 2, "d_ff": 24},
    "gpt2": {"family": "gpt2"},
    "gpt2_untied": {"family": "gpt2", "tie_embeddings": False, "d_ff": 40},
    "speedrun": {"family": "speedrun", "n_kv_heads": 2},
    "speedrun_plain_values": {"family": "speedrun", "value_embeddings": False},
}
"""One shape of each family, and of each of its kinds."""


def small_model(seed: int = 0, **changes: Any) -> Decoder:
    """A model of two layers whose every parameter is drawn at random.

    Freshly initialized, a model's blocks add nothing to its stream, so that it would agree with
    anything about what happens inside them.
    """
    shape = {"vocab_size": 61, "context_length": 24, "n_layers": 2, "d_model": 32, "n_heads": 4}
    model = build_model(ModelConfig(**{**shape, **changes}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            mean = 1.0 if parameter.ndim == 1 else 0.0
            parameter.normal_(mean, 0.3, generator=generator)
    return model
