from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from llm.config_model import ModelConfig, n_active_parameters, n_parameters
from llm.families import build_model


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    family = draw(st.sampled_from(["llama", "gpt2", "speedrun"]))
    group = 1 if family == "gpt2" else draw(st.integers(1, 3))
    n_kv_heads, head_dim = draw(st.integers(1, 3)), 2 * draw(st.integers(1, 6))
    fields: dict[str, Any] = {
        "family": family,
        "vocab_size": draw(st.integers(1, 70)),
        "context_length": draw(st.integers(1, 9)),
        "n_layers": draw(st.integers(1, 4)),
        "n_heads": n_kv_heads * group,
        "n_kv_heads": n_kv_heads,
        "head_dim": head_dim,
        "d_model": n_kv_heads * group * head_dim,
        "d_ff": draw(st.integers(1, 50)),
    }
    if family == "llama":
        fields["qk_norm"] = draw(st.booleans())
        fields["n_experts"] = draw(st.integers(2, 5)) if fields["qk_norm"] else 0
    if family == "speedrun":
        fields["value_embeddings"] = draw(st.booleans())
    else:
        fields["tie_embeddings"] = draw(st.booleans())
    if family == "speedrun" or fields["qk_norm" if family == "llama" else "n_layers"] is True:
        fields["d_model"] = draw(st.integers(2, 40))
    return ModelConfig(**fields)


@settings(max_examples=60, deadline=None)
@given(configs())
def test_parameters_are_counted_without_building_the_model(config: ModelConfig) -> None:
    with torch.device("meta"):
        model = build_model(config)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert n_parameters(config) == sum(sizes.values())
    experts = sum(size for name, size in sizes.items() if ".experts." in name)
    idle = experts * (1 - config.n_experts_per_token / (config.n_experts or 1))
    assert n_active_parameters(config) == sum(sizes.values()) - round(idle)


@pytest.mark.parametrize(
    "shape, count",
    [
        # GPT-2's own sizes, by transformers' count of its checkpoints.
        ({"n_layers": 12, "d_model": 768, "n_heads": 12}, 124_439_808),
        ({"n_layers": 48, "d_model": 1600, "n_heads": 25}, 1_557_611_200),
    ],
)
def test_gpt2_has_the_parameters_of_gpt2(shape: dict[str, int], count: int) -> None:
    config = ModelConfig(family="gpt2", vocab_size=50257, context_length=1024, **shape)
    assert n_parameters(config) == count


def test_llama_and_qwen3_moe_have_the_parameters_of_their_published_shapes() -> None:
    llama = ModelConfig(
        vocab_size=128256, n_layers=32, d_model=4096, n_heads=32, n_kv_heads=8, d_ff=14336
    )
    assert n_parameters(llama) == 8_030_261_248  # Llama 3.1 8B
    qwen = ModelConfig(
        vocab_size=151936, n_layers=48, d_model=2048, n_heads=32, n_kv_heads=4, head_dim=128,
        qk_norm=True, n_experts=128, n_experts_per_token=8, d_ff=768,
    )  # fmt: skip
    assert n_parameters(qwen) == 30_532_122_624  # Qwen3-30B-A3B
    assert 3.3e9 < n_active_parameters(qwen) < 3.4e9


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"family": "gpt2", "qk_norm": True}, "qk_norm is True, but family 'gpt2' has only False"),
        ({"family": "speedrun", "tie_embeddings": True}, "choose family 'llama' or 'gpt2'"),
        ({"family": "gpt2", "n_kv_heads": 2}, "every head of a gpt2 has its own keys"),
        ({"n_experts": 4}, "n_experts needs qk_norm = true"),
        ({"n_experts": 1, "qk_norm": True}, "n_experts_per_token is 2, but n_experts is 1"),
        ({"value_embeddings": True}, "choose family 'speedrun'"),
        ({"family": "gpt2", "rope_scaling": {"factor": 2}}, "rope_scaling is"),
    ],
)
def test_what_a_family_cannot_have_is_refused_with_what_can(
    wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelConfig(**wrong)


def test_what_is_left_out_follows_from_the_family() -> None:
    gpt2, speedrun = ModelConfig(family="gpt2"), ModelConfig(family="speedrun")
    assert (gpt2.d_ff, gpt2.tie_embeddings, gpt2.qk_norm) == (1536, True, False)
    assert (speedrun.d_ff, speedrun.tie_embeddings, speedrun.qk_norm) == (1536, False, True)
    assert speedrun.value_layers == [1, 3, 5]
    # As many parameters meet a token as in one feed-forward layer: 1024 / 4 is 256.
    experts = ModelConfig(qk_norm=True, n_experts=16, n_experts_per_token=4)
    assert experts.d_ff == 256


def test_a_config_reads_back_from_what_it_writes() -> None:
    config = ModelConfig(context_length=1024, rope_scaling={"kind": "yarn", "factor": 4})
    assert ModelConfig.model_validate(config.model_dump(mode="json")) == config
