from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llm.config_model import ModelConfig
from llm.presets import PRESETS, count, nearest_preset


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_published_number_of_parameters(name: str) -> None:
    assert count(name) == PRESETS[name].parameters


@pytest.mark.parametrize("name", PRESETS)
def test_transformers_counts_the_same(name: str) -> None:
    config = PRESETS[name].config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(_in_transformers(config))
    assert sum(parameter.numel() for parameter in model.parameters()) == count(name)


def _in_transformers(config: ModelConfig) -> AutoConfig:
    if config.family == "gpt2":
        return AutoConfig.for_model(
            "gpt2",
            vocab_size=config.vocab_size,
            n_positions=config.context_length,
            n_embd=config.d_model,
            n_layer=config.n_layers,
            n_head=config.n_heads,
        )
    return AutoConfig.for_model(
        "qwen3_moe" if config.n_experts else "qwen3" if config.qk_norm else "llama",
        moe_intermediate_size=config.d_ff,
        num_experts=config.n_experts,
        num_experts_per_tok=config.n_experts_per_token,
        vocab_size=config.vocab_size,
        hidden_size=config.d_model,
        intermediate_size=config.d_ff,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        tie_word_embeddings=config.tie_embeddings,
    )


def test_presets_go_from_one_million_to_beyond_seven_billion() -> None:
    counts = [preset.parameters for preset in PRESETS.values()]
    assert counts == sorted(counts)
    assert counts[0] < 1.1e6
    assert counts[-1] > 7e9


@pytest.mark.parametrize(
    "parameters, name",
    [(7e9, "llama-2-7b"), (1e9, "tinyllama-1.1b"), (3e9, "llama-3.2-3b"), (8e9, "llama-3-8b"),
     (124e6, "gpt2"), (350e6, "gpt2-medium"), (1e6, "llama-1m"), (1.05e7, "llama-10m"),
     (3e7, None), (3.05e10, None), (1e11, None)],
)  # fmt: skip
def test_a_count_means_the_preset_that_is_near(parameters: float, name: str | None) -> None:
    assert nearest_preset(parameters) == name
